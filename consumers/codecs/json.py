"""JSON objects to columns.

Every message has two ways through. The slow path is the definition: it makes every check and finds the words for
each rejection. The fast path takes only messages of which it can prove cheaply that the slow path would agree.
Messages are parsed one by one, never joined into one document: two bad halves could make a good whole.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable, Iterable, Sequence
from operator import itemgetter
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import orjson
import pyarrow as pa

from consumers.codecs import Decoded
from consumers.codecs.fields import Buckets, Reject, category, column, field_key, label, message_key, number, shown
from consumers.config import FeaturesConfig, LabelRule, LabelsConfig
from consumers.record import REJECT_RAW_BYTES_MAX, REJECTS, Kind, Messages, event_schema

NESTING_MAX = 32
"""Levels of objects and arrays, the message itself included."""

_NAN = math.nan
_TOO_DEEP = f"nested more than {NESTING_MAX} levels deep"


_UNUSUAL = (Reject, ValueError, LookupError, TypeError, OverflowError, struct.error)


class _Row(NamedTuple):
    """One decoded row in the order of the buffer's fields."""

    key: bytes
    event_time: int
    offset: int
    kind: int
    weight: float
    label: float


class JsonCodec:
    """Decodes one topic. `label` says which labels are good, if the topic carries labels."""

    def __init__(self, config: FeaturesConfig | LabelsConfig, label: LabelRule) -> None:
        self._config = config
        self._rule = label
        self._label_name: str | None
        if isinstance(config, FeaturesConfig):
            numeric, categorical, columns = config.numeric, config.categorical, config.columns
            self._label_name, self._weight_name = config.label, config.weight
        else:
            numeric, categorical, columns = (), (), 0
            self._label_name, self._weight_name = config.column, None
        self._numeric = {column.name: column.nullable for column in numeric}
        self._nullable = any(self._numeric.values())
        self._numbers = _values_getter(tuple(self._numeric))
        self._categorical = [Buckets(column.name, column.nullable, column.buckets) for column in categorical]
        self._schema = event_schema(columns, labelled=self._label_name is not None)
        self._blank = (_NAN,) * columns
        # One row of the buffer; "4x" is the column `row`, always 0: a message holds one event.
        self._row = struct.Struct(f"<16sqq4xBff{columns}f")
        self._dtype = np.dtype(
            [("key", "V16"), ("event_time", "<i8"), ("offset", "<i8"), ("row", "<i4"), ("kind", "u1")]
            + [("weight", "<f4"), ("label", "<f4"), ("features", "<f4", (columns,))]
        )

    def decode(self, messages: Messages) -> Decoded:
        """Every message becomes one event or one reject; nothing that it holds can make this raise."""
        width, pack_into, fast = self._row.size, self._row.pack_into, self._fast
        buffer = bytearray(len(messages) * width)
        rejects: list[tuple[object, ...]] = []
        at = 0
        for offset, timestamp, key, value in zip(
            messages.offsets, messages.timestamps, messages.keys, messages.values, strict=True
        ):
            try:
                row, numbers = fast(offset, timestamp, key, value)
                pack_into(buffer, at, *row, *numbers)
            except _UNUSUAL:
                try:
                    row, numbers = self._slow(offset, timestamp, key, value)
                    pack_into(buffer, at, *row, *numbers)
                except Reject as reject:
                    raw = None if value is None else value[:REJECT_RAW_BYTES_MAX]
                    rejects.append((offset, 0, timestamp, str(reject), key, raw, len(value or b"")))
                    continue
            at += width
        table = np.frombuffer(buffer, self._dtype, count=at // width)
        return Decoded(_events(table, self._schema), _rejects(rejects))

    def _fast(
        self, offset: int, timestamp: int, message_key: bytes | None, value: bytes | None
    ) -> tuple[_Row, Iterable[float]]:
        """Raises one of _UNUSUAL for whatever is not plainly good."""
        if value is None or len(value) > self._config.max_message_bytes:
            raise ValueError
        document = orjson.loads(value)
        if type(document) is not dict:
            raise ValueError
        # A colon for each key leaves none for a duplicate, nor for a nested object's keys.
        if value.count(b":") != len(document) and _keys_at_most(value) != len(document):
            raise ValueError
        if b"[" in value and value.count(b"[") > NESTING_MAX // 2:
            raise ValueError
        numbers = self._imputed(document) if self._nullable else self._numbers(document)
        # struct packs booleans as numbers. No "u", no "l": no true and no false.
        if (b"u" in value or b"l" in value) and bool in map(type, numbers):
            raise ValueError
        if self._categorical:
            numbers = (*numbers, *[memo[document.get(memo.name)] for memo in self._categorical])
        return self._head(document, offset, timestamp, message_key), numbers

    def _imputed(self, document: dict[str, Any]) -> Sequence[Any]:
        try:
            numbers = self._numbers(document)
        except KeyError:
            numbers = tuple(map(document.get, self._numeric))
        if None not in numbers:
            return numbers
        nullables = self._numeric.values()
        return [
            _NAN if number is None and nullable else number
            for number, nullable in zip(numbers, nullables, strict=True)
        ]

    def _slow(
        self, offset: int, timestamp: int, message_key: bytes | None, value: bytes | None
    ) -> tuple[_Row, Iterable[float]]:
        """Raises Reject for whatever is bad, and nothing else."""
        if value is None:
            if timestamp < 0:
                raise Reject("time: the record has no timestamp")
            return _Row(message_key(message_key), timestamp, offset, Kind.TOMBSTONE, 0.0, _NAN), self._blank
        if len(value) > self._config.max_message_bytes:
            raise Reject(
                f"value is {len(value)} bytes, more than max_message_bytes = {self._config.max_message_bytes}"
            )
        document = _parse(value)
        for name, item in document.items():
            if _is_nan(item) and not self._numeric.get(name):
                raise Reject(f"column {shown(name)}: NaN, but it is not a nullable numeric column")
        head = self._head(document, offset, timestamp, message_key)
        numbers = [
            _NAN if nullable and _is_null(document.get(name)) else column(name, document)
            for name, nullable in self._numeric.items()
        ]
        return head, numbers + [category(memo, document) for memo in self._categorical]

    def _head(self, document: dict[str, Any], offset: int, timestamp: int, message_key: bytes | None) -> _Row:
        """All of a row but its features. Raises Reject."""
        name = self._config.key
        key = message_key(message_key) if name is None else field_key(name, document)
        weight = 1.0 if self._weight_name is None else number("weight", self._weight_name, document)
        if weight < 0:
            raise Reject(f"weight {self._weight_name!r}: {shown(weight)} is negative")
        label = _NAN if self._label_name is None else label(self._label_name, document, self._rule)
        return _Row(key, self._time(document, timestamp), offset, Kind.EVENT, weight, label)

    def _time(self, document: dict[str, Any], timestamp: int) -> int:
        name = self._config.time
        if name is None:
            if timestamp < 0:
                raise Reject("time: the record has no timestamp")
            return timestamp
        time = document.get(name)
        if type(time) is not int:
            raise Reject(f"time {name!r}: {found(name, document)}, not an integer (ms since the epoch)")
        if time < 0:
            raise Reject(f"time {name!r}: {shown(time)} is negative")
        if time > min(timestamp + self._config.max_skew, _INT64_MAX):
            raise Reject(
                f"time {name!r}: {shown(time)} is more than max_skew = {self._config.max_skew} ms "
                f"ahead of the record's timestamp {timestamp}"
            )
        return time


def _values_getter(names: tuple[str, ...]) -> Callable[[dict[str, Any]], tuple[Any, ...]]:
    if len(names) > 1:
        return itemgetter(*names)
    return lambda document: tuple([document[name] for name in names])


def _keys_at_most(value: bytes) -> int:
    """An upper bound of the number of keys that colons within strings, as in times and URLs, seldom raise."""
    return sum(map(value.count, (b'":', b" :", b"\t:", b"\n:", b"\r:")))


def _parse(value: bytes) -> dict[str, Any]:
    try:
        document = json.loads(value.decode(), object_pairs_hook=_without_duplicates, parse_constant=_constant)
    except UnicodeDecodeError as error:
        raise Reject(f"not JSON: byte {error.start} is not UTF-8") from None
    except ValueError as error:
        raise Reject(f"not JSON: {error}") from None
    except RecursionError:
        raise Reject(_TOO_DEEP) from None
    _check_depth_and_text(document)
    if not isinstance(document, dict):
        raise Reject(f"not an object: {shown(document)}")
    return document


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, item in pairs:
        if name in found:
            raise Reject(f"duplicate key {_quoted(name)}")
        found[name] = item
    return found


def _constant(text: str) -> float:
    if text == "NaN":
        return _NAN
    raise Reject(f"not JSON: {text}")


def _check_depth_and_text(document: object) -> None:
    level = [document]
    for depth in range(NESTING_MAX + 1):
        inner: list[object] = []
        for item in level:
            if isinstance(item, str) and not item.isascii():
                _check_text(item)
            elif depth > 1 and _is_nan(item):
                raise Reject("not JSON: NaN within an object or array")
            elif isinstance(item, list):
                inner += item
            elif isinstance(item, dict):
                inner += [*item.keys(), *item.values()]
        if not inner:
            return
        level = inner
    raise Reject(_TOO_DEEP)


def _check_text(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise Reject(f"not JSON: a lone surrogate in {shown(text)}") from None


def _is_nan(value: object) -> bool:
    return isinstance(value, float) and value != value


def _is_null(value: object) -> bool:
    return value is None or _is_nan(value)


def _events(table: npt.NDArray[np.void], schema: pa.Schema) -> pa.RecordBatch:
    arrays = []
    for field in schema:
        # A copy, because one row of a strided field passes for contiguous.
        data, inner = pa.py_buffer(table[field.name].copy()), field.type
        if pa.types.is_fixed_size_list(inner):
            values = pa.Array.from_buffers(inner.value_type, len(table) * inner.list_size, [None, data])
            arrays.append(pa.Array.from_buffers(inner, len(table), [None], children=[values]))
        else:
            arrays.append(pa.Array.from_buffers(inner, len(table), [None, data]))
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


def _rejects(rows: list[tuple[object, ...]]) -> pa.RecordBatch:
    columns = zip(*rows, strict=True) if rows else [()] * len(REJECTS)
    arrays = [pa.array(column, field.type) for column, field in zip(columns, REJECTS, strict=True)]
    return pa.RecordBatch.from_arrays(arrays, schema=REJECTS)
