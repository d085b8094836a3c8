"""`evertrain verify` and `evertrain ledger` on a real Kafka and a real MLflow store."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import TopicPartition
from confluent_kafka.admin import AdminClient

from tests.conftest import TOPIC_CONFIG, produce
from tests.jobs import Job, evertrain
from tests.stream import events, job_document

from consumers.broker import create_topics  # isort: skip

pytestmark = pytest.mark.timeout(400)

ROWS = 6000


@pytest.fixture(scope="module")
def names(kafka: Any) -> dict[str, str]:
    return {side: f"verify-{os.getpid()}.{side}" for side in ("features", "labels", "dead")}


@pytest.fixture(scope="module")
def job(kafka: Any, names: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Job:
    """A job killed once, which has registered three versions, and a partition more than when it began."""
    create_topics(kafka.bootstrap, dict.fromkeys(names.values(), 2), TOPIC_CONFIG)
    features, labels = events(ROWS)
    produce(kafka.bootstrap, names["features"], features)
    produce(kafka.bootstrap, names["labels"], labels)
    folder = tmp_path_factory.mktemp("verify")
    tables = {
        table: {"topic": topic}
        for table, topic in zip(("features", "labels", "dead_letters"), names.values(), strict=True)
    }
    tables["snapshot"] = {"every": "640 rows", "anchor_every": "1500 rows"}
    tables["registry"] = {"register_every": "2000 rows"}
    job = Job(folder, job_document(folder / "state", kafka.bootstrap, "verify", **tables))
    job.interrupt_after(4, signal.SIGKILL, "--until-caught-up")
    job.learn_all()
    return job


def verify(job: Job, version: str, *args: str, expect: int = 0) -> Any:
    done = evertrain("verify", version, "-c", str(job.path), "-o", "json", *args, expect=expect)
    return json.loads(done.stdout) if done.stdout else done.stderr


@pytest.mark.parametrize("version", ["1", "2", "@champion", "snapshot:3"])
def test_each_version_comes_out_the_same_to_the_bit(job: Job, version: str) -> None:
    found = verify(job, version)
    assert found["identical"]
    assert found["differences"] == []
    assert found["anchor"] < found["snapshot"]


def test_the_trainer_may_run_meanwhile_and_the_state_is_only_read(job: Job) -> None:
    before = sorted(path.name for path in (job.state_dir / "blobs").iterdir())
    process = job.start()
    job.wait_for(lambda: job.status().get("phase") == "training", process)
    assert verify(job, "2")["identical"]
    process.send_signal(signal.SIGTERM)
    assert process.wait(15) == 0
    assert set(before) <= {path.name for path in (job.state_dir / "blobs").iterdir()}


def test_what_does_not_exist_is_named(job: Job) -> None:
    assert "the newest are: 1, 2, 3" in verify(job, "17", expect=2)
    assert "not in the chain" in verify(job, "snapshot:9999", expect=3)


def test_without_mlflow_a_snapshot_can_still_be_verified(job: Job) -> None:
    down = ("--set", "registry.tracking_uri=http://127.0.0.1:9")
    assert "snapshot:SEQUENCE" in verify(job, "1", *down, expect=3)
    assert verify(job, "snapshot:3", *down)["identical"]


def test_the_ledger_tells_what_one_version_has_learned_and_the_other_not(job: Job, names: dict[str, str]) -> None:
    done = evertrain("ledger", "1", "2", "-c", str(job.path), "-o", "json")
    found = json.loads(done.stdout)
    assert found["only_a"] == []
    assert {(line["topic"], line["partition"]) for line in found["only_b"]} == {
        (names[side], number) for side in ("features", "labels") for number in (0, 1)
    }
    line = found["only_b"][0]
    first = evertrain("ledger", "--offset", f"{line['topic']}:{line['partition']}:{line['from']}", "-c", str(job.path))
    assert "version 2 was the first" in first.stdout
    before = evertrain(
        "ledger", "--offset", f"{line['topic']}:{line['partition']}:{line['from'] - 1}", "-c", str(job.path)
    )
    assert "version 1 was the first" in before.stdout
    unseen = evertrain("ledger", "--offset", f"{line['topic']}:0:999999", "-c", str(job.path), expect=4)
    assert "no version" in unseen.stderr
    assert "topic:partition:offset" in evertrain("ledger", "1", "-c", str(job.path), expect=2).stderr


def test_a_version_that_is_not_what_the_ledger_gives_is_reported(job: Job, tmp_path: Path) -> None:
    with sqlite3.connect(job.path.parent / "mlflow.db") as database:
        changed = "update model_version_tags set value = ? where key = 'weights_sha256' and version = 1"
        database.execute(changed, ["0" * 64])
    done = evertrain("verify", "1", "-c", str(job.path), "-o", "json", expect=4)
    assert not json.loads(done.stdout)["identical"]
    assert "MLflow's tag weights_sha256" in done.stderr


def test_records_that_expired_cannot_be_verified(kafka: Any, job: Job, names: dict[str, str]) -> None:
    admin = AdminClient({"bootstrap.servers": kafka.bootstrap})
    for future in admin.delete_records([TopicPartition(names["features"], 0, 50)]).values():
        future.result()
    problem = verify(job, "1", expect=3)
    assert "the input expired" in problem
    assert f"{names['features']}[0]@" in problem
