"""Input that would poison or swamp a trainer: values that explode, floods, a key that comes a million times, clocks."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest

from consumers.config import JoinConfig
from consumers.join import Join, Outcome
from consumers.record import Events, Kind, Partition, Side
from pipeline.store import MemoryStore
from tests.stream import START_MS, Record, job
from tests.unit.test_train import Trainer, append, topics


@pytest.mark.parametrize("value", [1e38, -3e30, 1.1e19])
def test_a_value_that_float32_cannot_square_is_a_reject_and_poisons_no_standardiser(
    tmp_path: Path, value: float
) -> None:
    config = job(tmp_path / "state")
    found = topics(config, 2000)
    for row in range(300, 310):
        log = found[Partition(config.features.topic, row % 2)]
        event = orjson.loads(log.values[row // 2] or b"")
        log.values[row // 2] = orjson.dumps({**event, "a": value})
    manifest = Trainer(config, MemoryStore(), found).run()
    assert manifest["counts"]["totals"]["rejected"] == 10
    assert manifest["counts"]["examples"]["trained"] == 1990
    assert manifest["metrics"]["live/auc_recent"] > 0.7


def test_ten_times_as_many_labels_as_there_are_features_are_orphans(tmp_path: Path) -> None:
    config = job(tmp_path / "state", join={"window": "200ms", "memory": "16MiB", "slab_rows": 512})
    found = topics(config, 1000)
    labels = found[Partition(config.labels.topic, 0)] if config.labels else None
    assert labels is not None
    last = labels.timestamps[-1]
    for number in range(10_000):
        at = last + 1 + number // 10
        append(labels, Record(at, b"x%d" % number, orjson.dumps({"id": f"x{number}", "ts": at, "y": 0})))
    trainer = Trainer(config, MemoryStore(), found)
    totals = trainer.run()["counts"]["totals"]
    assert totals["orphan"] + totals["waiting"] + totals["evicted"] >= 9_000
    assert totals["read"] == sum(map(len, found.values()))
    assert trainer.state.join.nbytes <= config.join.limit


def test_a_key_that_comes_a_million_times_counts_once_and_takes_one_row() -> None:
    config = JoinConfig(window=10**9, memory=2**24, slab_rows=512)
    join = Join(config, columns=1, score_width=1, partitions=1, labelled_features=False)
    rows = 50_000
    events = Events(
        key_N2=np.full((rows, 2), 7, np.uint64),
        event_time_N=np.full(rows, START_MS, np.int64),
        offset_N=np.arange(rows, dtype=np.int64),
        row_N=np.zeros(rows, np.int32),
        kind_N=np.full(rows, Kind.EVENT, np.uint8),
        features_NC=np.zeros((rows, 1), np.float32),
        weight_N=np.ones(rows, np.float32),
        label_N=None,
    )
    for _ in range(20):
        assert list(join.apply(Side.FEATURES, 0, events, np.zeros((rows, 1), np.float32))) == []
    assert join.counts_PO[0, Outcome.DUPLICATE] == 20 * rows - 1
    assert join.waiting_P()[0] == 1
    assert len(join.slabs()) == 1


def test_a_clock_that_steps_back_a_day_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = job(tmp_path / "state")
    straight = Trainer(config, MemoryStore(), topics(config)).run()
    store, real = MemoryStore(), time.time_ns
    trainer = Trainer(config, store, topics(config))
    trainer.run(die_after=20)
    monkeypatch.setattr(time, "time_ns", lambda: real() - 86_400 * 10**9)
    again: dict[str, Any] = Trainer(config, store, topics(config)).run()
    assert again["state_sha256"] == straight["state_sha256"]
    assert again["committed_ms"] < straight["committed_ms"]
