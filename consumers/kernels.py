"""The join's compiled loops: every rule about one event, row by row.

Comparisons are written so that no event time can overflow: `t + W < watermark` is `t < horizon`, where
`horizon = watermark - W`, and `u <= t + W` is `u - t <= W` (event times are never negative).
"""

from __future__ import annotations

from enum import IntEnum
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from consumers.compiled import njit_cached, njit_inlined
from consumers.record import Bytes1, Float32s, Int64s, Kind


class Outcome(IntEnum):
    """The final fate of one event."""

    MATCHED = 0
    DUPLICATE = 1
    CONTRADICTION = 2  # a second label with another value
    ORPHAN = 3  # a label whose features never came
    LATE = 4
    EXPIRED = 5  # features whose label never came
    EVICTED = 6  # pushed out by the byte budget while waiting
    TOMBSTONE = 7
    WITHDRAWN = 8  # deleted by a tombstone while waiting


class Status(IntEnum):
    """What has become of one row of a slab. EMPTY and WITHDRAWN rows hold no key."""

    EMPTY = 0
    WAITING = 1
    MATCHED = 2
    EXPIRED = 3
    LATE = 4
    WITHDRAWN = 5


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
    newest_P: Int64s
    cursor_6: Int64s  # see `NEXT`


class EventRows(NamedTuple):
    """What the kernels see of one span. Read-only arrays, so that there is one compiled variant."""

    key_N2: npt.NDArray[np.uint64]
    event_time_N: Int64s
    kind_N: Bytes1
    label_N: Float32s  # [0] if the events carry none


class Findings(NamedTuple):
    """Where the kernels put their results."""

    inserted_N: Int64s  # rows of the span that were stored, in order
    feature_N: Int64s  # physical feature rows that were matched, in order
    label_N: Float32s  # their labels


class Rules(NamedTuple):
    window: int
    horizon: int  # watermark - window
    labelled: bool  # features carry their label


@njit_inlined
def _tag(table: TableRows, low: np.uint64) -> np.uint64:
    """The bits of a key that the index holds: its home, and enough to tell it from nearly all others unread."""
    if table.index_H2.itemsize == 4:
        return low & np.uint64(0xFFFFFFFF)
    return low


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
def _load(table: TableRows, key_N2: npt.NDArray[np.uint64], start: int) -> None:
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
def _enter(table: TableRows, row: int) -> None:
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
def _remove(table: TableRows, row: int) -> None:
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
            _enter(table, row)


@njit_cached
def remove(table: TableRows, start: int, stop: int) -> None:
    """Takes the rows [start, stop) of one slab out of the index; from here on they are empty."""
    for row in range(start, stop):
        if (row - start) % BLOCK == 0:
            _load_homes(table, row, stop)
        if table.status_R[row] not in (Status.EMPTY, Status.WITHDRAWN):
            _remove(table, row)
        table.status_R[row] = Status.EMPTY


@njit_cached
def _load_homes(table: TableRows, start: int, stop: int) -> None:
    """As `_load`, of the index alone, for a block of rows that are entered or removed."""
    mask = len(table.index_H2) - 1
    total = np.int64(0)
    for row in range(start, min(start + BLOCK, stop)):
        total += table.index_H2[np.int64(_tag(table, table.key_R2[row, 0])) & mask, 0]
    table.cursor_6[LOADED] = total


@njit_inlined
def _append(table: TableRows, events: EventRows, event: int, partition: int, status: int) -> int:
    """Writes an event to the open slab, which must have room, and returns its physical row."""
    row = table.cursor_6[NEXT]
    slab = table.cursor_6[SLAB]
    time = events.event_time_N[event]
    table.cursor_6[NEXT] += 1
    table.key_R2[row, 0] = events.key_N2[event, 0]
    table.key_R2[row, 1] = events.key_N2[event, 1]
    table.event_time_R[row] = time
    table.partition_R[row] = partition
    _enter(table, row)
    table.status_R[row] = status
    table.newest_P[slab] = max(table.newest_P[slab], time)
    if status == Status.WAITING:
        table.oldest_waiting_P[slab] = min(table.oldest_waiting_P[slab], time)
        table.cursor_6[OLDEST] = min(table.cursor_6[OLDEST], time)
    return int(row)


@njit_cached
def _bury(table: TableRows, events: EventRows, event: int, partition: int, counts_PO: Int64s) -> None:
    """Applies a tombstone."""
    counts_PO[partition, Outcome.TOMBSTONE] += 1
    row = find(table, events.key_N2[event, 0], events.key_N2[event, 1])
    if row >= 0 and table.status_R[row] == Status.WAITING:
        _remove(table, row)
        table.status_R[row] = Status.WITHDRAWN
        counts_PO[table.partition_R[row], Outcome.WITHDRAWN] += 1


@njit_cached
def apply_features(
    mine: TableRows,
    theirs: TableRows,
    events: EventRows,
    start: int,
    partition: int,
    rules: Rules,
    counts_PO: Int64s,
    found: Findings,
) -> tuple[int, int, int]:
    """Applies feature events from `start` on, until one needs a row and the open slab has none left.

    Returns:
        The next event to apply, the number of rows stored and of examples matched.
    """
    stored = matched = 0
    for event in range(start, len(events.kind_N)):
        if (event - start) % BLOCK == 0:
            _load(mine, events.key_N2, event)
            _load(theirs, events.key_N2, event)
        if events.kind_N[event] == Kind.TOMBSTONE:
            _bury(mine, events, event, partition, counts_PO)
            continue
        low, high, time = events.key_N2[event, 0], events.key_N2[event, 1], events.event_time_N[event]
        if time < rules.horizon:
            counts_PO[partition, Outcome.LATE] += 1
            continue
        if find(mine, low, high) >= 0:
            counts_PO[partition, Outcome.DUPLICATE] += 1
            continue
        if mine.cursor_6[NEXT] == mine.cursor_6[END]:
            return event, stored, matched
        label, pair = np.float32(0), rules.labelled
        if rules.labelled:
            label = events.label_N[event]
        else:
            other = find(theirs, low, high)
            if other >= 0 and theirs.status_R[other] == Status.WAITING:
                pair = theirs.event_time_R[other] - time <= rules.window
                label = theirs.label_R[other]
                theirs.status_R[other] = Status.MATCHED if pair else Status.LATE
                fate = Outcome.MATCHED if pair else Outcome.LATE
                counts_PO[theirs.partition_R[other], fate] += 1
        row = _append(mine, events, event, partition, Status.MATCHED if pair else Status.WAITING)
        found.inserted_N[stored] = event
        stored += 1
        if pair:
            counts_PO[partition, Outcome.MATCHED] += 1
            found.feature_N[matched] = row
            found.label_N[matched] = label
            matched += 1
    return len(events.kind_N), stored, matched


@njit_cached
def apply_labels(
    mine: TableRows,
    theirs: TableRows,
    events: EventRows,
    start: int,
    partition: int,
    rules: Rules,
    counts_PO: Int64s,
    found: Findings,
) -> tuple[int, int, int]:
    """Applies label events; the contract is that of `apply_features`."""
    stored = matched = 0
    for event in range(start, len(events.kind_N)):
        if (event - start) % BLOCK == 0:
            _load(mine, events.key_N2, event)
            _load(theirs, events.key_N2, event)
        if events.kind_N[event] == Kind.TOMBSTONE:
            _bury(mine, events, event, partition, counts_PO)
            continue
        low, high, time = events.key_N2[event, 0], events.key_N2[event, 1], events.event_time_N[event]
        label = events.label_N[event]
        known = find(mine, low, high)
        if known >= 0:
            fate = Outcome.DUPLICATE if mine.label_R[known] == label else Outcome.CONTRADICTION
            counts_PO[partition, fate] += 1
            continue
        other = find(theirs, low, high)
        status = Status.WAITING
        if other < 0:
            if time < rules.horizon:
                counts_PO[partition, Outcome.ORPHAN] += 1
                continue
        elif theirs.status_R[other] == Status.MATCHED:  # with a label that was dropped or evicted since
            counts_PO[partition, Outcome.DUPLICATE] += 1
            continue
        elif theirs.status_R[other] == Status.EXPIRED or time - theirs.event_time_R[other] > rules.window:
            counts_PO[partition, Outcome.LATE] += 1
            continue
        else:
            status = Status.MATCHED
        if mine.cursor_6[NEXT] == mine.cursor_6[END]:
            return event, stored, matched
        row = _append(mine, events, event, partition, status)
        mine.label_R[row] = label
        found.inserted_N[stored] = event
        stored += 1
        if status == Status.MATCHED:
            theirs.status_R[other] = Status.MATCHED
            counts_PO[partition, Outcome.MATCHED] += 1
            counts_PO[theirs.partition_R[other], Outcome.MATCHED] += 1
            found.feature_N[matched] = other
            found.label_N[matched] = label
            matched += 1
    return len(events.kind_N), stored, matched


@njit_cached
def expire(table: TableRows, start: int, stop: int, horizon: int, expired_N: Int64s) -> tuple[int, int]:
    """Expires the waiting rows of one slab, [start, stop), that are older than the horizon.

    Returns:
        How many (they are in `expired_N`), and the oldest event time that still waits.
    """
    expired, oldest = 0, LAST_TIME
    for row in range(start, stop):
        if table.status_R[row] == Status.WAITING:
            time = table.event_time_R[row]
            if time < horizon:
                table.status_R[row] = Status.EXPIRED
                expired_N[expired] = row
                expired += 1
            else:
                oldest = min(oldest, time)
    return expired, oldest


@njit_cached
def count_waiting(table: TableRows, start: int, stop: int, waiting_P: Int64s) -> None:
    """Adds the waiting rows of one slab, [start, stop), by partition."""
    for row in range(start, stop):
        if table.status_R[row] == Status.WAITING:
            waiting_P[table.partition_R[row]] += 1
