"""Lives of one trainer, told by a test: a whole run without torch, Kafka and MLflow over a real state directory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import Event
from typing import Any
from unittest.mock import patch

from consumers.codecs import Codec, build_codec
from consumers.inmemory import InMemorySource
from consumers.kafka import Topic
from consumers.record import Entry, Messages, Partition, Position, Side, Wait
from pipeline.config import JobConfig, label_rule
from pipeline.releaser import SINKS
from pipeline.run import Bounds, Run, Start, open_run
from pipeline.state import State
from pipeline.store import LocalStore, Manifest
from pipeline.train import train
from tests.records import Log, messages_of
from tests.stream import events, job
from tests.tiny import TinyLearner

ROWS = 2000


class Killed(Exception):  # noqa: N818 (it is what happened)
    """The process is gone: nothing that was not durable is left."""


class Story:
    """A job over a fixed stream. Each `live` is one life of its trainer.

    `job` may be changed between two lives. `commit_every` so many entries there is a snapshot; None: as the job says.
    `releases` says whether snapshots are released as soon as they are durable.
    """

    commit_every: int | None = 2
    releases = True
    sinks: Sequence[str] = SINKS  # that release
    refusal: str | None = None  # of the releaser

    def __init__(self, folder: Path, **tables: Any) -> None:
        self.job = job(folder / "state", **{"snapshot": {"every": "128 rows"}, **tables})
        self.state_dir = folder / "state"
        self.found = _topics(self.job)
        self.cluster = _Cluster(self)

    @property
    def store(self) -> LocalStore:
        """What is on disk."""
        return LocalStore(self.state_dir)

    def newest(self) -> Manifest:
        """The newest snapshot."""
        return self.store.manifest(self.store.sequences()[-1])

    @contextmanager
    def opened(
        self, start: Start | None = None, *, entries: int | None = None, stop: Event | None = None
    ) -> Iterator[Run]:
        """A run that is ready to train on the next `entries`, then is killed; without a number it lives to the end."""
        fakes = {
            "Cluster": lambda _: self.cluster,
            "Learner": TinyLearner,
            "Releaser": lambda _: _Releaser(self),
            "_source": lambda *_: _Source(self, entries),
        }
        with (
            patch.multiple("pipeline.run", **fakes),
            open_run(self.job, Bounds(), start or Start(), stop or Event()) as run,
        ):
            if self.commit_every:
                run.cadence = _EveryEntries(self.commit_every)  # type: ignore[assignment]
            yield run

    def live(self, start: Start | None = None, *, entries: int | None = None, stop: Event | None = None) -> Manifest:
        """One life, to its end; the newest snapshot after it."""
        stop = stop or Event()
        try:
            with self.opened(start, entries=entries, stop=stop) as run:
                train(run, stop)
        except Killed:
            pass
        return self.newest()

    def mark_released(self, upto: int) -> None:
        """What a releaser writes down."""
        (self.state_dir / "release").mkdir(exist_ok=True)
        for sink in self.sinks:
            (self.state_dir / "release" / sink).write_text(f"{upto}\n")


def same_state(left: Manifest, right: Manifest) -> bool:
    """Whether two snapshots hold the same S, to the bit."""
    return bool(left["state_sha256"] == right["state_sha256"] and left["weights_sha256"] == right["weights_sha256"])


def codecs(job: JobConfig) -> dict[str, Codec]:
    """The codec of each topic, features first."""
    assert job.labels is not None
    return {topic.topic: build_codec(topic, label_rule(job.learner)) for topic in (job.features, job.labels)}


class _Cluster:
    is_mock = False

    def __init__(self, story: Story) -> None:
        self._story = story

    def id(self) -> str:
        return "cluster"

    def topic(self, name: str) -> Topic:
        return Topic(name, f"id of {name}", tuple(p for p in self._story.found if p.topic == name))

    def starts(self, partitions: list[Partition]) -> dict[Partition, int]:
        return dict.fromkeys(partitions, 0)

    def resolve(self, partitions: tuple[Partition, ...], start: str) -> dict[Partition, int]:
        return dict.fromkeys(partitions, 0)


class _EveryEntries:
    """A cadence that timing has no part in."""

    def __init__(self, entries: int) -> None:
        self._entries = entries
        self._seen = 0

    def due(self, state: State, busy: bool) -> bool:
        self._seen += 1
        return self._seen % self._entries == 0


class _Source:
    lag = None
    reader_pids = ()

    def __init__(self, story: Story, entries: int | None) -> None:
        self._story = story
        self._entries = entries

    def entries(self, positions: dict[Partition, Position]) -> Iterator[Entry | Wait]:
        job = self._story.job
        sides = {name: side for side, name in zip(Side, codecs(job), strict=True)}
        source = InMemorySource(self._story.found, codecs(job), sides, job.stream)
        for count, entry in enumerate(source.entries(positions)):
            if count == self._entries:
                raise Killed
            yield entry

    def close(self) -> None:
        pass


class _Releaser:
    pid = None

    def __init__(self, story: Story) -> None:
        self._story = story

    @property
    def refusal(self) -> str | None:
        return self._story.refusal

    def committed(self, sequence: int) -> None:
        if self._story.releases:
            self._story.mark_released(sequence)

    def poll(self) -> str | None:
        return None

    def start(self, sequence: int) -> None:
        pass

    def end(self, seconds: float) -> None:
        pass

    def close(self) -> None:
        pass


def _topics(config: JobConfig) -> dict[Partition, Messages]:
    """Both topics with two partitions each, keys spread by row."""
    assert config.labels is not None
    names = config.features.topic, config.labels.topic
    found = {Partition(name, number): Log() for name in names for number in (0, 1)}
    for name, records in zip(names, events(ROWS), strict=True):
        for record in records:
            found[Partition(name, int((record.key or b"")[1:]) % 2)].append(record)
    return messages_of(found)
