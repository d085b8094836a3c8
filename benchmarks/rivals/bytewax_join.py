"""Bytewax joins the two topics by id, in memory, without recovery."""

from __future__ import annotations

import json
import time
from typing import Any

import bytewax.operators as op
from bytewax.connectors.kafka import KafkaSource
from bytewax.dataflow import Dataflow
from bytewax.outputs import DynamicSink, StatelessSinkPartition
from bytewax.testing import run_main
from joined import options, report


class Counter(StatelessSinkPartition[Any], DynamicSink[Any]):
    """Counts rows and notes when the last one came."""

    def __init__(self) -> None:
        self.rows, self.last = 0, 0.0

    def build(self, step_id: str, worker_index: int, worker_count: int) -> Counter:
        """The only worker's part."""
        return self

    def write_batch(self, items: list[Any]) -> None:
        """Takes joined rows."""
        self.rows += len(items)
        self.last = time.perf_counter()


def join(bootstrap: str, topics: list[str], rows: int) -> float:
    """Joins `rows` rows; returns the seconds from the first record to the last row joined."""
    moments: list[float] = []

    def parse(message: Any) -> tuple[str, dict[str, Any]]:
        if not moments:
            moments.append(time.perf_counter())
        event = json.loads(message.value)
        return str(event["id"]), event

    flow, counter = Dataflow("join"), Counter()
    sides = [
        op.map(f"parse-{topic}", op.input(topic, flow, KafkaSource([bootstrap], [topic], tail=False)), parse)
        for topic in topics
    ]
    op.output("count", op.join("join", *sides, emit_mode="complete"), counter)
    run_main(flow)
    if counter.rows != rows:
        raise RuntimeError(f"{counter.rows} of {rows} rows were joined")
    return counter.last - moments[0]


if __name__ == "__main__":
    arguments = options(__doc__)
    report(arguments.rows, join(arguments.bootstrap, [arguments.features, arguments.labels], arguments.rows))
