"""What `--from` and `--to` mean as offsets."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from consumers.errors import ConfigError
from consumers.kafka import Cluster, parse_time, timestamp_at
from consumers.record import Partition
from pipeline.config import JobConfig
from pipeline.run import Bounds


@dataclass(frozen=True, slots=True)
class Stretch:
    """Resolved offsets of every partition that a replay reads."""

    bounds: Bounds

    def lines(self) -> list[dict[str, Any]]:
        """One line a partition (JSON)."""
        return [
            {"topic": p.topic, "partition": p.number, "start": start, "stop": self.bounds.stops[p]}
            for p, start in self.bounds.starts.items()
        ]


def resolve(job: JobConfig, start: str, stop: str) -> Stretch:
    """The offsets of `[start, stop)` in the feature topic, and of the labels from `start` to `stop` + window.

    Raises ConfigError for text that is no time and no offsets and where no record is, DependencyError without Kafka.
    """
    cluster = Cluster(job.kafka)
    features = cluster.topic(job.features.topic).partitions
    starts, start_ms = _from(job, cluster, features, start)
    stops, stop_ms = _to(job, cluster, features, stop)
    stops = {partition: max(offset, starts[partition]) for partition, offset in stops.items()}
    if stops == starts:
        raise ConfigError(f"--from {start} --to {stop}: {job.features.topic} has no record there")
    if job.labels is not None:
        labels = cluster.topic(job.labels.topic).partitions
        starts |= cluster.offsets_at(labels, start_ms)
        stops |= cluster.offsets_at(labels, stop_ms + job.join.window)
    return Stretch(Bounds({p: starts[p] for p in sorted(starts, key=_rank(job))}, stops))


def replay_job(job: JobConfig, name: str, stretch: Stretch) -> JobConfig:
    """The job under another name, in a state directory beside the trainer's.

    The same stretch under the same name goes on where it stopped. Raises ConfigError if it is another one, and for a
    name that is none, or the job's own: its versions would come among the trainer's.
    """
    if name == job.job.name:
        raise ConfigError(f"--name {name}: that is the job itself; a replay needs a name of its own")
    state_dir = Path(f"{job.job.state_dir}-replays") / name
    document = {**job.model_dump(), "job": {**job.job.model_dump(), "name": name, "state_dir": state_dir}}
    try:
        replay = JobConfig.model_validate(document)
    except ValidationError as error:
        raise ConfigError(f"--name {name}: {error.errors()[0]['msg'].removeprefix('Value error, ')}") from None
    record = state_dir / "replay.json"
    if record.exists() and json.loads(record.read_text()) != stretch.lines():
        raise ConfigError(
            f"{state_dir}: the replay of that name read other offsets; give another --name, or remove the folder"
        )
    state_dir.mkdir(parents=True, exist_ok=True)
    record.write_text(json.dumps(stretch.lines()))
    return replay


def _rank(job: JobConfig) -> Any:
    return lambda partition: (partition.topic != job.features.topic, partition.number)


def _from(
    job: JobConfig, cluster: Cluster, partitions: tuple[Partition, ...], text: str
) -> tuple[dict[Partition, int], int]:
    """First offsets, and the time of the oldest record there."""
    if not _are_offsets(text):
        return _at_time(cluster, partitions, text, "--from")
    offsets = _parse_offsets(partitions, text, "--from")
    return offsets, min(_times(job, cluster, offsets, f"--from {text}"))


def _to(
    job: JobConfig, cluster: Cluster, partitions: tuple[Partition, ...], text: str
) -> tuple[dict[Partition, int], int]:
    """Offsets at which to end, and the time just after the newest record before them."""
    if not _are_offsets(text):
        return _at_time(cluster, partitions, text, "--to")
    offsets = _parse_offsets(partitions, text, "--to")
    last = {partition: max(offset - 1, 0) for partition, offset in offsets.items()}
    return offsets, max(_times(job, cluster, last, f"--to {text}")) + 1


def _are_offsets(text: str) -> bool:
    return ":" in text and "-" not in text


def _at_time(
    cluster: Cluster, partitions: tuple[Partition, ...], text: str, option: str
) -> tuple[dict[Partition, int], int]:
    try:
        time_ms = parse_time(text)
    except ValueError:
        raise ConfigError(
            f"{option} {text}: neither an ISO 8601 time such as 2013-01-05T00:00Z nor offsets such as 0:1200,1:980"
        ) from None
    return dict(cluster.offsets_at(partitions, time_ms)), time_ms


def _times(job: JobConfig, cluster: Cluster, offsets: dict[Partition, int], origin: str) -> list[int]:
    times = [timestamp_at(job.kafka, cluster, partition, offset) for partition, offset in offsets.items()]
    known = [time for time in times if time is not None]
    if not known:
        raise ConfigError(f"{origin}: no partition has a record there")
    return known


def _parse_offsets(partitions: tuple[Partition, ...], text: str, option: str) -> dict[Partition, int]:
    try:
        pairs: dict[int, int] = {}
        for item in text.split(","):
            number, offset = item.split(":")
            pairs[int(number)] = int(offset)
    except ValueError:
        raise ConfigError(f"{option} {text}: offsets are written 0:1200,1:980 (partition:offset)") from None
    missing = [partition.number for partition in partitions if partition.number not in pairs]
    if missing or len(pairs) != len(partitions):
        raise ConfigError(f"{option} {text}: give one offset for each of {', '.join(map(str, partitions))}")
    return {partition: pairs[partition.number] for partition in partitions}
