"""One run of a job: everything that `train` drives, opened and closed in order."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from threading import Event
from typing import Any

from consumers.config import TopicConfig
from consumers.errors import ConfigError, SnapshotError, StreamError
from consumers.kafka import Cluster, Topic, group_id
from consumers.precompile import load_join
from consumers.reader import ReaderJob
from consumers.record import Added, Command, Entry, Partition, Side, Wait
from consumers.source import KafkaSource
from consumers.watch import recreated
from pipeline.cadence import Commands, SnapshotCadence
from pipeline.config import JobConfig
from pipeline.fence import hold
from pipeline.identity import changes, environment, recorded
from pipeline.learner import Learner
from pipeline.options.pretrained import read_weights
from pipeline.releaser import HOLDING, Releaser, released, shown
from pipeline.snapshot import Lineage, Snapshots
from pipeline.state import State, fresh_positions
from pipeline.store import LocalStore, Manifest
from pipeline.task import label_rule_of
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
    stop: Event
    phase: str = "training"
    held: str | None = None  # why it holds
    refused: int = 0  # rows of steps that were not finite, as far as they are logged

    def tend(self, entry: Entry | Wait) -> None:
        """Once a second: a report, and a look at what is outside. Holds while too much is not released."""
        if not self.status.seen(entry):
            return
        hold = entry.hold if isinstance(entry, Wait) else ""
        self.report("holding" if hold else "training", hold or None)
        limit = self.job.snapshot.owed_max
        while not self.stop.is_set():
            if self.releaser.refusal:
                raise SnapshotError(self.releaser.refusal)
            owed = self.snapshots.owed_bytes(released(self.job.job.state_dir, HOLDING))
            if owed <= limit:
                break
            self.report("holding", f"{owed:,} B wait to be released, more than snapshot.owed_max = {limit:,} B")
            time.sleep(0.5)

    def wait_for_disk(self, trouble: str | None) -> bool:
        """Says why the learner waits for a snapshot to be written; true if it is to give up."""
        self.report("holding" if trouble else "committing", trouble)
        return self.stop.is_set()

    def report(self, phase: str, hold: str | None = None) -> None:
        """Writes the status file; logs what the releaser has to say, what holds the job and what was not learned."""
        if hold and hold != self.held:
            log.error("holding: %s", hold)
        self.phase, self.held = phase, hold
        if more := self.state.refused - self.refused:
            self.refused += more
            log.warning("%d rows were not learned: their step was not finite, and changed nothing", more)
        while line := self.releaser.poll():
            log.info(line)
        self.status.write(
            phase,
            self.state,
            hold=hold,
            lag=self.source.lag,
            reader_pids=self.source.reader_pids,
            releaser_pid=self.releaser.pid,
            snapshot={"sequence": self.snapshots.sequence},
        )

    def commit_rest(self) -> None:
        """The last snapshot, unless nothing was applied since the one before; durable on return."""
        if self.state.ledger:
            self.snapshots.commit(self.state)
        self.snapshots.wait()


@dataclass(frozen=True, slots=True)
class Start:
    """How a run begins, as far as the job file does not say."""

    accept_bad: int = 0  # so many bad records may pass
    until_caught_up: bool = False
    strict_environment: bool = False  # refuse a changed environment
    new_lineage: bool = False  # though MLflow may have versions of another lineage under this name
    rollback_to: int | None = None  # the snapshot from which a new lineage goes on


@contextmanager
def open_run(job: JobConfig, bounds: Bounds, start: Start, stop: Event) -> Iterator[Run]:
    """Opens everything from Kafka inwards, restores S, and closes it again.

    Raises DependencyError (Kafka), SnapshotError, StreamError or ConfigError.
    """
    state_dir = job.job.state_dir
    with hold(state_dir) as fence, ExitStack() as opened:  # what is opened first is closed last
        cluster = Cluster(job.kafka)
        topics = [cluster.topic(config.topic) for config in (job.features, job.labels) if config]
        releaser = Releaser(state_dir)
        opened.callback(releaser.close)
        snapshots = Snapshots(
            LocalStore(state_dir),
            job,
            on_durable=releaser.committed,
            released=lambda: released(state_dir),
            fence=fence.check,
            leftovers=fence.leftovers,
        )
        opened.callback(snapshots.close)  # nothing is written once the lock is given up
        manifest = _choose(snapshots, state_dir, start)
        if manifest is None:
            state = _begin(job, snapshots, cluster, topics, bounds, start)
        else:
            new = _check_topics(manifest, cluster.id(), topics)
            state = _resume(job, snapshots, manifest, start)
            if not bounds.stops:  # a replay reads what it was told
                _add(state, new, cluster)
        source = _source(job, cluster, topics, state, bounds, start)
        opened.callback(source.close)
        status = StatusFile(state_dir / "status.json", job.job.name)
        cadence = SnapshotCadence(job.snapshot.every, time.monotonic, state.trained)
        run = Run(job, state, source, snapshots, cadence, releaser, status, stop, refused=state.refused)
        snapshots.on_wait = run.wait_for_disk
        releaser.start(manifest["sequence"] if manifest else 0)
        load_join()  # some tenths of a second, which the first span would wait for
        yield run


def _choose(snapshots: Snapshots, state_dir: Path, start: Start) -> Manifest | None:
    """The snapshot to go on from; None in an empty directory."""
    if start.rollback_to is not None:
        return snapshots.roll_back(start.rollback_to, shown(state_dir))
    return snapshots.newest(shown(state_dir))


def _begin(
    job: JobConfig, snapshots: Snapshots, cluster: Cluster, topics: list[Topic], bounds: Bounds, start: Start
) -> State:
    """A new lineage with its first snapshot."""
    starts = bounds.starts or _starts(job, cluster, topics)
    state = State(job, fresh_positions(starts), Learner(job, pretrained=read_weights(job)))
    lineage = Lineage.begin(cluster.id(), {topic.name: topic.id for topic in topics}, starts)
    snapshots.begin(replace(lineage, accepted=start.new_lineage), state)
    log.info("begins lineage %s", lineage.id)
    return state


def _resume(job: JobConfig, snapshots: Snapshots, manifest: Manifest, start: Start) -> State:
    """The state of a snapshot; what changed since goes into the ledger, and into a snapshot of its own."""
    state = snapshots.restore(manifest, Learner(job))
    log.info("continues after snapshot %s: %d rows trained", manifest["snapshot_id"], state.trained)
    lineage = Lineage.of(manifest)
    if start.rollback_to is not None:
        lineage = lineage.rolled_back()
        log.warning("begins lineage %s from there", lineage.id)
    snapshots.lineage = replace(lineage, accepted=lineage.accepted or start.new_lineage)
    changed = changes(environment(job), manifest["environment"])
    if changed and start.strict_environment:
        raise ConfigError(f"the environment changed since snapshot {manifest['snapshot_id']}: {changed}")
    if changed:
        log.warning("the environment changed: %s; from here on bits may differ from what it would have made", changed)
        state.ledger.append(["environment", environment(job)])
    if recorded(job) != recorded(state.job):
        state.reconfigure(job)
    state.job = job
    if state.ledger or snapshots.lineage != Lineage.of(manifest) or manifest["config"] != job.model_dump(mode="json"):
        snapshots.commit(state)  # the releaser takes its addresses from the newest snapshot
    return state


def _source(
    job: JobConfig,
    cluster: Cluster,
    topics: list[Topic],
    state: State,
    bounds: Bounds,
    start: Start,
) -> KafkaSource:
    stops = bounds.stops or (cluster.ends(list(state.positions)) if start.until_caught_up else {})
    first = [Command("accept_bad", start.accept_bad)] if start.accept_bad else []
    commands = Commands(job.registry.register_every, time.monotonic, first).poll
    last = Command("register") if bounds.stops else None
    return kafka_source(job, cluster, topics, stops, commands=commands, last=last)


def kafka_source(
    job: JobConfig,
    cluster: Cluster,
    topics: list[Topic],
    stops: dict[Partition, int],
    *,
    commands: Callable[[], Command | None] = lambda: None,
    last: Command | None = None,
) -> KafkaSource:
    """A source over the job's topics; `stops` are its bounds, if it has any."""
    settings = reader_settings(job, topics, group_id(job.job.name, job.kafka), gaps_allowed=not cluster.is_mock)
    return KafkaSource(
        lambda starts, bounds: ReaderJob(starts=starts, bounds=bounds, **settings),
        lambda partitions: cluster.ends(list(partitions)),
        batch_wait_ms=job.learner.batch_wait,
        bounds=stops,
        commands=commands,
        last=last,
    )


def reader_settings(job: JobConfig, topics: list[Topic], group: str, *, gaps_allowed: bool = True) -> dict[str, Any]:
    """What a `ReaderJob` needs beside offsets."""
    return {
        "settings": job.kafka,
        "topic_ids": {topic.name: topic.id for topic in topics},
        "group": group,
        "sides": {config.topic: side for side, config in _sides(job)},
        "features": job.features,
        "labels": job.labels,
        "label": label_rule_of(job),
        "stream": job.stream,
        "gaps_allowed": gaps_allowed,
    }


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
