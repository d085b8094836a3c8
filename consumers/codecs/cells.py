"""Numbers as they lie in memory, for the formats in which a value's place follows from its type alone."""

from __future__ import annotations

import numpy as np

from consumers.codecs.scan import FLOAT, INTEGER, Found
from consumers.codecs.words import float_of, half, word
from consumers.compiled import njit_merged
from consumers.record import Bytes1

SIGNED, UNSIGNED, REAL = range(3)
"""What the bytes of a number mean, little-endian."""


@njit_merged
def find_number(data: Bytes1, at: int, meaning: int, width: int, field: int, found: Found) -> bool:
    """Takes a number of 1, 2, 4 or 8 bytes for what is in `field`. False for an integer that int64 does not hold."""
    bits = np.uint64(0)
    if width == 8:
        bits = word(data, at)
    elif width == 4:
        bits = half(data, at)
    elif width == 2:
        bits = np.uint64(data[at]) | np.uint64(data[at + 1]) << np.uint64(8)
    else:
        bits = np.uint64(data[at])
    good = True
    if meaning == REAL:
        found.kind_U[field] = FLOAT
        found.number_U[field] = float_of(bits) if width == 8 else np.float64(np.uint32(bits).view(np.float32))
    else:
        found.kind_U[field] = INTEGER
        unused = np.int64(64 - 8 * width)
        found.integer_U[field] = np.int64(bits)
        if meaning == SIGNED:
            found.integer_U[field] = np.int64(bits) << unused >> unused
        else:
            good = found.integer_U[field] >= 0
    return good
