"""Where each microsecond of a row goes: CPU time by stage, on entries made in memory, as a table."""

from __future__ import annotations

import argparse
import functools
import json
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple, TypeAlias

import torch

import consumers.join
import consumers.slabs
import pipeline.drift.watch
from benchmarks import feed, report
from benchmarks.processes import say
from consumers.batch import Examples
from consumers.join import Join
from consumers.record import Span
from consumers.slabs import SlabTable
from pipeline.descent import Descent
from pipeline.drift.adwin import Adwin
from pipeline.drift.categories import Categories
from pipeline.drift.delays import Delays
from pipeline.drift.psi import PSI
from pipeline.drift.watch import Drift
from pipeline.executor import Eager, Training
from pipeline.learner import Learner
from pipeline.monitor import Monitor
from pipeline.normalise import Standardiser
from pipeline.quality import Quality
from pipeline.state import State
from pipeline.train import learn

WAITING = 100_000
SCORE_AND_STEP = ("score", "step", "score and step")
REST = "ledger, cursor, counts, batches"


Found: TypeAlias = dict[tuple[str, str], float]
"""Microseconds a row by part and stage."""


class Stage(NamedTuple):
    """Calls that are one line of the table. What they spend in calls of other stages counts there; if `whole`, here."""

    part: str
    name: str
    calls: tuple[tuple[Any, str], ...]  # where each is looked up, and its name there
    whole: bool = False


def learner_stages(state: State) -> list[Stage]:
    """What the learner's process does for a row once a reader has decoded it."""
    learner = state.learner
    assert isinstance(learner.method, Descent)
    return [
        Stage("score", "forward on arrival", ((learner.scorer, "forward"),), whole=True),
        Stage("score", "the rest", ((Learner, "score"), (Eager, "score"))),
        Stage("score and step", "rows to the block of fixed shape", ((Eager, "_block"),)),
        Stage("step", "moments of the standardiser", ((Standardiser, "update"),)),
        Stage("step", "forward and loss", ((learner.module, "forward"), (learner.task, "loss"))),
        Stage("step", "backward", ((torch.Tensor, "backward"),)),
        Stage("step", "optimizer", ((learner.method.optimizer, "step"),)),
        Stage("step", "what a refused step needs, norm, modes", ((Eager, "step"), (Training, "gradients"))),
        Stage("frozen copy", "its scores", ((Learner, "frozen_scores"),), whole=True),
        Stage("join", "rules for features", ((consumers.join, "apply_features"),)),
        Stage("join", "rules for labels", ((consumers.join, "apply_labels"),)),
        Stage("join", "features and scores to their slab", ((SlabTable, "store"),)),
        Stage("join", "examples to their batch", ((Examples, "take"),)),
        Stage("join", "expiry", ((Join, "_expire"),)),
        Stage("join", "slabs that go and come, index", tuple(_slab_calls())),
        Stage("monitor", "quality by label age", ((Monitor, "_update_by_age"),), whole=True),
        Stage("monitor", "quality", ((Quality, "update"),)),
        Stage("monitor", "blocks of 128 rows: inputs, delays, outcomes", _block_calls()),
        Stage("monitor", "PSI of every column", ((PSI, "update"),)),
        Stage("monitor", "ADWIN", ((Adwin, "update"),)),
        Stage("monitor", "new categories", ((Categories, "update"),)),
        Stage("monitor", "metric points", ((Monitor, "point"),)),
        Stage("monitor", "the rest", ((Monitor, "observe"), (Drift, "observe"))),
    ]


def _block_calls() -> tuple[tuple[Any, str], ...]:
    return (pipeline.drift.watch, "take_rows"), (pipeline.drift.watch, "close_detectors"), (Delays, "observe")


def _slab_calls() -> Iterator[tuple[Any, str]]:
    yield from ((SlabTable, name) for name in ("drop_oldest", "open_slab", "reserve"))
    yield from ((consumers.slabs, name) for name in ("enter", "remove"))


class Stopwatch:
    """CPU seconds of each stage, without those of the stages that it calls."""

    def __init__(self) -> None:
        self.seconds: defaultdict[tuple[str, str], float] = defaultdict(float)
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


def profile(rows: int, repeat: int, *, frozen: bool) -> Found:
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


def _once(state: State, entries: list[Span]) -> Found:
    stages, watch, trained = learner_stages(state), Stopwatch(), state.trained
    with watch.watch(stages):
        began = time.process_time()
        for entry in entries:
            learn(state, entry)
        total = time.process_time() - began
    watch.seconds["state", REST] = total - sum(watch.seconds.values())
    names = [(stage.part, stage.name) for stage in stages] + [("state", REST)]
    return {name: 1e6 * watch.seconds[name] / (state.trained - trained) for name in names}


def records(plain: Found, frozen: Found) -> list[dict[str, Any]]:
    """The lines of the table: the stages, and sums."""
    lines = [(part, name, plain[part, name], frozen[part, name]) for part, name in plain]
    for title, parts in (("score and step", SCORE_AND_STEP), ("the rest", None), ("all", ())):
        lines.append((f"sum: {title}", "", _sum(plain, parts), _sum(frozen, parts)))
    names = ("part", "stage", "µs_a_row", "with_a_frozen_copy")
    return [
        dict(zip(names, (part, name, round(us, 3), round(us_frozen, 3)), strict=True))
        for part, name, us, us_frozen in lines
    ]


def _sum(found: Found, parts: tuple[str, ...] | None) -> float:
    """Of some parts; None: of those beside score and step; empty: of all."""
    return sum(
        us
        for (part, _), us in found.items()
        if parts == () or (part not in SCORE_AND_STEP if parts is None else part in parts)
    )


def main() -> None:
    """Prints a table for each process: today for the learner's."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.profile", description=__doc__)
    parser.add_argument("--rows", type=int, default=400_000, help="in each turn")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("-o", "--output", choices=("text", "json"), default="text")
    args = parser.parse_args()
    plain, frozen = (profile(args.rows, args.repeat, frozen=frozen) for frozen in (False, True))
    results = {f"The learner, CPU time, medians of {args.repeat}": records(plain, frozen)}
    print(json.dumps(results, indent=2) if args.output == "json" else report.plain(results))


if __name__ == "__main__":
    main()
