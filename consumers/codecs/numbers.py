"""Decimal numbers in bytes to numbers, correctly rounded: compiled."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from consumers.codecs.words import float_of, high_word, word, zeros_above, zeros_below
from consumers.compiled import njit_borrowing
from consumers.record import Bytes1

POWER_MAX = 64
"""Of ten, up and down: beyond it `rounded` gives up."""

_EXACT_MAX = 22  # powers of ten up to here are float64
_TENS = 10.0 ** np.arange(_EXACT_MAX + 1)
_UNITS = 10 ** np.arange(9, dtype=np.uint64)

_TOPS, _ONES = np.uint64(0x8080808080808080), np.uint64(0x0101010101010101)
_ZEROS, _ABOVE_NINE = _ONES * np.uint64(ord("0")), _ONES * np.uint64(0x80 - 10)
_PAIRS, _FOURS, _EIGHT = np.uint64(0x00FF00FF00FF00FF), np.uint64(0x0000FFFF0000FFFF), np.uint64(0xFFFFFFFF)
_8, _16, _32, _10, _100, _10000 = map(np.uint64, (8, 16, 32, 10, 100, 10_000))


@njit_borrowing
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


@njit_borrowing
def _eight(here: np.uint64) -> np.uint64:
    """The number that eight digits make: all pairs at once, then the pairs of those."""
    here = here * _10 + (here >> _8) & _PAIRS
    here = here * _100 + (here >> _16) & _FOURS
    return here * _10000 + (here >> _32) & _EIGHT


@njit_borrowing
def rounded(value: np.uint64, power: int) -> float:
    """The float64 nearest to value * 10**power, as Python has it; NaN where that takes more than is done here."""
    if value <= np.uint64(2**53) and abs(power) <= _EXACT_MAX:  # one operation on exact numbers rounds correctly
        return np.int64(value) / _TENS[-power] if power < 0 else np.int64(value) * _TENS[power]
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


@njit_borrowing
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
