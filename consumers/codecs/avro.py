"""Avro to columns: plain, by one writer's schema, or in Confluent's wire format, by any number of them.

Columns are found by their names in the writer's schema, so that it may change: added fields are skipped, removed ones
are missing, and the order does not matter. Enums are their symbols, timestamps milliseconds, other logical types the
numbers that are written. Bytes, fixed, arrays, maps and records are no values.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any, cast

import fastavro
import numpy as np
import numpy.typing as npt

from consumers.codecs.avro_program import (
    AGAIN,
    BLOCKS,
    BOOLEAN,
    BYTES,
    DIVISORS,
    END,
    FLOAT32,
    FLOAT64,
    LONG,
    SCALED,
    STRING,
    UNION,
    Place,
    Program,
    compiled,
    plain,
)
from consumers.codecs.binary import float32, varint, zigzag
from consumers.codecs.envelope import WRITTEN
from consumers.codecs.fields import Reject
from consumers.codecs.registry import Registry
from consumers.codecs.scan import (
    BARE,
    CLOUDEVENTS,
    DEBEZIUM,
    MISSING,
    OBJECT,
    TEXT,
    Found,
    Plan,
    new_found,
    planned,
    take,
)
from consumers.codecs.schemas import Bodies, Reader, SchemaCodec
from consumers.codecs.table import RowArrays
from consumers.codecs.text import valid_text
from consumers.codecs.words import float_of, word
from consumers.compiled import njit_cached, njit_merged
from consumers.config import FeaturesConfig, LabelRule, LabelsConfig
from consumers.record import Bytes1

for _name, _divisor in DIVISORS.items():
    fastavro.read.LOGICAL_READERS[f"long-{_name}"] = lambda value, *_, divisor=_divisor: value // divisor

_WRONG: dict[type, str] = {
    EOFError: "it ends too early",
    IndexError: "it ends too early, or there is no such symbol or branch",
    UnicodeDecodeError: "text that is not UTF-8",
}

_WRITTEN = tuple("".join(WRITTEN).encode())


class AvroCodec(SchemaCodec):
    """Decodes the messages of one topic; `label` says which labels are good, if it carries any."""

    def __init__(self, config: FeaturesConfig | LabelsConfig, label: LabelRule) -> None:
        self._names, self._plan = planned(config, label)
        super().__init__(config, label)

    def of_file(self, path: Path) -> Reader:
        """By the schema in a file."""
        return _Reader([path.read_bytes()], self._names, self._plan)

    def of_registry(self, registry: Registry, header: bytes) -> Reader:
        """By the schema that the header names."""
        return _Reader(registry.avro(int.from_bytes(header[1:], "big")), self._names, self._plan)


class _Reader(Reader):
    """Reads messages by one writer's schema: the last one, which may use names of the others. Raises Reject."""

    def __init__(self, texts: Sequence[str | bytes], names: list[str], plan: Plan) -> None:
        named: dict[str, Any] = {}
        try:
            for text in texts:
                self._schema: Any = fastavro.parse_schema(plain(json.loads(text)), named_schemas=named)
        except Exception as error:  # of any type, as the text may be anything
            raise Reject(f"the writer's schema is no Avro schema: {error!r}") from None
        if not isinstance(self._schema, dict) or self._schema["type"] != "record":
            raise Reject("the writer's schema is no record")
        outer, inner, nowhere = range(len(names), len(names) + 3)
        place = Place(nowhere, {name: Place(slot) for slot, name in enumerate(names)})
        if plan.envelope == CLOUDEVENTS:
            place = Place(nowhere, {"specversion": Place(outer), "data": Place(inner, place.fields)})
        elif plan.envelope == DEBEZIUM:
            place = Place(nowhere, {"op": Place(outer), "after": Place(inner, place.fields)})
        self._program, symbols = compiled(self._schema, named, place, nowhere)
        self._found = new_found(nowhere + 1)
        self._found.scratch[: len(symbols)] = np.frombuffer(symbols, np.uint8)
        self._plan = plan

    def decode_fast(self, bodies: Bodies, rows: RowArrays, good_N: npt.NDArray[np.bool_]) -> None:
        """By the program."""
        _decode(bodies, self._program, self._plan, self._found, rows, good_N)

    def parse(self, body: bytes) -> Mapping[str, Any]:
        """By fastavro."""
        source = BytesIO(body)
        try:
            message: Any = fastavro.schemaless_reader(source, self._schema, None)
        except Exception as error:  # some of their own words name an address in memory
            words = _WRONG.get(type(error), type(error).__name__)
            raise Reject(f"not as the writer's Avro schema says: {words}") from None
        if source.tell() < len(body):
            raise Reject(f"{len(body) - source.tell()} bytes behind the end of the Avro record")
        return cast(dict[str, Any], message)


@njit_cached
def _decode(
    bodies: Bodies, program: Program, plan: Plan, found: Found, rows: RowArrays, good_N: npt.NDArray[np.bool_]
) -> None:
    values, index_M = bodies.messages.values, bodies.index_M
    for number in range(len(index_M)):
        index = index_M[number]
        start, stop = values.start_N[index] + bodies.header_bytes, values.start_N[index] + values.length_N[index]
        found.kind_U[:] = MISSING
        good_N[index] = (
            _scan(values.data, start, stop, program, found)
            and (plan.envelope == BARE or _is_event(values.data, plan.envelope, found))
            and take(bodies.messages, index, found, plan, rows)
        )


@njit_cached
def _is_event(data: Bytes1, envelope: int, found: Found) -> bool:
    """Whether the envelope holds an event. The two slots for that are in front of the last."""
    outer = len(found.kind_U) - 3
    if found.kind_U[outer] != TEXT or found.kind_U[outer + 1] != OBJECT:
        return False
    if envelope == CLOUDEVENTS:
        return True
    return bool(found.length_U[outer] == 1 and data[found.start_U[outer]] in _WRITTEN)


@njit_merged
def _scan(data: Bytes1, at: int, stop: int, program: Program, found: Found) -> bool:
    """Notes what the program finds in bytes `[at, stop)`; False if they are not just what it says."""
    op = program.entry
    while op != END and at >= 0:
        code, slot, what, after = program.code_P[op], program.slot_P[op], program.what_P[op], program.next_P[op]
        found.kind_U[slot] = program.kind_P[op]
        size = program.size_P[op]
        if size > stop - at:
            return False
        if code == FLOAT64:
            found.number_U[slot] = float_of(word(data, at))
        elif code == FLOAT32:
            found.number_U[slot] = float32(data, at)
        elif code == BOOLEAN:
            if data[at] > 1:
                return False
            found.integer_U[slot] = data[at]
        elif code == AGAIN:
            program.left_P[what] -= 1
            after = program.what_P[what] if program.left_P[what] else what
        elif code >= LONG:
            at, after = _counted(data, at, stop, program, op, found)
        at += size
        op = after
    return bool(at == stop)


@njit_merged
def _counted(data: Bytes1, at: int, stop: int, program: Program, op: int, found: Found) -> tuple[int, int]:
    """One of the ops that begin with a number: the place after it, or -1 where `_scan` gives up, and the next op."""
    code, slot, what, after = program.code_P[op], program.slot_P[op], program.what_P[op], program.next_P[op]
    raw, at = varint(data, at, stop)
    value = zigzag(raw)
    if at < 0:
        return -1, END
    if code == LONG:
        found.integer_U[slot] = value
    elif code == SCALED:
        found.integer_U[slot] = value // what
    elif code == BLOCKS:
        if value < 0:  # then the block's size in bytes is there, too
            value = -value
            _, at = varint(data, at, stop)
        program.left_P[op] = value
        after = what if value != 0 else after
    elif value < 0:
        return -1, END
    elif code in (STRING, BYTES):
        if value > stop - at or (code == STRING and not valid_text(data, at, at + value)):
            return -1, END
        found.start_U[slot], found.length_U[slot] = at, value
        at += value
    elif value >= program.choices_P[op]:
        return -1, END
    elif code == UNION:
        after = program.target_T[what + value]
    else:
        found.start_U[slot] = program.symbol_S[what + value]
        found.length_U[slot] = program.symbol_S[what + value + 1] - program.symbol_S[what + value]
    return at, after
