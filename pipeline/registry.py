"""Where versions and metrics go. The only file that imports mlflow, and only when a registry is made.

Everything is found before it is created, so repeating any call, or dying in any of them, is harmless.
"""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from importlib.metadata import version as installed
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from consumers.record import Float32s
from pipeline.version import Candidate, Point, Version, alias_moves

_METRICS_PER_BATCH = 1000
_QUIET = {
    # MLflow's own retries block for minutes and create things twice; the releaser's backoff replaces them.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "5",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_LOGGING_LEVEL": "CRITICAL",
    "GIT_PYTHON_REFRESH": "quiet",
}


class Registry(Protocol):
    """Versions of models by name, and one run of metrics per lineage. Any call may be repeated."""

    def resume(self, name: str, lineage: str) -> None:
        """Marks the lineage's run as RUNNING; creates it if there is none."""
        ...

    def finish(self, name: str, lineage: str) -> None:
        """Marks the lineage's run, if there is one, as FINISHED."""
        ...

    def log(self, name: str, lineage: str, points: Sequence[Point]) -> None:
        """Adds points that the lineage's run does not have yet. Values that are not finite are dropped."""
        ...

    def register(self, candidate: Candidate) -> int:
        """Registers a candidate once and moves the aliases. Returns its version number. Raises CheckError."""
        ...

    def versions(self, name: str) -> list[Version]:
        """All versions of a name, oldest first."""
        ...

    def aliases(self, name: str) -> dict[str, int]:
        """Version numbers by alias."""
        ...


class MLflowRegistry:
    """A tracking store and a model registry at one MLflow address: SQLite or a server.

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
        experiment = self._client.get_experiment_by_name(name)
        for run in self._find_runs(experiment.experiment_id, lineage) if experiment else []:
            self._client.set_terminated(run.info.run_id, "FINISHED")

    def log(self, name: str, lineage: str, points: Sequence[Point]) -> None:
        run_id = self._run(name, lineage)
        logged = int(self._client.get_run(run_id).data.tags.get("evertrain.step", -1))
        new = [point for point in points if point.step > logged]
        metrics = (metric for point in new for metric in self._metrics(point))
        while batch := list(islice(metrics, _METRICS_PER_BATCH)):
            self._client.log_batch(run_id, metrics=batch)
        if new:
            # Only after the values; a crash in between repeats them, which a SQL store recognises.
            self._client.set_tag(run_id, "evertrain.step", str(new[-1].step))

    def register(self, candidate: Candidate) -> int:
        found = self._find(candidate)
        if not found:
            self._create(candidate)
            found = self._find(candidate)  # an earlier attempt may have come through meanwhile
        canonical, *duplicates = found
        for duplicate in duplicates:
            if duplicate.status == "READY":
                self._client.delete_model_version(candidate.name, duplicate.version)
        number = int(canonical.version)
        description = candidate.description.replace("{version}", str(number))
        if canonical.description != description:
            self._client.update_model_version(candidate.name, str(number), description)
        self._promote(candidate.name, number)
        return number

    def versions(self, name: str) -> list[Version]:
        found = self._search(f"name = '{name}'")
        return [
            Version(
                int(version.version),
                version.tags.get("snapshot_id", ""),
                version.tags.get("lineage", ""),
                version.tags,
                version.description or "",
            )
            for version in found
        ]

    def aliases(self, name: str) -> dict[str, int]:
        model = self._client.get_registered_model(name)
        return {alias: int(number) for alias, number in model.aliases.items()}

    def _run(self, name: str, lineage: str) -> str:
        if lineage not in self._runs:
            experiment_id = self._experiment(name)
            found = self._find_runs(experiment_id, lineage)
            # Without a name of its own, MLflow would draw one from Python's global random generator.
            run = (
                found[0]
                if found
                else self._client.create_run(
                    experiment_id, run_name=f"{name} {lineage[:8]}", tags={"evertrain.lineage": lineage}
                )
            )
            self._runs[lineage] = run.info.run_id
        return self._runs[lineage]

    def _find_runs(self, experiment_id: str, lineage: str) -> list[Any]:
        wanted = f"tags.`evertrain.lineage` = '{lineage}'"
        return list(self._client.search_runs([experiment_id], wanted, order_by=["attributes.start_time ASC"]))

    def _experiment(self, name: str) -> str:
        found = self._client.get_experiment_by_name(name)
        return str(found.experiment_id if found else self._client.create_experiment(name, self._artifact_root))

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

    def _create(self, candidate: Candidate) -> None:
        client, run_id = self._client, self._run(candidate.name, candidate.lineage)
        experiment_id = self._experiment(candidate.name)
        wanted = f"tags.snapshot_id = '{candidate.snapshot_id}'"
        for leftover in client.search_logged_models([experiment_id], filter_string=wanted):
            client.delete_logged_model(leftover.model_id)
        path = self._scratch / "model"
        shutil.rmtree(path, ignore_errors=True)
        model = self._export(candidate, path)
        logged = client.create_logged_model(
            experiment_id,
            name=candidate.name,
            source_run_id=run_id,
            tags={"snapshot_id": candidate.snapshot_id},
        )
        model.model_id = model.model_uuid = logged.model_id
        model.run_id, model.artifact_path = run_id, logged.artifact_location
        model.save(str(path / "MLmodel"))
        client.log_model_artifacts(logged.model_id, str(path))
        client.finalize_logged_model(logged.model_id, "READY")
        output = self._mlflow.entities.LoggedModelOutput(logged.model_id, candidate.point.step)
        client.log_outputs(run_id, [output])
        metrics = list(self._metrics(candidate.point, logged.model_id))
        client.log_batch(run_id, metrics=metrics[:_METRICS_PER_BATCH])
        if not client.search_registered_models(f"name = '{candidate.name}'"):
            client.create_registered_model(candidate.name)
        tags = {**candidate.tags, "snapshot_id": candidate.snapshot_id, "lineage": candidate.lineage}
        client.create_model_version(
            candidate.name, logged.artifact_location, run_id, tags=tags, model_id=logged.model_id
        )
        shutil.rmtree(path, ignore_errors=True)

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
        mlflow.pytorch.save_model(
            candidate.scorer,
            str(path),
            mlflow_model=model,
            signature=ModelSignature(tensor(candidate.features_BC), tensor(candidate.scores)),
            input_example=np.nan_to_num(candidate.features_BC[:3]),  # two rows or more keep N dynamic; JSON has no NaN
            pip_requirements=[f"{name}=={installed(name).split('+')[0]}" for name in ("mlflow", "torch", "numpy")],
            serialization_format="pt2",
        )
        # Left to itself, pyfunc wants CUDA wherever there is one, and refuses weights exported on the CPU.
        model.flavors["python_function"]["config"] = {"device": "cpu"}
        (path / "columns.json").write_text(json.dumps(candidate.columns, indent=1) + "\n")
        with torch.inference_mode():
            candidate.check(mlflow.pytorch.load_model(str(path))(torch.from_numpy(candidate.features_BC)).numpy())
        return model

    def _promote(self, name: str, number: int) -> None:
        model = self._client.get_registered_model(name)
        aliases = {alias: int(version) for alias, version in model.aliases.items()}
        for alias, version in alias_moves(aliases, _placed(model.tags), number):
            self._client.set_registered_model_alias(name, alias, str(version))
            self._client.set_registered_model_tag(name, f"evertrain.{alias}", str(version))


class MemoryRegistry:
    """The twin of `MLflowRegistry` for tests."""

    def __init__(self) -> None:
        self.runs: dict[str, str] = {}  # status by lineage
        self.points: dict[str, list[Point]] = {}
        self._versions: dict[str, list[Version]] = {}
        self._aliases: dict[str, dict[str, int]] = {}
        self._placed: dict[str, dict[str, int]] = {}

    def resume(self, name: str, lineage: str) -> None:
        self.runs[lineage] = "RUNNING"

    def finish(self, name: str, lineage: str) -> None:
        if lineage in self.runs:
            self.runs[lineage] = "FINISHED"

    def log(self, name: str, lineage: str, points: Sequence[Point]) -> None:
        self.runs.setdefault(lineage, "RUNNING")
        logged = self.points.setdefault(lineage, [])
        last = logged[-1].step if logged else -1
        for point in points:
            if point.step > last:
                finite = {name: value for name, value in point.values.items() if math.isfinite(value)}
                logged.append(Point(point.step, point.time_ms, finite))

    def register(self, candidate: Candidate) -> int:
        import torch

        versions = self._versions.setdefault(candidate.name, [])
        number = next((v.number for v in versions if v.snapshot_id == candidate.snapshot_id), len(versions) + 1)
        if number > len(versions):
            with torch.inference_mode():
                candidate.check(candidate.scorer(torch.from_numpy(candidate.features_BC)).numpy())
            description = candidate.description.replace("{version}", str(number))
            versions.append(
                Version(number, candidate.snapshot_id, candidate.lineage, dict(candidate.tags), description)
            )
        aliases = self._aliases.setdefault(candidate.name, {})
        placed = self._placed.setdefault(candidate.name, {})
        for alias, version in alias_moves(aliases, placed, number):
            aliases[alias] = placed[alias] = version
        return number

    def versions(self, name: str) -> list[Version]:
        return list(self._versions.get(name, []))

    def aliases(self, name: str) -> dict[str, int]:
        return self._aliases.get(name, {})


def import_mlflow() -> Any:
    """The mlflow package, silent, without retries of its own and without sending usage data anywhere."""
    os.environ.update(_QUIET)
    import mlflow
    import mlflow.entities

    return mlflow


def _make_database(tracking_uri: str) -> None:
    """Makes a new SQLite store beside its place and moves it there: half a one, left by a crash, is of no use."""
    path = _database(tracking_uri)
    if path is None or path.exists():
        return
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    new = path.with_name(f".{path.name}.{os.getpid()}")
    new.unlink(missing_ok=True)
    SqlAlchemyStore(f"sqlite:///{new}", (path.parent / "mlartifacts").as_uri()).engine.dispose()
    with suppress(FileExistsError):  # somebody else was faster
        os.link(new, path)
    new.unlink()


def _database(tracking_uri: str) -> Path | None:
    """The file of a SQLite store."""
    prefix = "sqlite:///"
    return Path(tracking_uri.removeprefix(prefix)).resolve() if tracking_uri.startswith(prefix) else None


def artifact_root(tracking_uri: str, configured: str | None) -> str | None:
    """Where a new experiment keeps its files, as an absolute URI; None: the server decides."""
    if configured:
        return configured if "://" in configured else Path(configured).resolve().as_uri()
    database = _database(tracking_uri)
    return (database.parent / "mlartifacts").as_uri() if database else None


def _placed(tags: Mapping[str, str]) -> dict[str, int]:
    aliases = ("champion", "challenger", "previous")
    return {alias: int(tags[f"evertrain.{alias}"]) for alias in aliases if f"evertrain.{alias}" in tags}
