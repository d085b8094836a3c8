"""The registry and its twin keep the same promises."""

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from consumers.errors import CheckError
from pipeline.inmemory import MemoryRegistry
from pipeline.lineage import LineageError, check_lineage
from pipeline.registry import MLflowRegistry
from pipeline.tracking import artifact_root
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
        snapshot_id=f"lineage-of-{name}-{sequence}",
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


def delete_alias(registry, name, alias):
    if isinstance(registry, MemoryRegistry):
        del registry.aliases(name)[alias]
    else:
        registry._client.delete_registered_model_alias(name, alias)


def delete_version(registry, name, number):
    if isinstance(registry, MemoryRegistry):
        registry.delete_version(name, number)
    else:
        registry._client.delete_model_version(name, str(number))


def manifest(name, sequence, **changes):
    """What the lineage check reads of the newest snapshot's."""
    made = {"name": name, "lineage": f"lineage-of-{name}", "snapshot_id": f"lineage-of-{name}-{sequence}"}
    return made | {"sequence": sequence, "rows_trained": 100 * sequence} | changes


def test_a_snapshot_becomes_one_version_however_often_it_is_registered(registry, name):
    assert registry.register(candidate(name, 1)) == 1
    assert registry.register(candidate(name, 1)) == 1
    (version,) = registry.versions(name)
    assert version.snapshot_id == f"lineage-of-{name}-1"
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


def test_an_alias_that_a_person_deleted_is_not_set_again(registry, name):
    registry.register(candidate(name, 1))
    delete_alias(registry, name, "champion")
    registry.register(candidate(name, 2))
    assert registry.aliases(name) == {"challenger": 2}


def test_a_version_that_a_person_deleted_stays_deleted_and_the_next_one_is_champion(registry, name):
    registry.register(candidate(name, 1))
    registry.register(candidate(name, 2))
    delete_version(registry, name, 2)
    assert registry.aliases(name) == {"previous": 1}
    assert registry.register(candidate(name, 2)) is None
    assert registry.register(candidate(name, 3)) == 3
    assert [version.number for version in registry.versions(name)] == [1, 3]
    assert registry.aliases(name) == {"champion": 3, "challenger": 3, "previous": 1}


def test_the_newest_version_is_found_by_lineage_and_by_name(registry, name):
    assert registry.newest(name) is None
    registry.register(candidate(name, 1))
    registry.register(candidate(name, 2, lineage="other", snapshot_id="other-2"))
    assert registry.newest(name).snapshot_id == "other-2"
    assert registry.newest(name, f"lineage-of-{name}").snapshot_id == f"lineage-of-{name}-1"
    assert registry.newest(name, "unknown") is None


def test_a_new_lineage_of_a_name_that_has_versions_is_refused_unless_the_user_said_so(registry, name, tmp_path):
    lost = manifest(name, 0, lineage="new", snapshot_id="new-0")
    check_lineage(registry, lost, tmp_path)  # nothing was ever released
    registry.register(candidate(name, 4))
    with pytest.raises(LineageError, match="was the state directory lost") as refusal:
        check_lineage(registry, lost, tmp_path)
    for told in ("version 1", f"lineage-of-{name}-4", str(tmp_path), "--new-lineage"):
        assert told in str(refusal.value)
    check_lineage(registry, lost | {"new_lineage": True}, tmp_path)
    check_lineage(registry, lost | {"ancestors": ["older", f"lineage-of-{name}"]}, tmp_path)
    with pytest.raises(LineageError):
        check_lineage(registry, lost | {"ancestors": ["older"]}, tmp_path)
    registry.register(candidate(name, 5, lineage="new", snapshot_id="new-5"))
    check_lineage(registry, manifest(name, 5, lineage="new", snapshot_id="new-5"), tmp_path)  # it is known by now


def test_a_state_directory_older_than_what_was_released_is_refused(registry, name, tmp_path):
    registry.register(candidate(name, 4))
    check_lineage(registry, manifest(name, 4), tmp_path)
    with pytest.raises(LineageError, match="restored from an older copy") as refusal:
        check_lineage(registry, manifest(name, 3), tmp_path)
    for told in (f"version 1, made of snapshot lineage-of-{name}-4", str(tmp_path), "--rollback-to 3"):
        assert told in str(refusal.value)


def test_metrics_also_tell_that_a_state_directory_is_older(registry, name, tmp_path):
    registry.log(name, f"lineage-of-{name}", [Point(400, 1, {"auc": 0.5})])
    check_lineage(registry, manifest(name, 4), tmp_path)
    with pytest.raises(LineageError, match="up to row 400"):
        check_lineage(registry, manifest(name, 3), tmp_path)


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


def test_a_duplicate_that_came_late_is_deleted_with_the_next_version(mlflow_registry, name):
    mlflow_registry.register(candidate(name, 1))
    client = mlflow_registry._client
    original = client.get_model_version(name, "1")
    client.create_model_version(name, original.source, tags=original.tags)
    client.create_model_version(name, original.source)  # a person's: left alone
    client.create_model_version(name, original.source)
    mlflow_registry.register(candidate(name, 2))
    assert [version.number for version in mlflow_registry.versions(name)] == [1, 3, 4, 5]


def test_a_run_that_a_person_deleted_stays_deleted_and_a_new_one_goes_on(mlflow_registry, name):
    registry, lineage = mlflow_registry, f"lineage-of-{name}"
    registry.log(name, lineage, [Point(1, 1, {"auc": 0.1})])
    deleted = registry._run(name, lineage)
    registry._client.delete_run(deleted)
    registry._runs.clear()  # the failure that it makes
    registry.log(name, lineage, [Point(2, 2, {"auc": 0.2})])
    assert registry._run(name, lineage) != deleted
    assert registry._client.get_run(deleted).info.lifecycle_stage == "deleted"
    assert logged(registry, name, "auc") == [(2, 2, 0.2)]


def test_of_several_runs_of_a_lineage_the_one_with_points_stays(mlflow_registry, name):
    registry, lineage = mlflow_registry, f"lineage-of-{name}"
    registry.log(name, lineage, [Point(1, 1, {"auc": 0.1})])
    first, experiment = registry._run(name, lineage), registry._experiment(name)
    tags = {"evertrain.lineage": lineage}
    late = registry._client.create_run(experiment, start_time=1, run_name="late", tags=tags).info.run_id
    registry._runs.clear()
    assert registry._run(name, lineage) == first
    assert registry._client.get_run(late).info.lifecycle_stage == "deleted"


def test_an_experiment_that_a_person_deleted_stays_deleted_and_the_next_one_has_a_number(mlflow_registry, name):
    registry, client = mlflow_registry, mlflow_registry._client
    registry.register(candidate(name, 1))
    client.delete_experiment(client.get_experiment_by_name(name).experiment_id)
    registry._runs.clear()
    assert registry.register(candidate(name, 2)) == 2
    registry.log(name, f"lineage-of-{name}", [Point(3, 3, {"auc": 0.3})])
    assert client.get_experiment_by_name(name).lifecycle_stage == "deleted"
    again = client.get_experiment_by_name(f"{name} (2)")
    assert registry._experiment(name) == again.experiment_id
    assert len(client.search_runs([again.experiment_id])) == 1


def test_a_registered_model_that_a_person_deleted_is_made_anew_for_the_next_version(mlflow_registry, name):
    mlflow_registry.register(candidate(name, 1))
    mlflow_registry._client.delete_registered_model(name)
    assert mlflow_registry.register(candidate(name, 1)) is None
    assert mlflow_registry.register(candidate(name, 2)) == 1
    assert mlflow_registry.aliases(name) == {"champion": 1, "challenger": 1}


class Unexportable(torch.nn.Module):
    def forward(self, features_NC):
        return features_NC[:, 0] if features_NC.sum() > 0 else features_NC[:, 1]


def test_a_module_that_cannot_be_exported_is_refused_and_leaves_nothing(mlflow_registry, name):
    with pytest.raises(CheckError, match="cannot export the module"):
        mlflow_registry.register(candidate(name, 1, scorer=Unexportable().eval()))
    assert mlflow_registry.versions(name) == []
    experiment = mlflow_registry._client.get_experiment_by_name(name)
    assert mlflow_registry._client.search_logged_models([experiment.experiment_id]) == []


def test_files_of_a_new_experiment_lie_beside_a_sqlite_database(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    beside = (tmp_path / "mlartifacts").as_uri()
    assert artifact_root("sqlite:///mlflow.db", None) == beside
    assert artifact_root(f"sqlite:///{tmp_path}/mlflow.db", None) == beside
    assert artifact_root("http://localhost:5000", None) is None
    assert artifact_root("http://localhost:5000", "s3://bucket/path") == "s3://bucket/path"
    assert artifact_root("sqlite:///mlflow.db", "elsewhere") == (tmp_path / "elsewhere").as_uri()


def test_a_version_whose_promotion_is_held_takes_no_alias(registry, name):
    registry.register(candidate(name, 1))
    assert registry.register(candidate(name, 2, promoted=False)) == 2
    assert registry.aliases(name) == {"champion": 1, "challenger": 1}
    registry.register(candidate(name, 3))
    assert registry.aliases(name) == {"champion": 3, "challenger": 3, "previous": 1}


def test_a_run_has_the_drift_report_of_its_newest_version(mlflow_registry, name, tmp_path):
    mlflow_registry.register(candidate(name, 1))
    mlflow_registry.register(candidate(name, 2))
    client, run_id = mlflow_registry._client, mlflow_registry._run(name, f"lineage-of-{name}")
    assert {file.path for file in client.list_artifacts(run_id, "drift")} == {"drift/report.html", "drift/report.png"}
    page = client.download_artifacts(run_id, "drift/report.html", str(tmp_path))
    assert "After 2 rows" in Path(page).read_text()
