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
def integer_at(data: Bytes1, at: int, meaning: int, width: int) -> int:
    """An integer of 1, 2, 4 or 8 bytes; negative if it is unsigned and more than int64 holds."""
    if width == 8:
        bits = word(data, at)
    elif width == 4:
        bits = half(data, at)
    elif width == 2:
        bits = np.uint64(data[at]) | np.uint64(data[at + 1]) << np.uint64(8)
    else:
        bits = np.uint64(data[at])
    unused = np.int64(64 - 8 * width) if meaning == SIGNED else np.int64(0)
    return int(np.int64(bits) << unused >> unused)


@njit_merged
def real_at(data: Bytes1, at: int, width: int) -> float:
    """A floating-point number of 4 or 8 bytes."""
    return float(float_of(word(data, at)) if width == 8 else np.float64(np.uint32(half(data, at)).view(np.float32)))


@njit_merged
def find_number(data: Bytes1, at: int, meaning: int, width: int, field: int, found: Found) -> bool:
    """Takes a number for what is in `field`. False for an integer that int64 does not hold."""
    if meaning == REAL:
        found.kind_U[field], found.number_U[field] = FLOAT, real_at(data, at, width)
        return True
    integer = integer_at(data, at, meaning, width)
    found.kind_U[field], found.integer_U[field] = INTEGER, integer
    return meaning == SIGNED or integer >= 0
