"""Cuts one partition into spans: where a span ends depends on offsets and contents alone, not on fetch timing."""

from __future__ import annotations

from bisect import bisect_left
from itertools import accumulate
from statistics import median_low
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from consumers.codecs import Codec, Decoded
from consumers.errors import StreamError
from consumers.record import REJECT_RAW_BYTES_MAX, Events, Messages, Partition, Span

SPAN_RAW_BYTES_MAX = 16 * 2**20
"""A span ends before the message that would bring its values over this, but holds at least one message."""

REJECT_BYTES_MAX = 2**20
"""Likewise for the keys, values and reasons of its rejects: they travel in the span's slot."""

PLACE_RECORDS = 15


class Cut(NamedTuple):
    """A span as its reader sends it: the coordinates and the two Arrow batches."""

    start: int
    stop: int
    place: int
    messages: int
    events: pa.RecordBatch
    rejects: pa.RecordBatch


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
        self.bytes = 0
        self._codec = codec
        self._span = span
        self._queue = Messages([], [], [], [])
        self._sizes: list[int] = []

    def __len__(self) -> int:
        return len(self._queue)

    @property
    def expected(self) -> int:
        """The offset of the next message if there is no gap."""
        return self._queue.offsets[-1] + 1 if self._queue.offsets else self.next

    def extend(self, messages: Messages) -> None:
        """Takes the next messages, one at least. Offsets that it has had and those past the bound are dropped."""
        seen = messages.offsets[-1] + 1
        if messages.offsets[0] < self.expected or (self.bound is not None and seen > self.bound):
            first = bisect_left(messages.offsets, self.expected)
            stop = len(messages) if self.bound is None else bisect_left(messages.offsets, self.bound)
            messages = messages.part(first, stop)
        queue = self._queue
        queue.offsets.extend(messages.offsets)
        queue.timestamps.extend(messages.timestamps)
        queue.keys.extend(messages.keys)
        queue.values.extend(messages.values)
        sizes = [len(value or b"") + len(key or b"") for key, value in zip(messages.keys, messages.values, strict=True)]
        self._sizes.extend(sizes)
        self.bytes += sum(sizes)
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
        if self.bound is None or self._queue.offsets:
            return False
        return self.next >= self.bound or (self.end is not None and self.end >= self.bound)

    @property
    def drained(self) -> bool:
        """Whether a bound is set and no further message can come: the rest may be cut at once."""
        if self.bound is None:
            return False
        return self.expected >= self.bound or (self.end is not None and self.end >= self.bound)

    def cut(self, *, flush: bool) -> Cut | None:
        """The next span, decoded, or None if more messages could still belong to it and `flush` is False."""
        count, complete = self._extent()
        if not count or not (complete or flush):
            return None
        messages = self._queue.part(0, count)
        decoded = self._codec.decode(messages)
        fitting = _fitting(messages, decoded.rejects)
        if fitting < count:
            count, decoded = fitting, self._codec.decode(messages.part(0, fitting))
        return self._take(count, decoded)

    def skip_to(self, stop: int) -> None:
        """Leaves out every offset before `stop`."""
        self._drop(bisect_left(self._queue.offsets, stop))
        self.next = stop

    def cut_to(self, stop: int) -> Cut:
        """The span that ended at `stop` when it was first cut. Raises StreamError if its last record is gone."""
        count = bisect_left(self._queue.offsets, stop)
        if not count or self._queue.offsets[count - 1] != stop - 1:
            raise StreamError(
                f"{self.partition}@{stop - 1}: this record was learned once, and Kafka has it no more (retention or "
                "compaction removed it)"
            )
        return self._take(count, self._codec.decode(self._queue.part(0, count)))

    def _extent(self) -> tuple[int, bool]:
        """How many queued messages the next span holds so far, and whether it can hold no more."""
        offsets = self._queue.offsets
        if not offsets:
            return 0, False
        boundary = (offsets[0] // self._span + 1) * self._span
        count = bisect_left(offsets, boundary, 0, min(len(offsets), self._span))
        if self.bytes > SPAN_RAW_BYTES_MAX:
            sums = list(accumulate(self._sizes[:count]))
            within = max(1, bisect_left(sums, SPAN_RAW_BYTES_MAX + 1))
            if within < count:
                return within, True
        complete = count < len(offsets) or offsets[count - 1] == boundary - 1
        return count, complete

    def _take(self, count: int, decoded: Decoded) -> Cut:
        start, stop = self.next, self._queue.offsets[count - 1] + 1
        at = place(self._queue.timestamps[:count])
        self._drop(count)
        self.next = stop
        return Cut(start, stop, at, count, decoded.events, decoded.rejects)

    def _drop(self, count: int) -> None:
        queue = self._queue
        self.bytes -= sum(self._sizes[:count])
        for column in (queue.offsets, queue.timestamps, queue.keys, queue.values, self._sizes):
            del column[:count]


def span_of(partition: Partition, cut: Cut) -> Span:
    """The span that a cut is, with its events as views."""
    return Span(
        partition,
        cut.start,
        cut.stop,
        cut.place,
        cut.messages,
        Events.from_arrow(cut.events),
        cut.rejects,
        skipped=cut.stop - cut.start - cut.messages,
    )


def place(timestamps: list[int]) -> int:
    """Where a span stands in the order: the median of its first records, so that one wild stamp moves nothing."""
    return median_low(timestamps[:PLACE_RECORDS])


def slot_bytes(span: int, columns: int) -> int:
    """A slot that holds any span: its rows, its rejects, and Arrow's headers."""
    row_bytes = 16 + 8 + 8 + 4 + 1 + 4 + 4 + 4 * columns
    reject_bytes = 8 + 4 + 8 + 8 + 3 * 8
    return span * (row_bytes + reject_bytes) + REJECT_BYTES_MAX + 2 * REJECT_RAW_BYTES_MAX + 2**16


def _fitting(messages: Messages, rejects: pa.RecordBatch) -> int:
    """How many messages keep what their rejects hold of any length within REJECT_BYTES_MAX; at least one."""
    if rejects.get_total_buffer_size() <= REJECT_BYTES_MAX:
        return len(messages)
    lengths = [pc.fill_null(pc.binary_length(rejects.column(n)), 0) for n in ("reason", "key", "value")]
    sums = pc.cumulative_sum(pc.add(pc.add(lengths[0], lengths[1]), lengths[2])).to_pylist()
    first_over = bisect_left(sums, REJECT_BYTES_MAX + 1)
    if first_over >= len(sums):
        return len(messages)
    return max(1, bisect_left(messages.offsets, rejects.column("offset")[first_over].as_py()))
