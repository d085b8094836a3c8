"""Joined and learned rows per second: the naive loop, training alone, and Evertrain whole and in part, taking turns."""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.formats import FORMATS
from benchmarks.processes import EVERTRAIN, result_of, run_job, say
from benchmarks.topics import Topics, broker, make_topics
from pipeline.tables import LEARNERS

WARM_UP_ROWS = 20_000
SCORED_INGEST = ("json",)  # formats whose `ingest` includes scoring; the others' is the way in alone


def naive(topics: Topics, job_file: Path, rows: int, *more: str) -> dict[str, Any]:
    """The loop that one writes first."""
    return result_of("benchmarks.naive", *topics.options, "--format", topics.format, *more, rows=rows)


def naive_ingest(topics: Topics, job_file: Path, rows: int) -> dict[str, Any]:
    """The same, joining only."""
    return naive(topics, job_file, rows, "--no-train")


def train_only(topics: Topics, job_file: Path, rows: int) -> dict[str, Any]:
    """The ceiling of the full loop."""
    return result_of("benchmarks.train_only", "-c", job_file, rows=rows)


def pull_only(topics: Topics, job_file: Path, rows: int) -> dict[str, Any]:
    """The ceiling of the way in."""
    return result_of("benchmarks.pull_only", *topics.options, rows=rows)


def ours(topics: Topics, job_file: Path, rows: int) -> dict[str, Any]:
    """Evertrain as it is."""
    return run_job(job_file, EVERTRAIN, "run", "-c", job_file, "--until-caught-up", rows=rows)


def ingest_scored(topics: Topics, job_file: Path, rows: int) -> dict[str, Any]:
    """Evertrain without learning."""
    return run_job(job_file, "benchmarks.ingest", "-c", job_file, "--score", rows=rows)


def ingest_unscored(topics: Topics, job_file: Path, rows: int) -> dict[str, Any]:
    """Evertrain without learning and scoring."""
    return run_job(job_file, "benchmarks.ingest", "-c", job_file, rows=rows)


CONTENDERS: dict[str, Callable[[Topics, Path, int], dict[str, Any]]] = {
    contender.__name__: contender
    for contender in (naive, train_only, ours, naive_ingest, ingest_scored, ingest_unscored, pull_only)
}


def measure(name: str, rows: int, repeat: int, contenders: list[str], learner: str) -> dict[str, Any]:
    """Fills topics of a format, and runs the contenders `repeat` times in turn.

    Each runs on a few rows first, untimed: Evertrain compiles its kernels when they first run after a change.
    """
    runs: dict[str, list[dict[str, Any]]] = {contender: [] for contender in contenders}
    with broker() as kafka:
        small = make_topics(kafka, name, WARM_UP_ROWS, prefix="warm-up")
        for contender in contenders:
            run(contender, small, WARM_UP_ROWS, learner)
        topics = make_topics(kafka, name, rows)
        for turn in range(repeat):
            for contender in contenders:
                result = run(contender, topics, rows, learner)
                runs[contender].append(result)
                say(f"{name} {turn + 1}/{repeat} {contender}: {result['rows_per_s']:,.0f} rows/s")
    return {**summary(name, runs), "n": repeat, "rows": rows, "runs": runs}


def run(contender: str, topics: Topics, rows: int, learner: str = "mlp") -> dict[str, Any]:
    """One contender once, with a state of its own."""
    with tempfile.TemporaryDirectory(prefix="evertrain-bench-") as directory:
        return CONTENDERS[contender](topics, topics.write_job(Path(directory), learner=learner), rows)


def summary(name: str, runs: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Medians in rows/s, their ratios, and the memory of `ours`, as far as the contenders have run."""
    rates = {contender: median(run["rows_per_s"] for run in results) for contender, results in runs.items()}
    ingest = "ingest_scored" if name in SCORED_INGEST else "ingest_unscored"
    if ingest in rates:
        rates["ingest"] = rates[ingest]
    found: dict[str, Any] = {contender: round(rate) for contender, rate in rates.items()}
    for ratio, over, under, digits in (
        ("ratio", "ours", "naive", 2),
        ("share_of_train_only", "ours", "train_only", 3),
        ("ingest_ratio", "ingest", "naive_ingest", 2),
    ):
        if over in rates and under in rates:
            found[ratio] = round(rates[over] / rates[under], digits)
    if "ours" in runs:
        memory = ("rss_mb_at_quarter", "rss_mb_at_end")
        found |= {name: median(result[name] for result in runs["ours"]) for name in memory}
    return found


def table(results: dict[str, dict[str, Any]]) -> str:
    """The medians, for a person."""
    columns = ("naive", "train_only", "ours", "ratio", "share_of_train_only", "naive_ingest", "ingest", "ingest_ratio")
    lines = ["".join(f"{name:>{len(name) + 2}}" for name in ("format  ", *columns, "pull_only"))]
    for name, result in results.items():
        cells = [(column, result.get(column, "-")) for column in (*columns, "pull_only")]
        lines.append(f"{name:>10}" + "".join(f"{cell:>{max(len(column), 7) + 2}}" for column, cell in cells))
    return "\n".join(lines)


def main() -> None:
    """Measures each format."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.throughput", description=__doc__)
    parser.add_argument("--formats", nargs="+", choices=FORMATS, default=list(FORMATS))
    parser.add_argument("--only", nargs="+", choices=CONTENDERS, default=list(CONTENDERS), help="contenders")
    parser.add_argument("--learner", choices=LEARNERS, default="mlp", help="of train_only and ours")
    parser.add_argument("--rows", type=int, default=2_000_000)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("-o", "--output", choices=("text", "json"), default="text")
    args = parser.parse_args()
    results = {name: measure(name, args.rows, args.repeat, args.only, args.learner) for name in args.formats}
    print(json.dumps(results, indent=2) if args.output == "json" else table(results))


if __name__ == "__main__":
    main()
