"""The registry and its twin keep the same promises."""

import dataclasses
import math

import numpy as np
import pytest
import torch

from consumers.errors import CheckError
from pipeline.registry import MemoryRegistry, MLflowRegistry, artifact_root
from pipeline.version import Candidate, Point

pytestmark = pytest.mark.filterwarnings("ignore:::mlflow", "ignore:::torch", "ignore:::sqlalchemy")


@pytest.fixture(scope="module")
def mlflow_registry(tmp_path_factory):
    path = tmp_path_factory.mktemp("mlflow")
    return MLflowRegistry(f"sqlite:///{path}/mlflow.db", None, path / "scratch")


@pytest.fixture(params=["memory", "mlflow"])
def registry(request):
    return MemoryRegistry() if request.param == "memory" else request.getfixturevalue("mlflow_registry")


@pytest.fixture
def name(request):
    return "".join(character if character.isalnum() else "-" for character in request.node.name)


class Scorer(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(3, 1)

    def forward(self, features_NC):
        return self.linear(features_NC).squeeze(1).sigmoid()


def candidate(name, sequence, **changes):
    scorer = Scorer().eval()
    features_BC = np.random.default_rng(sequence).normal(size=(8, 3)).astype(np.float32)
    with torch.inference_mode():
        scores = scorer(torch.from_numpy(features_BC)).numpy()
    made = Candidate(
        name=name,
        lineage=f"lineage-of-{name}",
        snapshot_id=f"{name}-{sequence}",
        scorer=scorer,
        features_BC=features_BC,
        scores=scores,
        tolerance=0.0,
        columns={"numeric": [], "categorical": []},
        tags={"rows_trained": str(sequence)},
        description="Load models:/x/{version}",
        point=Point(sequence, sequence * 1000, {"live/auc": 0.7, "live/logloss": math.nan}),
    )
    return dataclasses.replace(made, **changes)


def logged(registry, name, metric):
    """(step, time, value) of every point of a metric, straight from the store."""
    lineage = f"lineage-of-{name}"
    if isinstance(registry, MemoryRegistry):
        points = registry.points[lineage]
        return [(p.step, p.time_ms, p.values[metric]) for p in points if metric in p.values]
    history = registry._client.get_metric_history(registry._run(name, lineage), metric)
    return sorted((point.step, point.timestamp, point.value) for point in history)


def status(registry, name):
    lineage = f"lineage-of-{name}"
    if isinstance(registry, MemoryRegistry):
        return registry.runs.get(lineage)
    return registry._client.get_run(registry._run(name, lineage)).info.status


def move_alias(registry, name, alias, number):
    if isinstance(registry, MemoryRegistry):
        registry.aliases(name)[alias] = number
    else:
        registry._client.set_registered_model_alias(name, alias, str(number))


def test_a_snapshot_becomes_one_version_however_often_it_is_registered(registry, name):
    assert registry.register(candidate(name, 1)) == 1
    assert registry.register(candidate(name, 1)) == 1
    (version,) = registry.versions(name)
    assert version.snapshot_id == f"{name}-1"
    assert version.lineage == f"lineage-of-{name}"
    assert version.tags["rows_trained"] == "1"
    assert version.description == "Load models:/x/1"


def test_the_newest_version_is_champion_and_the_one_before_previous(registry, name):
    registry.register(candidate(name, 1))
    assert registry.aliases(name) == {"champion": 1, "challenger": 1}
    registry.register(candidate(name, 2))
    registry.register(candidate(name, 3))
    assert registry.aliases(name) == {"champion": 3, "challenger": 3, "previous": 2}


def test_registering_an_old_snapshot_again_moves_no_alias_back(registry, name):
    for sequence in (1, 2, 1):
        registry.register(candidate(name, sequence))
    assert registry.aliases(name) == {"champion": 2, "challenger": 2, "previous": 1}


def test_an_alias_that_a_person_moved_stays_where_it_is(registry, name):
    registry.register(candidate(name, 1))
    registry.register(candidate(name, 2))
    move_alias(registry, name, "champion", 1)
    registry.register(candidate(name, 3))
    assert registry.aliases(name) == {"champion": 1, "challenger": 3, "previous": 1}


def test_a_model_that_does_not_score_as_the_trainer_did_is_refused(registry, name):
    other = candidate(name, 1)
    last_bit_off = np.nextafter(other.scores, np.float32(1))
    with pytest.raises(CheckError, match="does not score its check block"):
        registry.register(dataclasses.replace(other, scores=last_bit_off))
    assert registry.versions(name) == []


def test_a_model_trained_on_cuda_may_differ_in_the_last_bits(registry, name):
    other = candidate(name, 1)
    last_bit_off = np.nextafter(other.scores, np.float32(1))
    assert registry.register(dataclasses.replace(other, scores=last_bit_off, tolerance=1e-5)) == 1


def test_points_sent_again_are_logged_once_and_infinite_values_never(registry, name):
    lineage = f"lineage-of-{name}"
    points = [Point(step, step * 1000, {"auc": step / 10, "r2": -math.inf}) for step in (1, 2, 3)]
    registry.log(name, lineage, points[:2])
    registry.log(name, lineage, points)
    assert logged(registry, name, "auc") == [(1, 1000, 0.1), (2, 2000, 0.2), (3, 3000, 0.3)]
    assert logged(registry, name, "r2") == []


def test_a_run_is_running_until_it_is_finished_and_again_when_resumed(registry, name):
    lineage = f"lineage-of-{name}"
    registry.finish(name, lineage)  # there is none: nothing happens
    registry.resume(name, lineage)
    assert status(registry, name) == "RUNNING"
    registry.finish(name, lineage)
    assert status(registry, name) == "FINISHED"
    registry.resume(name, lineage)
    assert status(registry, name) == "RUNNING"


def test_a_lineage_has_one_run_also_for_a_registry_that_remembers_nothing(mlflow_registry, name):
    first = mlflow_registry._run(name, "lineage")
    mlflow_registry._runs.clear()
    assert mlflow_registry._run(name, "lineage") == first


def test_a_duplicate_of_our_own_is_deleted_and_the_lowest_number_stays(mlflow_registry, name):
    mlflow_registry.register(candidate(name, 1))
    client = mlflow_registry._client
    original = client.get_model_version(name, "1")
    client.create_model_version(name, original.source, tags=original.tags)
    assert mlflow_registry.register(candidate(name, 1)) == 1
    assert [version.number for version in mlflow_registry.versions(name)] == [1]


def test_files_of_a_new_experiment_lie_beside_a_sqlite_database(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    beside = (tmp_path / "mlartifacts").as_uri()
    assert artifact_root("sqlite:///mlflow.db", None) == beside
    assert artifact_root(f"sqlite:///{tmp_path}/mlflow.db", None) == beside
    assert artifact_root("http://localhost:5000", None) is None
    assert artifact_root("http://localhost:5000", "s3://bucket/path") == "s3://bucket/path"
    assert artifact_root("sqlite:///mlflow.db", "elsewhere") == (tmp_path / "elsewhere").as_uri()
