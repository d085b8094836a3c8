"""A trainer without training: it commits hand-made snapshots and holds the real releaser process."""

import json
import time

import mlflow
import pyarrow as pa
import safetensors.torch
import torch
from confluent_kafka import Consumer, Producer, TopicPartition

from consumers.record import REJECTS
from pipeline.config import JobConfig
from pipeline.releaser import Releaser
from pipeline.store import LocalStore
from pipeline.task import build_scorer

LINEAGE = "0123456789abcdef"
WAIT_S = 200
REJECT = {
    "offset": 17,
    "row": 0,
    "timestamp": 1_357_000_000_000,
    "reason": "column 'distance' is null",
    "key": b"k17",
    "value": b'{"distance": null}',
    "value_bytes": 18,
    "topic": "release.features",
    "topic_id": "topic-id",
    "partition": 1,
}


def mock_kafka():
    """The mock cluster inside librdkafka: make a fixture of it."""
    cluster = Producer({"bootstrap.servers": "none", "test.mock.num.brokers": 1, "log_level": 2})
    brokers = cluster.list_topics(timeout=10).brokers.values()
    cluster.produce("release.features", b"to create the topic", partition=0)
    cluster.flush()
    yield ",".join(f"{broker.host}:{broker.port}" for broker in brokers)
    cluster.flush()  # the cluster lives as long as this producer


class Trainer:
    """Commits snapshots as the trainer does, and holds the releaser."""

    def __init__(self, path, bootstrap, tracking_uri, name="release", features="release.features", **tables):
        self.name, self.lineage = name, LINEAGE
        self.state_dir = path / "state"
        self.store = LocalStore(self.state_dir)
        self.releaser = Releaser(self.state_dir)
        self.job = JobConfig.model_validate(
            {
                "job": {"name": name, "state_dir": str(self.state_dir)},
                "kafka": {"bootstrap.servers": bootstrap},
                "features": {
                    "topic": features,
                    "numeric": ["distance", {"name": "delay", "nullable": True}],
                    "categorical": ["carrier"],
                },
                "labels": {"topic": "release.labels", "column": "late"},
                "learner": {"kind": "mlp", "device": "cpu", "batch_size": 64},
                "registry": {"tracking_uri": tracking_uri},
                "dead_letters": {"topic": "release.dead"},
            }
            | tables
        )

    def start_releaser(self):
        """As a start does: all snapshots on disk are durable."""
        self.releaser.start(max(self.store.sequences(), default=-1))

    def commit(self, sequence, *, rejects=(), version=False, **changes):
        owed = {
            "dead_letters": self.store.put([rejects_blob(rejects)]) if rejects else None,
            "points": self.store.put([json.dumps([point(sequence)]).encode()]) if sequence else None,
            "version": self.store.put([self.version_blob(sequence)]) if version else None,
        }
        where = {"topic": self.job.features.topic, "topic_id": "topic-id", "partition": 0}
        manifest = {
            "format": 1,
            "sequence": sequence,
            "snapshot_id": f"{self.lineage}-{sequence}",
            "parent": None,
            "anchor": None,
            "released": -1,
            "lineage": self.lineage,
            "ancestors": [],
            "new_lineage": False,
            "name": self.name,
            "config": self.job.model_dump(mode="json"),
            "config_sha256": self.job.sha256(),
            "code_version": "0.1.0+test",
            "environment": {"threads": "1"},
            "started": [where | {"next": 0}],
            "cursor": [where | {"next": 100 * sequence}],
            "watermark": 1_357_000_000_000 if sequence else None,
            "rows_trained": 1000 * sequence,
            "counts": {},
            "weights_sha256": "0" * 64,
            "metrics": point(sequence)["values"],
            "alarms": 0,
            "time_ms": point(sequence)["time_ms"],
            "trained_ms": point(sequence)["time_ms"],
            "blobs": {},
            "owed": owed,
        }
        self.store.commit(sequence, manifest | changes)
        self.releaser.committed(sequence)

    def version_blob(self, sequence):
        torch.manual_seed(sequence)
        scorer = build_scorer(self.job)
        for parameter in scorer.parameters():
            torch.nn.init.normal_(parameter, std=0.1)
        features_BC = torch.randn(64, 3)
        features_BC[::5, 1] = torch.nan
        features_BC[:, 2] = torch.randint(0, 1024, (64,))
        with torch.inference_mode():
            scores_B = scorer(features_BC)
        weights = {f"model.{name}": tensor for name, tensor in scorer.module.state_dict().items()}
        return safetensors.torch.save(weights | {"check.features": features_BC, "check.scores": scores_B.clone()})

    def check_block(self, sequence):
        tensors = safetensors.torch.load(self.store.get(self.store.manifest(sequence)["owed"]["version"]))
        return tensors["check.features"], tensors["check.scores"]


def point(sequence):
    values = {"live/auc": 0.6 + sequence / 100, "frozen/auc": 0.6, "drift/psi_max": 0.1}
    return {"step": 1000 * sequence, "time_ms": 1_357_000_000_000 + sequence, "values": values}


def rejects_blob(rejects):
    schema = pa.schema([*REJECTS, ("topic", pa.string()), ("topic_id", pa.string()), ("partition", pa.int32())])
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, schema) as writer:
        writer.write_table(pa.Table.from_pylist(list(rejects), schema=schema))
    return sink.getvalue().to_pybytes()


def read_all(trainer, topic):
    consumer = Consumer(trainer.job.kafka | {"group.id": "test", "enable.partition.eof": True})
    partitions = consumer.list_topics(topic, timeout=10).topics[topic].partitions
    consumer.assign([TopicPartition(topic, number, 0) for number in partitions])
    letters, ends = [], 0
    while ends < len(partitions):
        message = consumer.poll(WAIT_S)
        if message.error():
            ends += 1
        else:
            letters.append(message)
    consumer.close()
    return letters


def client_of(trainer):
    uri = trainer.job.registry.tracking_uri
    mlflow.set_tracking_uri(uri)
    return mlflow.MlflowClient(uri, uri)


def runs(client, name="release"):
    experiment = client.get_experiment_by_name(name)
    return client.search_runs([experiment.experiment_id])


def logged_steps(client, name="release"):
    (run,) = runs(client, name)
    return sorted(metric.step for metric in client.get_metric_history(run.info.run_id, "live/auc"))


def until(condition, trainer):
    """Waits, as the trainer's loop does, and returns the lines that it would log."""
    lines = []
    deadline = time.monotonic() + WAIT_S
    done = False
    while not done:
        done = condition()  # before the lines: what was said until then is among them
        while line := trainer.releaser.poll():
            lines.append(line)
        assert time.monotonic() < deadline, lines
        time.sleep(0.05)
    return lines
