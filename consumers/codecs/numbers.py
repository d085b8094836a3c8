"""Decimal numbers in bytes to numbers, correctly rounded: compiled."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from consumers.codecs.scan import FLOAT, INTEGER, OTHER, Found
from consumers.codecs.words import float_of, high_word, word, zeros_above, zeros_below
from consumers.compiled import njit_cached, njit_merged
from consumers.record import Bytes1

POWER_MAX = 64
"""Of ten, up and down: beyond it `rounded` gives up."""

_EXACT_MAX = 22  # powers of ten up to here are float64
_TENS = 10.0 ** np.arange(_EXACT_MAX + 1)
_UNITS = 10 ** np.arange(9, dtype=np.uint64)

_MINUS, _PLUS, _POINT, _ZERO, *_POWER_LETTERS = b"-+.0eE"
_POWER = tuple(_POWER_LETTERS)
_INTEGERS = np.uint64(2**63)  # there are so many that are not negative

_TOPS, _ONES = np.uint64(0x8080808080808080), np.uint64(0x0101010101010101)
_ZEROS, _ABOVE_NINE = _ONES * np.uint64(ord("0")), _ONES * np.uint64(0x80 - 10)
_PAIRS, _FOURS, _EIGHT = np.uint64(0x00FF00FF00FF00FF), np.uint64(0x0000FFFF0000FFFF), np.uint64(0xFFFFFFFF)
_8, _16, _32, _10, _100, _10000 = map(np.uint64, (8, 16, 32, 10, 100, 10_000))


DIGITS_MAX = 640
"""Of a number that is taken at all. Python refuses integers of more than 4300, or a limit set no lower than this."""


@njit_merged
def put_number(data: Bytes1, at: int, found: Found, field: int) -> int:
    """Reads a number as JSON has them, which the end of `data` does not cut off, and returns the place after it, or -1.

    It is OTHER if it is good, but beyond what is done here.
    """
    negative = data[at] == _MINUS
    at += negative
    first = at
    value, at = digits(data, at, np.uint64(0))
    count = at - first
    if count == 0 or (count > 1 and data[first] == _ZERO):
        return -1
    power, whole = 0, True
    if data[at] == _POINT:
        value, end = digits(data, at + 1, value)
        power, at, whole = at + 1 - end, end, False
        count -= power
        if power == 0:
            return -1
    if data[at] in _POWER:
        more, at = _signed(data, at + 1)
        power, whole = power + more, False
        if at < 0:
            return -1
    if count > DIGITS_MAX:
        return -1
    if count > 19:
        count -= _leading_zeros(data, first)
    if whole and count <= 19 and value < _INTEGERS:
        found.kind_U[field], found.integer_U[field] = INTEGER, -np.int64(value) if negative else np.int64(value)
        return at
    number = rounded(value, power) if count <= 19 and not whole else np.nan
    found.kind_U[field], found.number_U[field] = OTHER if np.isnan(number) else FLOAT, -number if negative else number
    return at


@njit_merged
def _signed(data: Bytes1, at: int) -> tuple[int, int]:
    """An integer that may have a sign, and the place after it, or -1: of many digits it is just far from 0."""
    negative = data[at] == _MINUS
    start = at + (negative or data[at] == _PLUS)
    value, at = digits(data, start, np.uint64(0))
    power = int(np.int64(value)) if at - start < 10 else 10**10
    return -power if negative else power, at if at > start else -1


@njit_cached
def _leading_zeros(data: Bytes1, at: int) -> int:
    """How many zeros from `at` on come before the first other digit; the point between them does not count."""
    count = 0
    while data[at] in (_ZERO, _POINT):
        count += data[at] == _ZERO
        at += 1
    return count


@njit_merged
def digits(data: Bytes1, at: int, value: np.uint64) -> tuple[np.uint64, int]:
    """What the digits from `at` on make of the number before them, modulo 2**64, and the place after them."""
    while at + 8 <= len(data):
        here = word(data, at) ^ _ZEROS
        other = (here + _ABOVE_NINE | here) & _TOPS
        if not other:
            value = value * _UNITS[8] + _eight(here)
            at += 8
            continue
        count = zeros_below(other) >> 3
        if count:
            value = value * _UNITS[count] + _eight(here << np.uint64(64 - 8 * count))
        return value, at + count
    while at < len(data) and 48 <= data[at] < 58:
        value = value * _10 + np.uint64(data[at] - 48)
        at += 1
    return value, at


@njit_merged
def _eight(here: np.uint64) -> np.uint64:
    """The number that eight digits make: all pairs at once, then the pairs of those."""
    here = here * _10 + (here >> _8) & _PAIRS
    here = here * _100 + (here >> _16) & _FOURS
    return here * _10000 + (here >> _32) & _EIGHT


@njit_merged
def rounded(value: np.uint64, power: int) -> float:
    """The float64 nearest to value * 10**power, as Python has it; NaN where that takes more than is done here."""
    if value <= np.uint64(2**53) and abs(power) <= _EXACT_MAX:  # one operation on exact numbers rounds correctly
        number = float(np.int64(value))  # which is faster than from uint64
        return number / float(_TENS[-power]) if power < 0 else number * float(_TENS[power])
    if value == np.uint64(0):
        return 0.0
    return _lemire(value, power) if abs(power) <= POWER_MAX else np.nan


def _fifths() -> npt.NDArray[np.uint64]:
    """128 leading bits of 5**power, for each power from -POWER_MAX on: cut off, but rounded up from -27 to -1."""
    words = []
    for power in range(-POWER_MAX, POWER_MAX + 1):
        five = 5 ** abs(power)
        bits = five.bit_length()
        leading = five << 128 >> bits if power >= 0 else (1 << (bits + 127)) // five + (power >= -27)
        words.append((leading >> 64, leading & (2**64 - 1)))
    return np.array(words, np.uint64)


_FIFTHS = _fifths()


@njit_cached
def _lemire(value: np.uint64, power: int) -> float:
    """Lemire, Number Parsing at a Gigabyte per Second (2021), with the proof of Mushtak and Lemire (2023).

    For a value that is not 0, and a result that is neither subnormal nor infinite.
    """
    zeros = zeros_above(value)
    value <<= np.uint64(zeros)
    high, low = high_word(value, _FIFTHS[power + POWER_MAX, 0]), value * _FIFTHS[power + POWER_MAX, 0]
    if high & np.uint64(0x1FF) == np.uint64(0x1FF):
        more = high_word(value, _FIFTHS[power + POWER_MAX, 1])
        low += more
        high += np.uint64(low < more)
    top = high >> np.uint64(63)
    drop = top + np.uint64(9)
    mantissa = high >> drop
    exponent = ((217_706 * power) >> 16) + 63 + np.int64(top) - zeros + 1023
    if (
        low <= np.uint64(1)
        and -4 <= power <= 23
        and mantissa & np.uint64(3) == np.uint64(1)
        and mantissa << drop == high
    ):
        mantissa ^= np.uint64(1)  # half-way: to the even one
    mantissa = (mantissa + (mantissa & np.uint64(1))) >> np.uint64(1)
    return float_of(mantissa - np.uint64(2**52) + (np.uint64(exponent) << np.uint64(52)))
