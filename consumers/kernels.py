"""The join's compiled loops: every rule about one event, row by row.

Comparisons are written so that no event time can overflow: `t + W < watermark` is `t < horizon`, where
`horizon = watermark - W`, and `u <= t + W` is `u - t <= W` (event times are never negative).
"""

from __future__ import annotations

from enum import IntEnum
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from consumers.compiled import njit_cached, njit_inlined
from consumers.index import (
    BLOCK,
    END,
    LAST_TIME,
    NEXT,
    OLDEST,
    SLAB,
    Status,
    TableRows,
    enter_row,
    find,
    load,
    remove_row,
    waits,
)
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
    age_N: Int64s  # how much later these came, in ms
    assumed_N: npt.NDArray[np.bool_]  # whether they were learned as negatives meanwhile

    @classmethod
    def room(cls, rows: int) -> Findings:
        """For what `rows` events bring."""
        inserted_N, feature_N, age_N = (np.empty(rows, np.int64) for _ in range(3))
        return cls(inserted_N, feature_N, np.empty(rows, np.float32), age_N, np.empty(rows, np.bool_))


class Rules(NamedTuple):
    window: int
    horizon: int  # watermark - window
    labelled: bool  # features carry their label


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
    enter_row(table, row)
    table.status_R[row] = status
    table.newest_P[slab] = max(table.newest_P[slab], time)
    if status == Status.WAITING:
        table.oldest_waiting_P[slab] = min(table.oldest_waiting_P[slab], time)
        table.oldest_open_P[slab] = min(table.oldest_open_P[slab], time)
        table.cursor_6[OLDEST] = min(table.cursor_6[OLDEST], time)
    return int(row)


@njit_cached
def _bury(table: TableRows, events: EventRows, event: int, partition: int, counts_PO: Int64s) -> None:
    """Applies a tombstone."""
    counts_PO[partition, Outcome.TOMBSTONE] += 1
    row = find(table, events.key_N2[event, 0], events.key_N2[event, 1])
    if row >= 0 and waits(table.status_R[row]):
        remove_row(table, row)
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
            load(mine, events.key_N2, event)
            load(theirs, events.key_N2, event)
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
        label, age, pair = np.float32(0), np.int64(0), rules.labelled
        if rules.labelled:
            label = events.label_N[event]
        else:
            other = find(theirs, low, high)
            if other >= 0 and theirs.status_R[other] == Status.WAITING:
                age = theirs.event_time_R[other] - time
                pair = age <= rules.window
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
            found.age_N[matched] = max(age, np.int64(0))
            found.assumed_N[matched] = False
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
            load(mine, events.key_N2, event)
            load(theirs, events.key_N2, event)
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
            found.age_N[matched] = max(time - theirs.event_time_R[other], np.int64(0))
            found.assumed_N[matched] = theirs.status_R[other] == Status.ASSUMED
            theirs.status_R[other] = Status.MATCHED
            counts_PO[partition, Outcome.MATCHED] += 1
            counts_PO[theirs.partition_R[other], Outcome.MATCHED] += 1
            found.feature_N[matched] = other
            found.label_N[matched] = label
            matched += 1
    return len(events.kind_N), stored, matched


@njit_cached
def expire(
    table: TableRows, start: int, stop: int, horizon: int, expired_N: Int64s, assumed_N: npt.NDArray[np.bool_]
) -> tuple[int, int]:
    """Expires the waiting rows of one slab, [start, stop), that are older than the horizon.

    Returns:
        How many (they are in `expired_N`, and in `assumed_N` whether they were learned as negatives), and the oldest
        event time that still waits.
    """
    expired, oldest = 0, LAST_TIME
    for row in range(start, stop):
        if waits(table.status_R[row]):
            time = table.event_time_R[row]
            if time < horizon:
                assumed_N[expired] = table.status_R[row] == Status.ASSUMED
                table.status_R[row] = Status.EXPIRED
                expired_N[expired] = row
                expired += 1
            else:
                oldest = min(oldest, time)
    return expired, oldest


@njit_cached
def assume(table: TableRows, start: int, stop: int, horizon: int, assumed_N: Int64s) -> tuple[int, int]:
    """Assumes the waiting rows of one slab, [start, stop), that are older than the horizon, to be negatives.

    Returns:
        How many (they are in `assumed_N`), and the oldest event time that waits and is not assumed.
    """
    assumed, oldest = 0, LAST_TIME
    for row in range(start, stop):
        if table.status_R[row] == Status.WAITING:
            time = table.event_time_R[row]
            if time < horizon:
                table.status_R[row] = Status.ASSUMED
                assumed_N[assumed] = row
                assumed += 1
            else:
                oldest = min(oldest, time)
    return assumed, oldest


@njit_cached
def count_waiting(table: TableRows, start: int, stop: int, waiting_P: Int64s) -> None:
    """Adds the waiting rows of one slab, [start, stop), by partition."""
    for row in range(start, stop):
        if waits(table.status_R[row]):
            waiting_P[table.partition_R[row]] += 1
