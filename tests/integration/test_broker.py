"""The local brokers: real Kafka and the mock cluster."""

import os
import shutil
import signal
import subprocess
import sys
from types import SimpleNamespace

import psutil
import pytest
from confluent_kafka import Consumer, TopicPartition
from confluent_kafka.admin import AdminClient, ConfigResource

from consumers.broker import (
    KafkaBroker,
    MockBroker,
    create_topics,
    die_with_parent,
    local_broker,
    lock_folder,
)
from consumers.errors import DependencyError, EvertrainError
from tests.conftest import TOPIC_CONFIG, produce


def read_one(bootstrap, topic):
    consumer = Consumer({"bootstrap.servers": bootstrap, "group.id": "test"})
    consumer.assign([TopicPartition(topic, 0, 0)])
    message = consumer.poll(30)
    consumer.close()
    return message


def test_a_record_stamped_long_ago_or_far_ahead_is_kept_with_its_timestamp(kafka, topics):
    for moment in (1, 4_000_000_000_000):
        (topic,) = topics("stamped")
        produce(kafka.bootstrap, topic, [SimpleNamespace(timestamp=moment, key=b"k", value=b"v")])
        assert read_one(kafka.bootstrap, topic).timestamp()[1] == moment


def test_a_message_of_15_megabytes_goes_through(kafka, topics):
    (topic,) = topics("large")
    large = b"x" * 15 * 10**6
    produce(kafka.bootstrap, topic, [SimpleNamespace(timestamp=1, key=b"k", value=large)])
    assert read_one(kafka.bootstrap, topic).value() == large


def test_topics_get_their_partitions_and_configuration(kafka, topics):
    (topic,) = topics("wide", partitions=7)
    admin = AdminClient({"bootstrap.servers": kafka.bootstrap})
    assert len(admin.list_topics(topic, timeout=10).topics[topic].partitions) == 7
    resource = ConfigResource(ConfigResource.Type.TOPIC, topic)
    found = admin.describe_configs([resource])[resource].result()
    assert {name: found[name].value for name in TOPIC_CONFIG} == TOPIC_CONFIG


def test_creating_a_topic_twice_is_an_error_that_names_it(kafka, topics):
    (topic,) = topics("twice")
    with pytest.raises(DependencyError, match=topic):
        create_topics(kafka.bootstrap, {topic: 1}, {})


def test_a_killed_broker_serves_its_folder_again_at_the_same_address(tmp_path):
    with KafkaBroker(tmp_path / "kafka") as broker:
        first = broker.bootstrap
        assert broker.kind.startswith("apache-kafka 4.1.")
        create_topics(broker.bootstrap, {"kept": 1}, TOPIC_CONFIG)
        produce(broker.bootstrap, "kept", [SimpleNamespace(timestamp=7, key=b"k", value=b"v")])
        with pytest.raises(EvertrainError, match="in use"):
            KafkaBroker(tmp_path / "kafka").start()
        psutil.Process(broker.pid).kill()
    with KafkaBroker(tmp_path / "kafka") as broker:
        assert broker.bootstrap == first
        assert read_one(broker.bootstrap, "kept").value() == b"v"


def test_a_folder_that_kafka_cannot_use_is_an_error_that_names_the_log(tmp_path):
    (tmp_path / "log").write_text("a file where a folder has to be")
    with pytest.raises(DependencyError, match=r"kafka\.log"):
        KafkaBroker(tmp_path).start()


def test_a_port_in_use_is_an_error_that_says_what_to_do(kafka, tmp_path):
    taken = int(kafka.bootstrap.rpartition(":")[2])
    with pytest.raises(DependencyError, match="--port"):
        KafkaBroker(tmp_path, taken).start()


def test_the_command_prints_its_address_and_ends_with_0_on_sigterm(tmp_path):
    command = [sys.executable, "-m", "pipeline.cli", "broker", "--data", str(tmp_path / "kafka")]
    with (
        (tmp_path / "errors").open("wb") as errors,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True) as process,
    ):
        bootstrap = process.stdout.readline().strip()
        assert AdminClient({"bootstrap.servers": bootstrap}).list_topics(timeout=10).brokers
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0, (tmp_path / "errors").read_text()


def test_a_child_dies_with_its_parent():
    code = (
        "import subprocess, sys, time; from consumers.broker import die_with_parent;"
        "child = subprocess.Popen(die_with_parent(['sleep', '1000']));"
        "print(child.pid, flush=True); time.sleep(1000)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as parent:
        child = psutil.Process(int(parent.stdout.readline()))
        while child.name() != "sleep":
            assert child.is_running()
        parent.kill()
    psutil.wait_procs([child], timeout=30)
    assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE


def test_a_child_whose_parent_is_already_gone_does_not_start():
    command = die_with_parent(["echo", "started"])
    command[command.index(str(os.getpid()))] = "1000000000"
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert not done.stdout


def test_a_locked_folder_is_free_again_when_its_last_holder_ends(tmp_path):
    held = lock_folder(tmp_path / "new", "lock")
    with pytest.raises(EvertrainError, match="in use"):
        lock_folder(tmp_path / "new", "lock")
    os.close(held)
    os.close(lock_folder(tmp_path / "new", "lock"))


def test_the_mock_cluster_serves_and_its_topics_have_four_partitions():
    with MockBroker() as broker:
        assert broker.kind.startswith("embedded")
        broker.create_topics({"some": 4}, {})
        produce(broker.bootstrap, "some", [SimpleNamespace(timestamp=7, key=b"k", value=b"v", partition=0)])
        assert read_one(broker.bootstrap, "some").timestamp()[1] == 7
        pid = broker.pid
    assert not psutil.pid_exists(pid)


def test_without_java_the_demo_gets_the_mock_cluster(tmp_path, monkeypatch):
    real = shutil.which
    monkeypatch.setattr(shutil, "which", lambda name: None if name == "java" else real(name))
    assert isinstance(local_broker(tmp_path), MockBroker)
    with pytest.raises(DependencyError, match="java"):
        KafkaBroker(tmp_path).start()
