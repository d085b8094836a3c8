"""UTF-8 in bytes, and JSON's way to write it: compiled.

Where a function returns a place, -1 stands for what it does not take.
"""

from __future__ import annotations

import numpy as np

from consumers.codecs.words import word, zeros_below
from consumers.compiled import njit_cached, njit_merged
from consumers.record import Bytes1

QUOTE, BACKSLASH, SPACE = b'"\\ '
SPACES = tuple(b" \t\n\r")

_TOPS, _ONES = np.uint64(0x8080808080808080), np.uint64(0x0101010101010101)
_QUOTES, _BACKSLASHES, _SPACES = (_ONES * np.uint64(each) for each in (QUOTE, BACKSLASH, SPACE))

_ESCAPED = np.zeros(256, np.uint8)
_ESCAPED[list(b'"\\/bfnrt')] = list(b'"\\/\b\f\n\r\t')

_DIGIT = np.full(256, 255, np.uint8)
_DIGIT[list(b"0123456789abcdef")] = range(16)
_DIGIT[list(b"ABCDEF")] = range(10, 16)


@njit_cached
def valid_text(data: Bytes1, start: int, stop: int) -> bool:
    """Whether `[start, stop)` is UTF-8."""
    at = start
    while 0 <= at < stop:
        while at + 8 <= stop and not word(data, at) & _TOPS:
            at += 8
        if at < stop:
            at = at + 1 if data[at] < 0x80 else after_character(data, at, stop)
    return bool(at == stop)


@njit_cached
def after_character(data: Bytes1, at: int, stop: int) -> int:
    """The place after the character that begins at `at`, which is not ASCII, if it is UTF-8 and ends before `stop`."""
    first = data[at]
    size = 2 if first < 0xE0 else 3 if first < 0xF0 else 4
    if not 0xC2 <= first <= 0xF4 or at + size > stop:
        return -1
    code = np.int64(first) & (0x7F >> size)
    for place in range(at + 1, at + size):
        if data[place] & 0xC0 != 0x80:
            return -1
        code = code << 6 | data[place] & 0x3F
    if (size == 3 and (code < 0x800 or 0xD800 <= code < 0xE000)) or (size == 4 and not 0x10000 <= code < 0x110000):
        return -1
    return at + size


@njit_merged
def after_plain(data: Bytes1, at: int, stop: int) -> int:
    """The place of the first byte from `at` on, or `stop`, that is not just itself in JSON.

    That is a quote, a backslash, a control character, or a part of a character that is not ASCII.
    """
    while at + 8 <= len(data):
        here = word(data, at)
        quotes, backslashes = here ^ _QUOTES, here ^ _BACKSLASHES
        low = (quotes - _ONES) & ~quotes | (backslashes - _ONES) & ~backslashes | (here - _SPACES) & ~here
        other = (low | here) & _TOPS
        if other:
            return min(at + (zeros_below(other) >> 3), stop)
        at += 8
        if at >= stop:
            return stop
    while at < stop and SPACE <= data[at] < 0x80 and data[at] not in (QUOTE, BACKSLASH):
        at += 1
    return at


@njit_merged
def after_text(data: Bytes1, at: int, stop: int) -> int:
    """The place of the quote or backslash that comes first from `at` on, if all before is good."""
    while True:
        at = after_plain(data, at, stop)
        if at >= stop or data[at] < SPACE:
            return -1
        if data[at] < 0x80:
            return at
        at = after_character(data, at, stop)
        if at < 0:
            return -1


@njit_cached
def unescaped(data: Bytes1, at: int, stop: int, scratch: Bytes1, put: int) -> tuple[int, int]:
    """Writes text with escapes as UTF-8 to `scratch` from `put` on, up to its quote: the places after both.

    If there is too little room, it begins again at `put`, and the second place is -1.
    """
    begin, full = put, False
    while True:
        end = after_text(data, at, stop)
        if end < 0:
            return -1, -1
        while at < end:
            if put + 4 >= len(scratch):
                put, full = begin, True
            scratch[put] = data[at]
            at, put = at + 1, put + 1
        if data[end] == QUOTE:
            return end + 1, -1 if full else put
        if put + 4 >= len(scratch):
            put, full = begin, True
        at, put = _unescape(data, end + 1, stop, scratch, put)
        if at < 0:
            return -1, -1


@njit_cached
def _unescape(data: Bytes1, at: int, stop: int, scratch: Bytes1, put: int) -> tuple[int, int]:
    """One escape, without its backslash."""
    if at >= stop:
        return -1, -1
    simple = _ESCAPED[data[at]]
    if simple:
        scratch[put] = simple
        return at + 1, put + 1
    code = _unit(data, at, stop)
    at += 5
    if 0xD800 <= code < 0xDC00 and at < stop and data[at] == BACKSLASH:
        second = _unit(data, at + 1, stop)
        at += 6
        code = 0x10000 + ((code & 0x3FF) << 10) + (second & 0x3FF) if 0xDC00 <= second < 0xE000 else -1
    if code < 0 or 0xD800 <= code < 0xE000:
        return -1, -1
    size = 1 if code < 0x80 else 2 if code < 0x800 else 3 if code < 0x10000 else 4
    for place in range(put + size - 1, put, -1):
        scratch[place] = 0x80 | code & 0x3F
        code >>= 6
    scratch[put] = code if size == 1 else 0xF00 >> size & 0xFF | code
    return at, put + size


@njit_cached
def _unit(data: Bytes1, at: int, stop: int) -> int:
    """The number in `uXXXX`."""
    if at + 5 > stop or data[at] != 117:
        return -1
    code = 0
    for place in range(at + 1, at + 5):
        digit = int(_DIGIT[data[place]])
        if digit > 15:
            return -1
        code = code << 4 | digit
    return code


@njit_merged
def after_spaces(data: Bytes1, at: int) -> int:
    """The place of the first byte from `at` on that is no space to JSON: the caller knows that there is one."""
    while data[at] <= SPACE and data[at] in SPACES:
        at += 1
    return at
