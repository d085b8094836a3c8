"""ADWIN on the error of the prequential score: has it risen."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from consumers.batch import Batch
from consumers.compiled import njit_cached
from consumers.record import Float32s, Int64s
from pipeline.drift import Shift
from pipeline.drift.adwin import Adwin
from pipeline.quality import KINDS, Arrays, Float64s, fill

_BINARY, _MULTICLASS, _REGRESSION = range(len(KINDS))

_BOUND = 10.0  # regression: an error of this many times the usual one counts as 1


class Concept:
    """ADWIN on the error, which is 0 or 1 for classes.

    For a regression it is |score - label| over a bound, clipped at 1; the bound is 10 times the mean error in ADWIN's
    window or the median one of the batch (the mean if that is 0), whichever is greater. When the bound moves, the
    window is rescaled with it, so that a change of the bound alone is never taken for a change of the error. So a
    regression's rises depend on how the stream is cut into batches.
    """

    def __init__(self, kind: str, delta: float) -> None:
        self._kind = KINDS.index(kind)
        self._adwin = Adwin(delta)
        self._bound = np.full(1, 1.0 if kind != "regression" else 0.0)

    @property
    def mean(self) -> float:
        """Mean error in the window, in the label's unit for a regression."""
        return self._adwin.mean * float(self._bound[0])

    @property
    def width(self) -> int:
        """Rows in the window."""
        return self._adwin.width

    def deviation(self, mean: float) -> float:
        """Standard deviation of an error of this mean: of a binomial one, or of half a normal one for a regression."""
        if self._kind == _REGRESSION:
            return mean * math.sqrt(math.pi / 2 - 1)
        return math.sqrt(mean * (1 - mean))

    def update(self, batch: Batch) -> tuple[Int64s, list[Shift]]:
        """Which rows of a batch have weight [R], and the rises of the error, at a number of them each."""
        real_N, scored_N = np.empty((2, batch.rows), np.int64)
        errors_N = np.empty(batch.rows)
        real, scored = _errors(self._kind, batch.scores_BS, batch.labels_B, batch.weights_B, real_N, scored_N, errors_N)
        rises = self._adwin.update(self._scaled(errors_N[:scored]))
        bound = float(self._bound[0])
        return real_N[:real], [
            rise._replace(row=int(scored_N[rise.row]), before=rise.before * bound, after=rise.after * bound)
            for rise in rises
        ]

    def state(self) -> dict[str, Arrays]:
        return {"adwin": self._adwin.state(), "concept": {"bound": self._bound}}

    def restore(self, parts: Mapping[str, Mapping[str, npt.NDArray[Any]]]) -> None:
        self._adwin.restore(parts.get("adwin", {}))
        fill({"bound": self._bound}, parts.get("concept", {}))

    def _scaled(self, errors_N: Float64s) -> Float64s:
        """Errors in [0, 1]: as the bound has them, which moves with a regression's."""
        if self._kind != _REGRESSION or not len(errors_N):
            return errors_N
        old, middle = float(self._bound[0]), len(errors_N) // 2
        usual = float(np.partition(errors_N, middle)[middle]) or float(errors_N.mean())
        new = _BOUND * max(self._adwin.mean * old, usual)
        if new == 0:
            return errors_N  # all are 0
        self._adwin.rescale(old / new)
        self._bound[0] = new
        return np.minimum(errors_N / new, 1.0)


@njit_cached
def _errors(
    kind: int,
    scores_BS: Float32s,
    labels_B: Float32s,
    weights_B: Float32s,
    real_N: Int64s,
    scored_N: Int64s,
    errors_N: Float64s,
) -> tuple[int, int]:
    """Which of the first N rows have weight, which of these a score, and its error; how many there are of both."""
    real = scored = 0
    for row in range(len(real_N)):
        if not weights_B[row] > 0:
            continue
        real_N[real] = row
        real += 1
        best, finite = 0, True
        for k in range(scores_BS.shape[1]):
            finite = finite and np.isfinite(scores_BS[row, k])
            best = k if scores_BS[row, k] > scores_BS[row, best] else best
        if not finite:
            continue
        score, label = np.float64(scores_BS[row, 0]), np.float64(labels_B[row])
        if kind == _REGRESSION:
            error = abs(score - label)
        elif kind == _BINARY:
            error = np.float64((score > 0.5) != (label == 1))
        else:
            error = np.float64(best != label)
        scored_N[scored], errors_N[scored] = real - 1, error
        scored += 1
    return real, scored
