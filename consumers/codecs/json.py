"""JSON objects to columns.

Messages have two ways through. The slow path, one message at a time, is the definition: it makes every check
and finds the words for each rejection. The bulk path takes many messages column by column, and only if it can
tell cheaply that the slow path would say the same of all of them; if not, each half of them tries for itself.
Messages are parsed one by one, never joined: two bad halves could make a good whole.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable, Sequence
from itertools import chain, starmap
from operator import itemgetter
from typing import Any, NamedTuple, TypeAlias, cast

import numpy as np
import numpy.typing as npt
import orjson
import pyarrow as pa

from consumers.codecs import Decoded, fields
from consumers.codecs.fields import Buckets, Reject
from consumers.config import FeaturesConfig, LabelRule, LabelsConfig
from consumers.hashing import canonical, key128
from consumers.record import REJECT_RAW_BYTES_MAX, REJECTS, Float32s, Int64s, Kind, Messages, event_schema

NESTING_MAX = 32
"""Levels of objects and arrays, the message itself included."""

CHUNK_MESSAGES = 128  # with many more, the parsed documents outgrow the processor's cache
_PARTS = 4
_SLOW_MESSAGES = 2  # for so few, halving costs more than the slow path

_TOO_DEEP = f"nested more than {NESTING_MAX} levels deep"
_UNUSUAL = (ValueError, LookupError, TypeError, OverflowError, struct.error)
_ENDS_KEY = np.isin(np.arange(256), list(b'" \t\n\r'))  # what may stand between a key and its colon

_Document: TypeAlias = dict[str, Any]


class _Rows(NamedTuple):
    """N rows, or one value for all; `event_schema` has the types."""

    key: npt.NDArray[np.void]
    event_time: Int64s | int
    offset: Int64s | int
    kind: Kind
    weight: Float32s | float
    label: Float32s | float
    features: Float32s | list[float]  # [N, C]


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
        self._nullable = np.array([column.nullable for column in numeric], np.bool_)
        self._numbers = _getter(tuple(self._numeric))
        self._pack = struct.Struct(f"{len(numeric)}f").pack
        self._categorical = [Buckets(column.name, column.nullable, column.buckets) for column in categorical]
        self._schema = event_schema(self._columns, labelled=self._label is not None)

    def decode(self, messages: Messages) -> Decoded:
        """Every message becomes one event or one reject. Never raises on bad input."""
        table = _Table(len(messages), self._columns)
        rejects: list[tuple[object, ...]] = []
        for start in range(0, len(messages), CHUNK_MESSAGES):
            chunk = messages.part(start, start + CHUNK_MESSAGES)
            self._decode(chunk, _documents(chunk.values), table, rejects)
        return Decoded(table.batch(self._schema), _reject_batch(rejects))

    def _decode(
        self, messages: Messages, documents: list[Any], table: _Table, rejects: list[tuple[object, ...]]
    ) -> None:
        count = len(messages)
        try:
            table.add(count, self._bulk(messages, documents))
            return
        except _UNUSUAL:
            pass
        if count > _SLOW_MESSAGES:
            step = -(-count // _PARTS)
            for start in range(0, count, step):
                part = messages.part(start, start + step)
                self._decode(part, documents[start : start + step], table, rejects)
            return
        for offset, timestamp, key, value in zip(
            messages.offsets, messages.timestamps, messages.keys, messages.values, strict=True
        ):
            try:
                table.add(1, self._slow(offset, timestamp, key, value))
            except Reject as reject:
                raw = value and value[:REJECT_RAW_BYTES_MAX]
                rejects.append((offset, 0, timestamp, str(reject), key, raw, len(value or b"")))

    def _slow(self, offset: int, timestamp: int, key: bytes | None, value: bytes | None) -> _Rows:
        """One row. Raises Reject for whatever is bad, and nothing else."""
        if value is None:
            time, blank = fields.record_time(timestamp), [math.nan] * self._columns
            return _Rows(_void(fields.message_key(key)), time, offset, Kind.TOMBSTONE, 0.0, math.nan, blank)
        if len(value) > self._bytes_max:
            raise Reject(f"value is {len(value)} bytes, more than max_message_bytes = {self._bytes_max}")
        document = _parse(value)
        for name, item in document.items():
            if fields.is_nan(item) and name not in self._numeric:
                raise Reject(f"field {fields.shown(name)}: NaN, but it is not a numeric column")
        return _Rows(
            _void(fields.message_key(key) if self._key is None else fields.field_key(self._key, document)),
            fields.record_time(timestamp)
            if self._time is None
            else fields.field_time(self._time, document, timestamp, self._skew),
            offset,
            Kind.EVENT,
            1.0 if self._weight is None else fields.weight(self._weight, document),
            math.nan if self._label is None else fields.label(self._label, document, self._rule),
            [fields.numeric(name, document, nullable) for name, nullable in self._numeric.items()]
            + [fields.category(buckets, document) for buckets in self._categorical],
        )

    def _bulk(self, messages: Messages, documents: list[Any]) -> _Rows:
        """A row for each message. Raises one of _UNUSUAL unless the slow path would take them all."""
        _check(set(map(type, documents)) == {dict})
        values = cast(list[bytes], messages.values)  # without a value there is no document
        _check(max(map(len, values)) <= self._bytes_max)
        booleans = _check_flat(values, documents)
        times = timestamps = _packed("q", messages.timestamps)
        if self._time is not None:
            times = _packed("q", _column(self._time, documents), booleans)
        _check(times.min() >= 0 and not (times - self._skew > timestamps).any())
        weights: Float32s | float = 1.0
        if self._weight is not None:
            column = _column(self._weight, documents)
            weights = _packed("f", column, booleans)
            _check(min(column) >= 0 and np.isfinite(weights).all())
        return _Rows(
            _void(b"".join(map(key128, self._keys(messages, documents)))),
            times,
            _packed("q", messages.offsets),
            Kind.EVENT,
            weights,
            math.nan if self._label is None else self._labels(_column(self._label, documents), booleans),
            self._features(documents, booleans),
        )

    def _keys(self, messages: Messages, documents: list[_Document]) -> list[bytes]:
        if self._key is None:
            keys = cast(list[bytes], messages.keys)  # str() refuses None
            _check(all(map(bytes.decode, keys)))
            return keys
        column = _column(self._key, documents)
        keys = list(map(str.encode if set(map(type, column)) == {str} else canonical, column))
        _check(all(keys))
        return keys

    def _labels(self, column: list[Any], booleans: bool) -> Float32s:
        if self._rule.kind == "binary":
            _check(set(column) <= {0, 1})
            booleans = False  # they are good
        elif self._rule.kind == "class":
            _check(set(map(type, column)) == {int} and min(column) >= 0 and max(column) < self._rule.classes)
        labels = _packed("f", column, booleans)
        _check(np.isfinite(labels).all())
        return labels

    def _features(self, documents: list[_Document], booleans: bool) -> Float32s:
        try:
            packed = b"".join(starmap(self._pack, map(self._numbers, documents)))
        except (KeyError, struct.error):
            _check(self._nullable.any())
            packed = b"".join(starmap(self._pack, self._imputed(documents)))
        _check(not (booleans and bool in map(type, chain.from_iterable(map(self._numbers, documents)))))
        numeric = np.frombuffer(packed, np.float32).reshape(len(documents), len(self._numeric))
        finite = np.isfinite(numeric)
        if not finite.all():  # orjson knows no NaN: where one is, there was null or nothing
            _check((finite | (np.isnan(numeric) & self._nullable)).all())
        if not self._categorical:
            return numeric
        categories = [[buckets[document.get(buckets.name)] for document in documents] for buckets in self._categorical]
        return np.column_stack((numeric, *categories))

    def _imputed(self, documents: list[_Document]) -> list[list[Any]]:
        try:
            rows = list(map(self._numbers, documents))
        except KeyError:
            rows = [tuple(map(document.get, self._numeric)) for document in documents]
        return [[math.nan if item is None else item for item in row] for row in rows]


class _Table:
    """Columns that are filled row by row or many rows at once."""

    def __init__(self, size: int, columns: int) -> None:
        self._rows = 0
        self._arrays = {
            "key": np.empty(size, "V16"),
            "event_time": np.empty(size, np.int64),
            "offset": np.empty(size, np.int64),
            "row": np.zeros(size, np.int32),  # always 0: a JSON message holds one event
            "kind": np.empty(size, np.uint8),
            "weight": np.empty(size, np.float32),
            "label": np.empty(size, np.float32),
            "features": np.empty((size, columns), np.float32),
        }

    def add(self, count: int, rows: _Rows) -> None:
        target = slice(self._rows, self._rows + count)
        for name, column in rows._asdict().items():
            self._arrays[name][target] = column
        self._rows += count

    def batch(self, schema: pa.Schema) -> pa.RecordBatch:
        arrays = []
        for field in schema:
            data = pa.py_buffer(self._arrays[field.name][: self._rows])
            if pa.types.is_fixed_size_list(field.type):
                items = self._rows * field.type.list_size
                children = [pa.Array.from_buffers(field.type.value_type, items, [None, data])]
                arrays.append(pa.Array.from_buffers(field.type, self._rows, [None], children=children))
            else:
                arrays.append(pa.Array.from_buffers(field.type, self._rows, [None, data]))
        return pa.RecordBatch.from_arrays(arrays, schema=schema)


def _getter(names: tuple[str, ...]) -> Callable[[_Document], tuple[Any, ...]]:
    if len(names) > 1:
        return itemgetter(*names)
    return lambda document: tuple([document[name] for name in names])


def _column(name: str, documents: list[_Document]) -> list[Any]:
    return list(map(itemgetter(name), documents))


def _void(keys: bytes) -> npt.NDArray[np.void]:
    return np.frombuffer(keys, "V16")


def _check(usual: bool | np.bool_) -> None:
    if not usual:
        raise ValueError


def _packed(code: str, column: Sequence[Any], booleans: bool = False) -> npt.NDArray[Any]:
    """Numbers as an array. `struct` refuses all but numbers and, where there may be any, booleans."""
    _check(not (booleans and bool in map(type, column)))
    return np.frombuffer(struct.pack(f"{len(column)}{code}", *column), code)


def _documents(values: list[bytes | None]) -> list[Any]:
    """Each value parsed; None for what is no JSON."""
    documents: list[Any] = []
    rest = iter(values)
    while True:
        try:
            documents.extend(map(orjson.loads, rest))  # type: ignore[arg-type]
            return documents
        except ValueError:  # on which `extend` keeps those before, and `rest` goes on behind it
            documents.append(None)


def _check_flat(values: list[bytes], documents: list[_Document]) -> bool:
    """Refuses duplicate keys and deep nesting. Returns whether any boolean may occur."""
    joined = b"".join(values)
    text = np.frombuffer(joined, np.uint8)
    # With one colon for each key there is none left for a duplicate or for a nested object.
    keys = sum(map(len, documents))
    if np.count_nonzero(text == ord(":")) != keys:  # times and URLs have colons too
        _check(np.count_nonzero(_ENDS_KEY[_before(text, b":")]) == keys)
    if b"[" in joined:
        _check(max([value.count(b"[") for value in values]) <= NESTING_MAX // 2)
    pairs = (b"r", b"u"), (b"a", b"l")  # in "true" and in "false"
    return any(last in joined and first in _before(text, last).tobytes() for first, last in pairs)


def _before(text: npt.NDArray[np.uint8], character: bytes) -> npt.NDArray[np.uint8]:
    """The bytes before each occurrence; no JSON object begins with one."""
    return text[np.flatnonzero(text == ord(character)) - 1]


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


def _reject_batch(rejects: list[tuple[object, ...]]) -> pa.RecordBatch:
    columns = zip(*rejects, strict=True) if rejects else [()] * len(REJECTS)
    arrays = [pa.array(column, field.type) for column, field in zip(columns, REJECTS, strict=True)]
    return pa.RecordBatch.from_arrays(arrays, schema=REJECTS)
