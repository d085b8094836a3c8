"""The loop that a competent engineer writes first: the yardstick. Neither slowed down nor tuned."""

from __future__ import annotations

import argparse
import io
import json
import struct
import time
import uuid
from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

import fastavro
import pyarrow as pa
import torch
from confluent_kafka import Consumer, KafkaException
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass
from torch import nn
from torch.nn import functional

from benchmarks.formats import FORMATS, avro_schema, message_name, protobuf_file
from consumers.record import Side

COLUMNS = [f"f{index}" for index in range(32)]
BATCH_SIZE = 1024
COMMIT_STEPS = 64

Features: TypeAlias = list[tuple[int, list[float]]]
Labels: TypeAlias = list[tuple[int, float]]
Decoders: TypeAlias = tuple[Callable[[bytes], Features], Callable[[bytes], Labels]]


def json_decoders() -> Decoders:
    """The standard library's parser."""

    def features(value: bytes) -> Features:
        event = json.loads(value)
        return [(event["id"], [event[column] for column in COLUMNS])]

    def labels(value: bytes) -> Labels:
        event = json.loads(value)
        return [(event["id"], event["y"])]

    return features, labels


def avro_decoders() -> Decoders:
    """The fast one of the two common Avro libraries."""
    schemas = {side: fastavro.parse_schema(avro_schema(side)) for side in Side}

    def read(side: Side, value: bytes) -> Any:
        return fastavro.schemaless_reader(io.BytesIO(value), schemas[side])

    def features(value: bytes) -> Features:
        event = read(Side.FEATURES, value)
        return [(event["id"], [event[column] for column in COLUMNS])]

    def labels(value: bytes) -> Labels:
        event = read(Side.LABELS, value)
        return [(event["id"], event["y"])]

    return features, labels


def protobuf_decoders() -> Decoders:
    """The classes that generated code consists of."""
    pool = DescriptorPool()
    pool.Add(protobuf_file())
    feature_class, label_class = (GetMessageClass(pool.FindMessageTypeByName(message_name(side))) for side in Side)

    def features(value: bytes) -> Features:
        event = feature_class.FromString(value)
        return [(event.id, [getattr(event, column) for column in COLUMNS])]

    def labels(value: bytes) -> Labels:
        event = label_class.FromString(value)
        return [(event.id, event.y)]

    return features, labels


def packed_decoders() -> Decoders:
    """The struct module."""
    feature_struct, label_struct = struct.Struct(f"<qq{len(COLUMNS)}f"), struct.Struct("<qqq")

    def features(value: bytes) -> Features:
        key, _, *columns = feature_struct.unpack(value)
        return [(key, columns)]

    def labels(value: bytes) -> Labels:
        key, _, label = label_struct.unpack(value)
        return [(key, label)]

    return features, labels


def arrow_decoders() -> Decoders:
    """Many rows a message, each a dict as the join below wants it."""

    def features(value: bytes) -> Features:
        events = pa.ipc.open_stream(value).read_all().to_pylist()
        return [(event["id"], [event[column] for column in COLUMNS]) for event in events]

    def labels(value: bytes) -> Labels:
        events = pa.ipc.open_stream(value).read_all().to_pylist()
        return [(event["id"], event["y"]) for event in events]

    return features, labels


DECODERS: dict[str, Callable[[], Decoders]] = {
    "json": json_decoders,
    "avro": avro_decoders,
    "protobuf": protobuf_decoders,
    "packed": packed_decoders,
    "arrow": arrow_decoders,
}


class Join:
    """Each half waits for the other in a dict; nothing is ever forgotten."""

    def __init__(self) -> None:
        self.features: dict[int, list[float]] = {}
        self.labels: dict[int, float] = {}

    def add_features(self, events: Features) -> Iterator[tuple[list[float], float]]:
        """The rows that these complete."""
        for key, features in events:
            if key in self.labels:
                yield features, self.labels.pop(key)
            else:
                self.features[key] = features

    def add_labels(self, events: Labels) -> Iterator[tuple[list[float], float]]:
        """The rows that these complete."""
        for key, label in events:
            if key in self.features:
                yield self.features.pop(key), label
            else:
                self.labels[key] = label


class Trainer:
    """The model and its optimizer."""

    def __init__(self) -> None:
        torch.set_num_threads(1)
        self.model = nn.Sequential(nn.Linear(32, 256), nn.ReLU(), nn.Linear(256, 128), nn.ReLU(), nn.Linear(128, 1))
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=1e-3)

    def step(self, batch_features: list[list[float]], batch_labels: list[float]) -> None:
        """Learns one batch."""
        features_BC = torch.tensor(batch_features)
        labels_B = torch.tensor(batch_labels, dtype=torch.float32)
        loss = functional.binary_cross_entropy_with_logits(self.model(features_BC).squeeze(1), labels_B)
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()


def train(bootstrap: str, topics: tuple[str, str], decoders: Decoders, rows: int, trainer: Trainer | None) -> float:
    """Joins and learns `rows` rows; returns the seconds from the first record to the last row learned.

    Without a trainer, a batch that is full is thrown away.
    """
    consumer = Consumer(
        {
            "bootstrap.servers": bootstrap,
            "group.id": f"naive-{uuid.uuid4()}",
            "auto.offset.reset": "earliest",
            "enable.auto.commit": False,
        }
    )
    consumer.subscribe(list(topics))
    features_topic, _ = topics
    read_features, read_labels = decoders
    join = Join()
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
        started = started or time.perf_counter()

        if message.topic() == features_topic:
            joined = join.add_features(read_features(message.value()))
        else:
            joined = join.add_labels(read_labels(message.value()))
        for features, label in joined:
            batch_features.append(features)
            batch_labels.append(label)
            if len(batch_labels) == BATCH_SIZE or learned + len(batch_labels) == rows:
                if trainer:
                    trainer.step(batch_features, batch_labels)
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
    parser.add_argument("--format", choices=FORMATS, default="json")
    parser.add_argument("--no-train", action="store_true", help="only join")
    parser.add_argument("--rows", type=int, required=True, help="end after so many rows learned")
    args = parser.parse_args()
    trainer = None if args.no_train else Trainer()
    seconds = train(args.bootstrap, (args.features, args.labels), DECODERS[args.format](), args.rows, trainer)
    print(json.dumps({"rows": args.rows, "seconds": seconds, "rows_per_s": args.rows / seconds}))


if __name__ == "__main__":
    main()
