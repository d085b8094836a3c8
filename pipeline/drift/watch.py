"""All detectors together: what has changed, named by its likeliest cause, and said once.

One change moves many things: a column that shifts changes predictions, and may raise the error. So

- an alarm of the inputs, or of the labels, begins everything anew, in units of what comes next;
- a rise of the error waits for `_PATIENCE` blocks while the newest inputs look suspicious;
- labels, predictions and calibration wait for as many, and an alarm of inputs or error meanwhile stands for them;
- a rise of the error is said once, until it has fallen again or become usual.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from consumers.batch import Batch
from consumers.config import FeaturesConfig
from consumers.record import Float32s, Int64s
from pipeline.config import MonitorConfig
from pipeline.drift import Alarm, Shift
from pipeline.drift.blocks import ERROR_CRITICAL, Beyond, Rows, Settled, Watched, close_detectors, plain, take_rows
from pipeline.drift.categories import Categories
from pipeline.drift.concept import Concept
from pipeline.drift.delays import Delays
from pipeline.drift.inputs import Inputs
from pipeline.drift.naming import Since, input_alarm, outcome_alarm, psi_alarm
from pipeline.drift.numbers import chance
from pipeline.drift.outcomes import CALIBRATION, ERRORS, LABEL, PREDICTION, Outcomes
from pipeline.drift.psi import PSI
from pipeline.drift.reference import Reference
from pipeline.drift.windows import BLOCK_ROWS
from pipeline.quality import Arrays, fill

_PATIENCE = 2  # blocks
_SUSPICIOUS = 0.9  # of the deviation that is critical
_QUIET_ROWS = 1024  # after a rise: the next one counts if the error has fallen again meanwhile
_USUAL_ROWS = 4096  # and after so many in any case
_DOUBT_ERROR = 0.7  # of ERROR_CRITICAL: so far the error itself has to rise with that beyond what scores expect
_RISE_DEVIATIONS = 4.0  # a rise is at least so many deviations of a mean, as far as such means stray anyway
_EFFECT_MIN = {LABEL: 0.0, PREDICTION: 0.1, CALIBRATION: 0.05}
"""A learner that learns changes its predictions a little all the time."""

_QUIET, _RISE_WAITS, _OUTCOME_WAITS = range(3)
"""Slots of `counters`: rows since the last rise or restart; blocks that an alarm of the error must wait; those that
one of labels, predictions or calibration must."""


class Rise(NamedTuple):
    """A rise of the mean error, said or yet to be."""

    before: float
    after: float
    p: float
    since_row: float
    since_time: float


@dataclass(slots=True)
class _Passage:
    """How far the batch at hand has come."""

    stop: int = 0  # rows that were taken
    psi_from: int = 0  # rows that PSI has or need not have


class Drift:
    """What the detectors say of a stream; see the module."""

    def __init__(self, config: MonitorConfig, kind: str, classes: int, features: FeaturesConfig) -> None:
        self._names = [column.name for column in features.numeric]
        self._names += [column.name for column in features.categorical]
        numeric, categorical = len(features.numeric), len(features.categorical)
        self._threshold = config.psi_threshold
        self._concept = Concept(kind, config.adwin_delta)
        self._inputs = Inputs(numeric, categorical, settle_rows=config.settle_rows, p=config.drift_p)
        self._outcomes = Outcomes(kind, classes, settle_rows=4 * config.settle_rows, p=config.drift_p)
        self._passage = _Passage()
        self._delays = Delays(settle_rows=config.settle_rows, p=config.drift_p)
        self._reference = Reference(kind, classes, numeric, categorical)
        self._psi = PSI(numeric, categorical, reference_rows=config.reference_rows, threshold=config.psi_threshold)
        self._categories = Categories([column.buckets for column in features.categorical])
        self._counters = np.zeros(3, np.int64)
        self._since = Since()
        self._rise_5 = np.full(len(Rise._fields), np.inf)  # the last `Rise`, to which any error is a low one at first
        detectors = self._reference.arrays, self._outcomes.arrays, self._since.arrays
        self._watched = plain(Watched(self._inputs.arrays, *detectors))

    @property
    def unknown_categories(self) -> int:
        """Rows times columns whose category bucket had never been seen before."""
        return self._categories.unknown

    def observe(self, batch: Batch, rows_trained: int, late_B: Int64s | None = None) -> list[Alarm]:
        """The alarms that a batch raises, in the order of its rows.

        Args:
            batch: its rows of positive weight are watched, in order.
            rows_trained: rows trained so far, its own included.
            late_B: ms that its labels came after their features, by the event times of both, where they were sent;
                None: not watched.
        """
        real_R, rises = self._concept.update(batch)
        if not len(real_R):
            return []
        rows = slice(0, batch.rows) if len(real_R) == batch.rows else real_R  # a slice copies nothing
        features_RC, scores_RS, labels_R = batch.features_BC[rows], batch.scores_BS[rows], batch.labels_B[rows]
        self._categories.update(features_RC)
        number_R, time_R = np.maximum(rows_trained - batch.rows + 1 + real_R, 0), batch.event_time_B[rows]
        at = self._passage = _Passage()
        taken = Rows(features_RC, scores_RS, labels_R, number_R, time_R)
        alarms: list[Alarm] = []
        if late_B is not None:
            sent_R = slice(None) if batch.sent_B is None else batch.sent_B[rows]
            alarms += self._delays.observe(late_B[rows][sent_R], number_R[sent_R], time_R[sent_R])
        while at.stop < len(real_R):
            full = at.psi_from + self._psi.to_go  # where the window of PSI is
            stops = {full, *(rise.row + 1 for rise in rises[:1])}
            stop = min(len(real_R), *stops)
            beyond, closed = self._take(taken, stop, close_last=stop not in stops)  # else PSI or the rise comes first
            if at.stop == full:
                alarms += self._on_window(features_RC)
            if rises and rises[0].row + 1 == at.stop:
                alarms += self._on_rise(rises.pop(0))
            if self._since.block_to_go == BLOCK_ROWS:
                alarms += self._on_block(beyond if closed else self._close())
        self._psi.update(features_RC[at.psi_from :])
        return sorted(alarms, key=lambda alarm: alarm.row)

    def _take(self, rows: Rows, stop: int, *, close_last: bool) -> tuple[Beyond, bool]:
        """Gives rows to all detectors but PSI, whose windows are longer: until `stop`, or a block that says something.

        Returns what the last block says that was closed, and whether one that ends here was: it is left to `_close` if
        it ends with `stop`, unless `close_last`, and as long as something settles or waits.
        """
        at, settled = self._passage, self._settled()
        start = at.stop
        waits = self._counters[_RISE_WAITS] or self._counters[_OUTCOME_WAITS]
        if not settled.outcomes or waits:
            stop, close_last = min(stop, start + self._since.block_to_go), False
        at.stop, beyond = take_rows(plain(rows), self._watched, plain(settled), start, stop, close_last)
        taken = slice(start, at.stop)
        if not settled.inputs:
            self._inputs.keep(rows.features_RC[taken])
        if not settled.outcomes:
            self._outcomes.keep(rows.labels_R[taken])
        self._since.here = int(rows.number_R[at.stop - 1]), int(rows.time_R[at.stop - 1])
        self._counters[_QUIET] += at.stop - start
        return Beyond(*beyond), close_last or at.stop < stop

    def _settled(self) -> Settled:
        return Settled(self._inputs.settled, self._outcomes.settled)

    def _close(self) -> Beyond:
        """Tests after a block."""
        settled = self._settled()
        beyond = Beyond(*close_detectors(self._watched, plain(settled)))
        if not settled.inputs:
            self._inputs.settle()
        if self._inputs.settled and not settled.outcomes:
            self._outcomes.settle()
        return beyond

    def _on_window(self, features_RC: Float32s) -> list[Alarm]:
        """Gives PSI the end of its window."""
        at = self._passage
        shifts = self._psi.update(features_RC[at.psi_from : at.stop])
        at.psi_from = at.stop
        if not shifts:
            return []
        alarm = psi_alarm(shifts, self._names, self._threshold, self._since)
        self._restart()
        return [alarm]

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
        return parts | self._delays.state() | {"psi": self._psi.state(), "drift": self._own_state()}

    def restore(self, parts: Mapping[str, Arrays]) -> None:
        self._concept.restore(parts)
        self._inputs.restore(parts)
        self._outcomes.restore(parts)
        self._reference.restore(parts)
        self._delays.restore(parts)
        self._psi.restore(parts.get("psi", {}))
        fill(self._own_state(), parts.get("drift", {}))

    def _own_state(self) -> Arrays:
        return {
            "counters": self._counters,
            "rise": self._rise_5,
            **self._categories.state(),
            **self._since.state(),
        }

    def _restart(self) -> None:
        """Everything is new to the inputs: what they see next is usual from now on."""
        self._inputs.restart()
        self._psi.restart()
        self._passage.psi_from = self._passage.stop
        self._restart_outcomes()

    def _restart_outcomes(self) -> None:
        self._outcomes.restart()
        self._reference.restart()
        self._counters[:] = 0

    def _armed(self, mean: float) -> bool:
        """Whether a rise from this mean is a new one: the error has fallen since the last, or that has become usual."""
        quiet, last = self._counters[_QUIET], Rise(*self._rise_5.tolist())
        return bool(quiet >= _USUAL_ROWS or (quiet >= _QUIET_ROWS and mean <= (last.before + last.after) / 2))

    def _on_rise(self, rise: Shift) -> list[Alarm]:
        """A rise of the error, unless it is one of those that follow another, or is nothing unusual here."""
        before, after = rise.before, rise.after
        deviation = self._concept.deviation(before)
        outcomes = self._outcomes
        error = deviation * math.sqrt(outcomes.means.stray(outcomes.arrays.at.error) / rise.rows)
        deviations = (after - before) / error if error else 2 * _RISE_DEVIATIONS
        if deviations < _RISE_DEVIATIONS:
            return []
        if not self._armed(before) or self._counters[_RISE_WAITS]:
            self._counters[_QUIET] = 0
            return []
        self._rise_5[:] = Rise(before, after, chance(deviations), *self._since.of(rise.rows))
        return self._suspect(BLOCK_ROWS - self._since.block_to_go or BLOCK_ROWS)

    def _on_block(self, beyond: Beyond) -> list[Alarm]:
        counters = self._counters
        if beyond.inputs > 1:
            alarm = input_alarm(self._inputs, self._names, self._since)
            self._restart()
            return [alarm]
        if counters[_RISE_WAITS]:
            counters[_RISE_WAITS] -= 1
            return [self._concept_alarm()] if counters[_RISE_WAITS] == 0 else []
        if beyond.outcomes <= ERROR_CRITICAL:
            counters[_OUTCOME_WAITS] = 0
            return []
        means, at = self._outcomes.means, self._outcomes.arrays.at
        error, doubt, reference = means.beyond_D[:ERRORS] / ERROR_CRITICAL
        risen = error > 1 or reference > 1 or (doubt > 1 and error > _DOUBT_ERROR)
        if risen and self._armed(means.moved(at.error).before):
            moved = means.moved(at.reference if reference > max(error, doubt) else at.error)
            self._rise_5[:] = Rise(moved.before, moved.after, moved.p, *self._since.of(moved.rows))
            return self._suspect(0)
        others = self._other_outcome()
        if counters[_OUTCOME_WAITS]:
            counters[_OUTCOME_WAITS] -= 1
            if counters[_OUTCOME_WAITS] == 0 and others is not None:
                return [self._outcome_alarm(others)]
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

    def _suspect(self, open_rows: int) -> list[Alarm]:
        """An alarm of the rise that was noted, unless the inputs are suspicious: then it waits."""
        self._counters[_QUIET] = 0
        if self._inputs.means.peek(open_rows) > _SUSPICIOUS:
            self._counters[_RISE_WAITS] = _PATIENCE + 1
            return []
        return [self._concept_alarm()]

    def _concept_alarm(self) -> Alarm:
        rise = Rise(*self._rise_5.tolist())
        self._restart_outcomes()
        since, effect = (int(rise.since_row), int(rise.since_time)), rise.after - rise.before
        detail = f"mean error rose from {rise.before:.3g} to {rise.after:.3g}"
        return Alarm("concept", None, *self._since.here, *since, effect, rise.p, detail)

    def _outcome_alarm(self, statistic: int) -> Alarm:
        alarm = outcome_alarm(self._outcomes, statistic, self._since)
        if self._outcomes.family_D[statistic] == LABEL:  # other labels come with other features
            self._restart()
        self._restart_outcomes()
        return alarm
