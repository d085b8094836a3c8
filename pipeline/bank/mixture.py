"""Fixed-share Hedge over the members, and what they remember of rows: compiled loops."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from consumers.compiled import njit_cached
from consumers.record import Float32s

Float64s = npt.NDArray[np.float64]

SHARE = np.float32(0.005)
_FLOOR = np.float32(0.01)
_HISTORY = (np.float32(0.0), np.float32(0.7), np.float32(0.95))
_FREQUENCIES = (np.float32(0.9), np.float32(0.99))
_SURPRISE_MAX = 4.5  # as of three standard deviations
_ERROR_SHARE, _OUTLIER = 0.005, 9.0
_RECENCY = np.float32(0.99)
_ONE, _ZERO = np.float32(1), np.float32(0)


class Memory(NamedTuple):
    """Rows that neighbours are looked for among, and the newest labels; axes as in `pipeline.bank.module`."""

    keys_WQ: Float32s
    norms_W: Float32s
    votes_WK: Float32s
    recency_W: Float32s
    history_HK: Float32s
    frequencies_FK: Float32s


@njit_cached
def judge_classes(answers_NMK: Float32s, labels_N: Float32s, weights_N: Float32s, mixture_M: Float32s) -> float:
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
) -> float:
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
    """Puts rows into memory, in place of the oldest ones."""
    keys_WQ, votes_WK, recency_W = memory.keys_WQ, memory.votes_WK, memory.recency_W
    size, outputs = len(keys_WQ), votes_WK.shape[1] - 1
    for n in range(len(labels_N)):
        if weights_N[n] <= _ZERO:
            continue
        w, norm = seen % size, _ZERO
        seen += 1
        for q in range(keys_WQ.shape[1]):
            keys_WQ[w, q] = keys_NQ[n, q]
            norm += keys_NQ[n, q] * keys_NQ[n, q]
        memory.norms_W[w] = norm
        for k in range(outputs):
            votes_WK[w, k] = labels_N[n] if regression else (_ONE if k == int(labels_N[n]) else _ZERO)
        votes_WK[w, outputs] = _ONE
        for v in range(size):
            recency_W[v] *= _RECENCY
        recency_W[w] = _ONE
        for h in range(len(_HISTORY)):
            for k in range(outputs):
                memory.history_HK[h, k] += (votes_WK[w, k] - memory.history_HK[h, k]) * (_ONE - _HISTORY[h])
        for h in range(len(_FREQUENCIES)):
            for k in range(outputs):
                memory.frequencies_FK[h, k] += (votes_WK[w, k] - memory.frequencies_FK[h, k]) * (_ONE - _FREQUENCIES[h])
