"""Entries made in memory, for benchmarks of what is behind the source: a chosen number of rows always waits."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from consumers.arena import NO_REJECTS
from consumers.record import Events, Kind, Partition, Position, Side, Span
from pipeline.config import JobConfig

SPAN_ROWS = 2048
COLUMNS = 32
FEATURES, LABELS = Partition("f", 0), Partition("l", 0)


def job(state_dir: Path, *, embedding_rows: int, **tables: Any) -> JobConfig:
    """A job with 32 numeric columns and one categorical column of `embedding_rows` buckets, the plain MLP and Adam."""
    document: dict[str, Any] = {
        "job": {"name": "recovery", "state_dir": str(state_dir)},
        "kafka": {"bootstrap.servers": "unused"},
        "features": {
            "topic": FEATURES.topic,
            "numeric": [f"f{number}" for number in range(COLUMNS)],
            "categorical": [{"name": "c", "buckets": embedding_rows}],
        },
        "labels": {"topic": LABELS.topic, "column": "y"},
        "join": {"memory": "2GiB"},
        "learner": {"device": "cpu"},
        "registry": {"register_every": "365d"},
        "dead_letters": {"topic": "d"},
    }
    for table, values in tables.items():
        document[table] = {**document.get(table, {}), **values}
    return JobConfig.model_validate(document)


def positions() -> dict[Partition, Position]:
    """The cursor of a new lineage."""
    return {FEATURES: Position(0), LABELS: Position(0)}


def spans(config: JobConfig, waiting: int) -> Iterator[Span]:
    """Feature spans until `waiting` rows wait; then a label span for the oldest after each further one."""
    random = np.random.default_rng(0)
    buckets = config.features.categorical[0].buckets
    for number in range(2**31):
        features_NC = random.standard_normal((SPAN_ROWS, COLUMNS + 1), np.float32)
        features_NC[:, -1] = random.integers(1, buckets, SPAN_ROWS)
        yield _span(Side.FEATURES, number, features_NC)
        if (number + 1) * SPAN_ROWS > waiting:
            yield _span(Side.LABELS, number - waiting // SPAN_ROWS, random.integers(0, 2, SPAN_ROWS).astype(np.float32))


def _span(side: Side, number: int, values: np.ndarray) -> Span:
    first = number * SPAN_ROWS
    ids_N = np.arange(first, first + SPAN_ROWS, dtype=np.uint64)
    times_N = ids_N.astype(np.int64)
    labels = side is Side.LABELS
    events = Events(
        key_N2=np.stack([ids_N * np.uint64(0x9E3779B97F4A7C15), ids_N], axis=1),
        event_time_N=times_N,
        offset_N=times_N,
        row_N=np.zeros(SPAN_ROWS, np.int32),
        kind_N=np.full(SPAN_ROWS, Kind.EVENT, np.uint8),
        features_NC=np.empty((SPAN_ROWS, 0), np.float32) if labels else values,
        weight_N=np.empty(0, np.float32) if labels else np.ones(SPAN_ROWS, np.float32),
        label_N=values if labels else None,
    )
    partition = LABELS if labels else FEATURES
    return Span(partition, first, first + SPAN_ROWS, first, SPAN_ROWS, events, NO_REJECTS)
