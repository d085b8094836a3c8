"""A real Apache Kafka, one for the whole session; topics and a Schema Registry of their own for every test."""

import itertools
import os
import socket
import threading

import pytest
from confluent_kafka import Producer

from consumers.broker import KafkaBroker, create_topics
from tests.kafka_proxy import Proxy
from tests.schema_registry import SchemaRegistry

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


class FaultBroker(KafkaBroker):
    """A broker to be mistreated: its address behind a `Proxy`, and one that asks for a password."""

    def __init__(self, data):
        self.proxy = Proxy()
        inner, self.sasl_port, port = _free_port(), _free_port(), _free_port()
        self.proxy.target = inner
        self.proxied = f"127.0.0.1:{self.proxy.port}"
        super().__init__(data, port, _FAULT_PROPERTIES.format(inner=inner, proxy=self.proxy.port, sasl=self.sasl_port))

    @property
    def sasl(self):
        """`[kafka]` of a job that knows the password."""
        return {
            "bootstrap.servers": f"127.0.0.1:{self.sasl_port}",
            "security.protocol": "SASL_PLAINTEXT",
            "sasl.mechanism": "PLAIN",
            "sasl.username": "trainer",
            "sasl.password": "right",
        }


_FAULT_PROPERTIES = """\
listeners=PLAINTEXT://127.0.0.1:{{port}},PROXIED://127.0.0.1:{inner},SASL_PLAINTEXT://127.0.0.1:{sasl},CONTROLLER://127.0.0.1:{{controller}}
advertised.listeners=PLAINTEXT://127.0.0.1:{{port}},PROXIED://127.0.0.1:{proxy},SASL_PLAINTEXT://127.0.0.1:{sasl}
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,PROXIED:PLAINTEXT,SASL_PLAINTEXT:SASL_PLAINTEXT,CONTROLLER:PLAINTEXT
inter.broker.listener.name=PLAINTEXT
sasl.enabled.mechanisms=PLAIN
listener.name.sasl_plaintext.plain.sasl.jaas.config=org.apache.kafka.common.security.plain.PlainLoginModule required user_trainer="right";
log.cleaner.backoff.ms=200
"""  # noqa: E501


def _free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="session")
def fault_broker(tmp_path_factory):
    """A running FaultBroker; a test that stops it has to start it again."""
    assert threading.current_thread() is threading.main_thread()
    with FaultBroker(tmp_path_factory.mktemp("fault-kafka")) as broker:
        yield broker
        broker.proxy.close()


@pytest.fixture
def registry():
    """A SchemaRegistry that has no schema yet."""
    server = SchemaRegistry()
    yield server
    server.stop()
