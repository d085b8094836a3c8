"""What is remembered of rows: the newest ones, the newest labels, moments of numbers and of values. Compiled loops."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from consumers.compiled import njit_cached
from consumers.record import Float32s
from pipeline.bank.module import FREQUENCIES, HISTORY

Float64s = npt.NDArray[np.float64]

WEIGHT, MEAN, SQUARES, ERROR = 0, 1, 2, 3
"""Places in `Values.sums_4`: weight and mean of labels, squared distances from it; and the mixture's squared error."""

SHIFT, SCALE = 0, 1
"""Places in `Values.unit_2`: mean and standard deviation."""

_HISTORY = tuple(np.float32(kept) for kept in HISTORY)
_FREQUENCIES = tuple(np.float32(kept) for kept in FREQUENCIES)
_RECENCY = np.float32(0.99)
_ONE, _ZERO, _MINUS_TWO = np.float32(1), np.float32(0), np.float32(-2)


class Moments(NamedTuple):
    """The buffers of a `pipeline.normalise.Standardiser`."""

    count_F: Float64s
    mean_F: Float64s
    m2_F: Float64s
    shift_F: Float32s
    scale_F: Float32s


class Memory(NamedTuple):
    """Rows that neighbours are looked for among, and the newest labels; axes as in `pipeline.bank.module`."""

    keys_WQ: Float32s
    votes_KW: Float32s
    recency_W1: Float32s
    history_HK: Float32s
    frequencies_FK: Float32s


class Values(NamedTuple):
    """What is known of labels that are values."""

    sums_4: Float64s
    unit_2: Float32s  # `Bank.label_2`: what 0 and 1 are, as the members learn them


@njit_cached
def measure(labels_N: Float32s, weights_N: Float32s, values: Values) -> None:
    """Running mean and standard deviation of labels: Welford (1962), weighted as by West (1979)."""
    sums_4, unit_2 = values
    for n in range(len(labels_N)):
        if weights_N[n] > _ZERO:
            sums_4[WEIGHT] += weights_N[n]
            distance = labels_N[n] - sums_4[MEAN]
            sums_4[MEAN] += distance * weights_N[n] / sums_4[WEIGHT]
            sums_4[SQUARES] += weights_N[n] * distance * (labels_N[n] - sums_4[MEAN])
    if sums_4[WEIGHT] > 0:
        variance = sums_4[SQUARES] / sums_4[WEIGHT]
        unit_2[SHIFT] = sums_4[MEAN]
        unit_2[SCALE] = math.sqrt(variance) if variance > 1e-24 else 1.0


@njit_cached
def remember(
    memory: Memory, keys_NQ: Float32s, labels_N: Float32s, weights_N: Float32s, seen: int, regression: bool
) -> None:
    """Puts rows into memory, in place of the oldest ones. `seen`: rows that came before."""
    keys_WQ, votes_KW, recency_W1 = memory.keys_WQ, memory.votes_KW, memory.recency_W1
    size, columns, outputs = len(keys_WQ), keys_WQ.shape[1] - 2, len(votes_KW) - 1
    for n in range(len(labels_N)):
        if weights_N[n] <= _ZERO:
            continue
        w, square = seen % size, _ZERO
        seen += 1
        for q in range(columns):
            keys_WQ[w, q] = keys_NQ[n, q] * _MINUS_TWO
            square += keys_NQ[n, q] * keys_NQ[n, q]
        keys_WQ[w, columns] = _ONE
        keys_WQ[w, columns + 1] = square
        for k in range(outputs):
            votes_KW[k, w] = labels_N[n] if regression else (_ONE if k == int(labels_N[n]) else _ZERO)
        votes_KW[outputs, w] = _ONE
        for v in range(size):
            recency_W1[v, 0] *= _RECENCY
        recency_W1[w, 0] = _ONE
        _blend(memory.history_HK, _HISTORY, votes_KW, w)
        _blend(memory.frequencies_FK, _FREQUENCIES, votes_KW, w)


@njit_cached
def _blend(mean_HK: Float32s, kept: tuple[np.float32, ...], votes_KW: Float32s, w: int) -> None:
    for h in range(len(kept)):
        for k in range(mean_HK.shape[1]):
            mean_HK[h, k] += (votes_KW[k, w] - mean_HK[h, k]) * (_ONE - kept[h])


@njit_cached
def standardise(numbers_NF: Float32s, weights_N: Float32s, moments: Moments) -> None:
    """Takes rows of weight > 0 into the moments of a `Standardiser`, one by one: Welford (1962).

    What is not finite does not count.
    """
    count_F, mean_F, m2_F = moments.count_F, moments.mean_F, moments.m2_F
    for n in range(len(weights_N)):
        if weights_N[n] <= _ZERO:
            continue
        for f in range(len(count_F)):
            value = float(numbers_NF[n, f])
            if abs(value) < math.inf:
                count_F[f] += 1
                distance = value - mean_F[f]
                mean_F[f] += distance / count_F[f]
                m2_F[f] += distance * (value - mean_F[f])
    for f in range(len(count_F)):
        variance = m2_F[f] / max(count_F[f], 1)
        moments.shift_F[f] = mean_F[f]
        moments.scale_F[f] = 1 / math.sqrt(variance) if variance > 1e-24 else 1
