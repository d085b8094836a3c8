"""Cuts one partition into spans: where a span ends depends on offsets and contents alone, not on fetch timing."""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median_low
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from consumers.codecs import Codec, Decoded
from consumers.codecs.table import RowArrays, allocate
from consumers.errors import StreamError
from consumers.record import REJECT_BYTES_MAX, REJECT_RAW_BYTES_MAX, Events, Int64s, Messages, Partition, Span

SPAN_RAW_BYTES_MAX = 16 * 2**20
"""A span ends before the message that would bring its values over this, but holds at least one message."""

PLACE_RECORDS = 15


class Cut(NamedTuple):
    """A span as its reader cut it: the coordinates, the events and the rejects."""

    start: int
    stop: int
    place: int
    messages: int
    events: Events
    rejects: pa.RecordBatch


@dataclass(frozen=True, slots=True)
class _Part:
    """Messages of a queue, with what is measured of each once."""

    messages: Messages
    rows_N: Int64s
    size_N: Int64s  # bytes

    @property
    def count(self) -> int:
        return len(self.messages)

    def part(self, start: int, stop: int) -> _Part:
        """Those in `[start, stop)`, as views."""
        return _Part(self.messages.part(start, stop), self.rows_N[start:stop], self.size_N[start:stop])

    @classmethod
    def joined(cls, parts: Sequence[_Part]) -> _Part:
        """Several ones after one another, in a buffer of their own; one as it is."""
        if len(parts) == 1:
            return parts[0]
        return cls(
            Messages.joined([part.messages for part in parts]),
            np.concatenate([part.rows_N for part in parts]),
            np.concatenate([part.size_N for part in parts]),
        )


class Cutter:
    """The queue of one partition: raw messages in, cuts out.

    A span ends at the next offset divisible by `span`, before the message that would overfill its slot, or, when
    `flush` is allowed, at the last message there is.
    """

    def __init__(self, partition: Partition, codec: Codec, start: int, span: int) -> None:
        self.partition = partition
        self.next = start  # everything before it was cut
        self.end: int | None = None  # proven end: no message before this offset is still to come
        self.bound: int | None = None  # offsets from here on are not taken
        self.bytes = 0  # of the queue
        self.rows = 0
        self._codec = codec
        self._span = span
        self._queue: deque[_Part] = deque()
        self._queued = 0

    def __len__(self) -> int:
        return self._queued

    @property
    def expected(self) -> int:
        """The offset of the next message if there is no gap."""
        return int(self._queue[-1].messages.offset_N[-1]) + 1 if self._queue else self.next

    def extend(self, messages: Messages) -> None:
        """Takes the next messages, one at least. Offsets that it has had and those past the bound are dropped."""
        seen = int(messages.offset_N[-1]) + 1
        if messages.offset_N[0] < self.expected or (self.bound is not None and seen > self.bound):
            first = bisect_left(messages.offset_N, self.expected)
            stop = len(messages) if self.bound is None else bisect_left(messages.offset_N, self.bound)
            messages = messages.part(first, stop)
        if len(messages):
            self._queue.append(_Part(messages, self._codec.rows_N(messages), messages.sizes_N()))
            self._count(self._queue[-1], 1)
        if self.bound is not None and seen > self.bound:
            self.end = seen
        elif self.end is not None and seen > self.end:
            self.end = None

    def ended(self, offset: int) -> None:
        """The broker has nothing before `offset` that was not added."""
        self.end = offset

    @property
    def done(self) -> bool:
        """Whether everything before the bound was cut."""
        if self.bound is None or self._queued:
            return False
        return self.next >= self.bound or (self.end is not None and self.end >= self.bound)

    @property
    def drained(self) -> bool:
        """Whether a bound is set and no further message can come: the rest may be cut at once."""
        if self.bound is None:
            return False
        return self.expected >= self.bound or (self.end is not None and self.end >= self.bound)

    def cut(self, rows: RowArrays | None = None, *, flush: bool) -> Cut | None:
        """The next span, or None if more messages could belong to it and `flush` is False.

        It is decoded into `rows`, which have room for any span, or into memory of its own.
        """
        count, complete = self._extent()
        if not count:
            return None
        messages = self._head(count)  # also if it is not cut yet: so the queue has few parts
        if not (complete or flush):
            return None
        decoded = self._decode(messages, rows)
        fitting = _fitting(messages, decoded.rejects)
        if fitting < len(messages):
            messages = messages.part(0, fitting)
            decoded = self._decode(messages, rows)
        return self._take(messages, decoded)

    def skip_to(self, stop: int) -> None:
        """Leaves out every offset before `stop`."""
        while self._queue and self._queue[0].messages.offset_N[0] < stop:
            self._drop(bisect_left(self._queue[0].messages.offset_N, stop))
        self.next = stop

    def cut_to(self, stop: int) -> Cut:
        """The span that ended at `stop` when it was first cut. Raises StreamError if its last record is gone."""
        messages = self._head(sum(bisect_left(part.messages.offset_N, stop) for part in self._queue))
        if not len(messages) or messages.offset_N[-1] != stop - 1:
            raise StreamError(
                f"{self.partition}@{stop - 1}: this record was learned once, and Kafka has it no more (retention or "
                "compaction removed it)"
            )
        return self._take(messages, self._decode(messages, None))

    def _decode(self, messages: Messages, rows: RowArrays | None) -> Decoded:
        if rows is None:
            rows = allocate(int(self._codec.rows_N(messages).sum()), self._codec.columns)
        return self._codec.decode(messages, rows)

    def _extent(self) -> tuple[int, bool]:
        """How many messages the next span holds so far, and whether it can hold no more."""
        if not self._queue:
            return 0, False
        boundary = (int(self._queue[0].messages.offset_N[0]) // self._span + 1) * self._span
        count, rows, size = 0, self._span, SPAN_RAW_BYTES_MAX
        for part in self._queue:
            before = bisect_left(part.messages.offset_N, boundary)
            within = min(before, _within(part.rows_N, rows), _within(part.size_N, size))
            count += within
            if within < part.count:
                return max(1, count), True
            rows, size = rows - int(part.rows_N.sum()), size - int(part.size_N.sum())
        return count, self.expected == boundary

    def _head(self, count: int) -> Messages:
        """The first `count` messages of the queue, from then on in one part: they are copied if they lay in several."""
        if not count:
            return Messages.of([], [], [], [])
        parts: list[_Part] = []
        missing = count
        while missing > 0:
            part = self._queue.popleft()
            if parts and missing < part.count:
                self._queue.appendleft(part.part(missing, part.count))
                part = part.part(0, missing)
            parts.append(part)
            missing -= part.count
        self._queue.appendleft(_Part.joined(parts))
        return self._queue[0].messages.part(0, count)

    def _take(self, messages: Messages, decoded: Decoded) -> Cut:
        start, stop = self.next, int(messages.offset_N[-1]) + 1
        self._drop(len(messages))
        self.next = stop
        return Cut(start, stop, place(messages.timestamp_N), len(messages), decoded.events, decoded.rejects)

    def _drop(self, count: int) -> None:
        """Drops messages of the queue's first part."""
        head = self._queue.popleft()
        self._count(head.part(0, count), -1)
        if count < head.count:
            self._queue.appendleft(head.part(count, head.count))

    def _count(self, part: _Part, sign: int) -> None:
        self._queued += sign * part.count
        self.rows += sign * int(part.rows_N.sum())
        self.bytes += sign * int(part.size_N.sum())


def _within(size_N: Int64s, limit: int) -> int:
    """How many messages, from the first on, do not bring the sum over the limit."""
    return int(np.searchsorted(np.cumsum(size_N), limit, side="right"))


def span_of(partition: Partition, cut: Cut) -> Span:
    """The span that a cut is."""
    return Span(
        partition,
        cut.start,
        cut.stop,
        cut.place,
        cut.messages,
        cut.events,
        cut.rejects,
        skipped=cut.stop - cut.start - cut.messages,
    )


def place(timestamp_N: Int64s) -> int:
    """Where a span stands in the order: the median of its first records, so that one wild stamp moves nothing."""
    return int(median_low(timestamp_N[:PLACE_RECORDS].tolist()))


REJECT_ROW_BYTES = 8 + 4 + 8 + 8 + 3 * 8


def reject_bytes(rows: int) -> int:
    """Room for the rejects of a span of so many rows, Arrow's headers included."""
    return rows * REJECT_ROW_BYTES + REJECT_BYTES_MAX + 2 * REJECT_RAW_BYTES_MAX + 2**16


def _fitting(messages: Messages, rejects: pa.RecordBatch) -> int:
    """How many messages keep what their rejects hold of any length within REJECT_BYTES_MAX; at least one."""
    if rejects.get_total_buffer_size() <= REJECT_BYTES_MAX:
        return len(messages)
    lengths = [pc.fill_null(pc.binary_length(rejects.column(n)), 0) for n in ("reason", "key", "value")]
    sums = pc.cumulative_sum(pc.add(pc.add(lengths[0], lengths[1]), lengths[2])).to_pylist()
    first_over = bisect_left(sums, REJECT_BYTES_MAX + 1)
    if first_over >= len(sums):
        return len(messages)
    return max(1, bisect_left(messages.offset_N.tolist(), rejects.column("offset")[first_over].as_py()))
