"""Where codecs put what they decode, in the shape that Arrow takes as it is."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from consumers.codecs import Decoded
from consumers.record import REJECT_RAW_BYTES_MAX, REJECTS, Float32s, Int64s, Kind


class Rows(NamedTuple):
    """N rows, or one: each column is an array [N], or one value for all."""

    key: npt.NDArray[np.void]  # of 16 bytes each
    event_time: Int64s | int
    offset: Int64s | int
    kind: Kind
    weight: Float32s | float
    label: Float32s | float
    features: Float32s | list[float]  # [N, C], or [C]


class Table:
    """Decoded messages in their order: good rows and rejects, for at most `size` messages."""

    def __init__(self, size: int, columns: int) -> None:
        self._rows = 0
        self._arrays = {
            "key": np.empty(size, "V16"),
            "event_time": np.empty(size, np.int64),
            "offset": np.empty(size, np.int64),
            "row": np.zeros(size, np.int32),  # of the formats there are, each holds one event in a message
            "kind": np.empty(size, np.uint8),
            "weight": np.empty(size, np.float32),
            "label": np.empty(size, np.float32),
            "features": np.empty((size, columns), np.float32),
        }
        self._rejects: list[tuple[object, ...]] = []

    def add(self, count: int, rows: Rows) -> None:
        target = slice(self._rows, self._rows + count)
        for name, column in rows._asdict().items():
            self._arrays[name][target] = column
        self._rows += count

    def reject(self, offset: int, timestamp: int, reason: str, key: bytes | None, value: bytes | None) -> None:
        raw_key, raw = (data and data[:REJECT_RAW_BYTES_MAX] for data in (key, value))
        self._rejects.append((offset, 0, timestamp, reason, raw_key, raw, len(value or b"")))

    def decoded(self, schema: pa.Schema) -> Decoded:
        """Both as Arrow batches, the events without a copy."""
        columns = zip(*self._rejects, strict=True) if self._rejects else [()] * len(REJECTS)
        arrays = [pa.array(column, field.type) for column, field in zip(columns, REJECTS, strict=True)]
        return Decoded(self._events(schema), pa.RecordBatch.from_arrays(arrays, schema=REJECTS))

    def _events(self, schema: pa.Schema) -> pa.RecordBatch:
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
