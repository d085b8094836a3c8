"""What is watched of the features: where each column lies, how wide and in what shape, what is missing, which
categories come, and how columns go together.

A numeric column gives the mean of its standard score z and of z² (clipped at |z| = 4), the shares above its seven
octiles (the largest change of which is a Kolmogorov-Smirnov statistic on eight equal bins), and the share that is
missing; two numeric columns the mean of the product of their z; a categorical one the shares of 64 bins of bucket id
mod 64, and that of null.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from consumers.compiled import njit_cached
from consumers.record import Float32s
from pipeline.drift.means import BLOCK_ROWS, OTHER, REFERENCE_MIN, ROOT, SCORE, SHARE, UNIT, Means
from pipeline.quality import Arrays, Float64s, fill

PAIRED_MAX = 32
"""Numeric columns whose products are watched, the first ones: 496 pairs."""

_OCTILES = 7
_BINS = 64
_CLIP = 4.0
_DOUBLED_MAX = 5
_EARLY_ROWS = 3072  # a restart this soon after the first test is one in quick succession
_ROWS, _DOUBLED, _PENDING = range(3)  # slots of `counters`: rows of closed blocks; how often settling was doubled; rows

MISSING, CATEGORY, FEATURE, CORRELATION = range(4)
"""Families, the likelier cause first: a column in which more is missing has another mean, too."""


class Inputs:
    """Means of what the columns hold, in units of the first rows after the start or a restart.

    These are `settle_rows`, or as many times 2, 4, 8 … 32 after restarts in quick succession, every 2nd, 4th … of them:
    what moves faster than it becomes usual, like the hour of the day, gets longer to show all of itself. A column that
    deviates by less than `deviation_min` is measured in that.
    """

    def __init__(
        self, numeric: int, categorical: int, *, settle_rows: int, p: float, deviation_min: float = 0.0
    ) -> None:
        self._numeric, self._categorical, self._settle_rows = numeric, categorical, settle_rows
        self._deviation_min = deviation_min
        earlier, later = (index for index in np.tril_indices(min(numeric, PAIRED_MAX), -1)[::-1])
        counts = [numeric, numeric, numeric * _OCTILES, numeric, categorical * _BINS, categorical, len(earlier)]
        families = [FEATURE, FEATURE, FEATURE, MISSING, CATEGORY, MISSING, CORRELATION]
        columns, categories = np.arange(numeric), numeric + np.arange(categorical)
        self.family_D = np.repeat(families, counts)
        self.column_D = np.concatenate(
            [np.tile(columns, 3 + _OCTILES), np.repeat(categories, _BINS), categories, earlier]
        )
        """The column, or the first one of a pair."""
        self.other_D = np.full(len(self.family_D), -1)
        """The other one of a pair."""
        self.other_D[len(self.other_D) - len(later) :] = later
        kind_D = np.repeat([SCORE, OTHER, SHARE, SHARE, SHARE, SHARE, OTHER], counts)
        of_D = np.zeros(len(kind_D), np.int64)
        of_D[:numeric] = numeric + columns
        self.means = Means(kind_D, of_D, self.family_D, p, trend=False)
        self._buffer_RC = np.zeros((0, numeric), np.float32)
        self._counters = np.zeros(3, np.int64)
        self.centre_F = np.zeros(numeric, np.float32)
        self.scale_F = np.zeros(numeric, np.float32)
        self._edges_EF = np.zeros((_OCTILES, numeric), np.float32)
        self._scores_BF = np.zeros((BLOCK_ROWS, numeric), np.float32)  # scratch

    @property
    def settled(self) -> bool:
        """Whether it is known what is usual."""
        return bool(self._counters[_ROWS] >= self._settle_rows << self._counters[_DOUBLED])

    def take(self, features_NC: Float32s) -> None:
        """Takes the next rows of a block."""
        if self.settled:
            scaling = self.centre_F, self.scale_F, self._edges_EF
            _count(features_NC, *scaling, self._scores_BF, self._categorical, self.means.sums_D)
        else:
            every = 1 << int(self._counters[_DOUBLED])
            first = -int(self._counters[_PENDING]) % every
            kept_NF = features_NC[first::every, : self._numeric]
            self._buffer_RC = np.concatenate([self._buffer_RC, kept_NF])
            self._counters[_PENDING] += len(features_NC)

    def close(self) -> float:
        """Tests after a block, as `Means.close` does."""
        if self.settled:
            self._counters[_ROWS] += BLOCK_ROWS
            return self.means.close()
        self._counters[_ROWS] = self._counters[_PENDING]  # fewer than the blocks have, if it was restarted within one
        if self.settled:
            for column in range(self._numeric):
                scaling = standard(self._buffer_RC[:, column], _OCTILES, self._deviation_min)
                self.centre_F[column], self.scale_F[column], self._edges_EF[:, column] = scaling
            self._buffer_RC = np.zeros((0, self._numeric), np.float32)
        return 0.0

    def meaning(self, statistic: int) -> str:
        """What a statistic is the mean of, in words."""
        numeric, family = self._numeric, int(self.family_D[statistic])
        if family == FEATURE:
            place = statistic // numeric
            shape = f"share above octile {place - 1}"
            return (
                ("mean, in standard deviations,", "mean square, in standard deviations,")[place] if place < 2 else shape
            )
        if family == CATEGORY:
            return f"share of the categories in bin {(statistic - (3 + _OCTILES) * numeric) % _BINS}"
        return "share of missing values" if family == MISSING else "mean product, in standard deviations,"

    def restart(self) -> None:
        """Takes what comes next as what is usual."""
        settle_rows = self._settle_rows << int(self._counters[_DOUBLED])
        early = self._counters[_ROWS] < 2 * settle_rows + _EARLY_ROWS
        doubled = int(self._counters[_DOUBLED]) + (1 if early else -1)
        self._counters[:] = 0, min(max(doubled, 0), _DOUBLED_MAX), 0
        self.means.restart(max(REFERENCE_MIN, (self._settle_rows << int(self._counters[_DOUBLED])) // BLOCK_ROWS))
        self._buffer_RC = np.zeros((0, self._numeric), np.float32)

    def state(self) -> dict[str, Arrays]:
        return {"inputs": {"buffer": self._buffer_RC, **self._fixed_size_state()}, "input_means": self.means.state()}

    def restore(self, parts: Mapping[str, Mapping[str, npt.NDArray[Any]]]) -> None:
        own = parts.get("inputs", {})
        fill(self._fixed_size_state(), own)
        self._buffer_RC = np.zeros((len(own["buffer"]), self._numeric), np.float32)
        fill({"buffer": self._buffer_RC}, own)
        self.means.restore(parts.get("input_means", {}))

    def _fixed_size_state(self) -> Arrays:
        return {
            "counters": self._counters,
            "centre": self.centre_F,
            "scale": self.scale_F,
            "edges": self._edges_EF,
        }


def standard(values_R: Float32s, quantiles: int, deviation_min: float = 0.0) -> tuple[float, float, Float64s]:
    """Mean, one over the deviation, and quantiles in ROOTths of it, after the outer half percents were pulled in.

    Where all values are one and the same, any other one, however close, is to lie far off.
    """
    known_R = np.sort(values_R[np.isfinite(values_R)].astype(np.float64))
    if not len(known_R):
        return 0.0, 1.0, np.zeros(quantiles)
    outer = len(known_R) // 200
    clipped_R: Float64s = np.clip(known_R, known_R[outer], known_R[-1 - outer])
    mean, deviation = float(clipped_R.mean()), float(clipped_R.std())
    scale = 1 / max(deviation, deviation_min, 1e-6 * abs(mean), 1e-12)
    at_E = len(known_R) * np.arange(1, quantiles + 1) // (quantiles + 1)
    edges_E = ROOT * np.clip((known_R[at_E] - mean) * scale, -_CLIP, _CLIP)
    return mean, scale, np.floor(edges_E + 0.5)


@njit_cached
def _count(
    features_NC: Float32s,
    centre_F: Float32s,
    scale_F: Float32s,
    edges_EF: Float32s,
    scores_BF: Float32s,
    categorical: int,
    sums_D: Float32s,
) -> None:
    """Adds rows to a block's sums. A missing number counts as an average one in all but its own share."""
    rows, numeric = features_NC.shape[0], len(centre_F)
    unit, bound, none = np.float32(UNIT), np.float32(_CLIP), np.float32(0)
    missing = (2 + _OCTILES) * numeric
    null = missing + numeric + categorical * _BINS
    for row in range(rows):
        for f in range(numeric):
            value = features_NC[row, f]
            score = min(max((value - centre_F[f]) * scale_F[f], -bound), bound)
            absent = np.isnan(value)
            scores_BF[row, f] = none if absent else np.floor(score * np.float32(ROOT) + np.float32(0.5))
            sums_D[missing + f] += unit if absent else none
        for k in range(categorical):
            bucket = int(features_NC[row, numeric + k])
            sums_D[missing + numeric + k * _BINS + (bucket & (_BINS - 1))] += unit
            sums_D[null + k] += unit if bucket == 0 else none
    for row in range(rows):
        for f in range(numeric):
            sums_D[f] += scores_BF[row, f] * np.float32(ROOT)
            sums_D[numeric + f] += scores_BF[row, f] * scores_BF[row, f]
    for e in range(_OCTILES):
        above = (2 + e) * numeric
        for row in range(rows):
            for f in range(numeric):
                sums_D[above + f] += unit if scores_BF[row, f] > edges_EF[e, f] else none
    _multiply(scores_BF, rows, min(numeric, PAIRED_MAX), sums_D[null + categorical :])


@njit_cached
def _multiply(scores_BF: Float32s, rows: int, paired: int, sums_P: Float32s) -> None:
    """Adds the products of pairs: of four rows at a time, because sums are written more slowly than rows are read."""
    for row in range(rows, min(rows + 3, scores_BF.shape[0])):
        for f in range(paired):
            scores_BF[row, f] = np.float32(0)
    for row in range(0, rows, 4):
        a_F, b_F, c_F, d_F = scores_BF[row], scores_BF[row + 1], scores_BF[row + 2], scores_BF[row + 3]
        pair = 0
        for i in range(paired):
            a, b, c, d = a_F[i], b_F[i], c_F[i], d_F[i]
            for j in range(i):
                sums_P[pair + j] += (a * a_F[j] + b * b_F[j]) + (c * c_F[j] + d * d_F[j])
            pair += i
