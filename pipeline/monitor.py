"""What the run knows about itself: quality of live and frozen scores, drift, new categories. Part of S."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from consumers.batch import Batch
from consumers.compiled import njit_cached
from consumers.config import FeaturesConfig
from consumers.record import Bytes1, Float32s, Int64s
from pipeline.config import MonitorConfig
from pipeline.drift import Alarm, Shift
from pipeline.drift.adwin import Adwin
from pipeline.drift.psi import PSI
from pipeline.quality import KINDS, Arrays, Float64s, Quality, fill

_BINARY, _MULTICLASS, _REGRESSION = range(len(KINDS))

FAMILIES = ("concept", "feature")

ALARMS_MAX = 1000
"""Alarms kept; older ones are only counted."""

AGES_MS = (60_000, 3_600_000, 86_400_000, 604_800_000)
AGES = ("below_1m", "below_1h", "below_1d", "below_7d", "7d_and_more")
"""Quality is split by how long the label took, in event time."""

_BOUND = 10.0  # regression: an error of this many times the usual one counts as 1


class Monitor:
    """Observes every batch after its step, and forgets nothing that a resumed run would need."""

    def __init__(self, config: MonitorConfig, *, kind: str, classes: int, features: FeaturesConfig) -> None:
        self._config = config
        self._kind = kind
        self._classes = classes
        self._live = Quality(kind, classes, config.window)
        self._quality = {"live": self._live}
        self._by_age = features.label is None  # else labels come with their features
        self._drift = Drift(config, kind, features) if config.drift else None
        self.alarms: list[Alarm] = []
        self.alarm_counts = dict.fromkeys(FAMILIES, 0)

    @property
    def alarm_count(self) -> int:
        """Alarms of all families."""
        return sum(self.alarm_counts.values())

    @property
    def unknown_categories(self) -> int:
        """Rows times columns whose category bucket had never been seen before."""
        return self._drift.unknown_categories if self._drift else 0

    def observe(self, batch: Batch, frozen_scores_BS: Float32s | None, rows_trained: int) -> None:
        """Books the prequential scores of a batch, and those of the frozen copy once there is one.

        Args:
            batch: its rows of positive weight are booked, in order.
            frozen_scores_BS: the frozen copy's scores of the same rows, or None while it does not exist. From
                the first batch with `rows_trained` >= `compare_after` on, live and frozen are also compared
                over exactly the same rows.
            rows_trained: rows trained so far; alarms carry it.
        """
        labels_B, weights_B = batch.labels_B[: batch.rows], batch.weights_B[: batch.rows]
        live_BS = batch.scores_BS[: batch.rows]
        self._live.update(live_BS, labels_B, weights_B)
        if self._by_age and batch.age_B is not None:
            self._update_by_age(live_BS, labels_B, weights_B, batch.age_B[: batch.rows])
        if frozen_scores_BS is not None:
            frozen_BS = frozen_scores_BS[: batch.rows]
            self._of("frozen", self._config.window).update(frozen_BS, labels_B, weights_B)
            if rows_trained >= (self._config.compare_after or 0):
                both_B = _finite(live_BS) & _finite(frozen_BS)
                shared_B = np.where(both_B, weights_B, np.float32(0))
                self._of("compare_live", 0).update(live_BS, labels_B, shared_B)
                self._of("compare_frozen", 0).update(frozen_BS, labels_B, shared_B)
        if self._drift:
            found = self._drift.observe(batch, rows_trained)
            for alarm in found:
                self.alarm_counts[alarm.family] += 1
            self.alarms = (self.alarms + found)[-ALARMS_MAX:]

    def point(self) -> dict[str, float]:
        """Every metric that is defined by now, all finite: `live/auc_recent`, `compare/live_auc` and more."""
        point: dict[str, float] = {}
        for name, quality in sorted(self._quality.items()):
            prefix = name.replace("_", "/") + "_" if name.startswith("compare_") else f"{name}/"
            point |= {prefix + metric: value for metric, value in quality.metrics().items()}
            if "by_age" in name:
                point[f"{prefix}rows"] = float(quality.rows)
            if quality.unmeasured:
                point[f"{prefix}unmeasured"] = float(quality.unmeasured)
        if self._drift:
            point |= {f"drift/{family}_alarms": float(count) for family, count in self.alarm_counts.items()}
            point |= {"drift/alarms": float(self.alarm_count)} | self._drift.point()
        return point

    def state(self) -> Arrays:
        """All arrays, by flat names such as `live.sums`: views that are valid until the next batch."""
        parts = {name: quality.state() for name, quality in self._quality.items()}
        if self._drift:
            parts |= self._drift.state()
        return {f"{part}.{name}": array for part, state in parts.items() for name, array in state.items()}

    def document(self) -> dict[str, Any]:
        """The alarms, ready for JSON."""
        return {"alarm_counts": dict(self.alarm_counts), "alarms": [alarm.document() for alarm in self.alarms]}

    def configure(self, config: MonitorConfig) -> None:
        """Takes over changed settings, those apart that shape what is stored."""
        self._config = config

    def restore(self, arrays: Mapping[str, npt.NDArray[Any]], document: Mapping[str, Any]) -> None:
        """Takes over `state` and `document` of an equally configured monitor. Raises SnapshotError."""
        parts: dict[str, Arrays] = {}
        for flat, array in arrays.items():
            part, _, name = flat.partition(".")
            parts.setdefault(part, {})[name] = array
        for part in ("live", "frozen", "compare_live", "compare_frozen", *map(_age_part, AGES)):
            if part in parts or part == "live":
                window = self._config.window if part in ("live", "frozen") else 0
                self._of(part, window).restore(parts.get(part, {}))
        if self._drift:
            self._drift.restore(parts)
        self.alarm_counts = dict(document["alarm_counts"])
        self.alarms = [Alarm(**alarm) for alarm in document["alarms"]]

    def _update_by_age(self, live_BS: Float32s, labels_B: Float32s, weights_B: Float32s, age_B: Int64s) -> None:
        place_B = np.searchsorted(AGES_MS, age_B, side="right")
        for place in np.flatnonzero(np.bincount(place_B)).tolist():
            rows_M = np.flatnonzero(place_B == place)
            of_age = (live_BS[rows_M], labels_B[rows_M], weights_B[rows_M])
            self._of(_age_part(AGES[place]), 0).update(*of_age)

    def _of(self, name: str, window: int) -> Quality:
        if name not in self._quality:
            self._quality[name] = Quality(self._kind, self._classes, window)
        return self._quality[name]


class Drift:
    """ADWIN on the error of the prequential score, PSI of every column, and the categories never seen before.

    The error is 0 or 1 for classes. For a regression it is |score - label| over a bound, clipped at 1; the
    bound is 10 times the mean error in ADWIN's window or the median one of the batch (the mean if that is 0),
    whichever is greater. When the bound moves, the window is rescaled with it, so that a change of the bound
    alone is never taken for a change of the error.
    """

    def __init__(self, config: MonitorConfig, kind: str, features: FeaturesConfig) -> None:
        self._kind = KINDS.index(kind)
        self._names = [column.name for column in features.numeric]
        self._names += [column.name for column in features.categorical]
        self._numeric = len(features.numeric)
        self._threshold = config.psi_threshold
        self._adwin = Adwin(config.adwin_delta)
        self._psi = PSI(
            self._numeric,
            len(features.categorical),
            reference_rows=config.reference_rows,
            threshold=config.psi_threshold,
        )
        self._bound = np.full(1, 1.0 if kind != "regression" else 0.0)
        self._buckets_K = np.array([column.buckets for column in features.categorical], np.int64)
        self._seen_K = np.zeros(int((-(-self._buckets_K // 8)).sum()), np.uint8)
        self._unknown = np.zeros(1, np.int64)

    @property
    def unknown_categories(self) -> int:
        return int(self._unknown[0])

    def observe(self, batch: Batch, rows_trained: int) -> list[Alarm]:
        """The alarms that a batch raises: at most one for the error, and one for each column."""
        real_N, scored_N = np.empty((2, batch.rows), np.int64)
        errors_N = np.empty(batch.rows)
        real, scored = _errors(self._kind, batch.scores_BS, batch.labels_B, batch.weights_B, real_N, scored_N, errors_N)
        features_NC = batch.features_BC[: batch.rows]
        if real < batch.rows:
            features_NC = features_NC[real_N[:real]]
        if len(self._buckets_K):
            self._unknown[0] += _mark_seen(features_NC[:, self._numeric :], self._buckets_K, self._seen_K)
        alarms = [
            Alarm(
                "feature",
                self._names[shift.column],
                rows_trained,
                int(batch.event_time_B[real_N[shift.row]]),
                shift.after,
                f"PSI {shift.after:.3g} against the reference window is above {self._threshold:.3g}",
            )
            for shift in self._psi.update(features_NC)
        ]
        rises = self._adwin.update(self._scaled(errors_N[:scored]))
        if rises:
            alarms.append(self._concept_alarm(rises[0], scored_N, batch.event_time_B, rows_trained))
        return alarms

    def point(self) -> dict[str, float]:
        """Metrics named `drift/...`; a PSI only once a full window was compared."""
        psi = {name: float(value) for name, value in zip(self._names, self._psi.psi_C, strict=True)}
        known = {f"drift/psi/{name}": value for name, value in psi.items() if np.isfinite(value)}
        return {
            "drift/error_mean": self._adwin.mean * float(self._bound[0]),
            "drift/error_window": float(self._adwin.width),
            "drift/unknown_categories": float(self.unknown_categories),
            **({"drift/psi_max": max(known.values())} if known else {}),
            **known,
        }

    def state(self) -> dict[str, Arrays]:
        return {"adwin": self._adwin.state(), "psi": self._psi.state(), "drift": self._own_state()}

    def restore(self, parts: Mapping[str, Arrays]) -> None:
        self._adwin.restore(parts.get("adwin", {}))
        self._psi.restore(parts.get("psi", {}))
        fill(self._own_state(), parts.get("drift", {}))

    def _own_state(self) -> Arrays:
        return {"bound": self._bound, "seen": self._seen_K, "unknown": self._unknown}

    def _scaled(self, errors_N: Float64s) -> Float64s:
        """Errors in [0, 1]: as the bound has them, which moves with a regression's."""
        if self._kind != _REGRESSION or not len(errors_N):
            return errors_N
        old, middle = float(self._bound[0]), len(errors_N) // 2
        usual = float(np.partition(errors_N, middle)[middle]) or float(errors_N.mean())
        new = _BOUND * max(self._adwin.mean * old, usual)
        if new == 0:
            return errors_N  # all are 0
        self._adwin.rescale(old / new)
        self._bound[0] = new
        return np.minimum(errors_N / new, 1.0)

    def _concept_alarm(self, rise: Shift, scored_N: Int64s, event_time_B: Int64s, rows_trained: int) -> Alarm:
        bound = float(self._bound[0])
        before, after = rise.before * bound, rise.after * bound
        return Alarm(
            "concept",
            None,
            rows_trained,
            int(event_time_B[scored_N[rise.row]]),
            after - before,
            f"mean error rose from {before:.3g} to {after:.3g}",
        )


def _age_part(age: str) -> str:
    return f"live/by_age/{age}"


def _finite(scores_NS: Float32s) -> npt.NDArray[np.bool_]:
    """Which rows can be measured."""
    finite_NS: npt.NDArray[np.bool_] = np.isfinite(scores_NS)
    if finite_NS.shape[1] == 1:  # without a sum along rows of one number each
        return finite_NS.reshape(-1)
    all_N: npt.NDArray[np.bool_] = np.asarray(finite_NS.all(axis=1))
    return all_N


@njit_cached
def _errors(
    kind: int,
    scores_BS: Float32s,
    labels_B: Float32s,
    weights_B: Float32s,
    real_N: Int64s,
    scored_N: Int64s,
    errors_N: Float64s,
) -> tuple[int, int]:
    """Which of the first N rows have weight, which of these a score, and its error; how many there are of both."""
    real = scored = 0
    for row in range(len(real_N)):
        if not weights_B[row] > 0:
            continue
        real_N[real] = row
        real += 1
        best, finite = 0, True
        for k in range(scores_BS.shape[1]):
            finite = finite and np.isfinite(scores_BS[row, k])
            best = k if scores_BS[row, k] > scores_BS[row, best] else best
        if not finite:
            continue
        score, label = np.float64(scores_BS[row, 0]), np.float64(labels_B[row])
        if kind == _REGRESSION:
            error = abs(score - label)
        elif kind == _BINARY:
            error = np.float64((score >= 0.5) != (label == 1))
        else:
            error = np.float64(best != label)
        scored_N[scored], errors_N[scored] = row, error
        scored += 1
    return real, scored


@njit_cached
def _mark_seen(ids_NK: Float32s, buckets_K: Int64s, seen: Bytes1) -> int:
    """Sets the bit of every bucket and returns how many were not set before; bucket 0 is null."""
    unknown = 0
    for row in range(ids_NK.shape[0]):
        start = 0
        for column in range(len(buckets_K)):
            bucket = int(ids_NK[row, column])
            if 0 < bucket < buckets_K[column]:
                byte, bit = start + (bucket >> 3), np.uint8(1 << (bucket & 7))
                if not seen[byte] & bit:
                    seen[byte] |= bit
                    unknown += 1
            start += (buckets_K[column] + 7) >> 3
    return unknown
