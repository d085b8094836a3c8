"""All detectors together: what has changed, named by its likeliest cause, and said once.

One change moves many things: a column that shifts changes predictions, and may raise the error. So

- an alarm of the inputs begins everything anew, in units of what comes next;
- a rise of the error waits up to `_PATIENCE` blocks while the newest inputs look suspicious;
- labels, predictions and calibration wait for as many blocks, and an alarm of inputs or error in that time stands for them;
- a rise of the error is said once, until it has fallen again or become usual.
"""

from __future__ import annotations

import math
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
from pipeline.drift.concept import Concept
from pipeline.drift.inputs import CATEGORY, CORRELATION, FEATURE, MISSING, Inputs
from pipeline.drift.means import BLOCK_ROWS, Means, Moved
from pipeline.drift.numbers import chance
from pipeline.drift.outcomes import CALIBRATION, ERROR, ERRORS, LABEL, PREDICTION, Outcomes
from pipeline.drift.psi import PSI
from pipeline.drift.reference import Reference
from pipeline.quality import Arrays, fill

_INPUT_NAMES = {MISSING: "missing", CATEGORY: "category", FEATURE: "feature", CORRELATION: "correlation"}
_OUTCOME_NAMES = {ERROR: "concept", LABEL: "label", PREDICTION: "prediction", CALIBRATION: "calibration"}
_PATIENCE = 2  # blocks
_SUSPICIOUS = 0.8  # of the deviation that is critical
_QUIET_ROWS = 1024
_USUAL_ROWS = 4096
_ERROR_CRITICAL = 0.9  # of the deviation that is critical: only a rise counts
_RISE_DEVIATIONS = 4.0  # a rise is at least so many deviations of a mean, as far as such means stray anyway
_EFFECT_MIN = {LABEL: 0.0, PREDICTION: 0.1, CALIBRATION: 0.05}
"""A learner that learns changes its predictions a little all the time."""
_NOTED = 64  # blocks whose first rows are remembered

_IN_BLOCK, _BLOCKS, _QUIET, _RISE_WAITS, _OUTCOME_WAITS = range(5)  # slots of `counters`


class Drift:
    """What the detectors say of a stream; see the module."""

    def __init__(self, config: MonitorConfig, kind: str, classes: int, features: FeaturesConfig) -> None:
        self._names = [column.name for column in (*features.numeric, *features.categorical)]
        numeric, categorical = len(features.numeric), len(features.categorical)
        self._threshold = config.psi_threshold
        self._concept = Concept(kind, config.adwin_delta)
        self._inputs = Inputs(numeric, categorical, settle_rows=config.settle_rows, p=config.drift_p)
        self._outcomes = Outcomes(kind, classes, settle_rows=4 * config.settle_rows, p=config.drift_p)
        self._reference = Reference(kind, classes, numeric, categorical)
        self._psi = PSI(numeric, categorical, reference_rows=config.reference_rows, threshold=config.psi_threshold)
        self._buckets_K = np.array([column.buckets for column in features.categorical], np.int64)
        self._seen_K = np.zeros(int((-(-self._buckets_K // 8)).sum()), np.uint8)
        self._unknown = np.zeros(1, np.int64)
        self._counters = np.zeros(5, np.int64)
        self._noted_B2 = np.zeros((_NOTED, 2), np.int64)  # of the newest blocks: first row's number and event time
        self._rise_5 = np.full(5, np.inf)  # the rise that waits: before, after, p, since_row, since_time

    @property
    def unknown_categories(self) -> int:
        return int(self._unknown[0])

    def observe(self, batch: Batch, rows_trained: int) -> list[Alarm]:
        """The alarms that a batch raises, in the order of its rows; `rows_trained` includes its own."""
        real_R, rises = self._concept.update(batch)
        parts = batch.features_BC, batch.scores_BS, batch.labels_B, batch.event_time_B
        features_RC, scores_RS, labels_R, times_R = (
            part[: batch.rows] if len(real_R) == batch.rows else part[real_R] for part in parts
        )
        if len(self._buckets_K):
            self._unknown[0] += _mark_seen(features_RC[:, len(self._names) - len(self._buckets_K) :], self._buckets_K, self._seen_K)
        numbers_R = rows_trained - batch.rows + 1 + real_R
        alarms: list[Alarm] = []
        at = 0
        while at < len(real_R):
            if self._counters[_IN_BLOCK] == 0:
                self._noted_B2[self._counters[_BLOCKS] % _NOTED] = numbers_R[at], times_R[at]
            count = min(len(real_R) - at, BLOCK_ROWS - int(self._counters[_IN_BLOCK]), self._psi.to_go)
            if rises:
                count = min(count, rises[0].row + 1 - at)
            rows = slice(at, at + count)
            self._inputs.take(features_RC[rows])
            learn = not self._outcomes.settled
            wrong = self._reference.take(features_RC[rows], labels_R[rows], self._inputs, learn=learn)
            self._outcomes.take(scores_RS[rows], labels_R[rows], wrong)
            at += count
            here = int(numbers_R[at - 1]), int(times_R[at - 1])
            self._counters[_IN_BLOCK] += count
            self._counters[_QUIET] += count
            found = [self._psi_alarm(shift, here) for shift in self._psi.update(features_RC[rows])]
            if found:
                self._restart()
            if rises and rises[0].row + 1 == at:
                found += self._on_rise(rises.pop(0), here)
            if self._counters[_IN_BLOCK] == BLOCK_ROWS:
                self._counters[_IN_BLOCK] = 0
                self._counters[_BLOCKS] += 1
                found += self._on_block(here)
            alarms += found
        return alarms

    def point(self) -> dict[str, float]:
        """Metrics named `drift/...`; a PSI only once a full window was compared."""
        psi = {name: float(value) for name, value in zip(self._names, self._psi.psi_C, strict=True)}
        known = {f"drift/psi/{name}": value for name, value in psi.items() if np.isfinite(value)}
        return {
            "drift/error_mean": self._concept.mean,
            "drift/error_window": float(self._concept.width),
            "drift/unknown_categories": float(self.unknown_categories),
            **({"drift/psi_max": max(known.values())} if known else {}),
            **known,
        }

    def state(self) -> dict[str, Arrays]:
        parts = self._concept.state() | self._inputs.state() | self._outcomes.state() | self._reference.state()
        return parts | {"psi": self._psi.state(), "drift": self._own_state()}

    def restore(self, parts: Mapping[str, Arrays]) -> None:
        self._concept.restore(parts)
        self._inputs.restore(parts)
        self._outcomes.restore(parts)
        self._reference.restore(parts)
        self._psi.restore(parts.get("psi", {}))
        fill(self._own_state(), parts.get("drift", {}))

    def _own_state(self) -> Arrays:
        return {
            "seen": self._seen_K,
            "unknown": self._unknown,
            "counters": self._counters,
            "noted": self._noted_B2,
            "rise": self._rise_5,
        }

    def _restart(self) -> None:
        """Everything is new to the inputs: what they see next is usual from now on."""
        self._inputs.restart()
        self._psi.restart()
        self._restart_outcomes()

    def _restart_outcomes(self) -> None:
        self._outcomes.restart()
        self._reference.restart()
        self._counters[[_QUIET, _RISE_WAITS, _OUTCOME_WAITS]] = 0

    def _since(self, row: int, rows: int) -> tuple[int, int]:
        """Number of the first of the newest `rows` rows, and the event time of its block's first row."""
        since, blocks = row - rows + 1, int(self._counters[_BLOCKS]) + (self._counters[_IN_BLOCK] > 0)
        noted_B2 = self._noted_B2[[block % _NOTED for block in range(max(blocks - _NOTED, 0), blocks)]]
        block = max(int(np.searchsorted(noted_B2[:, 0], since, "right")) - 1, 0)
        return max(since, int(noted_B2[0, 0])), int(noted_B2[block, 1])

    @property
    def _armed(self) -> bool:
        """Whether the error of the last alarm is past, or has become usual."""
        quiet, (before, after) = self._counters[_QUIET], self._rise_5[:2]
        return bool(quiet >= _USUAL_ROWS or (quiet >= _QUIET_ROWS and self._concept.mean <= (before + after) / 2))

    def _on_rise(self, rise: Shift, here: tuple[int, int]) -> list[Alarm]:
        """A rise of the error, unless it is one of those that follow another, or is nothing unusual here."""
        before, after = rise.before, rise.after
        means = self._outcomes.means
        rest = max(self._concept.width, 1)
        deviation = means.deviation(ERROR) or math.sqrt(max(before * (1 - before), 0))
        error = deviation * math.sqrt(means.stray(ERROR) * (1 / rise.rows + 1 / rest))
        deviations = (after - before) / error if error else 2 * _RISE_DEVIATIONS
        if deviations < _RISE_DEVIATIONS:
            return []
        if not self._armed or self._counters[_RISE_WAITS]:
            self._counters[_QUIET] = 0
            return []
        self._rise_5[:] = before, after, chance(deviations), *self._since(here[0], rise.rows)
        return self._suspect(here)

    def _on_block(self, here: tuple[int, int]) -> list[Alarm]:
        counters = self._counters
        inputs = self._inputs.close()
        if self._inputs.settled:
            self._outcomes.close()
        if inputs > 1:
            alarm = self._input_alarm(here)
            self._restart()
            return [alarm]
        if counters[_RISE_WAITS]:
            counters[_RISE_WAITS] -= 1
            return [self._concept_alarm(here)] if counters[_RISE_WAITS] == 0 else []
        means = self._outcomes.means
        error, doubt, reference = means.beyond_D[:ERRORS] / _ERROR_CRITICAL
        if self._armed and (error > 1 or reference > 1 or (doubt > 1 and error > 0.4)):
            moved = means.moved(ERRORS - 1 if reference > max(error, doubt) else 0)
            self._rise_5[:] = moved.before, moved.after, moved.p, *self._since(here[0], moved.rows)
            return self._suspect(here)
        others = self._other_outcome()
        if counters[_OUTCOME_WAITS]:
            counters[_OUTCOME_WAITS] -= 1
            if counters[_OUTCOME_WAITS] == 0 and others is not None:
                return [self._outcome_alarm(others, here)]
        elif others is not None:
            counters[_OUTCOME_WAITS] = _PATIENCE
        return []

    def _other_outcome(self) -> int | None:
        """The statistic of labels, predictions or calibration that has moved, and by so much that it matters."""
        outcomes, means = self._outcomes, self._outcomes.means
        for statistic in np.flatnonzero(np.abs(means.beyond_D[ERRORS:]) > 1) + ERRORS:
            family, moved = int(outcomes.family_D[statistic]), means.moved(int(statistic))
            wider = family != CALIBRATION or abs(moved.after) > abs(moved.before)
            if wider and abs(moved.after - moved.before) >= _EFFECT_MIN[family]:
                return int(statistic)
        return None

    def _suspect(self, here: tuple[int, int]) -> list[Alarm]:
        """An alarm of the rise that was noted, unless the inputs are suspicious: then it waits."""
        self._counters[_QUIET] = 0
        if self._inputs.means.peek(int(self._counters[_IN_BLOCK])) > _SUSPICIOUS:
            self._counters[_RISE_WAITS] = _PATIENCE + 1
            return []
        return [self._concept_alarm(here)]

    def _concept_alarm(self, here: tuple[int, int]) -> Alarm:
        before, after, p, since_row, since_time = self._rise_5.tolist()
        self._restart_outcomes()
        detail = f"mean error rose from {before:.3g} to {after:.3g}"
        return Alarm("concept", None, *here, int(since_row), int(since_time), after - before, p, detail)

    def _input_alarm(self, here: tuple[int, int]) -> Alarm:
        inputs, means = self._inputs, self._inputs.means
        statistic, moved = _first(means, inputs.family_D)
        family, column, other = inputs.family_D[statistic], inputs.column_D[statistic], inputs.other_D[statistic]
        name = self._names[column] if other < 0 else f"{self._names[column]} x {self._names[other]}"
        others = np.abs(means.beyond_D) > 1
        columns = len(set(inputs.column_D[others & (inputs.family_D == family)].tolist()) - {int(column)})
        effect = moved.after - moved.before
        detail = f"{inputs.meaning(statistic)} went from {moved.before:.3g} to {moved.after:.3g}"
        if columns:
            detail += f", and {columns} other column{'s' if columns > 1 else ''} moved"
        return Alarm(_INPUT_NAMES[int(family)], name, *here, *self._since(here[0], moved.rows), effect, moved.p, detail)

    def _outcome_alarm(self, statistic: int, here: tuple[int, int]) -> Alarm:
        outcomes, moved = self._outcomes, self._outcomes.means.moved(statistic)
        family, since = int(outcomes.family_D[statistic]), self._since(here[0], moved.rows)
        if family == LABEL:  # other labels come with other features
            self._restart()
        self._restart_outcomes()
        detail = f"{outcomes.meaning(statistic)} went from {moved.before:.3g} to {moved.after:.3g}"
        return Alarm(_OUTCOME_NAMES[family], None, *here, *since, moved.after - moved.before, moved.p, detail)

    def _psi_alarm(self, shift: Shift, here: tuple[int, int]) -> Alarm:
        bins = 64
        z = (shift.after * shift.rows / 4 - bins) / math.sqrt(2 * bins)
        detail = f"PSI {shift.after:.3g} against the reference window is above {self._threshold:.3g}"
        since = self._since(here[0], shift.rows)
        return Alarm("feature", self._names[shift.column], *here, *since, shift.after, chance(max(z, 0)), detail)


def _first(means: Means, family_D: Int64s) -> tuple[int, Moved]:
    """Of the means that have moved those of the first family, of these the one that moved most."""
    beyond_D = np.abs(means.beyond_D)
    family = family_D[beyond_D > 1].min()
    statistic = int(np.where(family_D == family, beyond_D, 0).argmax())
    return statistic, means.moved(statistic)


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
