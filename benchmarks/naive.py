"""The loop that a competent engineer writes first: the yardstick. Neither slowed down nor tuned."""

from __future__ import annotations

import argparse
import json
import time
import uuid

import torch
from confluent_kafka import Consumer, KafkaException
from torch import nn
from torch.nn import functional

COLUMNS = [f"f{index}" for index in range(32)]
BATCH_SIZE = 1024
COMMIT_STEPS = 64


def train(bootstrap: str, features_topic: str, labels_topic: str, rows: int) -> float:
    """Joins and learns `rows` rows; returns the seconds from the first record to the last row learned."""
    torch.set_num_threads(1)
    model = nn.Sequential(nn.Linear(32, 256), nn.ReLU(), nn.Linear(256, 128), nn.ReLU(), nn.Linear(128, 1))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)

    consumer = Consumer(
        {
            "bootstrap.servers": bootstrap,
            "group.id": f"naive-{uuid.uuid4()}",
            "auto.offset.reset": "earliest",
            "enable.auto.commit": False,
        }
    )
    consumer.subscribe([features_topic, labels_topic])

    waiting_features: dict[int, list[float]] = {}
    waiting_labels: dict[int, float] = {}
    batch_features: list[list[float]] = []
    batch_labels: list[float] = []
    learned = steps = 0
    started = 0.0

    while learned < rows:
        message = consumer.poll(1.0)
        if message is None:
            continue
        if message.error():
            raise KafkaException(message.error())
        if not started:
            started = time.perf_counter()

        event = json.loads(message.value())
        key = event["id"]
        if message.topic() == features_topic:
            features = [event[column] for column in COLUMNS]
            if key not in waiting_labels:
                waiting_features[key] = features
                continue
            label = waiting_labels.pop(key)
        else:
            label = event["y"]
            if key not in waiting_features:
                waiting_labels[key] = label
                continue
            features = waiting_features.pop(key)

        batch_features.append(features)
        batch_labels.append(label)
        if len(batch_labels) == BATCH_SIZE or learned + len(batch_labels) == rows:
            features_BC = torch.tensor(batch_features)
            labels_B = torch.tensor(batch_labels, dtype=torch.float32)
            loss = functional.binary_cross_entropy_with_logits(model(features_BC).squeeze(1), labels_B)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            learned += len(batch_labels)
            batch_features, batch_labels = [], []
            steps += 1
            if steps % COMMIT_STEPS == 0:
                consumer.commit()

    seconds = time.perf_counter() - started
    consumer.close()
    return seconds


def main() -> None:
    """Prints {"rows", "seconds", "rows_per_s"}."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.naive", description=__doc__)
    parser.add_argument("--bootstrap", required=True)
    parser.add_argument("--features", required=True, help="the topic of feature events")
    parser.add_argument("--labels", required=True, help="the topic of label events")
    parser.add_argument("--rows", type=int, required=True, help="end after so many rows learned")
    args = parser.parse_args()
    seconds = train(args.bootstrap, args.features, args.labels, args.rows)
    print(json.dumps({"rows": args.rows, "seconds": seconds, "rows_per_s": args.rows / seconds}))


if __name__ == "__main__":
    main()
