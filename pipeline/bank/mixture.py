"""Fixed-share Hedge over the members, and what they remember of rows: compiled loops."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from consumers.compiled import njit_cached
from consumers.record import Float32s
from pipeline.bank.module import FREQUENCIES, HISTORY

Float64s = npt.NDArray[np.float64]

SHARE = np.float32(0.005)
_FLOOR = np.float32(0.01)
_HISTORY = tuple(np.float32(kept) for kept in HISTORY)
_FREQUENCIES = tuple(np.float32(kept) for kept in FREQUENCIES)
_SURPRISE_MAX = 4.5  # as of three standard deviations
_ERROR_SHARE, _OUTLIER = 0.005, 9.0
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
    votes_WK: Float32s
    recency_W: Float32s
    history_HK: Float32s
    frequencies_FK: Float32s


@njit_cached
def judge_classes(
    answers_NMK: Float32s, labels_N: Float32s, weights_N: Float32s, mixture_M: Float32s
) -> float | np.float32:
    """Moves the mixture towards what was right, row by row. Returns the mean log-loss of the mixture.

    Herbster & Warmuth, "Tracking the Best Expert" (1998): with log-loss and a rate of 1 the update is Bayes' rule.
    """
    members = len(mixture_M)
    loss, total = _ZERO, _ZERO
    for n in range(len(labels_N)):
        weight = weights_N[n]
        if weight <= _ZERO:
            continue
        k = int(labels_N[n])
        said = _ZERO
        for m in range(members):
            said += mixture_M[m] * answers_NMK[n, m, k]
        loss -= weight * math.log(max(said, np.float32(1e-12)))
        total += weight
        mass = _ZERO
        for m in range(members):
            right = max(answers_NMK[n, m, k], _FLOOR)
            if weight != _ONE:
                right = right ** min(weight, _ONE)
            mixture_M[m] *= right
            mass += mixture_M[m]
        for m in range(members):
            mixture_M[m] = mixture_M[m] / mass * (_ONE - SHARE) + SHARE / np.float32(members)
    return loss / max(total, np.float32(1e-12))


@njit_cached
def judge_values(
    answers_NM1: Float32s, labels_N: Float32s, weights_N: Float32s, mixture_M: Float32s, moments_4: Float64s
) -> float | np.float32:
    """The same for values: their errors count as normal, with the variance that the mixture's own have had.

    Returns the mean squared error.
    """
    members = len(mixture_M)
    loss, total = 0.0, 0.0
    for n in range(len(labels_N)):
        weight = weights_N[n]
        if weight <= _ZERO:
            continue
        said = _ZERO
        for m in range(members):
            said += mixture_M[m] * answers_NM1[n, m, 0]
        square = float(labels_N[n] - said) ** 2
        loss += weight * square
        total += weight
        variance = moments_4[3] if moments_4[3] > 0 else square
        mass = _ZERO
        for m in range(members):
            error = float(labels_N[n] - answers_NM1[n, m, 0])
            surprise = min(0.5 * error * error / max(variance, 1e-30), _SURPRISE_MAX)
            mixture_M[m] *= np.float32(math.exp(-surprise * min(weight, _ONE)))
            mass += mixture_M[m]
        for m in range(members):
            mixture_M[m] = mixture_M[m] / mass * (_ONE - SHARE) + SHARE / np.float32(members)
        moments_4[3] = variance + _ERROR_SHARE * (min(square, _OUTLIER * variance) - variance)
    return loss / max(total, 1e-12)


@njit_cached
def measure(labels_N: Float32s, weights_N: Float32s, moments_4: Float64s, label_2: Float32s) -> None:
    """Running mean and standard deviation of labels: Welford (1962), weighted as by West (1979)."""
    for n in range(len(labels_N)):
        if weights_N[n] > _ZERO:
            moments_4[0] += weights_N[n]
            distance = labels_N[n] - moments_4[1]
            moments_4[1] += distance * weights_N[n] / moments_4[0]
            moments_4[2] += weights_N[n] * distance * (labels_N[n] - moments_4[1])
    if moments_4[0] > 0:
        variance = moments_4[2] / moments_4[0]
        label_2[0] = moments_4[1]
        label_2[1] = math.sqrt(variance) if variance > 1e-24 else 1.0


@njit_cached
def remember(
    memory: Memory, keys_NQ: Float32s, labels_N: Float32s, weights_N: Float32s, seen: int, regression: bool
) -> None:
    """Puts rows into memory, in place of the oldest ones. `seen`: rows that came before."""
    keys_WQ, votes_WK, recency_W = memory.keys_WQ, memory.votes_WK, memory.recency_W
    size, columns, outputs = len(keys_WQ), keys_WQ.shape[1] - 2, votes_WK.shape[1] - 1
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
            votes_WK[w, k] = labels_N[n] if regression else (_ONE if k == int(labels_N[n]) else _ZERO)
        votes_WK[w, outputs] = _ONE
        for v in range(size):
            recency_W[v] *= _RECENCY
        recency_W[w] = _ONE
        _blend(memory.history_HK, _HISTORY, votes_WK, w)
        _blend(memory.frequencies_FK, _FREQUENCIES, votes_WK, w)


@njit_cached
def _blend(mean_HK: Float32s, kept: tuple[np.float32, ...], votes_WK: Float32s, w: int) -> None:
    for h in range(len(kept)):
        for k in range(mean_HK.shape[1]):
            mean_HK[h, k] += (votes_WK[w, k] - mean_HK[h, k]) * (_ONE - kept[h])


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
