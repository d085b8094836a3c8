"""Fixed slots in anonymous shared memory: a reader process decodes spans into them, the learner reads them in place.

The kernel frees the memory when both processes are gone; order and wake-up come from the pipe beside it.
"""

from __future__ import annotations

import mmap
import os
from typing import NamedTuple

import pyarrow as pa

from consumers.codecs.table import ALIGNMENT, RowArrays, laid_out, row_bytes
from consumers.record import NO_REJECTS, REJECTS


class Shape(NamedTuple):
    """How large the slots of an arena are."""

    slots: int
    rows: int  # that a slot has room for
    columns: int  # C, at most
    reject_bytes: int

    @property
    def rejects_at(self) -> int:
        """Where the rejects begin in a slot."""
        return row_bytes(self.rows, self.columns)

    @property
    def slot_bytes(self) -> int:
        """Bytes of a slot, at a multiple of which the next one begins."""
        return -(-(self.rejects_at + self.reject_bytes) // ALIGNMENT) * ALIGNMENT


class Published(NamedTuple):
    """A span in a slot, as its reader tells the learner."""

    lane: int  # the index of the partition
    slot: int
    rows: int
    reject_bytes: int
    start: int
    stop: int
    place: int
    messages: int


class Arena:
    """Slots in one memfd. Each holds the rows of a span, and then its rejects."""

    def __init__(self, descriptor: int, shape: Shape) -> None:
        self.descriptor = descriptor
        self.shape = shape
        self._slot_bytes, self._rejects_at = shape.slot_bytes, shape.rejects_at
        self._rows: dict[tuple[int, int], RowArrays] = {}
        self._memory = memoryview(mmap.mmap(descriptor, shape.slots * self._slot_bytes))

    @classmethod
    def create(cls, shape: Shape) -> Arena:
        """A new arena; pages that no one touches take no memory."""
        descriptor = os.memfd_create("evertrain-arena")
        os.ftruncate(descriptor, shape.slots * shape.slot_bytes)
        return cls(descriptor, shape)

    def rows(self, slot: int, columns: int) -> RowArrays:
        """The rows of a slot, as views: valid until it is given back."""
        if (slot, columns) not in self._rows:
            self._rows[slot, columns] = laid_out(self._slot(slot), self.shape.rows, columns)
        return self._rows[slot, columns]

    def write_rejects(self, slot: int, rejects: pa.RecordBatch) -> int:
        """Writes them behind the rows; returns how many bytes they take, 0 if there are none."""
        if not rejects.num_rows:
            return 0
        data = rejects.serialize()
        room = self._rejects(slot)
        if data.size > len(room):
            raise ValueError(f"{data.size} bytes of rejects do not fit into {len(room)} bytes")
        room[: data.size] = memoryview(data).cast("B")
        return int(data.size)

    def read_rejects(self, slot: int, size: int) -> pa.RecordBatch:
        """What `write_rejects` wrote, as views."""
        if not size:
            return NO_REJECTS
        return pa.ipc.read_record_batch(pa.py_buffer(self._rejects(slot)[:size]), REJECTS)

    def poison(self, slot: int) -> None:
        """Overwrites a slot: tests use it to show that nobody keeps a view of a returned slot."""
        self._slot(slot)[:] = b"\xff" * self._slot_bytes

    def close(self) -> None:
        """Gives up the descriptor; the memory stays mapped while something views it."""
        os.close(self.descriptor)

    def _slot(self, slot: int) -> memoryview:
        return self._memory[slot * self._slot_bytes : (slot + 1) * self._slot_bytes]

    def _rejects(self, slot: int) -> memoryview:
        return self._slot(slot)[self._rejects_at :]
