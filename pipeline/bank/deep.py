"""Compiled loops of the experts: forward, backward and step of all of them at once, written out.

Columns J of the first layer: the outputs of the linear experts, then the hidden units of the others, expert by expert.
"""

from __future__ import annotations

import math

import numpy as np

from consumers.compiled import njit_cached
from consumers.record import Float32s
from pipeline.bank.arrays import Scratch, Slots, Weights
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
def dot(left_XJ: Float32s, x: int, at: int, right_H: Float32s, lanes_U: Float32s) -> np.float32:
    """Product of `right_H` and as much of a row, in lanes that the processor adds at once; H in whole lanes."""
    for u in range(LANES):
        lanes_U[u] = _ZERO
    for start in range(0, len(right_H), LANES):
        for u in range(LANES):
            lanes_U[u] += left_XJ[x, at + start + u] * right_H[start + u]
    total = _ZERO
    for u in range(LANES):
        total += lanes_U[u]
    return total


@njit_cached
def hidden(weights: Weights, scratch: Scratch, rows: int, plain: int, begin: int, end: int) -> None:
    """The columns from `begin` up to `end`: inputs past `plain` are of those that see the newest labels."""
    inputs_BD, hidden_BJ, first_DJ = scratch.inputs_BD, scratch.hidden_BJ, weights.first_DJ
    historic = len(LINEAR) * weights.second_EKH.shape[1] + HISTORIC * HIDDEN
    for b in range(rows):
        for j in range(begin, end):
            hidden_BJ[b, j] = _ZERO
    for d in range(inputs_BD.shape[1]):
        stop = end if d < plain else min(end, historic)
        for b in range(rows):
            value = inputs_BD[b, d]
            if value != _ZERO:
                for j in range(begin, stop):
                    hidden_BJ[b, j] += value * first_DJ[d, j]


@njit_cached
def slopes(weights: Weights, scratch: Scratch, rows: int, first: int, last: int, regression: bool) -> None:
    """Slopes at the outputs of the experts from `first` up to `last`, and at their hidden units."""
    hidden_BJ, slope_BJ, output_BEK = scratch.hidden_BJ, scratch.slope_BJ, scratch.output_BEK
    second_EKH = weights.second_EKH
    outputs = second_EKH.shape[1]
    for b in range(rows):
        for e in range(first, last):
            at = len(LINEAR) * outputs + e * HIDDEN
            for h in range(HIDDEN):
                hidden_BJ[b, at + h] = max(hidden_BJ[b, at + h], _ZERO)
                slope_BJ[b, at + h] = _ZERO
            for k in range(outputs):
                output_BEK[b, e, k] = dot(hidden_BJ, b, at, second_EKH[e, k], scratch.lanes_U)
            to_slope(output_BEK[b], e, scratch.target_B[b], scratch.share_B[b], regression)
            for k in range(outputs):
                slope = output_BEK[b, e, k]
                for h in range(HIDDEN):
                    slope_BJ[b, at + h] += slope * second_EKH[e, k, h]
            for h in range(HIDDEN):
                alive = _ONE if hidden_BJ[b, at + h] > _ZERO else _ZERO
                slope_BJ[b, at + h] = min(max(slope_BJ[b, at + h], -_ONE), _ONE) * alive


@njit_cached
def linear_slopes(scratch: Scratch, rows: int, outputs: int, regression: bool) -> None:
    """Slopes at the outputs of the linear experts, which are the first columns."""
    hidden_BJ, slope_BJ, output_BEK = scratch.hidden_BJ, scratch.slope_BJ, scratch.output_BEK
    for b in range(rows):
        for i in range(len(LINEAR)):
            for k in range(outputs):
                output_BEK[b, 0, k] = hidden_BJ[b, i * outputs + k]
            to_slope(output_BEK[b], 0, scratch.target_B[b], scratch.share_B[b], regression)
            for k in range(outputs):
                slope_BJ[b, i * outputs + k] = output_BEK[b, 0, k]


@njit_cached
def step_first(weights: Weights, slots: Slots, scratch: Scratch, rows: int, plain: int, begin: int, end: int) -> None:
    """Steps of the columns from `begin` up to `end`."""
    inputs_BD, slope_BJ, gradient_J, rate_J = scratch.inputs_BD, scratch.slope_BJ, scratch.gradient_J, scratch.rate_J
    first_DJ, first_2DJ = weights.first_DJ, slots.first_2DJ
    heads = len(LINEAR) * weights.second_EKH.shape[1]
    historic, adam = heads + HISTORIC * HIDDEN, heads + PLAIN_STEPS * HIDDEN
    for d in range(inputs_BD.shape[1]):
        stop = end if d < plain else min(end, historic)
        for j in range(begin, stop):
            gradient_J[j] = _ZERO
        for b in range(rows):
            value = inputs_BD[b, d]
            if value != _ZERO:
                for j in range(begin, stop):
                    gradient_J[j] += value * slope_BJ[b, j]
        for j in range(begin, min(stop, adam)):
            first_DJ[d, j] -= rate_J[j] * gradient_J[j]
        for j in range(max(begin, adam), stop):
            mean = first_2DJ[0, d, j - adam]
            square = first_2DJ[1, d, j - adam]
            mean += (gradient_J[j] - mean) * _FIRST
            square += (gradient_J[j] * gradient_J[j] - square) * _SECOND
            first_2DJ[0, d, j - adam] = mean
            first_2DJ[1, d, j - adam] = square
            first_DJ[d, j] -= rate_J[j] * mean / (math.sqrt(square) + _EPSILON)


@njit_cached
def step_second(weights: Weights, slots: Slots, scratch: Scratch, rows: int, first: int, last: int) -> None:
    """Steps of the heads of the experts from `first` up to `last`."""
    hidden_BJ, output_BEK, gradient_H = scratch.hidden_BJ, scratch.output_BEK, scratch.gradient_H
    second_EKH, second_2EKH = weights.second_EKH, slots.second_2EKH
    outputs = second_EKH.shape[1]
    for e in range(first, last):
        at, rate, slot = len(LINEAR) * outputs + e * HIDDEN, scratch.rate_E[e], e - PLAIN_STEPS
        for k in range(outputs):
            for h in range(HIDDEN):
                gradient_H[h] = _ZERO
            for b in range(rows):
                slope = output_BEK[b, e, k]
                for h in range(HIDDEN):
                    gradient_H[h] += slope * hidden_BJ[b, at + h]
            if slot < 0:
                for h in range(HIDDEN):
                    second_EKH[e, k, h] -= rate * gradient_H[h]
            else:
                for h in range(HIDDEN):
                    mean = second_2EKH[0, slot, k, h]
                    square = second_2EKH[1, slot, k, h]
                    mean += (gradient_H[h] - mean) * _FIRST
                    square += (gradient_H[h] * gradient_H[h] - square) * _SECOND
                    second_2EKH[0, slot, k, h] = mean
                    second_2EKH[1, slot, k, h] = square
                    second_EKH[e, k, h] -= rate * mean / (math.sqrt(square) + _EPSILON)


@njit_cached
def go_back(weights: Weights, scratch: Scratch) -> None:
    """Moves the L2-init expert towards what it began with: its heads began at zero."""
    first_DJ, second_EKH, begun_DH = weights.first_DJ, weights.second_EKH, scratch.begun_DH
    at = len(LINEAR) * second_EKH.shape[1] + L2_EXPERT * HIDDEN
    for d in range(first_DJ.shape[0]):
        for h in range(HIDDEN):
            first_DJ[d, at + h] -= _L2 * (first_DJ[d, at + h] - begun_DH[d, h])
    for k in range(second_EKH.shape[1]):
        for h in range(HIDDEN):
            second_EKH[L2_EXPERT, k, h] -= _L2 * second_EKH[L2_EXPERT, k, h]


@njit_cached
def average(weights: Weights, copy: int, source: int, share: np.float32) -> None:
    """Moves a copy towards the expert that it averages."""
    first_DJ, second_EKH = weights.first_DJ, weights.second_EKH
    heads = len(LINEAR) * second_EKH.shape[1]
    to, at = heads + copy * HIDDEN, heads + source * HIDDEN
    for d in range(first_DJ.shape[0]):
        for h in range(HIDDEN):
            first_DJ[d, to + h] += share * (first_DJ[d, at + h] - first_DJ[d, to + h])
    for k in range(second_EKH.shape[1]):
        for h in range(HIDDEN):
            second_EKH[copy, k, h] += share * (second_EKH[source, k, h] - second_EKH[copy, k, h])
