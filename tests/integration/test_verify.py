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
from tests.jobs import Job
from tests.stream import events, job_document

from consumers.broker import create_topics  # isort: skip
from pipeline.cli import main  # isort: skip

pytestmark = [
    pytest.mark.timeout(400),
    pytest.mark.filterwarnings("ignore:::mlflow", "ignore:::sqlalchemy", "ignore::ResourceWarning"),
]

ROWS = 6000


@pytest.fixture(scope="module")
def names(kafka: Any) -> dict[str, str]:
    return {side: f"verify-{os.getpid()}.{side}" for side in ("features", "labels", "dead")}


@pytest.fixture(scope="module")
def job(kafka: Any, names: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Job:
    """A job killed once, which has registered three versions."""
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


class Answers:
    """Runs commands in this process, which has imported torch and MLflow already."""

    def __init__(self, job: Job, capsys: pytest.CaptureFixture[str]) -> None:
        self.job = job
        self._capsys = capsys

    def __call__(self, *args: str, expect: int = 0) -> Any:
        """The JSON that a command prints, or what it says on stderr."""
        self._capsys.readouterr()
        assert main([*args, "-c", str(self.job.path), "-o", "json"]) == expect
        out, self.said = self._capsys.readouterr()
        return json.loads(out) if out else self.said


@pytest.fixture
def ask(job: Job, capsys: pytest.CaptureFixture[str]) -> Answers:
    return Answers(job, capsys)


@pytest.mark.parametrize("version", ["1", "2", "@champion", "snapshot:3"])
def test_each_version_comes_out_the_same_to_the_bit(ask: Answers, version: str) -> None:
    found = ask("verify", version)
    assert found["identical"]
    assert found["differences"] == []
    assert found["anchor"] < found["snapshot"]


def test_the_trainer_may_run_meanwhile_and_the_state_is_only_read(job: Job, ask: Answers) -> None:
    before = sorted(path.name for path in (job.state_dir / "blobs").iterdir())
    process = job.start()
    job.wait_for(lambda: job.status().get("phase") == "training", process)
    assert ask("verify", "2")["identical"]
    process.send_signal(signal.SIGTERM)
    assert process.wait(15) == 0
    assert set(before) <= {path.name for path in (job.state_dir / "blobs").iterdir()}


def test_what_does_not_exist_is_named(ask: Answers) -> None:
    assert "the newest are: 1, 2, 3" in ask("verify", "17", expect=2)
    assert "not in the chain" in ask("verify", "snapshot:9999", expect=3)


def test_without_mlflow_a_snapshot_can_still_be_verified(ask: Answers) -> None:
    down = ("--set", "registry.tracking_uri=http://127.0.0.1:9")
    assert "snapshot:SEQUENCE" in ask("verify", "1", *down, expect=3)
    assert ask("verify", "snapshot:3", *down)["identical"]


def test_a_question_makes_no_store(ask: Answers, tmp_path: Path) -> None:
    elsewhere = tmp_path / "mlflow.db"
    said = ask("ledger", "1", "2", "--set", f"registry.tracking_uri=sqlite:///{elsewhere}", expect=3)
    assert f"there is no MLflow store at {elsewhere}" in said
    assert not elsewhere.exists()


def test_the_ledger_tells_what_one_version_has_learned_and_the_other_not(ask: Answers, names: dict[str, str]) -> None:
    found = ask("ledger", "1", "2")
    assert found["only_a"] == []
    assert {(line["topic"], line["partition"]) for line in found["only_b"]} == {
        (names[side], number) for side in ("features", "labels") for number in (0, 1)
    }
    line = found["only_b"][0]
    where = f"{line['topic']}:{line['partition']}"
    assert ask("ledger", "--offset", f"{where}:{line['from']}")["version"] == 2
    assert ask("ledger", "--offset", f"{where}:{line['from'] - 1}")["version"] == 1
    assert "no version" in ask("ledger", "--offset", f"{where}:999999", expect=4)
    assert "topic:partition:offset" in ask("ledger", "1", expect=2)


def test_a_version_that_is_not_what_the_ledger_gives_is_reported(job: Job, ask: Answers) -> None:
    with sqlite3.connect(job.path.parent / "mlflow.db") as database:
        changed = "update model_version_tags set value = ? where key = 'weights_sha256' and version = 1"
        database.execute(changed, ["0" * 64])
    assert not ask("verify", "1", expect=4)["identical"]
    assert "MLflow's tag weights_sha256" in ask.said


def test_records_that_expired_cannot_be_verified(kafka: Any, ask: Answers, names: dict[str, str]) -> None:
    admin = AdminClient({"bootstrap.servers": kafka.bootstrap})
    for future in admin.delete_records([TopicPartition(names["features"], 0, 2000)]).values():
        future.result()
    problem = ask("verify", "1", expect=3)
    assert "the input expired" in problem
    assert f"{names['features']}[0]@" in problem
