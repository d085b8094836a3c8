"""What the rivals share: options, the printed result, and joined rows for those that only learn.

These files run in a virtual environment of their own; nothing of Evertrain is there.
"""

from __future__ import annotations

import argparse
import json
import time
import uuid
from collections.abc import Iterator
from typing import Any

from confluent_kafka import Consumer, KafkaException


def options(description: str | None) -> argparse.Namespace:
    """Where the topics are, and how many rows they hold."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--bootstrap", required=True)
    parser.add_argument("--features", required=True)
    parser.add_argument("--labels", required=True)
    parser.add_argument("--rows", type=int, required=True)
    return parser.parse_args()


def report(rows: int, seconds: float) -> None:
    """Prints {"rows", "seconds", "rows_per_s"}."""
    print(json.dumps({"rows": rows, "seconds": seconds, "rows_per_s": rows / seconds}))


class Joined:
    """Rows as benchmarks/naive.py joins them: one consumer, `poll`, `json.loads` and two dicts."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self._arguments = arguments
        self._started = 0.0

    def __iter__(self) -> Iterator[tuple[dict[str, float], int]]:
        consumer = Consumer(
            {
                "bootstrap.servers": self._arguments.bootstrap,
                "group.id": f"rival-{uuid.uuid4()}",
                "auto.offset.reset": "earliest",
                "enable.auto.commit": False,
            }
        )
        topics = [self._arguments.features, self._arguments.labels]
        consumer.subscribe(topics)
        waiting: dict[str, dict[int, Any]] = {topic: {} for topic in topics}
        rows = 0
        while rows < self._arguments.rows:
            message = consumer.poll(1.0)
            if message is None:
                continue
            if message.error():
                raise KafkaException(message.error())
            self._started = self._started or time.perf_counter()
            event = json.loads(message.value())
            key, _ = event.pop("id"), event.pop("ts")
            mine, other = topics if message.topic() == topics[0] else reversed(topics)
            if key not in waiting[other]:
                waiting[mine][key] = event
                continue
            half = waiting[other].pop(key)
            features, label = (event, half) if mine == topics[0] else (half, event)
            yield features, label["y"]
            rows += 1
        consumer.close()

    def report(self) -> None:
        """Prints the result: from the first record to now."""
        report(self._arguments.rows, time.perf_counter() - self._started)
