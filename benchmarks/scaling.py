"""What a row costs when there is more of everything: rows that wait, short spans, columns, partitions, readers.

CPU time on entries made in memory, and on real Kafka rows/s of the way in (`spread.py`).
"""

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
from typing import Any, TypeAlias

import numpy as np

from benchmarks import feed, report, spread
from benchmarks.ingest import apply
from benchmarks.processes import ROOT, say
from consumers.record import Entry, Float32s, Span
from pipeline.learner import Learner
from pipeline.state import State
from pipeline.train import learn

WAITING = (100_000, 1_000_000, 10_000_000)

SPAN_ROWS = (1000, 100, 10, 1)
SHORT_WAITING = 1000
"""How many rows a label is late where spans are short."""

FEATURES = (8, 32, 128)
FEATURES_WAITING = 100_000
"""How many rows wait where the columns are counted."""

WARM_UP_ROWS = 20_000

Medians: TypeAlias = dict[int, dict[str, float]]
"""By size."""


class NoLearner:
    """Stands in for the learner while rows are only joined."""

    task = SimpleNamespace(kind="binary")
    score_width = 1

    def score(self, features_NC: Float32s) -> Float32s:
        return np.zeros((len(features_NC), 1), np.float32)


def with_waiting(waiting: int, rows: int) -> dict[str, float]:
    """Microseconds of CPU time a row, and where the memory went, with `waiting` rows that wait.

    A label may be for any of them, and as many lie behind it in the window of duplicates: slabs come and go.
    """
    return _joined_and_learned(waiting, feed.COLUMNS, rows)


def with_features(columns: int, rows: int) -> dict[str, float]:
    """The same with so many numeric columns, while FEATURES_WAITING rows wait."""
    return _joined_and_learned(FEATURES_WAITING, columns, rows)


def _joined_and_learned(waiting: int, columns: int, rows: int) -> dict[str, float]:
    with tempfile.TemporaryDirectory(prefix="evertrain-bench-") as folder:
        join = {"window": f"{2 * waiting + feed.SPAN_ROWS}ms", "memory": "16GiB"}
        numeric = [f"f{number}" for number in range(columns)]
        job = feed.job(Path(folder), join=join, features={"numeric": numeric})
        state = State(job, feed.positions(), NoLearner())  # type: ignore[arg-type]
        spans = feed.spans(job, waiting, shuffled=True)
        while state.positions[feed.FEATURES].next < 3 * waiting + 4 * job.join.slab_rows:
            apply(state, next(spans))
        joined = _timed(state, spans, rows, apply)
        state.learner = Learner(job)
        _timed(state, spans, rows // 4, learn)
        return {"join": joined, "all": _timed(state, spans, rows, learn), "join_mib": state.join.nbytes / 2**20}


def with_spans(span_rows: int, rows: int) -> dict[str, float]:
    """Microseconds of CPU time a row of the default learner; spans of features and of labels take turns.

    A twentieth of `rows` is timed, as a span of one row costs so much, after WARM_UP_ROWS: some code is loaded late.
    """
    with tempfile.TemporaryDirectory(prefix="evertrain-bench-") as folder:
        job = feed.job(Path(folder), learner={"kind": "bank"})
        state = State(job, feed.positions(), Learner(job))
        spans = feed.spans(job, SHORT_WAITING, shuffled=True, span_rows=span_rows)
        while state.positions[feed.FEATURES].next < WARM_UP_ROWS:
            learn(state, next(spans))
        return {"all": _timed(state, spans, rows // 20, learn)}


def _timed(state: State, spans: Iterator[Span], rows: int, use: Callable[[State, Entry], None]) -> float:
    """Microseconds of CPU time for a row: a feature event and a label."""
    first = next(spans)
    entries = [first, *islice(spans, max(0, 2 * rows // len(first.events) - 1))]
    began = time.process_time()
    for entry in entries:
        use(state, entry)
    return (time.process_time() - began) * 2e6 / (len(entries) * len(first.events))


MEASURES: dict[str, Callable[[int, int], dict[str, float]]] = {
    "waiting": with_waiting,
    "spans": with_spans,
    "features": with_features,
}


def medians(what: str, sizes: list[int], rows: int, repeat: int) -> Medians:
    """The sizes take turns, each in a process of its own."""
    runs: dict[int, list[dict[str, float]]] = {size: [] for size in sizes}
    for turn in range(repeat):
        for size, found in runs.items():
            command = [sys.executable, "-m", "benchmarks.scaling", "--one", what, str(size), "--rows", str(rows)]
            done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, check=True, timeout=1800)
            found.append(json.loads(done.stdout))
            say(f"{turn + 1}/{repeat} {what} {size:,}: {found[-1]}")
    return {size: {key: median(run[key] for run in found) for key in found[0]} for size, found in runs.items()}


def joined_and_learned(what: str, column: str, sizes: list[int], rows: int, repeat: int) -> list[dict[str, Any]]:
    """What a row costs that is joined, and one that is scored and learned, too: a record a size, which is `column`."""
    found = medians(what, sizes, rows, repeat)
    return [
        {
            column: size,
            "joined_µs": round(costs["join"], 3),
            "joined_scored_learned_µs": round(costs["all"], 3),
            "times_the_first": round(costs["all"] / found[sizes[0]]["all"], 2),
            "slabs_MiB": round(costs["join_mib"]),
        }
        for size, costs in found.items()
    ]


def waiting_rows(sizes: list[int], rows: int, repeat: int) -> dict[str, Any]:
    """A table by the number of rows that wait."""
    records = joined_and_learned("waiting", "rows_that_wait", sizes, rows, repeat)
    return {f"Rows that wait: CPU time a row, medians of {repeat}": records}


def more_features(sizes: list[int], rows: int, repeat: int) -> dict[str, Any]:
    """A table by the number of numeric columns."""
    records = joined_and_learned("features", "numeric_columns", sizes, rows, repeat)
    return {f"Features, while {FEATURES_WAITING:,} rows wait: CPU time a row, medians of {repeat}": records}


def short_spans(sizes: list[int], rows: int, repeat: int) -> dict[str, Any]:
    """A table by the number of rows that come at once."""
    found = medians("spans", sizes, rows, repeat)
    records = [
        {
            "rows_in_a_span": size,
            "joined_scored_learned_µs": round(costs["all"], 1),
            "times_the_first": round(costs["all"] / found[sizes[0]]["all"], 2),
        }
        for size, costs in found.items()
    ]
    return {f"Rows in a span: CPU time a row of the default learner, medians of {repeat}": records}


TABLES = {"waiting": waiting_rows, "spans": short_spans, "features": more_features}


def measured(args: argparse.Namespace) -> dict[str, Any]:
    """A table for each thing that grows or shrinks, by name; none where it is given no sizes."""
    results: dict[str, Any] = {}
    for name, table in TABLES.items():
        if sizes := getattr(args, name):
            results[name] = table(sizes, args.rows, args.repeat)
    if args.partitions or args.readers:
        results |= spread.tables(args.partitions, args.readers, args.rows, args.repeat)
    return results


def main() -> None:
    """Prints the tables, or, in a process of its own, what one of them measures."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.scaling",
        description=__doc__,
        epilog="An option that is given no sizes skips its table.",
    )
    parser.add_argument("--waiting", type=int, nargs="*", default=list(WAITING), help="rows that wait")
    parser.add_argument("--spans", type=int, nargs="*", default=list(SPAN_ROWS), help="rows in a span")
    parser.add_argument("--features", type=int, nargs="*", default=list(FEATURES), help="numeric columns")
    partitions, readers = list(spread.PARTITION_COUNTS), list(spread.READERS)
    parser.add_argument("--partitions", type=int, nargs="*", default=partitions, help="of each topic; needs Kafka")
    parser.add_argument("--readers", type=int, nargs="*", default=readers, help="reader processes; needs Kafka")
    parser.add_argument("--rows", type=int, default=400_000, help="measured each time; of --spans a twentieth")
    parser.add_argument("--repeat", type=int, default=3, help="how often the sizes take turns")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("-o", "--output", choices=("text", "json"), default="text")
    args = parser.parse_args()
    if args.one:
        what, size = args.one
        print(json.dumps(MEASURES[what](int(size), args.rows)))
        return
    results = measured(args)
    text = "\n\n".join(report.plain(table) for table in results.values())
    print(json.dumps(results, indent=2) if args.output == "json" else text)


if __name__ == "__main__":
    main()
