"""The world outside a killed job: one file that is only appended to, which no kill can take anything back from.

Each request is one `write` of one line, as a server's transaction is: it happens whole or not at all. Kafka and
MLflow are twins of the clients alone; what finds before it creates is the product's own code.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa

from pipeline.deadletter import headers


class World:
    """All requests that ever arrived, in order."""

    def __init__(self, path: str | Path) -> None:
        self.path = path

    def add(self, kind: str, **fields: Any) -> None:
        descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            os.write(descriptor, json.dumps({"kind": kind, **fields}).encode() + b"\n")
        finally:
            os.close(descriptor)

    def all(self, kind: str) -> list[dict[str, Any]]:
        if not os.path.exists(self.path):
            return []
        lines = map(json.loads, Path(self.path).read_bytes().splitlines())
        return [line for line in lines if line["kind"] == kind]

    def seen(self) -> dict[str, Any]:
        """What a visitor finds at the end, but for what differs between equal runs: ids, times of writing."""
        model = Client(str(self.path))
        letters = {line["id"]: line for line in self.all("letter")}
        points = {(m["key"], m["step"]): (m["value"], m["timestamp"]) for m in model.metrics(versions=False)}
        wanted = ("offsets", "watermark", "rows_trained", "drift_alarms", "weights_sha256")
        versions = [{name: version.tags[name] for name in wanted} for version in model.search_model_versions("")]
        return {
            "dead letters": {k: [v["topic"], v["reason"], v["key"], v["value"]] for k, v in letters.items()},
            "group offsets": self.all("offsets")[-1]["offsets"],
            "metric points": {f"{key} at {step}": value for (key, step), value in points.items()},
            "metric points twice": len(model.metrics(versions=False)) - len(points),
            "versions": versions,
            "champion": len(versions) and model.get_registered_model("t-job").aliases.get("champion"),
            "runs": [run.info.status for run in model.search_runs([], "")],
            "report": self.all("report")[-1]["files"] if versions else None,
        }


def send(settings: Mapping[str, Any], topic: str, rejects: bytes, lineage: str) -> int:
    """`pipeline.deadletter.send` to this world."""
    world = World(settings["bootstrap.servers"])
    letters = pa.ipc.open_stream(rejects).read_all().to_pylist()
    for letter in letters:
        named = {name: value.decode() for name, value in headers(letter, lineage)}
        content = {part: (letter[part] or b"").hex() for part in ("key", "value")}
        world.add("letter", id=named["evertrain.id"], topic=topic, reason=named["reason"], **content)
    return len(letters)


def commit_offsets(settings: Mapping[str, Any], group: str, cursor: Sequence[Mapping[str, Any]]) -> None:
    """`pipeline.deadletter.commit_offsets` to this world."""
    offsets = [[line["topic"], line["partition"], line["next"]] for line in cursor]
    World(settings["bootstrap.servers"]).add("offsets", group=group, offsets=offsets)


def mlflow() -> Any:
    """What `pipeline.registry.import_mlflow` returns."""

    def metric(key: str, value: float, timestamp: int, step: int, model_id: str | None = None) -> dict[str, Any]:
        return {"key": key, "value": value, "timestamp": timestamp, "step": step, "model_id": model_id}

    entities = SimpleNamespace(Metric=metric, LoggedModelOutput=lambda model_id, step: {"id": model_id, "step": step})
    return SimpleNamespace(entities=entities, set_tracking_uri=lambda _: None, MlflowClient=Client)


def export(_: Any, candidate: Any, path: Path) -> Any:
    """`MLflowRegistry._export` without the seconds that MLflow needs; the scores are checked all the same."""
    import torch

    path.mkdir(parents=True)
    with torch.inference_mode():
        candidate.check(candidate.scorer(torch.from_numpy(candidate.features_BC)).numpy())
    return SimpleNamespace(save=lambda target: Path(target).write_text("saved"))


def draw(path: Path, alarms: Any, points: Any) -> None:
    """`pipeline.report.draw` without the second that it takes."""
    path.write_text(json.dumps([alarms, points]))


class Client:
    """As much of `mlflow.MlflowClient` as the registry uses; every answer is read from the world."""

    def __init__(self, tracking_uri: str, *_: str) -> None:
        self._world = World(tracking_uri)

    # Runs and metrics.

    def get_experiment_by_name(self, name: str) -> Any:
        found = [line for line in self._world.all("experiment") if line["name"] == name]
        return SimpleNamespace(experiment_id=name, lifecycle_stage="active") if found else None

    def create_experiment(self, name: str, _: str | None) -> str:
        assert self.get_experiment_by_name(name) is None, f"experiment {name} exists"
        self._world.add("experiment", name=name)
        return name

    def search_runs(self, _: list[str], wanted: str, order_by: Any = None) -> list[Any]:
        lineage = _quoted(wanted, "lineage")
        gone = {line["run"] for line in self._world.all("run deleted")}
        runs = [run["tags"]["evertrain.lineage"] for run in self._world.all("run")]
        found = [str(number) for number, of in enumerate(runs) if lineage in (None, of) and str(number) not in gone]
        return [self.get_run(number) for number in found]

    def create_run(self, experiment_id: str, run_name: str, tags: dict[str, str]) -> Any:
        self._world.add("run", experiment=experiment_id, name=run_name, tags=tags)
        return self.search_runs([], f"lineage = '{tags['evertrain.lineage']}'")[-1]

    def get_run(self, run_id: str) -> Any:
        tags = {line["key"]: line["value"] for line in self._world.all("tag") if line["run"] == run_id}
        status = [line["status"] for line in self._world.all("status") if line["run"] == run_id]
        info = SimpleNamespace(run_id=run_id, status=status[-1] if status else "RUNNING")
        return SimpleNamespace(info=info, data=SimpleNamespace(tags=tags))

    def update_run(self, run_id: str, status: str) -> None:
        self._world.add("status", run=run_id, status=status)

    set_terminated = update_run

    def delete_run(self, run_id: str) -> None:
        self._world.add("run deleted", run=run_id)

    def set_tag(self, run_id: str, key: str, value: str) -> None:
        self._world.add("tag", run=run_id, key=key, value=value)

    def log_batch(self, run_id: str, metrics: list[dict[str, Any]]) -> None:
        self._world.add("metrics", run=run_id, metrics=metrics)

    def metrics(self, *, versions: bool) -> list[dict[str, Any]]:
        """Of the runs or of the versions; a SQL store knows a row that is there already."""
        rows = {
            (line["run"], *metric.values()): metric
            for line in self._world.all("metrics")
            for metric in line["metrics"]
            if bool(metric["model_id"]) == versions
        }
        return list(rows.values())

    # Models and versions.

    def search_logged_models(self, _: list[str], filter_string: str) -> list[Any]:
        wanted = _quoted(filter_string, "snapshot_id")
        gone = {line["id"] for line in self._world.all("logged model deleted")}
        ids = [f"m{number}" for number, m in enumerate(self._world.all("logged model")) if m["snapshot"] == wanted]
        return [self._logged_model(model_id) for model_id in ids if model_id not in gone]

    def delete_logged_model(self, model_id: str) -> None:
        self._world.add("logged model deleted", id=model_id)

    def create_logged_model(self, _: str, name: str, source_run_id: str, tags: dict[str, str]) -> Any:
        self._world.add("logged model", name=name, run=source_run_id, snapshot=tags["snapshot_id"])
        return self._logged_model(f"m{len(self._world.all('logged model')) - 1}")

    def set_logged_model_tags(self, model_id: str, tags: dict[str, str]) -> None:
        self._world.add("logged model tags", id=model_id, tags=tags)

    def _logged_model(self, model_id: str) -> Any:
        tags: dict[str, str] = {}
        for line in self._world.all("logged model tags"):
            tags |= line["tags"] if line["id"] == model_id else {}
        ready = any(line["id"] == model_id for line in self._world.all("finalized"))
        status = "READY" if ready else "PENDING"
        return SimpleNamespace(model_id=model_id, artifact_location=f"world/{model_id}", tags=tags, status=status)

    def log_model_artifacts(self, model_id: str, path: str) -> None:
        assert (Path(path) / "MLmodel").exists()
        self._world.add("artifacts", id=model_id)

    def log_artifacts(self, run_id: str, folder: str, artifact_path: str) -> None:
        digests = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in Path(folder).iterdir()}
        self._world.add("report", run=run_id, files=digests)

    def finalize_logged_model(self, model_id: str, status: str) -> Any:
        self._world.add("finalized", id=model_id, status=status)
        return self._logged_model(model_id)

    def log_outputs(self, run_id: str, outputs: list[Any]) -> None:
        self._world.add("outputs", run=run_id, outputs=outputs)

    def search_registered_models(self, wanted: str) -> list[Any]:
        return [line for line in self._world.all("model") if line["name"] == _quoted(wanted, "name")]

    def create_registered_model(self, name: str) -> None:
        assert not self.search_registered_models(f"name = '{name}'"), f"model {name} exists"
        self._world.add("model", name=name)

    def create_model_version(self, name: str, source: str, run_id: str, tags: dict[str, str], model_id: str) -> None:
        self._world.add("version", name=name, source=source, run=run_id, tags=tags, model=model_id)

    def search_model_versions(
        self, wanted: str, page_token: str | None = None, max_results: int | None = None, order_by: Any = ()
    ) -> Any:
        snapshot, lineage = _quoted(wanted, "snapshot_id"), _quoted(wanted, "lineage")
        number = re.search(r"version_number = (\d+)", wanted)
        gone = {line["number"] for line in self._world.all("version deleted")}
        texts = {line["number"]: line["description"] for line in self._world.all("description")}
        found = _Page()
        for count, line in enumerate(self._world.all("version"), 1):
            tags, chosen = line["tags"], str(count) not in gone and (not number or int(number[1]) == count)
            if chosen and snapshot in (None, tags["snapshot_id"]) and lineage in (None, tags["lineage"]):
                text = texts.get(str(count))
                found.append(SimpleNamespace(version=count, status="READY", tags=tags, description=text))
        if order_by:
            assert order_by == ["version_number DESC"]
            found.reverse()
        del found[max_results or len(found) :]
        return found

    def delete_model_version(self, _: str, number: str) -> None:
        self._world.add("version deleted", number=str(number))

    def update_model_version(self, _: str, number: str, description: str) -> None:
        self._world.add("description", number=number, description=description)

    def get_registered_model(self, name: str) -> Any:
        aliases = {line["alias"]: line["number"] for line in self._world.all("alias")}
        tags = {line["key"]: line["value"] for line in self._world.all("model tag")}
        return SimpleNamespace(name=name, aliases=aliases, tags=tags)

    def set_registered_model_alias(self, _: str, alias: str, number: str) -> None:
        self._world.add("alias", alias=alias, number=number)

    def set_registered_model_tag(self, _: str, key: str, value: str) -> None:
        self._world.add("model tag", key=key, value=value)


class _Page(list[Any]):
    token = None


def _quoted(wanted: str, name: str) -> str | None:
    found = re.search(rf"{name}`? = '([^']*)'", wanted)
    return found[1] if found else None
