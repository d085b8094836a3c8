"""Where each microsecond of a row goes: CPU time by stage, on entries made in memory, as a table."""

from __future__ import annotations

import argparse
import functools
import json
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import torch

import consumers.join
import consumers.slabs
import pipeline.monitor
from benchmarks import feed
from benchmarks.throughput import say
from consumers.batch import Examples
from consumers.join import Join
from consumers.record import Span
from consumers.slabs import SlabTable
from pipeline.drift.adwin import Adwin
from pipeline.drift.psi import PSI
from pipeline.learner import Learner
from pipeline.monitor import Drift, Monitor
from pipeline.normalise import Standardiser
from pipeline.quality import Quality
from pipeline.state import State
from pipeline.train import learn

WAITING = 100_000
MARKS = "<!-- profile: python -m benchmarks.profile --write docs/performance.md -->", "<!-- end of profile -->"
SCORE_AND_STEP = ("score", "step", "score and step")
REST = "ledger, cursor, counts, batches"


class Stage(NamedTuple):
    """Calls that are one line of the table. What they spend in other stages counts there, or here if `whole`."""

    part: str
    name: str
    calls: tuple[tuple[Any, str], ...]  # where each is looked up, and its name there
    whole: bool = False


def learner_stages(state: State) -> list[Stage]:
    """What the learner's process does for a row once a reader has decoded it."""
    learner = state.learner
    return [
        Stage("score", "forward on arrival", ((learner.scorer, "forward"),), whole=True),
        Stage("score", "the rest", ((Learner, "score"),)),
        Stage("score and step", "rows to the block of fixed shape", ((Learner, "_block"),)),
        Stage("step", "moments of the standardiser", ((Standardiser, "update"),)),
        Stage("step", "forward and loss", ((learner.module, "forward"), (learner.task, "loss"))),
        Stage("step", "backward", ((torch.Tensor, "backward"),)),
        Stage("step", "optimizer", ((learner.optimizer, "step"),)),
        Stage("step", "what a refused step needs, norm, modes", ((Learner, "_step"),)),
        Stage("frozen copy", "its scores", ((Learner, "_frozen_scores"),), whole=True),
        Stage("join", "rules for features", ((consumers.join, "apply_features"),)),
        Stage("join", "rules for labels", ((consumers.join, "apply_labels"),)),
        Stage("join", "features and scores to their slab", ((SlabTable, "store"),)),
        Stage("join", "examples to their batch", ((Examples, "take"),)),
        Stage("join", "expiry", ((Join, "_expire"),)),
        Stage("join", "slabs that go and come, index", tuple(_slab_calls())),
        Stage("monitor", "quality", ((Quality, "update"),)),
        Stage("monitor", "PSI of every column", ((PSI, "update"),)),
        Stage("monitor", "ADWIN", ((Adwin, "update"),)),
        Stage("monitor", "categories", ((pipeline.monitor, "_mark_seen"),)),
        Stage("monitor", "metric points", ((Monitor, "point"),)),
        Stage("monitor", "the rest", ((Monitor, "observe"), (Drift, "observe"))),
    ]


def _slab_calls() -> Iterator[tuple[Any, str]]:
    yield from ((SlabTable, name) for name in ("drop_oldest", "open_slab", "reserve"))
    yield from ((consumers.slabs, name) for name in ("enter", "remove"))


class Stopwatch:
    """CPU seconds of each stage, without those of the stages that it calls."""

    def __init__(self) -> None:
        self.seconds: Counter[tuple[str, str]] = Counter()
        self._below: list[float] = []  # seconds of the calls below each one that runs
        self._whole = False
        self._cost = _cost_of_a_clock()

    @contextmanager
    def watch(self, stages: list[Stage]) -> Iterator[None]:
        """Times the stages' calls until it is left."""
        before = [(owner, name, vars(owner).get(name)) for stage in stages for owner, name in stage.calls]
        for stage in stages:
            for owner, name in stage.calls:
                setattr(owner, name, self._timed(getattr(owner, name), stage))
        try:
            yield
        finally:
            for owner, name, found in before:
                if found is None:
                    delattr(owner, name)
                else:
                    setattr(owner, name, found)

    def _timed(self, call: Callable[..., Any], stage: Stage) -> Callable[..., Any]:
        @functools.wraps(call)
        def timed(*args: Any, **kwargs: Any) -> Any:
            if self._whole:
                return call(*args, **kwargs)
            self._whole = stage.whole
            self._below.append(0.0)
            began = time.process_time()
            try:
                return call(*args, **kwargs)
            finally:
                spent = time.process_time() - began
                self._whole = False
                self.seconds[stage.part, stage.name] += spent - self._below.pop() - self._cost
                if self._below:
                    self._below[-1] += spent + self._cost

        return timed


def _cost_of_a_clock() -> float:
    """Seconds that it takes to ask for the CPU time: half of it falls into what is measured."""
    began = time.process_time()
    for _ in range(10_000):
        time.process_time()
    return (time.process_time() - began) / 10_000


def profile(rows: int, repeat: int, *, frozen: bool) -> dict[tuple[str, str], float]:
    """Microseconds of CPU time a row, by part and stage: medians, on one core, with `WAITING` rows that wait."""
    with tempfile.TemporaryDirectory(prefix="evertrain-bench-") as folder:
        job = feed.job(
            Path(folder),
            join={"window": f"{2 * WAITING + feed.SPAN_ROWS}ms"},
            monitor={"frozen_after": 0} if frozen else {},
        )
        state = State(job, feed.positions(), Learner(job))
        spans = feed.spans(job, WAITING, shuffled=True)
        while state.trained < 2 * WAITING + rows // 10:  # until slabs are dropped, and all is compiled
            learn(state, next(spans))
        runs = []
        for turn in range(repeat):
            runs.append(_once(state, list(islice(spans, 2 * rows // feed.SPAN_ROWS))))
            say(f"{turn + 1}/{repeat}: {sum(runs[-1].values()):.2f} µs a row")
    return {stage: median(run[stage] for run in runs) for stage in runs[0]}


def _once(state: State, entries: list[Span]) -> dict[tuple[str, str], float]:
    stages, watch, trained = learner_stages(state), Stopwatch(), state.trained
    with watch.watch(stages):
        began = time.process_time()
        for entry in entries:
            learn(state, entry)
        total = time.process_time() - began
    watch.seconds["state", REST] = total - sum(watch.seconds.values())
    names = [(stage.part, stage.name) for stage in stages] + [("state", REST)]
    return {name: 1e6 * watch.seconds[name] / (state.trained - trained) for name in names}


def table(plain: dict[tuple[str, str], float], frozen: dict[tuple[str, str], float]) -> str:
    """Markdown: a line a stage, and the sums."""
    lines = ["| | | µs a row | with a frozen copy |", "|---|---|---:|---:|"]
    part_before = ""
    for part, name in plain:
        lines.append(
            f"| {part if part != part_before else ''} | {name} | {plain[part, name]:.3f} | {frozen[part, name]:.3f} |"
        )
        part_before = part
    for title, parts in {"score and step": SCORE_AND_STEP, "beside them": None, "all": ()}.items():
        sums = [_sum(found, parts) for found in (plain, frozen)]
        lines.append(f"| **{title}** | | **{sums[0]:.2f}** | **{sums[1]:.2f}** |")
    return "\n".join(lines)


def _sum(found: dict[tuple[str, str], float], parts: tuple[str, ...] | None) -> float:
    """Of some parts; None: of those beside score and step; empty: of all."""
    return sum(
        spent
        for (part, _), spent in found.items()
        if parts == () or (part not in SCORE_AND_STEP if parts is None else part in parts)
    )


def write(path: Path, text: str) -> None:
    """Replaces what stands between the two marks. Raises ValueError if they are not there."""
    before, _, rest = path.read_text().partition(MARKS[0])
    _, found, after = rest.partition(MARKS[1])
    if not found:
        raise ValueError(f"{path} has no lines {MARKS[0]} and {MARKS[1]}")
    path.write_text(f"{before}{MARKS[0]}\n{text}\n{MARKS[1]}{after}")


def main() -> None:
    """Prints the table, or writes it into a file between two marks."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.profile", description=__doc__)
    parser.add_argument("--rows", type=int, default=400_000, help="in each turn")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--write", type=Path, help="a file with the two marks")
    parser.add_argument("-o", "--output", choices=("text", "json"), default="text")
    args = parser.parse_args()
    found = {frozen: profile(args.rows, args.repeat, frozen=frozen) for frozen in (False, True)}
    if args.write:
        write(args.write, table(found[False], found[True]))
    if args.output == "json":
        lines = [
            {"part": p, "stage": s, "us": found[False][p, s], "us_frozen": found[True][p, s]} for p, s in found[False]
        ]
        print(json.dumps(lines, indent=2))
    else:
        print(table(found[False], found[True]))


if __name__ == "__main__":
    main()
