"""The real releaser process brings what hand-made snapshots owe to Kafka and MLflow, once."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import mlflow
import numpy as np
import pytest
import safetensors.torch
import torch
from confluent_kafka import Consumer, TopicPartition

import pipeline
from consumers.broker import create_topics
from pipeline.releaser import SINKS, read_marker, released
from tests.mlflow_server import MLflowServer
from tests.releasing import LINEAGE, REJECT, WAIT_S, Trainer, client_of, logged_steps, mock_kafka, read_all, runs, until
from tests.webhook_server import Answering

pytestmark = [
    pytest.mark.filterwarnings("ignore:::mlflow", "ignore:::torch", "ignore::ResourceWarning"),
    pytest.mark.timeout(600),  # a module's fixture counts as its first test: several processes that import torch
]

NAME = "release"
kafka_mock = pytest.fixture(scope="module")(mock_kafka)


@pytest.fixture(scope="module", params=["sqlite", "server"])
def trainer(request, tmp_path_factory, kafka, kafka_mock):
    """Four snapshots, released through a disaster, and once more after all markers were lost.

    SQLite comes with a real Kafka, the server with the mock cluster.
    """
    path = tmp_path_factory.mktemp(request.param)
    if request.param == "sqlite":
        server = None
        create_topics(kafka.bootstrap, {"release.features": 2}, {"retention.ms": "-1"})
        trainer = Trainer(path, kafka.bootstrap, f"sqlite:///{path}/mlflow.db")
    else:
        server = MLflowServer(path)
        trainer = Trainer(path, kafka_mock, server.uri)
    trainer.commit(0)
    trainer.start_releaser()
    trainer.commit(1, version=True)
    trainer.commit(2, rejects=[REJECT, REJECT | {"row": 1, "key": None, "value": None}])
    if server:
        live_without_mlflow(trainer)
        server.start()
    else:
        survive_a_kill(trainer)
    trainer.commit(3, version=True)
    assert trainer.releaser.drain(WAIT_S), trainer.releaser.status()
    trainer.releaser.close()
    assert released(trainer.state_dir) == 3
    for sink in SINKS:
        (trainer.state_dir / "release" / sink).unlink()
    assert released(trainer.state_dir) == -1
    trainer.start_releaser()
    assert trainer.releaser.drain(WAIT_S), trainer.releaser.status()
    trainer.releaser.end(6)
    yield trainer
    if server:
        server.stop()


def survive_a_kill(trainer):
    first = trainer.releaser.pid
    os.kill(first, 9)
    lines = until(lambda: trainer.releaser.pid not in (None, first), trainer)
    assert any("exit code -9" in line for line in lines)


def live_without_mlflow(trainer):
    lines = until(lambda: read_marker(trainer.state_dir, "dead_letters") == 2, trainer)
    lines += until(lambda: trainer.releaser.status()["sinks"]["registry"]["error"], trainer)
    assert any("training goes on" in line for line in lines)
    assert read_marker(trainer.state_dir, "metrics") == -1


@pytest.fixture
def new_trainer(tmp_path, kafka_mock):
    trainer = Trainer(tmp_path, kafka_mock, f"sqlite:///{tmp_path}/mlflow.db")
    yield trainer
    trainer.releaser.close()


def test_everything_owed_appears_once_whatever_was_killed_down_or_lost(trainer):
    client = client_of(trainer)
    versions = client.search_model_versions(f"name = '{NAME}'")
    assert sorted(version.tags["snapshot_id"] for version in versions) == [f"{LINEAGE}-1", f"{LINEAGE}-3"]
    aliases = client.get_registered_model(NAME).aliases
    assert {alias: int(number) for alias, number in aliases.items()} == {
        "champion": 2,
        "challenger": 2,
        "previous": 1,
    }
    assert logged_steps(client) == [1000, 2000, 3000]
    (run,) = runs(client)
    assert run.info.status == "FINISHED"
    assert len(client.search_logged_models([run.info.experiment_id])) == 2


def test_a_version_says_what_it_is_made_of(trainer):
    version = client_of(trainer).get_model_version_by_alias(NAME, "previous")
    assert json.loads(version.tags["offsets"]) == {"release.features[0]": "0-100"}
    assert version.tags["lineage"] == LINEAGE
    assert version.tags["rows_trained"] == "1000"
    assert version.tags["watermark"] == "2013-01-01T00:26:40+00:00"
    assert version.tags["config_sha256"] == trainer.job.sha256()
    assert version.tags["live/auc"] == "0.61"
    assert "AUC, all rows 0.6100 0.6000" in " ".join(version.description.split())


def test_a_version_loaded_back_scores_as_the_trainer_did(trainer):
    features_BC, scores_B = trainer.check_block(3)
    client_of(trainer)
    uri = f"models:/{NAME}@champion"
    loaded, function = mlflow.pytorch.load_model(uri), mlflow.pyfunc.load_model(uri)
    with torch.inference_mode():
        assert loaded(features_BC).numpy().tobytes() == scores_B.numpy().tobytes()
        assert function.predict(features_BC.numpy()).tobytes() == scores_B.numpy().tobytes()
        for rows in (1, 3, 1000):
            more_NC = features_BC.repeat(16, 1)[:rows]
            expected_N = scores_B.repeat(16)[:rows]
            np.testing.assert_allclose(loaded(more_NC), expected_N, rtol=0, atol=1e-6)
            np.testing.assert_allclose(function.predict(more_NC.numpy()), expected_N, rtol=0, atol=1e-6)


def test_the_code_in_a_description_scores_rows(trainer):
    description = client_of(trainer).get_model_version_by_alias(NAME, "champion").description
    code = description.partition("```python\n")[2].partition("```")[0]
    names = {"rows": [{"distance": 100, "delay": None, "carrier": "AA"}, {"distance": 9, "carrier": 7}]}
    exec(code, names)
    assert names["scores"].shape == (2,)
    assert pipeline.encode(names["rows"], names["columns"]).shape == (2, 3)


def test_a_dead_letter_carries_its_coordinates_its_reason_and_the_original_bytes(trainer):
    letters = {dict(letter.headers())["evertrain.id"]: letter for letter in read_all(trainer, "release.dead")}
    assert letters.keys() == {b"topic-id:1:17:0", b"topic-id:1:17:1"}
    first, second = letters[b"topic-id:1:17:0"], letters[b"topic-id:1:17:1"]
    assert first.key() == REJECT["key"]
    assert first.value() == REJECT["value"]
    assert dict(first.headers()) == {
        "evertrain.id": b"topic-id:1:17:0",
        "topic": b"release.features",
        "partition": b"1",
        "offset": b"17",
        "row": b"0",
        "reason": REJECT["reason"].encode(),
        "value_bytes": b"18",
        "timestamp": b"1357000000000",
        "lineage": LINEAGE.encode(),
    }
    assert second.key() is None
    assert second.value() is None


def test_the_group_shows_how_far_the_learner_is(trainer):
    consumer = Consumer(trainer.job.kafka | {"group.id": f"evertrain-{NAME}"})
    (committed,) = consumer.committed([TopicPartition("release.features", 0)], timeout=10)
    consumer.close()
    assert committed.offset == 300


def test_a_run_is_running_while_a_trainer_lives_and_finished_after_it(new_trainer):
    trainer = new_trainer
    trainer.commit(0)
    trainer.start_releaser()
    until(lambda: read_marker(trainer.state_dir, "metrics") == 0, trainer)
    client = client_of(trainer)
    assert [run.info.status for run in runs(client)] == ["RUNNING"]
    pid = trainer.releaser.pid
    trainer.releaser.end(6)
    assert trainer.releaser.poll() is None
    assert [run.info.status for run in runs(client)] == ["FINISHED"]
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    trainer.start_releaser()
    until(lambda: [run.info.status for run in runs(client)] == ["RUNNING"], trainer)


def test_a_model_that_does_not_score_its_check_block_waits_with_a_clear_error(new_trainer):
    blob = new_trainer.version_blob
    new_trainer.version_blob = lambda sequence: last_bit_off(blob(sequence))
    new_trainer.commit(0, version=True)
    new_trainer.start_releaser()
    until(lambda: new_trainer.releaser.status()["sinks"].get("registry", {}).get("error"), new_trainer)
    error = new_trainer.releaser.status()["sinks"]["registry"]["error"]
    assert f"{LINEAGE}-0: the exported model does not score its check block as the trainer did" in error
    assert read_marker(new_trainer.state_dir, "registry") == -1
    assert read_marker(new_trainer.state_dir, "metrics") == 0


def last_bit_off(blob):
    tensors = safetensors.torch.load(blob)
    tensors["check.scores"] = torch.nextafter(tensors["check.scores"], torch.ones(()))
    return safetensors.torch.save(tensors)


def test_the_releaser_dies_with_a_killed_trainer_and_minds_no_signal_before(tmp_path):
    code = (
        "import sys, time; from pathlib import Path; from pipeline.releaser import Releaser;"
        "releaser = Releaser(Path(sys.argv[1])); releaser.start(0); print(releaser.pid, flush=True); time.sleep(600)"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE) as trainer:
        pid = int(trainer.stdout.readline())
        wanted = 1 << (signal.SIGTERM - 1) | 1 << (signal.SIGINT - 1)
        while int(_field(pid, "SigIgn"), 16) & wanted != wanted:
            time.sleep(0.05)
        os.kill(pid, signal.SIGTERM)
        os.kill(pid, signal.SIGINT)
        assert _field(pid, "State")[0] in "RSD"
        trainer.kill()
    while _alive(pid):
        time.sleep(0.05)


def _field(pid, name):
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(line for line in lines if line.startswith(name + ":")).split(":")[1].strip()


def _alive(pid):
    try:
        return _field(pid, "State")[0] != "Z"
    except FileNotFoundError:
        return False


def test_a_webhook_gets_an_alarm_until_it_takes_it(tmp_path, kafka_mock):
    webhook = Answering()
    webhook.answers = [503, 200]
    trainer = Trainer(
        tmp_path, kafka_mock, f"sqlite:///{tmp_path}/mlflow.db", "told", on_drift={"webhook": webhook.address}
    )
    trainer.commit(0)
    trainer.start_releaser()
    trainer.commit(1, alarms=[{"family": "concept", "row": 7, "done": ["rewarm"]}])
    try:
        lines = until(lambda: read_marker(trainer.state_dir, "alarms") == 1, trainer)
    finally:
        trainer.releaser.close()
        webhook.stop()
    expected = {"id": f"{LINEAGE}-7-concept", "name": "told", "lineage": LINEAGE, "family": "concept", "row": 7}
    assert webhook.got == [(f"{LINEAGE}-7-concept", {**expected, "done": ["rewarm"]})] * 2
    assert any("on_drift.webhook answered 503" in line for line in lines)
