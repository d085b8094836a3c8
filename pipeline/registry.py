"""Where versions and metrics go. The only file that imports mlflow, and only when a registry is made.

Everything is found before it is created, so repeating any call, or dying in any of them, is harmless.
"""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib.metadata import version as installed
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from consumers.errors import CheckError
from consumers.record import Float32s
from pipeline import report
from pipeline.tracking import artifact_root, database
from pipeline.version import Candidate, Point, Version, alias_moves

_METRICS_PER_BATCH = 1000
_VERSION_TAG = "evertrain.version"  # of a logged model: it was registered, whatever became of the version
_PLACED = {alias: f"evertrain.{alias}" for alias in ("champion", "challenger", "previous")}  # where we last put it
_TIMEOUT = "MLFLOW_HTTP_REQUEST_TIMEOUT"
_UPLOAD_TIMEOUT_S = "120"
_QUIET = {
    # MLflow's own retries block for minutes and create things twice; the releaser's backoff replaces them.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    _TIMEOUT: "5",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_LOGGING_LEVEL": "CRITICAL",
    "GIT_PYTHON_REFRESH": "quiet",
}


class MLflowRegistry:
    """A `Registry`: a tracking store and a model registry at one MLflow address: SQLite or a server.

    Args:
        tracking_uri: `sqlite:///...` (a relative path counts from the working directory) or `http(s)://...`.
        artifact_location: where a new experiment keeps its files; None: `mlartifacts` beside a SQLite
            database, the server's own choice otherwise.
        scratch: a directory of our own, for exports.
    """

    def __init__(self, tracking_uri: str, artifact_location: str | None, scratch: Path) -> None:
        self._mlflow = import_mlflow()
        _make_database(tracking_uri)
        self._mlflow.set_tracking_uri(tracking_uri)
        self._client: Any = self._mlflow.MlflowClient(tracking_uri, tracking_uri)
        self._artifact_root = artifact_root(tracking_uri, artifact_location)
        self._scratch = scratch
        self._runs: dict[str, str] = {}

    def resume(self, name: str, lineage: str) -> None:
        self._client.update_run(self._run(name, lineage), status="RUNNING")

    def finish(self, name: str, lineage: str) -> None:
        if run := self._find_run(name, lineage):
            self._client.set_terminated(run.info.run_id, "FINISHED")

    def log(self, name: str, lineage: str, points: Sequence[Point]) -> None:
        run_id = self._run(name, lineage)
        logged = _logged(self._client.get_run(run_id))
        new = [point for point in points if point.step > logged]
        metrics = (metric for point in new for metric in self._metrics(point))
        while batch := list(islice(metrics, _METRICS_PER_BATCH)):
            self._client.log_batch(run_id, metrics=batch)
        if new:
            # Only after the values; a crash in between repeats them, which a SQL store recognises.
            self._client.set_tag(run_id, "evertrain.step", str(new[-1].step))

    def logged(self, name: str, lineage: str) -> int:
        run = self._find_run(name, lineage)
        return _logged(run) if run else -1

    def register(self, candidate: Candidate) -> int | None:
        if not (found := self._find(candidate)):
            model = next(iter(self._models(candidate)), None) or self._log_model(candidate)
            if _VERSION_TAG in model.tags:
                return None
            self._create(candidate, model)
            found = self._find(candidate)
        canonical = found[0]
        number = int(canonical.version)
        for model in self._models(candidate):
            self._client.set_logged_model_tags(model.model_id, {_VERSION_TAG: str(number)})
        self._remove_duplicates(candidate.name)
        description = candidate.description.replace("{version}", str(number))
        if canonical.description != description:
            self._client.update_model_version(candidate.name, str(number), description)
        if candidate.promoted:
            self._promote(candidate.name, number)
        self._report(candidate)
        return number

    def newest(self, name: str, lineage: str | None = None) -> Version | None:
        wanted = f"name = '{name}' and tags.lineage " + (f"= '{lineage}'" if lineage else "LIKE '%'")
        found = self._client.search_model_versions(wanted, max_results=1, order_by=["version_number DESC"])
        return _version(found[0]) if found else None

    def versions(self, name: str) -> list[Version]:
        return [_version(found) for found in self._search(f"name = '{name}'")]

    def aliases(self, name: str) -> dict[str, int]:
        model = self._client.get_registered_model(name)
        return {alias: int(number) for alias, number in model.aliases.items()}

    def _run(self, name: str, lineage: str) -> str:
        """The id of the lineage's run, which is created if there is none that was not deleted."""
        if lineage not in self._runs:
            run = self._find_run(name, lineage)
            if run is None:
                # Without a name of its own, MLflow would draw one from Python's global random generator.
                tags, run_name = {"evertrain.lineage": lineage}, f"{name} {lineage[:8]}"
                self._client.create_run(self._experiment(name), run_name=run_name, tags=tags)
                run = self._find_run(name, lineage)  # an earlier attempt may have come through meanwhile
            self._runs[lineage] = run.info.run_id
        return self._runs[lineage]

    def _find_run(self, name: str, lineage: str) -> Any:
        """The lineage's run or None. Of several, which late answers can leave, one; those without a point go."""
        experiment_id = self._find_experiment(name)[0]
        if experiment_id is None:
            return None
        wanted = f"tags.`evertrain.lineage` = '{lineage}'"
        found = self._client.search_runs([experiment_id], wanted, order_by=["attributes.start_time ASC"])
        found = sorted(found, key=_logged, reverse=True)
        for duplicate in found[1:]:
            if _logged(duplicate) < 0:
                self._client.delete_run(duplicate.info.run_id)
        return found[0] if found else None

    def _experiment(self, name: str) -> str:
        experiment_id, free = self._find_experiment(name)
        return str(experiment_id or self._client.create_experiment(free, self._artifact_root))

    def _find_experiment(self, name: str) -> tuple[str | None, str]:
        """The id of the job's experiment, or None and a name for it: one that was deleted keeps its name."""
        free, number = name, 1
        while (found := self._client.get_experiment_by_name(free)) and found.lifecycle_stage != "active":
            number += 1
            free = f"{name} ({number})"
        return (found.experiment_id if found else None), free

    def _metrics(self, point: Point, model_id: str | None = None) -> Iterator[Any]:
        metric = self._mlflow.entities.Metric
        for name, value in point.values.items():
            if math.isfinite(value):
                yield metric(name, value, point.time_ms, point.step, model_id=model_id)

    def _search(self, wanted: str) -> list[Any]:
        found, token = [], None
        while True:
            page = self._client.search_model_versions(wanted, page_token=token)
            found += page
            token = page.token
            if not token:
                return sorted(found, key=lambda version: int(version.version))

    def _find(self, candidate: Candidate) -> list[Any]:
        return self._search(f"name = '{candidate.name}' and tags.snapshot_id = '{candidate.snapshot_id}'")

    def _remove_duplicates(self, name: str) -> None:
        """Deletes a newer version of the same snapshot: what was sent twice because an answer was lost came late."""
        newest = self._client.search_model_versions(
            f"name = '{name}'", order_by=["version_number DESC"], max_results=100
        )
        seen: set[str] = set()
        for version in sorted(newest, key=lambda version: int(version.version)):
            snapshot_id = version.tags.get("snapshot_id", "")
            if snapshot_id in seen and version.status == "READY":
                self._client.delete_model_version(name, version.version)
            elif "lineage" in version.tags:
                seen.add(snapshot_id)

    def _models(self, candidate: Candidate) -> list[Any]:
        """The complete logged models of a snapshot; what a broken attempt has left is deleted."""
        wanted = f"tags.snapshot_id = '{candidate.snapshot_id}'"
        found = self._client.search_logged_models([self._experiment(candidate.name)], filter_string=wanted)
        for model in found:
            if model.status != "READY":
                self._client.delete_logged_model(model.model_id)
        return [model for model in found if model.status == "READY"]

    def _log_model(self, candidate: Candidate) -> Any:
        client, run_id = self._client, self._run(candidate.name, candidate.lineage)
        path = self._scratch / "model"
        shutil.rmtree(path, ignore_errors=True)
        model = self._export(candidate, path)
        tags = {"snapshot_id": candidate.snapshot_id}
        logged = client.create_logged_model(
            self._experiment(candidate.name), name=candidate.name, source_run_id=run_id, tags=tags
        )
        model.model_id = model.model_uuid = logged.model_id
        model.run_id, model.artifact_path = run_id, logged.artifact_location
        model.save(str(path / "MLmodel"))
        with _patience():
            client.log_model_artifacts(logged.model_id, str(path))
        output = self._mlflow.entities.LoggedModelOutput(logged.model_id, candidate.point.step)
        client.log_outputs(run_id, [output])
        metrics = list(self._metrics(candidate.point, logged.model_id))
        client.log_batch(run_id, metrics=metrics[:_METRICS_PER_BATCH])
        shutil.rmtree(path, ignore_errors=True)
        return client.finalize_logged_model(logged.model_id, "READY")  # last: it says that all before is done

    def _create(self, candidate: Candidate, model: Any) -> None:
        client, name = self._client, candidate.name
        if not client.search_registered_models(f"name = '{name}'"):
            client.create_registered_model(name)
        tags = {**candidate.tags, "snapshot_id": candidate.snapshot_id, "lineage": candidate.lineage}
        run_id = self._run(name, candidate.lineage)
        client.create_model_version(name, model.artifact_location, run_id, tags=tags, model_id=model.model_id)

    def _export(self, candidate: Candidate, path: Path) -> Any:
        """Writes an MLflow model of pt2 format, loads it back and checks it. Returns its MLmodel."""
        import json

        import mlflow.pytorch
        import torch
        from mlflow.models import Model, ModelSignature
        from mlflow.types import Schema, TensorSpec

        def tensor(values: Float32s) -> Any:
            return Schema([TensorSpec(np.dtype(np.float32), (-1, *values.shape[1:]))])

        model = Model()
        try:
            mlflow.pytorch.save_model(
                candidate.scorer,
                str(path),
                mlflow_model=model,
                signature=ModelSignature(tensor(candidate.features_BC), tensor(candidate.scores)),
                input_example=np.nan_to_num(
                    candidate.features_BC[:3]
                ),  # two rows or more keep N dynamic; no NaN in JSON
                pip_requirements=[f"{name}=={installed(name).split('+')[0]}" for name in ("mlflow", "torch", "numpy")],
                serialization_format="pt2",
            )
        except OSError:  # the disk is full, and may have room again
            raise
        except Exception as error:  # of any kind: torch's own, and those of the module
            raise CheckError(
                f"snapshot {candidate.snapshot_id}: torch.export cannot export the module "
                f"({type(error).__name__}: {error}); nothing was registered"
            ) from error
        # Left to itself, pyfunc wants CUDA wherever there is one, and refuses weights exported on the CPU.
        model.flavors["python_function"]["config"] = {"device": "cpu"}
        (path / "columns.json").write_text(json.dumps(candidate.columns, indent=1) + "\n")
        with torch.inference_mode():
            candidate.check(mlflow.pytorch.load_model(str(path))(torch.from_numpy(candidate.features_BC)).numpy())
        return model

    def _report(self, candidate: Candidate) -> None:
        """Puts the drift report in place of the run's last one."""
        folder = self._scratch / "report"
        shutil.rmtree(folder, ignore_errors=True)
        report.write(folder, candidate)
        with _patience():
            self._client.log_artifacts(self._run(candidate.name, candidate.lineage), str(folder), "drift")

    def _promote(self, name: str, number: int) -> None:
        model = self._client.get_registered_model(name)
        aliases = {alias: int(version) for alias, version in model.aliases.items()}
        placed = {alias: int(model.tags[tag]) for alias, tag in _PLACED.items() if tag in model.tags}
        for alias in placed.keys() - aliases.keys():
            # Gone because a person deleted the alias, which makes it theirs, or its version, which does not.
            if not self._search(f"name = '{name}' and version_number = {placed[alias]}"):
                del placed[alias]
        for alias, version in alias_moves(aliases, placed, number):
            self._client.set_registered_model_alias(name, alias, str(version))
            self._client.set_registered_model_tag(name, _PLACED[alias], str(version))


def import_mlflow() -> Any:
    """The mlflow package, silent, without retries of its own and without sending usage data anywhere."""
    os.environ.update(_QUIET)
    import mlflow
    import mlflow.entities

    return mlflow


def save_weights(tracking_uri: str, model_uri: str, path: Path) -> None:
    """Writes parameters and buffers of a PyTorch model ("models:/name/version") to a safetensors file."""
    import_mlflow().set_tracking_uri(tracking_uri)
    from mlflow.pytorch import load_model
    from safetensors.torch import save_file

    tensors = load_model(model_uri, map_location="cpu").state_dict()
    scorer = all(name.startswith("module.") for name in tensors)  # what is published scores with what learns
    save_file(
        {name.removeprefix("module.") if scorer else name: tensor.contiguous() for name, tensor in tensors.items()},
        path,
    )


def _make_database(tracking_uri: str) -> None:
    """Makes a new SQLite store beside its place and moves it there: half a one, left by a crash, is of no use."""
    path = database(tracking_uri)
    if path is None or path.exists():
        return
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    new = path.with_name(f".{path.name}.{os.getpid()}")
    new.unlink(missing_ok=True)
    SqlAlchemyStore(f"sqlite:///{new}", (path.parent / "mlartifacts").as_uri()).engine.dispose()
    with suppress(FileExistsError):  # somebody else was faster
        os.link(new, path)
    new.unlink()


@contextmanager
def _patience() -> Iterator[None]:
    """Waits longer for answers: a server may have to pass on a large file to another store before it answers."""
    os.environ[_TIMEOUT] = _UPLOAD_TIMEOUT_S
    try:
        yield
    finally:
        os.environ[_TIMEOUT] = _QUIET[_TIMEOUT]


def _logged(run: Any) -> int:
    return int(run.data.tags.get("evertrain.step", -1))


def _version(found: Any) -> Version:
    tags = found.tags
    number, description = int(found.version), found.description or ""
    return Version(number, tags.get("snapshot_id", ""), tags.get("lineage", ""), tags, description)
