"""Joined and learned rows per second: the naive loop, training alone, and Evertrain, taking turns."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import psutil

from benchmarks.stream import COLUMNS, PARTITIONS, TOPIC_CONFIG, fill
from consumers.broker import KafkaBroker

ROOT = Path(__file__).resolve().parent.parent
FORMATS = ("json",)
CONTENDERS = ("naive", "train_only", "ours")
SAMPLE_S = 0.2
MIB = 2**20

JOB = """\
[job]
name = "throughput"
state_dir = "{directory}/state"

[kafka]
"bootstrap.servers" = "{bootstrap}"

[features]
topic = "{features}"
format = "{format}"
key = "id"
time = "ts"
numeric = {columns}

[labels]
topic = "{labels}"
format = "{format}"
key = "id"
time = "ts"
column = "y"

[join]
window = "300s"
slab_rows = 32768

[learner]
batch_size = 1024
hidden = [256, 128]
device = "cpu"

[registry]
tracking_uri = "sqlite:///{directory}/mlflow.db"
register_every = "24h"

[dead_letters]
topic = "{dead_letters}"
"""


@dataclass(frozen=True)
class Topics:
    """The topics of one format, on one broker."""

    bootstrap: str
    format: str

    @property
    def features(self) -> str:
        return f"{self.format}-features"

    @property
    def labels(self) -> str:
        return f"{self.format}-labels"

    @property
    def dead_letters(self) -> str:
        return f"{self.format}-dead"

    def write_job(self, directory: Path) -> Path:
        """Writes the job file whose state and model store lie in `directory`."""
        path = directory / "job.toml"
        path.write_text(
            JOB.format(
                directory=directory,
                bootstrap=self.bootstrap,
                format=self.format,
                features=self.features,
                labels=self.labels,
                dead_letters=self.dead_letters,
                columns=json.dumps(COLUMNS),
            )
        )
        return path


def measure(topics: Topics, rows: int, repeat: int) -> dict[str, Any]:
    """Runs the three `repeat` times in turn. Every figure but `runs` is a median."""
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in CONTENDERS}
    for turn in range(repeat):
        for name in CONTENDERS:
            with tempfile.TemporaryDirectory(prefix="evertrain-bench-") as directory:
                result = run(name, topics, topics.write_job(Path(directory)), rows)
            runs[name].append(result)
            say(f"{topics.format} {turn + 1}/{repeat} {name}: {result['rows_per_s']:,.0f} rows/s")
    rate = {name: median(result["rows_per_s"] for result in results) for name, results in runs.items()}
    memory = {name: median(result[name] for result in runs["ours"]) for name in ("rss_mb_at_quarter", "rss_mb_at_end")}
    return {
        **{name: round(value) for name, value in rate.items()},
        "ratio": round(rate["ours"] / rate["naive"], 2),
        "share_of_train_only": round(rate["ours"] / rate["train_only"], 3),
        "n": repeat,
        "rows": rows,
        **memory,
        "runs": runs,
    }


def run(name: str, topics: Topics, job_file: Path, rows: int) -> dict[str, float]:
    """One contender, alone, in processes of its own."""
    if name == "ours":
        return run_ours(job_file, rows)
    where = ["--bootstrap", topics.bootstrap, "--features", topics.features, "--labels", topics.labels]
    arguments = {"naive": where, "train_only": ["-c", str(job_file)]}[name]
    command = [sys.executable, "-m", f"benchmarks.{name}", *arguments, "--rows", str(rows)]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, check=True, timeout=_limit_s(rows))
    result: dict[str, float] = json.loads(done.stdout)
    return result


def run_ours(job_file: Path, rows: int) -> dict[str, float]:
    """`evertrain run --until-caught-up`, its memory watched from outside.

    Raises RuntimeError if the job fails or does not learn all rows but the few labelled after the window.
    """
    status = job_file.parent / "state" / "status.json"
    log = job_file.parent / "log"
    command = [sys.executable, "-m", "pipeline.cli", "run", "-c", str(job_file), "--until-caught-up"]
    with log.open("wb") as output:
        job = subprocess.Popen(command, cwd=ROOT, stdout=output, stderr=output)
        try:
            samples = list(watch(job, status, _limit_s(rows)))
        finally:
            job.kill()
            job.wait()
    final = read_status(status)
    learned = final.get("rows_trained", 0)
    if job.returncode or learned < 0.999 * rows:
        tail = log.read_text(errors="replace")[-3000:]
        raise RuntimeError(f"the job ended with {job.returncode} after {learned} of {rows} rows\n{tail}")
    quarter = next((rss for trained, rss in samples if trained >= rows // 4), samples[-1][1])
    return {
        "rows": learned,
        "seconds": final["seconds"],
        "rows_per_s": learned / final["seconds"],
        "rss_mb_at_quarter": round(quarter, 1),
        "rss_mb_at_end": round(samples[-1][1], 1),
    }


def watch(job: subprocess.Popen[bytes], status_file: Path, limit_s: float) -> Iterator[tuple[int, float]]:
    """Rows trained, and MiB resident in learner and readers together, until the readers end.

    Raises TimeoutError after `limit_s`.
    """
    deadline = time.monotonic() + limit_s
    while job.poll() is None:
        if time.monotonic() > deadline:
            raise TimeoutError(f"the job has not ended after {limit_s:.0f} s")
        time.sleep(SAMPLE_S)
        status = read_status(status_file)
        readers, trained = status.get("reader_pids"), status.get("rows_trained")
        if readers and trained:
            with suppress(psutil.NoSuchProcess):
                rss = sum(psutil.Process(pid).memory_info().rss for pid in (job.pid, *readers))
                yield trained, rss / MIB


def read_status(path: Path) -> dict[str, Any]:
    """What the job last said of itself; empty before it has said anything."""
    try:
        status: dict[str, Any] = json.loads(path.read_bytes())
    except FileNotFoundError:
        return {}
    return status


def _limit_s(rows: int) -> float:
    return 600 + rows / 1000


def say(line: str) -> None:
    """Progress, on stderr."""
    print(line, file=sys.stderr, flush=True)


def table(results: dict[str, dict[str, Any]]) -> str:
    """The medians, for a person."""
    lines = [f"{'format':8}{'naive':>12}{'train only':>12}{'Evertrain':>12}{'ratio':>8}{'share':>8}{'RSS MiB':>16}"]
    for name, result in results.items():
        memory = f"{result['rss_mb_at_quarter']:.0f} -> {result['rss_mb_at_end']:.0f}"
        lines.append(
            f"{name:8}{result['naive']:>12,}{result['train_only']:>12,}{result['ours']:>12,}"
            f"{result['ratio']:>8.2f}{result['share_of_train_only']:>8.0%}{memory:>16}"
        )
    return "\n".join(lines)


def main() -> None:
    """Fills the topics of each format once and measures."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.throughput", description=__doc__)
    parser.add_argument("--formats", nargs="+", choices=FORMATS, default=list(FORMATS))
    parser.add_argument("--rows", type=int, default=2_000_000)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("-o", "--output", choices=("text", "json"), default="text")
    args = parser.parse_args()
    results = {}
    with tempfile.TemporaryDirectory(prefix="evertrain-bench-") as data, KafkaBroker(Path(data)) as broker:
        for name in args.formats:
            topics = Topics(broker.bootstrap, name)
            names = (topics.features, topics.labels, topics.dead_letters)
            broker.create_topics(dict.fromkeys(names, PARTITIONS), TOPIC_CONFIG)
            started = time.monotonic()
            fill(broker.bootstrap, topics.features, topics.labels, args.rows)
            say(f"{name}: {args.rows:,} rows produced in {time.monotonic() - started:.0f} s")
            results[name] = measure(topics, args.rows, args.repeat)
    print(json.dumps(results, indent=2) if args.output == "json" else table(results))


if __name__ == "__main__":
    main()
