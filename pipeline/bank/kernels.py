"""One batch learned: the compiled loop over its sub-batches."""

from __future__ import annotations

import math

import numpy as np

from consumers.compiled import njit_cached
from consumers.record import Float32s
from pipeline.bank.arrays import DRAWN, ROWS, SUB_BATCHES, Part, Rows, Scratch, Slots, Weights
from pipeline.bank.deep import average, column, go_back, hidden, linear_slopes, slopes, step_first, step_second
from pipeline.bank.experts import EXPERTS, HIDDEN, LINEAR, PLAIN_STEPS, REPLAY_EXPERT, TRAINED
from pipeline.bank.tables import learn_embeddings, learn_table

SUB_BATCH = 8
REPLAYED = 512  # the newest rows, of which as many are learned again

_ZERO, _ONE = np.float32(0), np.float32(1)
_STEPS = tuple(np.float32(expert.step) for expert in EXPERTS)
_SOURCES = tuple(expert.source for expert in EXPERTS)
_LINEAR_STEPS = tuple(np.float32(step) for step in LINEAR)


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
    """Learns rows in sub-batches, one after the other. `past` is a ring of the newest rows learned before."""
    count, outputs = len(rows.target_N), weights.second_EKH.shape[1]
    dense = rows.dense_ND.shape[1]
    plain = weights.first_DJ.shape[0] - len(history_Q)
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
        slots.step_3[SUB_BATCHES] += 1
        fullness = np.float32(size / SUB_BATCH)
        _set_rates(scratch, (slots.step_3[ROWS] + size) / SUB_BATCH, outputs, fullness)
        part = Part(size, 0, TRAINED, 0, column(weights, TRAINED), plain, fullness, regression)
        hidden(weights, scratch, part)
        linear_slopes(scratch, part)
        slopes(weights, scratch, part)
        if rows.rows_NG.shape[1]:
            learn_embeddings(weights, slots, scratch, rows.rows_NG, start, size, dense)
        step_first(weights, slots, scratch, part)
        step_second(weights, slots, scratch, part)
        go_back(weights, scratch, fullness)
        learn_table(weights.wide_RK, slots.wide_R, scratch, rows.tokens_NT[start : start + size], regression)
        if len(weights.narrow_RK):
            learn_table(weights.narrow_RK, slots.narrow_R, scratch, rows.narrow_NT[start : start + size], regression)
        _replay(weights, slots, scratch, past, history_Q, regression)
        for e in range(TRAINED, len(EXPERTS)):
            average(weights, e, _SOURCES[e], _STEPS[e] * fullness)
        for b in range(size):
            if rows.weight_N[start + b] > _ZERO:
                _keep(slots, rows, past, start + b)


@njit_cached
def _replay(
    weights: Weights, slots: Slots, scratch: Scratch, past: Rows, history_Q: Float32s, regression: bool
) -> None:
    """One expert learns again from rows of the ring, drawn by a congruential generator (Park & Miller, 1988)."""
    held = min(slots.step_3[ROWS], len(past.target_N))
    if held < SUB_BATCH:
        return
    for b in range(SUB_BATCH):
        slots.step_3[DRAWN] = slots.step_3[DRAWN] * 48271 % 0x7FFFFFFF
        _fill(weights, scratch, past, slots.step_3[DRAWN] % held, b, history_Q)
        scratch.share_B[b] = _ONE / np.float32(SUB_BATCH)
    begin, plain = column(weights, REPLAY_EXPERT), weights.first_DJ.shape[0] - len(history_Q)
    part = Part(SUB_BATCH, REPLAY_EXPERT, REPLAY_EXPERT + 1, begin, begin + HIDDEN, plain, _ONE, regression)
    hidden(weights, scratch, part)
    slopes(weights, scratch, part)
    step_first(weights, slots, scratch, part)
    step_second(weights, slots, scratch, part)


@njit_cached
def _fill(weights: Weights, scratch: Scratch, rows: Rows, row: int, b: int, history_Q: Float32s) -> None:
    """One row as inputs: numbers, embeddings, the constant, the newest labels."""
    inputs_BD, dense, width = scratch.inputs_BD, rows.dense_ND.shape[1], weights.embedding_RA.shape[1]
    for d in range(dense):
        inputs_BD[b, d] = rows.dense_ND[row, d]
    for g in range(rows.rows_NG.shape[1]):
        for a in range(width):
            inputs_BD[b, dense + g * width + a] = weights.embedding_RA[rows.rows_NG[row, g], a]
    constant = dense + rows.rows_NG.shape[1] * width
    inputs_BD[b, constant] = _ONE
    for q in range(len(history_Q)):
        inputs_BD[b, constant + 1 + q] = history_Q[q]
    scratch.target_B[b] = rows.target_N[row]


@njit_cached
def _keep(slots: Slots, rows: Rows, past: Rows, row: int) -> None:
    """Puts a row into the ring."""
    place = slots.step_3[ROWS] % len(past.target_N)
    slots.step_3[ROWS] += 1
    for d in range(rows.dense_ND.shape[1]):
        past.dense_ND[place, d] = rows.dense_ND[row, d]
    for g in range(rows.rows_NG.shape[1]):
        past.rows_NG[place, g] = rows.rows_NG[row, g]
    past.target_N[place] = rows.target_N[row]


@njit_cached
def _set_rates(scratch: Scratch, steps: float, outputs: int, fullness: np.float32) -> None:
    """Steps of this moment: Adam's are corrected for its moments, which begin at zero (Kingma & Ba, 2015).

    A sub-batch of fewer rows has a noisier gradient. So that rows count alike, however they come, a step is smaller by
    the root of the rows' share, and what remembers (Adam's moments, averages) moves by that share of its own: Malladi
    et al., "On the SDEs and Scaling Rules for Adaptive Gradient Algorithms" (2022); Busbridge et al., "How to Scale
    Your EMA" (2023). `steps`: full sub-batches that so many rows are.
    """
    fewer = np.float32(math.sqrt(fullness))
    correction = np.float32(math.sqrt(1 - 0.99**steps) / (1 - 0.9**steps)) * fewer
    for i in range(len(LINEAR)):
        for k in range(outputs):
            scratch.rate_J[i * outputs + k] = _LINEAR_STEPS[i] * fewer
    for e in range(TRAINED):
        scratch.rate_E[e] = _STEPS[e] * (fewer if e < PLAIN_STEPS else correction)
        for h in range(HIDDEN):
            scratch.rate_J[len(LINEAR) * outputs + e * HIDDEN + h] = scratch.rate_E[e]
