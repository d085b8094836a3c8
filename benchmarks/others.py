"""Beside what one would take instead: Quix Streams and Bytewax for the join, river and deep-river for the loop.

They are installed in a virtual environment of their own: see benchmarks/README.md.
"""

from __future__ import annotations

import argparse
import json
import subprocess
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.processes import ROOT, limit_s, say
from benchmarks.throughput import run
from benchmarks.topics import Topics, broker, make_topics

RIVALS = ("quixstreams_join", "bytewax_join", "river_loop", "deep_river_loop")
OURS = ("naive_ingest", "ingest_unscored", "naive", "ours")
WARM_UP_ROWS = 20_000


def rival(name: str, python: Path, topics: Topics, rows: int) -> dict[str, Any]:
    """One rival once, in its own Python."""
    script = ROOT / "benchmarks" / "rivals" / f"{name}.py"
    command = [str(python), str(script), *topics.options, "--rows", str(rows)]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, timeout=limit_s(rows))
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def measure(python: Path, rows: int, repeat: int) -> dict[str, Any]:
    """All of them `repeat` times in turn, on JSON."""
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in (*RIVALS, *OURS)}
    with broker() as kafka:
        run("ours", make_topics(kafka, "json", WARM_UP_ROWS, prefix="warm-up"), WARM_UP_ROWS)
        topics = make_topics(kafka, "json", rows)
        for turn in range(repeat):
            for name, results in runs.items():
                results.append(run(name, topics, rows) if name in OURS else rival(name, python, topics, rows))
                say(f"{turn + 1}/{repeat} {name}: {results[-1]['rows_per_s']:,.0f} rows/s")
    rates = {name: round(median(result["rows_per_s"] for result in results)) for name, results in runs.items()}
    return {**rates, "n": repeat, "rows": rows, "runs": runs}


def main() -> None:
    """Prints medians in rows/s."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.others", description=__doc__)
    parser.add_argument("--python", type=Path, required=True, help="the interpreter that has the rivals")
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("-o", "--output", choices=("text", "json"), default="text")
    args = parser.parse_args()
    results = measure(args.python.absolute(), args.rows, args.repeat)
    if args.output == "json":
        print(json.dumps(results, indent=2))
    else:
        print(*(f"{name}: {results[name]:,} rows/s" for name in (*RIVALS, *OURS)), sep="\n")


if __name__ == "__main__":
    main()
