"""The order of spans is a function of the topics, and ends must be proven."""

import random
from collections.abc import Sequence

import pytest

from consumers.codecs.table import allocate
from consumers.config import StreamConfig
from consumers.planner import Planner
from consumers.record import (
    NEVER,
    NO_REJECTS,
    CaughtUp,
    Lost,
    Membership,
    Partition,
    Position,
    Side,
    Span,
    Tick,
    Wait,
)

F0, F1, L0 = Partition("f", 0), Partition("f", 1), Partition("l", 0)
SIDES = {"f": Side.FEATURES, "l": Side.LABELS}


YEAR_2286_MS = 9_999_999_999_999


def span(partition: Partition, start: int, place: int, times: Sequence[int] = ()) -> Span:
    events = allocate(len(times), 0).events(len(times), labelled=True)
    events.event_time_N[:] = times
    return Span(partition, start, start + 1, place, 1, events, NO_REJECTS)


def positions() -> dict[Partition, Position]:
    return {partition: Position(0) for partition in (F0, F1, L0)}


def planner(table: dict[Partition, Position], **config: int) -> Planner:
    return Planner(table, SIDES, StreamConfig(**config), batch_wait_ms=1000)


def take(plan: Planner, table: dict[Partition, Position], taken: Span) -> None:
    table[taken.partition].take(taken)
    plan.taken(taken)


def test_waits_without_limit_for_a_partition_whose_end_is_not_proven() -> None:
    plan = planner(positions())
    plan.offer(span(F0, 0, 10))
    plan.offer(span(L0, 0, 5))
    entry = plan.next(1e9)
    assert isinstance(entry, Wait)
    assert "f[1]" in entry.reason
    assert "f[0]" not in entry.reason


def test_takes_the_smallest_place_then_topic_rank_then_partition() -> None:
    table = positions()
    plan = planner(table)
    spans = [span(L0, 0, 7), span(F1, 0, 7), span(F0, 0, 7), span(F0, 1, 9)]
    for each in spans:
        plan.offer(each)
    for partition in (F0, F1, L0):
        plan.done(partition)
    order = []
    while isinstance(entry := plan.next(0), Span):
        order.append((entry.partition, entry.start))
        take(plan, table, entry)
    assert order == [(F0, 0), (F1, 0), (L0, 0), (F0, 1)]


def test_a_believed_end_lapses() -> None:
    plan = planner(positions())
    plan.offer(span(F0, 0, 10))
    plan.ended(F1, 100.0)
    plan.ended(L0, 100.0)
    assert isinstance(plan.next(99.0), Span)
    assert isinstance(plan.next(101.0), Wait)


def test_an_end_proves_nothing_about_what_comes_after_a_later_span() -> None:
    plan = planner(positions())
    for partition in (F0, F1, L0):
        plan.ended(partition, 100.0)
    plan.offer(span(F0, 0, 10))
    plan.taken(plan.next(0))
    entry = plan.next(0)
    assert isinstance(entry, Wait)
    assert "f[0]" in entry.reason


@pytest.mark.parametrize("seed", range(5))
def test_over_a_backlog_the_order_does_not_depend_on_arrival(seed: int) -> None:
    rng = random.Random(0)
    lanes = {p: [span(p, i, rng.randrange(100)) for i in range(20)] for p in (F0, F1, L0)}

    def order(shuffle: random.Random) -> list[tuple[Partition, int]]:
        table = positions()
        plan, left, taken = planner(table, idle_after=30), {p: list(s) for p, s in lanes.items()}, []
        while True:
            entry = plan.next(0.0)
            if isinstance(entry, CaughtUp):
                return taken
            if isinstance(entry, Wait):
                partition = shuffle.choice(list(left))
                if left[partition]:
                    plan.offer(left[partition].pop(0))
                else:
                    plan.done(partition)
            elif isinstance(entry, Span):
                taken.append((entry.partition, entry.start))
                take(plan, table, entry)
            elif isinstance(entry, Membership):
                taken.append((entry.partition, -1 - entry.idle))
                table[entry.partition].idle = entry.idle

    assert order(random.Random(seed)) == order(random.Random(99))


def test_a_feature_partition_that_lies_behind_goes_idle_and_comes_back() -> None:
    table = positions()
    plan = planner(table, idle_after=50)
    for position in table.values():
        position.places = [0, 51]
    plan.offer(span(F0, 0, 51))
    plan.ended(F1, 10.0)
    plan.ended(L0, 10.0)
    entry = plan.next(0)
    assert entry == Membership(F1, idle=True)  # the label partition may not idle
    table[F1].idle = True
    entry = plan.next(0)
    assert isinstance(entry, Span)
    take(plan, table, entry)
    plan.offer(span(F1, 0, 60))
    plan.ended(F0, 10.0)
    assert plan.next(0) == Membership(F1, idle=False)


def test_a_partition_never_read_goes_idle_after_the_oldest_place() -> None:
    table = positions()
    plan = planner(table, idle_after=50)
    plan.offer(span(F0, 0, 1000))
    plan.ended(F1, 10.0)
    plan.ended(L0, 10.0)
    first = plan.next(0)
    assert isinstance(first, Span)
    take(plan, table, first)
    table[F0].places = [1000, 1060]
    plan.offer(span(F0, 1, 1060))
    assert plan.next(0) == Membership(F1, idle=True)
    assert table[F1].last_place == NEVER


def test_ticks_only_at_the_end_of_every_partition_and_at_most_one_a_batch_wait() -> None:
    plan = planner(positions())
    for partition in (F0, F1):
        plan.ended(partition, 100.0)
    assert isinstance(plan.next(0), Wait)
    plan.ended(L0, 100.0)
    assert plan.next(0) == Tick()
    assert isinstance(plan.next(0.5), Wait)
    assert plan.next(1.0) == Tick()


def test_bounds_end_with_exactly_one_tick() -> None:
    plan = planner(positions())
    for partition in (F0, F1, L0):
        plan.done(partition)
    assert [plan.next(0) for _ in range(3)] == [Tick(), CaughtUp(), CaughtUp()]


def test_a_span_is_taken_only_once_all_before_it_in_its_partition_were() -> None:
    table = positions()
    plan = planner(table)
    plan.done(F1)
    plan.done(L0)
    for start in (2, 1):
        plan.offer(span(F0, start, 10))
    assert isinstance(plan.next(0), Wait)
    plan.offer(Lost(F0, 0, 1, 5, "unreadable"))
    starts = []
    while isinstance(entry := plan.next(0), Span | Lost):
        starts.append(entry.start)
        table[F0].next += 1
        plan.taken(entry)
    assert starts == [0, 1, 2]


def test_one_span_with_a_wild_place_makes_nobody_idle_and_keeps_nobody_active() -> None:
    table = positions()
    plan = planner(table, idle_after=50)
    for position in table.values():
        position.places = [0, 1, 2]
    plan.offer(span(F0, 0, YEAR_2286_MS))
    plan.ended(F1, 10.0)
    plan.ended(L0, 10.0)
    wild = plan.next(0)
    assert isinstance(wild, Span)
    take(plan, table, wild)
    assert table[F0].last_place == 2
    plan.ended(F0, 10.0)
    for start, place in enumerate((100, 101)):
        plan.offer(span(F1, start, place))
        entry = plan.next(0)
        if isinstance(entry, Span):
            take(plan, table, entry)
    assert entry == Membership(F0, idle=True)


def test_a_partition_moves_with_the_median_of_its_newest_events_and_a_single_event_reaches_nothing() -> None:
    position = Position(0)
    reached = []
    for start, time in enumerate([YEAR_2286_MS, 100, 101, YEAR_2286_MS, 102, 103, 99, 104]):
        position.take(span(F0, start, time, times=[time]))
        reached.append(position.reached)
    assert reached == [NEVER, 100, 101, 101, 102, 102, 102, 102]
    position.take(span(F0, 8, 200, times=list(range(200, 230))))
    assert position.reached == 222
    assert position.next == 9


def test_the_order_is_that_of_topics_and_numbers_whenever_a_partition_was_added() -> None:
    table = {partition: Position(0) for partition in (L0, F1, F0)}
    plan = planner(table)
    for partition in (L0, F1, F0):
        plan.offer(span(partition, 0, 7))
        plan.done(partition)
    order = []
    while isinstance(entry := plan.next(0), Span):
        order.append(entry.partition)
        take(plan, table, entry)
    assert order == [F0, F1, L0]
