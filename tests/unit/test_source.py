"""Several readers share the partitions; to the learner they are one source."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from consumers import source as module
from consumers import supervisor
from consumers.errors import DependencyError
from consumers.reader import ReaderJob
from consumers.record import Added, Entry, Lost, Partition, Position, Side, Wait
from consumers.source import KafkaSource, deal
from pipeline.config import label_rule
from pipeline.state import fresh_positions
from tests.stream import job

F0, F1, F2 = (Partition("t.features", number) for number in range(3))
L0, L1 = (Partition("t.labels", number) for number in range(2))
NEW = Partition("t.labels", 2)


class FakeFeed:
    """A reader that says what the test makes it say."""

    _numbers = itertools.count(1)

    def __init__(self, job: ReaderJob, planner: Any, *, partial: bool = False) -> None:
        self.job = job
        self.partial = partial
        self.planner = planner
        self.lag: int | None = None
        self.hold = ""
        self.added: list[Added] = []
        self.unreadable: Any = None
        self.reached = dict(job.starts)
        self.lives = True
        self.told: list[Any] = []
        self.process = SimpleNamespace(
            pid=next(self._numbers), pipe=object(), tell=self.told.append, close=lambda: None, death=lambda: "killed"
        )

    def receive(self) -> bool:
        return self.lives

    def death(self) -> str:
        return "killed"

    def taken(self, _: Any) -> None: ...

    def give_back(self) -> None: ...


class Readers:
    """A source over fake readers. `of` are those of the present session, `waited_for` the pipes it last waited for."""

    def __init__(self, folder: Path, readers: int) -> None:
        self.feeds: list[FakeFeed] = []
        self.waited_for: list[Any] = []
        self.positions: dict[Partition, Position] = fresh_positions(dict.fromkeys((F0, F1, F2, L0, L1), 0))
        self.config = job(folder / "state", stream={"readers": readers})
        self.ends: dict[Partition, int] | None = None  # None: Kafka does not answer
        self.source = KafkaSource(self.job, self._ends, batch_wait_ms=1000, bounds=None, commands=lambda: None)
        self._entries = self.source.entries(self.positions)

    def job(self, starts: dict[Partition, int], bounds: dict[Partition, int]) -> ReaderJob:
        return ReaderJob(
            starts=starts,
            bounds=bounds,
            settings={},
            topic_ids={},
            group="g",
            sides={"t.features": Side.FEATURES, "t.labels": Side.LABELS},
            features=self.config.features,
            labels=self.config.labels,
            label=label_rule(self.config.learner),
            stream=self.config.stream,
            gaps_allowed=True,
        )

    def next(self) -> Entry | Wait:
        entry = next(self._entries)
        if isinstance(entry, Added):
            self.positions[entry.partition] = Position(entry.start)
        return entry

    def of_session(self) -> list[FakeFeed]:
        """The readers that are there once the source has taken its turn."""
        self.next()
        return [feed for feed in self.feeds if feed.process.pid in self.source.reader_pids]

    def _ends(self, _: Any) -> dict[Partition, int]:
        if self.ends is None:
            raise DependencyError("Kafka is not reachable")
        return self.ends


@pytest.fixture
def two(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Readers]:
    readers = Readers(tmp_path, 2)

    def start(*args: Any, **more: Any) -> FakeFeed:
        readers.feeds.append(FakeFeed(*args, **more))
        return readers.feeds[-1]

    monkeypatch.setattr(module, "Feed", start)
    monkeypatch.setattr(module, "end", lambda _: None)
    monkeypatch.setattr(module, "wait", lambda pipes, _: readers.waited_for.__setitem__(slice(None), pipes))
    monkeypatch.setattr(module.time, "sleep", lambda _: None)
    return readers


@pytest.mark.parametrize(
    ("readers", "hands"),
    [
        (1, [[F0, F1, F2, L0, L1]]),
        (2, [[F0, F2, L1], [F1, L0]]),
        (3, [[F0, L0], [F1, L1], [F2]]),
        (64, [[F0], [F1], [F2], [L0], [L1]]),
    ],
)
def test_partitions_are_dealt_in_turn_to_no_more_readers_than_there_are_partitions(
    tmp_path: Path, readers: int, hands: list[list[Partition]]
) -> None:
    starts = {L1: 5, F1: 3, F0: 7, L0: 1, F2: 0}
    dealt = deal(Readers(tmp_path, readers).job(starts, {F0: 9}))
    assert [list(part.starts) for part in dealt] == hands
    assert {p: start for part in dealt for p, start in part.starts.items()} == starts
    assert {tuple(part.bounds) for part in dealt} == {(F0,)}


def test_the_lag_is_the_sum_and_unknown_until_each_has_told_its_own(two: Readers) -> None:
    first, second = two.of_session()
    first.lag = 5
    two.next()
    assert two.source.lag is None
    second.lag = 7
    two.next()
    assert two.source.lag == 12


def test_what_holds_one_reader_holds_the_job(two: Readers) -> None:
    first, second = two.of_session()
    second.hold = "Kafka is not reachable"
    assert two.next() == Wait(two.next().reason, hold="Kafka is not reachable")
    second.hold, first.hold = "", "a topic is gone"
    assert two.next().hold == "a topic is gone"


def test_a_partition_that_all_readers_tell_of_is_added_once_and_read_from_then_on(two: Readers) -> None:
    first, second = two.of_session()
    first.added, second.added = [Added(F1, 3)], [Added(F0, 2)]  # what the other one reads is nothing new
    assert isinstance(two.next(), Wait)
    for feed in (first, second):
        feed.added.append(Added(NEW, 4))
    assert two.next() == Added(NEW, 4)
    assert isinstance(two.next(), Wait)
    assert [list(feed.job.starts) for feed in two.of_session()] == [[F0, F2, L1], [F1, L0, NEW]]


def test_when_one_dies_all_start_again_at_the_learners_positions(two: Readers) -> None:
    before = two.of_session()
    two.positions[F1].next = 128
    before[1].lives = False
    after = two.of_session()
    assert [feed.job.starts for feed in after] == [{F0: 0, F2: 0, L1: 0}, {F1: 128, L0: 0}]
    assert not {feed.process.pid for feed in before} & {feed.process.pid for feed in after}


def test_all_are_told_where_to_finish_once_kafka_knows(two: Readers) -> None:
    feeds = two.of_session()
    two.source.finish()
    two.next()
    assert [feed.told for feed in feeds] == [[], []]
    two.ends = dict.fromkeys(two.positions, 9)
    two.next()
    assert [feed.told for feed in feeds] == [[("bound", two.ends)]] * 2


def test_it_waits_for_all_readers_at_once_and_for_none_whose_work_is_done(
    two: Readers, monkeypatch: pytest.MonkeyPatch
) -> None:
    lost = Lost(F0, 50, 60, 0, "spoiled")

    def find(*_: Any) -> Any:
        yield Wait()
        return lost

    monkeypatch.setattr(module, "Search", lambda *_: SimpleNamespace(find=find))
    two.of_session()[0].unreadable = (F0, "spoiled", False)
    two.feeds[0].lives = False
    two.next()
    mains = two.of_session()
    (carrier,) = (feed for feed in two.feeds if feed.partial)
    two.next()
    assert two.waited_for == [feed.process.pipe for feed in (carrier, *mains)]
    carrier.lives, carrier.reached = False, {F0: lost.start}  # the pipe of one that is gone is always ready
    two.next()
    two.next()
    assert two.waited_for == [feed.process.pipe for feed in mains]


def test_readers_that_hang_are_ended_together_not_one_after_another(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = SimpleNamespace(now=0.0, monotonic=lambda: clock.now)
    monkeypatch.setattr(supervisor, "time", clock)

    class Hanging(supervisor.ReaderProcess):
        def __init__(self) -> None:
            self.pipe = SimpleNamespace(close=lambda: None)  # type: ignore[assignment]

        def reap(self, timeout_s: float) -> None:
            clock.now += timeout_s

    supervisor.end([Hanging(), Hanging(), Hanging()])
    assert clock.now == supervisor.END_S
