"""Tells which of many means have moved, in windows of 128 to 2,048 rows against all rows before them.

Each mean is tested at five lengths. How far a window of a length strays while nothing changes is taken from the stream
itself, from the windows before it: so a season shorter than a window is no drift, and a longer one is compared with how
far it has swung (the variance of batch means: Alexopoulos & Seila 1996). Where rows are independent that is their
variance. `windows` has the tests.
"""

from __future__ import annotations

from collections.abc import Mapping
from statistics import NormalDist
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from consumers.record import Float32s, Int64s
from pipeline.drift.numbers import chance
from pipeline.drift.windows import (
    BLOCK_ROWS,
    BLOCKS,
    CLOSED,
    CRITICAL,
    LEAST,
    PRIOR,
    REFERENCE_MAX,
    RING,
    ROWS_MIN,
    STRIDES,
    UNIT,
    WINDOWS,
    Windows,
    close_block,
    runs,
    set_variances,
)
from pipeline.quality import Arrays, Float64s, fill

REFERENCE_MIN = 12
"""Blocks before the first test."""


class Moved(NamedTuple):
    """A mean that is not what it was."""

    rows: int  # the newest, in which it has moved
    before: float
    after: float
    p: float  # Bonferroni-corrected


class Means:
    """Watches D means. The caller adds rows to `sums_D`, and calls `close` after every BLOCK_ROWS of them.

    Args:
        kind_D: SHARE, SCORE or OTHER.
        of_D: for a SCORE, which statistic its square is.
        family_D: statistics that are tested together.
        p: probability that a look at one family finds something where nothing is, over its statistics and all lengths.
        notable: deviations below this share of what is critical count as none.
        trend: whether means may have a slow trend. Then how far windows stray is how far they are from the one before;
            otherwise, how far from the mean of all.
    """

    def __init__(
        self, kind_D: Int64s, of_D: Int64s, family_D: Int64s, p: float, *, notable: float, trend: bool
    ) -> None:
        self.trend = trend
        statistics, windows = len(kind_D), len(WINDOWS)
        self._tests_D = windows * np.bincount(family_D)[family_D]
        self.arrays = Windows(
            runs_U4=runs(kind_D, of_D),
            critical_D=np.array([-NormalDist().inv_cdf(p / (2 * tests)) for tests in self._tests_D]),
            sums_D=np.zeros(statistics, np.float32),
            ring_RD=np.zeros((RING, statistics), np.int32),
            total_D=np.zeros(statistics),
            strayed_WD=np.zeros((windows, statistics)),
            seen_W=np.zeros(windows),
            counters=np.array([0, 0, REFERENCE_MIN]),
            variance_D=np.zeros(statistics),
            blocks_D=np.zeros(statistics, np.int64),
            beyond_D=np.zeros(statistics),
            notable=notable,
        )

    @property
    def sums_D(self) -> Float32s:
        """Of the open block: its rows are added here."""
        return self.arrays.sums_D

    @property
    def beyond_D(self) -> Float64s:
        """Of the last block: the largest deviation of a window that ends there, as a multiple of what is critical. What
        is not notable is 0.
        """
        return self.arrays.beyond_D

    def close(self) -> float:
        """Tests after a block; the largest of `beyond_D` without its sign: above 1 a mean has moved."""
        return close_block(self.arrays, self.trend)

    def peek(self, rows: int) -> float:
        """The same of one window: the last full block, and `rows` rows of the open one."""
        arrays, blocks = self.arrays, int(self.arrays.counters[BLOCKS])
        if blocks <= arrays.counters[LEAST]:
            return 0.0
        set_variances(arrays)
        last_D = self._window(1)
        share = (1 + rows / BLOCK_ROWS) / (blocks - 1)
        variance_D = np.maximum(arrays.variance_D, arrays.strayed_WD[0] / arrays.seen_W[0])
        variance_D = np.maximum((1 + rows / BLOCK_ROWS) * variance_D, ROWS_MIN * UNIT * UNIT) * (1 + share)
        off_D = arrays.sums_D.astype(np.float64) + last_D - share * (arrays.total_D - last_D)
        return float(np.abs(off_D / np.sqrt(variance_D) / arrays.critical_D).max())

    def moved(self, statistic: int) -> Moved:
        """What the last block's tests found about one mean."""
        arrays, blocks = self.arrays, max(int(self.arrays.blocks_D[statistic]), 1)
        window, rows = float(self._window(blocks)[statistic]), blocks * BLOCK_ROWS
        rest = float(arrays.total_D[statistic]) - window, (int(arrays.counters[BLOCKS]) - blocks) * BLOCK_ROWS
        deviations = float(arrays.beyond_D[statistic] * CRITICAL[blocks == WINDOWS][0]) * arrays.critical_D[statistic]
        p = min(1.0, float(self._tests_D[statistic] * chance(deviations)))
        return Moved(rows, rest[0] / (rest[1] * UNIT), window / (rows * UNIT), p)

    def stray(self, statistic: int) -> float:
        """How many times the variance of independent rows that of longer windows is: 1 or more."""
        set_variances(self.arrays)
        variance, seen_W = self.arrays.variance_D[statistic], self.arrays.seen_W
        if not variance > 0:
            return 1.0
        times_W = self.arrays.strayed_WD[:, statistic] / np.maximum(seen_W, 1) / (WINDOWS * variance)
        windows_W = seen_W * STRIDES / WINDOWS
        return float(max(1.0, ((times_W * windows_W + PRIOR) / (windows_W + PRIOR)).max()))

    def restart(self, reference_min: int = REFERENCE_MIN) -> None:
        """Forgets all rows, and tests nothing before there are so many blocks to compare with, but soon in any case."""
        for array in (*self.state().values(), self.arrays.blocks_D, self.beyond_D):
            array[...] = 0
        always = REFERENCE_MAX // 2 - int(WINDOWS[-1])  # so many there are even when all has just been halved
        self.arrays.counters[LEAST] = min(reference_min, always)

    def state(self) -> Arrays:
        """All but what each block computes anew."""
        arrays = self.arrays
        return {
            "sums": arrays.sums_D,
            "ring": arrays.ring_RD,
            "total": arrays.total_D,
            "strayed": arrays.strayed_WD,
            "seen": arrays.seen_W,
            "counters": arrays.counters,
        }

    def restore(self, state: Mapping[str, npt.NDArray[Any]]) -> None:
        fill(self.state(), state)

    def _window(self, blocks: int) -> Float64s:
        """Sums of the newest blocks."""
        closed, ring_RD = int(self.arrays.counters[CLOSED]), self.arrays.ring_RD
        sums_D = ring_RD[closed % RING] - ring_RD[(closed - blocks) % RING]
        window_D: Float64s = sums_D.astype(np.float64)
        return window_D
