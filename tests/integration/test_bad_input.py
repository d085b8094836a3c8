"""Every kind of bad input on a real Kafka: it goes to the dead letters, and training is what it is without it."""

from __future__ import annotations

import math
import os
import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import mlflow
import numpy as np
import orjson
import pytest
import safetensors.torch
import torch
from confluent_kafka import Consumer, TopicPartition

from consumers.broker import create_topics
from consumers.codecs import build_codec
from consumers.hashing import bucket
from consumers.inmemory import InMemorySource
from consumers.kafka import Cluster
from consumers.record import REJECT_RAW_BYTES_MAX, Messages, Partition, Side, Wait
from pipeline.config import JobConfig, label_rule
from pipeline.learner import Learner
from pipeline.state import State, fresh_positions
from pipeline.store import LocalStore
from tests.conftest import TOPIC_CONFIG, produce
from tests.jobs import Job
from tests.stream import START_MS, Record, events, job_document

pytestmark = [
    pytest.mark.filterwarnings("ignore:::mlflow", "ignore:::torch", "ignore::ResourceWarning"),
    pytest.mark.timeout(400),  # a module's fixture counts as its first test
]

ROWS = 1500
PARTITIONS = 2
YEAR_2286_MS = 9_999_999_999_999
A_DAY_MS = 86_400_000

Spoil = Callable[[bytes], bytes | None]


def edit(**changes: Any) -> Spoil:
    return lambda value: orjson.dumps({**orjson.loads(value), **changes})


def without(name: str) -> Spoil:
    return lambda value: orjson.dumps({k: v for k, v in orjson.loads(value).items() if k != name})


def literal(text: bytes, old: bytes = b'"a":0.5') -> Spoil:
    """Puts in text that a JSON library would not write."""
    return lambda value: value.replace(old, old[:4] + text)


def feature(key: str, at: int, **more: Any) -> bytes:
    return orjson.dumps({"id": key, "ts": at, "a": 0.5, "b": 1.0, "c": "x", "w": 1.0, **more})


def label(key: str, at: int) -> bytes:
    return orjson.dumps({"id": key, "ts": at, "y": 1})


BAD_FEATURES: dict[str, tuple[Spoil, str]] = {
    "undecodable bytes": (lambda value: b"\xff\xfe" + value, "not JSON: byte 0 is not UTF-8"),
    "undecodable bytes in a text": (literal(b'"\xff"', b'"c":"x"'), "not JSON: byte"),
    "a message cut off": (lambda value: value[:-9], "not JSON: "),
    "no bytes at all": (lambda _: b"", "not JSON: Expecting value"),
    "two objects": (lambda value: value + value, "not JSON: Extra data"),
    "not an object": (lambda value: b"[" + value + b"]", "not an object: "),
    "a text for a number": (edit(a="0.5"), "column 'a': \"0.5\", not a number"),
    "a boolean for a number": (edit(a=True), "column 'a': true, not a number"),
    "a list for a number": (edit(a=[0.5, 0.5]), "column 'a': [0.5, 0.5], not a number"),
    "an object for a number": (edit(a={"value": 0.5}), "column 'a': {\"value\": 0.5}, not a number"),
    "an object for a category": (edit(c={"name": "x"}), 'column \'c\': {"name": "x"}, not'),
    "a text in a nullable column": (edit(b="1"), "column 'b': \"1\", not a number"),
    "a column is missing": (without("a"), "column 'a': missing, but the column is not nullable"),
    "null": (edit(a=None), "column 'a': null, but the column is not nullable"),
    "null for a category": (edit(c=None), "column 'c': null, but the column is not nullable"),
    "NaN": (literal(b"NaN"), "column 'a': NaN, but the column is not nullable"),
    "Infinity": (literal(b"Infinity"), "not JSON: Infinity"),
    "minus Infinity in a nullable column": (literal(b"-Infinity", b'"b":1.0'), "not JSON: -Infinity"),
    "1e999": (literal(b"1e999"), "column 'a': Infinity is not finite as float32"),
    "more than a float32 holds": (literal(b"1e39"), "column 'a': 1e+39 is not finite as float32"),
    "a duplicate key": (lambda value: b'{"a":0,' + value[1:], "duplicate key 'a'"),
    "100,000 brackets": (
        lambda value: b'{"u":' + b"[" * 100_000 + b"]" * 100_000 + b"," + value[1:],
        "nested more than 32 levels deep",
    ),
    "100,000 brackets never closed": (lambda _: b"[" * 100_000, "nested more than 32 levels deep"),
    "10 MB": (edit(u="u" * 10_000_000), "bytes, more than max_message_bytes = 1048576"),
    "the key is missing": (without("id"), "key 'id': missing, not a non-empty string or an integer"),
    "the key is a float": (edit(id=1.5), "key 'id': 1.5, not a non-empty string or an integer"),
    "the key is empty": (edit(id=""), "key 'id': \"\", not a non-empty string or an integer"),
    "the time is missing": (without("ts"), "time 'ts': missing, not an integer"),
    "the time is no integer": (edit(ts=START_MS + 0.5), "not an integer (ms since the epoch)"),
    "the time is negative": (edit(ts=-1), "time 'ts': -1 is negative"),
    "the time is ahead of its record": (edit(ts=START_MS + A_DAY_MS), "is more than max_skew = 300000 ms ahead"),
    "the weight is missing": (without("w"), "weight 'w': missing, not a number"),
    "the weight is negative": (edit(w=-1), "weight 'w': -1 is negative"),
    "the weight is NaN": (literal(b"NaN", b'"w":1.0'), "NaN"),
    "a label among the features": (lambda _: label("bad", START_MS), "weight 'w': missing, not a number"),
    "a tombstone without a key": (lambda _: None, "key: the message has no key"),
}
BAD_LABELS: dict[str, tuple[Spoil, str]] = {
    "label: undecodable bytes": (lambda value: value + b"\xff", "is not UTF-8"),
    "label: not an object": (lambda _: b"1", "not an object: 1"),
    "label: a third class": (edit(y=2), "label 'y': 2, not true, false, 0 or 1"),
    "label: a text": (edit(y="1"), "label 'y': \"1\", not true, false, 0 or 1"),
    "label: null": (edit(y=None), "label 'y': null, not true, false, 0 or 1"),
    "label: NaN": (literal(b"NaN", b'"y":1'), "NaN"),
    "label: a duplicate key": (lambda value: b'{"y":0,' + value[1:], "duplicate key 'y'"),
    "label: 10 MB": (edit(u="u" * 10_000_000), "bytes, more than max_message_bytes = 1048576"),
    "label: the key is missing": (without("id"), "key 'id': missing"),
    "label: the time is negative": (edit(ts=-1), "time 'ts': -1 is negative"),
    "label: the time is ahead of its record": (edit(ts=START_MS + A_DAY_MS), "max_skew = 300000 ms ahead"),
    "label: a feature event among the labels": (lambda _: feature("bad", START_MS), "label 'y': missing"),
    "label: a tombstone without a key": (lambda _: None, "key: the message has no key"),
}
BAD = BAD_FEATURES | BAD_LABELS

UNUSUAL: dict[str, Spoil] = {
    "an unknown category": edit(c="unheard of"),
    "null in a nullable column": edit(b=None),
    "NaN in a nullable column": literal(b"NaN", b'"b":1.0'),
    "a nullable column left out": without("b"),
    "an integer for a float": edit(a=1),
    "a field nobody asked for": edit(u={"v": [1, None]}),
    "a record stamped in 2286": lambda value: value,
}
"""What is not bad: good examples, by what is unusual about them."""


@dataclass(frozen=True)
class Sent(Record):
    """A record to produce, where it stands among the others, and its kind if it is bad."""

    at: int
    partition: int
    bad: str | None = None


def sent(at: int, key: str, value: bytes | None, *, bad: str | None = None, timestamp: int | None = None) -> Sent:
    """A record with its key as message key too, unless it is a bad tombstone."""
    name = key.encode()
    message_key = None if bad and value is None else name
    return Sent(timestamp or at, message_key, value, at, zlib.crc32(name) % PARTITIONS, bad)


def make_stream() -> dict[Side, list[Sent]]:
    """Good examples around bad records, whose other halves are good and come too; and one withdrawn row."""
    stream: dict[Side, list[Sent]] = {Side.FEATURES: [], Side.LABELS: []}
    for side, records in zip(Side, events(ROWS), strict=True):
        for record in records:
            values = orjson.loads(record.value or b"")
            weight = {"w": 0.5 + values["n"] % 3} if side is Side.FEATURES else {}
            stream[side].append(sent(record.timestamp, values["id"], orjson.dumps(values | weight)))
    for number, (kind, (spoil, _)) in enumerate(BAD.items()):
        at, key = START_MS + 100 + 20 * number, f"bad {number}"
        for side, good in (Side.FEATURES, feature(key, at)), (Side.LABELS, label(key, at)):
            if (kind in BAD_FEATURES) == (side is Side.FEATURES):
                stream[side].append(sent(at, key, spoil(good), bad=kind))
            else:
                stream[side].append(sent(at, key, good))
    for number, (kind, spoil) in enumerate(UNUSUAL.items()):
        at, key = START_MS + 150 + 20 * number, f"unusual {number}"
        stamp = YEAR_2286_MS if kind == "a record stamped in 2286" else None
        stream[Side.FEATURES].append(sent(at, key, spoil(feature(key, at)), timestamp=stamp))
        stream[Side.LABELS].append(sent(at + 50, key, label(key, at + 50), timestamp=stamp))
    at, key = START_MS + 200, "withdrawn"
    stream[Side.FEATURES] += [sent(at, key, feature(key, at)), sent(at + 700, key, None)]
    stream[Side.LABELS].append(sent(at + 1300, key, label(key, at + 1300)))
    return {side: sorted(records, key=lambda record: record.at) for side, records in stream.items()}


class Letter(NamedTuple):
    """One message of the dead-letter topic."""

    key: bytes | None
    value: bytes | None
    headers: dict[str, str]

    @property
    def origin(self) -> tuple[Partition, int]:
        return Partition(self.headers["topic"], int(self.headers["partition"])), int(self.headers["offset"])


@dataclass(frozen=True)
class Outcome:
    """What was produced, partition by partition in the order of offsets, and what came of it."""

    produced: dict[Partition, list[Sent]]
    topic_ids: dict[str, str]
    config: JobConfig
    manifest: dict[str, Any]
    arrays: dict[str, Any]
    letters: list[Letter]

    def bad(self, kind: str) -> tuple[Partition, int, Sent]:
        """Where the bad record of a kind lies, and what it is."""
        (found,) = [
            (partition, offset, record)
            for partition, records in self.produced.items()
            for offset, record in enumerate(records)
            if record.bad == kind
        ]
        return found


@pytest.fixture(scope="module")
def outcome(kafka: Any, tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    """One run over everything."""
    folder = tmp_path_factory.mktemp("bad")
    names = {side: f"bad-{os.getpid()}.{side}" for side in ("features", "labels", "dead")}
    create_topics(kafka.bootstrap, dict.fromkeys(names.values(), PARTITIONS), TOPIC_CONFIG)
    stream = make_stream()
    produced = {}
    for side, topic in zip(Side, (names["features"], names["labels"]), strict=True):
        produce(kafka.bootstrap, topic, stream[side])
        for number in range(PARTITIONS):
            produced[Partition(topic, number)] = [record for record in stream[side] if record.partition == number]
    document = job_document(
        folder / "state",
        kafka.bootstrap,
        "bad",
        features={"topic": names["features"], "weight": "w"},
        labels={"topic": names["labels"]},
        dead_letters={"topic": names["dead"], "hold_share": 1.0},
    )
    job = Job(folder, document)
    manifest = job.learn_all()
    cluster = Cluster({"bootstrap.servers": kafka.bootstrap})
    topic_ids = {topic: cluster.topic(topic).id for topic in names.values()}
    letters = read_letters(kafka.bootstrap, names["dead"])
    return Outcome(produced, topic_ids, JobConfig.model_validate(document), manifest, job.arrays(), letters)


def read_letters(bootstrap: str, topic: str) -> list[Letter]:
    """The whole dead-letter topic."""
    consumer = Consumer({"bootstrap.servers": bootstrap, "group.id": "test", "enable.partition.eof": True})
    consumer.assign([TopicPartition(topic, number, 0) for number in range(PARTITIONS)])
    letters, ends = [], 0
    while ends < PARTITIONS:
        message = consumer.poll(30)
        assert message is not None
        if message.error():
            ends += 1
        else:
            headers = {name: text.decode() for name, text in message.headers()}
            letters.append(Letter(message.key(), message.value(), headers))
    consumer.close()
    return letters


def learned_without(outcome: Outcome) -> State:
    """The state after the same stream with sane timestamps, and a tombstone in the place of every bad record."""
    config = outcome.config
    assert config.labels is not None
    rule = label_rule(config.learner)
    codecs = {topic.topic: build_codec(topic, rule) for topic in (config.features, config.labels)}
    topics = {
        partition: Messages.of(
            range(len(records)),
            [record.at for record in records],
            [b"nobody" if record.bad else record.key for record in records],
            [None if record.bad else record.value for record in records],
        )
        for partition, records in outcome.produced.items()
    }
    sides = {config.features.topic: Side.FEATURES, config.labels.topic: Side.LABELS}
    state = State(config, fresh_positions(dict.fromkeys(topics, 0)), Learner(config))
    for entry in InMemorySource(topics, codecs, sides, config.stream).entries(state.positions):
        assert not isinstance(entry, Wait)
        for batch in state.apply(entry):
            state.observe(batch, state.learner.step(batch))
    return state


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_record_is_found_among_the_dead_letters(outcome: Outcome, kind: str) -> None:
    partition, offset, record = outcome.bad(kind)
    (letter,) = [letter for letter in outcome.letters if letter.origin == (partition, offset)]
    headers = letter.headers
    assert BAD[kind][1] in headers.pop("reason")
    assert headers == {
        "evertrain.id": f"{outcome.topic_ids[partition.topic]}:{partition.number}:{offset}:0",
        "topic": partition.topic,
        "partition": str(partition.number),
        "offset": str(offset),
        "row": "0",
        "value_bytes": str(len(record.value or b"")),
        "timestamp": str(record.timestamp),
        "lineage": outcome.manifest["lineage"],
    }
    assert letter.key == record.key
    assert letter.value == (record.value and record.value[:REJECT_RAW_BYTES_MAX])


def test_nothing_else_is_among_the_dead_letters(outcome: Outcome) -> None:
    ids = {letter.headers["evertrain.id"] for letter in outcome.letters}
    assert len(ids) == len(outcome.letters) == len(BAD)


def test_everything_good_is_learned_and_counted(outcome: Outcome) -> None:
    good = ROWS + len(UNUSUAL)
    totals, examples = outcome.manifest["counts"]["totals"], outcome.manifest["counts"]["examples"]
    assert examples == {"trained": good, "refused": 0, "open": 0, "filled_in": 0}
    assert {name: count for name, count in totals.items() if count} == {
        "read": sum(map(len, outcome.produced.values())),
        "matched": 2 * good,
        "rejected": len(BAD),
        "waiting": len(BAD) + 1,  # other halves of bad records, and the label of the withdrawn row
        "tombstone": 1,
        "withdrawn": 1,
    }


def test_neither_bad_records_nor_a_wild_timestamp_leave_a_trace_in_the_weights(outcome: Outcome) -> None:
    weights = learned_without(outcome).learner.weights()
    for name, expected in weights.items():
        assert np.isfinite(expected).all()
        np.testing.assert_array_equal(outcome.arrays[f"learner.module.{name}"], expected, err_msg=name)
    assert "live/unmeasured" not in outcome.manifest["metrics"]
    assert math.isfinite(outcome.manifest["metrics"]["live/logloss"])


def test_an_unknown_category_is_learned_and_counted(outcome: Outcome) -> None:
    seen = {bucket(category.encode(), 32) for category in ("x", "y", "z", "unheard of")}
    assert outcome.manifest["metrics"]["drift/unknown_categories"] == len(seen) == 4


def test_a_record_stamped_in_2286_moves_nothing(outcome: Outcome) -> None:
    newest = max(record.at for records in outcome.produced.values() for record in records)
    assert outcome.manifest["watermark"] <= newest
    assert outcome.manifest["time_ms"] <= newest


@dataclass(frozen=True)
class Lesson:
    """A task with a weight column, whose rows of weight 0 have wrong labels, and what must come of it."""

    truth: Callable[[dict[str, Any]], Any]
    wrong: Any
    reached: dict[str, Callable[[float], bool]]
    metrics: set[str]


LESSONS = {
    "multiclass": Lesson(
        truth=lambda values: int(values["a"] > -0.4) + int(values["a"] > 0.4),
        wrong=0,
        reached={"live/auc_recent": lambda auc: auc > 0.9, "live/accuracy_recent": lambda share: share > 0.7},
        metrics={"logloss", "auc", "accuracy"},
    ),
    "regression": Lesson(
        truth=lambda values: 3 * values["a"] + (values["c"] == "x"),
        wrong=1e6,
        reached={"live/r2_recent": lambda r2: r2 > 0.7, "live/mae": lambda mae: mae < 5},
        metrics={"mae", "rmse", "r2"},
    ),
}


@pytest.mark.parametrize("task", LESSONS)
def test_a_task_with_weights_trains_to_the_end_and_its_version_scores_as_the_trainer_did(
    kafka: Any, topics: Any, tmp_path: Path, task: str
) -> None:
    lesson, rows = LESSONS[task], 3000
    names = topics(f"{task}-features", f"{task}-labels", f"{task}-dead", partitions=PARTITIONS)
    features, labels = events(rows)
    truths = {}
    for index, record in enumerate(features):
        values = orjson.loads(record.value or b"") | {"w": index % 5 / 2}
        truths[record.key] = lesson.truth(values) if values["w"] else lesson.wrong
        features[index] = replace(record, value=orjson.dumps(values))
    labels = [replace(r, value=edit(y=truths[r.key])(r.value or b"")) for r in labels]
    produce(kafka.bootstrap, names[0], features)
    produce(kafka.bootstrap, names[1], labels)
    document = job_document(
        tmp_path / "state",
        kafka.bootstrap,
        task,
        features={"topic": names[0], "weight": "w"},
        labels={"topic": names[1]},
        dead_letters={"topic": names[2]},
        learner={"task": task, "classes": 3, "learning_rate": 0.02, "device": "cpu"},
        snapshot={"every": "1000 rows", "keep": 100},
        registry={"register_every": "2000 rows"},
    )
    job = Job(tmp_path, document)
    manifest = job.learn_all()
    assert manifest["counts"]["examples"] == {"trained": rows, "refused": 0, "open": 0, "filled_in": 0}
    assert all(enough(manifest["metrics"][name]) for name, enough in lesson.reached.items()), manifest["metrics"]

    mlflow.set_tracking_uri(document["registry"]["tracking_uri"])
    client = mlflow.MlflowClient()
    (version,) = client.search_model_versions(f"name = '{task}-job'")
    logged = client.get_run(version.run_id).data.metrics
    for name in lesson.metrics | {f"{name}_recent" for name in lesson.metrics}:
        assert logged[f"live/{name}"] == manifest["metrics"][f"live/{name}"]
        assert math.isfinite(float(version.tags[f"live/{name}"]))

    features_BC, scores_BS = check_block(job.state_dir, version.tags["snapshot_id"])
    loaded = mlflow.pytorch.load_model(f"models:/{task}-job/{version.version}")
    with torch.inference_mode():
        assert loaded(features_BC).numpy().tobytes() == scores_BS.numpy().tobytes()
    assert scores_BS.shape == ((64, 3) if task == "multiclass" else (64,))


def check_block(state_dir: Path, snapshot_id: str) -> tuple[torch.Tensor, torch.Tensor]:
    """The features and the scores that the trainer kept with a version."""
    store = LocalStore(state_dir)
    (manifest,) = [m for m in map(store.manifest, store.sequences()) if m["snapshot_id"] == snapshot_id]
    tensors = safetensors.torch.load(store.get(manifest["owed"]["version"]))
    return tensors["check.features"], tensors["check.scores"]
