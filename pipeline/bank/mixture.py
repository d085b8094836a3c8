"""Who is believed: compiled loops that move the mixtures. Two storeys, judged row by row.

Below, fixed-share Hedge over the members (Herbster & Warmuth, "Tracking the Best Expert", 1998), and logistic mixtures
with three step sizes: a softmax over weighted logarithms of what the members say (Mattern, "Linear and Geometric
Mixtures", 2013), which can be better than each member. Above, fixed-share Hedge over these four.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from consumers.compiled import njit_cached
from consumers.record import Float32s
from pipeline.bank.experts import MIXERS
from pipeline.bank.memory import ERROR, SCALE, SHIFT, Values

SHARE, TOP_SHARE = np.float32(0.001), np.float32(0.002)
_RATE = np.float32(0.5)  # of Hedge: below 1, as what members say of neighbouring rows is not independent
_STEPS = tuple(np.float32(step) for step in MIXERS)
_SURPRISE_MAX = 4.5  # as of three standard deviations
_ERROR_SHARE, _OUTLIER = 0.005, 9.0
_ONE, _ZERO, _TINY = np.float32(1), np.float32(0), np.float32(1e-12)


class Mixtures(NamedTuple):
    """The weights, and room: members M, logistic mixtures S, all mixtures Z = S + 1, outputs K."""

    mixture_M: Float32s
    mixers_SM: Float32s
    top_Z: Float32s
    right_M: Float32s  # the probability that each gave to what came, or the like of an error
    right_Z: Float32s
    said_SK: Float32s


@njit_cached
def _hedge(weights_M: Float32s, right_M: Float32s, counted: float, share: np.float32) -> None:
    """Multiplies weights by what was right, and deals a share out anew."""
    members, mass = len(weights_M), _ZERO
    for m in range(members):
        weights_M[m] *= np.float32(right_M[m] ** (_RATE * counted))
        mass += weights_M[m]
    for m in range(members):
        weights_M[m] = weights_M[m] / mass * (_ONE - share) + share / np.float32(members)


@njit_cached
def _mix(told_NKM: Float32s, n: int, mixers_SM: Float32s, s: int, said_SK: Float32s) -> None:
    """What a mixture says before its softmax."""
    for k in range(told_NKM.shape[1]):
        total = _ZERO
        for m in range(told_NKM.shape[2]):
            total += mixers_SM[s, m] * told_NKM[n, k, m]
        said_SK[s, k] = total


@njit_cached
def _softmax(said_SK: Float32s, s: int) -> None:
    outputs, top, total = said_SK.shape[1], said_SK[s, 0], _ZERO
    for k in range(1, outputs):
        top = max(top, said_SK[s, k])
    for k in range(outputs):
        said_SK[s, k] = math.exp(said_SK[s, k] - top)
        total += said_SK[s, k]
    for k in range(outputs):
        said_SK[s, k] /= total


@njit_cached
def _step(told_NKM: Float32s, n: int, mixers_SM: Float32s, s: int, slope_SK: Float32s, step: np.float32) -> None:
    for k in range(told_NKM.shape[1]):
        rate = step * slope_SK[s, k]
        for m in range(told_NKM.shape[2]):
            mixers_SM[s, m] -= rate * told_NKM[n, k, m]


@njit_cached
def judge_classes(
    answers_NKM: Float32s, told_NKM: Float32s, labels_N: Float32s, weights_N: Float32s, mixtures: Mixtures, floor: float
) -> float | np.float32:
    """Moves the mixtures towards what was right. `told_NKM` are logarithms. Returns the mean log-loss."""
    mixture_M, mixers_SM, top_Z, right_M, right_Z, said_SK = mixtures
    least, loss, total = np.float32(floor), _ZERO, _ZERO
    for n in range(len(labels_N)):
        weight = weights_N[n]
        if weight <= _ZERO:
            continue
        k, counted = int(labels_N[n]), min(weight, _ONE)
        right_Z[0] = _ZERO
        for m in range(len(mixture_M)):
            right_M[m] = max(answers_NKM[n, k, m], least)
            right_Z[0] += mixture_M[m] * answers_NKM[n, k, m]
        for s in range(len(mixers_SM)):
            _mix(told_NKM, n, mixers_SM, s, said_SK)
            _softmax(said_SK, s)
            right_Z[1 + s] = said_SK[s, k]
            said_SK[s, k] -= _ONE
            _step(told_NKM, n, mixers_SM, s, said_SK, _STEPS[s] * counted)
        right = _ZERO
        for z in range(len(top_Z)):
            right += top_Z[z] * right_Z[z]
            right_Z[z] = max(right_Z[z], least)
        loss -= weight * math.log(max(right, _TINY))
        total += weight
        _hedge(mixture_M, right_M, counted, SHARE)
        _hedge(top_Z, right_Z, counted, TOP_SHARE)
    return loss / max(total, _TINY)


@njit_cached
def _likelihood(error: float, variance: float) -> np.float32:
    """How likely an error is, if errors are normal; 1 for none."""
    surprise = 0.5 * error * error / max(variance, 1e-30)
    return np.float32(math.exp(-min(surprise, _SURPRISE_MAX)))


@njit_cached
def judge_values(
    answers_NKM: Float32s,
    told_NKM: Float32s,
    labels_N: Float32s,
    weights_N: Float32s,
    mixtures: Mixtures,
    values: Values,
) -> float | np.float32:
    """The same for values: `told_NKM` are standardised, errors count by the variance that the answer's had.

    Returns the mean squared error. The steps are normalised ones (Nagumo & Noda, 1967).
    """
    mixture_M, mixers_SM, top_Z, right_M, right_Z, said_SK = mixtures
    sums_4, unit_2 = values
    loss, total = 0.0, 0.0
    for n in range(len(labels_N)):
        weight, label = weights_N[n], float(labels_N[n])
        if weight <= _ZERO:
            continue
        counted, hedged, power = min(weight, _ONE), 0.0, _ZERO
        for m in range(len(mixture_M)):
            hedged += mixture_M[m] * answers_NKM[n, 0, m]
            power += told_NKM[n, 0, m] * told_NKM[n, 0, m]
        answer = top_Z[0] * hedged
        for s in range(len(mixers_SM)):
            _mix(told_NKM, n, mixers_SM, s, said_SK)
            answer += top_Z[1 + s] * (said_SK[s, 0] * unit_2[SCALE] + unit_2[SHIFT])
        square = (label - answer) ** 2
        variance = sums_4[ERROR] if sums_4[ERROR] > 0 else square
        for m in range(len(mixture_M)):
            right_M[m] = _likelihood(label - answers_NKM[n, 0, m], variance)
        right_Z[0] = _likelihood(label - hedged, variance)
        for s in range(len(mixers_SM)):
            right_Z[1 + s] = _likelihood(label - (said_SK[s, 0] * unit_2[SCALE] + unit_2[SHIFT]), variance)
            wanted = np.float32((label - unit_2[SHIFT]) / unit_2[SCALE])
            said_SK[s, 0] = min(max(said_SK[s, 0] - wanted, -_ONE), _ONE)
            _step(told_NKM, n, mixers_SM, s, said_SK, _STEPS[s] * counted / (_ONE + power / np.float32(len(mixture_M))))
        loss += weight * square
        total += weight
        _hedge(mixture_M, right_M, counted, SHARE)
        _hedge(top_Z, right_Z, counted, TOP_SHARE)
        sums_4[ERROR] = variance + _ERROR_SHARE * (min(square, _OUTLIER * variance) - variance)
    return loss / max(total, 1e-12)
