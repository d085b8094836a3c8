"""The reader hands on only what is certain to come from the topics it was given."""

from __future__ import annotations

from dataclasses import dataclass, replace
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from consumers import cutter
from consumers import reader as module
from consumers.arena import Arena, Published
from consumers.kafka import Topic
from consumers.reader import Reader, ReaderJob
from consumers.record import Messages, Partition, Side
from consumers.watch import TopicWatch
from pipeline.config import label_rule
from tests.records import Log, decoded
from tests.stream import events, job

ROWS, SPAN = 10, 5


class FakeKafka:
    """Stands for both the cluster and the fetcher: one fetch of all records, and answers once they are allowed."""

    def __init__(self, partition: Partition, messages: Messages) -> None:
        self.partition = partition
        self.messages = messages
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


@dataclass
class Stage:
    """A reader of ten records, every third one bad, and what it has to do with: its clock, Kafka, the learner."""

    kafka: FakeKafka
    clock: SimpleNamespace
    job: ReaderJob
    arena: Arena
    pipe: Connection
    reader: Reader

    def spans_at(self, now: float) -> list[Published]:
        """What the learner gets of a turn at that time."""
        self.clock.now = now
        assert self.reader.watch_topics()
        self.reader.turn()
        received = []
        while self.pipe.poll():
            received.append(self.pipe.recv())
        return [message[1] for message in received if message[0] == "span"]

    def spans(self) -> list[Published]:
        """What it gets once the topics were seen again."""
        self.kafka.answers = True
        return [span for now in (10.0, 10.1, 10.2) for span in self.spans_at(now)]


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Stage:
    config = job(tmp_path / "state", stream={"span": SPAN})
    here = Partition(config.features.topic, 0)
    log = Log()
    for row, record in enumerate(events(ROWS)[0]):
        log.append(replace(record, value=b"bad") if row % 3 == 2 else record)
    kafka = FakeKafka(here, log.messages())
    clock = SimpleNamespace(now=0.0, monotonic=lambda: clock.now, sleep=lambda _: None)
    monkeypatch.setattr(module, "time", clock)
    monkeypatch.setattr(module, "Cluster", kafka)
    monkeypatch.setattr(module, "Fetcher", kafka)
    reader_job = ReaderJob(
        starts={here: 0},
        bounds={},
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
    arena = Arena.create(reader_job.shape)
    return Stage(kafka, clock, reader_job, arena, ours, Reader(theirs, arena, reader_job))


def test_nothing_is_handed_on_before_the_topics_were_seen_again(stage: Stage) -> None:
    assert stage.spans_at(10.0) == []  # asks, then fetches
    stage.kafka.answers = True
    assert stage.spans_at(10.1) == []  # that was answered, but it was asked before the fetch: asks again
    assert [span.stop for span in stage.spans_at(10.2)] == [5, 10]


def test_each_span_lies_in_a_slot_of_its_own_as_its_codec_decodes_it(stage: Stage) -> None:
    spans = stage.spans()
    assert [(span.lane, span.start, span.stop, span.messages) for span in spans] == [(0, 0, 5, 5), (0, 5, 10, 5)]
    assert len({span.slot for span in spans}) == 2
    (codec,), columns = stage.job.codecs().values(), stage.job.features.columns
    for span in spans:
        expected = decoded(codec, stage.kafka.messages.part(span.start, span.stop))
        found = stage.arena.rows(span.slot, columns).events(span.rows, labelled=False)
        assert found.offset_N.tolist() == [offset for offset in range(span.start, span.stop) if offset % 3 != 2]
        for name in ("key_N2", "event_time_N", "offset_N", "row_N", "kind_N", "features_NC", "weight_N"):
            np.testing.assert_array_equal(getattr(found, name), getattr(expected.events, name), err_msg=name)
        assert stage.arena.read_rejects(span.slot, span.reject_bytes) == expected.rejects


def test_a_slot_is_used_again_once_the_learner_has_given_it_back(stage: Stage) -> None:
    stage.reader._free = [[3]]
    assert [(span.slot, span.stop) for span in stage.spans()] == [(3, 5)]
    assert stage.spans_at(10.3) == []
    stage.pipe.send(("free", [(0, 3)]))
    assert stage.reader._listen()
    assert [(span.slot, span.stop) for span in stage.spans_at(10.4)] == [(3, 10)]


def test_a_span_waits_no_longer_where_records_keep_coming(stage: Stage) -> None:
    """Whoever fetches while records come does not reach the end each time: that does not start the wait anew."""
    here, messages, linger_s = stage.kafka.partition, stage.kafka.messages, stage.job.stream.linger / 1000
    lots = [({here: messages.part(row, row + 1)}, {here: row + 1} if row % 2 else {}) for row in range(4)]
    stage.reader._watch = TopicWatch(stage.kafka, {}, {here})  # type: ignore[arg-type]  # nothing has to be confirmed
    sent: dict[int, list[tuple[int, int]]] = {}
    for row, lot in enumerate(lots):
        stage.kafka.fetches = [lot]
        sent[row] = [(span.start, span.stop) for span in stage.spans_at(10.0 + row * 0.4 * linger_s)]
    assert sent == {0: [], 1: [], 2: [], 3: [(0, 4)]}  # 1.2 times the wait after the first record, at the end


def test_a_queue_that_is_full_to_the_byte_takes_the_message_that_shows_where_its_span_ends(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, messages = stage.kafka.partition, stage.kafka.messages
    for limited in (module, cutter):
        monkeypatch.setattr(limited, "SPAN_RAW_BYTES_MAX", int(messages.sizes_N()[:2].sum()))
    lots = [messages.part(row, row + 1) for row in range(4)]
    stage.kafka.fetch = lambda _, room, __: ({here: lots.pop(0)} if here in room and lots else {}, {})  # type: ignore[method-assign]
    stage.reader._watch = TopicWatch(stage.kafka, {}, {here})  # type: ignore[arg-type]  # nothing has to be confirmed
    spans = [span for turn in range(4) for span in stage.spans_at(10.0 + turn)]
    assert (spans[0].start, spans[0].stop) == (0, 2)
