"""One command from nothing to model versions: a broker, a real stream, the job, and what came out of it."""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition
from rich.console import Console
from rich.table import Table

from consumers.broker import KafkaBroker, MockBroker, local_broker, lock_folder
from consumers.errors import ConfigError, DependencyError, EvertrainError
from pipeline.demo.flights import load_flights
from pipeline.demo.job import JOB, Job, job_toml
from pipeline.demo.panel import Display, View
from pipeline.demo.producer import DEAD, FEATURES, LABELS, PARTITIONS, Backlog, Stream, produce
from pipeline.drift import FAMILIES
from pipeline.store import LocalStore

LOCK = "demo.lock"
LOCK_WAIT_S = 15.0
TOPIC_CONFIG = {"retention.ms": "-1", "message.timestamp.after.max.ms": str(2**63 - 1)}


def demo(state: Path, rows_per_second: float, limit: int | None) -> int:
    """Runs the demo in the folder `state`, which it empties first.

    Args:
        state: where broker data, job file, state, MLflow store and `summary.json` go.
        rows_per_second: flights produced a second.
        limit: only the first so many flights.

    Returns:
        Exit code: 0, or 1 if the job failed.

    Raises:
        EvertrainError: another demo is alive there, Kafka did not start, the data set is missing.
    """
    started = time.monotonic()
    console = Console()
    with ExitStack() as stack:
        lock = _claim(state)
        stack.callback(os.close, lock)
        with ThreadPoolExecutor(1) as pool:  # the broker in this thread, because it dies with its thread
            loading = pool.submit(load_flights, limit)
            console.print("Starting a local Kafka (the first time, Maven fetches it) …", highlight=False)
            broker = local_broker(state / "kafka").start()
            stack.callback(broker.stop)
            stream = Stream(loading.result())
        mock = isinstance(broker, MockBroker)
        if mock:
            console.print("No Java with Maven here: using the mock cluster inside confluent-kafka instead.")
        broker.create_topics(dict.fromkeys((FEATURES, LABELS, DEAD), PARTITIONS), TOPIC_CONFIG)
        job_file = state / "job.toml"
        job_file.write_text(job_toml(state, broker.bootstrap, stream.labels, mock=mock), encoding="utf-8")
        job = Job(job_file, state / "job.log", lock)
        stack.callback(job.stop)
        view = View(broker.bootstrap, broker.kind, total=len(stream))
        with Display(view, state / JOB, state / "job.log", console) as display:
            rate = rows_per_second * len(stream) / len(stream.flights)
            ended = _drive(stream, rate, job, display, broker)
        if not ended:
            _explain(job)
            return 1
        summary = summarise(state, stream, broker, time.monotonic() - started)
        if not mock:  # the mock cluster has dropped the records by now
            console.print(f"Rebuilding version {summary['versions']} from its ledger …", highlight=False)
            summary["verified"] = not job.verify(summary["versions"])["differences"]
    (state / "summary.json").write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    _print_summary(console, summary, _drift(state), state)
    whole = summary["records_applied"] == summary["records_produced"] and summary.get("verified", True)
    return 0 if whole else 1


def _lock(folder: Path, file: str) -> int:
    """Locks a folder once the job of a demo that was killed has ended. Raises EvertrainError if it does not."""
    deadline = time.monotonic() + LOCK_WAIT_S
    while True:
        try:
            return lock_folder(folder, file)
        except EvertrainError:
            if time.monotonic() > deadline:
                raise
        time.sleep(0.2)


def _claim(state: Path) -> int:
    """Locks and empties the folder. Raises EvertrainError if it is in use, ConfigError if it is not a demo's."""
    if state.exists() and any(state.iterdir()) and not (state / LOCK).exists():
        raise ConfigError(f"{state} was not made by the demo, which would remove all in it: name another --state")
    lock = _lock(state, LOCK)
    try:
        for folder, file in ((state / "kafka", "broker.lock"), (state / JOB, "lock")):
            if (folder / file).exists():
                os.close(_lock(folder, file))
    except EvertrainError:
        os.close(lock)
        raise
    for path in state.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path.name != LOCK:
            path.unlink()
    return lock


def _drive(stream: Stream, rate: float, job: Job, display: Display, broker: KafkaBroker | MockBroker) -> bool:
    """Produces everything, kills the job once on the way, and sees it through to its end. False: the job failed."""
    view, killed = display.view, False
    while not view.status:  # a stream that waits for its reader: the panel shows a job at the live head
        if job.code is not None:
            return False
        display.show()
        time.sleep(0.05)
    backlog = Backlog(broker.bootstrap, f"evertrain-{JOB}") if isinstance(broker, MockBroker) else None
    for progress in produce(stream, broker.bootstrap, rate, backlog):
        view.produced, view.time_ms = progress.produced, progress.time_ms
        view.producer_waits = progress.waits
        display.show()
        if job.code is not None:
            return False
        if not killed and progress.produced >= len(stream) // 2:
            display.say(f"kill -9 {job.kill_and_start_again()}: it died, and starts again from its last snapshot")
            killed = True
    if backlog is not None:
        backlog.close()
    while not job.listens and job.code is None:
        display.show()
        time.sleep(0.05)
    job.finish()
    while job.code is None:
        display.show()
        time.sleep(0.05)
    display.show(now=True)
    return job.code == 0


def _explain(job: Job) -> None:
    lines = job.log.read_text(encoding="utf-8", errors="replace").splitlines()[-20:]
    print(f"The job ended with exit code {job.code}. The end of {job.log}:", file=sys.stderr)
    for text in lines:
        print(f"  {text}", file=sys.stderr)


def summarise(state: Path, stream: Stream, broker: KafkaBroker | MockBroker, seconds: float) -> dict[str, Any]:
    """What came out, read back from where a user would find it: snapshot, MLflow, dead-letter topic."""
    store = LocalStore(state / JOB)
    manifest = store.manifest(store.sequences()[-1])
    metrics, totals = manifest["metrics"], manifest["counts"]["totals"]
    return {
        "records_produced": len(stream),
        "records_applied": totals["read"],
        "rows_trained": manifest["rows_trained"],
        "versions": _count_versions(state),
        "auc_live": metrics.get("live/auc"),
        "auc_frozen": metrics.get("frozen/auc"),
        "auc_live_last_half": metrics.get("compare/live_auc"),
        "auc_frozen_last_half": metrics.get("compare/frozen_auc"),
        "garbage_produced": stream.garbage,
        "dead_letters": count_dead_letters(broker.bootstrap),
        "waiting": totals["waiting"],
        "expired": totals["expired"],
        "drift_alarms": manifest["alarms"],
        "seconds": round(seconds, 1),
        "broker": broker.kind,
    }


def _drift(state: Path) -> str:
    store = LocalStore(state / JOB)
    metrics = store.manifest(store.sequences()[-1])["metrics"]
    counts = {family: int(metrics[f"drift/{family}_alarms"]) for family in FAMILIES}
    return ", ".join(f"{count} {family.replace('_', ' ')}" for family, count in counts.items() if count)


def _count_versions(state: Path) -> int:
    from pipeline.registry import MLflowRegistry

    registry = MLflowRegistry(f"sqlite:///{state.as_posix()}/mlflow.db", None, state)
    return len(registry.versions(JOB))


def count_dead_letters(bootstrap: str) -> int:
    """Distinct ids in the dead-letter topic, read from its beginning to its end. Raises DependencyError."""
    consumer = Consumer(
        {
            "bootstrap.servers": bootstrap,
            "group.id": "evertrain-demo",
            "enable.auto.commit": False,
            "enable.partition.eof": True,
            "isolation.level": "read_committed",
        }
    )
    try:
        partitions = [TopicPartition(DEAD, number, 0) for number in range(PARTITIONS)]
        consumer.assign(partitions)
        ids, ends = set(), 0
        deadline = time.monotonic() + 30
        while ends < len(partitions):
            message = consumer.poll(1.0)
            error = message.error() if message is not None else None
            if time.monotonic() > deadline:
                raise DependencyError(f"{DEAD} could not be read to its end within 30 s")
            if message is None:
                continue
            if error is None:
                ids.add(dict(message.headers() or ())["evertrain.id"])
            elif error.code() == KafkaError._PARTITION_EOF:
                ends += 1
            else:
                raise DependencyError(f"{DEAD} cannot be read: {error.str()}")
        return len(ids)
    except KafkaException as error:
        raise DependencyError(f"{DEAD} cannot be read: {error.args[0].str()}") from None
    finally:
        consumer.close()


def _print_summary(console: Console, summary: dict[str, Any], drift: str, state: Path) -> None:
    def auc(name: str) -> str:
        return "–" if summary[name] is None else f"{summary[name]:.4f}"

    table = Table.grid(padding=(0, 3))
    applied, produced = summary["records_applied"], summary["records_produced"]
    table.add_row("kill -9", f"once, in the middle; {applied:,} of {produced:,} records count, each once")
    table.add_row("learned", f"{summary['rows_trained']:,} flights, each once, when its label came")
    table.add_row("versions", f"{summary['versions']} in MLflow, model '{JOB}'")
    table.add_row("AUC", f"live {auc('auc_live')}, frozen copy {auc('auc_frozen')}")
    table.add_row("AUC, last half", f"live {auc('auc_live_last_half')}, frozen copy {auc('auc_frozen_last_half')}")
    table.add_row("bad input", f"{summary['dead_letters']} of {summary['garbage_produced']} records in {DEAD}")
    table.add_row("no label", f"{summary['expired']:,} expired, {summary['waiting']:,} still waiting")
    table.add_row("drift", f"{summary['drift_alarms']} alarms{': ' if drift else ''}{drift}")
    if "verified" in summary:
        result = "identical to the bit" if summary["verified"] else "NOT THE SAME"
        table.add_row("verify", f"version {summary['versions']}, rebuilt from its ledger: {result}")
    table.add_row("took", f"{summary['seconds']:.0f} s on {summary['broker']}")
    console.print()
    console.print(table, highlight=False)
    console.print()
    console.print(f"Summary:      {state / 'summary.json'}", highlight=False, soft_wrap=True)
    console.print(f"Job and log:  {state / 'job.toml'}, {state / 'job.log'}", highlight=False, soft_wrap=True)
    if state == Path("state/demo"):
        ui = "make ui"
    else:
        ui = f"mlflow ui --backend-store-uri sqlite:///{state.as_posix()}/mlflow.db"
    console.print(f"MLflow page:  {ui}", highlight=False, soft_wrap=True)
