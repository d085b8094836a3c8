"""What is watched of the features: where each column lies, how wide and in what shape, what is missing, which
categories come, and how columns go together.

A numeric column gives the mean of its standard score z and of z² (clipped at |z| = 4), the shares above its seven
octiles (the largest change of which is a Kolmogorov-Smirnov statistic on eight equal bins), and the share that is
missing; two numeric columns the mean of the product of their z, clipped at 2; a categorical one the shares of 64 bins
of bucket id mod 64, and that of null.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from consumers.record import Float32s
from pipeline.drift.columns import BINS, CLIP, DOUBLED, OCTILES, PAIRED_MAX, PENDING, ROWS, Columns, Layout
from pipeline.drift.means import REFERENCE_MIN, Means
from pipeline.drift.windows import BLOCK_ROWS, OTHER, ROOT, SCORE, SHARE
from pipeline.quality import Arrays, Float64s, fill

_DOUBLED_MAX = 5
_EARLY_ROWS = 4096
"""A restart this soon after twice as many rows as settled is one in quick succession. The first test of the longest
window, 3,584 rows after these settled, is to be one: what is slower than all shorter windows alarms there each time.
"""

MISSING, CATEGORY, FEATURE, CORRELATION = range(4)
"""Families, the likelier cause first: a column in which more is missing has another mean, too."""


class Inputs:
    """Means of what the columns hold, in units of the first rows after the start or a restart.

    These are `settle_rows`, or as many times 2, 4, 8 … 32 after restarts in quick succession, every 2nd, 4th … of them:
    what moves faster than it becomes usual, like the hour of the day, gets longer to show all of itself. A column that
    deviates by less than `deviation_min` is measured in that. What moves by less than `notable` times what is critical
    counts as not moved.
    """

    def __init__(
        self,
        numeric: int,
        categorical: int,
        *,
        settle_rows: int,
        p: float,
        deviation_min: float = 0.0,
        notable: float = 1.0,
    ) -> None:
        self._numeric, self._settle_rows = numeric, settle_rows
        self._deviation_min = deviation_min
        earlier, later = (index for index in np.tril_indices(min(numeric, PAIRED_MAX), -1)[::-1])
        self._at = Layout.of(numeric, categorical)
        counts = np.diff(self._at)
        families = [FEATURE, FEATURE, FEATURE, MISSING, CATEGORY, MISSING, CORRELATION]
        columns, categories = np.arange(numeric), numeric + np.arange(categorical)
        self.family_D = np.repeat(families, counts)
        of_bins = np.repeat(categories, BINS)
        self.column_D = np.concatenate([np.tile(columns, 3 + OCTILES), of_bins, categories, earlier])
        """The column, or the first one of a pair."""
        self.other_D = np.full(len(self.family_D), -1)
        """The other one of a pair."""
        self.other_D[len(self.other_D) - len(later) :] = later
        kind_D = np.repeat([SCORE, OTHER, SHARE, SHARE, SHARE, SHARE, OTHER], counts)
        of_D = np.zeros(len(kind_D), np.int64)
        of_D[:numeric] = self._at.square + columns
        self.means = Means(kind_D, of_D, self.family_D, p, notable=notable, trend=False)
        self.arrays = Columns.empty(numeric, categorical, self.means.arrays)
        self._counters = self.arrays.counters
        self._buffer_RC = np.zeros((0, numeric), np.float32)

    @property
    def settled(self) -> bool:
        """Whether it is known what is usual: then rows are counted and blocks closed as in `columns`."""
        return bool(self._counters[ROWS] >= self._settle_rows << int(self._counters[DOUBLED]))

    def keep(self, features_NC: Float32s) -> None:
        """Takes the next rows of a block before it has settled."""
        every = 1 << int(self._counters[DOUBLED])
        first = -int(self._counters[PENDING]) % every
        kept_NF = features_NC[first::every, : self._numeric]
        self._buffer_RC = np.concatenate([self._buffer_RC, kept_NF])
        self._counters[PENDING] += len(features_NC)

    def settle(self) -> None:
        """Sees after a block whether that was enough."""
        self._counters[ROWS] = self._counters[PENDING]  # fewer than the blocks have, if it was restarted within one
        if self.settled:
            for column in range(self._numeric):
                centre, scale, edges_E = standard(self._buffer_RC[:, column], OCTILES, self._deviation_min)
                self.arrays.centre_F[column], self.arrays.scale_F[column] = centre, scale
                self.arrays.edges_EF[:, column] = edges_E
            self._buffer_RC = np.zeros((0, self._numeric), np.float32)

    def meaning(self, statistic: int) -> str:
        """What a statistic is the mean of, in words."""
        family = int(self.family_D[statistic])
        if family == FEATURE and statistic < self._at.square:
            return "mean, in standard deviations,"
        if family == FEATURE and statistic < self._at.above:
            return "mean square, in standard deviations,"
        if family == FEATURE:
            return f"share above octile {(statistic - self._at.above) // self._numeric + 1}"
        if family == CATEGORY:
            return f"share of the categories in bin {(statistic - self._at.bins) % BINS}"
        return "share of missing values" if family == MISSING else "mean product, in standard deviations,"

    def restart(self) -> None:
        """Takes what comes next as what is usual."""
        settle_rows = self._settle_rows << int(self._counters[DOUBLED])
        early = self._counters[ROWS] < 2 * settle_rows + _EARLY_ROWS
        doubled = int(self._counters[DOUBLED]) + (1 if early else -1)
        self._counters[:] = 0, min(max(doubled, 0), _DOUBLED_MAX), 0
        self.means.restart(max(REFERENCE_MIN, (self._settle_rows << int(self._counters[DOUBLED])) // BLOCK_ROWS))
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
            "centre": self.arrays.centre_F,
            "scale": self.arrays.scale_F,
            "edges": self.arrays.edges_EF,
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
    edges_E = ROOT * np.clip((known_R[at_E] - mean) * scale, -CLIP, CLIP)
    return mean, scale, np.floor(edges_E + 0.5)
