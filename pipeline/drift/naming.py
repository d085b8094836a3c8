"""What an alarm says: which family and column, since when, by how much, how unlikely, and that in words."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from consumers.record import Int64s
from pipeline.drift import Alarm, Shift
from pipeline.drift.blocks import Place
from pipeline.drift.inputs import CATEGORY, CORRELATION, FEATURE, MISSING, Inputs
from pipeline.drift.means import Means
from pipeline.drift.numbers import chance
from pipeline.drift.outcomes import CALIBRATION, ERROR, LABEL, PREDICTION, Outcomes
from pipeline.drift.psi import BINS
from pipeline.drift.windows import BLOCK_ROWS
from pipeline.quality import Arrays

_INPUT_NAMES = {MISSING: "missing", CATEGORY: "category", FEATURE: "feature", CORRELATION: "correlation"}
_OUTCOME_NAMES = {ERROR: "concept", LABEL: "label", PREDICTION: "prediction", CALIBRATION: "calibration"}
_NOTED = 64  # blocks whose first rows are remembered


class Since:
    """Where the stream stands, and where it stood at the beginning of each of the newest blocks."""

    def __init__(self) -> None:
        self.arrays = Place(np.zeros(1, np.int64), np.zeros((_NOTED, 2), np.int64))
        self.here = 0, 0
        """Number and event time of the newest row."""

    @property
    def block_to_go(self) -> int:
        """Rows until the block is full; BLOCK_ROWS where one has just become full."""
        return BLOCK_ROWS - int(self.arrays.rows_1[0]) % BLOCK_ROWS

    def of(self, rows: int) -> tuple[int, int]:
        """Number of the first of the newest `rows` rows, and the event time at the beginning of its block.

        Found by counting the rows that were watched: their numbers may stand still, or leave some out.
        """
        taken = int(self.arrays.rows_1[0])
        oldest = max(-(-taken // BLOCK_ROWS) - _NOTED, 0)
        block, further = divmod(max(taken - rows, oldest * BLOCK_ROWS), BLOCK_ROWS)
        number, time = self.arrays.noted_B2[block % _NOTED].tolist()
        return min(number + further, self.here[0]), time

    def state(self) -> Arrays:
        return {"rows": self.arrays.rows_1, "noted": self.arrays.noted_B2}


def first(means: Means, family_D: Int64s) -> int:
    """Of the means that have moved those of the first family, of these the one that moved most."""
    beyond_D = np.abs(means.beyond_D)
    family = family_D[beyond_D > 1].min()
    return int(np.where(family_D == family, beyond_D, 0).argmax())


def input_alarm(inputs: Inputs, names: Sequence[str], since: Since) -> Alarm:
    """Of a block in which the inputs have moved."""
    largest = first(inputs.means, inputs.family_D)
    column, family = int(inputs.column_D[largest]), int(inputs.family_D[largest])
    moved_D = (np.abs(inputs.means.beyond_D) > 1) & (inputs.family_D == family)
    plainest = int((moved_D & (inputs.column_D == column)).argmax())  # a mean rather than the square or a share
    statistic = plainest if family == FEATURE else largest
    moved, other = inputs.means.moved(statistic), int(inputs.other_D[statistic])
    name = names[column] if other < 0 else f"{names[column]} x {names[other]}"
    detail = f"{inputs.meaning(statistic)} went from {moved.before:.3g} to {moved.after:.3g}"
    more = len(set(inputs.column_D[moved_D].tolist()) - {column})
    if more:
        detail += f", and {more} other column{'s' if more > 1 else ''} moved"
    effect = moved.after - moved.before
    return Alarm(_INPUT_NAMES[family], name, *since.here, *since.of(moved.rows), effect, moved.p, detail)


def outcome_alarm(outcomes: Outcomes, statistic: int, since: Since) -> Alarm:
    """Of labels, predictions or calibration."""
    moved, family = outcomes.means.moved(statistic), int(outcomes.family_D[statistic])
    detail = f"{outcomes.meaning(statistic)} went from {moved.before:.3g} to {moved.after:.3g}"
    effect = moved.after - moved.before
    return Alarm(_OUTCOME_NAMES[family], None, *since.here, *since.of(moved.rows), effect, moved.p, detail)


def delay_alarm(delays: Inputs, since: Since) -> Alarm:
    """Of the delays of labels, whose one column is log2(1 + ms); the effect is in octaves: 1 more is twice as late."""
    moved, p = delays.means.moved(0), delays.means.moved(first(delays.means, delays.family_D)).p
    log_before, log_after = (
        delays.arrays.centre_F[0] + mean / delays.arrays.scale_F[0] for mean in (moved.before, moved.after)
    )
    detail = f"labels came {2**log_before / 1000:.3g} s after their features, now {2**log_after / 1000:.3g} s"
    effect = float(log_after - log_before)
    return Alarm("label_delay", None, *since.here, *since.of(moved.rows), effect, p, detail)


def psi_alarm(shifts: Sequence[Shift], names: Sequence[str], threshold: float, since: Since) -> Alarm:
    """Of columns whose PSI went above the threshold.

    Without a change, a PSI of two windows of n rows times n / 2 is about chi-square (Yurdakul 2018), which is about
    normal with as many degrees of freedom as there are bins.
    """
    shift = max(shifts, key=lambda shift: shift.after)
    deviations = (shift.after * shift.rows / 2 - BINS) / math.sqrt(2 * BINS)
    p = min(1.0, len(names) * chance(max(deviations, 0)))
    detail = f"PSI {shift.after:.3g} against the reference window is above {threshold:.3g}"
    if len(shifts) > 1:
        detail += f", and of {len(shifts) - 1} other column{'s' if len(shifts) > 2 else ''}"
    return Alarm("feature", names[shift.column], *since.here, *since.of(shift.rows), shift.after, p, detail)
