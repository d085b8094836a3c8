"""The five formats: how events become messages, and what the job file says of them. Encoders are columnar."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import orjson
import pyarrow as pa
from google.protobuf.descriptor_pb2 import FieldDescriptorProto, FileDescriptorProto, FileDescriptorSet

from benchmarks.stream import COLUMNS, Table
from consumers.record import Bytes1, Int64s, Side

FIELDS: dict[Side, dict[str, type]] = {
    Side.FEATURES: {"id": int, "ts": int, **dict.fromkeys(COLUMNS, float)},
    Side.LABELS: {"id": int, "ts": int, "y": int},
}
"""Integers have 64 bits and floats, except in JSON, have 32."""

PACKAGE = "bench"
PROTOBUF_FILE = "bench.proto"


class Cells(NamedTuple):
    """One field of N messages: up to W bytes in each, those that are used."""

    bytes_NW: npt.NDArray[np.uint8]
    used_NW: npt.NDArray[np.bool_]


def message_name(side: Side) -> str:
    """The name of a record in Avro and Protobuf."""
    return f"{PACKAGE}.{side.name.capitalize()}"


def avro_schema(side: Side) -> dict[str, Any]:
    """The Avro schema of a topic."""
    names = {int: "long", float: "float"}
    fields = [{"name": name, "type": names[kind]} for name, kind in FIELDS[side].items()]
    return {"type": "record", "name": message_name(side), "fields": fields}


def protobuf_file() -> FileDescriptorProto:
    """What protoc makes of the messages of both topics: proto3, fields numbered from 1 on."""
    types = {int: FieldDescriptorProto.TYPE_INT64, float: FieldDescriptorProto.TYPE_FLOAT}
    file = FileDescriptorProto(name=PROTOBUF_FILE, package=PACKAGE, syntax="proto3")
    for side, fields in FIELDS.items():
        message = file.message_type.add(name=message_name(side).removeprefix(f"{PACKAGE}."))
        for number, (name, kind) in enumerate(fields.items(), start=1):
            message.field.add(name=name, number=number, type=types[kind], label=FieldDescriptorProto.LABEL_OPTIONAL)
    return file


def json_values(events: Table) -> list[bytes]:
    """A flat object a row."""
    names = list(events)
    rows = zip(*(column.tolist() for column in events.values()), strict=True)
    return [orjson.dumps(dict(zip(names, row, strict=True))) for row in rows]


def avro_values(events: Table) -> list[bytes]:
    """A record's body a row, without a header."""
    return sliced([varints(zigzag(c)) if c.dtype == np.int64 else float32s(c) for c in events.values()])


def protobuf_values(events: Table) -> list[bytes]:
    """A message a row. An integer that is 0 is left out, as every proto3 writer does."""
    cells = []
    for number, column in enumerate(events.values(), start=1):
        whole = column.dtype == np.int64
        tag_N = np.full(len(column), number << 3 | (0 if whole else 5), np.int64)
        for part in (varints(tag_N), varints(column) if whole else float32s(column)):
            cells.append(Cells(part.bytes_NW, part.used_NW & (column != 0)[:, None]) if whole else part)
    return sliced(cells)


def packed_values(events: Table) -> list[bytes]:
    """A little-endian struct without padding a row."""
    layout = [(name, "<i8" if column.dtype == np.int64 else "<f4") for name, column in events.items()]
    rows_N = np.empty(len(events["id"]), layout)
    for name, column in events.items():
        rows_N[name] = column
    data, size = rows_N.tobytes(), rows_N.dtype.itemsize
    return [data[start : start + size] for start in range(0, len(data), size)]


def arrow_values(events: Table) -> list[bytes]:
    """One message for all: an IPC stream of one record batch."""
    columns = {n: column if column.dtype == np.int64 else column.astype(np.float32) for n, column in events.items()}
    batch = pa.RecordBatch.from_pydict({name: pa.array(column) for name, column in columns.items()})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    return [sink.getvalue().to_pybytes()]


ENCODERS: dict[str, Callable[[Table], list[bytes]]] = {
    "json": json_values,
    "avro": avro_values,
    "protobuf": protobuf_values,
    "packed": packed_values,
    "arrow": arrow_values,
}
FORMATS = tuple(ENCODERS)


def settings(name: str, side: Side, folder: Path) -> dict[str, Any]:
    """What the job file says of a topic in this format; schemas are written to `folder`."""
    if name == "avro":
        path = folder / f"{side.name.lower()}.avsc"
        path.write_text(json.dumps(avro_schema(side)))
        return {"schema_file": str(path)}
    if name == "protobuf":
        path = folder / "bench.desc"
        path.write_bytes(FileDescriptorSet(file=[protobuf_file()]).SerializeToString())
        return {"schema_file": str(path), "message": message_name(side)}
    if name == "packed":
        names = {int: "i64", float: "f32"}
        return {"layout": [f"{field}:{names[kind]}" for field, kind in FIELDS[side].items()]}
    return {}


def zigzag(values_N: Int64s) -> Int64s:
    """Avro's way with signs."""
    return (values_N << 1) ^ (values_N >> 63)


def varints(values_N: Int64s) -> Cells:
    """Seven bits a byte, the lowest first; the highest bit says that there is more. No negative values."""
    rest_NW = values_N[:, None] >> np.arange(0, 63, 7)
    more_NW = rest_NW >= 1 << 7
    used_NW = rest_NW > 0
    used_NW[:, 0] = True
    return Cells(((rest_NW & 0x7F) | more_NW << 7).astype(np.uint8), used_NW)


def float32s(values_N: npt.NDArray[Any]) -> Cells:
    """Four bytes, little-endian."""
    bytes_NW = values_N.astype("<f4").view(np.uint8).reshape(-1, 4)
    return Cells(bytes_NW, np.ones_like(bytes_NW, bool))


def sliced(cells: list[Cells]) -> list[bytes]:
    """The used bytes of each row."""
    used_NW = np.hstack([part.used_NW for part in cells])
    flat: Bytes1 = np.hstack([part.bytes_NW for part in cells])[used_NW]
    data, stops = flat.tobytes(), np.cumsum(used_NW.sum(1)).tolist()
    return [data[start:stop] for start, stop in zip([0, *stops], stops, strict=False)]
