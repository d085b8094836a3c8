"""Renders results into docs/performance.md, and the plots beside it.

`python -m benchmarks.report FOLDER` takes what the benchmarks printed with `-o json`: FOLDER holds throughput.json,
latency.json and so on, each named after its benchmark. A table whose results are not there stays as it is.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from benchmarks.processes import ROOT

Results: TypeAlias = dict[str, Any]

PAGE = ROOT / "docs" / "performance.md"
IMAGES = ROOT / "docs" / "images"
SHARE_WANTED = {"json": "55 / 75 %", "avro": "60 / 80 %", "protobuf": "60 / 80 %", "arrow": "80 / 92 %"}
RATIO_WANTED = {"json": "3.5 / 5", "arrow": "4.5 / 6"}
INGEST_WANTED = {"json": "5 / 8", "avro": "7 / 12", "protobuf": "7 / 12", "packed": "8 / 13", "arrow": "20 / 40"}
OTHERS = {
    "quixstreams_join": ("Quix Streams: `join_asof`, RocksDB with its changelog", "join"),
    "bytewax_join": ("Bytewax: `join`, in memory", "join"),
    "naive_ingest": ("the naive loop without training", "join"),
    "ingest_unscored": ("Evertrain without scoring and learning", "join"),
    "river_loop": ("river: logistic regression, row by row", "join and learn"),
    "deep_river_loop": ("deep-river: the MLP, batches of 1,024", "join and learn"),
    "naive": ("the naive loop: the MLP, batches of 1,024", "join and learn"),
    "ours": ("Evertrain: the MLP, batches of 1,024, scored on arrival", "join and learn"),
}


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table; numbers get separators."""
    lines = [list(header), ["---"] * len(header)]
    lines += [[f"{cell:,}" if isinstance(cell, int | float) else str(cell) for cell in row] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def full_loop(results: Results) -> str:
    """`throughput`: the whole loop beside naive and train-only."""
    header = ["format", "naive", "training alone", "Evertrain"]
    header += ["times naive", "floor / aim", "of training alone", "floor / aim"]
    rows = []
    for name, found in results.items():
        share = f"{100 * found['share_of_train_only']:.0f} %"
        rates = (found["naive"], found["train_only"], found["ours"], found["ratio"])
        rows.append([name, *rates, RATIO_WANTED.get(name, ""), share, SHARE_WANTED.get(name, "")])
    return f"{table(header, rows)}\n\n{_counted(results)}\n\n![Rows/s of the full loop](images/full-loop.svg)"


def way_in(results: Results) -> str:
    """`throughput`: ingest and join."""
    header = ["format", "pulled only", "joined", "joined and scored", "naive, joined", "times naive", "floor / aim"]
    names = ("pull_only", "ingest_unscored", "ingest_scored", "naive_ingest", "ingest_ratio")
    rows = [[name, *(found[key] for key in names), INGEST_WANTED[name]] for name, found in results.items()]
    return f"{table(header, rows)}\n\n{_counted(results)}\n\n![Rows/s of the way in](images/way-in.svg)"


def _counted(results: Results) -> str:
    counts = sorted({f"{found['rows']:,} rows, medians of {found['n']}" for found in results.values()})
    return f"Rows/s; {'; '.join(counts)}."


def latency(results: Results) -> str:
    """`latency`."""
    header = ["", "p50", "p90", "p99", "longest", "rows"]
    keys = ("p50_ms", "p90_ms", "p99_ms", "max_ms")
    rows = [
        [title, *(f"{results[name][key]:,} ms" for key in keys), results[name]["rows"]]
        for title, name in (
            ("created → learned", "learned"),
            ("the same while versions go out", "learned_while_registering"),
        )
    ]
    found, rate = results["registered"], results["learned"]["rate"]
    return (
        f"{table(header, rows)}\n\n{results['format']} at {rate:,} rows/s. From the creation of the newest event "
        f"that a version learned to that version in MLflow: median {found['median_s']} s, longest {found['max_s']} s "
        f"({found['versions']} versions, one every {found['register_every']})."
    )


def memory(results: Results) -> str:
    """`memory`."""
    header = ["format", "learner", "readers", "torch alone", "join", "rest: floor 300, aim 150"]
    names = ("learner_mib", "readers_mib", "torch_mib", "join_mib", "rest_mib")
    return table(header, [[name, *(found[key] for key in names)] for name, found in results.items()])


def stall(results: Results) -> str:
    """`recovery`: the stall of a snapshot."""
    found = results["stall"]
    header = ["learner state", "waiting rows", "p50", "p90", "p99: floor 25 ms, aim 10 ms", "n"]
    times = [f"{found[key]} ms" for key in ("p50_ms", "p90_ms", "p99_ms")]
    return table(header, [[f"{found['state_mb']} MB", found["waiting_rows"], *times, found["n"]]])


def others(results: Results) -> str:
    """`others`."""
    rows = [[title, what, results[name]] for name, (title, what) in OTHERS.items()]
    return f"{table(['', 'does', 'rows/s'], rows)}\n\n{results['rows']:,} rows, medians of {results['n']}."


def plain(results: Results) -> str:
    """Any results that are lists of flat records by title."""
    parts = []
    for title, records in results.items():
        rows = [[_cell(value) for value in record.values()] for record in records]
        parts.append(f"{title}\n\n{table([key.replace('_', ' ') for key in records[0]], rows)}")
    return "\n\n".join(parts)


def _cell(value: object) -> object:
    return f"{value:,.3g}" if isinstance(value, float) and abs(value) < 1000 else value


SECTIONS: dict[str, tuple[str, Callable[[Results], str]]] = {
    "full loop": ("throughput", full_loop),
    "way in": ("throughput", way_in),
    "scaling": ("scaling", plain),
    "stall": ("recovery", stall),
    "latency": ("latency", latency),
    "memory": ("memory", memory),
    "profile": ("profile", plain),
    "others": ("others", others),
}


def render(page: str, results: dict[str, Results]) -> str:
    """The page with what lies between `<!-- begin NAME -->` and `<!-- end -->` replaced. Raises ValueError."""
    for section, (benchmark, write) in SECTIONS.items():
        if benchmark not in results:
            continue
        head, begin, rest = page.partition(f"<!-- begin {section} -->\n")
        _, end, tail = rest.partition("<!-- end -->\n")
        if not end:
            raise ValueError(f"{PAGE.name} has no place for {section!r}")
        page = f"{head}{begin}{write(results[benchmark])}\n{end}{tail}"
    return page


def bars(path: Path, groups: Sequence[str], series: dict[str, Sequence[float]]) -> None:
    """A bar chart of rows/s as SVG, the same bytes for the same numbers."""
    import matplotlib as mpl
    from matplotlib import pyplot

    mpl.rcParams.update({"svg.hashsalt": "evertrain", "font.size": 9, "svg.fonttype": "none"})
    figure, axes = pyplot.subplots(figsize=(7, 2.8), layout="constrained")
    width = 0.8 / len(series)
    for index, (label, heights) in enumerate(series.items()):
        places = [group + (index - (len(series) - 1) / 2) * width for group in range(len(groups))]
        axes.bar(places, [height / 1000 for height in heights], width, label=label)
    axes.set_xticks(range(len(groups)), groups)
    axes.set_ylabel("thousand rows/s")
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside upper left", ncols=len(series), frameon=False)
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)


def plot(results: dict[str, Results]) -> None:
    """The plots of all results that are there."""
    found = results.get("throughput")
    if found:
        loop = {"naive": "naive", "ours": "Evertrain", "train_only": "training alone"}
        way = {"naive_ingest": "naive, joined", "ingest_scored": "joined and scored", "ingest_unscored": "joined"}
        for name, series in (("full-loop", loop), ("way-in", way)):
            heights = {label: [line[key] for line in found.values()] for key, label in series.items()}
            bars(IMAGES / f"{name}.svg", list(found), heights)


def main() -> None:
    """Rewrites the page and the plots."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.report", description=__doc__)
    parser.add_argument("folder", type=Path)
    args = parser.parse_args()
    results = {path.stem: json.loads(path.read_text()) for path in sorted(args.folder.glob("*.json"))}
    PAGE.write_text(render(PAGE.read_text(), results))
    plot(results)


if __name__ == "__main__":
    main()
