"""A flood of features whose labels never come: how much memory the trainer takes for them.

`python -m tests.faults.flood --memory 64MiB --flood 600MiB -o json`
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from consumers.config import parse_size
from consumers.record import NO_REJECTS, Events, Kind, Partition, Span
from pipeline.cadence import SnapshotCadence
from pipeline.config import JobConfig
from pipeline.snapshot import Lineage, Snapshots
from pipeline.state import State, fresh_positions
from pipeline.store import LocalStore
from pipeline.train import learn
from tests.stream import job
from tests.tiny import TinyLearner

COLUMNS = 64
SPAN = 2048
WARM_UP_SPANS = 16
LABEL_EVERY = 4  # spans of features to one of labels, which meet nothing


def flood_job(folder: Path, memory: int) -> JobConfig:
    """A job with `memory` for the join, and room for more on disk."""
    return job(
        folder / "state",
        features={"numeric": [f"x{n}" for n in range(COLUMNS)], "categorical": []},
        join={"window": "24h", "memory": f"{memory}B", "slab_rows": 8192},
        stream={"span": SPAN},
        snapshot={"every": "1h"},
    )


def spans(count: int) -> Iterator[tuple[Partition, Span]]:
    """Keys never come twice, and no label's key is a feature's."""
    random = np.random.default_rng(0)
    features_NC = random.standard_normal((SPAN, COLUMNS), np.float32)
    for number in range(count):
        for name in ("features", "labels") if number % LABEL_EVERY == 0 else ("features",):
            is_features = name == "features"
            place = 1000 + number
            start = number * SPAN
            events = Events(
                key_N2=random.integers(0, 2**64, (SPAN, 2), np.uint64),
                event_time_N=np.full(SPAN, place),
                offset_N=np.arange(start, start + SPAN),
                row_N=np.zeros(SPAN, np.int32),
                kind_N=np.full(SPAN, Kind.EVENT, np.uint8),
                features_NC=features_NC if is_features else np.empty((SPAN, 0), np.float32),
                weight_N=np.ones(SPAN, np.float32) if is_features else np.empty(0, np.float32),
                label_N=None if is_features else np.ones(SPAN, np.float32),
            )
            partition = Partition(f"t.{name}", 0)
            yield Span(partition, start, start + SPAN, place, SPAN, events, NO_REJECTS, skipped=0)


def resident() -> int:
    """Bytes of memory in use. PSS is less, but changes with who else uses the same libraries."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("Rss:"))


def flood(folder: Path, memory: int, size: int) -> dict[str, Any]:
    """Learns the flood and watches memory after each span."""
    config = flood_job(folder, memory)
    partitions = dict.fromkeys((Partition("t.features", 0), Partition("t.labels", 0)), 0)
    state = State(config, fresh_positions(partitions), TinyLearner(config))
    snapshots = Snapshots(LocalStore(folder / "state"), config, on_durable=lambda _: None, released=lambda: 10**9)
    snapshots.begin(Lineage.begin("cluster", {p.topic: "id" for p in partitions}, partitions), state)
    cadence = SnapshotCadence(config.snapshot.every, time.monotonic, 0)
    before = most = 0
    rows = size // state.join._tables[0].slab_bytes * 8192
    for number, span in enumerate(spans(rows // SPAN)):
        if number == WARM_UP_SPANS:
            before = resident() - state.join.nbytes
        learn(state, span)
        if cadence.due(state, snapshots.busy):
            snapshots.commit(state)
        if number > WARM_UP_SPANS and number % 3 == 0:
            most = max(most, resident())
    snapshots.commit(state)
    snapshots.wait()
    snapshots.close()
    index = sum(table.rows.index_H2.nbytes for table in state.join._tables)
    return {
        "memory": memory,
        "flood": state.join.nbytes,
        "rows": int(state.join.waiting_P().sum()),
        "index": index,  # part of what `memory` limits
        "staging": len(snapshots._frozen._buffer),  # comes on top
        "snapshots": snapshots.sequence,
        "growth": most - before,
        "share_of_memory": round((most - before) / memory, 3),
    }


def main() -> None:
    """Prints the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--memory", type=parse_size, default=64 * 2**20)
    parser.add_argument("--flood", type=parse_size, default=600 * 2**20)
    parser.add_argument("-o", "--output", choices=("text", "json"), default="text")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="flood-", ignore_cleanup_errors=True) as folder:
        figures = flood(Path(folder), args.memory, args.flood)
    if args.output == "json":
        print(json.dumps(figures))
    else:
        print("\n".join(f"{name:16} {value:>15,}" for name, value in figures.items()))


if __name__ == "__main__":
    main()
