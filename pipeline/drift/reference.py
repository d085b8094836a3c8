"""A small model that learns while the rest settles, and then no more: if it is wrong more often, something has changed.

A learner that adapts within some hundred rows hides a new concept behind an error that hardly rises. This one cannot: a
softmax regression (binary: logistic) on the standard scores of the columns and 64 bins of each category.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from consumers.compiled import njit_cached
from consumers.record import Float32s
from pipeline.drift.inputs import Inputs
from pipeline.quality import Arrays, Float64s, fill

WEIGHTS_MAX = 2**14
"""Beyond so many weights there is no such model."""

_BINS = 64
_STEP = 0.3  # Adagrad (Duchi et al. 2011)


class Reference:
    """The model; `classes` is 0 where there is none."""

    def __init__(self, kind: str, classes: int, numeric: int, categorical: int) -> None:
        width = numeric + 1 + categorical * _BINS
        outputs = {"binary": 1, "multiclass": classes, "regression": 0}[kind]
        self._outputs = outputs if outputs * width <= WEIGHTS_MAX else 0
        self._weights_KW = np.zeros((self._outputs, width))
        self._squares_KW = np.zeros((self._outputs, width))
        self._logits_K = np.zeros(self._outputs)  # scratch, like the next
        self._scores_F = np.zeros(numeric)

    def take(self, features_NC: Float32s, labels_N: Float32s, inputs: Inputs, *, learn: bool) -> int:
        """How many rows it gets wrong; and it learns from them, or not."""
        if not self._outputs or not inputs.settled:
            return 0
        model = self._weights_KW, self._squares_KW, self._logits_K, self._scores_F
        return _pass(features_NC, labels_N, inputs.centre_F, inputs.scale_F, *model, learn)

    def restart(self) -> None:
        """Forgets what it learned."""
        self._weights_KW[:] = 0
        self._squares_KW[:] = 0

    def state(self) -> dict[str, Arrays]:
        return {"reference": {"weights": self._weights_KW, "squares": self._squares_KW}}

    def restore(self, parts: Mapping[str, Mapping[str, npt.NDArray[Any]]]) -> None:
        fill(self.state()["reference"], parts.get("reference", {}))


@njit_cached
def _pass(
    features_NC: Float32s,
    labels_N: Float32s,
    centre_F: Float32s,
    scale_F: Float32s,
    weights_KW: Float64s,
    squares_KW: Float64s,
    logits_K: Float64s,
    scores_F: Float64s,
    learn: bool,
) -> int:
    numeric, outputs, wrong = len(centre_F), len(logits_K), 0
    for row in range(len(labels_N)):
        for f in range(numeric):
            score = np.float64((features_NC[row, f] - centre_F[f]) * scale_F[f])
            scores_F[f] = 0.0 if np.isnan(score) else min(max(score, -3.0), 3.0)
        best = 0
        for k in range(outputs):
            logit = weights_KW[k, numeric]
            for f in range(numeric):
                logit += weights_KW[k, f] * scores_F[f]
            for column in range(numeric, features_NC.shape[1]):
                place = numeric + 1 + (column - numeric) * _BINS + (int(features_NC[row, column]) & (_BINS - 1))
                logit += weights_KW[k, place]
            logits_K[k] = logit
            best = k if logit > logits_K[best] else best
        label = int(labels_N[row])
        wrong += int((logits_K[0] >= 0) != (label == 1)) if outputs == 1 else int(best != label)
        if not learn:
            continue
        whole, top = 0.0, logits_K[best]
        for k in range(outputs):
            logits_K[k] = 1 / (1 + np.exp(-logits_K[k])) if outputs == 1 else np.exp(logits_K[k] - top)
            whole += logits_K[k]
        for k in range(outputs):
            p = logits_K[k] if outputs == 1 else logits_K[k] / whole
            slope = p - (1.0 if label == (1 if outputs == 1 else k) else 0.0)
            for f in range(numeric + 1):
                gradient = slope * (1.0 if f == numeric else scores_F[f])
                squares_KW[k, f] += gradient * gradient
                weights_KW[k, f] -= _STEP * gradient / np.sqrt(squares_KW[k, f] + 1.0)
            for column in range(numeric, features_NC.shape[1]):
                place = numeric + 1 + (column - numeric) * _BINS + (int(features_NC[row, column]) & (_BINS - 1))
                squares_KW[k, place] += slope * slope
                weights_KW[k, place] -= _STEP * slope / np.sqrt(squares_KW[k, place] + 1.0)
    return wrong
