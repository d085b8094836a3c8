"""How well the default learner learns: prequential scores of public streams, and of the last of 150 tasks.

    python -m benchmarks.quality -o json
    python -m benchmarks.quality --streams elec2 plasticity --latency 32 --seeds 1 --rows 20000

Every stream goes through `evertrain backtest`'s own function. The files are those of the folder $EVERTRAIN_DATA, which
has a manifest.json; what is not there is skipped, and said to be. `--python` names the interpreter of the rivals'
virtual environment (benchmarks/README.md); without it they are skipped.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise, product
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.processes import ROOT, say
from benchmarks.report import RIVALS, quality
from pipeline.backtest import backtest_file, backtest_table
from pipeline.identity import with_settings
from pipeline.tables import LEARNERS, TableOptions, prepare, read_table

DATA = Path(os.environ.get("EVERTRAIN_DATA", ROOT.parent / "shared" / "data"))
NEVER_FEATURES = ("ts", "delay", "fraud_scenario_DO_NOT_USE")
"""Columns that a prediction could not know, or that only count time."""

LATENCIES = (1, 32)
GATES: dict[str, tuple[str, float, float]] = {
    "elec2": ("accuracy", 0.905, 0.820),
    "insects_gradual_balanced": ("accuracy", 0.802, 0.800),
    "weather_noaa": ("accuracy", 0.793, 0.792),
    "sea_50k": ("accuracy", 0.887, 0.887),
    "interchanging_rbf": ("accuracy", 0.970, 0.935),
    "covtype_100k": ("accuracy", 0.890, 0.852),
    "flights_2001h1": ("auc", 0.72, 0.71),
}
"""By stream: the metric, and what it must reach at label latency 1 and 32 in the first 50,000 rows."""

ROWS_PER_S = 20_000  # at label latency 32, the median over the streams

PLASTICITY = "plasticity"
TASKS, TASKS_COMPARED = 150, 10
PLASTICITY_LOSS_MAX = 0.01
RIVAL_TIMEOUT_S = 7200


@dataclass(frozen=True, slots=True)
class Stream:
    """A file, and what a backtest is told of it."""

    path: Path
    options: dict[str, Any]

    def run(self, latency: int, seed: int, rows: int, learner: str) -> dict[str, Any]:
        """One backtest."""
        options = TableOptions(**self.options, label_latency=latency, seed=seed, rows=rows, learner=learner)
        return backtest_file(self.path, options).document()


def find_streams(data: Path, names: Sequence[str]) -> dict[str, Stream]:
    """Those of the named streams that the folder has. Raises FileNotFoundError without its manifest."""
    found = {}
    for entry in json.loads((data / "manifest.json").read_text()):
        path = data / entry["file"]
        if entry["name"] in names and path.exists():
            columns = pq.read_schema(path).names
            options = {
                "label": entry["label"],
                "task": _task(entry),
                "categorical": tuple(entry["categorical"]),
                "drop": tuple(name for name in NEVER_FEATURES if name in columns),
            }
            found[entry["name"]] = Stream(path, options)
    return found


def _task(entry: dict[str, Any]) -> str:
    """The manifest has words such as "binary classification (imbalanced)"."""
    named = entry["task"].split()[0]
    if named != "classification":
        return str(named)
    return "binary" if entry["classes"] == 2 else "multiclass"


def measure(streams: dict[str, Stream], args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """A line for each stream and latency: medians over the seeds, and what they must reach if all rows were taken."""
    for (name, stream), latency in product(streams.items(), args.latency):
        runs = []
        for seed in range(args.seeds):
            runs.append(stream.run(latency, seed, args.rows, args.learner))
            say(f"{name}, label latency {latency}, seed {seed}: {_shown(runs[-1])}")
        metrics = {key: median(run["metrics"][key] for run in runs) for key in runs[0]["metrics"]}
        line = {"stream": name, "latency": latency, "seeds": args.seeds, "rows": runs[0]["rows"], "metrics": metrics}
        line["rows_per_s"] = median(run["rows_per_s"] for run in runs)
        line["alarms"] = median(len(run["alarms"]) for run in runs)
        if name in GATES and latency in LATENCIES:
            metric, *floors = GATES[name]
            floor = floors[LATENCIES.index(latency)]
            line |= {"metric": metric, "floor": floor, "reached": metrics[metric] >= floor}
        yield line


def measure_plasticity(data: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Accuracy by tens of tasks on digits whose pixels are permuted anew for each task: a learner may wear out.

    Dohare et al., "Loss of Plasticity in Deep Continual Learning" (Nature, 2024).
    """
    digits = read_table(data / "digits.parquet")
    names = [name for name in digits.column_names if name != "label"]
    pixels_NC = np.stack([digits[name].to_numpy() for name in names], axis=1)
    group_rows = TASKS_COMPARED * len(pixels_NC)
    runs = []
    for seed in range(args.seeds):
        rng = np.random.default_rng(seed)
        tasks_NC = np.concatenate([pixels_NC[:, rng.permutation(len(names))] for _ in range(args.tasks)])
        columns = {name: tasks_NC[:, index] for index, name in enumerate(names)}
        labels = pa.chunked_array([chunk for _ in range(args.tasks) for chunk in digits["label"].chunks])
        options = TableOptions("label", "multiclass", label_latency=32, seed=seed, learner=args.learner)
        table, job = prepare(pa.table({**columns, "label": labels}), options)
        job = with_settings(job, {"monitor.every": {"rows": group_rows}})
        points = backtest_table(table, job, options.label_latency).points
        right = [0.0, *(point["step"] * point["values"]["live/accuracy"] for point in points)]
        steps = [0, *(point["step"] for point in points)]
        pairs = zip(pairwise(right), pairwise(steps), strict=True)
        runs.append([(after - before) / (stop - start) for (before, after), (start, stop) in pairs])
        say(f"{PLASTICITY}, seed {seed}: {runs[-1][0]:.4f} at first, {runs[-1][-1]:.4f} in the end")
    accuracies = [median(group) for group in zip(*runs, strict=True)]
    result = {"tasks": args.tasks, "seeds": args.seeds, "by_ten_tasks": accuracies}
    return result | {
        "lost": accuracies[0] - accuracies[-1],
        "reached": accuracies[0] - accuracies[-1] <= PLASTICITY_LOSS_MAX,
    }


def measure_rivals(streams: dict[str, Stream], args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """A line for each rival, stream and latency, all with one seed: each alone in the rivals' own Python."""
    script = ROOT / "benchmarks" / "rivals" / "prequential.py"
    for (name, stream), latency, rival in product(streams.items(), args.latency, args.rivals):
        given = {**stream.options, "model": rival, "latency": latency, "rows": args.rows, "file": str(stream.path)}
        command = [str(args.python.absolute()), str(script), json.dumps(given)]
        done = subprocess.run(command, stdout=subprocess.PIPE, check=True, timeout=RIVAL_TIMEOUT_S)
        found = json.loads(done.stdout.splitlines()[-1])
        say(f"{name}, label latency {latency}, {rival}: {_shown(found)}")
        yield {"rival": rival, "stream": name, "latency": latency, **found}


def _shown(run: dict[str, Any]) -> str:
    metrics = " ".join(f"{name} {value:.4f}" for name, value in run["metrics"].items())
    return f"{metrics}, {run['rows_per_s']:,.0f} rows/s"


def run(args: argparse.Namespace) -> dict[str, Any]:
    """All that was asked for."""
    skipped: list[str] = []
    wanted = [name for name in args.streams if name != PLASTICITY]
    try:
        streams = find_streams(DATA, wanted)
    except FileNotFoundError:
        streams = {}
    skipped += [f"{name}: not in {DATA}" for name in wanted if name not in streams]
    results: dict[str, Any] = {"learner": args.learner, "rows": args.rows, "streams": list(measure(streams, args))}
    rates = [line["rows_per_s"] for line in results["streams"] if line["latency"] == 32 and "floor" in line]
    if rates:
        results["rows_per_s"] = {"median": median(rates), "floor": ROWS_PER_S, "reached": median(rates) >= ROWS_PER_S}
    if PLASTICITY in args.streams:
        if (DATA / "digits.parquet").exists():
            results["plasticity"] = measure_plasticity(DATA, args)
        else:
            skipped.append(f"{PLASTICITY}: digits is not in {DATA}")
    if args.python is None:
        skipped.append("rivals: name their interpreter with --python")
    else:
        results["rivals"] = list(measure_rivals(streams, args))
    return results | {"skipped": skipped}


def main() -> None:
    """Prints results, and on stderr what goes on."""
    description, _, _ = __doc__.partition("\n\n")
    parser = argparse.ArgumentParser(prog="python -m benchmarks.quality", description=description)
    parser.add_argument(
        "--streams",
        nargs="+",
        default=[*GATES, PLASTICITY],
        metavar="NAME",
        help=f"names of the manifest, or {PLASTICITY} (default: all that must reach something)",
    )
    parser.add_argument("--latency", nargs="+", type=int, default=list(LATENCIES), metavar="N")
    parser.add_argument("--seeds", type=int, default=3, metavar="N")
    parser.add_argument("--rows", type=int, default=50_000, metavar="N")
    parser.add_argument("--tasks", type=int, default=TASKS, metavar="N", help=f"of {PLASTICITY}: a multiple of 10")
    parser.add_argument("--learner", default=LEARNERS[0])
    parser.add_argument("--python", type=Path, help="the interpreter that has the rivals")
    parser.add_argument("--rivals", nargs="+", choices=RIVALS, default=list(RIVALS))
    parser.add_argument("-o", "--output", choices=("text", "json"), default="text")
    args = parser.parse_args()
    results = run(args)
    print(json.dumps(results, indent=2) if args.output == "json" else quality(results))


if __name__ == "__main__":
    main()
