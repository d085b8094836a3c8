"""The reader hands on only what is certain to come from the topics it was given."""

from __future__ import annotations

from multiprocessing import Pipe
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from consumers import reader as module
from consumers.arena import Arena
from consumers.kafka import Topic
from consumers.reader import Reader
from consumers.record import Messages, Partition, Side
from consumers.source import make_reader_job
from pipeline.config import label_rule
from tests.stream import events, job

ROWS = 10


class FakeKafka:
    """Stands for both the cluster and the fetcher: one fetch of all records, and answers once they are allowed."""

    def __init__(self, partition: Partition, messages: Messages) -> None:
        self.partition = partition
        self.fetches = [({partition: messages}, {partition: len(messages)})]
        self.answers = False

    def __call__(self, *_: Any, **__: Any) -> FakeKafka:
        return self

    def fetch(self, *_: Any) -> Any:
        return self.fetches.pop() if self.fetches else ({}, {})

    def inquire(self, _: Any) -> FakeKafka:
        return self

    @property
    def done(self) -> bool:
        return self.answers

    def topics(self) -> dict[str, Topic]:
        return {self.partition.topic: Topic(self.partition.topic, "id", (self.partition,))}

    def ends(self, partitions: Any) -> dict[Partition, int]:
        return dict.fromkeys(partitions, ROWS)

    def starts(self, partitions: Any) -> dict[Partition, int]:
        return dict.fromkeys(partitions, 0)


def test_nothing_is_handed_on_before_the_topics_were_seen_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = job(tmp_path / "state", stream={"span": ROWS})
    here = Partition(config.features.topic, 0)
    records, _ = events(ROWS)
    columns = zip(*[(r.timestamp, r.key, r.value) for r in records], strict=True)
    kafka = FakeKafka(here, Messages(list(range(ROWS)), *map(list, columns)))
    clock = SimpleNamespace(now=0.0, monotonic=lambda: clock.now, sleep=lambda _: None)
    monkeypatch.setattr(module, "time", clock)
    monkeypatch.setattr(module, "Cluster", kafka)
    monkeypatch.setattr(module, "Fetcher", kafka)
    reader_job = make_reader_job(
        {here: 0},
        {},
        settings={},
        topic_ids={here.topic: "id"},
        group="g",
        sides={here.topic: Side.FEATURES},
        features=config.features,
        labels=config.labels,
        label=label_rule(config.learner),
        stream=config.stream,
        gaps_allowed=True,
    )
    ours, theirs = Pipe()
    reader = Reader(theirs, Arena.create(config.stream.slots, reader_job.slot_bytes), reader_job)

    def spans_at(now: float) -> list[int]:
        """What the learner gets of a turn at that time: the last offset of each span, plus one."""
        clock.now = now
        assert reader.watch_topics()
        reader.turn()
        received = []
        while ours.poll():
            received.append(ours.recv())
        return [message[5] for message in received if message[0] == "span"]

    assert spans_at(10.0) == []  # asks, then fetches
    kafka.answers = True
    assert spans_at(10.1) == []  # that was answered, but it was asked before the fetch: asks again
    assert spans_at(10.2) == [ROWS]
