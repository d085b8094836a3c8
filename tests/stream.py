"""Small streams with a known truth, for tests that run the whole pipeline."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from pipeline.config import JobConfig

START_MS = 1_700_000_000_000


@dataclass(frozen=True)
class Record:
    """One record to produce."""

    timestamp: int
    key: bytes | None
    value: bytes | None


def events(rows: int, *, seed: int = 0, delay_mean: float = 300.0) -> tuple[list[Record], list[Record]]:
    """Features and labels in time order: y depends on a and c; labels come exponentially late. 1 ms a row."""
    rng = random.Random(seed)
    features, labels = [], []
    for row in range(rows):
        at = START_MS + row
        a, b, c = rng.gauss(0, 1), rng.gauss(5, 2), rng.choice("xyz")
        y = int(a + (c == "x") + rng.gauss(0, 0.5) > 0.3)
        key = f"k{row}"
        value = {"id": key, "n": row + 1, "ts": at, "a": a, "b": b if rng.random() > 0.1 else None, "c": c}
        features.append(Record(at, key.encode(), orjson.dumps(value)))
        late = at + 1 + int(rng.expovariate(1 / delay_mean))
        labels.append(Record(late, key.encode(), orjson.dumps({"id": key, "ts": late, "y": y})))
    return features, sorted(labels, key=lambda record: record.timestamp)


def job_document(state_dir: Path, bootstrap: str = "unused", prefix: str = "t", **tables: Any) -> dict[str, Any]:
    """A job over the streams of `events`; `tables` updates whole tables key by key."""
    document: dict[str, Any] = {
        "job": {"name": f"{prefix}-job", "state_dir": str(state_dir)},
        "kafka": {"bootstrap.servers": bootstrap},
        "features": {
            "topic": f"{prefix}.features",
            "key": "id",
            "time": "ts",
            "numeric": ["a", {"name": "b", "nullable": True}],
            "categorical": [{"name": "c", "buckets": 32}],
        },
        "labels": {"topic": f"{prefix}.labels", "key": "id", "time": "ts", "column": "y"},
        "join": {"window": "5s", "memory": "16MiB", "slab_rows": 512},
        "stream": {"span": 128},
        "learner": {"kind": "mlp", "batch_size": 64, "hidden": [16]},
        "monitor": {"every": "500 rows", "window": 1000, "reference_rows": 500, "frozen_after": 640},
        "snapshot": {"every": "1000 rows"},
        "registry": {
            "tracking_uri": f"sqlite:///{state_dir.parent / 'mlflow.db'}",
            "register_every": "100000 rows",
        },
        "dead_letters": {"topic": f"{prefix}.dead"},
    }
    for table, values in tables.items():
        document[table] = {**document.get(table, {}), **values}
    return document


def job(state_dir: Path, bootstrap: str = "unused", prefix: str = "t", **tables: Any) -> JobConfig:
    """The same as a model."""
    return JobConfig.model_validate(job_document(state_dir, bootstrap, prefix, **tables))


def toml(document: dict[str, Any]) -> str:
    """A job document as TOML (JSON scalars, arrays and inline tables are TOML, but for the colon)."""
    return "\n".join(
        f"[{table}]\n" + "\n".join(f"{orjson.dumps(k).decode()} = {_value(v)}" for k, v in values.items())
        for table, values in document.items()
    )


def _value(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{k} = {_value(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_value, value)) + "]"
    return orjson.dumps(value).decode()
