"""Arrow IPC streams read with pyarrow: slow, for what is not laid out as most are, and for the words about bad ones.

Nothing that a stream says of itself is believed: each column that counts is checked in full before it is touched.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import types

from consumers.codecs.cells import REAL, SIGNED, UNSIGNED
from consumers.codecs.columnar import FLAGS, NOTHING, TEXTS, TIMES, Layout
from consumers.codecs.fields import Reject
from consumers.codecs.scan import Plan
from consumers.record import Int64s

_FACTORS = {"s": 1000, "ms": 1, "us": -1000, "ns": -1_000_000}
"""Milliseconds in a unit of time, or, negative, units in a millisecond."""

_PLAIN = {
    **{pa.type_for_alias(f"int{8 * width}"): (SIGNED, width, 0) for width in (1, 2, 4, 8)},
    **{pa.type_for_alias(f"uint{8 * width}"): (UNSIGNED, width, 0) for width in (1, 2, 4, 8)},
    pa.float32(): (REAL, 4, 0),
    pa.float64(): (REAL, 8, 0),
    pa.bool_(): (FLAGS, 0, 0),
    pa.utf8(): (TEXTS, 4, 0),
    pa.large_utf8(): (TEXTS, 8, 0),
    pa.null(): (NOTHING, 0, 0),
}
"""Meaning, width and factor (see Layout) of the types that compiled loops take; and there are timestamps."""

_MADE_PLAIN = (pa.float16(), pa.string_view())
_RAW = {pa.utf8(): pa.binary(), pa.large_utf8(): pa.large_binary()}
_TEXT = {raw: text for text, raw in _RAW.items()}

_ERRORS = (ValueError, TypeError, LookupError, NotImplementedError, OSError, pa.ArrowCapacityError)
"""What pyarrow raises on bad bytes. A lack of memory is not their fault: sizes are known before anything is read."""

_ERROR_CHARACTERS_MAX = 200


class Wanted(NamedTuple):
    """The U columns that rows are made of."""

    names: list[str]
    required: frozenset[str]  # others may be absent
    part_P: Int64s  # which are more than numeric

    @classmethod
    def of(cls, names: list[str], plan: Plan) -> Wanted:
        """What a plan takes."""
        single = {plan.key, plan.time, plan.weight, plan.label} - {-1}
        columns = plan.numeric_M[~plan.nullable_M].tolist() + plan.category_K[~plan.null_K].tolist()
        parts = sorted(single | set(plan.category_K.tolist()))
        return cls(names, frozenset(names[field] for field in single.union(columns)), np.array(parts, np.int64))


class Schema(NamedTuple):
    """What the columns of a schema mean for rows."""

    reason: str  # why no row can be made of them, or empty
    place_U: list[int]  # among all columns; -1: absent
    layout: Layout | None  # None: only pyarrow can tell where they are


def understood(schema: bytes, wanted: Wanted) -> Schema:
    """What a schema means, from its bytes in the stream."""
    try:
        columns = pa.ipc.read_schema(pa.py_buffer(schema))
        place_U = _places(columns, wanted)
    except (Reject, *_ERRORS) as error:
        return Schema(_words(error), [], None)
    return Schema("", place_U, _layout(columns, place_U, wanted))


def _words(error: Exception) -> str:
    if isinstance(error, Reject):
        return str(error)
    return "not an Arrow IPC stream: " + str(error)[:_ERROR_CHARACTERS_MAX].encode("ascii", "backslashreplace").decode()


def _places(schema: pa.Schema, wanted: Wanted) -> list[int]:
    names: list[str] = schema.names
    for name in wanted.names:
        if name not in names and name in wanted.required:
            raise Reject(f"column {name!r}: missing in the schema")
        if names.count(name) > 1:
            raise Reject(f"column {name!r}: {names.count(name)} times in the schema")
    place_U = [names.index(name) if name in names else -1 for name in wanted.names]
    for name, place in zip(wanted.names, place_U, strict=True):
        kind = _kind(schema, place)
        value = kind.value_type if types.is_dictionary(kind) else kind
        if value not in _PLAIN and value not in _MADE_PLAIN and not types.is_timestamp(value):
            raise Reject(f"column {name!r}: {kind}, not numbers, text, booleans or timestamps")
    return place_U


def _kind(schema: pa.Schema, place: int) -> pa.DataType:
    return schema.field(place).type if place >= 0 else pa.null()


def _layout(schema: pa.Schema, place_U: list[int], wanted: Wanted) -> Layout | None:
    buffers = [0]  # before each column
    for kind in schema.types:
        if kind.num_fields or types.is_dictionary(kind) or isinstance(kind, pa.BaseExtensionType):
            return None
        buffers.append(buffers[-1] + (0 if types.is_null(kind) else kind.num_buffers))
    cells = []
    for kind in (_kind(schema, place) for place in place_U):
        if kind not in _PLAIN and not types.is_timestamp(kind):
            return None
        cells.append((TIMES, 8, _FACTORS[kind.unit]) if types.is_timestamp(kind) else _PLAIN[kind])
    meaning_U, width_U, factor_U = np.array(cells, np.int64).reshape(-1, 3).T.copy()
    first_U = np.array([buffers[place] for place in place_U], np.int64)
    node_U, nodes = np.array(place_U, np.int64), len(schema)
    return Layout(meaning_U, width_U, factor_U, node_U, first_U, wanted.part_P, nodes, buffers[nodes])


def read(stream: bytes, schema: Schema, names: list[str], text_bytes_max: int) -> pa.Table:
    """The U columns in plain types, checked, except that text may not be UTF-8. Raises Reject."""
    if schema.reason:
        raise Reject(schema.reason)
    included = sorted({*schema.place_U} - {-1})
    options = pa.ipc.IpcReadOptions(included_fields=included, use_threads=False)
    plainer, batches = _Plainer(text_bytes_max), []
    try:
        for batch in pa.ipc.open_stream(stream, options=options):
            there = dict(zip(included, batch.columns, strict=False))
            columns = [there[place] if place >= 0 else pa.nulls(batch.num_rows) for place in schema.place_U]
            batches.append(plainer.batch(columns, names))
        return pa.Table.from_batches(batches)
    except _ERRORS as error:
        raise Reject(_words(error)) from None


def written(table: pa.Table) -> bytes:
    """A stream of it that is laid out plainly."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    data: bytes = sink.getvalue().to_pybytes()
    return data


def cell(column: pa.ChunkedArray, row: int) -> Any:
    """One value as the rules take it: a timestamp in ms, a text that is not UTF-8 as bytes."""
    scalar = column[row]
    if not scalar.is_valid:
        return None
    if types.is_timestamp(scalar.type):
        factor = _FACTORS[scalar.type.unit]
        return scalar.value // -factor if factor < 0 else scalar.value * factor
    try:
        return scalar.as_py()
    except UnicodeDecodeError:
        return scalar.as_buffer().to_pybytes()


class _Plainer:
    """Makes columns plain, as long as all of their text is no more than so many bytes."""

    def __init__(self, text_bytes_max: int) -> None:
        self._max = self._left = text_bytes_max

    def batch(self, columns: list[pa.Array], names: list[str]) -> pa.RecordBatch:
        """A batch of the same columns; text is bytes until the end, as it may not be UTF-8."""
        raw = pa.RecordBatch.from_arrays([self._plain(column) for column in columns], names)
        raw.validate(full=True)
        columns = [column.view(_TEXT[column.type]) if column.type in _TEXT else column for column in raw.columns]
        return pa.RecordBatch.from_arrays(columns, names)

    def _plain(self, column: pa.Array) -> pa.Array:
        if types.is_dictionary(column.type):
            indices, values = column.indices, self._plain(column.dictionary)
            indices.validate(full=True)
            values.validate(full=True)
            column = pa.DictionaryArray.from_arrays(indices, values)  # which checks the indices
            if values.type in _TEXT:
                self._spend(_lengths(values)[indices.drop_null().to_numpy()])
            return column.dictionary_decode()
        if column.type == pa.string_view():
            column = column.view(pa.binary_view())
            column.validate(full=True)
            self._spend(_lengths(column))  # many of them may be the same bytes
            return pa.array(column.to_pylist(), pa.large_binary())  # `cast` reads null ones, too, wherever they point
        if column.type == pa.float16():
            column.validate(full=True)
            return column.cast(pa.float32())
        return column.view(_RAW[column.type]) if column.type in _RAW else column

    def _spend(self, lengths: Int64s) -> None:
        self._left -= int(lengths.sum())
        if self._left < 0:
            raise Reject(f"its text decodes to more than max_message_bytes = {self._max}")


def _lengths(column: pa.Array) -> Int64s:
    """The length of each text, in bytes."""
    if column.type != pa.binary_view():
        return np.asarray(pc.fill_null(pc.binary_length(column), 0), np.int64)
    views = np.frombuffer(column.buffers()[1] or b"", np.int32).reshape(-1, 4)
    lengths = views[column.offset : column.offset + len(column), 0].astype(np.int64)
    return np.where(column.is_valid().to_numpy(zero_copy_only=False), lengths, 0)
