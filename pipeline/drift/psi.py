"""PSI tells whether a column still looks as it did at the start.

The population stability index, sum((p - q) ln(p / q)), is the symmetrised Kullback-Leibler divergence
(Jeffreys 1946) of two histograms. Below 0.1 is commonly read as no change, above 0.25 as a large one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from consumers.compiled import njit_cached
from consumers.record import Float32s, Int64s
from pipeline.drift import Shift
from pipeline.quality import Arrays, Float64s, fill

Uint32s: TypeAlias = npt.NDArray[np.uint32]

BINS = 64
_NULL_BIN = BINS
_SMOOTHING = 0.5  # a count added to every bin of both histograms: Krichevsky & Trofimov (1981)
_SIGMAS = 4.0
_AT_ONCE = 32  # rows
_FILLED, _FIXED = 0, 1  # slots of `counters`


class PSI:
    """Compares tumbling windows of `reference_rows` rows with the first such window, column by column.

    A numeric column has 64 equal bins over the reference's mean ± 4 standard deviations, the outer two of
    them open, and one for NaN; a categorical one 64 bins of bucket id mod 64. Half a count is added to every
    bin, so no share is 0. Without any change PSI is about 2 (occupied bins - 1) / reference_rows: 0.01 with
    10,000 rows, but above the usual threshold with a few hundred.

    A shift is a column above `threshold` that was not above it in the window before.
    """

    def __init__(self, numeric: int, categorical: int, *, reference_rows: int, threshold: float) -> None:
        columns = numeric + categorical
        self._reference_rows = reference_rows
        self._threshold = threshold
        self._numeric = numeric
        self._buffer_RC = np.zeros((reference_rows, columns), np.float32)
        self._counters = np.zeros(2, np.int64)
        self._low_F = np.zeros(numeric)
        self._per_bin_F = np.zeros(numeric)
        self._bin_NF = np.zeros((_AT_ONCE, numeric), np.uint32)  # scratch
        self._reference_CH = np.zeros((columns, BINS + 1), np.int64)
        self._window_CH = np.zeros((columns, BINS + 1), np.int64)
        self.psi_C: Float64s = np.full(columns, np.nan)
        """The last full window's PSI of each column; NaN before there is one."""

    def update(self, values: Float32s) -> list[Shift]:
        """Takes features [N, C], numeric first; `before` and `after` are PSIs (NaN: no window before)."""
        shifts, taken = [], 0
        while taken < len(values):
            filled = int(self._counters[_FILLED])
            count = min(len(values) - taken, self._reference_rows - filled)
            rows_NC = values[taken : taken + count]
            if self._counters[_FIXED]:
                _histogram(rows_NC, self._low_F, self._per_bin_F, self._bin_NF, self._window_CH)
            else:
                self._buffer_RC[filled : filled + count] = rows_NC
            taken += count
            self._counters[_FILLED] += count
            if self._counters[_FILLED] == self._reference_rows:
                self._counters[_FILLED] = 0
                if self._counters[_FIXED]:
                    shifts += self._compare(taken - 1)
                else:
                    self._fix_reference()
        return shifts

    @property
    def to_go(self) -> int:
        """Rows until the window is full."""
        return self._reference_rows - int(self._counters[_FILLED])

    def restart(self) -> None:
        """Takes what comes next as the reference."""
        self._counters[:] = 0
        self.psi_C[:] = np.nan
        for counts_CH in (self._reference_CH, self._window_CH):
            counts_CH[:] = 0
        self._buffer_RC = np.zeros((self._reference_rows, len(self.psi_C)), np.float32)

    def state(self) -> Arrays:
        return {
            "buffer": self._buffer_RC[: 0 if self._counters[_FIXED] else self._counters[_FILLED]],
            **self._fixed_size_state(),
        }

    def restore(self, state: Mapping[str, npt.NDArray[Any]]) -> None:
        fill(self._fixed_size_state(), state)
        rows = len(state["buffer"])
        fill({"buffer": self._buffer_RC[:rows]}, state)
        if self._counters[_FIXED]:
            self._drop_buffer()

    def _fixed_size_state(self) -> Arrays:
        return {
            "counters": self._counters,
            "low": self._low_F,
            "per_bin": self._per_bin_F,
            "reference": self._reference_CH,
            "window": self._window_CH,
            "psi": self.psi_C,
        }

    def _fix_reference(self) -> None:
        for column in range(self._numeric):
            values_R = self._buffer_RC[:, column]
            finite_R = values_R[np.isfinite(values_R)].astype(np.float64)
            mean, deviation = (finite_R.mean(), finite_R.std()) if len(finite_R) else (0.0, 0.0)
            # A constant column: any other value, however close, is to land in an outer bin.
            half = max(_SIGMAS * deviation, 1e-6 * abs(mean), 1e-12)
            self._low_F[column] = mean - half
            self._per_bin_F[column] = BINS / (2 * half)
        _histogram(self._buffer_RC, self._low_F, self._per_bin_F, self._bin_NF, self._reference_CH)
        self._counters[_FIXED] = 1
        self._drop_buffer()

    def _drop_buffer(self) -> None:
        self._buffer_RC = np.zeros((0, self._buffer_RC.shape[1]), np.float32)

    def _compare(self, row: int) -> list[Shift]:
        scale = self._reference_rows + _SMOOTHING * (BINS + 1)
        p_CH = (self._window_CH + _SMOOTHING) / scale
        q_CH = (self._reference_CH + _SMOOTHING) / scale
        before_C = self.psi_C.copy()
        self.psi_C[:] = ((p_CH - q_CH) * np.log(p_CH / q_CH)).sum(axis=1)
        self._window_CH[:] = 0
        risen_C = (self.psi_C > self._threshold) & ~(before_C > self._threshold)
        return [
            Shift(row, int(column), float(before_C[column]), float(self.psi_C[column]), self._reference_rows)
            for column in np.flatnonzero(risen_C)
        ]


@njit_cached
def _histogram(features_NC: Float32s, low_F: Float64s, per_bin_F: Float64s, bin_NF: Uint32s, counts_CH: Int64s) -> None:
    """Adds rows to the counts: the bins of some first, apart from the counting, so several at a time are found."""
    numeric = len(low_F)
    for start in range(0, len(features_NC), len(bin_NF)):
        stop = min(start + len(bin_NF), len(features_NC))
        for row in range(start, stop):
            for column in range(numeric):
                value = features_NC[row, column]
                place = min(max((value - low_F[column]) * per_bin_F[column], 0.0), BINS - 1.0)
                bin_NF[row - start, column] = np.int32(_NULL_BIN if np.isnan(value) else place)
        for row in range(start, stop):
            for column in range(numeric):
                counts_CH[column, np.uint64(bin_NF[row - start, column])] += 1  # unsigned: none is counted from the end
            for column in range(numeric, features_NC.shape[1]):
                counts_CH[column, int(features_NC[row, column]) & (BINS - 1)] += 1
