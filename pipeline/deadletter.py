"""What Kafka gets: dead letters, and the offsets of the group that shows progress in Kafka's own tools."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
from confluent_kafka import (
    ConsumerGroupTopicPartitions,
    KafkaError,
    KafkaException,
    Message,
    Producer,
    TopicPartition,
)
from confluent_kafka.admin import AdminClient, NewTopic

from consumers.errors import DependencyError

_REQUEST_TIMEOUT_S = 5.0
_DELIVERY_TIMEOUT_S = 10.0
_COORDINATOR_STARTS = (
    KafkaError.COORDINATOR_LOAD_IN_PROGRESS,
    KafkaError.COORDINATOR_NOT_AVAILABLE,
    KafkaError.NOT_COORDINATOR,
)


def send(settings: Mapping[str, Any], topic: str, rejects: bytes, lineage: str) -> int:
    """Produces every rejected row, and returns how many when all of them are acknowledged.

    Args:
        settings: librdkafka's, as in `[kafka]`.
        topic: where to; it is created if it does not exist and we may.
        rejects: Arrow IPC stream of schema REJECTS plus `topic`, `topic_id` and `partition`.
        lineage: the id of the lineage that rejected them.

    Raises:
        DependencyError: some were not acknowledged. Sending all again is harmless: a letter's identity is its
            header `evertrain.id` (topic id, partition, offset and row of the original).
    """
    trouble = _create_topic(settings, topic)
    failures: list[KafkaError] = []

    def delivered(error: KafkaError | None, _: Message) -> None:
        if error is not None:
            failures.append(error)

    producer = Producer(
        _client_settings(settings)
        | {
            "enable.idempotence": True,
            "acks": "all",
            "linger.ms": 5,
            "message.timeout.ms": int(_DELIVERY_TIMEOUT_S * 1000),
        }
    )
    letters = pa.ipc.open_stream(rejects).read_all().to_pylist()
    for letter in letters:
        arguments = {"key": letter["key"], "value": letter["value"], "headers": headers(letter, lineage)}
        while True:
            try:
                producer.produce(topic, **arguments, on_delivery=delivered)
                break
            except BufferError:  # the local queue is full
                producer.poll(0.1)
        producer.poll(0)
    unsent = producer.flush(_DELIVERY_TIMEOUT_S + 1)
    if failures or unsent:
        reason = failures[0].str() if failures else "no answer in time"
        raise DependencyError(
            f"{len(failures) + unsent} of {len(letters)} dead letters not accepted by {topic!r}: {reason}{trouble}"
        )
    return len(letters)


def headers(letter: Mapping[str, Any], lineage: str) -> list[tuple[str, bytes]]:
    """Where a dead letter came from, and why."""
    topic = letter["topic_id"] or letter["topic"]  # a broker without topic ids: the mock cluster
    where = f"{topic}:{letter['partition']}:{letter['offset']}:{letter['row']}"
    names = ("topic", "partition", "offset", "row", "reason", "value_bytes", "timestamp")
    named = {"evertrain.id": where, **{name: str(letter[name]) for name in names}, "lineage": lineage}
    return [(name, text.encode()) for name, text in named.items()]


def commit_offsets(settings: Mapping[str, Any], group: str, cursor: Sequence[Mapping[str, Any]]) -> None:
    """Sets the group's offsets to where the learner stands. Raises DependencyError."""
    partitions = [TopicPartition(line["topic"], line["partition"], line["next"]) for line in cursor]
    request = [ConsumerGroupTopicPartitions(group, partitions)]
    admin = AdminClient(_client_settings(settings))
    deadline = time.monotonic() + _REQUEST_TIMEOUT_S
    while error := _alter_offsets(admin, request):
        if error.code() not in _COORDINATOR_STARTS or time.monotonic() > deadline:
            raise DependencyError(f"the offsets of group {group!r} were not accepted: {error.str()}")
        time.sleep(0.2)


def _alter_offsets(admin: AdminClient, request: list[ConsumerGroupTopicPartitions]) -> KafkaError | None:
    """The first error, or None."""
    try:
        futures = admin.alter_consumer_group_offsets(request, request_timeout=_REQUEST_TIMEOUT_S)
        answers = [future.result() for future in futures.values()]
    except KafkaException as error:
        return error.args[0]
    partitions = [partition for answer in answers for partition in answer.topic_partitions]
    return next((partition.error for partition in partitions if partition.error is not None), None)


def _create_topic(settings: Mapping[str, Any], topic: str) -> str:
    """Creates the topic if it is missing. Returns what there is to say of it if nothing can be sent there."""
    admin = AdminClient(_client_settings(settings))
    try:
        cluster = admin.list_topics(timeout=_REQUEST_TIMEOUT_S)
    except KafkaException as error:
        raise DependencyError(f"dead letters wait, Kafka cannot be reached: {error.args[0].str()}") from None
    if topic in cluster.topics or str(cluster.cluster_id).startswith(
        "mockCluster"
    ):  # the mock has no controller to ask
        return ""
    # Without retention.ms=-1, letters that a tool stamps with their original's time would be deleted soon.
    wanted = NewTopic(topic, 1, -1, config={"retention.ms": "-1"})
    try:
        for future in admin.create_topics([wanted], request_timeout=_REQUEST_TIMEOUT_S).values():
            future.result()
    except KafkaException as error:  # somebody else may create it
        return f"; the topic is missing and could not be created ({error.args[0].str()}): create it by hand"
    return ""


def _client_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {"log_level": 2, **{name: value for name, value in settings.items() if name != "group.id"}}
