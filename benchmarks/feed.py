"""Entries made in memory, for benchmarks of what is behind the source: a chosen number of rows always waits."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from consumers.record import NO_REJECTS, Events, Kind, Partition, Position, Side, Span
from pipeline.config import JobConfig

SPAN_ROWS = 2048
COLUMNS = 32
FEATURES, LABELS = Partition("f", 0), Partition("l", 0)


def job(state_dir: Path, *, embedding_rows: int = 0, **tables: Any) -> JobConfig:
    """A job with 32 numeric columns, the plain MLP and Adam; with one categorical column if it has buckets.

    `tables` add to what it says, or replace it.
    """
    document: dict[str, Any] = {
        "job": {"name": "recovery", "state_dir": str(state_dir)},
        "kafka": {"bootstrap.servers": "unused"},
        "features": {
            "topic": FEATURES.topic,
            "numeric": [f"f{number}" for number in range(COLUMNS)],
            "categorical": [{"name": "c", "buckets": embedding_rows}] if embedding_rows else [],
        },
        "labels": {"topic": LABELS.topic, "column": "y"},
        "join": {"memory": "2GiB"},
        "learner": {"kind": "mlp", "device": "cpu"},
        "registry": {"register_every": "365d"},
        "dead_letters": {"topic": "d"},
    }
    for table, values in tables.items():
        document[table] = {**document.get(table, {}), **values}
    return JobConfig.model_validate(document)


def positions() -> dict[Partition, Position]:
    """The cursor of a new lineage."""
    return {FEATURES: Position(0), LABELS: Position(0)}


def spans(config: JobConfig, waiting: int, *, shuffled: bool = False, span_rows: int = SPAN_ROWS) -> Iterator[Span]:
    """Feature spans until `waiting` rows wait; then a label span after each further one. A row a millisecond.

    Labels are for the oldest rows, in their order; or `shuffled`: each stretch of `waiting` rows gets its labels in
    random order while the next one arrives, so that a label meets any of the rows that wait. A label is at most
    twice `waiting` ms late.
    """
    random, whole = np.random.default_rng(0), -(-waiting // span_rows) * span_rows
    order_W = np.arange(whole)
    for first in range(0, 2**62, span_rows):
        features_NC = random.standard_normal((span_rows, config.features.columns), np.float32)
        for column, categorical in enumerate(config.features.categorical, len(config.features.numeric)):
            features_NC[:, column] = random.integers(1, categorical.buckets, span_rows)
        times_N = np.arange(first, first + span_rows)
        yield _span(Side.FEATURES, first, times_N, times_N, features_NC)
        labelled = first - whole  # rows before this one have their label, or the stretch that it is in has
        if labelled >= 0:
            start = labelled % whole
            if shuffled and not start:
                random.shuffle(order_W)
            ids_N = labelled - start + order_W[start : start + span_rows]
            yield _span(Side.LABELS, labelled, ids_N, times_N, random.integers(0, 2, span_rows).astype(np.float32))


def _span(side: Side, first: int, ids_N: np.ndarray, times_N: np.ndarray, values: np.ndarray) -> Span:
    labels, rows = side is Side.LABELS, len(ids_N)
    events = Events(
        key_N2=np.stack([_mixed(ids_N.astype(np.uint64)), ids_N.astype(np.uint64)], axis=1),
        event_time_N=times_N,
        offset_N=np.arange(first, first + rows),
        row_N=np.zeros(rows, np.int32),
        kind_N=np.full(rows, Kind.EVENT, np.uint8),
        features_NC=np.empty((rows, 0), np.float32) if labels else values,
        weight_N=np.empty(0, np.float32) if labels else np.ones(rows, np.float32),
        label_N=values if labels else None,
    )
    partition = LABELS if labels else FEATURES
    return Span(partition, first, first + rows, int(times_N[0]), rows, events, NO_REJECTS)


def _mixed(id_N: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Numbers as spread as hashes are: Steele, Lea & Flood, "Fast Splittable Pseudorandom Number Generators" (2014)."""
    mixed_N: npt.NDArray[np.uint64] = (id_N ^ (id_N >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed_N = (mixed_N ^ (mixed_N >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed_N ^ (mixed_N >> np.uint64(31))
