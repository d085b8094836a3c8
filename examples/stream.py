"""What the examples share: rows go to Kafka, `evertrain run` learns them, and the version that it registers is asked.

Every example is one command, `python -m examples.NAME`. With `--in-memory` the same rows go through the same pipeline
in this process, without Kafka and MLflow.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from consumers.errors import EvertrainError

ROOT = Path(__file__).resolve().parent.parent
START_MS = 1_700_000_000_000

Row = Mapping[str, Any]
Predict = Callable[[Sequence[Row]], np.ndarray]


@dataclass(frozen=True)
class Example:
    """Rows with their `label`, how they are learned, and what is asked of the model after each stage."""

    name: str
    stages: Sequence[Sequence[Row]]
    features: Mapping[str, Any]  # of [features]: numeric and categorical
    learner: Mapping[str, Any]  # [learner]
    report: Callable[[Predict], Mapping[str, float]]

    @property
    def topics(self) -> list[str]:
        """Of features, labels and dead letters."""
        return [f"{self.name}.{kind}" for kind in ("features", "labels", "dead")]

    def document(self, state: Path, bootstrap: str, rows: int) -> dict[str, Any]:
        """The job file, with which the version falls due after so many rows."""
        features, labels, dead = self.topics
        return {
            "job": {"name": self.name, "state_dir": str(state / "state")},
            "kafka": {"bootstrap.servers": bootstrap},
            "features": {"topic": features, "key": "id", "time": "ts", **self.features},
            "labels": {"topic": labels, "key": "id", "time": "ts", "column": "label"},
            "join": {"window": "30d"},
            "stream": {"span": 64, "idle_after": "30d"},
            "learner": {"device": "cpu", **self.learner},
            "registry": {"tracking_uri": f"sqlite:///{state / 'mlflow.db'}", "register_every": f"{rows} rows"},
            "dead_letters": {"topic": dead},
        }


def main(example: Example) -> None:
    """Runs an example from the command line, and prints what the model answers."""
    parser = argparse.ArgumentParser(prog=f"python -m examples.{example.name}")
    parser.add_argument("--state", type=Path, default=Path("state/examples") / example.name, help="emptied first")
    parser.add_argument("--in-memory", action="store_true", help="without Kafka and MLflow")
    args = parser.parse_args()
    try:
        found = in_memory(example) if args.in_memory else on_kafka(example, args.state.absolute())
    except EvertrainError as error:
        sys.exit(str(error))
    for stage, values in enumerate(found, 1):
        for name, value in values.items():
            print(f"stage {stage} of {len(found)}: {name} = {value:.4g}")


def on_kafka(example: Example, state: Path) -> list[Mapping[str, float]]:
    """Each stage through Kafka into a version of its own; what each answers."""
    from consumers.broker import local_broker

    shutil.rmtree(state, ignore_errors=True)
    state.mkdir(parents=True)
    found = []
    with local_broker(state / "kafka") as broker:
        broker.create_topics(dict.fromkeys(example.topics, 1), {"retention.ms": "-1"})
        path, learned = state / "job.toml", 0
        for rows in example.stages:
            document = example.document(state, broker.bootstrap, learned + len(rows))
            path.write_text(_toml(document))
            _produce(broker.bootstrap, document, rows, learned)
            learned += len(rows)
            command = [sys.executable, "-m", "pipeline.cli", "run", "-c", str(path), "--until-caught-up"]
            ran = subprocess.run(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=False)
            if ran.returncode:
                raise EvertrainError(f"the job {path} ended with {ran.returncode}: what it said is above")
            found.append(example.report(_version(document)))
    return found


def _produce(bootstrap: str, document: Mapping[str, Any], rows: Sequence[Row], first: int) -> None:
    """Each row as a feature event, and a second of the stream's time later its label."""
    from confluent_kafka import Producer

    producer = Producer({"bootstrap.servers": bootstrap, "enable.idempotence": True})
    for number, row in enumerate(rows, first):
        at, key = START_MS + 1000 * number, str(number)
        known = {name: value for name, value in row.items() if name != "label"}
        for table, time_ms, values in (("features", at, known), ("labels", at + 1000, {"label": row["label"]})):
            value = json.dumps({"id": key, "ts": time_ms, **values})
            producer.produce(document[table]["topic"], value, key, partition=0, timestamp=time_ms)
        producer.poll(0)
    if producer.flush(30):
        raise EvertrainError(f"{bootstrap} did not take all records")


def _version(document: Mapping[str, Any]) -> Predict:
    """The newest version, loaded as anybody would load it."""
    import mlflow

    import pipeline

    mlflow.set_tracking_uri(document["registry"]["tracking_uri"])
    uri = f"models:/{document['job']['name']}@champion"
    columns = mlflow.artifacts.load_dict(f"{uri}/columns.json")
    model = mlflow.pyfunc.load_model(uri)
    return lambda rows: model.predict(pipeline.encode(rows, columns))


def in_memory(example: Example) -> list[Mapping[str, float]]:
    """Each stage through the pipeline in this process; what the learner answers after it."""
    from consumers.tabular import TableSource
    from pipeline.config import JobConfig
    from pipeline.encoding import columns_of, encode
    from pipeline.learner import Learner
    from pipeline.options.pretrained import read_weights
    from pipeline.state import State, fresh_positions
    from pipeline.task import label_rule_of
    from pipeline.train import learn

    document = example.document(Path("unused"), "unused", rows=10**9)
    del document["labels"]
    document["features"] |= {"format": "arrow", "key": "row_number", "time": "row_number", "label": "label"}
    job = JobConfig.model_validate(document)
    learner = Learner(job, read_weights(job))
    names = [column.name for column in (*job.features.numeric, *job.features.categorical)]

    def predict(rows: Sequence[Row]) -> np.ndarray:
        scores = learner.score(encode(rows, columns_of(job.features)))
        return scores if learner.score_width > 1 else scores[:, 0]

    state, rows, found = None, [], []
    for stage in example.stages:
        rows = [*rows, *stage]
        table = pa.table({name: [row.get(name) for row in rows] for name in [*names, "label"]})
        source = TableSource(table, job.features, label_rule_of(job), job.learner.batch_size)
        state = state or State(job, fresh_positions({source.partition: 0}), learner)
        for entry in source.entries(state.positions):
            learn(state, entry)
        assert state.trained == len(rows), f"{len(rows) - state.trained} rows are bad"
        found.append(example.report(predict))
    return found


def _toml(document: Mapping[str, Mapping[str, Any]]) -> str:
    """Tables of JSON values, which TOML takes but for the colon of objects."""

    def value(item: Any) -> str:
        if isinstance(item, Mapping):
            return "{ " + ", ".join(f"{json.dumps(k)} = {value(v)}" for k, v in item.items()) + " }"
        if isinstance(item, list | tuple):
            return "[" + ", ".join(map(value, item)) + "]"
        return json.dumps(item)

    tables = (
        [f"[{name}]", *(f"{json.dumps(k)} = {value(v)}" for k, v in keys.items())] for name, keys in document.items()
    )
    return "\n\n".join("\n".join(lines) for lines in tables) + "\n"


def accuracy(probabilities_NK: np.ndarray, rows: Sequence[Row]) -> float:
    """The share of rows whose most probable class is their label."""
    return float((probabilities_NK.argmax(axis=1) == [row["label"] for row in rows]).mean())
