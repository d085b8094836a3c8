"""A real Apache Kafka, one for the whole session, and topics of their own for every test."""

import itertools
import os
import threading

import pytest
from confluent_kafka import Producer

from consumers.broker import KafkaBroker, create_topics

TOPIC_CONFIG = {
    "retention.ms": "-1",
    "max.message.bytes": str(20 * 2**20),
    "message.timestamp.after.max.ms": str(2**63 - 1),
}

_numbers = itertools.count()


@pytest.fixture(scope="session")
def kafka(tmp_path_factory):
    """A running broker; its address is `kafka.bootstrap`."""
    # The broker dies with the thread that starts it, and a test's time limit may run tests in another one.
    assert threading.current_thread() is threading.main_thread()
    with KafkaBroker(tmp_path_factory.mktemp("kafka")) as broker:
        yield broker


@pytest.fixture
def topics(kafka):
    """`topics("features", "labels", partitions=4)` creates topics with unique names, and returns these."""

    def create(*names, partitions=1, **config):
        unique = [f"{name}-{os.getpid()}-{next(_numbers)}" for name in names]
        create_topics(kafka.bootstrap, dict.fromkeys(unique, partitions), TOPIC_CONFIG | config)
        return unique

    return create


def produce(bootstrap, topic, records):
    """Produces objects with `timestamp`, `key` and `value`, and optionally `partition` and `headers`, in order."""
    failures = []
    producer = Producer(
        {
            "bootstrap.servers": bootstrap,
            "enable.idempotence": True,
            "message.max.bytes": 20 * 2**20,
            "linger.ms": 5,
        }
    )
    for record in records:
        more = {name: getattr(record, name) for name in ("partition", "headers") if hasattr(record, name)}
        while True:
            try:
                producer.produce(
                    topic,
                    key=record.key,
                    value=record.value,
                    timestamp=record.timestamp,
                    on_delivery=lambda error, _: failures.append(error) if error else None,
                    **more,
                )
                break
            except BufferError:
                producer.poll(0.1)
        producer.poll(0)
    assert producer.flush(60) == 0
    assert not failures
