"""What the run knows about itself: quality of live and frozen scores, drift, new categories. Part of S."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from consumers.batch import Batch
from consumers.config import FeaturesConfig
from consumers.record import Float32s, Int64s
from pipeline.config import MonitorConfig
from pipeline.drift import FAMILIES, Alarm
from pipeline.drift.watch import Drift
from pipeline.quality import Arrays, Quality

ALARMS_MAX = 1000
"""Alarms kept; older ones are only counted."""

AGES_MS = (60_000, 3_600_000, 86_400_000, 604_800_000)
AGES = ("below_1m", "below_1h", "below_1d", "below_7d", "7d_and_more")
"""Quality is split by how long the label took, in event time."""

_AGES_MS_A = np.array(AGES_MS)


class Monitor:
    """Observes every batch after its step, and forgets nothing that a resumed run would need."""

    def __init__(self, config: MonitorConfig, *, kind: str, classes: int, features: FeaturesConfig) -> None:
        self._config = config
        self._kind = kind
        self._classes = classes
        self._live = Quality(kind, classes, config.window)
        self._quality = {"live": self._live}
        self._by_age = features.label is None  # else labels come with their features
        self._drift = Drift(config, kind, classes, features) if config.drift else None
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

    def observe(self, batch: Batch, frozen_scores_BS: Float32s | None, rows_trained: int) -> list[Alarm]:
        """Books the prequential scores of a batch, and those of the frozen copy once there is one. Returns new alarms.

        Args:
            batch: its rows of positive weight are booked, in order.
            frozen_scores_BS: the frozen copy's scores of the same rows, or None while it does not exist. From
                the first batch with `rows_trained` >= `compare_after` on, live and frozen are also compared
                over exactly the same rows.
            rows_trained: rows trained so far, the batch's included; alarms carry where in it they were raised.
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
        found = self._drift.observe(batch, rows_trained, batch.age_B if self._by_age else None) if self._drift else []
        for alarm in found:
            self.alarm_counts[alarm.family] += 1
        self.alarms = (self.alarms + found)[-ALARMS_MAX:]
        return found

    def restart_recent(self) -> None:
        """The recent metrics are of the rows from here on."""
        for quality in self._quality.values():
            quality.restart_recent()

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
        place_B = np.searchsorted(_AGES_MS_A, age_B, side="right")  # in AGES
        order_B = np.argsort(place_B, kind="stable")
        grouped = live_BS[order_B], labels_B[order_B], weights_B[order_B]
        ends_A, start = np.bincount(place_B, minlength=len(AGES)).cumsum(), 0
        for age, end in zip(AGES, ends_A.tolist(), strict=True):
            if end > start:
                self._of(_age_part(age), 0).update(*(values[start:end] for values in grouped))
            start = end

    def _of(self, name: str, window: int) -> Quality:
        if name not in self._quality:
            self._quality[name] = Quality(self._kind, self._classes, window)
        return self._quality[name]


def _age_part(age: str) -> str:
    return f"live/by_age/{age}"


def _finite(scores_NS: Float32s) -> npt.NDArray[np.bool_]:
    """Which rows can be measured."""
    finite_NS: npt.NDArray[np.bool_] = np.isfinite(scores_NS)
    if finite_NS.shape[1] == 1:  # without a sum along rows of one number each
        return finite_NS.reshape(-1)
    all_N: npt.NDArray[np.bool_] = np.asarray(finite_NS.all(axis=1))
    return all_N
