"""What Avro and Protobuf have in common: how numbers and text lie in a message. For compiled loops."""

from __future__ import annotations

import numpy as np

from consumers.codecs.words import half, word
from consumers.compiled import njit_borrowing
from consumers.record import Bytes1

_0, _1, _7, _63 = np.uint64(0), np.uint64(1), np.uint64(7), np.uint64(63)
_MORE, _LOW_7 = np.uint64(0x80), np.uint64(0x7F)
_MORE_IN_WORD = np.uint64(0x8080808080808080)


@njit_borrowing
def varint(data: Bytes1, at: int, stop: int) -> tuple[np.uint64, int]:
    """A number in groups of 7 bits, within `[at, stop)`, and where it ends: -1 if it does not, or has over 64 bits."""
    value, shift = _0, _0
    while at < stop and shift <= _63:
        byte = np.uint64(data[np.uint64(at)])
        at += 1
        value |= (byte & _LOW_7) << shift
        if byte < _MORE:
            return value, at if shift < _63 or byte <= _1 else -1
        shift += _7
    return value, -1


@njit_borrowing
def zigzag(value: np.uint64) -> int:
    """The signed number of an unsigned one: 0, -1, 1, -2, ..."""
    return int(np.int64(value >> _1) ^ -np.int64(value & _1))


@njit_borrowing
def float32(data: Bytes1, at: int) -> np.float32:
    """Four bytes, which must be there, as a float."""
    return np.uint32(half(data, at)).view(np.float32)


@njit_borrowing
def is_utf8(data: Bytes1, at: int, stop: int) -> bool:
    """Whether bytes `[at, stop)` are UTF-8 as Python decodes it: the shortest form, no surrogates."""
    while at < stop:
        if at + 8 <= stop and word(data, at) & _MORE_IN_WORD == _0:
            at += 8
            continue
        byte = data[np.uint64(at)]
        if byte < 0x80:
            at += 1
            continue
        more = 1 if byte < 0xE0 else 2 if byte < 0xF0 else 3
        if byte < 0xC2 or byte > 0xF4 or at + more >= stop:
            return False
        second = data[np.uint64(at + 1)]
        low = 0xA0 if byte == 0xE0 else 0x90 if byte == 0xF0 else 0x80
        high = 0x9F if byte == 0xED else 0x8F if byte == 0xF4 else 0xBF
        if second < low or second > high:
            return False
        for behind in range(2, more + 1):
            if data[np.uint64(at + behind)] & 0xC0 != 0x80:
                return False
        at += more + 1
    return True
