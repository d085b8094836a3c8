"""The words every other file uses, defined once.

An offset always means *next*: everything before it is done. Times are milliseconds since the epoch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from statistics import median_low
from typing import NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa

Int64s: TypeAlias = npt.NDArray[np.int64]
Float32s: TypeAlias = npt.NDArray[np.float32]
Bytes1: TypeAlias = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True, order=True)
class Partition:
    """One partition of one topic."""

    topic: str
    number: int

    def __str__(self) -> str:
        return f"{self.topic}[{self.number}]"


class Side(IntEnum):
    """Which side of the join a topic feeds. The value is the topic's rank in the order."""

    FEATURES = 0
    LABELS = 1


class Kind(IntEnum):
    """What one decoded row is."""

    EVENT = 0
    TOMBSTONE = 1


class Blobs(NamedTuple):
    """N byte strings that lie in one buffer, in any order."""

    data: Bytes1
    start_N: Int64s
    length_N: Int64s  # in bytes; NULL_LENGTH for a null one

    def at(self, index: int) -> bytes | None:
        """One of them, copied."""
        start, length = int(self.start_N[index]), int(self.length_N[index])
        return None if length == NULL_LENGTH else self.data[start : start + length].tobytes()

    def part(self, start: int, stop: int) -> Blobs:
        """Those in `[start, stop)`, in the same buffer."""
        return Blobs(self.data, self.start_N[start:stop], self.length_N[start:stop])

    def take(self, index_M: Int64s) -> Blobs:
        """Those with these indices, in the same buffer."""
        return Blobs(self.data, self.start_N[index_M], self.length_N[index_M])

    @classmethod
    def of(cls, values: Sequence[bytes | None]) -> Blobs:
        """These, in a buffer of their own."""
        length_N = np.array([NULL_LENGTH if value is None else len(value) for value in values], np.int64)
        stop_N = np.cumsum(np.maximum(length_N, 0))
        data = np.frombuffer(b"".join(filter(None, values)), np.uint8)
        return cls(data, stop_N - np.maximum(length_N, 0), length_N)


NULL_LENGTH = -1


@dataclass(frozen=True, slots=True)
class Messages:
    """Raw Kafka messages of one partition, in offset order: columns of equal length."""

    offset_N: Int64s
    timestamp_N: Int64s  # of the records
    keys: Blobs
    values: Blobs  # in the same buffer as the keys

    def __len__(self) -> int:
        return len(self.offset_N)

    @classmethod
    def of(
        cls,
        offsets: Sequence[int],
        timestamps: Sequence[int],
        keys: Sequence[bytes | None],
        values: Sequence[bytes | None],
    ) -> Messages:
        """Messages made of lists."""
        both, count = Blobs.of([*keys, *values]), len(keys)
        columns = np.array(offsets, np.int64), np.array(timestamps, np.int64)
        return cls(*columns, both.part(0, count), both.part(count, 2 * count))

    def part(self, start: int, stop: int) -> Messages:
        """Messages `[start, stop)` of these, which keep the buffers of all of them alive."""
        return Messages(
            self.offset_N[start:stop],
            self.timestamp_N[start:stop],
            self.keys.part(start, stop),
            self.values.part(start, stop),
        )

    def take(self, index_M: Int64s) -> Messages:
        """Messages with these indices."""
        columns = self.offset_N[index_M], self.timestamp_N[index_M]
        return Messages(*columns, self.keys.take(index_M), self.values.take(index_M))

    @classmethod
    def joined(cls, parts: Sequence[Messages]) -> Messages:
        """Several ones after one another, in a buffer of their own. One or more parts."""
        data, starts, size = [], [], 0
        for part in parts:
            first, last = part._extent()
            data.append(part.values.data[first:last])
            starts.append((part.keys.start_N + (size - first), part.values.start_N + (size - first)))
            size += last - first
        buffer = np.concatenate(data)
        key_start_N, value_start_N = (np.concatenate(column) for column in zip(*starts, strict=True))
        return cls(
            np.concatenate([part.offset_N for part in parts]),
            np.concatenate([part.timestamp_N for part in parts]),
            Blobs(buffer, key_start_N, np.concatenate([part.keys.length_N for part in parts])),
            Blobs(buffer, value_start_N, np.concatenate([part.values.length_N for part in parts])),
        )

    def _extent(self) -> tuple[int, int]:
        """Where in their buffer these begin and end."""
        first = min(self.keys.start_N.min(initial=2**62), self.values.start_N.min(initial=2**62))
        ends = [(blobs.start_N + np.maximum(blobs.length_N, 0)).max(initial=0) for blobs in (self.keys, self.values)]
        return min(int(first), max(ends)), int(max(ends))

    def sizes_N(self) -> Int64s:
        """Bytes of each, key and value."""
        return np.maximum(self.keys.length_N, 0) + np.maximum(self.values.length_N, 0)

    @property
    def nbytes(self) -> int:
        """Bytes of all of them."""
        return int(self.sizes_N().sum())


MESSAGE_ROWS_MAX = 65_536
"""Rows that one message may hold; with more it is rejected."""

REJECT_BYTES_MAX = 2**20
"""Keys, values and reasons of the rejects of a span take no more: they travel in its slot."""

REJECT_RAW_BYTES_MAX = 64 * 1024
"""A dead letter carries at most this much of the original value, and of the key."""

REJECTS = pa.schema(
    {
        "offset": pa.int64(),
        "row": pa.int32(),  # row within the message
        "timestamp": pa.int64(),  # of the record
        "reason": pa.string(),
        "key": pa.binary(),  # the message key, at most REJECT_RAW_BYTES_MAX bytes, or null
        "value": pa.binary(),  # at most REJECT_RAW_BYTES_MAX bytes, or null for a null value
        "value_bytes": pa.int64(),  # length of the original value
    }
)
"""Arrow schema of rejected rows: one row per bad record."""

NO_REJECTS = pa.RecordBatch.from_struct_array(pa.nulls(0, pa.struct(REJECTS)))
"""Made so because from_arrays and from_pylist import pandas, which takes 33 MiB and 0.2 s a process."""


@dataclass(frozen=True, slots=True)
class Events:
    """The rows of one span as arrays that may view memory shared with a reader: valid until the next entry.

    Shapes: N rows, C feature columns. Tombstones have weight 0, label NaN, and features 0 as padding has: they are
    scored with the other rows, and NaN is no category.
    """

    key_N2: npt.NDArray[np.uint64]
    event_time_N: Int64s
    offset_N: Int64s
    row_N: npt.NDArray[np.int32]
    kind_N: Bytes1
    features_NC: Float32s  # [N, 0] on a label topic
    weight_N: Float32s  # [0] on a label topic
    label_N: Float32s | None

    def __len__(self) -> int:
        return len(self.event_time_N)

    def part(self, start: int, stop: int) -> Events:
        """Rows `[start, stop)` of these, as views."""
        return Events(
            key_N2=self.key_N2[start:stop],
            event_time_N=self.event_time_N[start:stop],
            offset_N=self.offset_N[start:stop],
            row_N=self.row_N[start:stop],
            kind_N=self.kind_N[start:stop],
            features_NC=self.features_NC[start:stop],
            weight_N=self.weight_N[start:stop],
            label_N=None if self.label_N is None else self.label_N[start:stop],
        )

    @classmethod
    def none(cls, columns: int, *, labelled: bool) -> Events:
        """No rows, with C feature columns: 0 for a label topic, which is always labelled."""
        none_0 = np.empty(0, np.int64)
        return cls(
            key_N2=np.empty((0, 2), np.uint64),
            event_time_N=none_0,
            offset_N=none_0,
            row_N=np.empty(0, np.int32),
            kind_N=np.empty(0, np.uint8),
            features_NC=np.empty((0, columns), np.float32),
            weight_N=np.empty(0, np.float32),
            label_N=np.empty(0, np.float32) if labelled else None,
        )


@dataclass(frozen=True, slots=True)
class Span:
    """Whole messages of one partition, offsets `[start, stop)`; a gap at the end belongs to the next span."""

    partition: Partition
    start: int
    stop: int
    place: int  # median record timestamp of its first 15 records: its place in the order
    messages: int
    events: Events = field(repr=False)
    rejects: pa.RecordBatch = field(repr=False)  # of schema REJECTS
    skipped: int = 0  # offsets in [start, stop) that held no message


@dataclass(frozen=True, slots=True)
class Tick:
    """Every partition is at its proven end: close the part-filled batch."""


@dataclass(frozen=True, slots=True)
class Membership:
    """A partition stops or starts to hold back the watermark."""

    partition: Partition
    idle: bool


@dataclass(frozen=True, slots=True)
class Added:
    """A topic got a partition: it is read from its beginning."""

    partition: Partition
    start: int


@dataclass(frozen=True, slots=True)
class Lost:
    """A record batch that no reader survives, offsets `[start, stop)`: it counts as one reject of its partition."""

    partition: Partition
    start: int
    stop: int
    place: int
    reason: str


@dataclass(frozen=True, slots=True)
class Command:
    """Something that a clock or an operator decided: `register`, or `accept_bad` with a number of records."""

    name: str
    argument: int = 0


@dataclass(frozen=True, slots=True)
class Wait:
    """Nothing to apply just now, and why. No entry: it only lets the loop look at its cadences.

    `hold` says what has to be mended outside before it can go on; empty where the stream is merely awaited.
    """

    reason: str = ""
    hold: str = ""


@dataclass(frozen=True, slots=True)
class CaughtUp:
    """A bounded source has delivered everything up to its bounds."""


Entry: TypeAlias = Span | Lost | Tick | Membership | Added | Command
"""What the learner applies, in order."""

NEVER = -(2**62)
"""An event time before every other: a partition that was never read."""

RECENT_EVENTS = 15
RECENT_PLACES = 3


@dataclass(slots=True)
class Position:
    """Where the learner stands in one partition: part of S.

    Medians over the newest events and spans keep a few records with a wild clock from moving anything, however the
    stream falls into spans. A single event proves nothing: `reached` needs two.
    """

    next: int
    reached: int = NEVER  # event time: the newest that the median of `recent` has had
    recent: list[int] = field(default_factory=list)  # event times of the newest events, oldest first
    places: list[int] = field(default_factory=list)  # of the newest spans, oldest first
    idle: bool = False

    @property
    def last_place(self) -> int:
        """Where the partition stands in the order; NEVER before its first span."""
        return median_low(self.places) if self.places else NEVER

    def place_after(self, place: int) -> int:
        """`last_place` as it will be after a span at `place`."""
        return median_low([*self.places, place][-RECENT_PLACES:])

    def take(self, span: Span) -> None:
        """Moves past a span."""
        self.next = span.stop
        self.places = [*self.places, span.place][-RECENT_PLACES:]
        if len(span.events):
            self.recent = [*self.recent, *span.events.event_time_N[-RECENT_EVENTS:].tolist()][-RECENT_EVENTS:]
            if len(self.recent) > 1:
                self.reached = max(self.reached, median_low(self.recent))
