"""Flights, their labels and some garbage, in true time order and at a steady pace, into Kafka."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any, NamedTuple
from zlib import crc32

import numpy as np
from confluent_kafka import Consumer, KafkaError, KafkaException, Message, Producer, TopicPartition

from consumers.errors import DependencyError
from consumers.record import Int64s
from pipeline.demo.flights import Flights
from pipeline.demo.garbage import KINDS

FEATURES, LABELS, DEAD = "flights.features", "flights.labels", "flights.dead"
PARTITIONS = 4
GARBAGE = 200

BACKLOG_BYTES_MAX = 10**6
"""Mock cluster: how far a partition may be past the group's offset. It drops its oldest records at about 5 MB."""

_CHUNK = 256  # records between two looks at the clock
_CHECK_S = 0.2


class Record(NamedTuple):
    """One record to produce; the time is that of the event, in ms since the epoch."""

    topic: str
    key: str
    value: bytes
    time_ms: int


@dataclass(frozen=True, slots=True)
class Progress:
    """How far the producer is. `waits`: it is ahead of the trainer and holds back."""

    produced: int
    total: int
    time_ms: int
    waits: bool = False


class Stream:
    """All records in the order of their times: each flight, each label at its arrival, garbage spread over both."""

    def __init__(self, flights: Flights, garbage: int = GARBAGE) -> None:
        self.flights = flights
        arrived = np.flatnonzero(flights.arrival_N >= 0)
        garbage = min(garbage, len(arrived))
        self.garbage = garbage
        self.labels = len(arrived)
        spread = arrived[np.linspace(0, len(arrived) - 1, garbage).astype(np.int64)]
        to_labels = np.array([KINDS[number % len(KINDS)].to_labels for number in range(garbage)], bool)
        garbage_times = np.where(to_labels, flights.arrival_N[spread], flights.departure_N[spread])
        times = np.concatenate([flights.departure_N, flights.arrival_N[arrived], garbage_times])
        source = np.repeat([0, 1, 2], [len(flights), self.labels, garbage])
        order = np.argsort(times, kind="stable")
        self._times: Int64s = times[order]
        self._source = source[order]
        self._flight: Int64s = np.concatenate([np.arange(len(flights)), arrived, spread])[order]

    def __len__(self) -> int:
        return len(self._times)

    def __iter__(self) -> Iterator[Record]:
        flights, features, bad = self.flights, self.flights.feature_values(), 0
        rows = zip(self._times.tolist(), self._source.tolist(), self._flight.tolist(), strict=True)
        for time_ms, source, flight in rows:
            key = flights.keys[flight]
            if source == 0:
                yield Record(FEATURES, key, next(features), time_ms)
            elif source == 1:
                yield Record(LABELS, key, flights.label_value(flight), time_ms)
            else:
                yield self._bad_record(bad, flight, time_ms)
                bad += 1

    def _bad_record(self, number: int, flight: int, time_ms: int) -> Record:
        kind = KINDS[number % len(KINDS)]
        flights = self.flights
        good = flights.label_value(flight) if kind.of_label else next(flights.feature_values(flight, flight + 1))
        topic = LABELS if kind.to_labels else FEATURES
        return Record(topic, flights.keys[flight], kind.spoil(good), time_ms)


class Backlog:
    """On the mock cluster: how many bytes each partition is past the offset that the trainer's group committed.

    It takes the topics to have been empty, and itself to be the only producer.
    """

    def __init__(self, bootstrap: str, group: str) -> None:
        settings: dict[str, Any] = {"bootstrap.servers": bootstrap, "group.id": group, "log_level": 0}
        self._consumer = Consumer(settings)
        self._partitions = [
            TopicPartition(topic, number) for topic in (FEATURES, LABELS) for number in range(PARTITIONS)
        ]
        self._bytes = {(p.topic, p.partition): [0] for p in self._partitions}  # up to each offset
        self._committed = dict.fromkeys(self._bytes, 0)
        self._checked_at = 0.0

    def sent(self, topic: str, partition: int, size: int) -> None:
        """Books one record."""
        line = self._bytes[topic, partition]
        line.append(line[-1] + size)

    def is_full(self) -> bool:
        """Whether any partition is too far ahead. Asks the group at most every 0.2 s, and only if it matters."""
        if self._ahead() <= BACKLOG_BYTES_MAX:
            return False
        if time.monotonic() - self._checked_at >= _CHECK_S:
            self._checked_at = time.monotonic()
            try:
                committed = self._consumer.committed(self._partitions, timeout=5)
            except KafkaException:
                return True  # the group does not exist yet
            for place in committed:
                self._committed[place.topic, place.partition] = max(place.offset, 0)
        return self._ahead() > BACKLOG_BYTES_MAX

    def close(self) -> None:
        """Lets go of Kafka."""
        self._consumer.close()

    def _ahead(self) -> int:
        return max(line[-1] - line[min(self._committed[name], len(line) - 1)] for name, line in self._bytes.items())


def produce(stream: Stream, bootstrap: str, records_per_second: float, backlog: Backlog | None) -> Iterator[Progress]:
    """Produces the whole stream, and says every few records how far it is. Raises DependencyError.

    Args:
        stream: what to produce.
        bootstrap: Kafka's address.
        records_per_second: the pace; time spent waiting for the trainer is not made up for.
        backlog: only on the mock cluster.
    """
    failures: list[KafkaError] = []

    def delivered(error: KafkaError | None, _: Message) -> None:
        if error is not None:
            failures.append(error)

    settings: Mapping[str, Any] = {
        "bootstrap.servers": bootstrap,
        "enable.idempotence": True,  # the order survives a retry
        "linger.ms": 10,
        "delivery.report.only.error": True,
        "on_delivery": delivered,
        "log_level": 3,
    }
    producer = Producer(dict(settings))
    records, produced, started = iter(stream), 0, time.monotonic()
    while chunk := list(islice(records, _CHUNK)):
        held = time.monotonic()
        while backlog is not None and backlog.is_full():
            producer.poll(0.05)
            yield Progress(produced, len(stream), chunk[0].time_ms, waits=True)
        started += time.monotonic() - held
        for record in chunk:
            _send(producer, record, backlog)
        if failures:
            raise DependencyError(f"{bootstrap} did not take a record: {failures[0].str()}")
        produced += len(chunk)
        yield Progress(produced, len(stream), chunk[-1].time_ms)
        producer.poll(0)
        time.sleep(max(0.0, started + produced / records_per_second - time.monotonic()))
    unsent = producer.flush(30)
    if failures or unsent:
        reason = failures[0].str() if failures else "no answer in time"
        raise DependencyError(f"{bootstrap} did not take the last records: {reason}")


def _send(producer: Producer, record: Record, backlog: Backlog | None) -> None:
    key = record.key.encode()
    partition = crc32(key) % PARTITIONS
    while True:
        try:
            producer.produce(record.topic, record.value, key, partition, timestamp=record.time_ms)
            break
        except BufferError:  # the local queue is full
            producer.poll(0.1)
    if backlog is not None:
        backlog.sent(record.topic, partition, len(key) + len(record.value))
