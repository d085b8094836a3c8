"""Messages taken from librdkafka in bulk are those that confluent-kafka gives one by one."""

from __future__ import annotations

import itertools
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest
from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition

from consumers.broker import MockBroker
from consumers.librdkafka import Failure, RawConsumer
from consumers.record import Messages, Partition
from tests.conftest import produce
from tests.live import Placed

MANY = 1000
PATIENCE_S = 30.0
KEYS = (None, b"", b"k", b"\0\xff", b"k" * 40_000)
VALUES = (None, b"", b"v", b"\xff\0\xff", b"v" * 300_000)
STAMPS = (1, 1_700_000_000_000, 2**52)

Row = tuple[int, int, bytes | None, bytes | None]
"""Offset, timestamp, key and value."""

_numbers = itertools.count()


@pytest.fixture(scope="module")
def broker() -> Iterator[MockBroker]:
    with MockBroker() as running:
        yield running


@pytest.fixture
def topic(broker: MockBroker) -> str:
    name = f"raw-{next(_numbers)}"
    broker.create_topics({name: 4}, {})
    return name


Consumers = Callable[..., RawConsumer]


@pytest.fixture
def consumer(broker: MockBroker) -> Iterator[Consumers]:
    """`consumer({partition: offset}, batch=..., **settings)`; it is closed at the end."""
    opened = []

    def make(starts: Mapping[Partition, int], *, batch: int = MANY, **settings: Any) -> RawConsumer:
        usual = {"bootstrap.servers": broker.bootstrap, "group.id": "raw", "enable.auto.commit": False, "log_level": 2}
        opened.append(RawConsumer(usual | settings, starts, batch=batch))
        return opened[-1]

    yield make
    for each in opened:
        each.close()


def records(count: int, partition: int = 0) -> list[Placed]:
    return [Placed(1 + number, b"k%d" % number, b"%d/%d" % (partition, number), partition) for number in range(count)]


def rows_of(messages: Messages) -> list[Row]:
    columns = messages.offset_N.tolist(), messages.timestamp_N.tolist()
    texts = ([blobs.at(index) for index in range(len(messages))] for blobs in (messages.keys, messages.values))
    return list(zip(*columns, *texts, strict=True))


def read(consumer: RawConsumer, count: int, partitions: list[Partition] | None = None) -> dict[Partition, list[Row]]:
    """So many messages, and no failures, by partition in the order in which they came."""
    found: dict[Partition, list[Row]] = {}
    deadline = time.monotonic() + PATIENCE_S
    while sum(map(len, found.values())) < count:
        assert time.monotonic() < deadline, found
        fetched, failures = consumer.consume(MANY, 0.2, partitions)
        assert not failures
        for partition, messages in fetched.items():
            found.setdefault(partition, []).extend(rows_of(messages))
    return found


def first_failures(consumer: RawConsumer, count: int = 1) -> list[Failure]:
    """The first ones that come, whatever messages do."""
    found: list[Failure] = []
    deadline = time.monotonic() + PATIENCE_S
    while len(found) < count:
        assert time.monotonic() < deadline, found
        found += consumer.consume(MANY, 0.2)[1]
    return found


def read_one_by_one(broker: MockBroker, topic: str, count: int) -> dict[Partition, list[Row]]:
    """The same by confluent-kafka's own consumer."""
    consumer = Consumer({"bootstrap.servers": broker.bootstrap, "group.id": "one-by-one"})
    consumer.assign([TopicPartition(topic, number, 0) for number in range(4)])
    found: dict[Partition, list[Row]] = {}
    for _ in range(count):
        message = consumer.poll(PATIENCE_S)
        row = message.offset(), message.timestamp()[1], message.key(), message.value()
        found.setdefault(Partition(topic, message.partition()), []).append(row)
    consumer.close()
    return found


def test_null_empty_and_large_keys_and_values_come_as_they_are_with_their_timestamps(
    broker: MockBroker, topic: str, consumer: Consumers
) -> None:
    shapes = list(itertools.product(KEYS, VALUES))
    sent = [Placed(STAMPS[n % len(STAMPS)], key, value, n % 4) for n, (key, value) in enumerate(shapes)]
    produce(broker.bootstrap, topic, sent)
    found = read(consumer({Partition(topic, number): 0 for number in range(4)}), len(sent))
    for number in range(4):
        mine = [record for record in sent if record.partition == number]
        expected = [(offset, r.timestamp, r.key, r.value) for offset, r in enumerate(mine)]
        assert found[Partition(topic, number)] == expected
    assert found == read_one_by_one(broker, topic, len(sent))


def test_messages_of_several_partitions_and_topics_come_each_in_order(
    broker: MockBroker, topic: str, consumer: Consumers
) -> None:
    broker.create_topics({f"{topic}-more": 4}, {})
    starts = {Partition(name, number): 0 for name in (topic, f"{topic}-more") for number in (0, 3)}
    for partition in starts:
        produce(broker.bootstrap, partition.topic, records(20, partition.number))
    found = read(consumer(starts), 80)
    assert found.keys() == starts.keys()
    for partition, rows in found.items():
        assert [row[0] for row in rows] == list(range(20))
        assert [row[3] for row in rows] == [b"%d/%d" % (partition.number, n) for n in range(20)]


def test_it_begins_at_the_offsets_that_it_is_given(broker: MockBroker, topic: str, consumer: Consumers) -> None:
    for number in (0, 1):
        produce(broker.bootstrap, topic, records(10, number))
    found = read(consumer({Partition(topic, 0): 7, Partition(topic, 1): 0}), 13)
    assert [row[0] for row in found[Partition(topic, 0)]] == [7, 8, 9]
    assert [row[0] for row in found[Partition(topic, 1)]] == list(range(10))


def test_no_more_messages_are_taken_than_were_asked_for_or_than_a_batch_has_room_for(
    broker: MockBroker, topic: str, consumer: Consumers
) -> None:
    produce(broker.bootstrap, topic, records(30))
    raw = consumer({Partition(topic, 0): 0}, batch=8)
    taken = [sum(map(len, raw.consume(count, PATIENCE_S)[0].values())) for count in (1, 3, 8, 2000, 9)]
    assert taken == [1, 3, 4, 8, 8]  # and none beyond offset 8, 16, ... at once


def test_without_messages_it_waits_and_gives_nothing(topic: str, consumer: Consumers) -> None:
    assert consumer({Partition(topic, 0): 0}).consume(MANY, 0.05) == ({}, [])


def test_the_end_of_a_partition_is_a_failure_that_names_its_offset(
    broker: MockBroker, topic: str, consumer: Consumers
) -> None:
    produce(broker.bootstrap, topic, records(5, 2))
    raw = consumer({Partition(topic, 1): 0, Partition(topic, 2): 3}, **{"enable.partition.eof": True})
    failures = sorted(first_failures(raw, 2), key=lambda failure: failure.partition)
    assert [failure[:3] for failure in failures] == [(topic, 1, 0), (topic, 2, 5)]
    assert {failure.error.code() for failure in failures} == {KafkaError._PARTITION_EOF}
    assert raw.high_watermark(Partition(topic, 2)) == 5


def test_messages_and_the_end_behind_them_come_in_one_batch(
    broker: MockBroker, topic: str, consumer: Consumers
) -> None:
    produce(broker.bootstrap, topic, records(5, 2))
    for patience_s in (1, 4, 16):  # both are there by then
        raw = consumer({Partition(topic, 2): 0}, **{"enable.partition.eof": True})
        time.sleep(patience_s)
        fetched, failures = raw.consume(6, PATIENCE_S)
        if failures:
            break
    assert [row[0] for row in rows_of(fetched[Partition(topic, 2)])] == list(range(5))
    assert [(failure.partition, failure.offset) for failure in failures] == [(2, 5)]


def test_an_offset_that_is_not_there_is_a_failure_in_words(broker: MockBroker, topic: str, consumer: Consumers) -> None:
    produce(broker.bootstrap, topic, records(5))
    (failure,) = first_failures(consumer({Partition(topic, 0): 99}, **{"auto.offset.reset": "error"}))
    assert failure[:2] == (topic, 0)
    assert failure.error.code() == KafkaError._AUTO_OFFSET_RESET
    assert "out of range" in failure.error.str()


def test_a_broker_out_of_reach_is_no_failure(topic: str, consumer: Consumers) -> None:
    raw = consumer({Partition(topic, 0): 0}, **{"bootstrap.servers": "127.0.0.1:1"})
    assert raw.consume(MANY, 0.5) == ({}, [])  # librdkafka keeps trying; the cluster's own client tells of it


def test_a_partition_that_is_not_asked_for_keeps_what_it_has(
    broker: MockBroker, topic: str, consumer: Consumers
) -> None:
    full, other = Partition(topic, 0), Partition(topic, 1)
    for partition in (full, other):
        produce(broker.bootstrap, topic, records(10, partition.number))
    raw = consumer({full: 0, other: 0})
    assert read(raw, 10, [other]).keys() == {other}
    assert raw.consume(MANY, 0.3, [other]) == ({}, [])
    assert [row[0] for row in read(raw, 10, [full])[full]] == list(range(10))


def test_a_wait_ends_with_a_message_or_with_what_wakes(broker: MockBroker, topic: str, consumer: Consumers) -> None:
    partition = Partition(topic, 0)
    raw = consumer({partition: 0})
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.send(b"!")
        began = time.monotonic()
        assert raw.consume(MANY, PATIENCE_S, [partition], [theirs]) == ({}, [])
        produce(broker.bootstrap, topic, records(1))
        theirs.recv(1)
        assert raw.consume(MANY, PATIENCE_S, [partition], [theirs])[0].keys() == {partition}
        assert time.monotonic() - began < PATIENCE_S


def test_nothing_is_taken_beyond_an_offset_divisible_by_the_batch(
    broker: MockBroker, topic: str, consumer: Consumers
) -> None:
    partition = Partition(topic, 0)
    produce(broker.bootstrap, topic, records(11))
    raw, taken = consumer({partition: 1}, batch=4), list[list[int]]()
    while sum(map(len, taken)) < 10:
        fetched, _ = raw.consume(MANY, PATIENCE_S)
        taken.append(fetched[partition].offset_N.tolist())
    assert [offset for offsets in taken for offset in offsets] == list(range(1, 11))
    assert all(offset % 4 for offsets in taken for offset in offsets[1:])


def test_messages_stay_when_their_consumer_is_closed(broker: MockBroker, topic: str) -> None:
    produce(broker.bootstrap, topic, records(10))
    raw = RawConsumer({"bootstrap.servers": broker.bootstrap, "group.id": "raw"}, {Partition(topic, 0): 0}, batch=10)
    fetched, _ = raw.consume(10, PATIENCE_S)
    raw.close()
    assert [row[3] for row in rows_of(fetched[Partition(topic, 0)])] == [b"0/%d" % number for number in range(10)]


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"no.such.setting": 1}, 'No such configuration property: "no.such.setting"'),
        ({"enable.partition.eof": "perhaps"}, "enable.partition.eof"),
        ({"fetch.wait.max.ms": -1}, "fetch.wait.max.ms"),
        ({"security.protocol": "ssl", "ssl.ca.location": "/nowhere"}, "ssl.ca.location"),
    ],
)
def test_settings_that_librdkafka_refuses_are_an_error_in_its_words(
    settings: dict[str, Any], complaint: str, consumer: Consumers
) -> None:
    with pytest.raises(KafkaException) as caught:
        consumer({}, **settings)
    assert complaint in caught.value.args[0].str()
