"""A writer's Avro schema as a program for the compiled scanner: what lies in a message, one thing after another."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from consumers.codecs.fields import Reject
from consumers.codecs.scan import BOOL, FLOAT, INTEGER, NULL, OBJECT, OTHER, SCRATCH, SCRATCH_BYTES, TEXT
from consumers.record import Int64s

OPS_MAX = 65_536
"""Types used by types used by types, in many places each, would make a program of any size."""

END, NOTHING, AGAIN, FIXED, BOOLEAN, FLOAT32, FLOAT64, LONG, SCALED, STRING, BYTES, ENUM, UNION, BLOCKS = range(14)
"""What an op takes. From LONG on it begins with a number; those before have a fixed size."""

DIVISORS = {"ms-in-micros": 1000, "ms-in-nanos": 1_000_000}
"""Logical types of long that are brought to milliseconds, by what `plain` calls them."""

_LOGICAL = {
    "timestamp-micros": "ms-in-micros",
    "local-timestamp-micros": "ms-in-micros",
    "timestamp-nanos": "ms-in-nanos",
    "local-timestamp-nanos": "ms-in-nanos",
}

_PRIMITIVES = {
    "null": (NOTHING, NULL, 0),
    "boolean": (BOOLEAN, BOOL, 1),
    "int": (LONG, INTEGER, 0),
    "long": (LONG, INTEGER, 0),
    "float": (FLOAT32, FLOAT, 4),
    "double": (FLOAT64, FLOAT, 8),
    "string": (STRING, TEXT, 0),
    "bytes": (BYTES, OTHER, 0),
}
"""Code, kind and fixed size of each."""


def plain(schema: Any) -> Any:
    """A schema without logical types, but for times that must be brought to milliseconds: those have names of ours."""
    if isinstance(schema, list):
        return [plain(branch) for branch in schema]
    if not isinstance(schema, dict):
        return schema
    bare = {key: item for key, item in schema.items() if key != "logicalType"}
    bare |= {key: plain(bare[key]) for key in ("type", "items", "values") if key in bare}
    if "fields" in bare:
        bare["fields"] = [plain(field) for field in bare["fields"]]
    if bare.get("type") == "long" and schema.get("logicalType") in _LOGICAL:
        bare["logicalType"] = _LOGICAL[schema["logicalType"]]
    return bare


class Place(NamedTuple):
    """Where a value goes: a field's index in `Found`; and where its own fields go, if it is a record that has any."""

    slot: int
    fields: Mapping[str, Place] = {}


class Op(NamedTuple):
    """One row of a Program's columns, which say what each of them means."""

    code: int
    kind: int
    slot: int
    after: int
    size: int = 0
    what: int = 0
    choices: int = 0


class Program(NamedTuple):
    """P ops, the first of which ends the message; it begins at `entry`.

    Every op puts its kind into its slot of `Found`. Those for values that nobody asked for share a slot behind the U.
    """

    entry: int
    code_P: Int64s
    kind_P: Int64s
    slot_P: Int64s
    size_P: Int64s  # bytes that must be there
    next_P: Int64s
    what_P: Int64s  # SCALED: the divisor. ENUM, UNION: the first of its symbols, its targets. BLOCKS: the first op of
    # an item. AGAIN: the op of the blocks
    choices_P: Int64s  # of symbols or targets
    left_P: Int64s  # of BLOCKS, while it runs: how many items the block still has
    target_T: Int64s  # the first ops of the branches of all unions
    symbol_S: Int64s  # where the symbols of all enums begin in `Found.scratch`; then where the last one ends


def compiled(schema: Any, named: Mapping[str, Any], place: Place, nowhere: int) -> tuple[Program, bytes]:
    """The program of a schema as fastavro parses it, and the symbols that it expects in `Found.scratch`.

    Args:
        schema: of the message.
        named: the schemas of all names.
        place: where what is wanted of it goes.
        nowhere: the slot for everything else.

    Raises:
        Reject: a message by this schema could overflow the stack or keep the reader busy for ever.
    """
    compiler = _Compiler(named, Place(nowhere))
    entry = compiler.value(schema, place, after=END)
    codes, kinds, slots, afters, sizes, whats, choices = np.array(compiler.ops, np.int64).T.copy()
    lengths = [len(symbol) for symbol in compiler.symbols]
    if sum(lengths) > SCRATCH_BYTES:
        raise Reject(f"the writer's schema: enums with more than {SCRATCH_BYTES:,} bytes of symbols")
    program = Program(
        entry,
        codes,
        kinds,
        slots,
        sizes,
        afters,
        whats,
        choices,
        np.zeros(len(compiler.ops), np.int64),
        np.array(compiler.targets, np.int64),
        np.cumsum([0, *lengths], dtype=np.int64),
    )
    return program, b"".join(compiler.symbols)


class _Compiler:
    def __init__(self, named: Mapping[str, Any], nowhere: Place) -> None:
        self._named, self._nowhere = named, nowhere
        self._open: list[str] = []  # names of the records around the value
        self.ops: list[Op] = []
        self.targets: list[int] = []
        self.symbols: list[bytes] = []
        self._add(Op(END, OTHER, nowhere.slot, END))

    def value(self, schema: Any, place: Place, after: int) -> int:
        """The first of the ops that take a value and go on at `after`. It may be `after` itself."""
        kind = "union" if isinstance(schema, list) else schema["type"] if isinstance(schema, dict) else schema
        if kind in _PRIMITIVES:
            logical = schema.get("logicalType") if isinstance(schema, dict) else None
            if logical in DIVISORS:
                return self._add(Op(SCALED, INTEGER, place.slot, after, what=DIVISORS[logical]))
            code, found, size = _PRIMITIVES[kind]
            return self._add(Op(code, found, place.slot, after, size))
        if kind == "fixed":
            return self._add(Op(FIXED, OTHER, place.slot, after, schema["size"]))
        makers: dict[str, Callable[[Any, Place, int], int]] = {
            "union": self._union,
            "enum": self._enum,
            "record": self._record,
            "error": self._record,
            "array": self._blocks,
            "map": self._blocks,
        }
        return makers[kind](schema, place, after) if kind in makers else self.value(self._named[kind], place, after)

    def _union(self, schema: list[Any], place: Place, after: int) -> int:
        targets = [self.value(branch, place, after) for branch in schema]
        first, choices = len(self.targets), len(targets)
        self.targets += targets
        return self._add(Op(UNION, OTHER, self._nowhere.slot, after, what=first, choices=choices))

    def _enum(self, schema: dict[str, Any], place: Place, after: int) -> int:
        first, choices = len(self.symbols), len(schema["symbols"])
        self.symbols += [symbol.encode() for symbol in schema["symbols"]]
        return self._add(Op(ENUM, SCRATCH, place.slot, after, what=first, choices=choices))

    def _record(self, schema: dict[str, Any], place: Place, after: int) -> int:
        name = schema["name"]
        if name in self._open:
            raise Reject(f"the writer's schema: {name} contains itself, which is not supported")
        self._open.append(name)
        for field in reversed(schema["fields"]):
            after = self.value(field["type"], place.fields.get(field["name"], self._nowhere), after)
        self._open.pop()
        return self._add(Op(NOTHING, OBJECT, place.slot, after))

    def _blocks(self, schema: dict[str, Any], place: Place, after: int) -> int:
        again = self._add(Op(AGAIN, OTHER, self._nowhere.slot, END))
        if schema["type"] == "map":
            item = self.value("string", self._nowhere, self.value(schema["values"], self._nowhere, again))
        else:
            item = self.value(schema["items"], self._nowhere, again)
        blocks = self._add(Op(BLOCKS, OTHER, place.slot, after, what=item))
        self.ops[again] = self.ops[again]._replace(what=blocks)
        while self.ops[item].code in (NOTHING, FIXED) and not self.ops[item].size:
            item = self.ops[item].after
        if item == again:
            raise Reject("the writer's schema: an array whose items take no bytes could have any number of them")
        return blocks

    def _add(self, op: Op) -> int:
        if len(self.ops) == OPS_MAX:
            raise Reject(f"the writer's schema: more than {OPS_MAX:,} values in one message")
        self.ops.append(op)
        return len(self.ops) - 1
