"""A trainer on real Kafka within the test's process: S, the source and its readers, but neither MLflow nor files."""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from confluent_kafka import TopicPartition
from confluent_kafka.admin import AdminClient, NewPartitions

from consumers.broker import create_topics
from consumers.errors import StreamError
from consumers.kafka import Cluster
from consumers.record import Entry, Wait
from pipeline.config import JobConfig
from pipeline.identity import with_settings
from pipeline.learner import Learner
from pipeline.run import Bounds, Start, _add, _check_topics, _source, _starts
from pipeline.snapshot import Lineage, Snapshots
from pipeline.state import State, fresh_positions
from pipeline.store import Manifest, MemoryStore
from tests.conftest import TOPIC_CONFIG, produce
from tests.stream import Record, events, job

ROWS = 400
READERS = 2  # what happens to one of them, the other one does not feel

_numbers = itertools.count()


class Live:
    """One life of a trainer over a store that outlives it. `run` may be called again: it goes on."""

    def __init__(self, config: JobConfig, store: MemoryStore | None = None, *, until_caught_up: bool = False) -> None:
        self.store = store or MemoryStore()
        self.snapshots = Snapshots(self.store, config, on_durable=lambda _: None, released=lambda: 10**9)
        cluster = Cluster(config.kafka)
        topics = [cluster.topic(table.topic) for table in (config.features, config.labels) if table]
        manifest = self.snapshots.newest()
        if manifest:
            new = _check_topics(manifest, cluster.id(), topics)
            self.state = self.snapshots.restore(manifest, Learner(config))
            _add(self.state, new, cluster)
        else:
            starts = _starts(config, cluster, topics)
            self.state = State(config, fresh_positions(starts), Learner(config))
            self.snapshots.begin(Lineage.begin(cluster.id(), {t.name: t.id for t in topics}, starts), self.state)
        start = Start(until_caught_up=until_caught_up)
        self.source = _source(config, cluster, topics, self.state, Bounds(), start)
        self.wait = Wait()  # the newest one
        self.applied: list[Entry] = []
        self._entries = self.source.entries(self.state.positions)

    def run(self, until: Callable[[], Any] = lambda: False, seconds: float = 25) -> None:
        """Applies entries until `until()`, or to the end of the stream; fails after so many seconds without that."""
        deadline = time.monotonic() + seconds
        for entry in self._entries:
            if isinstance(entry, Wait):
                self.wait = entry
            else:
                self.applied.append(entry)
                for batch in self.state.apply(entry):
                    self.state.observe(batch, self.state.learner.step(batch))
            if until():
                return
            assert time.monotonic() < deadline, (self.wait, self.state.counts()["totals"])

    def fails(self, seconds: float = 25) -> str:
        """Runs until the stream is not what it was; returns the error's text."""
        try:
            self.run(seconds=seconds)
        except StreamError as error:
            return str(error)
        raise AssertionError("the stream ended, but an error was expected")

    def read(self) -> int:
        """Events read so far."""
        return int(self.state.read_P.sum())

    def commit(self) -> Manifest:
        """A snapshot; returns its manifest."""
        self.snapshots.commit(self.state)
        self.snapshots.wait()
        return self.store.manifest(self.store.sequences()[-1])

    def close(self) -> None:
        self.source.close()
        self.snapshots.close()


def learned(config: JobConfig) -> dict[str, Any]:
    """What comes of the topics as they are, in one undisturbed run with one reader."""
    live = Live(with_settings(config, {"stream.readers": 1}), until_caught_up=True)
    try:
        live.run()
        return comparable(live.commit())
    finally:
        live.close()


def comparable(manifest: Manifest) -> dict[str, Any]:
    """What must not depend on faults."""
    return {name: manifest[name] for name in ("weights_sha256", "counts", "metrics", "watermark", "rows_trained")}


@dataclass(frozen=True)
class Placed(Record):
    """A record for a certain partition."""

    partition: int = 0


class Stream:
    """Two topics of two partitions, and the jobs over them."""

    def __init__(self, broker: Any, folder: Path, settings: dict[str, Any] | None = None, **topic_config: str) -> None:
        self.broker = broker
        self.prefix = f"faults-{os.getpid()}-{next(_numbers)}"
        self.features, self.labels = f"{self.prefix}.features", f"{self.prefix}.labels"
        stream = {"linger": "20ms", "readers": READERS}
        config = job(folder / "state", broker.bootstrap, self.prefix, stream=stream)
        self.config: JobConfig = with_settings(config, settings or {})
        self.topic_config = TOPIC_CONFIG | topic_config
        self.records = dict(zip((self.features, self.labels), events(ROWS), strict=True))
        self.create(self.features, self.labels)
        self.admin = AdminClient({"bootstrap.servers": broker.bootstrap})
        self._lives: list[Live] = []

    def create(self, *topics: str) -> None:
        create_topics(self.broker.bootstrap, dict.fromkeys(topics, 2), self.topic_config)

    def produce(self, start: int = 0, stop: int = ROWS) -> None:
        """These rows of both topics, to two partitions."""
        for topic in self.records:
            self.produce_rows(topic, range(start, stop))

    def produce_rows(self, topic: str, rows: Collection[int]) -> None:
        """These rows of one topic."""
        part = [record for record in self.records[topic] if row(record) in rows]
        produce(self.broker.bootstrap, topic, [placed(record, row(record) % 2) for record in part])

    def live(self, store: Any = None, *, config: JobConfig | None = None, until_caught_up: bool = False) -> Live:
        self._lives.append(Live(config or self.config, store, until_caught_up=until_caught_up))
        return self._lives[-1]

    def add_partitions(self) -> None:
        """A third one to both topics."""
        wanted = [NewPartitions(topic, 3) for topic in (self.features, self.labels)]
        for future in self.admin.create_partitions(wanted).values():
            future.result()

    def delete(self, topic: str) -> None:
        self.admin.delete_topics([topic], operation_timeout=10)[topic].result()

    def delete_before(self, topic: str, offset: int) -> None:
        """Moves the log's start of partition 0."""
        (future,) = self.admin.delete_records([TopicPartition(topic, 0, offset)]).values()
        future.result()

    def close(self) -> None:
        for live in self._lives:
            live.close()


def row(record: Record) -> int:
    assert record.key is not None
    return int(record.key[1:])


def placed(record: Record, partition: int) -> Placed:
    return Placed(record.timestamp, record.key, record.value, partition)
