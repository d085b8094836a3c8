"""What is watched of labels and scores: error, labels, predictions, and how well these are calibrated.

The error of a row is 0 or 1, and the *doubt* in its score what the error was expected to be: 1 - the probability of
the class that it names. Calibration is watched in four bins of that probability (of class 1, for a binary task). For a
regression all is in units of the label's deviation, and the bins are those of the score.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from consumers.compiled import njit_cached
from consumers.record import Float32s
from pipeline.drift.inputs import standard
from pipeline.drift.means import BLOCK_ROWS, OTHER, SCORE, SHARE, UNIT, Means
from pipeline.quality import KINDS, Arrays, fill

_BINARY, _MULTICLASS, _REGRESSION = range(len(KINDS))
_CLASSES_MAX = 64  # classes are counted modulo this
_BINS = 4
_CLIP = 4.0

ERROR, LABEL, PREDICTION, CALIBRATION = range(4)

ERRORS = 3
"""The first statistics: the error, how much more it is than was expected, and that of the reference model."""


class Outcomes:
    """Means of what came out, once `settle_rows` rows after the start or a restart have gone by."""

    def __init__(self, kind: str, classes: int, *, settle_rows: int, p: float) -> None:
        self._kind, self._settle_rows = KINDS.index(kind), settle_rows
        self._classes = {_BINARY: 1, _MULTICLASS: min(classes, _CLASSES_MAX), _REGRESSION: 2}[self._kind]
        counts = [ERRORS, self._classes, self._classes, _BINS]
        self.family_D = np.repeat([ERROR, LABEL, PREDICTION, CALIBRATION], counts)
        label, said = (SHARE, SHARE if self._kind == _MULTICLASS else OTHER)
        kind_D = np.repeat([OTHER, label, said, OTHER], counts)
        of_D = np.zeros(len(kind_D), np.int64)
        if self._kind == _REGRESSION:
            kind_D[ERRORS : ERRORS + 4], of_D[[ERRORS, ERRORS + 2]] = [SCORE, OTHER] * 2, [ERRORS + 1, ERRORS + 3]
        else:
            kind_D[[0, 2]] = SHARE
        self.means = Means(kind_D, of_D, self.family_D, p, trend=True)
        self._labels_R = np.zeros(0, np.float32)
        self._settled = np.zeros(1, np.int64)  # rows
        self._centre_scale = np.array([0.0, UNIT])

    @property
    def settled(self) -> bool:
        """Whether the error of the reference counts."""
        return bool(self._settled[0] >= self._settle_rows)

    def take(self, scores_NS: Float32s, labels_N: Float32s, reference_wrong: int) -> None:
        """Takes the next rows of a block, of which the reference has got so many wrong."""
        if self.settled:
            self.means.sums_D[ERRORS - 1] += UNIT * reference_wrong
            centre, scale = self._centre_scale.tolist()
            _count(self._kind, self._classes, scores_NS, labels_N, centre, scale, self.means.sums_D)
        elif self._kind == _REGRESSION:
            self._labels_R = np.concatenate([self._labels_R, labels_N])

    def close(self) -> float:
        """Tests after a block, as `Means.close` does."""
        if self.settled:
            return self.means.close()
        self._settled[0] += BLOCK_ROWS
        if self._kind == _REGRESSION and self.settled:
            centre, scale, _ = standard(self._labels_R, 1)
            self._centre_scale[:] = centre, UNIT * scale
            self._labels_R = np.zeros(0, np.float32)
        return 0.0

    def meaning(self, statistic: int) -> str:
        """What a statistic is the mean of, in words."""
        family = int(self.family_D[statistic])
        if family == ERROR:
            return ("mean error", "mean error above what the scores expect", "mean error of the reference")[statistic]
        if family == CALIBRATION:
            return f"mean gap between label and score in bin {statistic - ERRORS - 2 * self._classes} of {_BINS}"
        place = (statistic - ERRORS) % self._classes
        what = "label" if family == LABEL else "prediction"
        if self._kind == _REGRESSION:
            return f"mean {'square of the ' if place else ''}{what}, in standard deviations,"
        if self._kind == _BINARY:
            return "share of label 1" if family == LABEL else "mean score"
        return f"share of {what} {place}"

    def restart(self) -> None:
        """Takes what comes next as what is usual."""
        self.means.restart()
        self._settled[0] = 0
        self._labels_R = np.zeros(0, np.float32)

    def state(self) -> dict[str, Arrays]:
        own: Arrays = {"labels": self._labels_R, "settled": self._settled, "centre_scale": self._centre_scale}
        return {"outcomes": own, "outcome_means": self.means.state()}

    def restore(self, parts: Mapping[str, Mapping[str, npt.NDArray[Any]]]) -> None:
        own = parts.get("outcomes", {})
        fill({"settled": self._settled, "centre_scale": self._centre_scale}, own)
        self._labels_R = np.zeros(len(own["labels"]), np.float32)
        fill({"labels": self._labels_R}, own)
        self.means.restore(parts.get("outcome_means", {}))


@njit_cached
def _count(
    kind: int, classes: int, scores_NS: Float32s, labels_N: Float32s, centre: float, scale: float, sums_D: Float32s
) -> None:
    """Adds rows to a block's sums. A row without a finite score counts for its label alone."""
    label_at, said_at, bin_at = ERRORS, ERRORS + classes, ERRORS + 2 * classes
    for row in range(len(labels_N)):
        best, finite = 0, True
        for k in range(scores_NS.shape[1]):
            finite = finite and np.isfinite(scores_NS[row, k])
            best = k if scores_NS[row, k] > scores_NS[row, best] else best
        score, label = np.float64(scores_NS[row, best]), np.float64(labels_N[row])
        if kind == _REGRESSION:
            bound = _CLIP * UNIT
            found = int(min(max((label - centre) * scale, -bound), bound))
            sums_D[label_at] += found
            sums_D[label_at + 1] += (found * found) // UNIT
            if finite:
                said = int(min(max((score - centre) * scale, -bound), bound))
                sums_D[said_at] += said
                sums_D[said_at + 1] += (said * said) // UNIT
                sums_D[0] += abs(found - said)
                sums_D[bin_at + 2 * int(said > 0) + int(abs(said) > 0.67 * UNIT)] += found - said
            continue
        score = np.float64(min(max(score, 0.0), 1.0))  # one that is no probability shall find a bin, too
        if kind == _BINARY:
            sums_D[label_at] += UNIT * int(label == 1)
            if finite:
                said, wrong = int(score * UNIT + 0.5), UNIT * int((score >= 0.5) != (label == 1))
                sums_D[0] += wrong
                sums_D[1] += wrong - min(said, UNIT - said)
                sums_D[said_at] += said
                sums_D[bin_at + min(int(score * _BINS), _BINS - 1)] += UNIT * int(label == 1) - said
        else:
            sums_D[label_at + int(label) % classes] += UNIT
            if finite:
                doubt, wrong = int((1 - score) * UNIT + 0.5), UNIT * int(best != label)
                sums_D[0] += wrong
                sums_D[1] += wrong - doubt
                sums_D[said_at + best % classes] += UNIT
                sums_D[bin_at + min(int(score * _BINS), _BINS - 1)] += doubt - wrong
