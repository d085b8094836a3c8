"""The input of the benchmarks: a learnable stream with late labels, and two topics filled with it."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
import orjson
from confluent_kafka import Producer, TopicPartition
from confluent_kafka.admin import AdminClient, OffsetSpec

Float64s: TypeAlias = npt.NDArray[np.float64]
Int64s: TypeAlias = npt.NDArray[np.int64]

COLUMNS = [f"f{index}" for index in range(32)]
PARTITIONS = 4
TOPIC_CONFIG = {"retention.ms": "-1"}  # retention goes by the record's timestamp, and these lie in the past
FIRST_TIME_MS = 1_700_000_000_000  # fixed: the topics are the same on every machine and day
DELAY_ROWS_MEAN = 20_000  # event time advances 1 ms a row, so this is the mean delay in ms too
CHUNK_ROWS = 8_192
IN_FLIGHT_MAX = 50_000  # messages


class Chunk(NamedTuple):
    """N rows as they happened: features with six decimals, labels 0 or 1, delays in ms."""

    ids_N: Int64s
    features_NC: Float64s
    labels_N: Int64s
    delays_N: Int64s


class Message(NamedTuple):
    """One record to produce."""

    time: int
    topic: str
    key: bytes
    value: bytes


def chunks(rows: int) -> Iterator[Chunk]:
    """Standard normal features, and labels drawn by a fixed rule: a slope, one product and one square."""
    random = np.random.default_rng(0)
    slope_C = random.normal(size=len(COLUMNS)) * 2 / np.sqrt(len(COLUMNS))
    for first in range(0, rows, CHUNK_ROWS):
        ids_N = np.arange(first, min(first + CHUNK_ROWS, rows))
        features_NC = random.normal(size=(len(ids_N), len(COLUMNS))).round(6)
        bend_N = features_NC[:, 0] * features_NC[:, 1] + features_NC[:, 2] ** 2 - 1
        chance_N = 1 / (1 + np.exp(-(features_NC @ slope_C + bend_N)))
        labels_N = (random.random(len(ids_N)) < chance_N).astype(np.int64)
        delays_N = random.exponential(DELAY_ROWS_MEAN, len(ids_N)).astype(np.int64)
        yield Chunk(ids_N, features_NC, labels_N, delays_N)


def messages(rows: int, features_topic: str, labels_topic: str) -> Iterator[Message]:
    """Both topics in the order of event time, with the labels that come after the last feature event."""
    waiting: list[Message] = []
    for chunk in chunks(rows):
        ids = chunk.ids_N.tolist()
        now = [
            _message(features_topic, FIRST_TIME_MS + id_, id_, dict(zip(COLUMNS, row, strict=True)))
            for id_, row in zip(ids, chunk.features_NC.tolist(), strict=True)
        ]
        waiting += [
            _message(labels_topic, FIRST_TIME_MS + id_ + delay, id_, {"y": label})
            for id_, label, delay in zip(ids, chunk.labels_N.tolist(), chunk.delays_N.tolist(), strict=True)
        ]
        end = FIRST_TIME_MS + ids[-1] + 1
        now += [message for message in waiting if message.time < end]
        waiting = [message for message in waiting if message.time >= end]
        yield from sorted(now, key=_time)
    yield from sorted(waiting, key=_time)


def fill(bootstrap: str, features_topic: str, labels_topic: str, rows: int) -> None:
    """Produces `rows` feature events and as many label events into fresh topics, compressed with lz4.

    The partition is the key's CRC-32, as librdkafka's `consistent` partitioner has it.
    Raises RuntimeError if a message was not delivered.
    """
    errors: list[Any] = []
    producer = Producer(
        {
            "bootstrap.servers": bootstrap,
            "compression.type": "lz4",
            "enable.idempotence": True,  # in order, and none twice
            "linger.ms": 50,
            "log_level": 3,  # a young broker makes the first requests wait, which is no news
            "on_delivery": lambda error, _: errors.append(error),
            "delivery.report.only.error": True,
        }
    )
    for count, (time, topic, key, value) in enumerate(messages(rows, features_topic, labels_topic)):
        producer.produce(topic, value, key, zlib.crc32(key) % PARTITIONS, timestamp=time)
        if count % CHUNK_ROWS == 0:
            while len(producer) > IN_FLIGHT_MAX:
                producer.poll(0.05)
    producer.flush()
    held = {topic: _records(bootstrap, topic) for topic in (features_topic, labels_topic)}
    if errors or set(held.values()) != {rows}:
        raise RuntimeError(f"filling the topics failed: {rows} rows produced, topics hold {held}: {errors[:1]}")


def _message(topic: str, time: int, id_: int, fields: dict[str, Any]) -> Message:
    return Message(time, topic, b"%d" % id_, orjson.dumps({"id": id_, "ts": time, **fields}))


def _time(message: Message) -> int:
    return message.time


def _records(bootstrap: str, topic: str) -> int:
    """How many records a fresh topic holds: the sum of its end offsets."""
    wanted = {TopicPartition(topic, number): OffsetSpec.latest() for number in range(PARTITIONS)}
    admin = AdminClient({"bootstrap.servers": bootstrap})  # a client that is let go never answers
    return sum(end.result(timeout=30).offset for end in admin.list_offsets(wanted).values())
