"""One run of a job: everything that `train` drives, opened and closed in order."""

from __future__ import annotations

import fcntl
import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from consumers.config import TopicConfig
from consumers.errors import SnapshotError, StreamError
from consumers.kafka import Cluster, Topic, group_id
from consumers.record import Added, Command, Entry, Partition, Side, Wait
from consumers.source import KafkaSource, make_reader_job
from consumers.watch import recreated
from pipeline.cadence import Commands, SnapshotCadence
from pipeline.config import JobConfig, label_rule
from pipeline.learner import Learner
from pipeline.releaser import Releaser, released
from pipeline.snapshot import Lineage, Snapshots
from pipeline.state import State, fresh_positions
from pipeline.store import LocalStore, Manifest
from pipeline.telemetry import StatusFile

log = logging.getLogger("evertrain")


@dataclass(frozen=True, slots=True)
class Bounds:
    """A stretch of the topics: first offsets of a new lineage, and offsets at which to end."""

    starts: dict[Partition, int] = field(default_factory=dict)  # empty: as [features] and [labels] say
    stops: dict[Partition, int] = field(default_factory=dict)  # empty: never


@dataclass(slots=True)
class Run:
    """The parts of one run. `state` is S; all else can be made anew."""

    job: JobConfig
    state: State
    source: KafkaSource
    snapshots: Snapshots
    cadence: SnapshotCadence
    releaser: Releaser
    status: StatusFile
    phase: str = "training"

    def tend(self, entry: Entry | Wait) -> None:
        """Once a second: a report."""
        if self.status.seen(entry):
            self.report(self.phase, hold=(isinstance(entry, Wait) and entry.hold) or None)

    def report(self, phase: str, hold: str | None = None) -> None:
        """Writes the status file, and logs what the releaser has to say."""
        self.phase = phase
        while line := self.releaser.poll():
            log.info(line)
        self.status.write(
            phase,
            self.state,
            hold=hold,
            lag=self.source.lag,
            reader_pid=self.source.reader_pid,
            releaser_pid=self.releaser.pid,
            snapshot={"sequence": self.snapshots.sequence},
        )

    def commit_rest(self) -> None:
        """The last snapshot, unless nothing was applied since the one before; durable on return."""
        if self.state.ledger:
            self.snapshots.commit(self.state)
        self.snapshots.wait()


@contextmanager
def open_run(job: JobConfig, bounds: Bounds, first: list[Command], *, until_caught_up: bool) -> Iterator[Run]:
    """Opens everything from Kafka inwards, restores S, and closes it again.

    Raises DependencyError (Kafka), SnapshotError, StreamError or ConfigError.
    """
    state_dir = job.job.state_dir
    with _lock(state_dir):
        store = LocalStore(state_dir)
        cluster = Cluster(job.kafka)
        topics = [cluster.topic(config.topic) for config in (job.features, job.labels) if config]
        releaser = Releaser(state_dir)
        snapshots = Snapshots(store, job, on_durable=releaser.committed, released=lambda: released(state_dir))
        manifest = snapshots.newest()
        new = _check_topics(manifest, cluster.id(), topics) if manifest is not None else []
        learner = Learner(job)
        if manifest is not None:
            state = snapshots.restore(manifest, learner)
            if manifest["config"] != job.model_dump(mode="json"):
                state.ledger.append(["config", job.sha256()])
                snapshots.commit(state)  # the releaser takes its addresses from the newest snapshot
            if not bounds.stops:  # a replay reads what it was told
                _add(state, new, cluster)
            log.info("continues after snapshot %s: %d rows trained", manifest["snapshot_id"], state.trained)
        else:
            starts = bounds.starts or _starts(job, cluster, topics)
            state = State(job, fresh_positions(starts), learner)
            lineage = Lineage.begin(cluster.id(), {topic.name: topic.id for topic in topics}, starts)
            snapshots.begin(lineage, state)
            log.info("begins lineage %s", lineage.id)
        source = _source(job, cluster, topics, state, bounds, first, until_caught_up)
        status = StatusFile(state_dir / "status.json", job.job.name)
        cadence = SnapshotCadence(job.snapshot.every, time.monotonic, state.trained)
        run = Run(job, state, source, snapshots, cadence, releaser, status)
        releaser.start()
        try:
            yield run
        finally:
            source.close()
            snapshots.close()  # nothing is written once the lock is given up
            releaser.close()


def _source(
    job: JobConfig,
    cluster: Cluster,
    topics: list[Topic],
    state: State,
    bounds: Bounds,
    first: list[Command],
    until_caught_up: bool,
) -> KafkaSource:
    settings = {
        "settings": job.kafka,
        "topic_ids": {topic.name: topic.id for topic in topics},
        "group": group_id(job.job.name, job.kafka),
        "sides": {config.topic: side for side, config in _sides(job)},
        "features": job.features,
        "labels": job.labels,
        "label": label_rule(job.learner),
        "stream": job.stream,
        "gaps_allowed": not cluster.is_mock,
    }
    stops = bounds.stops or (cluster.ends(list(state.positions)) if until_caught_up else {})
    return KafkaSource(
        lambda starts, bounds: make_reader_job(starts, bounds, **settings),
        lambda partitions: cluster.ends(list(partitions)),
        batch_wait_ms=job.learner.batch_wait,
        bounds=stops,
        commands=Commands(job.registry.register_every, time.monotonic, first).poll,
        last=Command("register") if bounds.stops else None,
    )


def _sides(job: JobConfig) -> list[tuple[Side, TopicConfig]]:
    sides: list[tuple[Side, TopicConfig]] = [(Side.FEATURES, job.features)]
    return sides + ([(Side.LABELS, job.labels)] if job.labels else [])


def _starts(job: JobConfig, cluster: Cluster, topics: list[Topic]) -> dict[Partition, int]:
    starts: dict[Partition, int] = {}
    for (_, config), topic in zip(_sides(job), topics, strict=True):
        found = cluster.resolve(topic.partitions, config.start)
        starts |= {partition: found[partition] for partition in topic.partitions}
    return starts


def _add(state: State, partitions: list[Partition], cluster: Cluster) -> None:
    """Adds partitions that the topics got while no trainer ran, from their beginning."""
    for partition, start in cluster.starts(partitions).items():
        list(state.apply(Added(partition, start)))
        log.info("%s is new: read from offset %d on", partition, start)


def _check_topics(manifest: Manifest, cluster_id: str, topics: list[Topic]) -> list[Partition]:
    """The partitions that the topics got since. Raises StreamError if the topics are not those of the snapshot."""
    advice = "start a new lineage under another job.name and job.state_dir"
    saved_cluster, mock = manifest["cluster_id"], all(not topic.id for topic in topics)
    if cluster_id != saved_cluster and not mock:
        raise StreamError(
            f"Kafka's cluster id is {cluster_id}, but the snapshot was made with {saved_cluster}; {advice}"
        )
    saved = {(line["topic"], line["partition"]): line["topic_id"] for line in manifest["cursor"]}
    new = []
    for topic in topics:
        for partition in topic.partitions:
            then = saved.pop((partition.topic, partition.number), None)
            if then is None:
                new.append(partition)
            elif then != topic.id:
                raise recreated(topic.name, then, topic.id)
    if saved:
        raise StreamError(f"partitions {sorted(saved)} of the snapshot are gone from Kafka; {advice}")
    return new


@contextmanager
def _lock(state_dir: Path) -> Iterator[None]:
    """One trainer per state directory. Raises SnapshotError if there is another."""
    state_dir.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(state_dir / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise SnapshotError(
            f"{state_dir}: another trainer holds the lock; stop it first, or use another job.state_dir"
        ) from None
    try:
        yield
    finally:
        os.close(descriptor)
