"""JSON objects to columns.

Messages have two ways through. The slow path, one message at a time, is the definition: it makes every check
and finds the words for each rejection. The bulk path takes many messages column by column, but only if it can
tell cheaply that the slow path would say the same of all of them; if not, each quarter tries for itself.
Messages are parsed one by one, never joined: two bad halves could make a good whole.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Iterable, Sequence
from itertools import chain, starmap
from operator import itemgetter
from typing import Any, TypeAlias, cast

import numpy as np
import numpy.typing as npt
import orjson

from consumers.codecs import Decoded, fields
from consumers.codecs.fields import NUMERIC_MAX, Buckets, Reject
from consumers.codecs.strict import NESTING_MAX, parse
from consumers.codecs.table import Rows, Table
from consumers.config import FeaturesConfig, LabelRule, LabelsConfig
from consumers.hashing import canonical, key128
from consumers.record import Float32s, Kind, Messages, event_schema

CHUNK = 128
"""Messages decoded at once: of many more, the parsed documents would outgrow the processor's cache."""

_PARTS = 4  # halves would try more often in vain
_SLOW_MAX = 2  # for so few messages, trying in parts costs more than the slow path

_UNUSUAL = (ValueError, LookupError, TypeError, OverflowError, struct.error)
_ENDS_KEY = np.isin(np.arange(256), list(b'" \t\n\r'))  # what may stand before the colon after a key

_Document: TypeAlias = dict[str, Any]


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
        table = Table(len(messages), self._columns)
        for start in range(0, len(messages), CHUNK):
            chunk = messages.part(start, start + CHUNK)
            self._decode(chunk, _documents(chunk.values), table)
        return table.decoded(self._schema)

    def _decode(self, messages: Messages, documents: list[Any], table: Table) -> None:
        count = len(messages)
        try:
            table.add(count, self._bulk(messages, documents))
            return
        except _UNUSUAL:
            pass
        if count > _SLOW_MAX:
            step = -(-count // _PARTS)
            for start in range(0, count, step):
                self._decode(messages.part(start, start + step), documents[start : start + step], table)
            return
        for offset, timestamp, key, value in zip(
            messages.offsets, messages.timestamps, messages.keys, messages.values, strict=True
        ):
            try:
                table.add(1, self._slow(offset, timestamp, key, value))
            except Reject as reject:
                table.reject(offset, timestamp, str(reject), key, value)

    def _slow(self, offset: int, timestamp: int, key: bytes | None, value: bytes | None) -> Rows:
        """One row. Raises Reject for whatever is bad, and nothing else."""
        if value is None:
            time, zeros = fields.record_time(timestamp), [0.0] * self._columns
            return Rows(_void(fields.message_key(key)), time, offset, Kind.TOMBSTONE, 0.0, math.nan, zeros)
        if len(value) > self._bytes_max:
            raise Reject(f"value is {len(value)} bytes, more than max_message_bytes = {self._bytes_max}")
        document = parse(value)
        for name, item in document.items():
            if fields.is_nan(item) and name not in self._numeric:
                raise Reject(f"field {fields.shown(name)}: NaN, but it is not a numeric column")
        return Rows(
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

    def _bulk(self, messages: Messages, documents: list[Any]) -> Rows:
        """A row for each message. Raises one of _UNUSUAL unless the slow path would take them all."""
        _check(set(map(type, documents)) == {dict})
        values = cast(list[bytes], messages.values)  # without a value there is no document
        _check(max(map(len, values)) <= self._bytes_max)
        joined = b"".join(values)
        _check_keys(joined, documents)
        if b"[" in joined:
            _check(max([value.count(b"[") for value in values]) <= NESTING_MAX // 2)
        booleans = _has(joined, b"rue") or _has(joined, b"als")  # there may be some
        times = timestamps = _packed("q", messages.timestamps)
        if self._time is not None:
            times = _packed("q", _column(self._time, documents), booleans)
        _check(times.min() >= 0 and not (times - self._skew > timestamps).any())
        weights: Float32s | float = 1.0
        if self._weight is not None:
            column = _column(self._weight, documents)
            weights = _packed("f", column, booleans)
            _check(min(column) >= 0 and np.isfinite(weights).all())
        return Rows(
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
            keys = cast(list[bytes], messages.keys)  # `decode` refuses None
            _check(all(map(bytes.decode, keys)))
            return keys
        column = _column(self._key, documents)
        kinds = set(map(type, column))
        encode: Callable[[Any], bytes] = canonical
        if kinds == {str}:
            encode = str.encode
        elif kinds == {int}:
            encode = b"%d".__mod__
        keys = list(map(encode, column))
        _check(all(keys))
        return keys

    def _labels(self, column: list[Any], booleans: bool) -> Float32s:
        if self._rule.kind == "binary":
            _check(set(column) <= {0, 1})
            booleans = False  # good labels, too
        elif self._rule.kind == "class":
            _check(set(map(type, column)) == {int} and min(column) >= 0 and max(column) < self._rule.classes)
        labels = _packed("f", column, booleans)
        _check(np.isfinite(labels).all())
        return labels

    def _features(self, documents: list[_Document], booleans: bool) -> Float32s:
        if not self._columns:
            return np.empty((len(documents), 0), np.float32)
        try:
            packed = self._joined(map(self._numbers, documents), booleans)
        except (KeyError, struct.error):
            _check(self._nullable.any())
            packed = self._joined(self._imputed(documents), booleans)
        numeric = np.frombuffer(packed, np.float32).reshape(len(documents), len(self._numeric))
        usable = np.abs(numeric) <= NUMERIC_MAX
        if not usable.all():  # orjson knows no NaN: where one is, there was null or nothing
            _check((usable | (np.isnan(numeric) & self._nullable)).all())
        if not self._categorical:
            return numeric
        categories = [[buckets[document.get(buckets.name)] for document in documents] for buckets in self._categorical]
        return np.column_stack((numeric, *categories))

    def _joined(self, rows: Iterable[Sequence[Any]], booleans: bool) -> bytes:
        if booleans:
            rows = list(rows)
            _check(bool not in map(type, chain.from_iterable(rows)))
        return b"".join(starmap(self._pack, rows))

    def _imputed(self, documents: list[_Document]) -> list[list[Any]]:
        try:
            rows = list(map(self._numbers, documents))
        except KeyError:
            rows = [tuple(map(document.get, self._numeric)) for document in documents]
        return [[math.nan if item is None else item for item in row] for row in rows]


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
    """Numbers as an array. `struct` refuses everything else but booleans, which there may be."""
    _check(not booleans or bool not in map(type, column))
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


def _check_keys(joined: bytes, documents: list[_Document]) -> None:
    """Refuses duplicate keys: with a colon for each key that was found, there is none left for another."""
    text = np.frombuffer(joined, np.uint8)
    keys = sum(map(len, documents))
    if np.count_nonzero(text == ord(":")) == keys:
        return
    ends = np.count_nonzero(_ENDS_KEY[text[np.flatnonzero(text == ord(":")) - 1]])  # not those in times and URLs
    if ends != keys:
        _check(ends == sum([_keys(document, NESTING_MAX) for document in documents]))


def _keys(item: dict[str, Any] | list[Any], levels: int) -> int:
    """Keys at all levels."""
    _check(levels > 0)
    count, inner = (len(item), item.values()) if isinstance(item, dict) else (0, item)
    return count + sum([_keys(each, levels - 1) for each in inner if type(each) is dict or type(each) is list])


def _has(joined: bytes, word: bytes) -> bool:
    """Whether three letters occur next to each other; faster than `in` where the middle one is rare."""
    if word[1] not in joined:
        return False
    text = np.frombuffer(joined, np.uint8)
    middle = np.flatnonzero(text[1:-1] == word[1]) + 1
    return bool(((text[middle - 1] == word[0]) & (text[middle + 1] == word[2])).any())
