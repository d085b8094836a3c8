"""The compiled half of `means`: what is kept of each mean, and the tests after a block."""

from __future__ import annotations

from typing import NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from consumers.compiled import njit_cached, njit_merged
from consumers.record import Float32s, Int64s
from pipeline.quality import Float64s

Int32s: TypeAlias = npt.NDArray[np.int32]

BLOCK_ROWS = 128
UNIT = 4096
"""What 1.0 is as a whole number; the square of ROOT."""

ROOT = 64

SHARE, SCORE, OTHER = range(3)
"""How a row's variance is known: of 0s and 1s from their mean; of a standard score from the mean of its square; of all
else from how the sums of blocks differ."""

WINDOWS = np.array([1, 2, 4, 8, 16])  # blocks
STRIDES = np.array([1, 1, 1, 1, 2])
RING = 3 * int(WINDOWS[-1]) + 1  # ends of blocks: the longest window, two as long before it, and where they begin
CRITICAL = np.array([1.3, 1.2, 1.1, 1.0, 1.0])
"""Times that of a normal sum: short ones are skewed, and looked at often."""

REFERENCE_MAX = 256  # blocks; then what is older counts half
PRIOR = 3.0  # windows of independent rows that count beside those that were seen
ROWS_MIN = 8.0  # a sum that varies less than so many independent rows of 1 is taken to vary by so much
CLOSED, BLOCKS, LEAST = range(3)  # slots of `counters`: blocks since the restart; those that count; before a test

_FIRST, _END, _KIND, _SQUARE = range(4)  # columns of `runs_U4`


class Windows(NamedTuple):
    """D means, as sums of whole numbers: floating point adds these exactly, and in any order."""

    runs_U4: Int64s  # statistics [first, end) are of one kind; of a SCORE the square is so many places further
    critical_D: Float64s  # of a normal number
    sums_D: Float32s  # of the open block
    ring_RD: Int32s  # at the ends of the newest blocks: the sum of all so far, modulo 2^32
    total_D: Float64s  # of the blocks that count
    strayed_WD: Float64s  # squares of how far windows strayed
    seen_W: Float64s  # windows that did
    counters: Int64s
    variance_D: Float64s  # of the sum of one block, were its rows independent
    blocks_D: Int64s  # the length of the window that `beyond_D` is of
    beyond_D: Float64s  # the largest deviation of a window that ends with the last block
    notable: float  # deviations below this share of what is critical count as none


def runs(kind_D: Int64s, of_D: Int64s) -> Int64s:
    """`Windows.runs_U4`, where the mean square of statistic d is `of_D[d]`."""
    further_D = np.where(kind_D == SCORE, of_D - np.arange(len(kind_D)), 0)
    firsts_U = np.flatnonzero(np.r_[True, (np.diff(kind_D) != 0) | (np.diff(further_D) != 0)])
    return np.column_stack([firsts_U, np.r_[firsts_U[1:], len(kind_D)], kind_D[firsts_U], further_D[firsts_U]])


@njit_cached
def close_block(means: Windows, trend: bool) -> float:
    """Ends the open block and tests the windows that end with it; see `Means.close`."""
    counters = means.counters
    counters[CLOSED] += 1
    counters[BLOCKS] += 1
    closed, blocks = counters[CLOSED], counters[BLOCKS]
    _end_block(means, closed)
    for w in range(len(WINDOWS)):
        length = WINDOWS[w]
        if closed % STRIDES[w]:
            continue
        if closed >= (3 if trend else 2) * length:
            if trend:
                _note_trend(means, w, closed)
            else:
                _note_stray(means, w, closed, blocks)
            means.seen_W[w] += 1
        if w == 0:
            set_variances(means)
        if blocks - length >= counters[LEAST]:
            _test(means, w, closed, blocks)
    worst = 0.0
    for d in range(len(means.beyond_D)):
        beyond = means.beyond_D[d]
        if beyond != 0:
            worst = max(worst, abs(beyond))
            means.beyond_D[d] = np.copysign(np.sqrt(abs(beyond)), beyond)
    if blocks == REFERENCE_MAX:
        _halve(means)
    return float(np.sqrt(worst))


@njit_cached
def _end_block(means: Windows, closed: int) -> None:
    before_D, now_D = means.ring_RD[(closed - 1) % RING], means.ring_RD[closed % RING]
    sums_D, total_D, beyond_D = means.sums_D, means.total_D, means.beyond_D
    for d in range(len(sums_D)):
        now_D[d] = np.int32(before_D[d] + np.int32(sums_D[d]))
    for d in range(len(sums_D)):
        total_D[d] += sums_D[d]
    sums_D[:] = 0
    beyond_D[:] = 0
    means.blocks_D[:] = 0


@njit_cached
def _note_stray(means: Windows, w: int, closed: int, blocks: int) -> None:
    """Adds how far the window before the newest one is from the mean of all."""
    length = WINDOWS[w]
    first_D, end_D = means.ring_RD[(closed - 2 * length) % RING], means.ring_RD[(closed - length) % RING]
    total_D, strayed_D = means.total_D, means.strayed_WD[w]
    share = length / blocks
    for d in range(len(total_D)):
        off = np.float64(np.int32(end_D[d] - first_D[d])) - share * total_D[d]
        strayed_D[d] += off * off


@njit_cached
def _note_trend(means: Windows, w: int, closed: int) -> None:
    """Adds how far the window before the newest one is from the one before that."""
    length = WINDOWS[w]
    before_D, first_D = means.ring_RD[(closed - 3 * length) % RING], means.ring_RD[(closed - 2 * length) % RING]
    end_D, strayed_D = means.ring_RD[(closed - length) % RING], means.strayed_WD[w]
    for d in range(len(strayed_D)):
        off = np.float64(np.int32(end_D[d] - first_D[d])) - np.float64(np.int32(first_D[d] - before_D[d]))
        strayed_D[d] += 0.5 * off * off


@njit_cached
def set_variances(means: Windows) -> None:
    """Of the sum of one block, were its rows independent, from what is part of S; 0 before a window has strayed.

    Where it is estimated, it is raised as far as Student's quantile lies above the normal one.
    """
    if means.seen_W[0] == 0:
        means.variance_D[:] = 0
        return
    total_D, variance_D, strayed_D, seen = means.total_D, means.variance_D, means.strayed_WD[0], means.seen_W[0]
    student = 1 + 6.5 / seen  # (z² + 1) / (4 n) at z = 5: Cornish & Fisher
    whole = means.counters[BLOCKS] * BLOCK_ROWS * UNIT
    for u in range(len(means.runs_U4)):
        first, end, further = means.runs_U4[u, _FIRST], means.runs_U4[u, _END], means.runs_U4[u, _SQUARE]
        if means.runs_U4[u, _KIND] == SHARE:
            for d in range(first, end):
                mean = total_D[d] / whole
                variance_D[d] = BLOCK_ROWS * UNIT * UNIT * mean * (1 - mean)
        elif means.runs_U4[u, _KIND] == SCORE:
            for d in range(first, end):
                mean = total_D[d] / whole
                variance_D[d] = BLOCK_ROWS * UNIT * UNIT * (total_D[d + further] / whole - mean * mean)
        else:
            for d in range(first, end):
                variance_D[d] = strayed_D[d] / seen * student * student


@njit_cached
def _test(means: Windows, w: int, closed: int, blocks: int) -> None:
    """Keeps each deviation, squared and with its sign, that is larger than that of any shorter window.

    First sees, without a branch, a division or a store, so several at a time, whether any is notable: mostly none is.
    """
    length = WINDOWS[w]
    rest = blocks - length
    first_D, end_D = means.ring_RD[(closed - length) % RING], means.ring_RD[closed % RING]
    critical_D, total_D, strayed_D, variance_D = means.critical_D, means.total_D, means.strayed_WD[w], means.variance_D
    beyond_D, share, least = means.beyond_D, length / rest, means.notable * means.notable
    spread = (1 + length / rest) * CRITICAL[w] * CRITICAL[w]
    per, weight = STRIDES[w] / length, 1 / (means.seen_W[w] * STRIDES[w] / length + PRIOR)
    notable = 0
    for d in range(len(total_D)):
        window = np.float64(np.int32(end_D[d] - first_D[d]))
        off = window - share * (total_D[d] - window)
        notable += off * off > least * _most(length * variance_D[d], strayed_D[d], per, weight, spread, critical_D[d])
    for u in range(len(means.runs_U4) if notable else 0):
        for d in range(means.runs_U4[u, _FIRST], means.runs_U4[u, _END]):
            window = np.float64(np.int32(end_D[d] - first_D[d]))
            off = window - share * (total_D[d] - window)
            most = _most(length * variance_D[d], strayed_D[d], per, weight, spread, critical_D[d])
            if off * off > least * most:
                beyond = off * abs(off) / most
                if means.runs_U4[u, _KIND] == SHARE:
                    beyond = _stabilised(beyond, window, total_D[d] - window, length, rest, most)
                if abs(beyond) > abs(beyond_D[d]):
                    beyond_D[d], means.blocks_D[d] = beyond, length


@njit_merged
def _most(alone: float, strayed: float, per: float, weight: float, spread: float, critical: float) -> float:
    """The square of the deviation that is critical; `alone` is the window's variance were its rows independent."""
    variance, least = (strayed * per + PRIOR * alone) * weight, ROWS_MIN * UNIT * UNIT
    variance = variance if variance > alone else alone
    variance = variance if variance > least else least
    return variance * spread * critical * critical


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
def _halve(means: Windows) -> None:
    means.counters[BLOCKS] //= 2
    for d in range(len(means.total_D)):
        means.total_D[d] *= 0.5
    for w in range(len(WINDOWS)):
        means.seen_W[w] *= 0.5
        for d in range(len(means.total_D)):
            means.strayed_WD[w, d] *= 0.5
