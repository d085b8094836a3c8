"""Protobuf to columns: plain, by one message of a FileDescriptorSet, or in Confluent's wire format, by any number.

Columns are found by their names in the writer's schema and by their numbers in a message; all else is skipped. Scalars
are values, and so are the wrappers and google.protobuf.Timestamp, in milliseconds. Enums are their numbers. A scalar
that is not in a message is 0, false or empty, but missing where the schema can tell (`optional`, members of a oneof,
proto2); so is a wrapper. Bytes are no values.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from google.protobuf.descriptor_pb2 import DescriptorProto, FileDescriptorProto, FileDescriptorSet
from google.protobuf.message import DecodeError

from consumers.codecs.binary import float32, varint, zigzag
from consumers.codecs.fields import Reject
from consumers.codecs.protobuf_layout import (
    EIGHT,
    FOUR,
    SFIXED32,
    SINT32,
    SINT64,
    SIZED,
    STRING,
    TIMESTAMP,
    VARINT,
    Fields,
    Layout,
)
from consumers.codecs.registry import Registry
from consumers.codecs.scan import MISSING, Found, Plan, new_found, planned, take
from consumers.codecs.schemas import HEADER_BYTES, Bodies, Reader, SchemaCodec
from consumers.codecs.table import RowArrays
from consumers.codecs.text import valid_text
from consumers.codecs.words import float_of, half, word
from consumers.compiled import njit_cached, njit_merged
from consumers.config import FeaturesConfig, LabelRule, LabelsConfig
from consumers.record import Bytes1

NESTING_MAX = 32
"""Of message types within each other."""

NUMBER_MAX = 2**29 - 1  # of a field

SHORT_MAX = 5
"""Bytes of a tag, and of a size."""

SECONDS_MAX = 2**40
"""Of a timestamp that the scanner takes: well beyond the year 9999."""


class ProtobufCodec(SchemaCodec):
    """Decodes the messages of one topic; `label` says which labels are good, if it carries any."""

    def __init__(self, config: FeaturesConfig | LabelsConfig, label: LabelRule) -> None:
        self._names, self._plan = planned(config, label)
        self._message = config.message or ""
        super().__init__(config, label)

    def of_file(self, path: Path) -> Reader:
        """By the configured message of a FileDescriptorSet."""
        files = _parsed(FileDescriptorSet(), path.read_bytes()).file
        for file in files:
            for name, message in _messages(file.package, file.message_type):
                if name == self._message:
                    return _Reader(Fields(file, message, self._names), self._plan)
        raise Reject(f"no message {self._message!r} in it; make it with protoc --include_imports --descriptor_set_out")

    def of_registry(self, registry: Registry, header: bytes) -> Reader:
        """By the message of the schema that the header names."""
        schema_id = int.from_bytes(header[1:HEADER_BYTES], "big")
        file = _parsed(FileDescriptorProto(), registry.protobuf(schema_id))
        within, message = file.message_type, DescriptorProto()
        for index in _indexes(header)[0]:
            if not 0 <= index < len(within):
                raise Reject(f"schema id {schema_id} has no such message")
            message = within[index]
            within = message.nested_type
        return _Reader(Fields(file, message, self._names), self._plan)

    def header(self, value: bytes) -> bytes:
        """Schema id, and the place of the message's type in the schema."""
        return super().header(value) + value[HEADER_BYTES : _indexes(value)[1]]


def _messages(package: str, messages: Any) -> Iterator[tuple[str, DescriptorProto]]:
    """All message types, with their full names."""
    for message in messages:
        name = f"{package}.{message.name}" if package else message.name
        yield name, message
        yield from _messages(name, message.nested_type)


def _indexes(value: bytes) -> tuple[list[int], int]:
    """Which message of the file, which message in that, ...: the numbers behind the schema id, and where they end."""
    data, at = np.frombuffer(value, np.uint8), HEADER_BYTES
    numbers: list[int] = []
    count, at = _number(data, at)
    if count == 0:
        return [0], at
    if not 0 < count <= NESTING_MAX:
        raise Reject("not in Confluent's wire format: no message indexes behind the schema id")
    for _ in range(count):
        number, at = _number(data, at)
        numbers.append(number)
    return numbers, at


def _number(data: Bytes1, at: int) -> tuple[int, int]:
    number, at = varint(data, at, len(data))
    if at < 0:
        raise Reject("not in Confluent's wire format: no message indexes behind the schema id")
    return zigzag(number), at


def _parsed(message: Any, data: bytes) -> Any:
    try:
        message.ParseFromString(data)
    except DecodeError:
        raise Reject("no serialised Protobuf schema") from None
    return message


class _Reader(Reader):
    """Reads messages by one message type."""

    def __init__(self, fields: Fields, plan: Plan) -> None:
        self._fields, self._plan = fields, plan
        self._found = new_found(len(fields.layout.default_U))

    def decode_fast(self, bodies: Bodies, rows: RowArrays, good_N: npt.NDArray[np.bool_]) -> None:
        """By the layout."""
        _decode(bodies, self._fields.layout, self._plan, self._found, rows, good_N)

    def parse(self, body: bytes) -> Mapping[str, Any]:
        """By protobuf."""
        message = self._fields.type()
        try:
            message.ParseFromString(body)
        except DecodeError:
            raise Reject("not Protobuf, or text in it that is not UTF-8") from None
        return dict(self._values(message))

    def _values(self, message: Any) -> Iterator[tuple[str, Any]]:
        for field in message.DESCRIPTOR.fields:
            if field.has_presence and not message.HasField(field.name):
                continue
            value = getattr(message, field.name)
            if field.message_type is not None:
                timestamp = field.message_type.name == "Timestamp"
                value = value.seconds * 1000 + value.nanos // 1_000_000 if timestamp else value.value
            yield self._fields.names[field.name], value


@njit_cached
def _decode(
    bodies: Bodies, layout: Layout, plan: Plan, found: Found, rows: RowArrays, good_N: npt.NDArray[np.bool_]
) -> None:
    values, index_M = bodies.messages.values, bodies.index_M
    for number in range(len(index_M)):
        index = index_M[number]
        for slot in range(len(found.kind_U)):
            found.kind_U[slot] = layout.default_U[slot]
        found.integer_U[:] = 0
        found.number_U[:] = 0
        found.length_U[:] = 0
        start, stop = values.start_N[index] + bodies.header_bytes, values.start_N[index] + values.length_N[index]
        good = _scan(values.data, start, stop, layout, found)
        good_N[index] = good and take(bodies.messages, index, found, plan, rows)


@njit_merged
def _scan(data: Bytes1, at: int, stop: int, layout: Layout, found: Found) -> bool:
    """Notes the fields in bytes `[at, stop)`; False if they are not plainly what the layout says."""
    entry = 0
    while 0 <= at < stop:
        tag, at = varint(data, at, min(stop, at + SHORT_MAX))
        number, wire = tag >> 3, tag & 7
        if at < 0 or not 1 <= number <= NUMBER_MAX:
            return False
        while entry > 0 and layout.number_E[entry - 1] >= number:  # they mostly come in order
            entry -= 1
        while layout.number_E[entry] < number:
            entry += 1
        if layout.number_E[entry] != number:
            at = _skipped(data, at, stop, wire)
        elif layout.message_E[entry]:
            at = _message(data, at, stop, layout, entry, found) if wire == SIZED else -1
        elif wire == layout.wire_E[entry]:
            at = _value(data, at, stop, layout, entry, found)
        else:
            return False
    return bool(at == stop)


@njit_merged
def _skipped(data: Bytes1, at: int, stop: int, wire: int) -> int:
    """The place after a value of which nothing else is known, or -1."""
    size = 8 if wire == EIGHT else 4
    if wire == VARINT:
        return varint(data, at, stop)[1]
    if wire == SIZED:
        size, at = varint(data, at, min(stop, at + SHORT_MAX))
    elif wire not in (EIGHT, FOUR):
        return -1  # a group
    return at + size if at >= 0 and 0 <= size <= stop - at else -1


@njit_merged
def _value(data: Bytes1, at: int, stop: int, layout: Layout, entry: int, found: Found) -> int:
    """Notes a scalar; the place after it, or -1."""
    slot, code, wire = layout.slot_E[entry], layout.code_E[entry], layout.wire_E[entry]
    found.kind_U[slot] = layout.kind_E[entry]
    if wire == SIZED:
        size, at = varint(data, at, min(stop, at + SHORT_MAX))
        if at < 0 or not 0 <= size <= stop - at:
            return -1
        found.start_U[slot], found.length_U[slot] = at, size
        return at + size if code != STRING or valid_text(data, at, at + size) else -1
    if wire == VARINT:
        raw, at = varint(data, at, stop)
        value = zigzag(raw) if code in (SINT32, SINT64) else raw
    elif stop - at < (8 if wire == EIGHT else 4):
        return -1
    elif wire == EIGHT:
        found.number_U[slot] = float_of(word(data, at))
        value, at = int(np.int64(word(data, at))), at + 8
    else:
        found.number_U[slot] = float32(data, at)
        value, at = int(np.int64(half(data, at))), at + 4
        value = int(np.int32(value)) if code == SFIXED32 else value
    found.integer_U[slot] = value
    return at if layout.low_E[entry] <= value <= layout.high_E[entry] else -1


@njit_cached
def _message(data: Bytes1, at: int, stop: int, layout: Layout, entry: int, found: Found) -> int:
    """Notes a wrapper or a timestamp; the place after it, or -1. A second one would be merged with the first: -1."""
    slot = layout.slot_E[entry]
    if found.kind_U[slot] != MISSING:
        return -1
    found.kind_U[slot] = layout.kind_E[entry]
    end = _skipped(data, at, stop, SIZED)
    if end < 0:
        return -1
    _, at = varint(data, at, stop)
    if layout.code_E[entry] == TIMESTAMP:
        return _timestamp(data, at, end, found, slot)
    if at == end:
        return end
    if data[at] != 8 | layout.wire_E[entry]:  # the tag of field 1
        return -1
    at = _value(data, at + 1, end, layout, entry, found)
    return at if at == end else -1


@njit_cached
def _timestamp(data: Bytes1, at: int, end: int, found: Found, slot: int) -> int:
    seconds = nanos = 0
    while at < end:
        tag = data[at]
        value, at = varint(data, at + 1, end)
        if at < 0 or not -SECONDS_MAX <= value <= SECONDS_MAX:
            return -1
        if tag == 0x08:
            seconds = value
        elif tag == 0x10 and 0 <= value < 1_000_000_000:
            nanos = value
        else:
            return -1
    found.integer_U[slot] = seconds * 1000 + nanos // 1_000_000
    return end
