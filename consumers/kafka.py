"""The only place that reads from Kafka: what a cluster holds, and the fetching consumer."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from confluent_kafka import (
    IsolationLevel,
    KafkaError,
    KafkaException,
    TopicCollection,
    TopicPartition,
)
from confluent_kafka.admin import AdminClient, OffsetSpec

from consumers.errors import ConfigError, DependencyError, StreamError
from consumers.librdkafka import Failure, HasFileno, RawConsumer
from consumers.record import Messages, Partition

_TIMEOUT_S = 10.0
_MOCK_CLUSTER_PREFIX = "mockCluster"
FETCH_MESSAGES = 2048
"""As many as a span has unless the job says otherwise: a fetch then ends where a span does, and nothing is joined."""

CONSUMER_SETTINGS: Mapping[str, Any] = {
    "enable.auto.commit": False,
    "enable.auto.offset.store": False,
    "enable.partition.eof": True,
    "auto.offset.reset": "error",
    "isolation.level": "read_committed",
    "check.crcs": True,
    "fetch.queue.backoff.ms": 20,
    "fetch.wait.max.ms": 50,
    "receive.message.max.bytes": 2**30,
    "queued.max.messages.kbytes": 2 * 1024,  # of each partition
    "queued.min.messages": 5_000,  # likewise: a message takes some 300 bytes beside its own
}
"""What Evertrain's promises rest on; the job file cannot change these."""

FETCH_SIZE: Mapping[str, Any] = {"fetch.message.max.bytes": 512 * 1024}
"""Of each partition in an answer, which takes memory beside the queues; the job file may say otherwise."""

ONE_BATCH_AT_A_TIME: Mapping[str, Any] = {"fetch.message.max.bytes": 1, "queued.min.messages": 1}
"""For reading up to a batch that no reader survives: the next one is fetched only when this one was taken."""


def group_id(name: str, settings: Mapping[str, Any]) -> str:
    """The consumer group that shows the job's progress in Kafka's own tools."""
    return str(settings.get("group.id", f"evertrain-{name}"))


@dataclass(frozen=True, slots=True)
class Topic:
    """A topic as the cluster knows it. `id` is empty where the broker has no topic ids."""

    name: str
    id: str
    partitions: tuple[Partition, ...]


class Inquiry:
    """A question about topics that was asked and may not be answered yet."""

    def __init__(self, cluster: Cluster, futures: Mapping[str, Future[Any]]) -> None:
        self._cluster = cluster
        self._futures = futures

    @property
    def done(self) -> bool:
        """Whether `topics` need not wait."""
        return all(future.done() for future in self._futures.values())

    def topics(self) -> dict[str, Topic | None]:
        """The topics by name; None for one that Kafka does not know. Raises DependencyError."""
        found: dict[str, Topic | None] = {}
        for name, future in self._futures.items():
            try:
                answer = future.result()
                numbers = sorted(partition.id for partition in answer.partitions)
                found[name] = Topic(name, str(answer.topic_id), tuple(Partition(name, number) for number in numbers))
            except KafkaException as error:
                if error.args[0].code() != KafkaError.UNKNOWN_TOPIC_OR_PART:
                    raise self._cluster.unreachable(error) from None
                found[name] = None
        return found


class Cluster:
    """Questions to a cluster. Every method raises DependencyError if it cannot be reached."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self._servers = settings["bootstrap.servers"]
        self._trouble = ""  # what went wrong with the connections last
        try:
            self._admin = AdminClient({**_client_settings(settings), "error_cb": self._note})
        except KafkaException as error:
            raise ConfigError(f"[kafka]: librdkafka refuses the settings: {error.args[0].str()}") from None

    def id(self) -> str:
        """The cluster's id."""
        return str(self._metadata().cluster_id)

    @property
    def is_mock(self) -> bool:
        """Whether this is librdkafka's mock cluster, which drops old records silently."""
        return self.id().startswith(_MOCK_CLUSTER_PREFIX)

    def topic(self, name: str) -> Topic:
        """A topic and its partitions. Raises DependencyError if it does not exist."""
        metadata = self._metadata(name).topics.get(name)
        if metadata is None or metadata.error is not None or not metadata.partitions:
            reason = f" ({metadata.error.str()})" if metadata is not None and metadata.error else ""
            raise DependencyError(
                f"Kafka at {self._servers} has no topic {name!r}{reason}; create it, or correct the job file"
            )
        partitions = tuple(Partition(name, number) for number in sorted(metadata.partitions))
        return Topic(name, self._topic_id(name), partitions)

    def inquire(self, names: Sequence[str]) -> Inquiry:
        """Asks for the ids and partitions of topics, without waiting."""
        return Inquiry(self, self._admin.describe_topics(TopicCollection(list(names)), request_timeout=_TIMEOUT_S))

    def ends(self, partitions: Sequence[Partition]) -> dict[Partition, int]:
        """The end offset of each partition, as a read-committed consumer sees it."""
        return self._offsets(partitions, OffsetSpec.latest())

    def starts(self, partitions: Sequence[Partition]) -> dict[Partition, int]:
        """The oldest offset that each partition still has."""
        return self._offsets(partitions, OffsetSpec.earliest())

    def offsets_at(self, partitions: Sequence[Partition], time_ms: int) -> dict[Partition, int]:
        """The offset of the first record stamped at or after a time; the end offset where there is none."""
        found = self._offsets(partitions, OffsetSpec.for_timestamp(time_ms))
        missing = [partition for partition, offset in found.items() if offset < 0]
        return found | (self.ends(missing) if missing else {})

    def resolve(self, partitions: Sequence[Partition], start: str) -> dict[Partition, int]:
        """Offsets of 'earliest', 'latest' or an ISO 8601 time (UTC if it names no zone)."""
        if start == "earliest":
            return self.starts(partitions)
        if start == "latest":
            return self.ends(partitions)
        return self.offsets_at(partitions, parse_time(start))

    def _offsets(self, partitions: Sequence[Partition], spec: OffsetSpec) -> dict[Partition, int]:
        if not partitions:
            return {}
        request = {TopicPartition(p.topic, p.number): spec for p in partitions}
        try:
            answers = self._admin.list_offsets(
                request, isolation_level=IsolationLevel.READ_COMMITTED, request_timeout=_TIMEOUT_S
            )
            return {Partition(tp.topic, tp.partition): future.result().offset for tp, future in answers.items()}
        except KafkaException as error:
            raise self.unreachable(error) from None

    def _topic_id(self, name: str) -> str:
        if self.is_mock:
            return ""
        topic = self.inquire([name]).topics()[name]
        if topic is None:
            raise DependencyError(f"Kafka at {self._servers} has no topic {name!r}; create it, or correct the job file")
        return topic.id

    def _metadata(self, topic: str | None = None) -> Any:
        try:
            return self._admin.list_topics(topic, timeout=_TIMEOUT_S)
        except KafkaException as error:
            raise self.unreachable(error) from None

    def _note(self, error: KafkaError) -> None:
        if error.code() != KafkaError._ALL_BROKERS_DOWN:  # it says nothing of why
            self._trouble = error.str()

    def unreachable(self, error: KafkaException) -> DependencyError:
        """The error for a question that Kafka did not answer, with what went wrong with the connection."""
        self._admin.poll(0)
        trouble, self._trouble = self._trouble, ""
        reason = f"{error.args[0].str()} ({trouble})" if trouble else error.args[0].str()
        return DependencyError(
            f"Kafka is not reachable at {self._servers}: {reason}; "
            'check kafka."bootstrap.servers", the security settings in [kafka], and that the broker runs'
        )


class OffsetGoneError(StreamError):
    """Kafka does not have the next offset of a partition."""

    def __init__(self, partition: Partition) -> None:
        super().__init__(f"{partition}: Kafka no longer has that record")
        self.partition = partition


class UnreadableBatchError(StreamError):
    """A record batch whose checksum is wrong or that cannot be decompressed. It comes again and again."""

    def __init__(self, partition: Partition, reason: str, *, may_pass: bool) -> None:
        super().__init__(f"{partition}: {reason}")
        self.partition = partition
        self.reason = reason
        self.may_pass = may_pass  # a bit may have flipped on the way: the same fetch again may be good


class Fetcher:
    """A consumer with fixed assignment: messages, and the ends it meets."""

    def __init__(
        self, settings: Mapping[str, Any], group: str, starts: Mapping[Partition, int], *, pause_ms: int = 0
    ) -> None:
        """With `pause_ms`, it takes one batch at a time, about so long after the one before."""
        pace = {**ONE_BATCH_AT_A_TIME, "fetch.queue.backoff.ms": pause_ms} if pause_ms else {}
        self._consumer = RawConsumer(
            {**FETCH_SIZE, **_client_settings(settings), "group.id": group, **CONSUMER_SETTINGS, **pace},
            starts,
            batch=FETCH_MESSAGES,
        )
        self._count = 1 if pause_ms else FETCH_MESSAGES

    def fetch(
        self, timeout_s: float, partitions: Iterable[Partition] | None = None, wake: Sequence[HasFileno] = ()
    ) -> tuple[dict[Partition, Messages], dict[Partition, int]]:
        """Up to FETCH_MESSAGES messages of each of the partitions (all, if none are named), and the ends reached.

        Waits until there is one, until one of `wake` can be read, or until the time is over. Raises StreamError,
        OffsetGoneError or UnreadableBatchError: the fetcher is of no use from then on.
        """
        fetched, failures = self._consumer.consume(self._count, timeout_s, partitions, wake)
        ends = {}
        for failure in failures:
            if failure.error.code() == KafkaError._PARTITION_EOF:
                ends[Partition(failure.topic, failure.partition)] = failure.offset
            else:
                _raise_for(failure)
        for partition, messages in fetched.items():
            # Where records keep coming there is no EOF: that takes an answer without any.
            high = self._consumer.high_watermark(partition)
            if messages.offset_N[-1] + 1 == high:
                ends[partition] = high
        return fetched, ends

    def close(self) -> None:
        self._consumer.close()


def parse_time(text: str) -> int:
    """An ISO 8601 time in milliseconds; UTC if it names no zone. Raises ValueError."""
    moment = datetime.fromisoformat(text)
    return round((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() * 1000)


def _client_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {"log_level": 2, **{name: value for name, value in settings.items() if name != "group.id"}}


_PASSING = {
    KafkaError._TRANSPORT,
    KafkaError._ALL_BROKERS_DOWN,
    KafkaError._TIMED_OUT,
    KafkaError._RESOLVE,
    KafkaError.LEADER_NOT_AVAILABLE,
    KafkaError.NOT_LEADER_FOR_PARTITION,
    KafkaError.REQUEST_TIMED_OUT,
    KafkaError.UNKNOWN_TOPIC_OR_PART,
    KafkaError._UNKNOWN_TOPIC,
    KafkaError._UNKNOWN_PARTITION,
}


_UNREADABLE = {
    KafkaError._BAD_COMPRESSION,
    KafkaError._BAD_MSG,  # the checksum is wrong
    KafkaError._NOT_IMPLEMENTED,  # not the format of any batch
    KafkaError._UNDERFLOW,
}


def _raise_for(failure: Failure) -> None:
    """Errors that librdkafka gets over by itself are left to it; all others end the reader."""
    error = failure.error
    if error.code() in _PASSING:
        return
    partition = Partition(failure.topic, failure.partition)
    if error.code() in (KafkaError._AUTO_OFFSET_RESET, KafkaError.OFFSET_OUT_OF_RANGE):
        raise OffsetGoneError(partition)
    if error.code() in _UNREADABLE:
        raise UnreadableBatchError(partition, error.str(), may_pass=error.code() != KafkaError._BAD_COMPRESSION)
    raise StreamError(f"{partition}@{failure.offset}: the consumer failed: {error.str()}")


def timestamp_at(settings: Mapping[str, Any], cluster: Cluster, partition: Partition, offset: int) -> int | None:
    """The timestamp of the first record at or after an offset, or None if there is none. Raises DependencyError."""
    if offset >= cluster.ends([partition])[partition]:
        return None
    fetcher = Fetcher(settings, "evertrain-lookup", {partition: offset})
    try:
        deadline = time.monotonic() + _TIMEOUT_S
        while time.monotonic() < deadline:
            fetched, ends = fetcher.fetch(1.0)
            if fetched:
                return int(fetched[partition].timestamp_N[0])
            if ends:
                return None
        raise DependencyError(f"{partition}@{offset}: Kafka did not answer within {_TIMEOUT_S:.0f} s; try again")
    finally:
        fetcher.close()
