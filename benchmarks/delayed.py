"""What late labels cost, and how much of it each policy gets back: the same pipeline over the same events.

Between the *oracle*, which knows every label at decision time, and the *naive* learner, which takes every event for a
negative at once and is never corrected, lies the gap; a policy recovers a share of it. AUC of all scores as of arrival,
after the first window.

    python -m benchmarks.delayed -o json > results/delayed.json
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from benchmarks.processes import say
from benchmarks.quality import DATA, find_streams
from benchmarks.report import delayed
from consumers.record import (
    NO_REJECTS,
    Entry,
    Events,
    Float32s,
    Int64s,
    Kind,
    Membership,
    Partition,
    Position,
    Span,
    Tick,
)
from consumers.tabular import TableSource
from pipeline.config import JobConfig, LearnerConfig, label_rule
from pipeline.learner import Learner
from pipeline.quality import Quality
from pipeline.state import State
from pipeline.tables import LEARNERS, TableOptions, prepare, read_table
from pipeline.train import learn

DAY_MS = 86_400_000
FRAUD = "fraud_sim_d001_045"
OTHERS = ("elec2", "weather_noaa", "flights_2001h1")
SPAN_ROWS = 256
LABELS = Partition("labels", 0)

RECOVERED_MIN = 0.35
GAP_MIN = 0.01  # with less there is nothing to recover

POLICIES: dict[str, dict[str, Any]] = {
    "wait": {},
    "negative at once": {"negative_after": 0.0},
    "negative after a tenth": {"negative_after": 0.1},
    "wait, half of the negatives": {"keep_negatives": 0.5},
}
"""Settings of `[join]`; `negative_after` as a share of the window. The first one is the default."""


@dataclass(frozen=True, slots=True)
class Feed:
    """N events in the order of time, and when which label comes."""

    job: JobConfig
    events: Events
    delay_N: Int64s  # ms; those after the window never come
    window_ms: int

    @property
    def labels_N(self) -> Float32s:
        assert self.events.label_N is not None
        return self.events.label_N

    def entries(self, labels_N: Float32s, delay_N: Int64s) -> Iterator[Entry]:
        """Features in spans, each followed by the labels that came before its end. The watermark goes by features."""
        features, time_N = Partition(self.job.features.topic, 0), self.events.event_time_N
        yield Membership(LABELS, idle=True)
        due_N = time_N + delay_N
        order_N = np.argsort(due_N, kind="stable")
        order_N = order_N[delay_N[order_N] <= self.window_ms]
        ends = np.searchsorted(due_N[order_N], time_N, side="right")
        sent = 0
        for start in range(0, len(time_N), SPAN_ROWS):
            part = self.events.part(start, start + SPAN_ROWS)
            stop = start + len(part)
            yield Span(
                features, start, stop, int(part.event_time_N[0]), len(part), replace(part, label_N=None), NO_REJECTS
            )
            row_M = order_N[sent : ends[stop - 1]]
            row_M = row_M[row_M < stop]  # of several at the same time those to come are the last
            if len(row_M):
                yield self._labels(row_M, sent, due_N[row_M], labels_N[row_M])
                sent += len(row_M)
        yield Tick()

    def _labels(self, row_M: Int64s, first: int, time_M: Int64s, labels_M: Float32s) -> Span:
        count = len(row_M)
        events = Events(
            key_N2=self.events.key_N2[row_M],
            event_time_N=time_M,
            offset_N=np.arange(first, first + count),
            row_N=np.zeros(count, np.int32),
            kind_N=np.full(count, Kind.EVENT, np.uint8),
            features_NC=np.empty((count, 0), np.float32),
            weight_N=np.empty(0, np.float32),
            label_N=labels_M,
        )
        return Span(LABELS, first, first + count, int(time_M[0]), count, events, NO_REJECTS)


def feed(path: Path, options: TableOptions) -> Feed:
    """A file as events, and delays: of the fraud stream 7 days for all, of others those of conversions.

    There only positives get a label, after 500 rows on average and 3,000 at most; a row takes a second.
    """
    table = read_table(path, options.rows)
    prepared, job = prepare(table, options)
    source = TableSource(prepared, job.features, label_rule(job.learner), SPAN_ROWS)
    parts = [entry.events for entry in source.entries({source.partition: Position(0)}) if isinstance(entry, Span)]
    columns = {name: np.concatenate([getattr(part, name) for part in parts]) for name in Events.__slots__}
    events = Events(**columns)
    if path.stem == FRAUD:
        events = replace(events, event_time_N=table["ts"].to_numpy().astype(np.int64) * 1000)
        return Feed(_job(job, 7 * DAY_MS, "drop"), events, np.full(len(events), 7 * DAY_MS), 7 * DAY_MS)
    events, window_ms = replace(events, event_time_N=events.event_time_N * 1000), 3_000_000
    delay_N = np.random.default_rng(0).exponential(500_000, len(events)).astype(np.int64)
    delay_N = np.where(columns["label_N"] == 1, np.minimum(delay_N, window_ms), window_ms + 1)
    return Feed(_job(job, window_ms, "negative"), events, delay_N, window_ms)


def _job(job: JobConfig, window_ms: int, on_expiry: str) -> JobConfig:
    """The job with labels of a topic of their own; the window has room for labels that are applied a span late."""
    document = job.model_dump()
    document["features"]["label"] = None
    document["labels"] = {"topic": LABELS.topic, "column": "label", "max_message_bytes": 2**40}
    document["join"] |= {"window": window_ms + window_ms // 7, "on_expiry": on_expiry}
    document["learner"]["batch_size"] = LearnerConfig().batch_size
    document["monitor"]["drift"] = False
    return JobConfig.model_validate(document)


def auc(given: Feed, seed: int, join: dict[str, Any], labels_N: Float32s, delay_N: Int64s) -> float:
    """AUC of the scores on arrival, after the first window, of a job with these settings and these labels."""
    document = given.job.model_dump()
    document["job"]["seed"] = seed
    document["join"] |= join
    job = JobConfig.model_validate(document)
    positions = {Partition(job.features.topic, 0): Position(0), LABELS: Position(0)}
    scores: list[Float32s] = []
    state = State(job, positions, _Noting(job, scores))
    for entry in given.entries(labels_N, delay_N):
        learn(state, entry)
        state.seal()
    state.fill_scores()
    state.check_balance()
    first = int(np.searchsorted(given.events.event_time_N, given.events.event_time_N[0] + given.window_ms))
    quality, true_N = Quality("binary", 2, 0), given.labels_N[first:]
    quality.update(np.concatenate(scores)[first:], true_N, np.ones_like(true_N))
    return quality.metrics()["auc"]


class _Noting(Learner):
    """The learner, whose scores on arrival are noted."""

    def __init__(self, job: JobConfig, scores: list[Float32s]) -> None:
        super().__init__(job)
        self._noted = scores

    def score(self, features_NC: Float32s) -> Float32s:
        scores_NS = super().score(features_NC)
        self._noted.append(scores_NS.copy())
        return scores_NS


def measure(name: str, given: Feed, seeds: int) -> dict[str, Any]:
    """Medians over the seeds, and the share of the gap that each policy recovers."""
    at_once_N, none_N = np.zeros_like(given.delay_N), np.zeros_like(given.labels_N)
    contenders: dict[str, tuple[dict[str, Any], Float32s, Int64s]] = {
        "oracle": ({}, given.labels_N, at_once_N),
        "naive": ({}, none_N, at_once_N),
    }
    for policy, settings in POLICIES.items():
        join = dict(settings)
        if "negative_after" in join:
            join["negative_after"] = round(join["negative_after"] * given.window_ms)
        contenders[policy] = join, given.labels_N, given.delay_N
    found = {}
    for contender, setting in contenders.items():
        found[contender] = median(auc(given, seed, *setting) for seed in range(seeds))
        say(f"{name}, {contender}: AUC {found[contender]:.4f}")
    oracle, naive = found.pop("oracle"), found.pop("naive")
    gap = oracle - naive
    recovered = {policy: (value - naive) / gap for policy, value in found.items()} if gap >= GAP_MIN else {}
    line = {"rows": len(given.events), "oracle": oracle, "naive": naive, "policies": found, "gap": gap}
    default = recovered.get(next(iter(POLICIES)), 1.0)
    return line | {"recovered": recovered, "floor": RECOVERED_MIN, "reached": default >= RECOVERED_MIN}


def run(args: argparse.Namespace) -> dict[str, Any]:
    """All streams that are there."""
    try:
        streams = find_streams(DATA, args.streams)
    except FileNotFoundError:
        streams = {}
    skipped = [f"{name}: not in {DATA}" for name in args.streams if name not in streams]
    results = {}
    for name, stream in streams.items():
        rows = None if name == FRAUD and args.rows is None else (args.rows or 50_000)
        options = TableOptions(**stream.options, rows=rows, learner=args.learner)
        results[name] = measure(name, feed(stream.path, options), args.seeds)
    return {"learner": args.learner, "seeds": args.seeds, "streams": results, "skipped": skipped}


def main() -> None:
    """Prints results, and on stderr what goes on."""
    description, _, _ = __doc__.partition("\n\n")
    parser = argparse.ArgumentParser(prog="python -m benchmarks.delayed", description=description)
    parser.add_argument("--streams", nargs="+", default=[FRAUD, *OTHERS], metavar="NAME", help="names of the manifest")
    parser.add_argument("--seeds", type=int, default=3, metavar="N")
    parser.add_argument("--rows", type=int, metavar="N", help=f"of each (default: all of {FRAUD}, 50,000 of others)")
    parser.add_argument("--learner", default=LEARNERS[0])
    parser.add_argument("-o", "--output", choices=("text", "json"), default="text")
    args = parser.parse_args()
    results = run(args)
    print(json.dumps(results, indent=2) if args.output == "json" else delayed(results))


if __name__ == "__main__":
    main()
