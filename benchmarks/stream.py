"""The input of the benchmarks: a learnable stream with late labels, in columns."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from consumers.record import Side

Float64s: TypeAlias = npt.NDArray[np.float64]
Int64s: TypeAlias = npt.NDArray[np.int64]
Table: TypeAlias = dict[str, npt.NDArray[Any]]
"""Events of one topic: a column of int64 or float64 for each field, in the order of the fields."""

COLUMNS = [f"f{index}" for index in range(32)]
PARTITIONS = 4
FIRST_TIME_MS = 1_700_000_000_000  # fixed: the topics are the same on every machine and day
DELAY_ROWS_MEAN = 20_000  # event time advances 1 ms a row, so this is the mean delay in ms too
CHUNK_ROWS = 8_192
LOT_ROWS = 1_000


class Chunk(NamedTuple):
    """N rows as they happened: features with six decimals, labels 0 or 1, delays in ms."""

    ids_N: Int64s
    features_NC: Float64s
    labels_N: Int64s
    delays_N: Int64s


class Lot(NamedTuple):
    """Events of one partition, in the order of event time: LOT_ROWS of them, but for a partition's last ones."""

    side: Side
    partition: int
    events: Table


def chunks(rows: int) -> Iterator[Chunk]:
    """Standard normal features, and labels drawn by a fixed rule: a slope, one product and one square."""
    random = np.random.default_rng(0)
    slope_C = random.normal(size=len(COLUMNS)) * 2 / np.sqrt(len(COLUMNS))
    for first in range(0, rows, CHUNK_ROWS):
        ids_N = np.arange(first, min(first + CHUNK_ROWS, rows))
        features_NC = random.normal(size=(len(ids_N), len(COLUMNS))).round(6)
        bend_N = features_NC[:, 0] * features_NC[:, 1] + features_NC[:, 2] ** 2 - 1
        chance_N = 1 / (1 + np.exp(-(features_NC @ slope_C + bend_N)))
        labels_N = (random.random(len(ids_N)) < chance_N).astype(np.int64)
        delays_N = random.exponential(DELAY_ROWS_MEAN, len(ids_N)).astype(np.int64)
        yield Chunk(ids_N, features_NC, labels_N, delays_N)


def feature_events(chunk: Chunk) -> Table:
    """The feature events of a chunk."""
    return {
        "id": chunk.ids_N,
        "ts": FIRST_TIME_MS + chunk.ids_N,
        **dict(zip(COLUMNS, chunk.features_NC.T, strict=True)),
    }


def label_events(chunk: Chunk) -> Table:
    """Its label events, in the order of its rows: each comes after its delay."""
    return {"id": chunk.ids_N, "ts": FIRST_TIME_MS + chunk.ids_N + chunk.delays_N, "y": chunk.labels_N}


def lots(rows: int, count: int = PARTITIONS) -> Iterator[Lot]:
    """The events of both topics, each of `count` partitions.

    Those of a partition come in the order of event time, and the topics in step.
    """
    held: dict[tuple[Side, int], list[Table]] = {(side, p): [] for side in Side for p in range(count)}
    for side, events in in_step(rows):
        partition_N = partitions(events["id"], count)
        for number in range(count):
            here = held[side, number]
            here.append(taken(events, np.flatnonzero(partition_N == number)))
            if sum(len(part["id"]) for part in here) >= LOT_ROWS:
                *full, rest = split(joined(here))
                here[:] = [rest]
                yield from (Lot(side, number, part) for part in full)
    for (side, number), here in held.items():
        yield from (Lot(side, number, part) for part in split(joined(here)) if len(part["id"]))


def in_step(rows: int) -> Iterator[tuple[Side, Table]]:
    """Feature events, and then the label events up to their time; at last the labels that come after all features."""
    waiting: list[Table] = []
    for chunk in chunks(rows):
        yield Side.FEATURES, feature_events(chunk)
        labels = joined([*waiting, label_events(chunk)])
        labels = taken(labels, np.argsort(labels["ts"], kind="stable"))
        now = int(np.searchsorted(labels["ts"], FIRST_TIME_MS + chunk.ids_N[-1] + 1))
        yield Side.LABELS, taken(labels, slice(0, now))
        waiting = [taken(labels, slice(now, None))]
    yield Side.LABELS, waiting[0]


def partitions(ids_N: Int64s, count: int = PARTITIONS) -> Int64s:
    """Which of `count` each goes to: the CRC-32 of the message key, as librdkafka's `consistent` partitioner has it."""
    return np.array([zlib.crc32(key) for key in keys(ids_N)], np.int64) % count


def keys(ids_N: Int64s) -> list[bytes]:
    """Message keys."""
    return [b"%d" % id_ for id_ in ids_N.tolist()]


def taken(events: Table, which: Any) -> Table:
    """Some of the events."""
    return {name: column[which] for name, column in events.items()}


def joined(parts: list[Table]) -> Table:
    """All of the events."""
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def split(events: Table) -> list[Table]:
    """Parts of LOT_ROWS events, and one of less, perhaps of none."""
    count = len(events["id"])
    return [taken(events, slice(start, start + LOT_ROWS)) for start in range(0, count + 1, LOT_ROWS)]
