"""A small model that learns while the rest settles, and then no more: if it is wrong more often, something has changed.

A learner that adapts within some hundred rows hides a new concept behind an error that hardly rises. This one cannot: a
softmax regression (binary: logistic) on the standard scores of the columns and 64 bins of each category.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from consumers.compiled import njit_cached, njit_inlined
from consumers.record import Float32s, Int64s
from pipeline.drift.columns import BINS
from pipeline.drift.windows import BLOCK_ROWS
from pipeline.quality import Arrays, Float64s, fill

WEIGHTS_MAX = 2**14
"""Beyond so many weights there is no such model."""

_CLIP = 3.0
_STEP = 0.3  # Adagrad (Duchi et al. 2011)


class Model(NamedTuple):
    """K outputs of W weights: of each numeric column, a constant, and BINS of each categorical column."""

    weights_KW: Float64s
    squares_KW: Float64s  # Adagrad's
    logit_K: Float64s  # scratch of one row
    logit_B: Float64s  # scratch of a block's rows
    top_B: Float64s  # scratch: the largest logit yet, and whose that is
    best_B: Int64s


class Reference:
    """The model; it has no outputs where there is none."""

    def __init__(self, kind: str, classes: int, numeric: int, categorical: int) -> None:
        width = numeric + 1 + categorical * BINS
        outputs = {"binary": 1, "multiclass": classes, "regression": 0}[kind]
        outputs = outputs if outputs * width <= WEIGHTS_MAX else 0
        weights_KW, squares_KW = np.zeros((2, outputs, width))
        rows = np.zeros(BLOCK_ROWS), np.zeros(BLOCK_ROWS), np.zeros(BLOCK_ROWS, np.int64)
        self.arrays = Model(weights_KW, squares_KW, np.zeros(outputs), *rows)

    def restart(self) -> None:
        """Forgets what it learned."""
        for array in self.state()["reference"].values():
            array[:] = 0

    def state(self) -> dict[str, Arrays]:
        return {"reference": {"weights": self.arrays.weights_KW, "squares": self.arrays.squares_KW}}

    def restore(self, parts: Mapping[str, Mapping[str, npt.NDArray[Any]]]) -> None:
        fill(self.state()["reference"], parts.get("reference", {}))


@njit_cached
def count_wrong(
    features_RC: Float32s, labels_R: Float32s, start: int, stop: int, standard_FB: Float32s, model: Model
) -> int:
    """How many of the rows `[start, stop)` it gets wrong; `standard_FB` are their standard scores."""
    outputs, wrong = len(model.weights_KW), 0
    for k in range(outputs):
        _logits(features_RC, start, stop, standard_FB, model.weights_KW[k], model.logit_B)
        for b in range(stop - start):
            if k == 0 or model.logit_B[b] > model.top_B[b]:
                model.top_B[b], model.best_B[b] = model.logit_B[b], k
    for b in range(stop - start if outputs else 0):
        label = int(labels_R[start + b])
        wrong += int((model.top_B[b] >= 0) != (label == 1)) if outputs == 1 else int(model.best_B[b] != label)
    return wrong


@njit_cached
def learn(
    features_RC: Float32s, labels_R: Float32s, start: int, stop: int, standard_FB: Float32s, model: Model
) -> None:
    """One step for each of the rows `[start, stop)`."""
    logit_K, outputs = model.logit_K, len(model.weights_KW)
    for row in range(start, stop if outputs else start):
        top = -np.inf
        for k in range(outputs):
            b = row - start
            _logits(features_RC, row, row + 1, standard_FB[:, b:], model.weights_KW[k], logit_K[k:])
            top = max(top, logit_K[k])
        whole = 0.0
        for k in range(outputs):
            logit_K[k] = 1 / (1 + np.exp(-logit_K[k])) if outputs == 1 else np.exp(logit_K[k] - top)
            whole += logit_K[k]
        for k in range(outputs):
            p = logit_K[k] if outputs == 1 else logit_K[k] / whole
            slope = p - (1.0 if int(labels_R[row]) == (1 if outputs == 1 else k) else 0.0)
            _step(features_RC, row, standard_FB[:, row - start], slope, model.weights_KW[k], model.squares_KW[k])


@njit_cached
def _logits(
    features_RC: Float32s, start: int, stop: int, standard_FB: Float32s, weights_W: Float64s, logit_B: Float64s
) -> None:
    """Of all rows at once, which takes several at a time, and adds up each one's in the same order as of one alone."""
    numeric, rows = len(standard_FB), stop - start
    for b in range(rows):
        logit_B[b] = weights_W[numeric]
    for f in range(numeric):
        weight = weights_W[f]
        for b in range(rows):
            logit_B[b] += weight * _clipped(standard_FB[f, b])
    for b in range(rows):
        for column in range(numeric, features_RC.shape[1]):
            logit_B[b] += weights_W[_place(features_RC, start + b, column, numeric)]


@njit_cached
def _step(
    features_RC: Float32s, row: int, standard_F: Float32s, slope: float, weights_W: Float64s, squares_W: Float64s
) -> None:
    numeric = len(standard_F)
    for f in range(numeric + 1):
        gradient = slope * (1.0 if f == numeric else _clipped(standard_F[f]))
        squares_W[f] += gradient * gradient
        weights_W[f] -= _STEP * gradient / np.sqrt(squares_W[f] + 1.0)
    for column in range(numeric, features_RC.shape[1]):
        place = _place(features_RC, row, column, numeric)
        squares_W[place] += slope * slope
        weights_W[place] -= _STEP * slope / np.sqrt(squares_W[place] + 1.0)


@njit_inlined
def _clipped(standard: np.float32) -> float:
    score = np.float64(standard)
    return 0.0 if np.isnan(score) else min(max(score, -_CLIP), _CLIP)


@njit_inlined
def _place(features_RC: Float32s, row: int, column: int, numeric: int) -> int:
    """Of the weight of a category."""
    return numeric + 1 + (column - numeric) * BINS + (int(features_RC[row, column]) & (BINS - 1))
