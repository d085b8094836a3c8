"""Arrow IPC streams read with pyarrow: slow, for what is not laid out as most are, and for the words about bad ones.

Nothing that a stream says of itself is believed: every column that counts is checked in full before it is touched.
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
"""Meaning, width and factor (as in Layout) of the types that compiled loops take; timestamps, too, with their units."""

_MADE_PLAIN = (pa.float16(), pa.string_view())
_BINARY = {pa.utf8(): pa.binary(), pa.large_utf8(): pa.large_binary(), pa.string_view(): pa.binary_view()}

_ERROR_CHARACTERS_MAX = 200


class Wanted(NamedTuple):
    """The U columns that rows are made of."""

    names: list[str]
    required: frozenset[str]  # others may be absent
    part_P: Int64s  # which are more than numeric


def places(schema: pa.Schema, wanted: Wanted) -> list[int]:
    """Where a schema has the U columns; -1 for one that is absent. Raises Reject unless they can make rows."""
    names: list[str] = schema.names
    found = []
    for name in wanted.names:
        if names.count(name) > 1:
            raise Reject(f"column {name!r}: the schema has it twice")
        if name not in names and name in wanted.required:
            raise Reject(f"column {name!r}: missing in the schema")
        found.append(names.index(name) if name in names else -1)
        kind = schema.field(found[-1]).type if name in names else pa.null()
        if types.is_dictionary(kind):
            kind = kind.value_type
        if kind not in _PLAIN and kind not in _MADE_PLAIN and not types.is_timestamp(kind):
            raise Reject(f"column {name!r}: {kind}, not numbers, texts, booleans or timestamps")
    return found


def layout_of(schema: pa.Schema, wanted: Wanted) -> Layout | None:
    """How the columns lie in batches of this schema; None for one that only pyarrow can read. Raises Reject."""
    cells, nodes, buffers = [], [], [0]
    for number, kind in enumerate(schema.types):
        if kind.num_fields or types.is_dictionary(kind) or kind in _MADE_PLAIN or isinstance(kind, pa.BaseExtensionType):
            return None
        ...
    return None


def read(stream: bytes, wanted: Wanted, text_bytes_max: int) -> pa.Table:
    """The U columns, all of plain types and in full checked, except that a text may not be UTF-8. Raises Reject."""
    try:
        return _read(stream, wanted, text_bytes_max)
    except (pa.ArrowException, OSError, ValueError) as error:
        text = str(error)[:_ERROR_CHARACTERS_MAX].encode("ascii", "backslashreplace").decode()
        raise Reject(f"not an Arrow IPC stream: {text}") from None
