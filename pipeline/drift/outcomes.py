"""What is watched of labels and scores: error, labels, predictions, and how well these are calibrated.

The error of a row is 0 or 1, and the *doubt* in its score what the error was expected to be: 1 - the probability of
the class that it names. Calibration is watched in four bins of that probability (of class 1, for a binary task). For a
regression all is in units of the label's deviation, and the bins are those of the score.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from consumers.compiled import njit_cached, njit_inlined
from consumers.record import Float32s
from pipeline.drift.inputs import standard
from pipeline.drift.means import Means
from pipeline.drift.windows import BLOCK_ROWS, OTHER, SCORE, SHARE, UNIT, Windows
from pipeline.quality import KINDS, Arrays, Float64s, fill

_BINARY, _MULTICLASS, _REGRESSION = range(len(KINDS))
_CLASSES_MAX = 64  # classes are counted modulo this
_BINS = 4
_CLIP = 4.0
_NOTABLE = 0.4  # of what is critical: an error that moves less than that has not moved at all

ERROR, LABEL, PREDICTION, CALIBRATION = range(4)

ERRORS = 3
"""The first statistics: the error, how much more it is than was expected, and that of the reference model."""


class Places(NamedTuple):
    """Where each kind of statistic begins."""

    error: int
    doubt: int
    reference: int
    label: int  # one for each class; one of a binary task; of a regression the mean and the mean square
    said: int  # as many
    gap: int  # one for each bin of the score

    @classmethod
    def of(cls, classes: int) -> Places:
        return cls(0, 1, 2, ERRORS, ERRORS + classes, ERRORS + 2 * classes)


class Outcome(NamedTuple):
    """What the compiled loop works on."""

    kind: int
    classes: int
    at: Places
    centre_scale_2: Float64s  # of labels, for a regression: UNIT over the deviation
    means: Windows


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
        self.means = Means(kind_D, of_D, self.family_D, p, notable=_NOTABLE, trend=True)
        self._labels_R = np.zeros(0, np.float32)
        self._settled = np.zeros(1, np.int64)  # rows
        at = Places.of(self._classes)
        self.arrays = Outcome(self._kind, self._classes, at, np.array([0.0, UNIT]), self.means.arrays)

    @property
    def settled(self) -> bool:
        """Whether the error of the reference counts."""
        return bool(self._settled[0] >= self._settle_rows)

    def keep(self, labels_N: Float32s) -> None:
        """Takes the next rows of a block before it has settled."""
        if self._kind == _REGRESSION:
            self._labels_R = np.concatenate([self._labels_R, labels_N])

    def settle(self) -> None:
        """Counts a block towards that."""
        self._settled[0] += BLOCK_ROWS
        if self._kind == _REGRESSION and self.settled:
            centre, scale, _ = standard(self._labels_R, 1)
            self.arrays.centre_scale_2[:] = centre, UNIT * scale
            self._labels_R = np.zeros(0, np.float32)

    def meaning(self, statistic: int) -> str:
        """What a statistic is the mean of, in words."""
        family = int(self.family_D[statistic])
        if family == ERROR:
            return ("mean error", "mean error above what the scores expect", "mean error of the reference")[statistic]
        if family == CALIBRATION:
            return f"mean gap between label and score in bin {statistic - self.arrays.at.gap} of {_BINS}"
        place = (statistic - self.arrays.at.label) % self._classes
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
        own: Arrays = {"labels": self._labels_R, "settled": self._settled, "centre_scale": self.arrays.centre_scale_2}
        return {"outcomes": own, "outcome_means": self.means.state()}

    def restore(self, parts: Mapping[str, Mapping[str, npt.NDArray[Any]]]) -> None:
        own = parts.get("outcomes", {})
        fill({"settled": self._settled, "centre_scale": self.arrays.centre_scale_2}, own)
        self._labels_R = np.zeros(len(own["labels"]), np.float32)
        fill({"labels": self._labels_R}, own)
        self.means.restore(parts.get("outcome_means", {}))


@njit_cached
def count_outcomes(scores_RS: Float32s, labels_R: Float32s, start: int, stop: int, outcome: Outcome) -> None:
    """Adds rows `[start, stop)` to the block's sums. A row without a finite score counts for its label alone."""
    if outcome.kind == _BINARY:
        _count_binary(scores_RS, labels_R, start, stop, outcome)
        return
    for row in range(start, stop):
        best, finite = 0, True
        for k in range(scores_RS.shape[1]):
            finite = finite and np.isfinite(scores_RS[row, k])
            best = k if scores_RS[row, k] > scores_RS[row, best] else best
        score, label = np.float64(scores_RS[row, best]), np.float64(labels_R[row])
        if outcome.kind == _REGRESSION:
            _count_value(score, label, finite, outcome)
        else:
            _count_class(best, score, label, finite, outcome)


@njit_cached
def _count_binary(scores_RS: Float32s, labels_R: Float32s, start: int, stop: int, outcome: Outcome) -> None:
    at, sums_D = outcome.at, outcome.means.sums_D
    labels = wrongs = doubts = saids = 0
    for row in range(start, stop):
        label = int(labels_R[row] == 1)
        labels += label
        if not np.isfinite(scores_RS[row, 0]):
            continue
        score = _probability(np.float64(scores_RS[row, 0]))
        said, wrong = int(score * UNIT + 0.5), label ^ int(score > 0.5)
        wrongs += wrong
        doubts += min(said, UNIT - said)
        saids += said
        sums_D[at.gap + min(int(score * _BINS), _BINS - 1)] += UNIT * label - said
    sums_D[at.error] += UNIT * wrongs
    sums_D[at.doubt] += UNIT * wrongs - doubts
    sums_D[at.label] += UNIT * labels
    sums_D[at.said] += saids


@njit_inlined
def _count_class(best: int, score: float, label: float, finite: bool, outcome: Outcome) -> None:
    at, sums_D = outcome.at, outcome.means.sums_D
    sums_D[at.label + int(label) % outcome.classes] += UNIT
    if finite:
        score = _probability(score)
        doubt, wrong = int((1 - score) * UNIT + 0.5), UNIT * int(best != label)
        sums_D[at.error] += wrong
        sums_D[at.doubt] += wrong - doubt
        sums_D[at.said + best % outcome.classes] += UNIT
        sums_D[at.gap + min(int(score * _BINS), _BINS - 1)] += doubt - wrong


@njit_inlined
def _count_value(score: float, label: float, finite: bool, outcome: Outcome) -> None:
    at, sums_D = outcome.at, outcome.means.sums_D
    found = _in_deviations(label, outcome)
    sums_D[at.label] += found
    sums_D[at.label + 1] += (found * found) // UNIT
    if finite:
        said = _in_deviations(score, outcome)
        sums_D[at.said] += said
        sums_D[at.said + 1] += (said * said) // UNIT
        sums_D[at.error] += abs(found - said)
        sums_D[at.gap + 2 * int(said > 0) + int(abs(said) > 0.67 * UNIT)] += found - said


@njit_inlined
def _in_deviations(value: float, outcome: Outcome) -> int:
    """In UNITs of the labels' deviation."""
    bound = _CLIP * UNIT
    scaled = (value - outcome.centre_scale_2[0]) * outcome.centre_scale_2[1]
    return int(min(max(scaled, -bound), bound))


@njit_inlined
def _probability(score: float) -> float:
    """One that is none shall find a bin, too."""
    return min(max(score, 0.0), 1.0)
