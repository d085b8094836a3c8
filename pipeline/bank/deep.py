"""Compiled loops of the experts: forward, backward and step of all of them at once, written out.

Loops run over slices, from 0 on: then the compiler knows that no index counts from the end, and adds many at once.
"""

from __future__ import annotations

import math

import numpy as np

from consumers.compiled import njit_cached
from consumers.record import Float32s
from pipeline.bank.arrays import Part, Scratch, Slots, Weights
from pipeline.bank.experts import EXPERTS, HIDDEN, HISTORIC, L2_EXPERT, LINEAR, PLAIN_STEPS

LANES = 16

_ZERO, _ONE = np.float32(0), np.float32(1)
_FIRST, _SECOND = np.float32(0.1), np.float32(0.01)  # shares in which Adam's moments move
_EPSILON = np.float32(1e-6)
_HUBER = np.float32(2)  # standard deviations
_L2 = np.float32(EXPERTS[L2_EXPERT].l2_init)


@njit_cached
def to_slope(output_XK: Float32s, x: int, target: float, share: float, regression: bool) -> None:
    """Replaces an answer by the slope of its loss: of log-loss over a softmax, or of Huber's over a value."""
    outputs = output_XK.shape[1]
    if regression:
        output_XK[x, 0] = min(max(output_XK[x, 0] - target, -_HUBER), _HUBER) * share
        return
    top = output_XK[x, 0]
    for k in range(1, outputs):
        top = max(top, output_XK[x, k])
    total = _ZERO
    for k in range(outputs):
        output_XK[x, k] = math.exp(output_XK[x, k] - top)
        total += output_XK[x, k]
    scale = share / total
    for k in range(outputs):
        output_XK[x, k] *= scale
    output_XK[x, int(target)] -= share


@njit_cached
def column(weights: Weights, expert: int) -> int:
    """The first column of an expert: before those of expert 0 are the outputs of the linear ones."""
    return len(LINEAR) * int(weights.second_EKH.shape[1]) + expert * HIDDEN


@njit_cached
def dot(left_H: Float32s, right_H: Float32s, lanes_U: Float32s) -> np.float32:
    """Product of two rows, in lanes that the processor adds at once; H in whole lanes."""
    for u in range(LANES):
        lanes_U[u] = _ZERO
    for start in range(0, len(right_H), LANES):
        left_U, right_U = left_H[start : start + LANES], right_H[start : start + LANES]
        for u in range(LANES):
            lanes_U[u] += left_U[u] * right_U[u]
    total = _ZERO
    for u in range(LANES):
        total += lanes_U[u]
    return total


@njit_cached
def add_scaled(sum_J: Float32s, scale: np.float32, row_J: Float32s) -> None:
    """Adds a multiple of a row."""
    for j in range(len(sum_J)):
        sum_J[j] += scale * row_J[j]


@njit_cached
def _seen_up_to(weights: Weights, part: Part, d: int) -> int:
    """Up to which column input `d` is seen: the newest labels come last, and are seen by the first experts alone."""
    return part.end if d < part.plain else min(part.end, max(part.begin, column(weights, HISTORIC)))


@njit_cached
def hidden(weights: Weights, scratch: Scratch, part: Part) -> None:
    """What the columns of a part make of the inputs."""
    inputs_BD, hidden_BJ, first_DJ, begin = scratch.inputs_BD, scratch.hidden_BJ, weights.first_DJ, part.begin
    for b in range(part.rows):
        hidden_BJ[b, begin : part.end] = _ZERO
    for d in range(inputs_BD.shape[1]):
        stop = _seen_up_to(weights, part, d)
        for b in range(part.rows):
            if inputs_BD[b, d] != _ZERO:
                add_scaled(hidden_BJ[b, begin:stop], inputs_BD[b, d], first_DJ[d, begin:stop])


@njit_cached
def slopes(weights: Weights, scratch: Scratch, part: Part) -> None:
    """Slopes at the outputs of a part's experts, and at their hidden units."""
    output_BEK, second_EKH = scratch.output_BEK, weights.second_EKH
    for b in range(part.rows):
        for e in range(part.first, part.last):
            at = column(weights, e)
            hidden_H, slope_H = scratch.hidden_BJ[b, at : at + HIDDEN], scratch.slope_BJ[b, at : at + HIDDEN]
            for h in range(HIDDEN):
                hidden_H[h] = max(hidden_H[h], _ZERO)
                slope_H[h] = _ZERO
            for k in range(second_EKH.shape[1]):
                output_BEK[b, e, k] = dot(hidden_H, second_EKH[e, k], scratch.lanes_U)
            to_slope(output_BEK[b], e, scratch.target_B[b], scratch.share_B[b], part.regression)
            for k in range(second_EKH.shape[1]):
                add_scaled(slope_H, output_BEK[b, e, k], second_EKH[e, k])
            for h in range(HIDDEN):
                alive = _ONE if hidden_H[h] > _ZERO else _ZERO
                slope_H[h] = min(max(slope_H[h], -_ONE), _ONE) * alive


@njit_cached
def linear_slopes(scratch: Scratch, part: Part) -> None:
    """Slopes at the outputs of the linear experts, which are the first columns."""
    output_BEK = scratch.output_BEK
    outputs = output_BEK.shape[2]
    for b in range(part.rows):
        for i in range(len(LINEAR)):
            for k in range(outputs):
                output_BEK[b, 0, k] = scratch.hidden_BJ[b, i * outputs + k]
            to_slope(output_BEK[b], 0, scratch.target_B[b], scratch.share_B[b], part.regression)
            for k in range(outputs):
                scratch.slope_BJ[b, i * outputs + k] = output_BEK[b, 0, k]


@njit_cached
def _step_plain(weights_X: Float32s, rate_X: Float32s, gradient_X: Float32s) -> None:
    for x in range(len(weights_X)):
        weights_X[x] -= rate_X[x] * gradient_X[x]


@njit_cached
def _step_adam(
    weights_X: Float32s,
    rate_X: Float32s,
    gradient_X: Float32s,
    mean_X: Float32s,
    square_X: Float32s,
    fullness: np.float32,
) -> None:
    first, second = _FIRST * fullness, _SECOND * fullness
    for x in range(len(weights_X)):
        mean = mean_X[x] + (gradient_X[x] - mean_X[x]) * first
        square = square_X[x] + (gradient_X[x] * gradient_X[x] - square_X[x]) * second
        mean_X[x] = mean
        square_X[x] = square
        weights_X[x] -= rate_X[x] * mean / (math.sqrt(square) + _EPSILON)


@njit_cached
def step_first(weights: Weights, slots: Slots, scratch: Scratch, part: Part) -> None:
    """Steps of the columns of a part."""
    inputs_BD, gradient_J, rate_J, begin = scratch.inputs_BD, scratch.gradient_J, scratch.rate_J, part.begin
    adam = column(weights, PLAIN_STEPS)
    for d in range(inputs_BD.shape[1]):
        stop = _seen_up_to(weights, part, d)
        gradient_J[begin:stop] = _ZERO
        for b in range(part.rows):
            if inputs_BD[b, d] != _ZERO:
                add_scaled(gradient_J[begin:stop], inputs_BD[b, d], scratch.slope_BJ[b, begin:stop])
        first_J, middle = weights.first_DJ[d], min(max(begin, adam), stop)
        _step_plain(first_J[begin:middle], rate_J[begin:middle], gradient_J[begin:middle])
        slot = slice(middle - adam, stop - adam) if middle < stop else slice(0, 0)
        mean_J, square_J = slots.first_2DJ[0, d, slot], slots.first_2DJ[1, d, slot]
        _step_adam(first_J[middle:stop], rate_J[middle:stop], gradient_J[middle:stop], mean_J, square_J, part.fullness)


@njit_cached
def step_second(weights: Weights, slots: Slots, scratch: Scratch, part: Part) -> None:
    """Steps of the heads of a part's experts."""
    gradient_H, rate_H, second_2EKH = scratch.gradient_H, scratch.rate_H, slots.second_2EKH
    for e in range(part.first, part.last):
        at, slot = column(weights, e), e - PLAIN_STEPS
        rate_H[:] = scratch.rate_E[e]
        for k in range(weights.second_EKH.shape[1]):
            gradient_H[:] = _ZERO
            for b in range(part.rows):
                add_scaled(gradient_H, scratch.output_BEK[b, e, k], scratch.hidden_BJ[b, at : at + HIDDEN])
            second_H = weights.second_EKH[e, k]
            if slot < 0:
                _step_plain(second_H, rate_H, gradient_H)
            else:
                mean_H, square_H = second_2EKH[0, slot, k], second_2EKH[1, slot, k]
                _step_adam(second_H, rate_H, gradient_H, mean_H, square_H, part.fullness)


@njit_cached
def _approach(weights_H: Float32s, goal_H: Float32s, share: np.float32) -> None:
    for h in range(HIDDEN):
        weights_H[h] += share * (goal_H[h] - weights_H[h])


@njit_cached
def go_back(weights: Weights, scratch: Scratch, fullness: np.float32) -> None:
    """Moves the L2-init expert towards what it began with: its heads began at zero."""
    at, share = column(weights, L2_EXPERT), _L2 * fullness
    for d in range(len(weights.first_DJ)):
        _approach(weights.first_DJ[d, at : at + HIDDEN], scratch.begun_DH[d], share)
    scratch.gradient_H[:] = _ZERO
    for k in range(weights.second_EKH.shape[1]):
        _approach(weights.second_EKH[L2_EXPERT, k], scratch.gradient_H, share)


@njit_cached
def average(weights: Weights, copy: int, source: int, share: np.float32) -> None:
    """Moves a copy towards the expert that it averages."""
    to, at = column(weights, copy), column(weights, source)
    for d in range(len(weights.first_DJ)):
        _approach(weights.first_DJ[d, to : to + HIDDEN], weights.first_DJ[d, at : at + HIDDEN], share)
    for k in range(weights.second_EKH.shape[1]):
        _approach(weights.second_EKH[copy, k], weights.second_EKH[source, k], share)
