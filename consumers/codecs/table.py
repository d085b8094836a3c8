"""Where codecs put what they decode: rows as arrays, in any memory, and rejects as Arrow."""

from __future__ import annotations

from math import prod
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from consumers.record import NO_REJECTS, REJECT_RAW_BYTES_MAX, REJECTS, Bytes1, Events, Float32s, Int64s

ALIGNMENT = 64
"""Bytes at a multiple of which each column begins, seen from the start of the memory."""


class RowArrays(NamedTuple):
    """Room for N rows of C feature columns, as compiled loops take it."""

    key_N2: npt.NDArray[np.uint64]  # XXH3-128 of the key's canonical text: the bytes of `key128`
    event_time_N: Int64s
    offset_N: Int64s
    row_N: npt.NDArray[np.int32]  # within the message
    kind_N: Bytes1
    weight_N: Float32s
    label_N: Float32s  # NaN without a label
    features_NC: Float32s

    def events(self, count: int, *, labelled: bool) -> Events:
        """The first `count` rows, as views."""
        return Events(
            key_N2=self.key_N2[:count],
            event_time_N=self.event_time_N[:count],
            offset_N=self.offset_N[:count],
            row_N=self.row_N[:count],
            kind_N=self.kind_N[:count],
            features_NC=self.features_NC[:count],
            weight_N=self.weight_N[: count if self.features_NC.shape[1] else 0],
            label_N=self.label_N[:count] if labelled else None,
        )

    def keep(self, good_N: npt.NDArray[np.bool_]) -> int:
        """Closes the gaps that rows which are not good leave among the first N; returns how many are good."""
        count = int(np.count_nonzero(good_N))
        first = int(np.argmin(good_N)) if count < len(good_N) else count  # those before it stay where they are
        for array in self:
            array[first:count] = array[first : len(good_N)][good_N[first:]]
        return count


def _columns(rows: int, columns: int) -> list[tuple[type, tuple[int, ...]]]:
    """Type and shape of each column of RowArrays."""
    types = (np.int64, np.int64, np.int32, np.uint8, np.float32, np.float32)
    return [(np.uint64, (rows, 2)), *[(each, (rows,)) for each in types], (np.float32, (rows, columns))]


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


def row_bytes(rows: int, columns: int) -> int:
    """Bytes that `laid_out` takes for so many rows of C feature columns."""
    return sum(_aligned(np.dtype(dtype).itemsize * prod(shape)) for dtype, shape in _columns(rows, columns))


def laid_out(memory: memoryview | Bytes1, rows: int, columns: int) -> RowArrays:
    """Room for rows in this memory, one column after another, each at a multiple of ALIGNMENT."""
    data: Bytes1 = np.frombuffer(memory, np.uint8)
    arrays: list[npt.NDArray[Any]] = []
    start = 0
    for dtype, shape in _columns(rows, columns):
        size = np.dtype(dtype).itemsize * prod(shape)
        arrays.append(data[start : start + size].view(dtype).reshape(shape))
        start += _aligned(size)
    return RowArrays(*arrays)


def allocate(rows: int, columns: int) -> RowArrays:
    """Room for rows in memory of their own."""
    return laid_out(np.empty(row_bytes(rows, columns), np.uint8), rows, columns)


class Rejects:
    """Bad rows, in the order in which they are added."""

    def __init__(self) -> None:
        self._rows: list[tuple[object, ...]] = []

    def __len__(self) -> int:
        return len(self._rows)

    def add(self, offset: int, row: int, timestamp: int, reason: str, key: bytes | None, value: bytes | None) -> None:
        """One bad row: `row` within its message, whose key and value these are; either may be cut short."""
        raw_key, raw = (data and data[:REJECT_RAW_BYTES_MAX] for data in (key, value))
        self._rows.append((offset, row, timestamp, reason, raw_key, raw, len(value or b"")))

    def batch(self) -> pa.RecordBatch:
        """All of them, of schema REJECTS."""
        if not self._rows:
            return NO_REJECTS
        columns = zip(*self._rows, strict=True)
        arrays = [pa.array(column, field.type) for column, field in zip(columns, REJECTS, strict=True)]
        return pa.RecordBatch.from_arrays(arrays, schema=REJECTS)
