"""The planner as machines: whatever is delivered, proven, believed and bounded, in whatever order.

`Oracle` says in plain words what may come next; one machine lets a live stream do as it likes, the other one delivers
a fixed backlog in any interleaving, whose order must not show it.
"""

from __future__ import annotations

from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from consumers.config import StreamConfig
from consumers.planner import Planner
from consumers.record import (
    NEVER,
    NO_REJECTS,
    CaughtUp,
    Events,
    Lost,
    Membership,
    Partition,
    Position,
    Side,
    Span,
    Tick,
    Wait,
)

F0, F1, L0, L1 = PARTITIONS = [Partition(topic, number) for topic in ("f", "l") for number in (0, 1)]
SIDES = {"f": Side.FEATURES, "l": Side.LABELS}
BATCH_WAIT_S = 1.0
NO_EVENTS = Events.none(0, labelled=True)

Given = tuple[Any, ...]
"""("span", partition, start, place), the same with "lost", ("membership", partition, idle), ("tick",), ("end",) or
("wait",)."""
CONFIGS = st.builds(StreamConfig, idle_after=st.sampled_from([0, 5, 30, 10**6]), labels_may_idle=st.booleans())
PLACES = st.integers(0, 60) | st.none()  # None: of a batch that no reader survives
PICKS = st.lists(st.integers(0, 2), max_size=5)


def make_span(partition: Partition, start: int, place: int | None) -> Span | Lost:
    if place is None:
        return Lost(partition, start, start + 1, 0, "gone")
    return Span(partition, start, start + 1, place, 1, NO_EVENTS, NO_REJECTS)


def as_given(entry: object) -> Given:
    match entry:
        case Span():
            return ("span", entry.partition, entry.start, entry.place)
        case Lost():
            return ("lost", entry.partition, entry.start, entry.place)
        case Membership():
            return ("membership", entry.partition, entry.idle)
        case Tick():
            return ("tick",)
        case CaughtUp():
            return ("end",)
        case Wait():
            return ("wait",)
    raise AssertionError(entry)


class Oracle:
    """What the planner must give next, and what giving it changes."""

    def __init__(self, config: StreamConfig) -> None:
        self.config = config
        self.queues: dict[Partition, dict[int, Span | Lost]] = {p: {} for p in PARTITIONS}  # by offset
        self.applied = dict.fromkeys(PARTITIONS, 0)
        self.believed_until = dict.fromkeys(PARTITIONS, float("-inf"))
        self.bounded: set[Partition] = set()
        self.idle: set[Partition] = set()
        self.places: dict[Partition, list[int]] = {p: [] for p in PARTITIONS}
        self.ticked_at = float("-inf")
        self.final_tick = False

    def deliver(self, span: Span | Lost) -> None:
        self.queues[span.partition][span.start] = span
        self.believed_until[span.partition] = float("-inf")  # an end before this span proves nothing behind it

    def at_end(self, partition: Partition, now: float) -> bool:
        proven = partition in self.bounded or now <= self.believed_until[partition]
        return proven and not self.queues[partition]

    def awaited(self, now: float) -> list[Partition]:
        """Partitions whose next offset is neither there nor known not to be."""
        return [p for p in PARTITIONS if self.applied[p] not in self.queues[p] and not self.at_end(p, now)]

    def next(self, now: float) -> Given:
        if self.awaited(now):
            return ("wait",)
        heads = [self.queues[p][self.applied[p]] for p in PARTITIONS if self.queues[p]]
        if heads:
            rank = {p: (self.head_place(head), SIDES[p.topic], p.number) for head in heads for p in [head.partition]}
            head = min(heads, key=lambda head: rank[head.partition])
            partition, place = head.partition, self.head_place(head)
            if partition in self.idle:
                return ("membership", partition, False)
            left_behind = self.left_behind(low_median([*self.places[partition], place]))
            kind = "lost" if isinstance(head, Lost) else "span"
            return ("membership", left_behind[0], True) if left_behind else (kind, partition, head.start, place)
        left_behind = self.left_behind(max(low_median(places) for places in self.places.values()))
        if left_behind:
            return ("membership", left_behind[0], True)
        if len(self.bounded) == len(PARTITIONS):
            return ("end",) if self.final_tick else ("tick",)
        return ("tick",) if now - self.ticked_at >= BATCH_WAIT_S else ("wait",)

    def head_place(self, head: Span | Lost) -> int:
        return low_median(self.places[head.partition]) if isinstance(head, Lost) else head.place

    def left_behind(self, place: int) -> list[Partition]:
        last = {p: low_median(places) for p, places in self.places.items()}
        oldest = min((each for each in last.values() if each != NEVER), default=place)
        return [
            p
            for p in PARTITIONS
            if not self.queues[p]
            and p not in self.idle
            and (p.topic == "f" or self.config.labels_may_idle)
            and place - (oldest if last[p] == NEVER else last[p]) > self.config.idle_after
        ]

    def apply(self, given: Given, now: float) -> None:
        match given:
            case ("span" | "lost", partition, start, place):
                del self.queues[partition][start]
                self.applied[partition] += 1
                self.places[partition].append(place)
            case ("membership", partition, True):
                self.idle.add(partition)
            case ("membership", partition, False):
                self.idle.remove(partition)
            case ("tick",):
                self.ticked_at, self.final_tick = now, len(self.bounded) == len(PARTITIONS)


def low_median(places: list[int]) -> int:
    """Of the newest three; NEVER of none."""
    newest = sorted(places[-3:])
    return newest[(len(newest) - 1) // 2] if newest else NEVER


class Machine(RuleBasedStateMachine):
    """A planner beside the oracle, and the positions as a learner moves them."""

    begun = False

    def begin(self, config: StreamConfig) -> None:
        self.positions = {p: Position(0) for p in PARTITIONS}
        self.planner = Planner(self.positions, SIDES, config, batch_wait_ms=int(BATCH_WAIT_S * 1000))
        self.oracle = Oracle(config)
        self.config = config
        self.now = 0.0
        self.given: list[Given] = []
        self.produced = dict.fromkeys(PARTITIONS, 0)
        self.pending: dict[Partition, list[Span | Lost]] = {p: [] for p in PARTITIONS}  # no reader has sent it yet
        self.final_ticks = 0
        self.begun = True

    def produce(self, partition: Partition, places: list[int | None]) -> None:
        for place in places:
            self.pending[partition].append(make_span(partition, self.produced[partition], place))
            self.produced[partition] += 1

    def deliver(self, partition: Partition, pick: int = 0) -> None:
        """Several readers may be ahead of each other."""
        if self.pending[partition]:
            span = self.pending[partition].pop(min(pick, len(self.pending[partition]) - 1))
            self.planner.offer(span)
            self.oracle.deliver(span)

    def prove(self, partition: Partition, seconds: float) -> None:
        if self.pending[partition]:
            return
        self.planner.ended(partition, self.now + seconds)
        self.oracle.believed_until[partition] = self.now + seconds

    def bound(self, partition: Partition) -> None:
        if self.pending[partition]:
            return
        self.planner.done(partition)
        self.oracle.bounded.add(partition)

    def step(self) -> Given:
        """Takes what comes next, as a learner does, and compares it."""
        entry = self.planner.next(self.now)
        given = as_given(entry)
        assert given == self.oracle.next(self.now)
        if isinstance(entry, Span | Lost):
            assert self.planner.next(self.now) == entry  # it stays until it is taken
            position = self.positions[entry.partition]
            assert entry.start == position.next
            applied = make_span(entry.partition, entry.start, entry.place)
            assert isinstance(applied, Span)
            position.take(applied)
            self.planner.taken(entry)
        elif isinstance(entry, Membership):
            self.positions[entry.partition].idle = entry.idle
        elif isinstance(entry, Wait):
            assert all(str(p) in entry.reason for p in self.oracle.awaited(self.now)[:3])
        self.final_ticks += given == ("tick",) and len(self.oracle.bounded) == len(PARTITIONS)
        self.oracle.apply(given, self.now)
        self.given.append(given)
        return given

    def drain(self) -> list[Given]:
        """Delivers the rest, bounds every partition and goes on to the end; returns what was given since the start."""
        for partition in PARTITIONS:
            while self.pending[partition]:
                self.deliver(partition)
            self.bound(partition)
        while self.step() != ("end",):
            assert self.given[-1] != ("wait",)
        assert self.step() == ("end",)
        assert self.final_ticks == 1
        return [given for given in self.given if given not in (("wait",), ("end",))]

    @rule(seconds=st.sampled_from([0.25, 1.0, 4.0]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @rule(steps=st.integers(1, 8))
    def learner_goes_on(self, steps: int) -> None:
        for _ in range(steps):
            self.step()


class LiveStream(Machine):
    """Spans come when they like, ends are proven, believed and lapse, and bounds are reached in between."""

    @initialize(config=CONFIGS)
    def nothing_was_read(self, config: StreamConfig) -> None:
        self.begin(config)

    @rule(partition=st.sampled_from(PARTITIONS), places=st.lists(PLACES, min_size=1, max_size=3), picks=PICKS)
    def spans_come(self, partition: Partition, places: list[int | None], picks: list[int]) -> None:
        if partition not in self.oracle.bounded:
            self.produce(partition, places)
            for pick in picks:
                self.deliver(partition, pick)

    @rule(partitions=st.sets(st.sampled_from(PARTITIONS), min_size=1), seconds=st.sampled_from([0.0, 0.5, 3.0]))
    def ends_are_proven(self, partitions: set[Partition], seconds: float) -> None:
        for partition in partitions:
            self.prove(partition, seconds)

    @rule(seconds=st.sampled_from([0.5, 3.0]))
    def every_end_is_proven(self, seconds: float) -> None:
        self.ends_are_proven(set(PARTITIONS), seconds)

    @rule(partition=st.sampled_from(PARTITIONS))
    def a_bound_is_reached(self, partition: Partition) -> None:
        self.bound(partition)

    def teardown(self) -> None:
        if self.begun:
            self.drain()
            for partition, produced in self.produced.items():
                spans = [given for given in self.given if given[0] in ("span", "lost") and given[1] == partition]
                assert [start for _, _, start, _ in spans] == list(range(produced))


class Backlog(Machine):
    """Fixed topics: the order of spans and memberships is one, whatever the timing of fetches and proofs."""

    @initialize(config=CONFIGS, backlog=st.fixed_dictionaries({p: st.lists(PLACES, max_size=8) for p in PARTITIONS}))
    def all_was_produced_before(self, config: StreamConfig, backlog: dict[Partition, list[int | None]]) -> None:
        self.begin(config)
        self.backlog = backlog
        for partition, places in backlog.items():
            self.produce(partition, places)

    @rule(partition=st.sampled_from(PARTITIONS), picks=PICKS, bounded=st.booleans())
    def fetched(self, partition: Partition, picks: list[int], bounded: bool) -> None:
        for pick in picks:
            self.deliver(partition, pick)
        if bounded:
            self.bound(partition)
        else:
            self.prove(partition, 3.0)

    def teardown(self) -> None:
        if self.begun:
            given = self.drain()
            at_once = Machine()
            at_once.begin(self.config)
            for partition, places in self.backlog.items():
                at_once.produce(partition, places)
            *order, last_tick = at_once.drain()
            assert given[: len(order)] == order
            assert set(given[len(order) :]) == {last_tick}  # none came before the last span


TestLiveStream, TestBacklog = LiveStream.TestCase, Backlog.TestCase
TestLiveStream.settings = TestBacklog.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
