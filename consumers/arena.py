"""Fixed slots in anonymous shared memory: a reader process writes decoded spans, the learner reads them in place.

The kernel frees the memory when both processes are gone; order and wake-up come from the pipe beside it.
"""

from __future__ import annotations

import mmap
import os

import pyarrow as pa

_ALIGNMENT = 64  # of Arrow buffers


class Arena:
    """`slots` slots of `slot_bytes` bytes in one memfd."""

    def __init__(self, descriptor: int, slots: int, slot_bytes: int) -> None:
        self.descriptor = descriptor
        self.slots = slots
        self.slot_bytes = slot_bytes
        self._memory = memoryview(mmap.mmap(descriptor, slots * slot_bytes))

    @classmethod
    def create(cls, slots: int, slot_bytes: int) -> Arena:
        """A new arena; pages that no one touches take no memory."""
        descriptor = os.memfd_create("evertrain-arena")
        os.ftruncate(descriptor, slots * slot_bytes)
        return cls(descriptor, slots, slot_bytes)

    def write(self, slot: int, batches: list[pa.RecordBatch]) -> list[int]:
        """Writes batches one after another into a slot and returns the length of each in bytes."""
        place = slot * self.slot_bytes
        end = place + self.slot_bytes
        lengths = []
        for batch in batches:
            data = batch.serialize()
            if place + data.size > end:
                raise ValueError(f"{data.size} bytes do not fit into a slot of {self.slot_bytes} bytes")
            self._memory[place : place + data.size] = memoryview(data).cast("B")
            lengths.append(data.size)
            place += _aligned(data.size)
        return lengths

    def read(self, slot: int, lengths: list[int], schemas: list[pa.Schema]) -> list[pa.RecordBatch]:
        """Batches that view the slot, without a copy: valid until the slot is given back."""
        place = slot * self.slot_bytes
        batches = []
        for length, schema in zip(lengths, schemas, strict=True):
            data = pa.py_buffer(self._memory[place : place + length])
            batches.append(pa.ipc.read_record_batch(data, schema))
            place += _aligned(length)
        return batches

    def poison(self, slot: int) -> None:
        """Overwrites a slot: tests use it to show that nobody keeps a view of a returned slot."""
        self._memory[slot * self.slot_bytes : (slot + 1) * self.slot_bytes] = b"\xff" * self.slot_bytes

    def close(self) -> None:
        """Gives up the descriptor; the memory stays mapped while something views it."""
        os.close(self.descriptor)


def _aligned(length: int) -> int:
    return -(-length // _ALIGNMENT) * _ALIGNMENT
