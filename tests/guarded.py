"""Memory that ends where nothing must be read: who reads one byte more dies of it."""

from __future__ import annotations

import ctypes
import mmap

import numpy as np

from consumers.record import Blobs

SIZE = 2**20


class GuardedMemory:
    """SIZE bytes in front of a page that no one may touch."""

    def __init__(self) -> None:
        pages = mmap.mmap(-1, SIZE + mmap.PAGESIZE)
        self._memory = np.frombuffer(pages, np.uint8, SIZE)
        behind = ctypes.c_void_p(self._memory.ctypes.data + SIZE)
        if ctypes.CDLL(None, use_errno=True).mprotect(behind, ctypes.c_size_t(mmap.PAGESIZE), 0):
            raise OSError(ctypes.get_errno(), "mprotect")

    def blobs(self, values: Blobs, last: int) -> Blobs:
        """The same values in this memory, that with index `last` at its very end. Valid until the next call."""
        count = len(values.start_N)
        order = [index for index in range(count) if index != last] + [last]
        placed, back = Blobs.of([values.at(index) for index in order]), np.argsort(order)
        memory = self._memory[SIZE - len(placed.data) :]
        memory[:] = placed.data
        return Blobs(memory, placed.start_N[back], placed.length_N[back])
