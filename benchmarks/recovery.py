"""What the promises cost: a snapshot's stall and its share of the CPU, how soon a killed job goes on, an outage."""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import mean, median, stdev
from typing import Any

import numpy as np

from benchmarks import feed
from benchmarks.processes import EVERTRAIN, MIB, read_status, result_of, running, say
from benchmarks.topics import filled
from pipeline.config import JobConfig
from pipeline.learner import Learner
from pipeline.snapshot import Lineage, Snapshots
from pipeline.state import State
from pipeline.store import LocalStore
from pipeline.train import learn

EMBEDDING = 8
ADAM_COPIES = 3  # the weights and Adam's two moments
STUDENT_T = {10: 2.262, 12: 2.201, 15: 2.145, 20: 2.093}  # two-sided 95 %, n - 1 degrees of freedom


class Line:
    """A learner on entries made in memory, with snapshots on disk."""

    def __init__(self, config: JobConfig, waiting: int) -> None:
        self.config = config
        self.state = State(config, feed.positions(), Learner(config))
        self.store = LocalStore(config.job.state_dir)
        self.snapshots = Snapshots(self.store, config, on_durable=lambda _: None, released=lambda: 10**9)
        lineage = Lineage.begin("cluster", {"f": "f", "l": "l"}, dict.fromkeys(feed.positions(), 0))
        self.snapshots.begin(lineage, self.state)
        self._spans = feed.spans(config, waiting)
        while self.state.positions[feed.FEATURES].next < waiting:
            self.advance()

    def advance(self) -> None:
        """Applies one entry, and learns from it."""
        learn(self.state, next(self._spans))

    def learn_rows(self, rows: int, every_s: float | None) -> float:
        """CPU seconds of this process for so many rows, with a snapshot every so often."""
        end, began, committed = self.state.trained + rows, time.process_time(), time.monotonic()
        while self.state.trained < end:
            self.advance()
            if every_s is not None and time.monotonic() - committed >= every_s and not self.snapshots.busy:
                committed = time.monotonic()
                self.snapshots.commit(self.state)
        self.snapshots.wait()
        return time.process_time() - began


@contextmanager
def line(state_mib: float, waiting: int) -> Iterator[Line]:
    """A line whose learner has so many MiB of state in all."""
    rows = int(state_mib * MIB / (4 * EMBEDDING * ADAM_COPIES))
    with tempfile.TemporaryDirectory(prefix="evertrain-bench-") as folder:
        window = {"window": f"{2 * waiting}ms"}  # one millisecond a row: what is learned is forgotten in time
        made = Line(feed.job(Path(folder) / "state", embedding_rows=rows, join=window), waiting)
        try:
            yield made
        finally:
            made.snapshots.close()


def stall(repeat: int, *, state_mib: float = 100.0, waiting: int = 1_000_000) -> dict[str, Any]:
    """Milliseconds that `commit` holds the learner up, when the commit before is durable."""
    with line(state_mib, waiting) as found:
        times = []
        for number in range(repeat + 3):
            for _ in range(8):
                found.advance()
            found.snapshots.wait()
            began = time.perf_counter()
            found.snapshots.commit(found.state)
            times.append((time.perf_counter() - began) * 1000)
            if number % 20 == 0:
                say(f"stall: {times[-1]:.1f} ms")
        times = times[3:]  # the first ones map the staging memory
        arrays = sum(array.nbytes for array in found.state.learner.state().values())
        return {
            "state_mb": round(arrays / 1e6, 1),
            "waiting_rows": int(found.state.join.waiting_P().sum()),
            **{f"p{q}_ms": round(float(np.percentile(times, q)), 2) for q in (50, 90, 99)},
            "n": repeat,
        }


def cost(repeat: int, *, state_mib: float = 10.0, rows: int = 500_000) -> dict[str, Any]:
    """CPU seconds per million rows with a snapshot a second against none: paired, in turn, in one process."""
    with line(state_mib, 100_000) as found:
        found.learn_rows(rows // 10, 1.0)
        shares, plain = [], []
        for number in range(repeat):
            order: tuple[float | None, ...] = (None, 1.0) if number % 2 else (1.0, None)
            seconds = {every: found.learn_rows(rows, every) for every in order}
            shares.append(100 * (seconds[1.0] / seconds[None] - 1))
            plain.append(seconds[None] * 1e6 / rows)
            say(f"cost {number + 1}/{repeat}: {plain[-1]:.2f} CPU s per million rows, {shares[-1]:+.2f} %")
        half = STUDENT_T[repeat] * stdev(shares) / math.sqrt(repeat)
        return {
            "state_mib": state_mib,
            "cpu_s_per_million_rows": round(median(plain), 3),
            "snapshot_a_second_percent": round(mean(shares), 2),
            "interval_95_percent": [round(mean(shares) - half, 2), round(mean(shares) + half, 2)],
            "n": repeat,
        }


def restart(repeat: int, *, state_mib: float = 100.0, rows: int = 2_000_000) -> dict[str, Any]:
    """Seconds from SIGKILL to the first step of the next life, on real Kafka, as `status.json` shows it."""
    rows_embedded = int(state_mib * MIB / (4 * EMBEDDING * ADAM_COPIES))
    with filled("json", rows) as found, tempfile.TemporaryDirectory(prefix="evertrain-bench-") as folder:
        job = found.write_job(Path(folder))
        big = ["--set", f'features.categorical=[{{name="id",buckets={rows_embedded}}}]', "--set", "snapshot.every=1s"]
        times: list[float] = []
        killed = 0.0
        for number in range(repeat + 1):
            with running(job, EVERTRAIN, "run", "-c", job, *big) as process:
                stepped = wait_for_step(job, process, after=killed)
                if number:
                    times.append(stepped - killed)
                    say(f"restart {number}/{repeat}: {times[-1]:.1f} s")
                time.sleep(3)
                killed = time.time()
    return {"state_mib": state_mib, "median_s": round(median(times), 1), "max_s": round(max(times), 1), "n": repeat}


def outage(repeat: int, *, rows: int = 1_000_000) -> dict[str, Any]:
    """MLflow down against up: the learner's CPU seconds per million rows, and its longest call to the releaser."""
    runs: dict[str, list[dict[str, float]]] = {"up": [], "down": []}
    with filled("json", rows) as found:
        for number in range(repeat):
            for which, results in runs.items():
                with tempfile.TemporaryDirectory(prefix="evertrain-bench-") as folder:
                    job = found.write_job(Path(folder))
                    down = ["--set", "registry.tracking_uri=http://127.0.0.1:9"] if which == "down" else []
                    often = ["--set", "registry.register_every=200000 rows", "--set", "snapshot.every=1s"]
                    results.append(result_of("benchmarks.timed_run", "-c", job, *down, *often, rows=rows))
                say(f"outage {number + 1}/{repeat} {which}: {results[-1]}")
    cpu = {which: median(run["cpu_s"] for run in results) * 1e6 / rows for which, results in runs.items()}
    return {
        **{f"cpu_s_per_million_rows_{which}": round(seconds, 3) for which, seconds in cpu.items()},
        "ratio": round(cpu["down"] / cpu["up"], 3),
        "releaser_ms_max": {which: round(max(r["releaser_ms"] for r in results), 1) for which, results in runs.items()},
        "n": repeat,
    }


def wait_for_step(job: Path, process: subprocess.Popen[bytes], *, after: float) -> float:
    """When a step was first seen that the process made. Raises RuntimeError if it ends or takes a minute."""
    deadline, first = time.monotonic() + 60, None
    while time.monotonic() < deadline and process.poll() is None:
        status = read_status(job)
        if status.get("pid") == process.pid and status["updated_ms"] / 1000 > after:
            rows = status["rows_trained"]
            if first is not None and rows > first:
                return time.time()
            first = rows if first is None else first
        time.sleep(0.05)
    raise RuntimeError((job.parent / "log").read_text()[-2000:])


BENCHMARKS: dict[str, tuple[Callable[[int], dict[str, Any]], int]] = {
    "stall": (stall, 200),
    "cost": (cost, 10),
    "restart": (restart, 10),
    "outage": (outage, 5),
}


def main() -> None:
    """Runs the chosen benchmarks, each so often."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.recovery", description=__doc__)
    parser.add_argument("which", nargs="*", help="default: all")
    parser.add_argument("--repeat", type=int, help="instead of each one's own number")
    parser.add_argument("-o", "--output", choices=("text", "json"), default="text")
    args = parser.parse_args()
    os.environ.setdefault("PYTHONWARNINGS", "ignore")
    results = {}
    for name in args.which or BENCHMARKS:
        benchmark, repeat = BENCHMARKS[name]
        results[name] = benchmark(args.repeat or repeat)
    if args.output == "json":
        print(json.dumps(results, indent=2))
    else:
        for name, result in results.items():
            print(name, *(f"{key} {value}" for key, value in result.items()), sep="  ")


if __name__ == "__main__":
    main()
