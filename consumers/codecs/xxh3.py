"""XXH3 with seed 0 of short texts, compiled: the same bits as the package xxhash, which hashes the long ones.

The algorithm is https://github.com/Cyan4973/xxHash/blob/v0.8.2/doc/xxhash_spec.md, the constants are its own.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from consumers.codecs.words import half, high_word, swapped, word
from consumers.compiled import njit_cached, njit_merged
from consumers.record import Bytes1

LENGTH_MAX = 240
"""Bytes of the longest text; beyond it the algorithm is another one."""

_SECRET = np.frombuffer(
    bytes.fromhex(
        "b8fe6c3923a44bbe7c01812cf721ad1cded46de9839097db7240a4a4b7b3671fcb79e64eccc0e578825ad07dccff7221"
        "b8084674f743248ee03590e6813a264c3c2852bb91c300cb88d0658b1b532ea371644897a20df94e3819ef46a9deacd8"
        "a8fa763fe39c343ff9dcbbc7c70b4f1d8a51e04bcdb45931c89f7ec9d9787364eac5ac8334d3ebc3c581a0fffa1363eb"
        "170ddd51b7f0da49d316552629d4689e2b16be587d47a1fc8ff8b8d17ad031ce45cb3a8f95160428afd7fbcabb4b407e"
    ),
    np.uint8,
)
_PRIME_1, _PRIME_2 = np.uint64(0x9E3779B185EBCA87), np.uint64(0xC2B2AE3D27D4EB4F)
_PRIME_3, _PRIME_4 = np.uint64(0x165667B19E3779F9), np.uint64(0x85EBCA77C2B2AE63)
_PRIME_32 = np.uint64(0x85EBCA77)
_MIX_1, _MIX_2 = np.uint64(0x165667919E3779F9), np.uint64(0x9FB21C651E98DF25)
_LOW = np.uint64(0xFFFFFFFF)
_0, _1, _2, _3, _13, _15, _16, _19, _24, _28 = map(np.uint64, (0, 1, 2, 3, 13, 15, 16, 19, 24, 28))
_29, _32, _33, _35, _37, _40, _49, _54 = map(np.uint64, (29, 32, 33, 35, 37, 40, 49, 54))


def _flip(first: int, second: int, size: int = 8) -> np.uint64:
    """Two parts of the secret in one: only those of texts of 17 bytes and more are used as they are."""
    return np.uint64(
        int.from_bytes(_SECRET[first : first + size], "little")
        ^ int.from_bytes(_SECRET[second : second + size], "little")
    )


_FLIP_0, _FLIP_3, _FLIP_8 = _flip(56, 64), _flip(0, 4, 4), _flip(8, 16)
_FLIP_16, _FLIP_16_HIGH = _flip(24, 32), _flip(40, 48)
_WIDE_0, _WIDE_0_HIGH = _flip(64, 72), _flip(80, 88)
_WIDE_3, _WIDE_3_HIGH = _flip(0, 4, 4), _flip(8, 12, 4)
_WIDE_8, _WIDE_16, _WIDE_16_HIGH = _flip(16, 24), _flip(32, 40), _flip(48, 56)
_END: Any = np.int64(119)  # where the secret of a long text's last 16 bytes is; numba compiles anew for an int
_WIDE_END: Any = np.int64(103)  # and of its last 32


@njit_cached
def xxh3_64(data: Bytes1, start: int, length: int) -> np.uint64:
    """XXH3-64 of `length` <= LENGTH_MAX bytes from `start` on."""
    size = np.uint64(length)
    if length > 16:
        return _long_64(data, start, length)
    if length > 8:
        low = word(data, start) ^ _FLIP_16
        high = word(data, start + length - 8) ^ _FLIP_16_HIGH
        return _stirred(size + swapped(low) + high + _folded(low, high))
    if length > 3:
        mixed = (half(data, start + length - 4) + (half(data, start) << _32)) ^ _FLIP_8
        mixed ^= (mixed << _49 | mixed >> _15) ^ (mixed << _24 | mixed >> _40)
        mixed *= _MIX_2
        mixed = (mixed ^ (mixed >> _35) + size) * _MIX_2
        return mixed ^ mixed >> _28
    if length > 0:
        return _stirred_64(_few(data, start, length) ^ _FLIP_3)
    return _stirred_64(_FLIP_0)


@njit_cached
def xxh3_128(data: Bytes1, start: int, length: int) -> tuple[np.uint64, np.uint64]:
    """XXH3-128 of `length` <= LENGTH_MAX bytes from `start` on: its low and its high word."""
    size = np.uint64(length)
    if length > 16:
        return _long_128(data, start, length)
    if length > 8:
        high = word(data, start + length - 8)
        mixed = word(data, start) ^ high ^ _WIDE_16
        high ^= _WIDE_16_HIGH
        low = mixed * _PRIME_1 + ((size - _1) << _54)
        high += high_word(mixed, _PRIME_1) + (high & _LOW) * (_PRIME_32 - _1)
        low ^= swapped(high)
        return _stirred(low * _PRIME_2), _stirred(high_word(low, _PRIME_2) + high * _PRIME_2)
    if length > 3:
        mixed = (half(data, start) + (half(data, start + length - 4) << _32)) ^ _WIDE_8
        factor = _PRIME_1 + (size << _2)
        low, high = mixed * factor, high_word(mixed, factor)
        high += low << _1
        low ^= high >> _3
        low = (low ^ low >> _35) * _MIX_2
        return low ^ low >> _28, _stirred(high)
    if length > 0:
        low = _few(data, start, length)
        turned = swapped(low) >> _32
        high = (turned << _13 | turned >> _19) & _LOW
        return _stirred_64(low ^ _WIDE_3), _stirred_64(high ^ _WIDE_3_HIGH)
    return _stirred_64(_WIDE_0), _stirred_64(_WIDE_0_HIGH)


@njit_cached
def _long_64(data: Bytes1, start: int, length: int) -> np.uint64:
    stop = start + length
    total = np.uint64(length) * _PRIME_1
    if length <= 128:
        for pair in range((length - 1) // 32 + 1):
            total += _mixed_16(data, start + 16 * pair, 32 * pair)
            total += _mixed_16(data, stop - 16 * pair - 16, 32 * pair + 16)
        return _stirred(total)
    for part in range(8):
        total += _mixed_16(data, start + 16 * part, 16 * part)
    total = _stirred(total)
    for part in range(8, length // 16):
        total += _mixed_16(data, start + 16 * part, 16 * part - 125)
    return _stirred(total + _mixed_16(data, stop - 16, _END))


@njit_cached
def _long_128(data: Bytes1, start: int, length: int) -> tuple[np.uint64, np.uint64]:
    stop, size = start + length, np.uint64(length)
    low, high = size * _PRIME_1, _0
    if length <= 128:
        for pair in range((length - 1) // 32, -1, -1):
            low, high = _mixed_32(data, start + 16 * pair, stop - 16 * pair - 16, 32 * pair, low, high)
    else:
        for pair in range(4):
            low, high = _mixed_32(data, start + 32 * pair, start + 32 * pair + 16, 32 * pair, low, high)
        low, high = _stirred(low), _stirred(high)
        for pair in range(4, length // 32):
            low, high = _mixed_32(data, start + 32 * pair, start + 32 * pair + 16, 32 * pair - 125, low, high)
        low, high = _mixed_32(data, stop - 16, stop - 32, _WIDE_END, low, high)
    return _stirred(low + high), _0 - _stirred(low * _PRIME_1 + high * _PRIME_4 + size * _PRIME_2)


@njit_merged
def _mixed_32(
    data: Bytes1, first: int, second: int, secret: int, low: np.uint64, high: np.uint64
) -> tuple[np.uint64, np.uint64]:
    low = (low + _mixed_16(data, first, secret)) ^ (word(data, second) + word(data, second + 8))
    high = (high + _mixed_16(data, second, secret + 16)) ^ (word(data, first) + word(data, first + 8))
    return low, high


@njit_merged
def _mixed_16(data: Bytes1, place: int, secret: int) -> np.uint64:
    return _folded(word(data, place) ^ word(_SECRET, secret), word(data, place + 8) ^ word(_SECRET, secret + 8))


@njit_merged
def _few(data: Bytes1, start: int, length: int) -> np.uint64:
    """One to three bytes and their number."""
    first, middle, last = data[start], data[start + length // 2], data[start + length - 1]
    return np.uint64(first) << _16 | np.uint64(middle) << _24 | np.uint64(last | length << 8)


@njit_merged
def _folded(left: np.uint64, right: np.uint64) -> np.uint64:
    return left * right ^ high_word(left, right)


@njit_merged
def _stirred(value: np.uint64) -> np.uint64:
    value = (value ^ value >> _37) * _MIX_1
    return value ^ value >> _32


@njit_merged
def _stirred_64(value: np.uint64) -> np.uint64:
    """As XXH64 does it."""
    value = (value ^ value >> _33) * _PRIME_2
    value = (value ^ value >> _29) * _PRIME_3
    return value ^ value >> _32
