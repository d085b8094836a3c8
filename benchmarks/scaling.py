"""What a row costs when more rows wait: CPU time of the join alone and of the whole learner, on entries in memory."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from statistics import median
from types import SimpleNamespace
from typing import Any

import numpy as np

from benchmarks import feed, report
from benchmarks.ingest import apply
from benchmarks.processes import ROOT, say
from consumers.record import Entry, Float32s, Span
from pipeline.learner import Learner
from pipeline.state import State
from pipeline.train import learn

WAITING = (100_000, 1_000_000, 10_000_000)


class NoLearner:
    """Stands in for the learner while rows are only joined."""

    task = SimpleNamespace(kind="binary")
    score_width = 1

    def score(self, features_NC: Float32s) -> Float32s:
        return np.zeros((len(features_NC), 1), np.float32)


def one(waiting: int, rows: int) -> dict[str, float]:
    """Microseconds of CPU time a row, and where the memory went, with `waiting` rows that wait.

    A label may be for any of them, and as many lie behind it in the window of duplicates: slabs come and go.
    """
    with tempfile.TemporaryDirectory(prefix="evertrain-bench-") as folder:
        join = {"window": f"{2 * waiting + feed.SPAN_ROWS}ms", "memory": "16GiB"}
        job = feed.job(Path(folder), join=join)
        state = State(job, feed.positions(), NoLearner())  # type: ignore[arg-type]
        spans = feed.spans(job, waiting, shuffled=True)
        while state.positions[feed.FEATURES].next < 3 * waiting + 4 * job.join.slab_rows:
            apply(state, next(spans))
        joined = _timed(state, spans, rows, apply)
        state.learner = Learner(job)
        _timed(state, spans, rows // 4, learn)
        return {"join": joined, "all": _timed(state, spans, rows, learn), "join_mib": state.join.nbytes / 2**20}


def _timed(state: State, spans: Iterator[Span], rows: int, use: Callable[[State, Entry], None]) -> float:
    """Microseconds of CPU time for a row: a feature event and a label."""
    entries = list(islice(spans, 2 * rows // feed.SPAN_ROWS))
    began = time.process_time()
    for entry in entries:
        use(state, entry)
    return (time.process_time() - began) * 2e6 / (len(entries) * feed.SPAN_ROWS)


def waiting_rows(sizes: list[int], rows: int, repeat: int) -> list[dict[str, Any]]:
    """Medians for each number of waiting rows: the sizes take turns, each in a process of its own."""
    runs: dict[int, list[dict[str, float]]] = {size: [] for size in sizes}
    for turn in range(repeat):
        for size, found in runs.items():
            command = [sys.executable, "-m", "benchmarks.scaling", "--one", str(size), "--rows", str(rows)]
            done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, check=True, timeout=1800)
            found.append(json.loads(done.stdout))
            say(f"{turn + 1}/{repeat} {size:,} waiting: {found[-1]}")
    medians = {size: {key: median(run[key] for run in found) for key in found[0]} for size, found in runs.items()}
    least = medians[sizes[0]]
    return [
        {
            "rows_that_wait": size,
            "joined_µs": round(found["join"], 3),
            "joined_scored_learned_µs": round(found["all"], 3),
            "times_the_first": round(found["all"] / least["all"], 2),
            "slabs_MiB": round(found["join_mib"]),
        }
        for size, found in medians.items()
    ]


def main() -> None:
    """Prints a table for each thing that grows."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scaling", description=__doc__)
    parser.add_argument("--waiting", type=int, nargs="+", default=list(WAITING))
    parser.add_argument("--rows", type=int, default=400_000, help="measured each time")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    parser.add_argument("-o", "--output", choices=("text", "json"), default="text")
    args = parser.parse_args()
    if args.one:
        print(json.dumps(one(args.one, args.rows)))
        return
    title = f"Rows that wait: CPU time a row, medians of {args.repeat}"
    results = {title: waiting_rows(args.waiting, args.rows, args.repeat)}
    print(json.dumps(results, indent=2) if args.output == "json" else report.plain(results))


if __name__ == "__main__":
    main()
