"""The planner: puts the spans of all partitions in one order. Pure: no clock of its own, no I/O."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence

from consumers.config import StreamConfig
from consumers.record import (
    NEVER,
    CaughtUp,
    Entry,
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

    def __init__(self, rank: tuple[int, int]) -> None:
        self.rank = rank
        self.queue: deque[Span] = deque()
        self.end_believed_until = float("-inf")
        self.done = False

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
        self._positions = positions
        self._sides = sides
        self._config = config
        self._batch_wait_s = batch_wait_ms / 1000
        self._ticked_at = float("-inf")
        self._finished = False
        self._lanes = {p: _Lane((sides[p.topic], p.number)) for p in positions}

    def offer(self, span: Span) -> None:
        """The next span of its partition. It lies behind any end that was proven before, which so proves nothing."""
        lane = self._lanes[span.partition]
        lane.queue.append(span)
        lane.end_believed_until = float("-inf")

    def ended(self, partition: Partition, believed_until: float) -> None:
        """The partition's end is proven, and may be believed until that time."""
        self._lanes[partition].end_believed_until = believed_until

    def done(self, partition: Partition) -> None:
        """Every span before the partition's bound was offered."""
        self._lanes[partition].done = True

    def next(self, now: float) -> Entry | Wait | CaughtUp:
        """What to apply next. A Span stays queued until `taken`, a Tick or Membership is given once applied."""
        unproven = [p for p, lane in self._lanes.items() if not lane.queue and not lane.at_end(now)]
        if unproven:
            return Wait(f"waiting for {', '.join(map(str, unproven[:3]))}: neither a record nor a proven end")
        ready = [(lane.queue[0].place, lane.rank, p) for p, lane in self._lanes.items() if lane.queue]
        if not ready:
            return self._all_at_end(now)
        place, _, partition = min(ready)
        if self._positions[partition].idle:
            return Membership(partition, idle=False)
        behind = self._behind(place)
        return Membership(behind[0], idle=True) if behind else self._lanes[partition].queue[0]

    def taken(self, span: Span) -> None:
        """The span was applied."""
        self._lanes[span.partition].queue.popleft()

    def _all_at_end(self, now: float) -> Entry | Wait | CaughtUp:
        newest = max(position.last_place for position in self._positions.values())
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
        read = [position.last_place for position in self._positions.values() if position.last_place != NEVER]
        oldest = min(read, default=place)
        found = []
        for partition, lane in self._lanes.items():
            position = self._positions[partition]
            may_idle = self._sides[partition.topic] is Side.FEATURES or self._config.labels_may_idle
            if lane.queue or position.idle or not may_idle:
                continue
            last = oldest if position.last_place == NEVER else position.last_place
            if place - last > self._config.idle_after:
                found.append(partition)
        return found
