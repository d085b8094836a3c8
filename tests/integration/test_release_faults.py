"""MLflow and Kafka fail in every way there is: afterwards everything that was owed is there once."""

import itertools
import os
import random
import signal
import sqlite3
import sys
from pathlib import Path

import mlflow
import numpy as np
import pytest
import torch
from mlflow.models import Model

from pipeline import releaser
from pipeline.config import DeadLettersConfig
from pipeline.registry import MLflowRegistry
from pipeline.releaser import Releaser, read_marker, released
from pipeline.store import LocalStore
from pipeline.version import Candidate, Point
from tests.http_proxy import FINE, Fault, Proxy
from tests.mlflow_server import MLflowServer
from tests.releasing import LINEAGE, REJECT, WAIT_S, Trainer, logged_steps, mock_kafka, read_all, runs, until

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:::mlflow", "ignore:::torch", "ignore::ResourceWarning"),
    pytest.mark.timeout(600),  # each story starts processes that import torch, on a machine that may be busy
]

SEED = 20_261_124
kafka_mock = pytest.fixture(scope="module")(mock_kafka)
_numbers = itertools.count()


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    server = MLflowServer(tmp_path_factory.mktemp("mlflow")).start()
    yield server
    server.stop()


@pytest.fixture
def proxy(server):
    proxy = Proxy(server.uri)
    yield proxy
    proxy.close()


@pytest.fixture
def client(server):
    return mlflow.MlflowClient(server.uri, server.uri)


@pytest.fixture
def hasty(monkeypatch):
    """A releaser that waits shorter than a real one between attempts."""
    monkeypatch.setattr(releaser, "_COMMAND", (sys.executable, "-m", "tests.hasty_release"))
    monkeypatch.setattr(releaser, "_RESTART_S", (0.1, 0.5))


@pytest.fixture
def trainer(tmp_path, proxy, kafka_mock, hasty):
    trainer = Trainer(tmp_path, kafka_mock, proxy.uri, f"job {next(_numbers)}")
    yield trainer
    trainer.releaser.close()


def wait_for_release(trainer, sequence):
    return until(lambda: released(trainer.state_dir) == sequence, trainer)


def sink(trainer, name):
    return trainer.releaser.status()["sinks"].get(name) or {"error": None, "retry_at_ms": None}


def wait_for_error(trainer, name, part):
    """Until the sink's status tells of an error and of the next attempt."""

    def told():
        status = sink(trainer, name)
        return status["error"] and part in status["error"] and status["retry_at_ms"] > 0

    return until(told, trainer)


def versions(client, name):
    found = client.search_model_versions(f"name = '{name}'")
    return {int(version.version): version.tags["snapshot_id"] for version in found}


def owed_once(client, name, steps, sequences, lineage=LINEAGE):
    """One run, one point for each step, one version and one model for each snapshot that owed one."""
    assert logged_steps(client, name) == steps
    assert sorted(versions(client, name).values()) == [f"{lineage}-{sequence}" for sequence in sequences]
    experiment = client.get_experiment_by_name(name)
    models = client.search_logged_models([experiment.experiment_id])
    assert sorted(model.tags["snapshot_id"] for model in models) == [f"{lineage}-{sequence}" for sequence in sequences]


# Any request may fail, in any way -------------------------------------------------------------------------------


class Always(torch.nn.Module):
    def forward(self, features_NC):
        return features_NC[:, 0]


def small_candidate(name):
    features_BC = np.zeros((2, 1), np.float32)
    return Candidate(
        name=name,
        lineage=LINEAGE,
        snapshot_id=f"{LINEAGE}-1",
        scorer=Always(),
        features_BC=features_BC,
        scores=features_BC[:, 0],
        tolerance=0.0,
        columns={},
        tags={"offsets": "{}"},
        description="Load models:/x/{version}",
        point=Point(1000, 7, {"live/auc": 0.5}),
    )


@pytest.fixture
def small_export(monkeypatch):
    """Exporting a real module takes a second, and is not what fails here."""

    def export(self, candidate, path):
        (path / "data").mkdir(parents=True)
        (path / "data" / "model.pt2").write_bytes(bytes(10_000))
        return Model()

    monkeypatch.setattr(MLflowRegistry, "_export", export)


def release_all(proxy, scratch, name):
    """What the releaser does with one snapshot, attempt by attempt; returns the number of attempts."""
    for attempt in itertools.count(1):
        registry = MLflowRegistry(proxy.uri, None, scratch)  # remembers nothing, as after a failure or a kill
        try:
            registry.resume(name, LINEAGE)
            registry.log(name, LINEAGE, [Point(1000, 7, {"live/auc": 0.5})])
            assert registry.register(small_candidate(name)) == 1
            registry.finish(name, LINEAGE)
            return attempt
        except mlflow.MlflowException:
            assert attempt < 5


def at(proxy, number, fault):
    """The request of that number, counted from 0, meets the fault."""
    counter = itertools.count()
    proxy.rule = lambda method, path: fault if next(counter) == number else FINE


def changing(requests):
    """Numbers of the requests that change something at the server."""
    return [n for n, (method, path) in enumerate(requests) if method != "GET" and "search" not in path]


def test_whichever_answer_is_lost_everything_is_there_once(proxy, client, small_export, tmp_path):
    assert release_all(proxy, tmp_path, "nothing lost") == 1
    requests = list(proxy.seen)
    for number in changing(requests):
        name = f"answer {number} lost"
        at(proxy, number, Fault(lost=True))
        assert release_all(proxy, tmp_path, name) == 2, requests[number]
        owed_once(client, name, [1000], [1])
        (version,) = client.search_model_versions(f"name = '{name}'")
        assert version.description == "Load models:/x/1"
        assert client.get_registered_model(name).aliases == {"champion": "1", "challenger": "1"}


FAULTS = [Fault(refused=True), Fault(read=50), Fault(status=500), Fault(status=503), Fault(status=429)]


@pytest.mark.parametrize("fault", FAULTS, ids=["refused", "cut", "500", "503", "429"])
def test_a_request_that_is_not_done_is_made_again_by_the_next_attempt(fault, proxy, client, small_export, tmp_path):
    name = f"job {next(_numbers)}"
    proxy.once(fault, "POST", "model-versions/create")
    assert release_all(proxy, tmp_path, name) == 2
    owed_once(client, name, [1000], [1])


def test_an_upload_may_take_long_to_be_answered(proxy, client, small_export, tmp_path):
    proxy.rule = lambda method, path: Fault(wait_s=7.0) if path.endswith("model.pt2") else FINE
    assert release_all(proxy, tmp_path, "slow upload") == 1


def test_an_upload_that_is_cut_leaves_no_half_model(proxy, client, small_export, tmp_path):
    proxy.once(Fault(read=5_000), "PUT", "model.pt2")
    assert release_all(proxy, tmp_path, "cut upload") == 2
    owed_once(client, "cut upload", [1000], [1])


# The releaser process through outages ---------------------------------------------------------------------------


def test_mlflow_down_failing_or_slow_is_waited_for_and_nothing_else_waits(trainer, proxy, client):
    state_dir, name = trainer.state_dir, trainer.name
    proxy.always(Fault(refused=True))  # down at the start
    trainer.commit(0)
    trainer.start_releaser()
    trainer.commit(1, version=True)
    lines = wait_for_error(trainer, "registry", "Connection reset")
    lines += wait_for_error(trainer, "metrics", "Connection reset")
    assert sum("metrics of snapshot 0 wait (training goes on)" in line for line in lines) == 1
    for sequence, status in enumerate((500, 503, 429), start=2):
        proxy.always(Fault(status=status))
        trainer.commit(sequence)
        wait_for_error(trainer, "metrics", str(status))
    proxy.always(Fault(wait_s=7.0))
    trainer.commit(5, rejects=[REJECT])
    wait_for_error(trainer, "metrics", "timed out")
    until(lambda: read_marker(state_dir, "dead_letters") == 5, trainer)
    until(lambda: read_marker(state_dir, "mirror") == 5, trainer)
    assert released(state_dir) == -1
    proxy.always(FINE)
    lines = wait_for_release(trainer, 5)
    assert any("metrics: released again, from snapshot" in line for line in lines)
    assert sink(trainer, "metrics") == {"released": 5, "error": None, "retry_at_ms": None}
    owed_once(client, name, [1000, 2000, 3000, 4000, 5000], [1])


def test_an_answer_that_trickles_in_ends_the_process_and_the_next_one_goes_on(trainer, proxy, client, monkeypatch):
    monkeypatch.setenv("HASTY_ATTEMPT_S", "3")
    proxy.rule = lambda method, path: Fault(trickle_s=0.5) if "get-by-name" in path else FINE
    trainer.commit(0)
    trainer.start_releaser()
    monkeypatch.setenv("HASTY_ATTEMPT_S", "600")
    lines = until(lambda: any("get-by-name" in path for _, path in proxy.seen), trainer)
    lines += until(lambda: trainer.releaser.pid is None, trainer)
    proxy.always(FINE)
    lines += wait_for_release(trainer, 0)
    assert any("metrics: no answer in 3 s" in line for line in lines)
    assert [run.info.status for run in runs(client, trainer.name)] == ["RUNNING"]


def test_a_locked_database_is_waited_for_and_late_effects_are_not_doubled(trainer, server, proxy, client):
    experiment = client.create_experiment(trainer.name)
    trainer.commit(0)
    trainer.commit(1, version=True)
    database = sqlite3.connect(server.database, isolation_level=None)
    database.execute("BEGIN IMMEDIATE")  # reading goes on, writing waits: longer than the releaser waits for it
    trainer.start_releaser()
    wait_for_error(trainer, "metrics", "timed out")
    until(lambda: sum("runs/create" in path for _, path in proxy.seen) > 1, trainer)  # two wait in the server now
    database.execute("ROLLBACK")
    database.close()
    wait_for_release(trainer, 1)
    trainer.releaser.end(20)
    trainer.start_releaser()  # what came late is cleaned up by the next process at the latest
    trainer.commit(2)
    wait_for_release(trainer, 2)
    assert len(client.search_runs([experiment])) == 1
    owed_once(client, trainer.name, [1000, 2000], [1])


def test_a_wiped_server_gets_all_that_is_still_owed_and_nothing_again(trainer, server, proxy, client):
    trainer.commit(0)
    trainer.start_releaser()
    trainer.commit(1)
    wait_for_release(trainer, 1)
    proxy.always(Fault(refused=True))
    server.wipe()
    trainer.commit(2, version=True)
    wait_for_error(trainer, "registry", "Connection reset")
    proxy.always(FINE)
    wait_for_release(trainer, 2)
    owed_once(client, trainer.name, [2000], [2])
    assert [run.info.status for run in runs(client, trainer.name)] == ["RUNNING"]


def test_what_a_person_deletes_under_a_running_job_stays_deleted_and_the_job_goes_on(trainer, client):
    name = trainer.name
    trainer.commit(0)
    trainer.start_releaser()
    trainer.commit(1, version=True)
    wait_for_release(trainer, 1)
    (first,) = runs(client, name)
    client.delete_run(first.info.run_id)
    client.delete_registered_model_alias(name, "challenger")
    trainer.commit(2, version=True)
    wait_for_release(trainer, 2)
    assert logged_steps(client, name) == [2000]
    assert client.get_run(first.info.run_id).info.lifecycle_stage == "deleted"
    assert client.get_registered_model(name).aliases == {"champion": "2", "previous": "1"}
    client.delete_experiment(client.get_experiment_by_name(name).experiment_id)
    trainer.commit(3)
    wait_for_release(trainer, 3)
    assert logged_steps(client, f"{name} (2)") == [3000]


def test_a_point_that_mlflow_refuses_holds_up_the_metrics_alone_until_a_person_gives_it_up(trainer, proxy, client):
    state_dir = trainer.state_dir
    proxy.rule = lambda method, path: Fault(status=400) if "log-batch" in path else FINE
    trainer.commit(0)
    trainer.start_releaser()
    trainer.commit(1)
    trainer.commit(2)
    lines = until((state_dir / "release" / "metrics").exists, trainer)
    lines += wait_for_refusals(trainer, 2)
    path = next(line for line in lines if "are refused" in line).rpartition("rm ")[2]
    assert read_marker(state_dir, "metrics") == 0
    assert read_marker(state_dir, "registry") == 2
    Path(path).unlink()
    lines = until(lambda: read_marker(state_dir, "metrics") == 1, trainer)
    assert any(f"metrics of snapshot 1 are passed over: {path}" in line for line in lines)
    proxy.always(FINE)
    wait_for_release(trainer, 2)
    assert logged_steps(client, trainer.name) == [2000]


def wait_for_refusals(trainer, count):
    lines = []
    while sum("metrics of snapshot 1 are refused" in line for line in lines) < count:
        lines += until(lambda: True, trainer)
    return lines


def test_killed_at_random_requests_the_releaser_does_nothing_twice(trainer, proxy, client):
    random.seed(SEED)
    trainer.commit(0)
    trainer.commit(1, version=True, rejects=[REJECT])
    trainer.commit(2)
    trainer.start_releaser()
    # While it logs, while it registers, and not long after its next start: what was done is not asked for again.
    for requests in (random.randrange(1, 20), random.randrange(20, 36), random.randrange(3, 14)):
        killed = kill_after(proxy, trainer, requests)
        until(lambda killed=killed: killed or released(trainer.state_dir) == 2, trainer)
        assert killed, f"all was released before request {requests}"
    proxy.always(FINE)
    wait_for_release(trainer, 2)
    owed_once(client, trainer.name, [1000, 2000], [1])


def kill_after(proxy, trainer, requests):
    """Kills the releaser at one of its next requests; returns a list that is filled when that has happened."""
    counter, killed = itertools.count(1), []

    def rule(method, path):
        if next(counter) == requests:
            os.kill(trainer.releaser.pid, 9)
            killed.append(path)
        return FINE

    proxy.rule = rule
    return killed


def test_a_mirror_that_cannot_be_written_holds_up_nothing_else(tmp_path, proxy, kafka_mock, hasty):
    target = tmp_path / "mirror"
    target.write_text("in the way")
    trainer = Trainer(tmp_path, kafka_mock, proxy.uri, f"job {next(_numbers)}", snapshot={"mirror": str(target)})
    state = dict.fromkeys(("arrays", "document", "ledger"), trainer.store.put([b"state"])) | {"slabs": []}
    trainer.commit(0, anchor=0, blobs=state)
    trainer.start_releaser()
    try:
        trainer.commit(1)
        wait_for_release(trainer, 1)
        wait_for_error(trainer, "mirror", str(target))
        assert not trainer.releaser.drain(1)
        target.unlink()
        assert trainer.releaser.drain(WAIT_S)
        assert LocalStore(target).manifest(0) == trainer.store.manifest(0)
        assert LocalStore(target).get(state["arrays"]) == b"state"
    finally:
        trainer.releaser.close()


# Whose versions these are ---------------------------------------------------------------------------------------


def test_nothing_is_released_on_top_of_another_lineage(trainer, proxy, client, tmp_path, kafka_mock):
    trainer.commit(0)
    trainer.start_releaser()
    trainer.commit(1, version=True)
    wait_for_release(trainer, 1)
    trainer.releaser.end(20)
    lost = Trainer(tmp_path / "lost", kafka_mock, proxy.uri, trainer.name)
    lost.lineage = "fedcba9876543210"
    proxy.always(Fault(refused=True))
    lost.commit(0)
    lost.commit(1, version=True)
    lost.start_releaser()
    try:
        wait_for_error(lost, "metrics", "Connection reset")
        assert lost.releaser.refusal is None  # as long as MLflow cannot be asked, training goes on
        proxy.always(FINE)
        until(lambda: lost.releaser.refusal, lost)
        until(lambda: "state directory lost" in (sink(lost, "registry")["error"] or ""), lost)
        assert "--new-lineage" in lost.releaser.refusal
        lost.releaser.end(20)
        owed_once(client, trainer.name, [1000], [1])
        assert [run.info.status for run in runs(client, trainer.name)] == ["FINISHED"]
        lost.commit(2, new_lineage=True)
        lost.releaser = Releaser(lost.state_dir)
        lost.start_releaser()
        until(lambda: read_marker(lost.state_dir, "metrics") == 2, lost)
        assert lost.releaser.refusal is None
        assert len(runs(client, trainer.name)) == 2
    finally:
        lost.releaser.close()


# Kafka ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def kafka_trainer(tmp_path, kafka, topics, hasty):
    """With a real Kafka; MLflow is a file and plays no part."""
    (features,) = topics("release.features")
    tables = {"dead_letters": {"topic": f"{features}.dead"}}
    trainer = Trainer(tmp_path, kafka.bootstrap, f"sqlite:///{tmp_path}/mlflow.db", features=features, **tables)
    yield trainer
    trainer.releaser.close()


def dead_letter_ids(trainer):
    letters = read_all(trainer, trainer.job.dead_letters.topic)
    return {dict(letter.headers())["evertrain.id"] for letter in letters}


def test_dead_letters_wait_for_a_frozen_broker_and_for_a_topic_that_can_be_made(kafka_trainer, kafka):
    trainer, good = kafka_trainer, kafka_trainer.job
    os.kill(kafka.pid, signal.SIGSTOP)
    try:
        trainer.commit(0, rejects=[REJECT])
        trainer.start_releaser()
        wait_for_error(trainer, "dead_letters", "Kafka cannot be reached")
    finally:
        os.kill(kafka.pid, signal.SIGCONT)
    until(lambda: read_marker(trainer.state_dir, "dead_letters") == 0, trainer)
    trainer.job = good.model_copy(update={"dead_letters": DeadLettersConfig(topic="not a topic!")})
    trainer.commit(1, rejects=[REJECT | {"offset": 18}])
    wait_for_error(trainer, "dead_letters", "could not be created")
    until(lambda: read_marker(trainer.state_dir, "metrics") == 1, trainer)
    trainer.job = good  # a corrected job file: the newest snapshot's addresses count
    trainer.commit(2, rejects=[REJECT | {"offset": 19}])
    until(lambda: read_marker(trainer.state_dir, "dead_letters") == 2, trainer)
    assert dead_letter_ids(trainer) == {b"topic-id:1:17:0", b"topic-id:1:18:0", b"topic-id:1:19:0"}
