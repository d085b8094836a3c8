"""Streams and jobs in which everything happens that a snapshot has to remember, chosen by a seed."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson

from consumers.record import Messages, Partition, Side
from pipeline.config import JobConfig
from tests.records import Log, messages_of
from tests.stream import START_MS, Record, job_document

TASKS = ("tests.tasks:NoisyTask", "binary", "regression", "multiclass")
BANK = {"kind": "bank", "hidden": [256, 128]}
SMALL_MLP = {"kind": "mlp", "hidden": [8], "embedding": 2}
PARTITIONS = 2
GARBAGE: tuple[bytes, ...] = (b"{not json", b'{"id": 1', b"[]", b"\xff\xfe", b'{"id": "k", "ts": true}', b"")


@dataclass
class Scenario:
    """One stream, and the job that learns it. Equal seeds give equal scenarios.

    `calm`: a wide window, and no record that is bad, doubled, late, withdrawn or without its other half.
    """

    seed: int
    calm: bool = False
    rows: tuple[int, int] = (400, 1000)  # at least, and fewer than
    logs: dict[Partition, Log] = field(default_factory=dict, repr=False)
    topics: dict[Partition, Messages] = field(default_factory=dict, repr=False)  # the logs as they are read
    tables: dict[str, Any] = field(default_factory=dict, repr=False)
    ids: set[int] = field(default_factory=set, repr=False)  # that a calm stream holds
    silence: tuple[int, int] = (0, 0)  # between these times partition 0 gets nothing but late labels

    def __post_init__(self) -> None:
        rng = random.Random(self.seed)
        self.task = TASKS[0] if self.calm else TASKS[self.seed % len(TASKS)]
        self.inside = not self.calm and rng.random() < 0.15  # the label is a column of the features: no join
        self.tables = self._tables(rng)
        sides = ("t.features",) if self.inside else ("t.features", "t.labels")
        self.logs = {Partition(topic, n): Log() for topic in sides for n in range(PARTITIONS)}
        for at, topic, key, value in sorted(self._records(rng), key=lambda record: record[0]):
            self._append(rng, at, topic, key, value)
        self.topics = messages_of(self.logs)

    def job(self, state_dir: Path, outside: Path) -> JobConfig:
        """The job, its state in one place and its Kafka and MLflow in another."""
        registry = {**self.tables["registry"], "tracking_uri": str(outside)}
        document = job_document(state_dir, str(outside), "t", **{**self.tables, "registry": registry})
        if self.inside:
            del document["labels"]
        return JobConfig.model_validate(document)

    @property
    def sides(self) -> dict[str, Side]:
        return {"t.features": Side.FEATURES, "t.labels": Side.LABELS}

    def _tables(self, rng: random.Random) -> dict[str, Any]:
        batch = rng.choice((16, 32, 48))
        numeric = ["a", {"name": "b", "nullable": True}]
        features: dict[str, Any] = {"numeric": ["n", *numeric] if self.task == TASKS[0] else numeric, "weight": "w"}
        if self.inside:
            features["label"] = "y"
        window_ms = 10_000 if self.calm else rng.choice((120, 300, 700))
        return {
            "features": features,
            "join": {
                "window": f"{window_ms}ms",
                "on_expiry": "negative" if self.task == "binary" and rng.random() < 0.6 else "drop",
                "memory": rng.choice(("64KiB", "1MiB")) if not self.calm else "1MiB",
                "slab_rows": 64,
                **self._early(),
            },
            "stream": {
                "span": rng.choice((16, 32, 64)),
                "idle_after": f"{window_ms if self.calm else rng.choice((40, 150, 60_000))}ms",
                "labels_may_idle": not self.calm and rng.random() < 0.5,
            },
            "learner": {
                **(BANK if self.seed // len(TASKS) % 2 == 0 and self.task != TASKS[0] else SMALL_MLP),
                "task": self.task,
                "classes": 3,
                "batch_size": batch,
                "batch_wait": "1ms",
                "device": "cpu",
            },
            "monitor": {
                "every": f"{rng.choice((64, 150))} rows",
                "window": 200,
                "reference_rows": 100,
                "frozen_after": rng.choice((0, 100, 200)),
                "compare_after": 250,
                "psi_threshold": 0.02,
                "adwin_delta": 0.5,
            },
            "on_drift": {"hold_promotion": ["concept", "feature"], "hold_rows": 100, "rewarm": ["concept"]},
            "snapshot": {
                "every": f"{rng.choice((16, 64, 128))} rows",
                "anchor_every": f"{rng.choice((100, 300))} rows",
            },
            "registry": {"release_timeout": "20s", "register_every": f"{rng.choice((100, 250))} rows"},
            "dead_letters": {"topic": "t.dead", "hold_window": 200},
        }

    def _early(self) -> dict[str, Any]:
        """Every other job of the binary task learns negatives before their labels, and some of them never."""
        if self.task != "binary" or self.seed % 8 != 5 or self.inside:
            return {}
        return {"negative_after": "30ms", "keep_negatives": 0.7}

    def _records(self, rng: random.Random) -> list[tuple[int, str, bytes | None, bytes | None]]:
        """(time, topic, key, value) of everything that happens, in no order."""
        records: list[tuple[int, str, bytes | None, bytes | None]] = []
        rows, at = rng.randrange(*self.rows), START_MS
        silent = rng.randrange(rows // 2), rng.randrange(rows // 2, rows)  # no even keys between: a partition idles
        for row in range(1, rows + 1):
            at += rng.choice((0, 1, 1, 2))
            self.silence = (at, at) if row <= silent[0] else (self.silence[0], at) if row <= silent[1] else self.silence
            if silent[0] < row < silent[1] and row % 2 == 0 and not self.calm:
                continue
            key = f"k{row}"
            value = self._features(rng, row, rows, at)
            label = {"id": key, "ts": at, "y": value.pop("y")}
            if self.calm:
                self.ids.add(row)
            if self.inside:
                value["y"] = label["y"]
            records.append((at, "t.features", key.encode(), orjson.dumps(value)))
            if not self.inside:
                records += self._labels(rng, key, at, label)
            if not self.calm:
                records += self._trouble(rng, key, at, value)
        return records

    def _features(self, rng: random.Random, row: int, rows: int, at: int) -> dict[str, Any]:
        a, c = rng.gauss(1.5 if row > rows / 2 else 0, 1), rng.choice("xyz" if row < rows / 2 else "xyzuvw")
        signal = a + (c == "x") + rng.gauss(0, 0.5) - (2.0 if row > rows / 2 else 0)
        y: float = {"regression": signal, "multiclass": int(signal > 0) + int(signal > 1)}.get(
            self.task, int(signal > 0)
        )
        huge = not self.calm and rows // 3 < row < rows // 3 + 4  # the batch that gets these is refused
        b = rng.gauss(5, 2) if rng.random() > 0.1 else None
        w = 3e38 if huge else 1 if self.calm else rng.choice((1, 1, 0.5, 0))
        if not self.calm and self.task == TASKS[0] and rng.random() < 0.02:
            y = 2  # a custom task takes any number; the monitor cannot measure this one
        return {"id": f"k{row}", "n": row, "ts": at, "a": a, "b": b, "c": c, "y": y, "w": w}

    def _labels(
        self, rng: random.Random, key: str, at: int, label: dict[str, Any]
    ) -> list[tuple[int, str, bytes | None, bytes | None]]:
        chance = rng.random() if not self.calm else 1.0
        late = at + 1 + int(rng.expovariate(1 / 40)) + (1500 if chance < 0.03 else 0)
        if 0.03 <= chance < 0.1:
            return []
        found = [(late, "t.labels", key.encode(), orjson.dumps({**label, "ts": late}))]
        if chance > 0.95 and not self.calm:  # a second label, the same or another
            again = late + rng.randrange(5)
            y = label["y"] if chance > 0.975 else 0
            found.append((again, "t.labels", key.encode(), orjson.dumps({**label, "ts": again, "y": y})))
        return found

    def _trouble(
        self, rng: random.Random, key: str, at: int, value: dict[str, Any]
    ) -> list[tuple[int, str, bytes | None, bytes | None]]:
        topic = "t.features" if self.inside else rng.choice(("t.features", "t.labels"))
        chance = rng.random()
        if chance < 0.03:
            return [(at, topic, key.encode(), rng.choice(GARBAGE))]
        if chance < 0.05:
            return [(at + rng.randrange(30), "t.features", key.encode(), orjson.dumps(value))]  # the same once more
        if chance < 0.07:
            return [(at + rng.randrange(60), topic, key.encode(), None)]
        if chance < 0.08 and not self.inside:
            y = orjson.dumps({"id": f"nobody{key}", "ts": at, "y": 1})
            return [(at, "t.labels", f"nobody{key}".encode(), y)]
        return []

    def _append(self, rng: random.Random, at: int, topic: str, key: bytes | None, value: bytes | None) -> None:
        number = int((key or b"k0").lstrip(b"nobodyk") or 0) % PARTITIONS
        log = self.logs[Partition(topic, number)]
        gap = rng.random() < 0.1  # an offset that holds no message, as a transaction's end
        log.append(Record(at, key, value), log.end + gap)
