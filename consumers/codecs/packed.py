"""Packed structs to columns: little-endian fields one after another, as the job file's `layout` lists them.

The layout may grow at its end. A message that is longer has fields that this job does not know yet; in one that ends
before a field, that field is missing. Anything else (another order, another type) is another layout.
A text is padded with zero bytes, and null if it has no other; a field that makes no part of a row is not looked at.
"""

from __future__ import annotations

import struct
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from consumers.codecs.cells import REAL, SIGNED, UNSIGNED, find_number
from consumers.codecs.fields import Reject, shown
from consumers.codecs.rowwise import RowCodec
from consumers.codecs.scan import BOOL, MISSING, NULL, TEXT, Found, MessageArrays, Plan, new_found, planned, take
from consumers.codecs.table import RowArrays
from consumers.codecs.text import valid_text
from consumers.compiled import njit_cached, njit_merged
from consumers.config import LAYOUT_ENTRY, FeaturesConfig, LabelRule, LabelsConfig
from consumers.record import Bytes1, Int64s

_CODES = {"i8": "b", "i16": "h", "i32": "i", "i64": "q", "u8": "B", "u16": "H", "u32": "I", "u64": "Q"} | {
    "f32": "f",
    "f64": "d",
    "bool": "B",
}
_FLAG, _TEXT = REAL + 1, REAL + 2
_MEANINGS = {"i": SIGNED, "u": UNSIGNED, "f": REAL, "b": _FLAG, "t": _TEXT}


class _Field(NamedTuple):
    """One field of the layout; where it lies, in bytes from the start of the message."""

    name: str
    type: str
    start: int
    stop: int

    def value(self, message: bytes) -> Any:
        """What stands in it. Raises Reject."""
        if self.type.startswith("text"):
            raw = message[self.start : self.stop].rstrip(b"\0")
            try:
                return raw.decode() or None
            except UnicodeDecodeError as error:
                raise Reject(f"field {self.name!r}: byte {error.start} of the text is not UTF-8") from None
        (value,) = struct.unpack_from(f"<{_CODES[self.type]}", message, self.start)
        if self.type != "bool":
            return value
        if value > 1:
            raise Reject(f"field {self.name!r}: {value} is no boolean: a byte 0 or 1")
        return value == 1


class _Layout(NamedTuple):
    """The layout as the compiled loop takes it, for the U fields that rows are made of."""

    meaning_U: Int64s
    start_U: Int64s
    stop_U: Int64s
    ends: npt.NDArray[np.bool_]  # whether a message of so many bytes ends with a field


class PackedCodec(RowCodec):
    """Decodes the messages of one topic; `label` says which labels are good, if it carries any."""

    def __init__(self, config: FeaturesConfig | LabelsConfig, label: LabelRule) -> None:
        super().__init__(config, label)
        names, self._plan = planned(config, label)
        self._all = _fields(config.layout)
        used = {field.name: field for field in self._all}
        self._used = [used[name] for name in names]
        ends = np.zeros(self._all[-1].stop + 1, np.bool_)
        ends[[0, *[field.stop for field in self._all]]] = True
        self._layout = _Layout(
            np.array([_MEANINGS[field.type[0]] for field in self._used], np.int64),
            np.array([field.start for field in self._used], np.int64),
            np.array([field.stop for field in self._used], np.int64),
            ends,
        )
        self._found = new_found(len(names))

    def decode_fast(self, messages: MessageArrays, rows: RowArrays, good_N: npt.NDArray[np.bool_]) -> None:
        """By the compiled loop."""
        _decode(messages, self._layout, self._plan, self._found, rows, good_N)

    def parse(self, value: bytes) -> dict[str, Any]:
        """The fields that rows are made of, as far as the message has them."""
        for field in self._all:
            if field.start < len(value) < field.stop:
                raise Reject(f"cut short: the message ends within field {shown(field.name)} of the layout")
        return {field.name: field.value(value) for field in self._used if field.stop <= len(value)}


def _fields(layout: tuple[str, ...]) -> list[_Field]:
    fields, start = [], 0
    for entry in layout:
        match = LAYOUT_ENTRY.fullmatch(entry)
        assert match, "the configuration was checked"
        name, kind, text_bytes = match.groups()
        stop = start + (int(text_bytes) if text_bytes else struct.calcsize(f"<{_CODES[kind]}"))
        fields.append(_Field(name, kind, start, stop))
        start = stop
    return fields


@njit_cached
def _decode(
    messages: MessageArrays,
    layout: _Layout,
    plan: Plan,
    found: Found,
    rows: RowArrays,
    good_N: npt.NDArray[np.bool_],
) -> None:
    values = messages.values
    for index in range(len(good_N)):
        length = values.length_N[index]
        if 0 <= length <= plan.bytes_max and _scan(values.data, values.start_N[index], length, layout, found):
            good_N[index] = take(messages, index, found, plan, rows)


@njit_merged
def _scan(data: Bytes1, start: int, length: int, layout: _Layout, found: Found) -> bool:
    good = length >= len(layout.ends) or layout.ends[length]
    for field in range(len(layout.start_U) if good else 0):
        at, stop = layout.start_U[field], layout.stop_U[field]
        meaning = layout.meaning_U[field]
        if stop > length:
            found.kind_U[field] = MISSING
        elif meaning == _TEXT:
            good &= _find_text(data, start + at, start + stop, field, found)
        elif meaning == _FLAG:
            found.kind_U[field] = BOOL
            found.integer_U[field] = data[start + at]
            good &= data[start + at] <= 1
        else:
            good &= find_number(data, start + at, meaning, stop - at, field, found)
    return good


@njit_merged
def _find_text(data: Bytes1, start: int, stop: int, field: int, found: Found) -> bool:
    while stop > start and data[stop - 1] == 0:
        stop -= 1
    found.kind_U[field] = TEXT if stop > start else NULL
    found.start_U[field] = start
    found.length_U[field] = stop - start
    return valid_text(data, start, stop)
