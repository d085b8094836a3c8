"""Tells which of many means have moved, in windows of 128 to 2,048 rows against all rows before them.

Each mean is tested at five lengths. How far a window of a length strays while nothing changes is taken from the stream
itself, from the windows before it: so a season shorter than a window is no drift, and a longer one is compared with how
far it has swung (the variance of batch means: Alexopoulos & Seila 1996). Where rows are independent that is their
variance. Sums are whole numbers, which floating point adds exactly and in any order.
"""

from __future__ import annotations

from collections.abc import Mapping
from statistics import NormalDist
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from consumers.compiled import njit_cached
from consumers.record import Float32s, Int64s
from pipeline.drift.numbers import chance
from pipeline.quality import Arrays, Float64s, fill

BLOCK_ROWS = 128
UNIT = 4096
"""What 1.0 is as a whole number; the square of ROOT."""

ROOT = 64

REFERENCE_MIN = 12
"""Blocks before the first test."""

SHARE, SCORE, OTHER = range(3)
"""How a row's variance is known: of 0s and 1s from their mean; of a standard score from the mean of its square, which
is the statistic `of_D` names; of all else from how the sums of blocks differ."""

_WINDOWS = np.array([1, 2, 4, 8, 16])  # blocks
_STRIDES = np.array([1, 1, 1, 1, 2])
_RING = 48  # blocks: the longest window, and two as long before it
_CRITICAL = np.array(
    [1.3, 1.2, 1.1, 1.0, 1.0]
)  # times that of a normal sum: short ones are skewed, and looked at often
_REFERENCE_MAX = 256  # blocks; then what is older counts half
_PRIOR = 3.0  # windows of independent rows that count beside those that were seen
_ROWS_MIN = 8.0  # a sum that varies less than so many independent rows of 1 is taken to vary by so much
NOTABLE = 0.4
"""Deviations below this share of what is critical count as none."""

_CLOSED, _BLOCKS, _LEAST = range(3)  # slots of `counters`: blocks since the restart; those that count; before a test


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
        trend: whether means may have a slow trend. Then how far windows stray is how far they are from the one before;
            otherwise, how far from the mean of all.
    """

    def __init__(self, kind_D: Int64s, of_D: Int64s, family_D: Int64s, p: float, *, trend: bool) -> None:
        self._trend = trend
        statistics, windows = len(kind_D), len(_WINDOWS)
        self._kind_D, self._of_D = kind_D, of_D
        self._tests_D = windows * np.bincount(family_D)[family_D]
        self._critical_D = np.array([-NormalDist().inv_cdf(p / (2 * tests)) for tests in self._tests_D])
        self.sums_D: Float32s = np.zeros(statistics, np.float32)
        self._ring_RD = np.zeros((_RING, statistics), np.float32)
        self._total_D = np.zeros(statistics)
        self._strayed_WD = np.zeros((windows, statistics))
        self._seen_W = np.zeros(windows)
        self._counters = np.array([0, 0, REFERENCE_MIN])
        self._variance_D = np.zeros(statistics)
        self._blocks_D = np.zeros(statistics, np.int64)
        self._scratch_3D = np.zeros((3, statistics))
        self.beyond_D = np.zeros(statistics)
        """Of the last block: the largest deviation of a window that ends there, as a multiple of what is critical. What
        is below NOTABLE is 0."""

    def close(self) -> float:
        """Tests after a block; the largest of `beyond_D` without its sign: above 1 a mean has moved."""
        return _close(
            self._kind_D,
            self._of_D,
            self._critical_D,
            self._trend,
            self.sums_D,
            self._ring_RD,
            self._total_D,
            self._strayed_WD,
            self._seen_W,
            self._counters,
            self._variance_D,
            self._blocks_D,
            self._scratch_3D,
            self.beyond_D,
        )

    def peek(self, rows: int) -> float:
        """The same of one window: the last full block, and `rows` rows of the open one."""
        blocks, closed = int(self._counters[_BLOCKS]), int(self._counters[_CLOSED])
        if blocks <= self._counters[_LEAST]:
            return 0.0
        last_D = self._ring_RD[(closed - 1) % _RING].astype(np.float64)
        share = (1 + rows / BLOCK_ROWS) / (blocks - 1)
        variance_D = np.maximum(self._variance_D, self._strayed_WD[0] / self._seen_W[0])
        variance_D = np.maximum((1 + rows / BLOCK_ROWS) * variance_D, _ROWS_MIN * UNIT * UNIT) * (1 + share)
        off_D = self.sums_D.astype(np.float64) + last_D - share * (self._total_D - last_D)
        return float(np.abs(off_D / np.sqrt(variance_D) / self._critical_D).max())

    def moved(self, statistic: int) -> Moved:
        """What the last block's tests found about one mean."""
        blocks, closed = max(int(self._blocks_D[statistic]), 1), int(self._counters[_CLOSED])
        newest = [(closed - 1 - back) % _RING for back in range(blocks)]
        window, rows = float(self._ring_RD[newest, statistic].sum(dtype=np.float64)), blocks * BLOCK_ROWS
        rest = float(self._total_D[statistic]) - window, (int(self._counters[_BLOCKS]) - blocks) * BLOCK_ROWS
        p = chance(float(self.beyond_D[statistic] * _CRITICAL[blocks == _WINDOWS][0]) * self._critical_D[statistic])
        return Moved(
            rows, rest[0] / (rest[1] * UNIT), window / (rows * UNIT), min(1.0, float(self._tests_D[statistic] * p))
        )

    def stray(self, statistic: int) -> float:
        """How many times the variance of independent rows that of longer windows is: 1 or more."""
        if not self._variance_D[statistic] > 0:
            return 1.0
        times_W = (
            self._strayed_WD[:, statistic] / np.maximum(self._seen_W, 1) / (_WINDOWS * self._variance_D[statistic])
        )
        windows_W = self._seen_W * _STRIDES / _WINDOWS
        return float(max(1.0, ((times_W * windows_W + _PRIOR) / (windows_W + _PRIOR)).max()))

    def restart(self, reference_min: int = REFERENCE_MIN) -> None:
        """Forgets all rows, and tests nothing before there are so many blocks to compare with, but soon in any case."""
        for array in (*self.state().values(), self._variance_D, self._blocks_D, self.beyond_D):
            array[...] = 0
        always = _REFERENCE_MAX // 2 - int(_WINDOWS[-1])  # so many there are even when all has just been halved
        self._counters[_LEAST] = min(reference_min, always)

    def state(self) -> Arrays:
        """All but what each block computes anew."""
        return {
            "sums": self.sums_D,
            "ring": self._ring_RD,
            "total": self._total_D,
            "strayed": self._strayed_WD,
            "seen": self._seen_W,
            "counters": self._counters,
        }

    def restore(self, state: Mapping[str, npt.NDArray[Any]]) -> None:
        fill(self.state(), state)


@njit_cached
def _close(
    kind_D: Int64s,
    of_D: Int64s,
    critical_D: Float64s,
    trend: bool,
    sums_D: Float32s,
    ring_RD: Float32s,
    total_D: Float64s,
    strayed_WD: Float64s,
    seen_W: Float64s,
    counters: Int64s,
    variance_D: Float64s,
    blocks_D: Int64s,
    scratch_3D: Float64s,
    beyond_D: Float64s,
) -> float:
    slot, statistics = counters[_CLOSED] % _RING, len(sums_D)
    for d in range(statistics):
        ring_RD[slot, d] = sums_D[d]
        total_D[d] += sums_D[d]
        sums_D[d] = 0
        beyond_D[d] = 0.0
    counters[_CLOSED] += 1
    counters[_BLOCKS] += 1
    closed, blocks = counters[_CLOSED], counters[_BLOCKS]
    for w in range(len(_WINDOWS)):
        length = _WINDOWS[w]
        if closed % _STRIDES[w]:
            continue
        if closed >= (3 if trend else 2) * length:
            _note_stray(ring_RD, total_D, closed, blocks, length, trend, scratch_3D, strayed_WD[w])
            seen_W[w] += 1
        if w == 0 and seen_W[0]:
            _variances(kind_D, of_D, total_D, blocks, strayed_WD[0], seen_W[0], variance_D)
        rest = blocks - length
        if rest >= counters[_LEAST]:
            _sum(ring_RD, closed - length, length, scratch_3D[0])
            spread = (1 + length / rest) * _CRITICAL[w] * _CRITICAL[w]
            windows = seen_W[w] * _STRIDES[w] / length
            per, weight = _STRIDES[w] / length, 1 / (windows + _PRIOR)
            _deviate(critical_D, total_D, strayed_WD[w], variance_D, length, rest, spread, per, weight, scratch_3D)
            _keep_largest(kind_D, total_D, length, rest, scratch_3D, blocks_D, beyond_D)
    worst = 0.0
    for d in range(statistics):
        worst = max(worst, abs(beyond_D[d]))
        beyond_D[d] = np.copysign(np.sqrt(abs(beyond_D[d])), beyond_D[d])
    if blocks == _REFERENCE_MAX:
        counters[_BLOCKS] //= 2
        for d in range(statistics):
            total_D[d] *= 0.5
        for w in range(len(_WINDOWS)):
            seen_W[w] *= 0.5
            for d in range(statistics):
                strayed_WD[w, d] *= 0.5
    return float(np.sqrt(worst))


@njit_cached
def _note_stray(
    ring_RD: Float32s,
    total_D: Float64s,
    closed: int,
    blocks: int,
    length: int,
    trend: bool,
    scratch_3D: Float64s,
    strayed_D: Float64s,
) -> None:
    """Adds how far the window before the newest one has strayed."""
    window_D, before_D = scratch_3D[0], scratch_3D[1]
    _sum(ring_RD, closed - 2 * length, length, window_D)
    if trend:
        _sum(ring_RD, closed - 3 * length, length, before_D)
        for d in range(len(window_D)):
            off = window_D[d] - before_D[d]
            strayed_D[d] += 0.5 * off * off
    else:
        share = length / blocks
        for d in range(len(window_D)):
            off = window_D[d] - share * total_D[d]
            strayed_D[d] += off * off


@njit_cached
def _deviate(
    critical_D: Float64s,
    total_D: Float64s,
    strayed_D: Float64s,
    variance_D: Float64s,
    length: int,
    rest: int,
    spread: float,
    per: float,
    weight: float,
    scratch_3D: Float64s,
) -> None:
    """The window's deviations, and the squares of what is critical for them, without a branch: four at a time."""
    window_D, off_D, most_D = scratch_3D
    share, least = length / rest, _ROWS_MIN * UNIT * UNIT
    for d in range(len(window_D)):
        alone = length * variance_D[d]
        variance = (strayed_D[d] * per + _PRIOR * alone) * weight
        variance = variance if variance > alone else alone
        variance = variance if variance > least else least
        most_D[d] = variance * spread * critical_D[d] * critical_D[d]
        off_D[d] = window_D[d] - share * (total_D[d] - window_D[d])


@njit_cached
def _keep_largest(
    kind_D: Int64s,
    total_D: Float64s,
    length: int,
    rest: int,
    scratch_3D: Float64s,
    blocks_D: Int64s,
    largest_D: Float64s,
) -> None:
    """Keeps each deviation, squared and with its sign, that is larger than that of any shorter window."""
    window_D, off_D, most_D = scratch_3D
    for d in range(len(window_D)):
        if off_D[d] * off_D[d] > NOTABLE * NOTABLE * most_D[d]:  # most are not, which spares dividing
            beyond = off_D[d] * abs(off_D[d]) / most_D[d]
            if kind_D[d] == SHARE:
                beyond = _stabilised(beyond, window_D[d], total_D[d] - window_D[d], length, rest, most_D[d])
            if abs(beyond) > abs(largest_D[d]):
                largest_D[d], blocks_D[d] = beyond, length


@njit_cached
def _stabilised(beyond: float, window: float, rest: float, blocks: int, rest_blocks: int, most: float) -> float:
    """The deviation of a share on the scale where its variance is everywhere the same, if that is less.

    A count of rare rows is skewed: it goes up further than a normal number would; 2 asin(sqrt(p)) does not
    (Anscombe 1948).
    """
    whole = BLOCK_ROWS * UNIT
    before, after = rest / (rest_blocks * whole), window / (blocks * whole)
    turned = 2 * (np.arcsin(np.sqrt(after)) - np.arcsin(np.sqrt(before))) * blocks * whole
    turned *= abs(turned) * before * (1 - before) / most
    return turned if before > 0 and before < 1 and abs(turned) < abs(beyond) else beyond


@njit_cached
def _sum(ring_RD: Float32s, first: int, blocks: int, window_D: Float64s) -> None:
    """Sums of the blocks `[first, first + blocks)`."""
    window_D[:] = 0
    for block in range(first, first + blocks):
        slot = block % _RING
        for d in range(len(window_D)):
            window_D[d] += ring_RD[slot, d]


@njit_cached
def _variances(
    kind_D: Int64s, of_D: Int64s, total_D: Float64s, blocks: int, strayed_D: Float64s, seen: float, variance_D: Float64s
) -> None:
    """Of the sum of one block, were its rows independent.

    Where it is estimated, it is raised as far as Student's quantile lies above the normal one.
    """
    student = 1 + 6.5 / seen  # (z² + 1) / (4 n) at z = 5: Cornish & Fisher
    for d in range(len(variance_D)):
        mean = total_D[d] / (blocks * BLOCK_ROWS * UNIT)
        if kind_D[d] == SHARE:
            variance_D[d] = BLOCK_ROWS * UNIT * UNIT * mean * (1 - mean)
        elif kind_D[d] == SCORE:
            variance_D[d] = BLOCK_ROWS * UNIT * UNIT * (total_D[of_D[d]] / (blocks * BLOCK_ROWS * UNIT) - mean * mean)
        else:
            variance_D[d] = strayed_D[d] / seen * student * student
