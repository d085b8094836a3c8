"""How soon drift is found, how rightly it is named, and how often it is seen where there is none.

    python -m benchmarks.drift -o json
    python -m benchmarks.drift --kinds none abrupt_concept --seeds 0 5

Every stream goes through `evertrain backtest`'s own function at label latency 32. The folder $EVERTRAIN_DATA has
gen_drift.py, which makes streams of 13 kinds with known changes, and the files of `benchmarks.quality`; what is not
there is skipped, and said to be.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from statistics import median
from types import ModuleType
from typing import Any

import pyarrow as pa

from benchmarks.processes import say
from benchmarks.quality import DATA, find_streams
from benchmarks.report import drift
from pipeline.backtest import backtest_file, backtest_table
from pipeline.drift import Alarm
from pipeline.tables import LEARNERS, TableOptions, prepare

LATENCY = 32
ROWS = 50_000

GATES: dict[str, tuple[float, int]] = {
    "abrupt_concept": (0.95, 1000),
    "recurring_concept": (0.95, 1000),
    "gradual_concept": (0.90, 1000),
    "incremental_concept": (0.85, 4000),
    "mean_shift": (0.95, 1300),
    "var_shift": (0.95, 1300),
    "quality_nan": (0.95, 1300),
    "category_mix": (0.95, 1300),
    "label_prior": (0.95, 1300),
    "small_mean_shift": (0.90, 2300),
    "correlation": (0.90, 1300),
}
"""By kind: the share of its changes that must be found, and within how many rows. All others have no change."""

MEDIAN_ROWS = {"abrupt_concept": 120, "recurring_concept": 120}
NAMED = 0.95
FALSE_PER_100K = 0.5

NAMES = {
    "concept": {"concept"},
    "feature": {"feature", "correlation"},
    "quality": {"missing"},
    "category": {"category"},
    "label": {"label"},
}
"""Families that name what a stream says it changes."""

FILES: dict[str, tuple[int, ...]] = {"sea_50k": (12_500, 25_000, 37_500), "iris": (), "digits": ()}
FILE_ROWS = 1000
"""Public streams, and where they change: within so many rows it must be found. Without a change there is no alarm."""


@dataclass(slots=True)
class Tally:
    """What came of the streams of one kind."""

    changes: int = 0
    rows: int = 0
    false: int = 0
    named: int = 0
    delays: list[int] = field(default_factory=list)
    families: Counter[str] = field(default_factory=Counter)  # of the first alarm after a change, and of false ones

    def add(self, alarms: Sequence[Alarm], points: Sequence[int], within: int, rightly: set[str], rows: int) -> None:
        """Counts the alarms of one stream that changes at `points`, each until the next or for `within` rows."""
        self.rows += rows
        self.changes += len(points)
        hits = [[alarm for alarm in alarms if point <= alarm.row <= point + within] for point in points]
        for (point, following), hit in zip(pairwise([*points, rows]), hits, strict=True):
            first = next((alarm for alarm in hit if alarm.row < following), None)
            if first:
                self.delays.append(first.row - point)
                self.named += first.family in rightly
                self.families[first.family] += 1
        for alarm in alarms:
            if not any(alarm in hit for hit in hits):
                self.false += 1
                self.families[f"false {alarm.family}"] += 1

    def line(self) -> dict[str, Any]:
        """All of it, ready for JSON."""
        found = len(self.delays)
        return {
            "changes": self.changes,
            "found": found / self.changes if self.changes else None,
            "median_rows": median(self.delays) if found else None,
            "named": self.named / found if found else None,
            "false_per_100k": 1e5 * self.false / self.rows,
            "families": dict(self.families.most_common()),
        }


def load_generator(data: Path) -> ModuleType | None:
    """gen_drift.py of the folder, if it is there."""
    spec = importlib.util.spec_from_file_location("gen_drift", data / "gen_drift.py")
    if spec is None or spec.loader is None or not (data / "gen_drift.py").exists():
        return None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def measure(generator: ModuleType, kind: str, args: argparse.Namespace) -> dict[str, Any]:
    """All seeds of one kind."""
    tally, gate = Tally(), GATES.get(kind)
    for seed in range(*args.seeds):
        made = generator.make(kind, seed)
        columns = {f"x{index}": column for index, column in enumerate(made["X"].T)}
        table = pa.table({**columns, "c": made["c"], "label": made["y"]})
        rightly = set().union(*(NAMES.get(what, set()) for what in made["what"]))
        rightly |= {"concept"} if "label" in made["what"] else set()
        alarms = _alarms(table, TableOptions("label", "binary", LATENCY, categorical=("c",), learner=args.learner))
        tally.add(alarms, made["points"], gate[1] if gate else 0, rightly, len(table))
        say(f"{kind} {seed}: changes at {made['points']}, {_shown(alarms)}")
    line = {"kind": kind, "streams": len(range(*args.seeds)), **tally.line()}
    if gate is None:
        return line
    floor, within = gate
    reached = line["found"] >= floor and (line["median_rows"] or 0) <= MEDIAN_ROWS.get(kind, within)
    return line | {"floor": floor, "within_rows": within, "reached": reached}


def measure_files(data: Path, args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Public streams with known changes, or without any."""
    for name, stream in find_streams(data, list(FILES)).items():
        tally, points = Tally(), FILES[name]
        options = TableOptions(**stream.options, label_latency=LATENCY, rows=ROWS, learner=args.learner)
        result = backtest_file(stream.path, options)
        tally.add(result.alarms, points, FILE_ROWS, {"concept"}, result.rows)
        say(f"{name}: {_shown(result.alarms)}")
        reached = len(tally.delays) == len(points) and (bool(points) or not tally.false)
        yield {"stream": name, **tally.line(), "within_rows": FILE_ROWS, "reached": reached}


def _alarms(table: pa.Table, options: TableOptions) -> list[Alarm]:
    prepared, job = prepare(table, options)
    return backtest_table(prepared, job, options.label_latency).alarms


def _shown(alarms: Sequence[Alarm]) -> str:
    names = (f"{alarm.family}{f' {alarm.feature}' if alarm.feature else ''}" for alarm in alarms)
    return ", ".join(f"{alarm.row:,} {name}" for alarm, name in zip(alarms, names, strict=True)) or "no alarm"


def run(args: argparse.Namespace) -> dict[str, Any]:
    """All that was asked for."""
    generator, skipped = load_generator(DATA), list[str]()
    results: dict[str, Any] = {"learner": args.learner, "seeds": list(args.seeds), "kinds": [], "files": []}
    if generator is None:
        skipped.append(f"all kinds: gen_drift.py is not in {DATA}")
    else:
        kinds = args.kinds or generator.KINDS
        results["kinds"] = [measure(generator, kind, args) for kind in kinds]
        steady = [line for line in results["kinds"] if not line["changes"]]
        if steady:
            false = sum(line["false_per_100k"] for line in steady) / len(steady)
            results["false_per_100k"] = {"found": false, "ceiling": FALSE_PER_100K, "reached": false <= FALSE_PER_100K}
        named = [line["named"] for line in results["kinds"] if line["named"] is not None]
        if named:
            results["named"] = {"least": min(named), "floor": NAMED, "reached": min(named) >= NAMED}
    if (DATA / "manifest.json").exists():
        results["files"] = list(measure_files(DATA, args))
    there = {line["stream"] for line in results["files"]}
    skipped += [f"{name}: not in {DATA}" for name in FILES if name not in there]
    return results | {"skipped": skipped}


def main() -> None:
    """Prints results, and on stderr what goes on."""
    description, _, _ = __doc__.partition("\n\n")
    parser = argparse.ArgumentParser(prog="python -m benchmarks.drift", description=description)
    parser.add_argument("--kinds", nargs="+", metavar="KIND", help="default: all 13")
    parser.add_argument("--seeds", nargs=2, type=int, default=(0, 100), metavar=("FIRST", "END"))
    parser.add_argument("--learner", default=LEARNERS[0])
    parser.add_argument("-o", "--output", choices=("text", "json"), default="text")
    args = parser.parse_args()
    results = run(args)
    print(json.dumps(results, indent=2) if args.output == "json" else drift(results))


if __name__ == "__main__":
    main()
