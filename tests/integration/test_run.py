"""`evertrain run`, `replay` and `backtest` on a real Kafka: the promises as a user meets them."""

from __future__ import annotations

import json
import os
import re
import signal
import sqlite3
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.conftest import TOPIC_CONFIG, produce
from tests.jobs import Job, evertrain
from tests.stream import START_MS, Record, events, job_document

from consumers.broker import create_topics  # isort: skip

pytestmark = pytest.mark.timeout(700)  # several processes that import torch, on a machine that may be busy

ROWS = 12_000
GARBAGE = 5


@pytest.fixture(scope="module")
def stream(kafka: Any) -> dict[str, str]:
    """Two topics with ROWS examples and GARBAGE records that are not JSON, and a dead-letter topic."""
    names = {side: f"run-{os.getpid()}.{side}" for side in ("features", "labels", "dead")}
    create_topics(kafka.bootstrap, dict.fromkeys(names.values(), 3), TOPIC_CONFIG)
    features, labels = events(ROWS)
    for number in range(GARBAGE):
        features.append(Record(START_MS + number * 1000, b"bad%d" % number, b"{not json"))
    features.sort(key=lambda record: record.timestamp)
    produce(kafka.bootstrap, names["features"], features)
    produce(kafka.bootstrap, names["labels"], labels)
    return names


def make_job(broker: Any, names: dict[str, str], folder: Path, **tables: Any) -> Job:
    for table, topic in zip(("features", "labels", "dead_letters"), names.values(), strict=True):
        tables[table] = {"topic": topic, **tables.get(table, {})}
    tables.setdefault("snapshot", {"every": "640 rows"})
    return Job(folder, job_document(folder / "state", broker.bootstrap, folder.name, **tables))


@pytest.fixture(scope="module")
def straight(kafka: Any, stream: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return make_job(kafka, stream, tmp_path_factory.mktemp("straight")).learn_all()


def comparable(manifest: dict[str, Any]) -> dict[str, Any]:
    return {name: manifest[name] for name in ("weights_sha256", "counts", "metrics", "watermark")}


def test_everything_is_learned_once_and_counted(straight: dict[str, Any]) -> None:
    totals, examples = straight["counts"]["totals"], straight["counts"]["examples"]
    assert (totals["read"], totals["matched"], totals["rejected"]) == (2 * ROWS + GARBAGE, 2 * ROWS, GARBAGE)
    assert examples == {"trained": ROWS, "refused": 0, "open": 0, "filled_in": 0}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_stopped_in_the_middle_and_started_again_is_the_same_run(
    kafka: Any, stream: dict[str, str], straight: dict[str, Any], tmp_path: Path, number: signal.Signals
) -> None:
    job = make_job(kafka, stream, tmp_path / number.name)
    code = job.interrupt_after(3, number, "--until-caught-up")
    assert code == (0 if number is signal.SIGTERM else -signal.SIGKILL)
    assert 0 < job.manifest()["rows_trained"] < ROWS
    assert comparable(job.learn_all()) == comparable(straight)


def test_two_readers_instead_of_one_change_nothing_though_one_of_them_is_killed(
    kafka: Any, stream: dict[str, str], straight: dict[str, Any], tmp_path: Path
) -> None:
    job = make_job(kafka, stream, tmp_path / "reader", stream={"readers": 2})
    process = job.start("--until-caught-up")
    _, second = job.wait_for(lambda: job.status().get("reader_pids"), process)
    os.kill(second, signal.SIGKILL)
    assert process.wait(120) == 0, job.log.read_text()
    assert comparable(job.manifest()) == comparable(straight)


def test_each_joined_id_is_learned_exactly_once_through_kills(
    kafka: Any, stream: dict[str, str], tmp_path: Path
) -> None:
    numeric = ["n", "a", {"name": "b", "nullable": True}]
    job = make_job(
        kafka,
        stream,
        tmp_path / "counting",
        features={"numeric": numeric},
        learner={"task": "tests.tasks:CountingTask"},
    )
    job.interrupt_after(2, signal.SIGKILL, "--until-caught-up")
    job.interrupt_after(5, signal.SIGKILL, "--until-caught-up")
    job.learn_all()
    counts = job.arrays()["learner.module.counts"]
    padding = 64 - ROWS % 64 if ROWS % 64 else 0
    assert counts[0] == padding
    assert Counter(counts[1:].tolist()) == {1: ROWS, 0: len(counts) - 1 - ROWS}


def test_rows_that_are_not_learned_are_counted_and_logged(kafka: Any, stream: dict[str, str], tmp_path: Path) -> None:
    job = make_job(kafka, stream, tmp_path / "endless", learner={"task": "tests.tasks:EndlessLoss"})
    job.run("--until-caught-up", expect=1)
    assert job.manifest()["counts"]["examples"] == {"trained": 0, "refused": ROWS, "open": 0, "filled_in": 0}
    logged = job.log.read_text()
    assert sum(map(int, re.findall(r"(\d+) rows were not learned: their step was not finite", logged))) == ROWS
    assert "nothing was learned: no step was finite" in logged


def test_a_live_job_finishes_what_is_there_on_sigusr1(
    kafka: Any, stream: dict[str, str], straight: dict[str, Any], tmp_path: Path
) -> None:
    job = make_job(kafka, stream, tmp_path / "live", stream={"readers": 2})
    process = job.start()
    job.wait_for(lambda: job.status().get("rows_trained") == ROWS, process)
    process.send_signal(signal.SIGUSR1)
    assert process.wait(60) == 0, job.log.read_text()
    assert job.status()["phase"] == "ended"
    assert job.manifest()["counts"]["examples"] == straight["counts"]["examples"]


def test_sigterm_ends_a_live_job_and_its_mlflow_run(kafka: Any, stream: dict[str, str], tmp_path: Path) -> None:
    job = make_job(kafka, stream, tmp_path / "stopped")
    database = tmp_path / "stopped" / "mlflow.db"
    process = job.start()

    def run_status() -> list[str]:
        if not database.exists():
            return []
        with sqlite3.connect(database) as connection:
            tables = connection.execute("select count(*) from sqlite_master where name = 'runs'").fetchone()
            rows = connection.execute("select status from runs").fetchall() if tables[0] else []
        return [status for (status,) in rows]

    job.wait_for(lambda: run_status() == ["RUNNING"], process)
    process.send_signal(signal.SIGTERM)
    assert process.wait(10) == 0, job.log.read_text()
    assert run_status() == ["FINISHED"]
    assert job.status()["phase"] == "stopped"


def test_a_second_trainer_is_refused(kafka: Any, stream: dict[str, str], tmp_path: Path) -> None:
    job = make_job(kafka, stream, tmp_path / "locked")
    process = job.start()
    job.wait_for(lambda: job.status().get("phase"), process)
    job.run(expect=1)
    assert "another trainer holds the lock" in job.log.read_text()
    process.send_signal(signal.SIGTERM)
    assert process.wait(10) == 0


def test_mlflow_out_of_reach_stops_no_training_and_all_appears_later(
    kafka: Any, stream: dict[str, str], straight: dict[str, Any], tmp_path: Path
) -> None:
    unreachable = {"tracking_uri": "http://127.0.0.1:9", "register_every": "4000 rows", "release_timeout": "8s"}
    job = make_job(kafka, stream, tmp_path / "down", registry=unreachable)
    job.run("--until-caught-up", expect=3)
    assert comparable(job.manifest()) == comparable(straight)
    assert "run the same command again" in job.log.read_text()
    database = tmp_path / "down" / "mlflow.db"
    job.run(
        "--until-caught-up",
        "--set",
        f"registry.tracking_uri=sqlite:///{database}",
        "--set",
        "registry.release_timeout=240s",
    )
    with sqlite3.connect(database) as connection:
        assert connection.execute("select count(*) from model_versions").fetchone() == (3,)


def test_too_much_bad_input_holds_until_the_operator_accepts_it(kafka: Any, topics: Any, tmp_path: Path) -> None:
    features, labels, dead = topics("features", "labels", "dead")
    good, late = events(200)
    bad = [Record(START_MS + 200 + number, b"k", b"garbage") for number in range(100)]
    produce(kafka.bootstrap, features, good + bad)
    produce(kafka.bootstrap, labels, late)
    names = {"features": features, "labels": labels, "dead": dead}
    limits = {"hold_window": 100, "hold_share": 0.3}
    job = make_job(kafka, names, tmp_path / "hold", stream={"span": 50}, dead_letters=limits)
    process = job.start()
    hold = job.wait_for(lambda: job.status().get("hold"), process)
    assert "garbage" not in hold
    assert "--accept-bad" in hold
    assert job.status()["phase"] == "holding"
    process.send_signal(signal.SIGTERM)
    assert process.wait(10) == 0
    job.run("--until-caught-up", expect=1)
    job.run("--until-caught-up", "--accept-bad", "100")
    assert job.manifest()["counts"]["totals"]["rejected"] == 100


def test_replay_of_a_stretch_learns_what_the_topics_hold_for_it_and_twice_the_same(
    kafka: Any, stream: dict[str, str], tmp_path: Path
) -> None:
    job = make_job(kafka, stream, tmp_path / "replay")
    start, stop = START_MS + 3000, START_MS + 7000
    times = [f"2023-11-14T22:13:{20 + offset // 1000}.000+00:00" for offset in (3000, 7000)]
    results = []
    for name in ("one", "two"):
        done = evertrain(
            "replay", "-c", str(job.path), "--from", times[0], "--to", times[1], "--name", name, "-o", "json"
        )
        results.append(json.loads(done.stdout))
    first, second = results
    garbage = sum(start <= START_MS + number * 1000 < stop for number in range(GARBAGE))
    read = sum(counts["read"] for p, counts in first["counts"]["events"].items() if p.startswith(stream["features"]))
    assert read == 4000 + garbage
    assert first["rows_trained"] == 4000
    assert first["weights_sha256"] == second["weights_sha256"]
    assert first["counts"] == second["counts"]
    assert not job.state_dir.exists()  # the trainer's own state is not touched
    again = evertrain(
        "replay", "-c", str(job.path), "--from", times[0], "--to", "2023-11-14T22:13:28Z", "--name", "one", expect=2
    )
    assert "another --name" in again.stderr


def test_replay_by_offsets(kafka: Any, stream: dict[str, str], tmp_path: Path) -> None:
    job = make_job(kafka, stream, tmp_path / "offsets")
    done = evertrain(
        "replay", "-c", str(job.path), "--from", "0:100,1:200,2:300", "--to", "0:1100,1:1200,2:1300", "-o", "json"
    )
    result = json.loads(done.stdout)
    spans = {
        line["partition"]: (line["start"], line["stop"])
        for line in result["offsets"]
        if line["topic"] == stream["features"]
    }
    assert spans == {0: (100, 1100), 1: (200, 1200), 2: (300, 1300)}
    read = sum(counts["read"] for p, counts in result["counts"]["events"].items() if p.startswith(stream["features"]))
    assert read == 3000


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            {"kafka": {"bootstrap.servers": "127.0.0.1:9", "socket.connection.setup.timeout.ms": 1000}},
            "not reachable at 127.0.0.1:9",
        ),
        ({"features": {"topic": "no-such-topic"}}, "no topic 'no-such-topic'"),
    ],
)
def test_what_is_out_of_reach_at_start_is_one_clear_line(
    kafka: Any, stream: dict[str, str], tmp_path: Path, change: dict[str, Any], words: str
) -> None:
    job = make_job(kafka, stream, tmp_path / "job", **change)
    job.run(expect=3)
    lines = [line for line in job.log.read_text().splitlines() if line.startswith("evertrain: error")]
    assert len(lines) == 1
    assert words in lines[0]


def test_labels_inside_the_features_need_no_join(kafka: Any, topics: Any, tmp_path: Path) -> None:
    topic, dead = topics("labelled", "dead", partitions=2)
    features, _ = events(1000)
    records = [
        Record(r.timestamp, r.key, json.dumps({**json.loads(r.value or b""), "y": int(r.timestamp % 3 == 0)}).encode())
        for r in features
    ]
    produce(kafka.bootstrap, topic, records)
    document = job_document(tmp_path / "state", kafka.bootstrap, "inside", features={"topic": topic, "label": "y"})
    del document["labels"]
    document["dead_letters"] = {"topic": dead}
    manifest = Job(tmp_path, document).learn_all()
    assert manifest["rows_trained"] == 1000
    assert manifest["counts"]["totals"]["matched"] == 1000


def test_a_backtest_of_the_topics_says_what_the_job_would_have_measured_and_writes_nothing(
    kafka: Any, stream: dict[str, str], straight: dict[str, Any], tmp_path: Path
) -> None:
    job = make_job(kafka, stream, tmp_path / "backtest")
    files = set(job.path.parent.rglob("*"))
    stretch = ("--from", "2023-11-14T22:13:20Z", "--to", "2023-11-14T22:13:32Z")
    done = evertrain("backtest", "-c", str(job.path), *stretch, "-o", "json")
    result = json.loads(done.stdout)
    assert result["rows"] == ROWS
    assert result["metrics"] == {name: straight["metrics"][f"live/{name}"] for name in result["metrics"]}
    assert {"accuracy", "kappa", "kappa_temporal", "auc", "logloss", "calibration_error"} == result["metrics"].keys()
    assert f"{GARBAGE} rows are bad and were left out: not JSON" in done.stderr
    assert set(job.path.parent.rglob("*")) == files


def test_a_backtest_of_a_file_prints_one_json_document(tmp_path: Path) -> None:
    rng, path = np.random.default_rng(0), tmp_path / "stream.parquet"
    a, city = rng.normal(size=2000), rng.choice(["x", "y"], 2000)
    label = np.where(city == "x", a > 0, a < 0).astype(np.int32)
    pq.write_table(pa.table({"a": a, "city": city, "told": label, "label": label}), path)
    options = ("--label", "label", "--task", "binary", "--label-latency", "8", "--rows", "1500", "--drop", "told")
    result = json.loads(evertrain("backtest", str(path), *options, "--learner", "mlp", "-o", "json").stdout)
    assert result.keys() == {"rows", "metrics", "rows_per_s", "rejected", "refused", "alarms"}
    assert result["rows"] == 1500
    assert 0.6 < result["metrics"]["accuracy"] < 0.99, "learned, but not known before"
    assert result["rows_per_s"] > 0
    done = evertrain("backtest", str(path), "--label", "labels", "--task", "binary", expect=2)
    assert "error: --label labels: there is no such column, but a, city, told, label" in done.stderr
