"""The planner: puts the spans of all partitions in one order. Pure: no clock of its own, no I/O."""

from __future__ import annotations

from bisect import insort
from collections.abc import Mapping, Sequence
from dataclasses import replace
from operator import attrgetter

from consumers.config import StreamConfig
from consumers.record import (
    NEVER,
    CaughtUp,
    Entry,
    Lost,
    Membership,
    Partition,
    Position,
    Side,
    Span,
    Tick,
    Wait,
)


class _Lane:
    """One partition as the planner sees it."""

    def __init__(self, rank: tuple[int, int], position: Position) -> None:
        self.rank = rank
        self.position = position
        self.queue: list[Span | Lost] = []  # by offset
        self.end_believed_until = float("-inf")
        self.done = False

    @property
    def head_place(self) -> int:
        """The place of the head: a lost batch has that of the span before it."""
        head = self.queue[0]
        return self.position.last_place if isinstance(head, Lost) else head.place

    @property
    def ready(self) -> bool:
        """Whether the head of the queue follows on what was applied: nothing is ever skipped."""
        return bool(self.queue) and self.queue[0].start == self.position.next

    def at_end(self, now: float) -> bool:
        return not self.queue and (self.done or now <= self.end_believed_until)


class Planner:
    """Takes spans by place, then topic rank, then partition.

    It waits without limit for a partition whose end is not proven: so over a backlog the order depends on the topics
    alone. `positions` is the learner's own table, read here and changed only by applying entries.
    """

    def __init__(
        self,
        positions: Mapping[Partition, Position],
        sides: Mapping[str, Side],
        config: StreamConfig,
        batch_wait_ms: int,
    ) -> None:
        self._sides = sides
        self._config = config
        self._batch_wait_s = batch_wait_ms / 1000
        self._ticked_at = float("-inf")
        self._finished = False
        order = sorted(positions, key=lambda p: (sides[p.topic], p.number))
        self._lanes = {p: _Lane((sides[p.topic], p.number), positions[p]) for p in order}

    def offer(self, span: Span | Lost) -> None:
        """A span of its partition. It is taken once all before it were: several readers may offer in any order.

        It lies behind any end that was proven before, which so proves nothing.
        """
        lane = self._lanes[span.partition]
        insort(lane.queue, span, key=attrgetter("start"))
        lane.end_believed_until = float("-inf")

    def ended(self, partition: Partition, believed_until: float) -> None:
        """The partition's end is proven, and may be believed until that time."""
        self._lanes[partition].end_believed_until = believed_until

    def done(self, partition: Partition) -> None:
        """Every span before the partition's bound was offered."""
        self._lanes[partition].done = True

    def next(self, now: float) -> Entry | Wait | CaughtUp:
        """What to apply next. A Span or Lost stays queued until `taken`, a Tick or Membership is given once applied."""
        unproven = [p for p, lane in self._lanes.items() if not lane.ready and not lane.at_end(now)]
        if unproven:
            return Wait(f"waiting for {', '.join(map(str, unproven[:3]))}: neither a record nor a proven end")
        ready = [(lane.head_place, lane.rank, p) for p, lane in self._lanes.items() if lane.queue]
        if not ready:
            return self._all_at_end(now)
        place, _, partition = min(ready)
        lane = self._lanes[partition]
        if lane.position.idle:
            return Membership(partition, idle=False)
        behind = self._behind(lane.position.place_after(place))
        if behind:
            return Membership(behind[0], idle=True)
        head = lane.queue[0]
        return replace(head, place=place) if isinstance(head, Lost) else head

    def taken(self, span: Span | Lost) -> None:
        """The head of its partition's queue was applied."""
        del self._lanes[span.partition].queue[0]

    def _all_at_end(self, now: float) -> Entry | Wait | CaughtUp:
        newest = max(lane.position.last_place for lane in self._lanes.values())
        behind = self._behind(newest)
        if behind:
            return Membership(behind[0], idle=True)
        if all(lane.done for lane in self._lanes.values()):
            if self._finished:
                return CaughtUp()
            self._finished = True
            return Tick()
        if now - self._ticked_at >= self._batch_wait_s:
            self._ticked_at = now
            return Tick()
        return Wait("at the end of every partition")

    def _behind(self, place: int) -> Sequence[Partition]:
        """Empty partitions at their end that hold back the watermark and lie too far behind `place`."""
        places = [lane.position.last_place for lane in self._lanes.values()]
        oldest = min((last for last in places if last != NEVER), default=place)
        found = []
        for (partition, lane), last_place in zip(self._lanes.items(), places, strict=True):
            may_idle = self._sides[partition.topic] is Side.FEATURES or self._config.labels_may_idle
            if lane.queue or lane.position.idle or not may_idle:
                continue
            last = oldest if last_place == NEVER else last_place
            if place - last > self._config.idle_after:
                found.append(partition)
        return found
