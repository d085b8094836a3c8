"""How good scores were: of classes log-loss, AUC, accuracy, kappa and calibration, of values MAE, RMSE and R²."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from consumers.compiled import njit_cached, njit_inlined
from consumers.errors import ConfigError, SnapshotError
from consumers.record import Float32s, Int64s

Float64s: TypeAlias = npt.NDArray[np.float64]
Arrays: TypeAlias = dict[str, npt.NDArray[Any]]

KINDS = ("binary", "multiclass", "regression")
_BINARY, _MULTICLASS, _REGRESSION = range(3)

AUC_BINS = 4096
AUC_CLASSES_MAX = 256
"""Classes that have a histogram: each row is counted in all of them, and each takes 64 KiB of every snapshot."""

LOGLOSS_CLIP = 1e-7
"""Probabilities are clipped to [1e-7, 1 - 1e-7] in the log-loss (not in AUC or accuracy)."""

CALIBRATION_BINS = 15

_HALF = AUC_BINS // 2
_OCTAVE_BITS = 7  # of the mantissa: 128 bins between a probability and its double
_FIRST_BIN = (126 << _OCTAVE_BITS) - _HALF  # so that the last bin below the middle ends at 0.5

_WEIGHT, _LOGLOSS, _CORRECT, _UNCHANGED, _LAST = range(5)  # slots of `sums_5`, binary and multiclass
_ABSOLUTE, _SQUARED, _MEAN, _M2 = 1, 2, 3, 4  # slots of `sums_5`, regression
_LABELS, _CHOICES = 0, 1  # rows of `marginals_2K`
_CONFIDENCE, _HITS = 1, 2  # rows of `calibration_3D`, after _WEIGHT
_ROWS, _UNMEASURED = 0, 1  # slots of `counts`


class Totals(NamedTuple):
    """What the metrics are made of, weighted. K classes, two of them if binary, and none of a regression.

    The classifier that says the class of the row before is right in rows of weight `sums_5[_UNCHANGED]`.
    """

    sums_5: Float64s
    histogram_K2H: Float64s  # of scores of the first classes, apart by whether the row is of the class
    marginals_2K: Float64s  # rows of each class, and rows that the score gives to it
    calibration_3D: Float64s  # by confidence: rows, their confidence, and those of them that were right

    @classmethod
    def empty(cls, kind: int, width: int) -> Totals:
        """Of no rows."""
        sums_5 = np.zeros(5)
        if kind == _REGRESSION:
            return cls(sums_5, np.zeros((0, 2, AUC_BINS)), np.zeros((2, 0)), np.zeros((3, 0)))
        sums_5[_LAST] = -1  # no class
        histogram_K2H = np.zeros((min(width, AUC_CLASSES_MAX), 2, AUC_BINS))
        return cls(sums_5, histogram_K2H, np.zeros((2, max(width, 2))), np.zeros((3, CALIBRATION_BINS)))


class Quality:
    """Weighted metrics of one stream of scores, cumulative and over the last `window` rows.

    AUC comes from score histograms per class with a fixed 4,096 bins. So that rare classes keep their
    resolution there are 128 bins for each doubling of p from 2^-17 to 0.5, and likewise of 1 - p above it;
    scores in one bin are ties, which count half. Multiclass AUC is the mean over the classes, of the first
    AUC_CLASSES_MAX, that occur in some rows and not in all (macro, one against the rest).

    kappa is the accuracy's lead over chance, as a share of the largest possible one: Cohen, "A Coefficient of Agreement
    for Nominal Scales" (1960). kappa_temporal is that over the classifier that repeats the class of the row before:
    Bifet et al., "Pitfalls in Benchmarking Data Stream Classification and How to Avoid Them" (2013). calibration_error
    is the mean distance of confidence and accuracy over 15 equal bins of confidence: the probability of class 1 (Naeini
    et al., "Obtaining Well Calibrated Probabilities Using Bayesian Binning", 2015), or that of the likeliest of many
    classes (Guo et al., "On Calibration of Modern Neural Networks", 2017).

    A row whose score is not finite, or whose label is none of the task's, is not measured but counted.
    """

    def __init__(self, kind: str, classes: int, window: int) -> None:
        """`classes` counts for multiclass alone; `window` 0 means no recent metrics. Raises ConfigError."""
        if kind not in KINDS:
            raise ConfigError(f"the task's kind {kind!r} cannot be measured; allowed are {', '.join(KINDS)}")
        self._kind = KINDS.index(kind)
        self.width = classes if kind == "multiclass" else 1
        self._totals = Totals.empty(self._kind, self.width)
        self._counts = np.zeros(2, np.int64)
        self._ring_scores_WS = np.zeros((window, self.width), np.float32)
        self._ring_labels_W = np.zeros(window, np.float32)
        self._ring_weights_W = np.zeros(window, np.float32)

    @property
    def rows(self) -> int:
        """Rows measured."""
        return int(self._counts[_ROWS])

    @property
    def unmeasured(self) -> int:
        """Rows of positive weight that could not be measured."""
        return int(self._counts[_UNMEASURED])

    def update(self, scores_BS: Float32s, labels_B: Float32s, weights_B: Float32s) -> None:
        """Adds the rows of positive weight, in order.

        Scores are probabilities (binary: of 1; multiclass: S = classes) or predicted values. Raises
        ValueError if the shapes do not fit.
        """
        rows = len(labels_B)
        if scores_BS.shape != (rows, self.width) or weights_B.shape != (rows,):
            raise ValueError(
                f"scores {scores_BS.shape}, labels ({rows},), weights {weights_B.shape}: "
                f"expected scores of width {self.width} and equal lengths"
            )
        _accumulate(self._kind, scores_BS, labels_B, weights_B, tuple(self._totals), self._counts, *self._ring())

    def restart_recent(self) -> None:
        """The recent metrics are of rows from here on."""
        self._ring_weights_W[:] = 0

    def metrics(self) -> dict[str, float]:
        """Every metric that is defined by the rows so far, hence never NaN.

        Binary and multiclass: logloss, auc, accuracy, kappa, kappa_temporal, calibration_error; regression: mae, rmse,
        r2. Those of the last `window` rows end with `_recent`.
        """
        metrics, window = self._metrics(self._totals), len(self._ring_labels_W)
        if window and self.rows:
            recent, no_counts = Totals.empty(self._kind, self.width), np.zeros(2, np.int64)
            oldest = self.rows % window if self.rows > window else 0
            for rows in (slice(oldest, min(self.rows, window)), slice(0, oldest)):
                _accumulate(self._kind, *self._ring(rows), tuple(recent), no_counts, *self._ring(slice(0)))
            metrics |= {f"{name}_recent": value for name, value in self._metrics(recent).items()}
        return metrics

    def state(self) -> Arrays:
        """Everything, as views that are valid until the next update."""
        return {
            "sums": self._totals.sums_5,
            "histogram": self._totals.histogram_K2H,
            "marginals": self._totals.marginals_2K,
            "calibration": self._totals.calibration_3D,
            "counts": self._counts,
            "ring_scores": self._ring_scores_WS,
            "ring_labels": self._ring_labels_W,
            "ring_weights": self._ring_weights_W,
        }

    def restore(self, state: Mapping[str, npt.NDArray[Any]]) -> None:
        """Copies a `state`. Raises SnapshotError if it was made with another configuration."""
        fill(self.state(), state)

    def _ring(self, rows: slice = slice(None)) -> tuple[Float32s, Float32s, Float32s]:
        """Scores, labels and weights of the newest rows; row n of all is in place n mod `window`."""
        return self._ring_scores_WS[rows], self._ring_labels_W[rows], self._ring_weights_W[rows]

    def _metrics(self, totals: Totals) -> dict[str, float]:
        sums_5 = totals.sums_5
        weight = float(sums_5[_WEIGHT])
        if not weight:
            return {}
        if self._kind == _REGRESSION:
            metrics = {
                "mae": float(sums_5[_ABSOLUTE]) / weight,
                "rmse": float(np.sqrt(sums_5[_SQUARED] / weight)),
            }
            if sums_5[_M2] > 0:
                metrics["r2"] = 1 - float(sums_5[_SQUARED] / sums_5[_M2])
            return metrics
        accuracy = float(sums_5[_CORRECT]) / weight
        confidence_D, hits_D = totals.calibration_3D[_CONFIDENCE], totals.calibration_3D[_HITS]
        metrics = {
            "logloss": float(sums_5[_LOGLOSS]) / weight,
            "accuracy": accuracy,
            "calibration_error": float(np.abs(confidence_D - hits_D).sum()) / weight,
        }
        by_chance = float(totals.marginals_2K[_LABELS] @ totals.marginals_2K[_CHOICES]) / weight**2
        for name, rival in (("kappa", by_chance), ("kappa_temporal", float(sums_5[_UNCHANGED]) / weight)):
            if rival < 1:
                metrics[name] = (accuracy - rival) / (1 - rival)
        aucs = [auc for auc in map(_auc, totals.histogram_K2H) if auc is not None]
        return metrics | ({"auc": sum(aucs) / len(aucs)} if aucs else {})


def fill(arrays: Mapping[str, npt.NDArray[Any]], state: Mapping[str, npt.NDArray[Any]]) -> None:
    """Copies a snapshot's arrays into those of an object. Raises SnapshotError if they do not fit."""
    for name, array in arrays.items():
        if name not in state or state[name].shape != array.shape or state[name].dtype != array.dtype:
            found = f"{state[name].dtype}{list(state[name].shape)}" if name in state else "missing"
            raise SnapshotError(
                f"monitor {name!r}: {found} in the snapshot, {array.dtype}{list(array.shape)} by the "
                "job file; give [features], [learner] and [monitor] their old values, or the job a new name"
            )
        array[...] = state[name]


def _auc(histogram_2H: Float64s) -> float | None:
    """Area under the ROC curve: the share of pairs in the right order, ties half. None with one class."""
    negative_H, positive_H = histogram_2H
    pairs = negative_H.sum() * positive_H.sum()
    if not pairs:
        return None
    below_H = np.cumsum(negative_H) - negative_H / 2
    return float(positive_H @ below_H / pairs)


@njit_cached
def _accumulate(
    kind: int,
    scores_BS: Float32s,
    labels_B: Float32s,
    weights_B: Float32s,
    plain_totals: tuple[Float64s, ...],  # without names: numba finds the type of a named tuple in Python
    counts: Int64s,
    ring_scores_WS: Float32s,
    ring_labels_W: Float32s,
    ring_weights_W: Float32s,
) -> None:
    totals, window = Totals(*plain_totals), len(ring_labels_W)
    slot = counts[_ROWS] % window if window else 0
    for row in range(len(labels_B)):
        weight, label = np.float64(weights_B[row]), labels_B[row]
        if not weight > 0:
            continue
        if not _measurable(kind, scores_BS, row, label):
            counts[_UNMEASURED] += 1
            continue
        if kind == _REGRESSION:
            _add_value(scores_BS[row, 0], label, weight, totals.sums_5)
        elif kind == _BINARY:
            _add_binary(scores_BS[row, 0], int(label), weight, totals)
        else:
            _add_class(scores_BS, row, int(label), weight, totals)
        if window:
            for column in range(scores_BS.shape[1]):
                ring_scores_WS[slot, column] = scores_BS[row, column]
            ring_labels_W[slot] = label
            ring_weights_W[slot] = weights_B[row]
            slot = slot + 1 if slot + 1 < window else 0
        counts[_ROWS] += 1


@njit_inlined
def _measurable(kind: int, scores_BS: Float32s, row: int, label: float) -> bool:
    for column in range(scores_BS.shape[1]):
        if not np.isfinite(scores_BS[row, column]):
            return False
    if kind == _REGRESSION:
        return bool(np.isfinite(label))
    classes = 2 if kind == _BINARY else scores_BS.shape[1]
    return 0 <= label < classes and label == np.floor(label)


@njit_inlined
def _add_value(score: float, label: float, weight: float, sums: Float64s) -> None:
    """Weighted running moments of the label: West, "Updating Mean and Variance Estimates" (1979)."""
    error = np.float64(score) - np.float64(label)
    sums[_WEIGHT] += weight
    sums[_ABSOLUTE] += weight * abs(error)
    sums[_SQUARED] += weight * error * error
    distance = np.float64(label) - sums[_MEAN]
    sums[_MEAN] += distance * (weight / sums[_WEIGHT])
    sums[_M2] += weight * distance * (np.float64(label) - sums[_MEAN])


@njit_inlined
def _add_binary(score: np.float32, label: int, weight: float, totals: Totals) -> None:
    probability = np.float64(score)
    totals.histogram_K2H[0, label, _bin(score)] += weight
    _add_confidence(probability, label == 1, weight, totals)
    _add_choice(int(probability > 0.5), label, probability if label == 1 else 1 - probability, weight, totals)


@njit_inlined
def _add_class(scores_BK: Float32s, row: int, label: int, weight: float, totals: Totals) -> None:
    best = 0
    for k in range(len(totals.histogram_K2H)):
        totals.histogram_K2H[k, int(k == label), _bin(scores_BK[row, k])] += weight
    for k in range(scores_BK.shape[1]):
        if scores_BK[row, k] > scores_BK[row, best]:
            best = k
    _add_confidence(np.float64(scores_BK[row, best]), best == label, weight, totals)
    _add_choice(best, label, np.float64(scores_BK[row, label]), weight, totals)


@njit_inlined
def _add_confidence(confidence: float, hit: bool, weight: float, totals: Totals) -> None:
    place = int(min(max(confidence * CALIBRATION_BINS, 0.0), CALIBRATION_BINS - 1.0))
    totals.calibration_3D[_WEIGHT, place] += weight
    totals.calibration_3D[_CONFIDENCE, place] += weight * confidence
    totals.calibration_3D[_HITS, place] += weight if hit else 0.0


@njit_inlined
def _add_choice(choice: int, label: int, likelihood: float, weight: float, totals: Totals) -> None:
    sums_5 = totals.sums_5
    sums_5[_WEIGHT] += weight
    sums_5[_LOGLOSS] -= weight * np.log(min(max(likelihood, LOGLOSS_CLIP), 1 - LOGLOSS_CLIP))
    sums_5[_CORRECT] += weight if choice == label else 0.0  # a branch would often be guessed wrong
    sums_5[_UNCHANGED] += weight if sums_5[_LAST] == label else 0.0
    sums_5[_LAST] = label
    totals.marginals_2K[_LABELS, label] += weight
    totals.marginals_2K[_CHOICES, choice] += weight


@njit_inlined
def _bin(probability: np.float32) -> int:
    """The histogram bin of a float32: exponent and first 7 mantissa bits of p, or mirrored of 1 - p.

    Outside [0, 1] the sign bit makes `bits` negative: the outer bins.
    """
    upper = probability >= np.float32(0.5)
    tail = np.float32(1) - probability if upper else probability
    bits = int(np.float32(tail).view(np.int32)) >> (23 - _OCTAVE_BITS)
    index = min(max(bits - _FIRST_BIN, 0), _HALF - 1)
    return AUC_BINS - 1 - index if upper else index
