"""The kill test with nothing in place of anything: Apache Kafka, an MLflow server, `evertrain run` and its processes.

The topics are filled before. Killed at random: the learner, one of its readers, its releaser, or all at once. Each
life has another number of readers. In the end the state, MLflow and the dead letters are compared with those of a run
that nobody disturbed, and that had one reader.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from confluent_kafka import Consumer, TopicPartition

from consumers.broker import KafkaBroker, create_topics
from pipeline.registry import import_mlflow
from pipeline.store import LocalStore
from tests.conftest import TOPIC_CONFIG, produce
from tests.faults.outcome import differences, ledger, outcome, uncovered
from tests.jobs import Job
from tests.mlflow_server import MLflowServer
from tests.stream import START_MS, Record, events, job_document

ROWS = 16_000
PARTITIONS = 2
READERS_MAX = 3
KILLS_A_RUN = 25  # then it may end
PAUSE_S = 0.5  # mean time between two kills in one life
DEAD_S = 10.0  # readers and releaser end within it when their learner is killed
ENDED_S = 240.0
KILLS_A_LIFE = 3  # of a reader or a releaser: they come back later each time, and five at one place are a defect
TARGETS = {"reader": 10, "releaser": 6, "learner": 3, "all": 1}  # a learner takes long to start


class RealHarness:
    """As `kill.Harness`, but for real."""

    def __init__(self, kills: int, seed: int, folder: Path) -> None:
        self.kills_left = kills
        self.seed = seed
        self.folder = folder
        self.kills: Counter[str] = Counter()
        self.landed: Counter[str] = Counter()
        self.lives: Counter[str] = Counter()
        self.runs = 0
        self.failed: list[dict[str, Any]] = []

    def run_all(self) -> None:
        """Runs until all kills are spent; the last run still learns its stream."""
        with _services(self.folder) as (bootstrap, uri):
            self._kafka, self._uri = bootstrap, uri
            _fill_topics(bootstrap)
            straight, _ = self._job("straight")
            straight.run("--until-caught-up")
            self._straight = self._outcome(straight)
            while self.kills_left > 0:
                self._run(f"killed-{self.runs}", random.Random(self.seed + self.runs))
                self.runs += 1

    def _run(self, name: str, chance: random.Random) -> None:
        job, folder = self._job(name)
        found = self._learn(job, chance)
        if not found:
            found = differences(self._straight, self._outcome(job)) + self._uncovered(job)
        if found:
            self.failed.append({"seed": self.seed + self.runs, "kept": str(folder), "differences": found})
        else:
            shutil.rmtree(folder)

    def _job(self, name: str) -> tuple[Job, Path]:
        folder = self.folder / name
        create_topics(self._kafka, {f"{name}.dead": 1}, TOPIC_CONFIG)
        tables = {
            "features": {"topic": "features"},
            "labels": {"topic": "labels"},
            "dead_letters": {"topic": f"{name}.dead"},
            "learner": {"batch_size": 16},
            "snapshot": {"every": "64 rows", "anchor_every": "2000 rows"},
            "registry": {"tracking_uri": self._uri, "register_every": "6000 rows"},
        }
        return Job(folder, job_document(folder / "state", self._kafka, name, **tables)), folder

    def _learn(self, job: Job, chance: random.Random) -> list[str]:
        """Lives and kills until all is learned and released. Returns what went wrong."""
        kills_left = KILLS_A_RUN
        while True:
            readers = chance.randint(1, READERS_MAX)
            process = job.start("--until-caught-up", "--set", f"stream.readers={readers}")
            self.lives[f"{readers} readers"] += 1
            try:
                kills_left -= self._disturb(job, process, chance, min(kills_left, self.kills_left))
                code = process.wait(ENDED_S)
            finally:
                left = _family(process.pid)
                process.kill()
            if code == 0:
                return []
            if code != -signal.SIGKILL:
                return [f"ended with exit code {code}: {job.log.read_text()[-3000:]}"]
            if alive := _outlived(left):
                return [f"{alive} lived on for {DEAD_S} s after their learner was killed"]

    def _disturb(self, job: Job, process: subprocess.Popen[bytes], chance: random.Random, kills: int) -> int:
        """Kills parts of a job until its learner is gone. Returns how many kills that took."""
        if chance.random() < 0.9:  # most lives get as far as to learn
            _wait_for_rows(job, process)
        killed: Counter[str] = Counter()
        while killed.total() < kills and not killed["learner"] and not killed["all"]:
            target = chance.choices(list(TARGETS), list(TARGETS.values()))[0]
            if killed[target] == KILLS_A_LIFE:
                target = "learner"
            try:
                process.wait(chance.expovariate(1 / PAUSE_S))
                break
            except subprocess.TimeoutExpired:
                family = _wait_for(target, process)
            if family is None:
                continue
            status = job.status()
            self.landed[f"{target}: {status['phase'] if status.get('pid') == process.pid else 'starting'}"] += 1
            everyone = [pid for pids in family.values() for pid in pids]
            for pid in everyone if target == "all" else [chance.choice(family[target])]:
                _kill(pid)
            killed[target] += 1
        self.kills += killed
        self.kills_left -= killed.total()
        return killed.total()

    def _outcome(self, job: Job) -> dict[str, Any]:
        name = f"{job.path.parent.name}-job"
        return outcome(LocalStore(job.state_dir), RealWorld(self._kafka, self._uri, name))

    def _uncovered(self, job: Job) -> list[str]:
        store = LocalStore(job.state_dir)
        cursor = self._straight["cursor"]
        return uncovered(ledger(store), [line["next"] for line in cursor])

    def report(self) -> dict[str, Any]:
        return {
            "kills": sum(self.kills.values()),
            "runs": self.runs,
            "differences": len(self.failed),
            "seed": self.seed,
            "killed": dict(self.kills),
            "landed": dict(sorted(self.landed.items())),
            "lives": dict(sorted(self.lives.items())),
            "failed": self.failed,
        }


class RealWorld:
    """As `world.World`: what a visitor finds in Kafka and MLflow."""

    def __init__(self, kafka: str, uri: str, name: str) -> None:
        self._kafka, self._name = kafka, name
        self._client = import_mlflow().MlflowClient(uri, uri)

    def seen(self) -> dict[str, Any]:
        experiment = self._client.get_experiment_by_name(self._name)
        runs = self._client.search_runs([experiment.experiment_id])
        points: dict[str, float] = {}
        twice = 0
        for run in runs:
            for key in run.data.metrics:
                history = self._client.get_metric_history(run.info.run_id, key)
                found = {f"{key} at {metric.step}": metric.value for metric in history}
                twice += len(history) - len(found)
                points |= found
        wanted = ("offsets", "watermark", "rows_trained", "drift_alarms", "weights_sha256")
        versions = self._client.search_model_versions(f"name = '{self._name}'")
        versions = sorted(versions, key=lambda version: int(version.version))
        champion = self._client.get_model_version_by_alias(self._name, "champion")
        return {
            "dead letters": _letters(self._kafka, self._name.replace("-job", ".dead")),
            "metric points": points,
            "metric points twice": twice,
            "versions": [{name: version.tags[name] for name in wanted} for version in versions],
            "champion": champion.tags["weights_sha256"],
            "runs": [run.info.status for run in runs],
        }


def _letters(kafka: str, topic: str) -> dict[str, list[str]]:
    """Each dead letter once, by its id."""
    settings = {"bootstrap.servers": kafka, "group.id": "kill-test", "enable.partition.eof": True}
    consumer = Consumer(settings | {"auto.offset.reset": "earliest", "enable.auto.commit": False})
    consumer.assign([TopicPartition(topic, 0, 0)])
    letters = {}
    try:
        while True:
            message = consumer.poll(30)
            assert message is not None, f"{topic}: neither a record nor its end"
            if message.error():
                return letters
            headers = {name: value.decode() for name, value in message.headers()}
            letters[headers["evertrain.id"]] = [headers["reason"], (message.value() or b"").hex()]
    finally:
        consumer.close()


@contextmanager
def _services(folder: Path) -> Iterator[tuple[str, str]]:
    """A broker and an MLflow server, for all runs."""
    (folder / "mlflow").mkdir()
    server = MLflowServer(folder / "mlflow")
    with KafkaBroker(folder / "kafka") as broker:
        try:
            yield broker.bootstrap, server.start().uri
        finally:
            server.stop()


def _fill_topics(kafka: str) -> None:
    create_topics(kafka, dict.fromkeys(("features", "labels"), PARTITIONS), TOPIC_CONFIG)
    features, labels = events(ROWS)
    labels = [label for number, label in enumerate(labels) if number % 50]  # some never come
    features += [Record(START_MS + number * 100, b"bad%d" % number, b"{not json") for number in range(ROWS // 100)]
    features += features[: ROWS // 100]  # some come twice
    produce(kafka, "features", sorted(features, key=lambda record: record.timestamp))
    produce(kafka, "labels", labels)


def _family(learner: int) -> dict[str, list[int]]:
    """The processes of a job that live, by what they are."""
    found = {"learner": [learner]}
    for task in _list(f"/proc/{learner}/task"):
        for child in map(int, _read(f"/proc/{learner}/task/{task}/children").split()):
            command = _read(f"/proc/{child}/cmdline")
            for name, module in (("reader", "consumers.reader"), ("releaser", "pipeline.release")):
                if module in command.split("\0"):
                    found.setdefault(name, []).append(child)
    return found


def _wait_for(target: str, process: subprocess.Popen[bytes]) -> dict[str, list[int]] | None:
    """A job's processes as soon as it has what is to be killed; None if that does not come in time."""
    for _ in range(100):
        family = _family(process.pid)
        if target in (*family, "all"):
            return family
        time.sleep(0.05)
    return None


def _wait_for_rows(job: Job, process: subprocess.Popen[bytes]) -> None:
    """Waits until this process has applied a span."""
    while process.poll() is None and not (job.status().get("pid") == process.pid and job.status()["seconds"]):
        time.sleep(0.02)


def _outlived(family: dict[str, list[int]]) -> list[str]:
    """Those that still live some seconds after their learner is gone."""
    deadline = time.monotonic() + DEAD_S
    others = [(name, pid) for name, pids in family.items() for pid in pids if name != "learner"]
    while alive := [f"{name} {pid}" for name, pid in others if os.path.exists(f"/proc/{pid}/exe")]:
        if time.monotonic() > deadline:
            return alive
        time.sleep(0.05)
    return []


def _kill(pid: int) -> None:
    with suppress(ProcessLookupError):  # it was faster
        os.kill(pid, signal.SIGKILL)


def _read(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ""


def _list(path: str) -> list[str]:
    try:
        return os.listdir(path)
    except OSError:
        return []
