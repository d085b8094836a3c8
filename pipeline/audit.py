"""Questions about versions: which snapshot one is, whether it can be rebuilt, what one has learned and another not."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from consumers.errors import ConfigError, DependencyError, EvertrainError
from consumers.kafka import Cluster, Topic
from consumers.reader import ReaderJob, careful
from consumers.recall import Recall
from consumers.record import Partition
from pipeline.config import JobConfig
from pipeline.run import reader_settings
from pipeline.store import LocalStore, Manifest
from pipeline.tracking import database
from pipeline.verify import Segment, UnverifiableError, Verdict, find_segment, foreign, rebuild

if TYPE_CHECKING:
    from pipeline.version import Registry

Ranges = Mapping[Partition, tuple[int, int]]
"""First offset and end, by partition."""

_SNAPSHOT = "snapshot:"


@dataclass(frozen=True, slots=True)
class Target:
    """A version, or a snapshot that need not be one."""

    name: str  # as the user wrote it
    number: int | None
    snapshot_id: str
    weights_sha256: str | None  # as MLflow has it
    offsets: Ranges | None

    @property
    def sequence(self) -> int:
        """Of its snapshot."""
        return int(self.snapshot_id.rpartition("-")[2])

    @property
    def lineage(self) -> str:
        """Of its snapshot."""
        return self.snapshot_id.rpartition("-")[0]


def find(job: JobConfig, name: str) -> Target:
    """The version with a number or an @alias, or snapshot:SEQUENCE. Raises ConfigError or DependencyError."""
    if name.startswith(_SNAPSHOT):
        return _snapshot(job, name)
    found = {target.number: target for target in versions(job)}
    number = int(name) if name.isdigit() else None
    if name.startswith("@"):
        with _registry(job) as registry:
            number = registry.aliases(job.job.name).get(name[1:])
    if number not in found:
        there = ", ".join(str(number) for number in sorted(number for number in found if number)[-10:]) or "none"
        raise ConfigError(
            f"{job.job.name} has no version {name!r} in {job.registry.tracking_uri}; the newest are: {there}. "
            "A version is named by its number, @alias or snapshot:SEQUENCE"
        )
    return found[number]


def versions(job: JobConfig) -> list[Target]:
    """All versions of the job's name, oldest first. Raises DependencyError without MLflow."""
    with _registry(job) as registry:
        found = registry.versions(job.job.name)
    return [
        Target(str(v.number), v.number, v.snapshot_id, v.tags.get("weights_sha256"), _parse_offsets(v.tags["offsets"]))
        for v in found
        if v.snapshot_id
    ]


def verify(job: JobConfig, target: Target, tell: Callable[[str], None]) -> Verdict:
    """Rebuilds a version's snapshot and compares. Raises UnverifiableError."""
    store = LocalStore(job.job.state_dir)
    segment = find_segment(store, target.sequence)
    if segment.anchor["lineage"] != target.lineage and target.lineage not in _lineages(store):
        raise UnverifiableError(f"{target.name} is of lineage {target.lineage}, which is not that of {store.path}")
    then = segment.job(job.kafka)
    tell(
        f"{target.name}: snapshot {target.sequence}, from anchor {segment.anchor['sequence']} "
        f"({segment.anchor['rows_trained']:,} rows), through {len(segment.lines):,} lines of the ledger"
    )
    starts, topics = _check_input(job, segment)
    reader_job = ReaderJob(
        starts=starts, bounds={}, **reader_settings(then, topics, f"evertrain-verify-{job.job.name}")
    )
    if any(line[0] == "lost" for line in segment.lines):
        reader_job = careful(reader_job)  # else what comes before a lost batch may be lost with it
    with Recall(reader_job) as spans:
        try:
            verdict = rebuild(store, segment, then, spans)
        except EvertrainError as error:
            raise UnverifiableError(f"{target.name} cannot be rebuilt: {error}") from error
    if target.weights_sha256 not in (None, segment.weights_sha256):
        verdict.differences.append(f"MLflow's tag weights_sha256 {target.weights_sha256}, not {segment.weights_sha256}")
    if verdict.differences and (other := foreign(segment, then)):
        raise UnverifiableError(
            f"{target.name} cannot be verified here: it was made elsewhere or with other code ({other}), and comes out "
            f"differently ({', '.join(verdict.differences[:3])})"
        )
    return verdict


def only_in(a: Ranges, b: Ranges) -> dict[Partition, list[tuple[int, int]]]:
    """The offset ranges that `a` has and `b` has not."""
    found: dict[Partition, list[tuple[int, int]]] = {}
    for partition, (start, stop) in a.items():
        other_start, other_stop = b.get(partition, (stop, stop))
        parts = [(start, min(stop, other_start)), (max(start, other_stop), stop)]
        if kept := [part for part in parts if part[0] < part[1]]:
            found[partition] = kept
    return found


def _check_input(job: JobConfig, segment: Segment) -> tuple[dict[Partition, int], list[Topic]]:
    """Where reading begins in each partition. Raises UnverifiableError if Kafka has it no more."""
    cluster = Cluster(job.kafka)
    ids = {line["topic"]: line["topic_id"] for line in segment.anchor["cursor"]}
    topics = [cluster.topic(name) for name in ids]
    for topic in topics:
        if topic.id != ids[topic.name]:
            raise UnverifiableError(
                f"topic {topic.name!r} was deleted and created again (id {ids[topic.name]} became {topic.id})"
            )
    ranges = segment.ranges()
    for partition, first in cluster.starts(list(ranges)).items():
        start, _ = ranges[partition]
        if first > start:
            raise UnverifiableError(f"{partition}@{start}: Kafka has deleted records up to {first}: the input expired")
    return {partition: start for partition, (start, _) in ranges.items()}, topics


def _snapshot(job: JobConfig, name: str) -> Target:
    number = name.removeprefix(_SNAPSHOT)
    manifest = _newest(LocalStore(job.job.state_dir))
    if not number.isdigit():
        raise ConfigError(f"{name}: a snapshot is named by its sequence number, for example {_SNAPSHOT}17")
    return Target(name, None, f"{manifest['lineage']}-{number}", None, None)


def _newest(store: LocalStore) -> Manifest:
    if not store.sequences():
        raise UnverifiableError(f"{store.path}: no snapshot here; is this the job's state directory?")
    return store.manifest(store.sequences()[-1])


def _lineages(store: LocalStore) -> set[str]:
    manifest = _newest(store)
    return {manifest["lineage"], *manifest["ancestors"]}


@contextmanager
def _registry(job: JobConfig) -> Iterator[Registry]:
    """The job's registry, to read from. Raises DependencyError if it does not answer, or is not there."""
    from pipeline.registry import MLflowRegistry

    if (path := database(job.registry.tracking_uri)) and not path.exists():
        raise DependencyError(
            f"there is no MLflow store at {path}: no version was registered yet, or registry.tracking_uri, "
            "which counts from the working directory, means another place"
        )
    try:
        with tempfile.TemporaryDirectory() as scratch:
            yield MLflowRegistry(job.registry.tracking_uri, job.registry.artifact_location, Path(scratch))
    except Exception as error:  # MLflow's are of every kind
        raise DependencyError(
            f"MLflow at {job.registry.tracking_uri} does not answer ({type(error).__name__}); "
            f"name the snapshot itself instead, as {_SNAPSHOT}SEQUENCE"
        ) from error


def _parse_offsets(text: str) -> Ranges | None:
    """Ranges as `version.tags` writes them; None where there were too many to write them all."""
    ranges = {}
    for where, offsets in json.loads(text).items():
        topic, _, number = where.removesuffix("]").rpartition("[")
        if number == "*":
            return None
        start, _, stop = offsets.partition("-")
        ranges[Partition(topic, int(number))] = int(start), int(stop)
    return ranges
