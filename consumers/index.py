"""The join's index: from a key to its row, by open addressing in one flat array, compiled.

It is never iterated: how large it is and where a row stands in it shows in no result.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from consumers.compiled import njit_cached, njit_inlined
from consumers.record import Bytes1, Float32s, Int64s


class Status(IntEnum):
    """What has become of one row of a slab. EMPTY and WITHDRAWN rows hold no key."""

    EMPTY = 0
    WAITING = 1
    MATCHED = 2
    EXPIRED = 3
    LATE = 4
    WITHDRAWN = 5
    ASSUMED = 6  # waits, and was learned as a negative meanwhile


NEXT, END, SLAB, USED, OLDEST, LOADED = range(6)
"""Places in `TableRows.cursor_6`: next row, end of the open slab, its physical number, places of the index in use, a
lower bound of the event times of waiting rows, and what is loaded ahead, which means nothing."""

BLOCK = 64
"""Events whose places in memory are loaded ahead, all at once: few enough to stay in the nearest cache."""

LAST_TIME = np.iinfo(np.int64).max


class TableRows(NamedTuple):
    """What the kernels see of one side: R physical rows in P physical slabs, H places in the index."""

    key_R2: npt.NDArray[np.uint64]
    event_time_R: Int64s
    partition_R: npt.NDArray[np.int32]
    label_R: Float32s  # [0] for features
    status_R: Bytes1
    index_H2: npt.NDArray[np.unsignedinteger[Any]]  # physical row + 1 or 0 for none, and the low bits of its key
    oldest_waiting_P: Int64s  # lower bound of the event times of waiting rows
    oldest_open_P: Int64s  # the same of those that were not assumed to be negative
    newest_P: Int64s
    cursor_6: Int64s  # see `NEXT`


@njit_inlined
def _tag(table: TableRows, low: np.uint64) -> np.uint64:
    """The bits of a key that the index holds: its home, and enough to tell it from nearly all others unread."""
    if table.index_H2.itemsize == 4:
        return low & np.uint64(0xFFFFFFFF)
    return low


@njit_inlined
def waits(status: int) -> bool:
    """Whether a row has neither met its other side nor expired."""
    return status == Status.WAITING or status == Status.ASSUMED  # noqa: PLR1714 (numba knows no membership here)


@njit_inlined
def find(table: TableRows, low: np.uint64, high: np.uint64) -> int:
    """The physical row that holds a key, or -1."""
    mask = len(table.index_H2) - 1
    tag = _tag(table, low)
    place = np.int64(tag) & mask
    while True:
        row = np.int64(table.index_H2[place, 0]) - 1
        if row < 0:
            return -1
        if table.index_H2[place, 1] == tag and table.key_R2[row, 0] == low and table.key_R2[row, 1] == high:
            return int(row)
        place = (place + 1) & mask


@njit_cached
def load(table: TableRows, key_N2: npt.NDArray[np.uint64], start: int) -> None:
    """Loads into the cache what `find` will read for the keys of one block; what it stores means nothing.

    Without a branch the processor waits for many of these loads at once; `find` waits for each in turn.
    """
    mask = len(table.index_H2) - 1
    total = np.int64(0)
    for number in range(start, min(start + BLOCK, len(key_N2))):
        tag = _tag(table, key_N2[number, 0])
        place = np.int64(tag) & mask
        row = max(np.int64(table.index_H2[place, 0]) - 1, 0) * (table.index_H2[place, 1] == tag)
        total += np.int64(table.key_R2[row, 0]) + table.event_time_R[row] + table.partition_R[row] + table.status_R[row]
    table.cursor_6[LOADED] = total


@njit_inlined
def enter_row(table: TableRows, row: int) -> None:
    """Enters a row, whose key `find` must have reported absent."""
    mask = len(table.index_H2) - 1
    tag = _tag(table, table.key_R2[row, 0])
    place = np.int64(tag) & mask
    while table.index_H2[place, 0]:
        place = (place + 1) & mask
    table.index_H2[place, 0] = row + 1
    table.index_H2[place, 1] = tag
    table.cursor_6[USED] += 1


@njit_inlined
def remove_row(table: TableRows, row: int) -> None:
    """Takes a row that was entered out of the index.

    Those behind it move up, so that no search stops short: Knuth, "The Art of Computer Programming", 6.4, algorithm R.
    """
    mask = len(table.index_H2) - 1
    place = np.int64(_tag(table, table.key_R2[row, 0])) & mask
    while np.int64(table.index_H2[place, 0]) != row + 1:
        place = (place + 1) & mask
    hole = place
    while True:
        place = (place + 1) & mask
        if not table.index_H2[place, 0]:
            break
        home = np.int64(table.index_H2[place, 1]) & mask
        if (place - home) & mask >= (place - hole) & mask:  # it may stand as early as the hole
            table.index_H2[hole, 0] = table.index_H2[place, 0]
            table.index_H2[hole, 1] = table.index_H2[place, 1]
            hole = place
    table.index_H2[hole, 0] = 0
    table.cursor_6[USED] -= 1


@njit_cached
def enter(table: TableRows, start: int, stop: int) -> None:
    """Enters the rows [start, stop) of one slab, none of which is in the index."""
    for row in range(start, stop):
        if (row - start) % BLOCK == 0:
            _load_homes(table, row, stop)
        if table.status_R[row] not in (Status.EMPTY, Status.WITHDRAWN):
            enter_row(table, row)


@njit_cached
def remove(table: TableRows, start: int, stop: int) -> None:
    """Takes the rows [start, stop) of one slab out of the index; from here on they are empty."""
    for row in range(start, stop):
        if (row - start) % BLOCK == 0:
            _load_homes(table, row, stop)
        if table.status_R[row] not in (Status.EMPTY, Status.WITHDRAWN):
            remove_row(table, row)
        table.status_R[row] = Status.EMPTY


@njit_cached
def _load_homes(table: TableRows, start: int, stop: int) -> None:
    """As `load`, of the index alone, for a block of rows that are entered or removed."""
    mask = len(table.index_H2) - 1
    total = np.int64(0)
    for row in range(start, min(start + BLOCK, stop)):
        total += table.index_H2[np.int64(_tag(table, table.key_R2[row, 0])) & mask, 0]
    table.cursor_6[LOADED] = total
