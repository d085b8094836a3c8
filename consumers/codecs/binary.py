"""How numbers lie in an Avro or Protobuf message: compiled."""

from __future__ import annotations

import numpy as np

from consumers.codecs.words import half
from consumers.compiled import njit_cached
from consumers.record import Bytes1

_0, _1, _7, _63 = np.uint64(0), np.uint64(1), np.uint64(7), np.uint64(63)
_MORE, _LOW_7 = np.uint64(0x80), np.uint64(0x7F)


@njit_cached
def varint(data: Bytes1, at: int, stop: int) -> tuple[int, int]:
    """A number in groups of 7 bits, within `[at, stop)`, and where it ends: -1 if it does not, or has over 64 bits.

    The number is the int64 with these bits: no uint64 gets out, as together with an int64 it would become a float.
    """
    value, shift = _0, _0
    while at < stop and shift <= _63:
        byte = np.uint64(data[np.uint64(at)])
        at += 1
        value |= (byte & _LOW_7) << shift
        if byte < _MORE:
            return int(np.int64(value)), at if shift < _63 or byte <= _1 else -1
        shift += _7
    return 0, -1


@njit_cached
def zigzag(value: int) -> int:
    """The number that the bits of an int64 stand for where 0, 1, 2, 3, ... are 0, -1, 1, -2, ..."""
    return int(np.int64(np.uint64(value) >> _1) ^ -(value & 1))


@njit_cached
def float32(data: Bytes1, at: int) -> np.float32:
    """Four bytes, which must be there, as a float."""
    return np.uint32(half(data, at)).view(np.float32)
