"""The compiled half of `inputs`: rows of a block to standard scores, and these to sums of whole numbers."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from consumers.compiled import njit_cached, njit_reordered
from consumers.record import Float32s, Int64s
from pipeline.drift.windows import BLOCK_ROWS, ROOT, UNIT, Windows, close_block

PAIRED_MAX = 32
"""Numeric columns whose products are watched, the first ones: 496 pairs."""

OCTILES = 7
BINS = 64
CLIP = 4.0

PAIRED_CLIP = 2.0
"""The same of scores that are multiplied: a product of two 4s is as much as 16 rows of 1, and far from normal."""

ROWS, DOUBLED, PENDING = range(3)
"""Slots of `counters`: rows of closed blocks; how often settling was doubled; rows since the restart, until settled."""


class Layout(NamedTuple):
    """Where each kind of statistic begins. One for each numeric column, unless something else is said."""

    mean: int
    square: int
    above: int  # one for each octile and column
    missing: int
    bins: int  # BINS for each categorical column
    null: int  # one for each categorical column
    pairs: int  # one for each pair of columns i > j, at i (i - 1) / 2 + j
    all: int

    @classmethod
    def of(cls, numeric: int, categorical: int) -> Layout:
        paired = min(numeric, PAIRED_MAX)
        counts = (numeric, numeric, OCTILES * numeric, numeric, BINS * categorical, categorical)
        places = np.cumsum([0, *counts, paired * (paired - 1) // 2])
        return cls(*places.tolist())


class Columns(NamedTuple):
    """What is known of F numeric columns, and what is watched of all."""

    at: Layout
    centre_F: Float32s
    scale_F: Float32s
    edges_EF: Float32s  # octiles, in ROOTths of a deviation
    counters: Int64s
    means: Windows
    standard_FB: Float32s  # scratch: standard scores of a block's rows, NaN where missing
    rounded_FB: Float32s  # scratch: the same clipped, in ROOTths, 0 where missing; then a row of zeros

    @classmethod
    def empty(cls, numeric: int, categorical: int, means: Windows) -> Columns:
        return cls(
            at=Layout.of(numeric, categorical),
            centre_F=np.zeros(numeric, np.float32),
            scale_F=np.zeros(numeric, np.float32),
            edges_EF=np.zeros((OCTILES, numeric), np.float32),
            counters=np.zeros(3, np.int64),
            means=means,
            standard_FB=np.zeros((numeric, BLOCK_ROWS), np.float32),
            rounded_FB=np.zeros((numeric + 1, BLOCK_ROWS), np.float32),
        )


@njit_cached
def count_columns(features_RC: Float32s, start: int, stop: int, columns: Columns) -> None:
    """Adds rows `[start, stop)` to the block's sums. A missing number counts as an average one but in its own share."""
    at, sums_D, rows, numeric = columns.at, columns.means.sums_D, stop - start, len(columns.centre_F)
    _standardise(features_RC, start, stop, columns.centre_F, columns.scale_F, columns.standard_FB)
    _round(columns.standard_FB, rows, columns.rounded_FB, sums_D[at.missing :])
    _add_moments(columns.rounded_FB, rows, numeric, sums_D[at.mean :], sums_D[at.square :])
    _add_shares(columns.rounded_FB, rows, columns.edges_EF, sums_D[at.above :])
    paired = min(numeric, PAIRED_MAX)
    _clip(columns.rounded_FB, rows, paired)
    _add_products(columns.rounded_FB, rows, paired, sums_D[at.pairs :])
    unit = np.float32(UNIT)
    for row in range(start, stop):
        for k in range(features_RC.shape[1] - numeric):
            bucket = int(features_RC[row, numeric + k])
            sums_D[at.bins + k * BINS + (bucket & (BINS - 1))] += unit
            sums_D[at.null + k] += unit if bucket == 0 else np.float32(0)


@njit_cached
def close_columns(columns: Columns) -> float:
    """Ends the block; as `Means.close`."""
    columns.counters[ROWS] += BLOCK_ROWS
    return close_block(columns.means, False)


@njit_cached
def _standardise(
    features_RC: Float32s, start: int, stop: int, centre_F: Float32s, scale_F: Float32s, standard_FB: Float32s
) -> None:
    for row in range(start, stop):
        for f in range(len(centre_F)):
            standard_FB[f, row - start] = (features_RC[row, f] - centre_F[f]) * scale_F[f]


@njit_reordered
def _round(standard_FB: Float32s, rows: int, rounded_FB: Float32s, missing_F: Float32s) -> None:
    """Fills `rounded_FB`, and adds how many are missing."""
    bound = np.float32(CLIP)
    for f in range(len(standard_FB)):
        missing = np.float32(0)
        for row in range(rows):
            score = standard_FB[f, row]
            absent = np.isnan(score)
            rounded = np.floor(min(max(score, -bound), bound) * np.float32(ROOT) + np.float32(0.5))
            rounded_FB[f, row] = np.float32(0) if absent else rounded
            missing += np.float32(1) if absent else np.float32(0)
        missing_F[f] += missing * np.float32(UNIT)


@njit_reordered
def _add_moments(rounded_FB: Float32s, rows: int, numeric: int, mean_F: Float32s, square_F: Float32s) -> None:
    """Adds the scores and their squares."""
    for f in range(numeric):
        total, square = np.float32(0), np.float32(0)
        for row in range(rows):
            total += rounded_FB[f, row]
            square += rounded_FB[f, row] * rounded_FB[f, row]
        mean_F[f] += total * np.float32(ROOT)
        square_F[f] += square


@njit_reordered
def _add_shares(rounded_FB: Float32s, rows: int, edges_EF: Float32s, above_EF: Float32s) -> None:
    """Adds how many lie above each octile."""
    octiles, numeric = edges_EF.shape
    for f in range(numeric):
        for e in range(octiles):
            above, edge = np.float32(0), edges_EF[e, f]
            for row in range(rows):
                above += np.float32(1) if rounded_FB[f, row] > edge else np.float32(0)
            above_EF[e * numeric + f] += above * np.float32(UNIT)


@njit_reordered
def _clip(rounded_FB: Float32s, rows: int, paired: int) -> None:
    """Pulls in the scores that are to be multiplied."""
    bound = np.float32(PAIRED_CLIP * ROOT)
    for f in range(paired):
        for row in range(rows):
            rounded_FB[f, row] = min(max(rounded_FB[f, row], -bound), bound)


@njit_reordered
def _add_products(rounded_FB: Float32s, rows: int, paired: int, sums_P: Float32s) -> None:
    """Adds the products of pairs, of two columns and two others at a time: so each is read half as often.

    In the last of an odd number the other one is the row of zeros or a column that is not paired: its sums are dropped.
    """
    for i in range(0, paired, 2):
        upper_B, lower_B = rounded_FB[i], rounded_FB[i + 1]
        upper_P, lower_P = sums_P[i * (i - 1) // 2 :], sums_P[(i + 1) * i // 2 :]
        for j in range(0, i + 1, 2):
            left_B, right_B = rounded_FB[j], rounded_FB[j + 1]
            upper_left = upper_right = lower_left = lower_right = np.float32(0)
            for row in range(rows):
                upper_left += upper_B[row] * left_B[row]
                upper_right += upper_B[row] * right_B[row]
                lower_left += lower_B[row] * left_B[row]
                lower_right += lower_B[row] * right_B[row]
            if j < i:
                upper_P[j] += upper_left
                upper_P[j + 1] += upper_right
            if i + 1 < paired:
                lower_P[j] += lower_left
                if j < i:
                    lower_P[j + 1] += lower_right
