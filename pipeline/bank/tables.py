"""Compiled loops of what is looked up: the table of hashed tokens, and embeddings. Both learn by row-wise Adagrad.

Duchi, Hazan & Singer, "Adaptive Subgradient Methods" (2011), with one sum of squares for a row of a table.
"""

from __future__ import annotations

import math

import numpy as np

from consumers.compiled import njit_cached
from consumers.record import Float32s, Int64s
from pipeline.bank.arrays import Scratch, Slots, Weights
from pipeline.bank.deep import column, dot, to_slope
from pipeline.bank.experts import TRAINED

_ZERO, _ONE = np.float32(0), np.float32(1)
_EPSILON = np.float32(1e-6)
_EMBEDDING_STEP, _WIDE_STEP = np.float32(0.05), np.float32(0.3)


@njit_cached
def learn_table(table_RK: Float32s, sums_R: Float32s, scratch: Scratch, tokens_BT: Int64s, regression: bool) -> None:
    """Each row is a step of its own, as the table stood before the sub-batch."""
    wide_BK, outputs = scratch.wide_BK, table_RK.shape[1]
    rows, tokens = tokens_BT.shape
    step = _WIDE_STEP / np.float32(math.sqrt(tokens))
    weighing = 0
    for b in range(rows):
        weighing += scratch.share_B[b] > _ZERO
    for b in range(rows):
        for k in range(outputs):
            wide_BK[b, k] = _ZERO
        for t in range(tokens):
            row = tokens_BT[b, t]
            for k in range(outputs):
                wide_BK[b, k] += table_RK[row, k]
        to_slope(wide_BK, b, scratch.target_B[b], scratch.share_B[b] * np.float32(weighing), regression)
    for b in range(rows):
        square = _ZERO
        for k in range(outputs):
            square += wide_BK[b, k] * wide_BK[b, k]
        for t in range(tokens):
            row = tokens_BT[b, t]
            sums_R[row] += square
            rate = step / math.sqrt(sums_R[row] + _EPSILON)
            for k in range(outputs):
                table_RK[row, k] -= rate * wide_BK[b, k]


@njit_cached
def learn_embeddings(
    weights: Weights, slots: Slots, scratch: Scratch, rows_NG: Int64s, start: int, rows: int, dense: int
) -> None:
    """Along the summed slopes of all networks, before these take their step."""
    first_DJ, slope_BJ, slope_A = weights.first_DJ, scratch.slope_BJ, scratch.slope_A
    embedding_RA, embedding_R = weights.embedding_RA, slots.embedding_R
    begin, end = column(weights, 0), column(weights, TRAINED)
    width = embedding_RA.shape[1]
    for b in range(rows):
        for g in range(rows_NG.shape[1]):
            row, square = rows_NG[start + b, g], _ZERO
            for a in range(width):
                d = dense + g * width + a
                slope = dot(slope_BJ[b, begin:end], first_DJ[d, begin:end], scratch.lanes_U)
                slope_A[a] = min(max(slope, -_ONE), _ONE)
                square += slope_A[a] * slope_A[a]
            embedding_R[row] += square
            rate = _EMBEDDING_STEP / math.sqrt(embedding_R[row] + _EPSILON)
            for a in range(width):
                embedding_RA[row, a] -= rate * slope_A[a]
