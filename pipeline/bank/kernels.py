"""The bank's compiled loops: forward, backward and update of all experts for some rows, written out."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from consumers.compiled import njit_cached
from consumers.record import Float32s, Int64s
from pipeline.bank.experts import (
    EXPERTS,
    HIDDEN,
    HISTORY_EXPERT,
    L2_EXPERT,
    LINEAR,
    LINEAR_SGD,
    REPLAY_EXPERT,
    SGD,
    TRAINED,
)

SUB_BATCH = 8
REPLAYED = 512  # the newest rows, of which as many are learned again

_ZERO, _ONE, _HALF = np.float32(0), np.float32(1), np.float32(0.5)
_FIRST, _SECOND = np.float32(0.9), np.float32(0.99)  # decay of Adam's moments
_EPSILON = np.float32(1e-6)
_HUBER = np.float32(2)  # standard deviations
_EMBEDDING_STEP, _WIDE_STEP = np.float32(0.05), np.float32(0.3)
_EMA = np.float32(0.02)
_L2 = np.float32(1e-3)
_STEPS = tuple(np.float32(expert.step) for expert in EXPERTS)
_LINEAR_STEPS = tuple(np.float32(step) for step in LINEAR)


class Weights(NamedTuple):
    """What is learned by steps; axes as in `pipeline.bank.module`."""

    first_DJ: Float32s
    second_EHK: Float32s
    linear_DLK: Float32s
    embedding_RA: Float32s
    wide_RK: Float32s


class Slots(NamedTuple):
    """What the optimizers remember: Adam's two moments, Adagrad's sums of squares, and where the L2-init expert began."""

    first_2DJ: Float32s
    second_2EHK: Float32s
    linear_2DLK: Float32s
    embedding_R: Float32s
    wide_R: Float32s
    begun_DH: Float32s
    step_3: Int64s


class Rows(NamedTuple):
    """Rows to learn, encoded. `target_N` is the class, or the standardised value."""

    dense_ND: Float32s
    rows_NG: Int64s
    tokens_NT: Int64s
    target_N: Float32s
    weight_N: Float32s


class Scratch(NamedTuple):
    """Room for one sub-batch of B rows."""

    inputs_BD: Float32s
    hidden_BJ: Float32s
    slope_BJ: Float32s
    output_BEK: Float32s
    linear_BLK: Float32s
    wide_BK: Float32s
    gradient_J: Float32s
    gradient_HK: Float32s
    gradient_LK: Float32s
    share_B: Float32s
    target_B: Float32s
    rate_E: Float32s
    rate_L: Float32s
    embedding_A: Float32s


@njit_cached
def _to_slopes(output_XK: Float32s, x: int, target: float, share: float, regression: bool) -> None:
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
def _forward(weights: Weights, scratch: Scratch, rows: int, plain: int, first: int, last: int) -> None:
    """Hidden layers and outputs of the experts from `first` up to `last`."""
    inputs_BD, hidden_BJ, output_BEK = scratch.inputs_BD, scratch.hidden_BJ, scratch.output_BEK
    first_DJ, second_EHK = weights.first_DJ, weights.second_EHK
    start, stop = first * HIDDEN, last * HIDDEN
    outputs = second_EHK.shape[2]
    for b in range(rows):
        for j in range(start, stop):
            hidden_BJ[b, j] = _ZERO
    for d in range(inputs_BD.shape[1]):
        begin, end = start, stop
        if d >= plain:
            begin, end = max(start, HISTORY_EXPERT * HIDDEN), min(stop, (HISTORY_EXPERT + 1) * HIDDEN)
        for b in range(rows):
            value = inputs_BD[b, d]
            if value != _ZERO:
                for j in range(begin, end):
                    hidden_BJ[b, j] += value * first_DJ[d, j]
    for b in range(rows):
        for j in range(start, stop):
            hidden_BJ[b, j] = max(hidden_BJ[b, j], _ZERO)
        for e in range(first, last):
            for k in range(outputs):
                output_BEK[b, e, k] = second_EHK[e, HIDDEN, k]
            for h in range(HIDDEN):
                value = hidden_BJ[b, e * HIDDEN + h]
                if value > _ZERO:
                    for k in range(outputs):
                        output_BEK[b, e, k] += value * second_EHK[e, h, k]


@njit_cached
def _backward(weights: Weights, scratch: Scratch, rows: int, first: int, last: int) -> None:
    """Slopes at the hidden layers, from those at the outputs."""
    hidden_BJ, slope_BJ, output_BEK = scratch.hidden_BJ, scratch.slope_BJ, scratch.output_BEK
    second_EHK = weights.second_EHK
    outputs = second_EHK.shape[2]
    for b in range(rows):
        for e in range(first, last):
            for h in range(HIDDEN):
                slope = _ZERO
                if hidden_BJ[b, e * HIDDEN + h] > _ZERO:
                    for k in range(outputs):
                        slope += output_BEK[b, e, k] * second_EHK[e, h, k]
                slope_BJ[b, e * HIDDEN + h] = min(max(slope, -_ONE), _ONE)


@njit_cached
def _adam(value: float, gradient: float, mean: float, square: float, rate: float) -> tuple[float, float, float]:
    """Kingma & Ba, "Adam" (2015), the correction of its moments in `rate`."""
    mean += (gradient - mean) * (_ONE - _FIRST)
    square += (gradient * gradient - square) * (_ONE - _SECOND)
    return value - rate * mean / (math.sqrt(square) + _EPSILON), mean, square


@njit_cached
def _step_first(weights: Weights, slots: Slots, scratch: Scratch, rows: int, plain: int, first: int, last: int) -> None:
    inputs_BD, slope_BJ, gradient_J, rate_E = scratch.inputs_BD, scratch.slope_BJ, scratch.gradient_J, scratch.rate_E
    first_DJ, first_2DJ, begun_DH = weights.first_DJ, slots.first_2DJ, slots.begun_DH
    for d in range(inputs_BD.shape[1]):
        begin, end = first, last
        if d >= plain:
            begin, end = max(first, HISTORY_EXPERT), min(last, HISTORY_EXPERT + 1)
        for j in range(begin * HIDDEN, end * HIDDEN):
            gradient_J[j] = _ZERO
        for b in range(rows):
            value = inputs_BD[b, d]
            if value != _ZERO:
                for j in range(begin * HIDDEN, end * HIDDEN):
                    gradient_J[j] += value * slope_BJ[b, j]
        for e in range(begin, end):
            rate = rate_E[e]
            if e < SGD:
                for j in range(e * HIDDEN, e * HIDDEN + HIDDEN):
                    first_DJ[d, j] -= rate * gradient_J[j]
            else:
                for j in range(e * HIDDEN, e * HIDDEN + HIDDEN):
                    first_DJ[d, j], first_2DJ[0, d, j], first_2DJ[1, d, j] = _adam(
                        first_DJ[d, j], gradient_J[j], first_2DJ[0, d, j], first_2DJ[1, d, j], rate
                    )
            if e == L2_EXPERT:
                for h in range(HIDDEN):
                    first_DJ[d, e * HIDDEN + h] -= _L2 * (first_DJ[d, e * HIDDEN + h] - begun_DH[d, h])


@njit_cached
def _step_second(weights: Weights, slots: Slots, scratch: Scratch, rows: int, first: int, last: int) -> None:
    hidden_BJ, output_BEK, gradient_HK = scratch.hidden_BJ, scratch.output_BEK, scratch.gradient_HK
    second_EHK, second_2EHK = weights.second_EHK, slots.second_2EHK
    outputs = second_EHK.shape[2]
    for e in range(first, last):
        rate = scratch.rate_E[e]
        for h in range(HIDDEN + 1):
            for k in range(outputs):
                gradient_HK[h, k] = _ZERO
        for b in range(rows):
            for h in range(HIDDEN):
                value = hidden_BJ[b, e * HIDDEN + h]
                if value > _ZERO:
                    for k in range(outputs):
                        gradient_HK[h, k] += value * output_BEK[b, e, k]
            for k in range(outputs):
                gradient_HK[HIDDEN, k] += output_BEK[b, e, k]
        for h in range(HIDDEN + 1):
            for k in range(outputs):
                if e < SGD:
                    second_EHK[e, h, k] -= rate * gradient_HK[h, k]
                else:
                    second_EHK[e, h, k], second_2EHK[0, e, h, k], second_2EHK[1, e, h, k] = _adam(
                        second_EHK[e, h, k], gradient_HK[h, k], second_2EHK[0, e, h, k], second_2EHK[1, e, h, k], rate
                    )
                if e == L2_EXPERT:
                    second_EHK[e, h, k] -= _L2 * second_EHK[e, h, k]


@njit_cached
def _learn_linear(weights: Weights, slots: Slots, scratch: Scratch, rows: int, regression: bool) -> None:
    inputs_BD, linear_BLK, gradient_LK = scratch.inputs_BD, scratch.linear_BLK, scratch.gradient_LK
    linear_DLK, linear_2DLK, rate_L = weights.linear_DLK, slots.linear_2DLK, scratch.rate_L
    models, outputs = linear_DLK.shape[1], linear_DLK.shape[2]
    for b in range(rows):
        for l in range(models):
            for k in range(outputs):
                linear_BLK[b, l, k] = _ZERO
        for d in range(inputs_BD.shape[1]):
            value = inputs_BD[b, d]
            if value != _ZERO:
                for l in range(models):
                    for k in range(outputs):
                        linear_BLK[b, l, k] += value * linear_DLK[d, l, k]
        for l in range(models):
            _to_slopes(linear_BLK[b], l, scratch.target_B[b], scratch.share_B[b], regression)
    for d in range(inputs_BD.shape[1]):
        for l in range(models):
            for k in range(outputs):
                gradient_LK[l, k] = _ZERO
        for b in range(rows):
            value = inputs_BD[b, d]
            if value != _ZERO:
                for l in range(models):
                    for k in range(outputs):
                        gradient_LK[l, k] += value * linear_BLK[b, l, k]
        for l in range(models):
            for k in range(outputs):
                if l < LINEAR_SGD:
                    linear_DLK[d, l, k] -= rate_L[l] * gradient_LK[l, k]
                else:
                    linear_DLK[d, l, k], linear_2DLK[0, d, l, k], linear_2DLK[1, d, l, k] = _adam(
                        linear_DLK[d, l, k],
                        gradient_LK[l, k],
                        linear_2DLK[0, d, l, k],
                        linear_2DLK[1, d, l, k],
                        rate_L[l],
                    )


@njit_cached
def _learn_wide(
    weights: Weights, slots: Slots, scratch: Scratch, tokens_NT: Int64s, start: int, rows: int, regression: bool
) -> None:
    """Row-wise Adagrad: Duchi, Hazan & Singer (2011), one sum of squares for a row of the table."""
    wide_RK, wide_R, wide_BK = weights.wide_RK, slots.wide_R, scratch.wide_BK
    tokens, outputs = tokens_NT.shape[1], wide_RK.shape[1]
    step = _WIDE_STEP / np.float32(math.sqrt(tokens))
    for b in range(rows):
        for k in range(outputs):
            wide_BK[b, k] = _ZERO
        for t in range(tokens):
            row = tokens_NT[start + b, t]
            for k in range(outputs):
                wide_BK[b, k] += wide_RK[row, k]
        _to_slopes(wide_BK, b, scratch.target_B[b], scratch.share_B[b] * np.float32(rows), regression)
    for b in range(rows):
        square = _ZERO
        for k in range(outputs):
            square += wide_BK[b, k] * wide_BK[b, k]
        for t in range(tokens):
            row = tokens_NT[start + b, t]
            wide_R[row] += square
            rate = step / math.sqrt(wide_R[row] + _EPSILON)
            for k in range(outputs):
                wide_RK[row, k] -= rate * wide_BK[b, k]


@njit_cached
def _learn_embeddings(
    weights: Weights, slots: Slots, scratch: Scratch, rows_NG: Int64s, start: int, rows: int, dense: int
) -> None:
    """Row-wise Adagrad along the mean slope of all networks, as it was before their step."""
    first_DJ, slope_BJ, slope_A = weights.first_DJ, scratch.slope_BJ, scratch.embedding_A
    embedding_RA, embedding_R = weights.embedding_RA, slots.embedding_R
    width = embedding_RA.shape[1]
    for b in range(rows):
        for g in range(rows_NG.shape[1]):
            row, square = rows_NG[start + b, g], _ZERO
            for a in range(width):
                d, slope = dense + g * width + a, _ZERO
                for j in range(TRAINED * HIDDEN):
                    slope += slope_BJ[b, j] * first_DJ[d, j]
                slope_A[a] = min(max(slope, -_ONE), _ONE)
                square += slope_A[a] * slope_A[a]
            embedding_R[row] += square
            rate = _EMBEDDING_STEP / math.sqrt(embedding_R[row] + _EPSILON)
            for a in range(width):
                embedding_RA[row, a] -= rate * slope_A[a]


@njit_cached
def _average(weights: Weights, copy: int, source: int) -> None:
    """Moves a copy towards the expert that it averages."""
    first_DJ, second_EHK = weights.first_DJ, weights.second_EHK
    for d in range(first_DJ.shape[0]):
        for h in range(HIDDEN):
            here = first_DJ[d, copy * HIDDEN + h]
            first_DJ[d, copy * HIDDEN + h] = here + _EMA * (first_DJ[d, source * HIDDEN + h] - here)
    for h in range(HIDDEN + 1):
        for k in range(second_EHK.shape[2]):
            second_EHK[copy, h, k] += _EMA * (second_EHK[source, h, k] - second_EHK[copy, h, k])


@njit_cached
def _fill(weights: Weights, scratch: Scratch, rows: Rows, row: int, b: int, history_Q: Float32s) -> None:
    """One row as inputs: numbers, embeddings, the constant, the newest labels."""
    inputs_BD, dense, width = scratch.inputs_BD, rows.dense_ND.shape[1], weights.embedding_RA.shape[1]
    for d in range(dense):
        inputs_BD[b, d] = rows.dense_ND[row, d]
    for g in range(rows.rows_NG.shape[1]):
        for a in range(width):
            inputs_BD[b, dense + g * width + a] = weights.embedding_RA[rows.rows_NG[row, g], a]
    plain = dense + rows.rows_NG.shape[1] * width
    inputs_BD[b, plain] = _ONE
    for q in range(len(history_Q)):
        inputs_BD[b, plain + 1 + q] = history_Q[q]
    scratch.target_B[b] = rows.target_N[row]


@njit_cached
def _learn_deep(
    weights: Weights, slots: Slots, scratch: Scratch, rows: int, plain: int, first: int, last: int, regression: bool
) -> None:
    _forward(weights, scratch, rows, plain, first, last)
    for b in range(rows):
        for e in range(first, last):
            _to_slopes(scratch.output_BEK[b], e, scratch.target_B[b], scratch.share_B[b], regression)
    _backward(weights, scratch, rows, first, last)


@njit_cached
def learn(
    weights: Weights,
    slots: Slots,
    scratch: Scratch,
    rows: Rows,
    past: Rows,
    history_Q: Float32s,
    regression: bool,
) -> None:
    """Learns rows in sub-batches, one after the other. `past` is a ring of rows learned before, by `step_3[1]`."""
    dense = rows.dense_ND.shape[1]
    plain = dense + rows.rows_NG.shape[1] * weights.embedding_RA.shape[1] + 1
    count, ring = len(rows.target_N), len(past.target_N)
    for start in range(0, count, SUB_BATCH):
        size = min(SUB_BATCH, count - start)
        total = _ZERO
        for b in range(size):
            _fill(weights, scratch, rows, start + b, b, history_Q)
            total += rows.weight_N[start + b]
        if total <= _ZERO:
            continue
        for b in range(size):
            scratch.share_B[b] = rows.weight_N[start + b] / total
        slots.step_3[0] += 1
        _rates(slots, scratch)
        _learn_deep(weights, slots, scratch, size, plain, 0, TRAINED, regression)
        _learn_embeddings(weights, slots, scratch, rows.rows_NG, start, size, dense)
        _step_first(weights, slots, scratch, size, plain, 0, TRAINED)
        _step_second(weights, slots, scratch, size, 0, TRAINED)
        _learn_linear(weights, slots, scratch, size, regression)
        _learn_wide(weights, slots, scratch, rows.tokens_NT, start, size, regression)
        held = min(slots.step_3[1], ring)
        if held >= SUB_BATCH:
            for b in range(SUB_BATCH):
                slots.step_3[2] = (slots.step_3[2] * 1103515245 + 12345) & 0x7FFFFFFF
                _fill(weights, scratch, past, (slots.step_3[2] >> 8) % held, b, history_Q)
                scratch.share_B[b] = _ONE / np.float32(SUB_BATCH)
            _learn_deep(weights, slots, scratch, SUB_BATCH, plain, REPLAY_EXPERT, REPLAY_EXPERT + 1, regression)
            _step_first(weights, slots, scratch, SUB_BATCH, plain, REPLAY_EXPERT, REPLAY_EXPERT + 1)
            _step_second(weights, slots, scratch, SUB_BATCH, REPLAY_EXPERT, REPLAY_EXPERT + 1)
        _average(weights, 10, 5)
        _average(weights, 11, 6)
        for b in range(size):
            if rows.weight_N[start + b] > _ZERO:
                _keep(slots, rows, past, start + b)


@njit_cached
def _keep(slots: Slots, rows: Rows, past: Rows, row: int) -> None:
    """Puts a row into the ring."""
    place = slots.step_3[1] % len(past.target_N)
    slots.step_3[1] += 1
    for d in range(rows.dense_ND.shape[1]):
        past.dense_ND[place, d] = rows.dense_ND[row, d]
    for g in range(rows.rows_NG.shape[1]):
        past.rows_NG[place, g] = rows.rows_NG[row, g]
    past.target_N[place] = rows.target_N[row]


@njit_cached
def _rates(slots: Slots, scratch: Scratch) -> None:
    """Steps of this moment: Adam's grow as its moments become known."""
    correction = np.float32(math.sqrt(1 - 0.99 ** float(slots.step_3[0])) / (1 - 0.9 ** float(slots.step_3[0])))
    for e in range(TRAINED):
        scratch.rate_E[e] = _STEPS[e] * (correction if e >= SGD else _ONE)
    for l in range(len(scratch.rate_L)):
        scratch.rate_L[l] = _LINEAR_STEPS[l] * (correction if l >= LINEAR_SGD else _ONE)
