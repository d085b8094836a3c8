"""The keys of a topic's JSON objects, which producers write in the same order again and again.

They form a tree: a key belongs to the key whose value its object is, be it in a list or not. So each path has a
number of its own, and while a message is read, the key expected next is the one that came next the last time.
What is remembered saves work and changes no result.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from consumers.codecs.strict import NESTING_MAX
from consumers.codecs.text import BACKSLASH, QUOTE, SPACE, after_spaces, after_text, unescaped
from consumers.codecs.words import word
from consumers.compiled import njit_cached, njit_merged
from consumers.record import Bytes1, Int64s

NAME_BYTES_MAX = 256
LEARNED_MAX = 1024
"""Keys beside the fields; when there are more, all of these are forgotten."""

_LEARNED_BYTES = 65_536
_ROOM = NAME_BYTES_MAX + 16  # for one key; there is always some

ROOT = 0
"""The number of no key: it owns the message itself."""

START, LENGTH, MASK, OWNER, PLAIN, FIELD, FIRST, NEXT, SEEN = range(9)
"""Columns of `Keys.key_KA`: where its text is, how long, and which bits of the text's last word count; the key it
belongs to; the same key as it is written without escapes; its place among the fields; the keys that came first in its
object and after it the last time; the number of the object it was last met in."""

KEYS, BYTES, FIXED_KEYS, FIXED_BYTES, OBJECTS = range(5)
"""In `Keys.count_5`: keys and bytes of text; those of them that are never forgotten; objects met so far."""

_COLON = ord(":")
_PRIME = np.uint64(0x9E3779B185EBCA87)


class Keys(NamedTuple):
    """Up to K keys."""

    text: Bytes1  # of each, as it was written: `"name":`, filled up with zeros to whole words
    key_KA: Int64s
    place_H: Int64s  # hash table of their numbers; ROOT where there is none
    count_5: Int64s
    around_L3: Int64s  # while a message is read, of each object or list around the value: the key that it belongs to;
    # its number, or 0 for a list; the last key in it


def new_keys(paths: Mapping[tuple[str, ...], int], others: int) -> Keys:
    """Keys of which these are never forgotten: the place of each path among the fields; it begins with one before it.

    All other keys have the place `others`. Names that JSON does not write as they are it never finds, nor takes.
    """
    count = LEARNED_MAX + len(paths) + 1
    keys = Keys(
        np.zeros(_LEARNED_BYTES + len(paths) * _ROOM, np.uint8),
        np.zeros((count, 9), np.int64),
        np.zeros(4 << count.bit_length(), np.int64),
        np.array([1, 0, 1, 0, 0], np.int64),
        np.zeros((NESTING_MAX, 3), np.int64),
    )
    keys.key_KA[:, FIELD] = others
    numbers: dict[tuple[str, ...], int] = {(): ROOT}
    for path, field in paths.items():
        name = path[-1].encode()
        if json.dumps(path[-1], ensure_ascii=False) == f'"{path[-1]}"' and len(name) <= NAME_BYTES_MAX:
            numbers[path] = _learned(np.frombuffer(name, np.uint8), 0, len(name), keys, numbers[path[:-1]])
            keys.key_KA[numbers[path], FIELD] = field
    keys.count_5[FIXED_KEYS], keys.count_5[FIXED_BYTES] = keys.count_5[KEYS], keys.count_5[BYTES]
    return keys


@njit_merged
def next_key(data: Bytes1, at: int, stop: int, keys: Keys, owner: int, previous: int) -> tuple[int, int]:
    """The key at `at`, and the place after its colon; ROOT if the fast way does not take it.

    It comes after the key `previous`, or first if that is ROOT, in an object of the key `owner`.
    """
    guess = keys.key_KA[previous, NEXT] if previous else keys.key_KA[owner, FIRST]
    if guess and _written_at(data, at, keys, guess):
        return guess, at + keys.key_KA[guess, LENGTH]
    key, behind = _looked_up(data, at, stop, keys, owner)
    if previous:
        keys.key_KA[previous, NEXT] = key
    else:
        keys.key_KA[owner, FIRST] = key
    return key, behind


@njit_merged
def _written_at(data: Bytes1, at: int, keys: Keys, key: int) -> bool:
    place, rest = keys.key_KA[key, START], keys.key_KA[key, LENGTH]
    if at + rest + 8 > len(data):
        return False
    while rest > 8:
        if word(data, at) != word(keys.text, place):
            return False
        at, place, rest = at + 8, place + 8, rest - 8
    return not (word(data, at) ^ word(keys.text, place)) & np.uint64(keys.key_KA[key, MASK])


@njit_cached
def _looked_up(data: Bytes1, at: int, stop: int, keys: Keys, owner: int) -> tuple[int, int]:
    """As `next_key`, without a guess."""
    end = after_text(data, at + 1, stop) if data[at] == QUOTE else -1
    if end < 0:
        return ROOT, at
    start, plain = at + 1, ROOT
    if data[end] == BACKSLASH:
        name = keys.count_5[BYTES] + 1  # where it is learned
        behind, name_end = unescaped(data, start, stop, keys.text, name)
        if not _writable(keys.text, name, name_end):
            return ROOT, at
        plain, end = _learned(keys.text, name, name_end - name, keys, owner), behind - 1
        if plain == ROOT:
            return ROOT, at
    colon = after_spaces(data, end + 1)
    if data[colon] != _COLON:
        return ROOT, at
    key = _learned(data, start, end - start, keys, owner)
    if plain and key:
        keys.key_KA[key, PLAIN] = plain
    return key, colon + 1


@njit_cached
def _writable(text: Bytes1, start: int, stop: int) -> bool:
    """Whether this is a name that JSON writes as it is."""
    while start < stop and text[start] >= SPACE and text[start] not in (QUOTE, BACKSLASH):
        start += 1
    return start == stop


@njit_cached
def _learned(name: Bytes1, start: int, length: int, keys: Keys, owner: int) -> int:
    """The number of a key, a new one if need be. ROOT if it is too long, or if there have been too many."""
    if length > NAME_BYTES_MAX:
        return ROOT
    place = _place(name, start, length, keys, owner)
    if keys.place_H[place] != ROOT:
        return int(keys.place_H[place])
    key, text = keys.count_5[KEYS], keys.count_5[BYTES]
    if key == len(keys.key_KA) or text + 2 * _ROOM > len(keys.text):
        _forget(keys)
        return ROOT
    for number in range(length):
        keys.text[text + 1 + number] = name[start + number]
    keys.text[text], keys.text[text + length + 1], keys.text[text + length + 2] = QUOTE, QUOTE, _COLON
    keys.text[text + length + 3 : text + length + 11] = 0
    key_A = keys.key_KA[key]
    key_A[START], key_A[LENGTH], key_A[OWNER], key_A[PLAIN] = text, length + 3, owner, key
    key_A[MASK] = -1 if (length + 3) % 8 == 0 else (1 << 8 * ((length + 3) % 8)) - 1
    key_A[FIRST], key_A[NEXT], key_A[SEEN] = ROOT, ROOT, 0
    keys.place_H[place] = key
    keys.count_5[KEYS], keys.count_5[BYTES] = key + 1, text + (length + 3 + 7) // 8 * 8
    return int(key)


@njit_cached
def _place(name: Bytes1, start: int, length: int, keys: Keys, owner: int) -> int:
    """Where a key is in the hash table, or where it would be."""
    hashed = np.uint64(owner) * _PRIME
    for place in range(start, start + length):
        hashed = (hashed ^ np.uint64(name[place])) * _PRIME
    mask = len(keys.place_H) - 1
    place = int(np.int64(hashed >> np.uint64(32))) & mask
    while keys.place_H[place] != ROOT and not _is(name, start, length, keys, owner, keys.place_H[place]):
        place = (place + 1) & mask
    return place


@njit_cached
def _is(name: Bytes1, start: int, length: int, keys: Keys, owner: int, key: int) -> bool:
    if keys.key_KA[key, OWNER] != owner or keys.key_KA[key, LENGTH] != length + 3:
        return False
    text, number = keys.key_KA[key, START] + 1, 0
    while number < length and name[start + number] == keys.text[text + number]:
        number += 1
    return number == length


@njit_cached
def _forget(keys: Keys) -> None:
    """All that was learned."""
    keys.count_5[KEYS], keys.count_5[BYTES] = keys.count_5[FIXED_KEYS], keys.count_5[FIXED_BYTES]
    keys.place_H[:] = ROOT
    for key in range(keys.count_5[FIXED_KEYS]):
        keys.key_KA[key, FIRST], keys.key_KA[key, NEXT] = ROOT, ROOT
        if key != ROOT:
            name, length = keys.key_KA[key, START] + 1, keys.key_KA[key, LENGTH] - 3
            keys.place_H[_place(keys.text, name, length, keys, keys.key_KA[key, OWNER])] = key
