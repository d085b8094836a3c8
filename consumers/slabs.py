"""One side of the join table: rows in slabs, filled in the order applied and dropped from the oldest end."""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from consumers import mapping
from consumers.index import END, LAST_TIME, NEXT, OLDEST, SLAB, USED, Status, TableRows, enter, remove
from consumers.kernels import count_waiting
from consumers.record import NEVER, Bytes1, Int64s, Side

INDEX_MIN = 1024
"""Places of a new index; a power of two."""

HUGE_FROM_BYTES = 2**28
"""A table of this size goes on with pages of 2 MiB; in a small one they would take more memory than it says."""


@dataclass(frozen=True, slots=True)
class SlabView:
    """One slab, as views of the table: valid until rows are applied or the watermark advances.

    The columns of a full slab never change, its status may.
    """

    side: Side
    number: int  # counts up on each side, from 0
    full: bool
    columns: dict[str, npt.NDArray[Any]]
    status: Bytes1
    file: Path | None = None  # where the columns can be mapped from, in a snapshot


def slab_layout(side: Side, columns: int, score_width: int) -> dict[str, np.dtype[Any]]:
    """Names and types of the columns of one side; C = `columns`, S = `score_width`."""
    layout: dict[str, Any] = {
        "key": (np.uint64, 2),
        "event_time": np.int64,
        "partition": np.int32,
    }
    if side is Side.FEATURES:
        layout |= {
            "features": (np.float32, (columns,)),
            "scores": (np.float32, (score_width,)),
            "weight": np.float32,
        }
    else:
        layout["label"] = np.float32
    return {name: np.dtype(kind) for name, kind in layout.items()}


def slab_bytes(layout: Mapping[str, np.dtype[Any]], slab_rows: int) -> int:
    """Bytes of one slab, status included."""
    return slab_rows * (1 + sum(kind.itemsize for kind in layout.values()))


class SlabTable:
    """Rows in flat arrays that are cut into physical slabs, and an index from key to physical row.

    Where a slab lies and how large the index is never shows in a result.

    Args:
        side: which side of the join.
        layout: of `slab_layout`.
        slab_rows: rows in a slab.
        capacity: slabs that may be in use at a time.
    """

    def __init__(self, side: Side, layout: Mapping[str, np.dtype[Any]], slab_rows: int, capacity: int) -> None:
        capacity *= 2  # a dropped slab that is being written keeps its place; what was never used costs nothing
        rows = capacity * slab_rows
        self.side = side
        self.slab_rows = slab_rows
        self.slab_bytes = slab_bytes(layout, slab_rows)
        self.columns: dict[str, npt.NDArray[Any]] = {
            name: mapping.reserve((rows, *kind.shape), kind.base) for name, kind in layout.items()
        }
        self.order: deque[int] = deque()  # physical slabs, oldest first; the last one is being filled
        self._free = list(range(capacity))  # a heap: the lowest first, so that memory is used again
        self._warm: int | None = None  # a free slab that keeps its memory for the next one to be opened
        self._whole_pages = slab_rows % mapping.PAGE == 0
        self._next_number = 0
        self._pinned: set[int] = set()
        self._pinned_number = 0
        self._dropped: list[int] = []  # while they were pinned
        self._mapped: set[int] = set()
        self.rows = TableRows(
            key_R2=self.columns["key"],
            event_time_R=self.columns["event_time"],
            partition_R=self.columns["partition"],
            label_R=self.columns.get("label", np.empty(0, np.float32)),
            status_R=mapping.reserve((rows,), np.dtype(np.uint8)),
            index_H2=np.zeros((INDEX_MIN, 2), np.uint32 if rows < 2**32 - 1 else np.uint64),
            oldest_waiting_P=np.empty(capacity, np.int64),
            oldest_open_P=np.empty(capacity, np.int64),
            newest_P=np.empty(capacity, np.int64),
            cursor_6=np.array([0, 0, 0, 0, LAST_TIME, 0]),
        )

    @property
    def nbytes(self) -> int:
        """Bytes of the slabs in use, the open one included, wherever they lie; the index comes on top."""
        return len(self.order) * self.slab_bytes

    @property
    def resident_bytes(self) -> int:
        """Bytes in memory: the slabs that are not mapped, the status of those that are, and the index."""
        slabs, mapped = len(self.order) + len(self._dropped) + (self._warm is not None), len(self._mapped)
        return slabs * self.slab_bytes - mapped * (self.slab_bytes - self.slab_rows) + self.rows.index_H2.nbytes

    @property
    def next_row(self) -> int:
        """Physical row that the next insert takes."""
        return int(self.rows.cursor_6[NEXT])

    @property
    def room(self) -> int:
        """Rows that the open slab still takes."""
        return int(self.rows.cursor_6[END] - self.rows.cursor_6[NEXT])

    def bounds(self, slab: int) -> tuple[int, int]:
        """Physical rows [start, stop) of a slab that have been filled."""
        start = slab * self.slab_rows
        return start, self.next_row if slab == self.rows.cursor_6[SLAB] else start + self.slab_rows

    def open_slab(self) -> None:
        """Begins a new slab; the last one must be full. The caller has made sure that one is free."""
        self.release()
        if len(self.order) == HUGE_FROM_BYTES // self.slab_bytes:
            for array in (*self.columns.values(), self.rows.status_R):
                mapping.prefer_huge_pages(array)
        slab, self._warm = heapq.heappop(self._free) if self._warm is None else self._warm, None
        self.order.append(slab)
        self._next_number += 1
        self.rows.oldest_waiting_P[slab] = self.rows.oldest_open_P[slab] = LAST_TIME
        self.rows.newest_P[slab] = NEVER
        start = slab * self.slab_rows
        self.rows.cursor_6[[NEXT, END, SLAB]] = start, start + self.slab_rows, slab

    def drop_oldest(self) -> None:
        """Forgets the oldest slab, which must not be the newest."""
        slab = self.order.popleft()
        remove(self.rows, *self.bounds(slab))
        if slab in self._mapped:
            self._mapped.remove(slab)
            mapping.unmap(self._columns_of(slab, slab).values())
            heapq.heappush(self._free, slab)
        elif slab in self._pinned:
            self._dropped.append(slab)
        else:
            self._give_back(slab)

    def pin(self) -> None:
        """From here on no slab in use is filled anew, not even once it is dropped: it is being written."""
        self._pinned = set(self.order)
        self._pinned_number = self._next_number

    @property
    def has_unwritten(self) -> bool:
        """Whether a slab became full since `pin` or `load`."""
        return self._next_number > self._pinned_number

    def unpin(self) -> None:
        """The slabs are written."""
        self._pinned = set()
        for slab in self._dropped:
            self._give_back(slab)
        self._dropped = []

    def spill_oldest(self, files: Mapping[int, Path]) -> bool:
        """Maps the oldest full slab that is in memory and has a file, by number. False: there is none."""
        first = self._next_number - len(self.order)
        for number, slab in enumerate(self.order, first):
            if slab not in self._mapped and number in files:
                mapping.map_file(files[number], self._columns_of(slab, slab))
                self._mapped.add(slab)
                return True
        return False

    def release(self) -> None:
        """Gives back the memory that looking things up in mapped slabs has taken."""
        for first, last in _runs(sorted(self._mapped)):
            mapping.release(self._columns_of(first, last).values())

    def count_waiting(self, waiting_P: Int64s) -> None:
        """Adds the waiting rows by partition."""
        for slab in self.order:
            count_waiting(self.rows, *self.bounds(slab), waiting_P)
            if slab in self._mapped:
                mapping.release([self._columns_of(slab, slab)["partition"]])

    def reserve(self, rows: int) -> bool:
        """Makes the index ready for up to `rows` inserts: it is never more than half in use. Whether it grew."""
        size = before = len(self.rows.index_H2)
        while (int(self.rows.cursor_6[USED]) + rows) * 2 > size:
            size *= 2
        if size == before:
            return False
        self._size_index(0)  # the old one goes before the new one comes
        self._size_index(size)
        self.rows.cursor_6[USED] = 0
        for slab in self.order:
            enter(self.rows, *self.bounds(slab))
            if slab in self._mapped:
                mapping.release([self._columns_of(slab, slab)["key"]])
        return True

    def store(self, first: int, taken_M: Int64s, columns_N: Mapping[str, npt.NDArray[Any]]) -> None:
        """Copies the rows `taken_M` of each column, in order, to the physical rows from `first` on."""
        if not len(taken_M):
            return
        start, stop = int(taken_M[0]), int(taken_M[-1]) + 1
        for name, column in columns_N.items():
            target = self.columns[name][first : first + len(taken_M)]
            if stop - start == len(taken_M):  # all in a row
                target[...] = column[start:stop]
            else:
                column.take(taken_M, axis=0, out=target, mode="clip")  # "raise" would go through a buffer

    def views(self) -> list[SlabView]:
        """All slabs, oldest first."""
        first = self._next_number - len(self.order)
        views = []
        for number, slab in enumerate(self.order, first):
            start, stop = self.bounds(slab)
            columns = {name: column[start:stop] for name, column in self.columns.items()}
            status = self.rows.status_R[start:stop]
            views.append(SlabView(self.side, number, stop - start == self.slab_rows, columns, status))
        return views

    def load(self, view: SlabView) -> None:
        """Takes a slab of a snapshot as the newest one, into a slab that is free."""
        count = len(view.status)
        self.reserve(count)
        self._next_number = view.number
        self.open_slab()
        self._pinned_number = self._next_number  # full slabs of a snapshot are written
        rows, slab, start = self.rows, self.order[-1], self.next_row
        for name, column in self.columns.items():
            column[start : start + count] = view.columns[name]
        rows.status_R[start : start + count] = view.status
        time_N = view.columns["event_time"]
        rows.newest_P[slab] = time_N.max(initial=NEVER)
        open_N = view.status == Status.WAITING
        rows.oldest_open_P[slab] = time_N[open_N].min(initial=LAST_TIME)
        rows.oldest_waiting_P[slab] = time_N[open_N | (view.status == Status.ASSUMED)].min(initial=LAST_TIME)
        rows.cursor_6[OLDEST] = min(rows.cursor_6[OLDEST], rows.oldest_waiting_P[slab])
        rows.cursor_6[NEXT] += count
        enter(rows, start, start + count)

    def _size_index(self, size: int) -> None:
        # A mapping of its own, as large as the largest arrays here are: freed memory goes back, a heap would keep it.
        self.rows = self.rows._replace(index_H2=mapping.reserve((size, 2), self.rows.index_H2.dtype))
        mapping.prefer_huge_pages(self.rows.index_H2)

    def _give_back(self, slab: int) -> None:
        """A dropped slab's place is free. One keeps its memory: of a steady stream each slab follows one that goes."""
        if self._warm is None:
            self._warm = slab
            return
        if self._whole_pages:
            mapping.release(self._columns_of(slab, slab).values())
        heapq.heappush(self._free, slab)

    def _columns_of(self, first: int, last: int) -> dict[str, npt.NDArray[Any]]:
        """The columns of the physical slabs from `first` to `last`, which is one of them."""
        start, stop = first * self.slab_rows, (last + 1) * self.slab_rows
        return {name: column[start:stop] for name, column in self.columns.items()}


def _runs(numbers: list[int]) -> Iterator[tuple[int, int]]:
    """First and last of each run of numbers that follow one another."""
    for _, run in groupby(enumerate(numbers), lambda place: place[1] - place[0]):
        found = [number for _, number in run]
        yield found[0], found[-1]
