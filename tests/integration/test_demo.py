"""`evertrain demo`, small: the whole path on real Kafka and on the mock cluster."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from consumers.broker import lock_folder
from pipeline.demo.flights import load_flights

LIMIT = 3000
FIELDS = [
    "records_produced", "records_applied", "rows_trained", "versions", "auc_live", "auc_frozen", "auc_live_last_half",
    "auc_frozen_last_half", "garbage_produced", "dead_letters", "waiting", "expired", "drift_alarms", "seconds",
    "broker",
]  # fmt: skip


def demo(state, limit=LIMIT, **environment):
    command = [sys.executable, "-m", "pipeline.cli", "demo", "--state", str(state), "--limit", str(limit)]
    return subprocess.run(command, capture_output=True, text=True, env=os.environ | environment, check=False)


@pytest.fixture
def no_java(tmp_path):
    """A PATH without Java and Maven."""
    path = tmp_path / "bin"
    path.mkdir()
    return {"PATH": str(path)}


def check(done, state):
    assert done.returncode == 0, done.stdout + done.stderr
    flights = load_flights(LIMIT)
    arrived = int((flights.arrival_N >= 0).sum())
    summary = json.loads((state / "summary.json").read_text())
    assert [name for name in summary if name != "verified"] == FIELDS
    assert summary["records_applied"] == summary["records_produced"]
    assert "kill -9" in done.stdout
    assert summary["rows_trained"] == arrived
    assert summary["waiting"] + summary["expired"] == LIMIT - arrived
    assert summary["dead_letters"] == summary["garbage_produced"] == 200
    assert summary["versions"] >= 3
    assert 0.5 < summary["auc_live"] <= 1
    assert "200 of 200 records" in done.stdout
    assert str(state / "summary.json") in done.stdout
    return summary


@pytest.mark.timeout(400)
def test_the_demo_learns_every_flight_that_arrived_and_finds_all_garbage(tmp_path):
    state = tmp_path / "demo"
    summary = check(demo(state), state)
    assert summary["broker"].startswith("apache-kafka 4.1.")
    assert summary["verified"]
    assert {"job.toml", "job.log", "kafka", "flights", "mlflow.db"} <= {path.name for path in state.iterdir()}


@pytest.mark.timeout(400)
def test_without_java_it_does_the_same_on_the_mock_cluster_and_says_so(tmp_path, no_java):
    state = tmp_path / "demo"
    done = demo(state, **no_java)
    assert check(done, state)["broker"].startswith("embedded")
    assert "mock cluster" in done.stdout


def test_a_folder_that_the_demo_did_not_make_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    done = demo(tmp_path)
    assert done.returncode == 2
    assert "--state" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize("place", ["demo.lock", "kafka/broker.lock", "flights/lock"])
def test_a_folder_in_use_is_left_alone(tmp_path, place):
    (tmp_path / "demo.lock").touch()
    path = tmp_path / place
    held = lock_folder(path.parent, path.name)
    done = demo(tmp_path)
    os.close(held)
    assert done.returncode == 1
    assert "in use" in done.stderr
    assert path.exists()


def test_a_job_that_fails_ends_the_demo_with_the_end_of_its_log(tmp_path, no_java):
    done = demo(tmp_path / "demo", EVERTRAIN__LEARNER__BATCH_SIZE="0", **no_java)
    assert done.returncode == 1
    assert "exit code 2" in done.stderr
    assert "batch_size" in done.stderr
    assert not Path(tmp_path / "demo" / "summary.json").exists()
