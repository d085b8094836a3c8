"""ADWIN tells whether the mean of a bounded value has risen.

Bifet & Gavaldà, "Learning from Time-Changing Data with Adaptive Windowing" (2007), in the form of its
section 4 (ADWIN2): the window is an exponential histogram, at most 5 buckets for each power of two, and every
boundary between buckets is tried as a cut.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from consumers.compiled import njit_cached
from consumers.record import Int64s
from pipeline.drift import Shift
from pipeline.quality import Arrays, Float64s, fill

_BUCKETS = 5  # per level, M in the paper
_SURELY = 0.999  # of what makes a cut: below it there is none, however the numbers are rounded
_LEVELS = 58  # bucket sizes 2^0 ... 2^57: more rows than an int64 offset can number


class Window(NamedTuple):
    """Buckets by level, the oldest first: 2^level rows each."""

    totals_LM: Float64s
    m2_LM: Float64s  # squared deviations from the bucket's mean
    filled_L: Int64s


class Adwin:
    """The newest rows whose mean is, as far as can be told, one and the same.

    Every `clock` rows the window is cut as long as two parts of it, each of `min_window` rows or more, have
    means further apart than sqrt(2/m s² ln(2/d)) + 2/(3m) ln(2/d), with s² the window's variance,
    1/m = 1/n0 + 1/n1 and d = delta / ln n. A fall of the mean shortens the window too, but is no shift.
    """

    def __init__(self, delta: float, *, clock: int = 32, min_window: int = 16) -> None:
        self._limits = (delta, clock, min_window)
        totals_LM, m2_LM = np.zeros((2, _LEVELS, _BUCKETS))
        self._window = Window(totals_LM, m2_LM, np.zeros(_LEVELS, np.int64))
        self._rows = np.zeros(1, np.int64)
        self._scratch_4Q = np.zeros((4, clock + _BUCKETS))

    def update(self, values: Float64s) -> list[Shift]:
        """Takes values [N] in [0, 1]; a shift is a check at which a rise cut the window.

        `before` and `after` are the means on both sides of the first cut, `rows` those after it.
        """
        shifts_N4 = np.empty((len(values) // self._limits[1] + 1, 4))
        found = _feed(values, (*self._window,), self._rows, self._limits, self._scratch_4Q, shifts_N4)
        return [
            Shift(int(row), 0, float(before), float(after), int(rows)) for row, before, after, rows in shifts_N4[:found]
        ]

    @property
    def mean(self) -> float:
        """Mean of the window; 0 if it is empty."""
        return float(_moments(self._window)[1])

    @property
    def width(self) -> int:
        """Rows in the window."""
        return int(_moments(self._window)[0])

    def rescale(self, factor: float) -> None:
        """Makes the window what it would be, had every value been multiplied by `factor`."""
        self._window.totals_LM[:] *= factor
        self._window.m2_LM[:] *= factor * factor

    def state(self) -> Arrays:
        return {
            "totals": self._window.totals_LM,
            "m2": self._window.m2_LM,
            "filled": self._window.filled_L,
            "rows": self._rows,
        }

    def restore(self, state: Mapping[str, npt.NDArray[Any]]) -> None:
        fill(self.state(), state)


@njit_cached
def _feed(
    values_N: Float64s,
    plain_window: tuple[Float64s, Float64s, Int64s],  # without names: numba finds the type of a named tuple in Python
    rows: Int64s,
    limits: tuple[float, int, int],
    scratch_4Q: Float64s,
    shifts_N4: Float64s,
) -> int:
    window, (delta, clock, min_window) = Window(*plain_window), limits
    found = row = 0
    while row < len(values_N):
        stop = min(len(values_N), row + clock - rows[0] % clock)
        _insert(values_N[row:stop], window, scratch_4Q)
        rows[0] += stop - row
        row = stop
        if rows[0] % clock == 0:
            before, after, rows_after = _shrink(window, delta, min_window)
            if after > before:
                shifts_N4[found, 0] = row - 1
                shifts_N4[found, 1] = before
                shifts_N4[found, 2] = after
                shifts_N4[found, 3] = rows_after
                found += 1
    return found


@njit_cached
def _insert(values_N: Float64s, window: Window, scratch_4Q: Float64s) -> None:
    """Adds buckets of one row each; where a level overflows, two by two its oldest buckets become one of the next.

    Level by level: which two become one is the same as if the rows came one by one.
    """
    totals_LM, m2_LM, filled_L = window
    totals_Q, m2_Q, new_totals_Q, new_m2_Q = scratch_4Q
    new, size = len(values_N), 1
    for row in range(new):
        new_totals_Q[row], new_m2_Q[row] = values_N[row], 0.0
    for level in range(_LEVELS):
        old, count = filled_L[level], filled_L[level] + new
        for place in range(old):
            totals_Q[place], m2_Q[place] = totals_LM[level, place], m2_LM[level, place]
        for place in range(old, count):
            totals_Q[place], m2_Q[place] = new_totals_Q[place - old], new_m2_Q[place - old]
        new = max(count - _BUCKETS + 1, 0) // 2
        for pair in range(new):
            one, other = 2 * pair, 2 * pair + 1
            distance = (totals_Q[one] - totals_Q[other]) / size
            new_totals_Q[pair] = totals_Q[one] + totals_Q[other]
            new_m2_Q[pair] = m2_Q[one] + m2_Q[other] + distance * distance * size / 2
        filled_L[level] = count - 2 * new
        for place in range(_BUCKETS):
            there = place < filled_L[level]
            totals_LM[level, place] = totals_Q[2 * new + place] if there else 0.0
            m2_LM[level, place] = m2_Q[2 * new + place] if there else 0.0
        if not new:
            return
        size *= 2


@njit_cached
def _shrink(window: Window, delta: float, min_window: int) -> tuple[float, float, int]:
    """Drops the oldest bucket while the window can be cut; the means beside the first cut and its rows, or 0s."""
    totals_LM, m2_LM, filled_L = window
    first_before, first_after, first_rows = 0.0, 0.0, 0
    cut = False
    while True:
        before, after, rows = _cut(window, delta, min_window)
        if before == after:
            return first_before, first_after, first_rows
        if not cut:
            first_before, first_after, first_rows, cut = before, after, rows, True
        level = _levels(filled_L) - 1
        for bucket in range(filled_L[level] - 1):
            totals_LM[level, bucket] = totals_LM[level, bucket + 1]
            m2_LM[level, bucket] = m2_LM[level, bucket + 1]
        filled_L[level] -= 1
        totals_LM[level, filled_L[level]] = m2_LM[level, filled_L[level]] = 0.0


@njit_cached
def _cut(window: Window, delta: float, min_window: int) -> tuple[float, float, int]:
    """The means before and after the oldest boundary that separates two different parts, and the rows after; or 0s."""
    totals_LM, filled_L = window.totals_LM, window.filled_L
    rows, mean, m2 = _moments(window)
    if rows < 2 * min_window:
        return 0.0, 0.0, 0
    confidence = np.log(2 * np.log(rows) / delta)
    total, spread, range_term = mean * rows, 2 * m2 / rows * confidence, 2 / 3 * confidence
    old_rows, old_total = 0, 0.0
    for level in range(_levels(filled_L) - 1, -1, -1):
        for bucket in range(filled_L[level]):
            old_rows += 1 << level
            old_total += totals_LM[level, bucket]
            new_rows = rows - old_rows
            if old_rows < min_window:
                continue
            if new_rows < min_window:
                return 0.0, 0.0, 0
            # Dividing takes long, and mostly there is no cut: here both sides are multiplied by old_rows new_rows.
            apart, product = old_total * new_rows - (total - old_total) * old_rows, np.float64(old_rows) * new_rows
            if apart * apart < _SURELY * spread * rows * product:
                continue
            per_old, per_new = 1 / old_rows, 1 / new_rows
            old_mean, new_mean, per_m = old_total * per_old, (total - old_total) * per_new, per_old + per_new
            beyond = abs(old_mean - new_mean) - range_term * per_m
            if beyond > 0 and beyond * beyond > spread * per_m:  # beyond the sum with the root, which takes long
                return old_mean, new_mean, new_rows
    return 0.0, 0.0, 0


@njit_cached
def _levels(filled_L: Int64s) -> int:
    """How many have buckets: those above the first without have none."""
    level = 0
    while level < _LEVELS and filled_L[level]:
        level += 1
    return level


@njit_cached
def _moments(window: Window) -> tuple[int, float, float]:
    """Rows, mean and sum of squared deviations of the whole window.

    Summed anew from the buckets: kept up to date by addition and subtraction they would drift over a run
    without end.
    """
    totals_LM, m2_LM, filled_L = window
    levels, rows, total = _levels(filled_L), 0, 0.0
    for level in range(levels):
        rows += filled_L[level] << level
        for bucket in range(filled_L[level]):
            total += totals_LM[level, bucket]
    if not rows:
        return 0, 0.0, 0.0
    mean, m2, share = total / rows, 0.0, 1.0  # of one row in a bucket
    for level in range(levels):
        size = 1 << level
        for bucket in range(filled_L[level]):
            distance = totals_LM[level, bucket] * share - mean
            m2 += m2_LM[level, bucket] + distance * distance * size
        share *= 0.5
    return rows, mean, m2
