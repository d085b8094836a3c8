"""Columns with heavy tails: one value of a million would make all others alike, were they scaled by their deviation.

Their quartiles tell them: a normal column's deviation is their distance / 1.35. Where it is more than HEAVY times that
in the newest rows, the column counts as heavy from then on, and is scaled by its median and quartiles instead; the
module bends what is left of its tails by asinh (Burbidge et al., "Alternative Transformations to Handle Extreme
Values", 1988).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from consumers.record import Float32s, Int64s
from pipeline.bank.memory import Moments

ROWS = 512  # the newest ones, of which quartiles are taken
ROWS_MIN = 128  # of a column's numbers: fewer may seem to have any tails
LOOK_EVERY = 1024  # rows
HEAVY = 3.0
GROWN = 1.5  # times the deviation of the last look: then one looks at once

_QUARTILES = np.array([0.25, 0.5, 0.75])
_NONE = np.finfo(np.float32).max  # where a number is missing or not finite
_OF_NORMAL = 1.349  # the distance of a standard normal column's quartiles


class Newest(NamedTuple):
    """What is known of F columns, beside their moments; all of it is part of S."""

    ring_FR: Float32s  # the newest ROWS numbers, or _NONE
    quartiles_3F: npt.NDArray[np.float64]  # means over all looks at a full ring
    counts_2: Int64s  # rows seen, looks at a full ring
    scale_F: Float32s  # of the last look, by the deviation

    @classmethod
    def of(cls, columns: int) -> Newest:
        """Nothing yet."""
        return cls(
            np.full((columns, ROWS), _NONE),
            np.zeros((3, columns)),
            np.zeros(2, np.int64),
            np.zeros(columns, np.float32),
        )


def rescale(numbers_NF: Float32s, newest: Newest, moments: Moments, heavy_F: npt.NDArray[np.bool_]) -> None:
    """Takes rows whose moments were just taken, finds heavy columns, and gives these the scale of their quartiles."""
    if not len(heavy_F):
        return
    seen = int(newest.counts_2[0])
    kept_NF = numbers_NF[-ROWS:]
    places = np.arange(seen + len(numbers_NF) - len(kept_NF), seen + len(numbers_NF)) % ROWS
    newest.ring_FR[:, places] = np.where(np.isfinite(kept_NF), kept_NF, _NONE).T
    newest.counts_2[0] = after = seen + len(numbers_NF)
    due = after <= ROWS or seen // LOOK_EVERY != after // LOOK_EVERY
    if due or (moments.scale_F * GROWN < newest.scale_F).any():
        newest.scale_F[:] = moments.scale_F
        _look(newest, heavy_F)
    if heavy_F.any():
        low_F, middle_F, high_F = newest.quartiles_3F[:, heavy_F]
        moments.shift_F[heavy_F] = middle_F
        moments.scale_F[heavy_F] = _OF_NORMAL / (high_F - low_F)


def _look(newest: Newest, heavy_F: npt.NDArray[np.bool_]) -> None:
    """Takes quartiles of the ring into their means, and finds columns that are heavy."""
    ring_FR, quartiles_3F, counts_2 = newest.ring_FR, newest.quartiles_3F, newest.counts_2
    known_FR = ring_FR < _NONE
    known_F = known_FR.sum(axis=1)
    places_3F = (_QUARTILES[:, None] * np.maximum(known_F - 1, 0)).astype(np.int64)
    found_3F = np.sort(ring_FR, axis=1)[np.arange(len(ring_FR)), places_3F]  # _NONE is last
    counts_2[1] += counts_2[0] >= ROWS
    means_3F = quartiles_3F + (found_3F - quartiles_3F) / max(int(counts_2[1]), 1)
    apart_F = means_3F[2] - means_3F[0]
    fit_F = apart_F > 0  # else half of the values are one and the same, or none is known: quartiles tell nothing
    quartiles_3F[:, fit_F] = means_3F[:, fit_F]
    many_F = known_F >= ROWS_MIN
    deviation_F = np.std(ring_FR, axis=1, where=known_FR | ~many_F[:, None], dtype=np.float64)
    heavy_F |= fit_F & many_F & (deviation_F > HEAVY * apart_F / _OF_NORMAL)
