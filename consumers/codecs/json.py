"""JSON objects to columns.

The scanner reads a message once, from left to right, and takes only what the strict parser would take. Messages are
read one by one, never joined: two bad halves could make a good whole.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from consumers.codecs import fields, strict
from consumers.codecs.envelope import WRITTEN
from consumers.codecs.fields import Reject
from consumers.codecs.keys import FIELD, OBJECTS, PLAIN, ROOT, SEEN, Keys, new_keys, next_key
from consumers.codecs.numbers import put_number
from consumers.codecs.rowwise import RowCodec
from consumers.codecs.scan import (
    BOOL,
    CLOUDEVENTS,
    DEBEZIUM,
    MISSING,
    NULL,
    OBJECT,
    OTHER,
    SCRATCH,
    SCRATCH_BYTES,
    TEXT,
    Found,
    MessageArrays,
    Plan,
    new_found,
    planned,
    take,
)
from consumers.codecs.strict import NESTING_MAX
from consumers.codecs.table import RowArrays
from consumers.codecs.text import QUOTE, SPACES, after_spaces, after_text, unescaped
from consumers.codecs.words import half
from consumers.compiled import njit_cached, njit_merged
from consumers.config import FeaturesConfig, LabelRule, LabelsConfig
from consumers.record import Bytes1

_OPEN, _CLOSE, _OPEN_LIST, _CLOSE_LIST, _COMMA, _F, _N, _T = b"{}[],fnt"
_NULL, _TRUE, _ALSE = (int.from_bytes(text, "little") for text in (b"null", b"true", b"alse"))

_AROUND = 5  # fields of an envelope, at most
_WRITTEN_BYTES = tuple("".join(WRITTEN).encode())


class JsonCodec(RowCodec):
    """Decodes the messages of one topic; `label` says which labels are good, if it carries any."""

    def __init__(self, config: FeaturesConfig | LabelsConfig, label: LabelRule) -> None:
        super().__init__(config, label)
        self._numeric = {column.name for column in config.numeric} if isinstance(config, FeaturesConfig) else set()
        names, self._plan = planned(config, label)
        paths = _paths(names, config.envelope)
        others = len(names) + _AROUND
        self._found = new_found(others + 1)  # the last one for whatever is in no field
        self._keys = new_keys(paths, others)

    def decode_fast(self, messages: MessageArrays, rows: RowArrays, good_N: npt.NDArray[np.bool_]) -> None:
        """By the scanner."""
        _decode(messages, self._keys, self._plan, self._found, rows, good_N)

    def parse(self, value: bytes) -> dict[str, Any]:
        """The object that a message holds: NaN, which is no JSON, only in numeric columns."""
        document = strict.parse(value)
        for name, item in document.items():
            if fields.is_nan(item) and name not in self._numeric:
                raise Reject(f"field {fields.shown(name)}: NaN, but it is not a numeric column")
        return document


def _paths(names: Sequence[str], envelope: str) -> dict[tuple[str, ...], int]:
    """Which field stands where in a message. Behind those of the event come those of its envelope."""
    around: list[tuple[str, ...]] = []
    events: list[tuple[str, ...]] = [()]
    if envelope == "cloudevents":
        around, events = [("specversion",), ("data",)], [("data",)]
    elif envelope == "debezium":
        around = [("op",), ("after",), ("payload",), ("payload", "op"), ("payload", "after")]
        events = [("after",), ("payload", "after")]
    within = {(*event, name): field for event in events for field, name in enumerate(names)}
    return {path: field for field, path in enumerate(around, len(names))} | within


@njit_merged
def _unwrapped(data: Bytes1, envelope: int, found: Found) -> bool:
    """Whether the message is an event, in an envelope of the topic's kind, and its fields were found in it."""
    first = len(found.kind_U) - 1 - _AROUND
    kinds = found.kind_U[first:]
    if envelope == CLOUDEVENTS:
        return kinds[0] in (TEXT, SCRATCH) and kinds[1] == OBJECT
    if envelope == DEBEZIUM:
        op, after, payload = 0, 1, 2
        if kinds[payload] == OBJECT and kinds[op] == MISSING and kinds[after] == MISSING:
            op, after = 3, 4
        elif kinds[payload] != MISSING:
            return False
        written = kinds[op] == TEXT and found.length_U[first + op] == 1
        return written and data[found.start_U[first + op]] in _WRITTEN_BYTES and kinds[after] == OBJECT
    return True


@njit_cached
def _decode(
    messages: MessageArrays,
    keys: Keys,
    plan: Plan,
    found: Found,
    rows: RowArrays,
    good_N: npt.NDArray[np.bool_],
) -> None:
    values = messages.values
    for index in range(len(good_N)):
        start, length = values.start_N[index], values.length_N[index]
        if 0 < length <= plan.bytes_max:
            found.kind_U[:] = MISSING
            good_N[index] = (
                _scan(values.data, start, start + length, keys, found)
                and _unwrapped(values.data, plan.envelope, found)
                and take(messages, index, found, plan, rows)
            )


@njit_merged
def _scan(data: Bytes1, at: int, stop: int, keys: Keys, found: Found) -> bool:
    """Whether `[at, stop)` is an object, and all of the topic's fields in it were found."""
    while stop > at and data[stop - 1] in SPACES:
        stop -= 1
    if stop == at or data[stop - 1] != _CLOSE or data[after_spaces(data, at)] != _OPEN:
        return False  # beyond the last brace no space, number or word goes on
    at = after_spaces(data, at)
    others = field = len(found.kind_U) - 1
    around_L3, level, used = keys.around_L3, 0, 0
    owner, number, previous = ROOT, 0, ROOT
    while True:
        first = data[at]
        if first in (_OPEN, _OPEN_LIST):
            if level == NESTING_MAX:
                return False
            around_L3[level, 0], around_L3[level, 1], around_L3[level, 2] = owner, number, previous
            level += 1
            owner, previous = keys.key_KA[previous, PLAIN] if number else owner, ROOT
            keys.count_5[OBJECTS] += 1
            number = keys.count_5[OBJECTS] if first == _OPEN else 0
            found.kind_U[field] = OBJECT if first == _OPEN else OTHER
            at = after_spaces(data, at + 1)
            more = data[at] != (_CLOSE if number else _CLOSE_LIST)
        else:
            at, used = _put_value(data, at, stop, found, field, used)
            if at < 0:
                return False
            more, at = _after_comma(data, at)
        while not more:
            if data[at] != (_CLOSE if number else _CLOSE_LIST):
                return False
            level, at = level - 1, at + 1
            if level == 0 or at == stop:
                return level == 0 and at == stop
            owner, number, previous = around_L3[level, 0], around_L3[level, 1], around_L3[level, 2]
            more, at = _after_comma(data, at)
        field = others
        if number:
            previous, at = next_key(data, at, stop, keys, owner, previous)
            plain = keys.key_KA[previous, PLAIN]
            if previous == ROOT or at >= stop or keys.key_KA[plain, SEEN] == number:
                return False
            keys.key_KA[plain, SEEN] = number
            field = keys.key_KA[plain, FIELD]
            at = after_spaces(data, at)


@njit_merged
def _after_comma(data: Bytes1, at: int) -> tuple[bool, int]:
    """Whether a comma comes next, and the place of what comes after spaces and it."""
    at = after_spaces(data, at)
    return (True, after_spaces(data, at + 1)) if data[at] == _COMMA else (False, at)


@njit_merged
def _put_value(data: Bytes1, at: int, stop: int, found: Found, field: int, used: int) -> tuple[int, int]:
    """Reads a text, a number or a word: the place after it, or -1, and how much of the scratch is now in use."""
    first = data[at]
    if first == QUOTE:
        return _put_text(data, at + 1, stop, found, field, used)
    if first < _F:
        return put_number(data, at, found, field), used
    if at + 4 >= stop:
        return -1, used
    if first == _N and half(data, at) == _NULL:
        found.kind_U[field] = NULL
        return at + 4, used
    found.kind_U[field], found.integer_U[field] = BOOL, first == _T
    if first == _T and half(data, at) == _TRUE:
        return at + 4, used
    return at + 5 if first == _F and at + 5 < stop and half(data, at + 1) == _ALSE else -1, used


@njit_merged
def _put_text(data: Bytes1, start: int, stop: int, found: Found, field: int, used: int) -> tuple[int, int]:
    end = after_text(data, start, stop)
    if end < 0:
        return -1, used
    if data[end] == QUOTE:
        found.kind_U[field], found.start_U[field], found.length_U[field] = TEXT, start, end - start
        return end + 1, used
    behind, put = unescaped(data, start, stop, found.scratch[:SCRATCH_BYTES], used)
    found.kind_U[field] = SCRATCH if put >= 0 else OTHER
    found.start_U[field], found.length_U[field] = used, put - used
    return behind, put if put >= 0 and field < len(found.kind_U) - 1 else used
