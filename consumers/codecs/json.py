"""JSON objects to columns.

Every message has two ways through. The slow path is the definition: it makes every check and finds the words
for each rejection. The fast path takes only messages of which it can tell cheaply that the slow path would
say the same. Messages are parsed one by one, never joined: two bad halves could make a good whole.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable, Sequence
from operator import itemgetter
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import orjson
import pyarrow as pa

from consumers.codecs import Decoded, fields
from consumers.codecs.fields import Buckets, Reject
from consumers.config import FeaturesConfig, LabelRule, LabelsConfig
from consumers.record import REJECT_RAW_BYTES_MAX, REJECTS, Kind, Messages, event_schema

NESTING_MAX = 32
"""Levels of objects and arrays, the message itself included."""

_TOO_DEEP = f"nested more than {NESTING_MAX} levels deep"
_UNUSUAL = (Reject, ValueError, LookupError, TypeError, OverflowError, struct.error)
_EVENT, _TOMBSTONE = int(Kind.EVENT), int(Kind.TOMBSTONE)

_BRACKET, _U, _L = b"[ul"
_KEY_ENDINGS = (b'":', b" :", b"\t:", b"\n:", b"\r:")

_Head: TypeAlias = tuple[bytes, int, int, int, float, float]
"""Key, event time, offset, kind, weight, label."""


class JsonCodec:
    """Decodes the messages of one topic; `label` says which labels are good, if it carries any."""

    def __init__(self, config: FeaturesConfig | LabelsConfig, label: LabelRule) -> None:
        self._key, self._time, self._skew = config.key, config.time, config.max_skew
        self._bytes_max = config.max_message_bytes
        self._rule = label
        self._label: str | None
        if isinstance(config, FeaturesConfig):
            numeric, categorical, self._columns = config.numeric, config.categorical, config.columns
            self._label, self._weight = config.label, config.weight
        else:
            numeric, categorical, self._columns = (), (), 0
            self._label, self._weight = config.column, None
        self._numeric = {column.name: column.nullable for column in numeric}
        self._nullable = any(self._numeric.values())
        self._numbers = _getter(tuple(self._numeric))
        self._categorical = [Buckets(column.name, column.nullable, column.buckets) for column in categorical]
        self._schema = event_schema(self._columns, labelled=self._label is not None)
        # "4x" is the column `row`: always 0, since a JSON message holds one event.
        self._row = struct.Struct(f"<16sqq4xBff{self._columns}f")
        names = ("key", "event_time", "offset", "row", "kind", "weight", "label", "features")
        types = ("V16", "<i8", "<i8", "<i4", "u1", "<f4", "<f4", f"({self._columns},)<f4")
        self._dtype = np.dtype(list(zip(names, types, strict=True)))

    def decode(self, messages: Messages) -> Decoded:
        """Every message becomes one event or one reject. Never raises on bad input."""
        width, fast = self._row.size, self._fast
        buffer = bytearray(len(messages) * width)
        rejects: list[tuple[object, ...]] = []
        end = 0
        for offset, timestamp, key, value in zip(
            messages.offsets, messages.timestamps, messages.keys, messages.values, strict=True
        ):
            try:
                fast(buffer, end, offset, timestamp, key, value)
            except _UNUSUAL:
                try:
                    self._slow(buffer, end, offset, timestamp, key, value)
                except Reject as reject:
                    raw = value and value[:REJECT_RAW_BYTES_MAX]
                    rejects.append((offset, 0, timestamp, str(reject), key, raw, len(value or b"")))
                    continue
            end += width
        rows = np.frombuffer(buffer, self._dtype, count=end // width)
        return Decoded(_event_batch(rows, self._schema), _reject_batch(rejects))

    def _fast(
        self, buffer: bytearray, at: int, offset: int, timestamp: int, key: bytes | None, value: bytes | None
    ) -> None:
        """Writes a row at `at`. Raises one of _UNUSUAL for whatever is not plainly good."""
        if value is None or len(value) > self._bytes_max:
            raise ValueError
        document = orjson.loads(value)
        if type(document) is not dict:
            raise ValueError
        # With one colon for each key there is none left for a duplicate or for a nested object.
        if value.count(b":") != len(document) and _keys_max(value) != len(document):
            raise ValueError
        # `in` is five times faster for an integer than for a byte string.
        if _BRACKET in value and value.count(b"[") > NESTING_MAX // 2:
            raise ValueError
        numbers = self._imputed(document) if self._nullable else self._numbers(document)
        # `struct` packs booleans as numbers; without a "u" and an "l" there is no true and no false.
        if (_U in value or _L in value) and bool in map(type, numbers):
            raise ValueError
        if self._categorical:
            numbers = (*numbers, *[buckets[document.get(buckets.name)] for buckets in self._categorical])
        self._row.pack_into(buffer, at, *self._head(document, offset, timestamp, key), *numbers)

    def _imputed(self, document: dict[str, Any]) -> Sequence[Any]:
        try:
            numbers = self._numbers(document)
        except KeyError:
            numbers = tuple(map(document.get, self._numeric))
        if None not in numbers:
            return numbers
        nullables = self._numeric.values()
        pairs = zip(numbers, nullables, strict=True)
        return [math.nan if number is None and nullable else number for number, nullable in pairs]

    def _slow(
        self, buffer: bytearray, at: int, offset: int, timestamp: int, key: bytes | None, value: bytes | None
    ) -> None:
        """Writes a row at `at`. Raises Reject for whatever is bad, and nothing else."""
        if value is None:
            features = (0.0,) * self._columns
            time = fields.record_time(timestamp)
            self._row.pack_into(buffer, at, fields.message_key(key), time, offset, _TOMBSTONE, 0.0, math.nan, *features)
            return
        if len(value) > self._bytes_max:
            raise Reject(f"value is {len(value)} bytes, more than max_message_bytes = {self._bytes_max}")
        document = _parse(value)
        for name, item in document.items():
            if fields.is_nan(item) and name not in self._numeric:
                raise Reject(f"field {fields.shown(name)}: NaN, but it is not a numeric column")
        head = self._head(document, offset, timestamp, key)
        numbers = [fields.numeric(name, document, nullable) for name, nullable in self._numeric.items()]
        categories = [fields.category(buckets, document) for buckets in self._categorical]
        self._row.pack_into(buffer, at, *head, *numbers, *categories)

    def _head(self, document: dict[str, Any], offset: int, timestamp: int, key: bytes | None) -> _Head:
        """All of a row but its features; both paths share it."""
        return (
            fields.message_key(key) if self._key is None else fields.field_key(self._key, document),
            fields.record_time(timestamp)
            if self._time is None
            else fields.field_time(self._time, document, timestamp, self._skew),
            offset,
            _EVENT,
            1.0 if self._weight is None else fields.weight(self._weight, document),
            math.nan if self._label is None else fields.label(self._label, document, self._rule),
        )


def _getter(names: tuple[str, ...]) -> Callable[[dict[str, Any]], tuple[Any, ...]]:
    if len(names) > 1:
        return itemgetter(*names)
    return lambda document: tuple([document[name] for name in names])


def _keys_max(value: bytes) -> int:
    """An upper bound of the number of keys, which times and URLs within strings seldom raise."""
    return sum(value.count(ending) for ending in _KEY_ENDINGS if ending[0] in value)


def _parse(value: bytes) -> dict[str, Any]:
    try:
        document = json.loads(value.decode(), object_pairs_hook=_object, parse_constant=_constant)
    except UnicodeDecodeError as error:
        raise Reject(f"not JSON: byte {error.start} is not UTF-8") from None
    except ValueError as error:
        raise Reject(f"not JSON: {error}") from None
    except RecursionError:
        raise Reject(_TOO_DEEP) from None
    _check_nested(document)
    if not isinstance(document, dict):
        raise Reject(f"not an object: {fields.shown(document)}")
    return document


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, item in pairs:
        if name in found:
            raise Reject(f"duplicate key {name[:60]!a}")
        found[name] = item
    return found


def _constant(text: str) -> float:
    if text == "NaN":
        return math.nan
    raise Reject(f"not JSON: {text}")


def _check_nested(document: object) -> None:
    """Depth, text and NaN, level by level: the parser's own limit depends on who calls it."""
    level, depth = [document], 0
    while level:
        inner: list[object] = []
        for item in level:
            if isinstance(item, dict):
                inner += (*item.keys(), *item.values())
            elif isinstance(item, list):
                inner += item
            elif isinstance(item, str):
                _check_text(item)
            elif depth > 1 and fields.is_nan(item):
                raise Reject("not JSON: NaN within an object or array")
            if depth == NESTING_MAX and isinstance(item, dict | list):
                raise Reject(_TOO_DEEP)
        level, depth = inner, depth + 1


def _check_text(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise Reject(f"not JSON: a lone surrogate in {fields.shown(text)}") from None


def _event_batch(rows: npt.NDArray[np.void], schema: pa.Schema) -> pa.RecordBatch:
    arrays = []
    for field in schema:
        data = pa.py_buffer(rows[field.name].copy())
        if pa.types.is_fixed_size_list(field.type):
            items = len(rows) * field.type.list_size
            children = [pa.Array.from_buffers(field.type.value_type, items, [None, data])]
            arrays.append(pa.Array.from_buffers(field.type, len(rows), [None], children=children))
        else:
            arrays.append(pa.Array.from_buffers(field.type, len(rows), [None, data]))
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


def _reject_batch(rejects: list[tuple[object, ...]]) -> pa.RecordBatch:
    columns = zip(*rejects, strict=True) if rejects else [()] * len(REJECTS)
    arrays = [pa.array(column, field.type) for column, field in zip(columns, REJECTS, strict=True)]
    return pa.RecordBatch.from_arrays(arrays, schema=REJECTS)
