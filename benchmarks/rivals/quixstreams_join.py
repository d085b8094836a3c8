"""Quix Streams joins each label with the feature event before it: RocksDB state with its changelog, as by default."""

from __future__ import annotations

import tempfile
import time
import uuid
from typing import Any

from joined import options, report
from quixstreams import Application


def join(bootstrap: str, features: str, labels: str, rows: int) -> float:
    """Joins `rows` rows; returns the seconds from the first record to the last row joined."""
    started: list[float] = []
    joined: list[float] = []

    def begin(_: Any) -> None:
        if not started:
            started.append(time.perf_counter())

    def note(_: Any) -> None:
        joined.append(time.perf_counter())

    with tempfile.TemporaryDirectory() as state:
        app = Application(
            broker_address=bootstrap,
            consumer_group=f"rival-{uuid.uuid4()}",
            auto_offset_reset="earliest",
            state_dir=state,
            loglevel="ERROR",
        )
        feature_events = app.dataframe(app.topic(features, value_deserializer="json")).update(begin)
        label_events = app.dataframe(app.topic(labels, value_deserializer="json"))
        label_events.join_asof(feature_events, how="inner", on_merge="keep-left", grace_ms=300_000).update(note)
        app.run(count=rows, collect=False, timeout=60)
    if len(joined) != rows:
        raise RuntimeError(f"{len(joined)} of {rows} rows were joined")
    return joined[-1] - started[0]


if __name__ == "__main__":
    arguments = options(__doc__)
    report(arguments.rows, join(arguments.bootstrap, arguments.features, arguments.labels, arguments.rows))
