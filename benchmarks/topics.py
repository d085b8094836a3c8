"""Topics filled with the stream, on a broker of their own, and the job file that reads them."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from confluent_kafka import Producer, TopicPartition
from confluent_kafka.admin import AdminClient, OffsetSpec

from benchmarks.formats import ENCODERS, settings
from benchmarks.processes import say
from benchmarks.stream import COLUMNS, PARTITIONS, keys, lots
from consumers.broker import KafkaBroker
from consumers.record import Side

TOPIC_CONFIG = {"retention.ms": "-1"}  # retention goes by the record's timestamp, and these lie in the past
IN_FLIGHT_MAX = 50_000  # messages

PRODUCER_SETTINGS = {
    "compression.type": "lz4",
    "enable.idempotence": True,  # in order, and none twice
    "linger.ms": 50,
    "log_level": 3,  # a young broker makes the first requests wait, which is no news
    "delivery.report.only.error": True,
}

JOB = """\
[job]
name = "benchmark"
state_dir = "{directory}/state"

[kafka]
"bootstrap.servers" = "{bootstrap}"

[features]
{features}
numeric = {columns}

[labels]
{labels}
column = "y"

[join]
window = "300s"
slab_rows = 32768

[stream]
readers = {readers}

[learner]
kind = "{learner}"
{model}

[registry]
tracking_uri = "sqlite:///{directory}/mlflow.db"
register_every = "24h"

[dead_letters]
topic = "{dead_letters}"
"""


MODELS = {"mlp": 'batch_size = 1024\nhidden = [256, 128]\ndevice = "cpu"', "bank": ""}
"""What `[learner]` says beside its kind: of the bank nothing, as a user would."""


@dataclass(frozen=True)
class Topics:
    """The topics of one format, on one broker."""

    bootstrap: str
    format: str
    prefix: str
    partitions: int = PARTITIONS
    """Of each topic."""

    def of(self, side: Side) -> str:
        """The topic of a side."""
        return f"{self.prefix}-{side.name.lower()}"

    @property
    def features(self) -> str:
        return self.of(Side.FEATURES)

    @property
    def labels(self) -> str:
        return self.of(Side.LABELS)

    @property
    def dead_letters(self) -> str:
        return f"{self.prefix}-dead"

    @property
    def options(self) -> list[str]:
        """Where the topics are, for a contender's command line."""
        return ["--bootstrap", self.bootstrap, "--features", self.features, "--labels", self.labels]

    def write_job(
        self, directory: Path, identity: dict[str, str] | None = None, learner: str = "mlp", readers: int = 1
    ) -> Path:
        """Writes the job file whose state, schemas and model store lie in `directory`.

        `identity` names the fields with an event's key and time; empty: those are the record's own.
        """
        identity = {"key": "id", "time": "ts"} if identity is None else identity
        tables = {}
        for side in Side:
            values = {"topic": self.of(side), "format": self.format, **identity}
            values |= settings(self.format, side, directory)
            tables[side.name.lower()] = "\n".join(f"{key} = {json.dumps(value)}" for key, value in values.items())
        path = directory / "job.toml"
        path.write_text(
            JOB.format(
                directory=directory,
                bootstrap=self.bootstrap,
                columns=json.dumps(COLUMNS),
                dead_letters=self.dead_letters,
                learner=learner,
                readers=readers,
                model=MODELS[learner],
                **tables,
            )
        )
        return path

    def fill(self, rows: int) -> None:
        """Produces `rows` feature events and as many label events. Raises RuntimeError if not all were delivered.

        A message that holds many rows has no key, and the time of its newest row.
        """
        errors: list[Any] = []
        producer = Producer(
            {
                "bootstrap.servers": self.bootstrap,
                "on_delivery": lambda error, _: errors.append(error),
                **PRODUCER_SETTINGS,
            }
        )
        encode, sent = ENCODERS[self.format], dict.fromkeys(Side, 0)
        for side, partition, events in lots(rows, self.partitions):
            topic, values, times = self.of(side), encode(events), events["ts"].tolist()
            many = len(values) < len(times)
            names = [None] if many else keys(events["id"])
            for key, value, time_ms in zip(names, values, times[-1:] if many else times, strict=True):
                producer.produce(topic, value, key, partition, timestamp=time_ms)
            sent[side] += len(values)
            while len(producer) > IN_FLIGHT_MAX:
                producer.poll(0.05)
        producer.flush()
        held = {side: self._records(side) for side in Side}
        if errors or held != sent:
            raise RuntimeError(f"filling the topics failed: {sent} produced, the topics hold {held}: {errors[:1]}")

    def _records(self, side: Side) -> int:
        """How many records a fresh topic holds: the sum of its end offsets."""
        wanted = {TopicPartition(self.of(side), number): OffsetSpec.latest() for number in range(self.partitions)}
        admin = AdminClient(
            {"bootstrap.servers": self.bootstrap, "log_level": 3}
        )  # a client that is let go never answers
        return sum(end.result(timeout=30).offset for end in admin.list_offsets(wanted).values())


@contextmanager
def broker() -> Iterator[KafkaBroker]:
    """A Kafka that is forgotten afterwards."""
    with tempfile.TemporaryDirectory(prefix="evertrain-bench-") as data, KafkaBroker(Path(data)) as running:
        yield running


def make_topics(
    kafka: KafkaBroker, name: str, rows: int = 0, *, prefix: str = "benchmark", partitions: int = PARTITIONS
) -> Topics:
    """Topics of a format, with so many rows in them."""
    topics = Topics(kafka.bootstrap, name, prefix, partitions)
    names = (topics.features, topics.labels, topics.dead_letters)
    kafka.create_topics(dict.fromkeys(names, partitions), TOPIC_CONFIG)
    if rows:
        began = time.monotonic()
        topics.fill(rows)
        say(f"{name}: {rows:,} rows produced in {time.monotonic() - began:.0f} s")
    return topics


@contextmanager
def filled(name: str, rows: int) -> Iterator[Topics]:
    """Filled topics on a broker of their own."""
    with broker() as kafka:
        yield make_topics(kafka, name, rows)
