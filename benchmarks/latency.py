"""From an event's creation to the step that learned it, and to the version in MLflow, on a stream at half of full load.

Labels lie there already when their feature events come. Key and event time are the records' own: so the time that the
producer stamps a record with is the time from which the learner's notes count.
"""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from confluent_kafka import Producer

from benchmarks.formats import ENCODERS, FORMATS
from benchmarks.processes import EVERTRAIN, read_status, run_job, running, say
from benchmarks.stream import chunks, feature_events, joined, label_events, partitions
from benchmarks.topics import IN_FLIGHT_MAX, PRODUCER_SETTINGS, Topics, broker, filled, make_topics
from consumers.record import Side

TICK_S = 0.005
LEAD_TICKS = 200  # a label is a second older than its feature event
POOL_ROWS = 65_536  # distinct values; keys never come twice
WARM_UP_S = 40.0  # a young broker takes a whole core, for compiling itself
START_LIMIT_S = 120.0
END_LIMIT_S = 600.0


class Feed:
    """Produces rows at a steady rate; each record is stamped with the moment at which it is handed to the producer."""

    def __init__(self, topics: Topics, rate: float) -> None:
        pool = list(chunks(POOL_ROWS))
        encode = ENCODERS[topics.format]
        self._values = {
            Side.FEATURES: encode(joined([feature_events(chunk) for chunk in pool])),
            Side.LABELS: encode(joined([label_events(chunk) for chunk in pool])),
        }
        self._topics = topics
        self._rows = max(1, round(rate * TICK_S))  # a tick
        self._producer = Producer({"bootstrap.servers": topics.bootstrap, **PRODUCER_SETTINGS, "linger.ms": 1})

    def run(self, seconds: float) -> float:
        """Produces for so long; returns the rate kept, in rows/s."""
        for tick in range(LEAD_TICKS):
            self._produce(Side.LABELS, tick)
        began = time.monotonic()
        ticks = round(seconds / TICK_S)
        for tick in range(ticks):
            self._produce(Side.LABELS, tick + LEAD_TICKS)
            self._produce(Side.FEATURES, tick)
            self._producer.poll(0)
            time.sleep(max(0.0, began + (tick + 1) * TICK_S - time.monotonic()))
        rate = ticks * self._rows / (time.monotonic() - began)
        self._producer.flush()
        return rate

    def _produce(self, side: Side, tick: int) -> None:
        topic, values = self._topics.of(side), self._values[side]
        ids_N = np.arange(tick * self._rows, (tick + 1) * self._rows)
        for id_, partition in zip(ids_N.tolist(), partitions(ids_N).tolist(), strict=True):
            while len(self._producer) > IN_FLIGHT_MAX:  # a broker that is behind lowers the rate that is kept
                self._producer.poll(TICK_S)
            self._producer.produce(topic, values[id_ % POOL_ROWS], b"%d" % id_, partition)


def full_load(name: str, rows: int) -> float:
    """Rows/s over a backlog."""
    with filled(name, rows) as topics, tempfile.TemporaryDirectory(prefix="evertrain-bench-") as folder:
        job = topics.write_job(Path(folder))
        return run_job(job, EVERTRAIN, "run", "-c", job, "--until-caught-up", rows=rows)["rows_per_s"]


def live(name: str, rate: float, seconds: float, *settings: str) -> dict[str, Any]:
    """A run on a live stream: the rate kept, the learner's notes, and the versions that the settings made."""
    with broker() as kafka, tempfile.TemporaryDirectory(prefix="evertrain-bench-") as folder:
        topics, notes = make_topics(kafka, name), Path(folder) / "notes.npz"
        job = topics.write_job(Path(folder), identity={})
        options = [word for setting in ("learner.batch_wait=50ms", *settings) for word in ("--set", setting)]
        with running(job, "benchmarks.watched_run", "-c", job, *options, "--notes", notes) as process:
            wait_until_training(job, process)
            kept = Feed(topics, rate).run(WARM_UP_S + seconds)
            process.send_signal(signal.SIGUSR1)  # ends once everything is learned and released
            process.wait(END_LIMIT_S)
        with np.load(notes) as arrays:
            return {"rate": kept, **arrays, "versions": versions(Path(folder))}


def wait_until_training(job: Path, process: subprocess.Popen[bytes]) -> None:
    """Returns when the job waits for rows. Raises RuntimeError if it ends, or takes too long."""
    deadline = time.monotonic() + START_LIMIT_S
    while read_status(job).get("phase") != "training":
        if process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError((job.parent / "log").read_text()[-2000:])
        time.sleep(0.1)


def versions(folder: Path) -> list[tuple[int, int]]:
    """Of each version in MLflow: rows learned, and when it was created (ms since the epoch)."""
    from mlflow import MlflowClient

    found = MlflowClient(f"sqlite:///{folder}/mlflow.db").search_model_versions("name = 'benchmark'")
    return sorted((int(version.tags["rows_trained"]), version.creation_timestamp) for version in found)


def learned(run: dict[str, Any]) -> dict[str, Any]:
    """Percentiles in ms over the rows that were created after the warm-up."""
    created_ms = run["event_time_ms"]
    delay_ms = np.repeat(run["step_ns"] / 1e6, run["rows"]) - created_ms
    delay_ms = delay_ms[created_ms > created_ms[0] + WARM_UP_S * 1000]
    found = {f"p{q}_ms": round(float(np.percentile(delay_ms, q)), 1) for q in (50, 90, 99)}
    return {**found, "max_ms": round(float(delay_ms.max()), 1), "rows": len(delay_ms), "rate": round(run["rate"])}


def registered(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Seconds from the creation of the newest event that a version learned to the version in MLflow."""
    delays: list[float] = []
    for run in runs:
        newest_ms = np.maximum.accumulate(run["event_time_ms"])
        delays += [(created_ms - float(newest_ms[rows - 1])) / 1000 for rows, created_ms in run["versions"]]
    return {"median_s": round(median(delays), 1), "max_s": round(max(delays), 1), "versions": len(delays)}


def medians(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Of what was `learned` in each run; and the p99 of each."""
    found = [learned(run) for run in runs]
    middle = {key: round(median(each[key] for each in found), 1) for key in found[0]}
    return {**middle, "each_p99_ms": [each["p99_ms"] for each in found], "n": len(found)}


def main() -> None:
    """Measures full load unless a rate is given, then live streams, in turn without versions and with them."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.latency", description=__doc__)
    parser.add_argument("--format", choices=[name for name in FORMATS if name != "arrow"], default="json")
    parser.add_argument("--rate", type=float, help="rows/s; default: half of full load")
    parser.add_argument("--rows", type=int, default=1_000_000, help="of the backlog that full load is measured with")
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--register-every", default="10s")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("-o", "--output", choices=("text", "json"), default="text")
    args = parser.parse_args()
    rate = args.rate or full_load(args.format, args.rows) / 2
    say(f"{args.format}: {rate:,.0f} rows/s")
    plain, released = [], []
    for turn in range(args.repeat):
        plain.append(live(args.format, rate, args.seconds))
        released.append(live(args.format, rate, 2 * args.seconds, f"registry.register_every={args.register_every}"))
        say(f"{turn + 1}/{args.repeat}: {learned(plain[-1])}, with versions {learned(released[-1])}")
    results = {
        "format": args.format,
        "wanted_rate": round(rate),
        "learned": medians(plain),
        "learned_while_registering": medians(released),
        "registered": {**registered(released), "register_every": args.register_every},
    }
    print(json.dumps(results, indent=2) if args.output == "json" else results)


if __name__ == "__main__":
    main()
