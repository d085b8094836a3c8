"""What the bank's compiled loops work on: the module's memory, the optimizers', and rows. Axes as in its module."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from consumers.record import Float32s, Int64s

SUB_BATCHES, ROWS, DRAWN = 0, 1, 2
"""Places in `Slots.step_3`: sub-batches learned, rows learned, and what the next replay is drawn from."""


class Weights(NamedTuple):
    """What is learned by steps."""

    first_DJ: Float32s
    second_EKH: Float32s
    embedding_RA: Float32s
    wide_RK: Float32s
    narrow_RK: Float32s


class Slots(NamedTuple):
    """What the optimizers remember: Adam's two moments, of its own experts alone, and Adagrad's sums of squares."""

    first_2DJ: Float32s
    second_2EKH: Float32s
    embedding_R: Float32s
    wide_R: Float32s
    narrow_R: Float32s
    step_3: Int64s  # at SUB_BATCHES, ROWS and DRAWN


class Rows(NamedTuple):
    """Rows to learn, encoded. `target_N` is the class, or the standardised value."""

    dense_ND: Float32s
    rows_NG: Int64s
    tokens_NT: Int64s
    narrow_NT: Int64s  # the last ones of these
    target_N: Float32s
    weight_N: Float32s


class Scratch(NamedTuple):
    """Room for one sub-batch of B rows; the steps of this moment; where the L2-init expert began."""

    inputs_BD: Float32s
    hidden_BJ: Float32s
    slope_BJ: Float32s
    output_BEK: Float32s
    wide_BK: Float32s
    gradient_J: Float32s
    gradient_H: Float32s
    rate_H: Float32s
    share_B: Float32s
    target_B: Float32s
    rate_J: Float32s
    rate_E: Float32s
    lanes_U: Float32s
    slope_A: Float32s
    begun_DH: Float32s


class Part(NamedTuple):
    """What a step is taken of: the first rows of `Scratch`, some experts, and their columns of the first layer.

    Columns J are the outputs of the linear experts, then the hidden units of the others, expert by expert.
    """

    rows: int
    first: int  # experts [first, last)
    last: int
    begin: int  # columns [begin, end)
    end: int
    plain: int  # inputs before this one are seen by all experts; from here on they are the newest labels
    fullness: np.float32  # rows of as many as a sub-batch has
    regression: bool
