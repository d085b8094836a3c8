"""Renders results into docs/performance.md and docs/quality.md, and the plots beside them.

`python -m benchmarks.report FOLDER` takes what the benchmarks printed with `-o json`: FOLDER holds throughput.json,
latency.json and so on, each named after its benchmark. A table whose results are not there stays as it is.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from benchmarks.processes import ROOT

Results: TypeAlias = dict[str, Any]

DOCS = ROOT / "docs"
IMAGES = DOCS / "images"
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

RIVALS = {
    "river_forest": "river: adaptive random forest",
    "river_tree": "river: Hoeffding adaptive tree",
    "river_logistic": "river: logistic regression",
    "deep_river_mlp": "deep-river: MLP",
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
    rows = [[name, *(found.get(key, "–") for key in names), INGEST_WANTED[name]] for name, found in results.items()]
    return f"{table(header, rows)}\n\n{_counted(results)}\n\n![Rows/s of the way in](images/way-in.svg)"


def _counted(results: Results) -> str:
    counts = sorted({f"{found['rows']:,} rows, medians of {found['n']}" for found in results.values()})
    return f"Rows/s; {'; '.join(counts)}."


def latency(results: Results) -> str:
    """`latency`."""
    header = ["", "p50", "p90", "p99", "p99 of each run", "longest", "rows"]
    rows = []
    for title, name in (
        ("created → learned", "learned"),
        ("the same while versions go out", "learned_while_registering"),
    ):
        found = results[name]
        times = [f"{found[key]:,} ms" for key in ("p50_ms", "p90_ms", "p99_ms")]
        each = ", ".join(f"{p99_ms:,.0f}" for p99_ms in found["each_p99_ms"])
        rows.append([title, *times, each, f"{found['max_ms']:,} ms", round(found["rows"])])
    released, learned = results["registered"], results["learned"]
    return (
        f"{table(header, rows)}\n\n{results['format']} at {learned['rate']:,.0f} rows/s, medians of {learned['n']} "
        "runs in turn. From the creation of the newest event that a version learned to that version in MLflow: median "
        f"{released['median_s']} s, longest {released['max_s']} s ({released['versions']} versions, one every "
        f"{released['register_every']})."
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


def plain_part(name: str) -> Callable[[Results], str]:
    """Who writes one part of `scaling`."""
    return lambda results: plain(results[name])


def _cell(value: object) -> object:
    return f"{value:,.3g}" if isinstance(value, float) and abs(value) < 1000 else value


def quality_streams(results: Results) -> str:
    """`quality`: the default learner on each stream, and what it must reach."""
    header = ["stream", "label latency", "metric", "must reach", "Evertrain", "kappa", "temporal kappa", "rows/s"]
    rows = []
    for line in results["streams"]:
        metrics = line["metrics"]
        metric = line.get("metric", "accuracy" if "accuracy" in metrics else "r2")
        kappas = [_share(metrics.get(name)) for name in ("kappa", "kappa_temporal")]
        reached = f"{_share(metrics[metric])}{'' if line.get('reached', True) else ' (not reached)'}"
        floor = _share(line.get("floor"))
        rows.append([line["stream"], line["latency"], metric, floor, reached, *kappas, round(line["rows_per_s"])])
    counts = sorted({f"{line['rows']:,} rows, medians of {line['seeds']} seeds" for line in results["streams"]})
    text = f"{table(header, rows)}\n\n`{results['learner']}`; {'; '.join(counts)}."
    if speed := results.get("rows_per_s"):
        text += f" Median speed at label latency 32: {speed['median']:,.0f} rows/s, to reach {speed['floor']:,}."
    return text


def quality_plasticity(results: Results) -> str:
    """`quality`: accuracy while the task changes again and again."""
    found = results["plasticity"]
    last = len(found["by_ten_tasks"]) - 1
    chosen = sorted({0, min(1, last), last // 2, last})
    header = [f"tasks {10 * group + 1} to {10 * group + 10}" for group in chosen]
    row = [_share(found["by_ten_tasks"][group]) for group in chosen]
    lost = f"Lost from the first to the last: {100 * found['lost']:.2f} points, 1 at most; {found['seeds']} seeds."
    return f"{table(header, [row])}\n\n{lost}"


def quality_rivals(results: Results) -> str:
    """`quality`: what one would take instead, on the same rows; where none was measured there is no line."""
    ours = {(line["stream"], line["latency"]): line for line in results["streams"]}
    names = list(dict.fromkeys(line["rival"] for line in results["rivals"]))
    found = {(line["rival"], line["stream"], line["latency"]): line for line in results["rivals"]}
    rows = []
    for (stream, latency), line in ours.items():
        metric, theirs = line.get("metric", "accuracy"), [found.get((name, stream, latency)) for name in names]
        if any(theirs):
            cells = [
                f"{_share(one['metrics'][metric])} ({one['rows_per_s']:,.0f}/s)" if one else "–"
                for one in (line, *theirs)
            ]
            rows.append([stream, latency, metric, *cells])
    return table(["stream", "label latency", "metric", "Evertrain", *(RIVALS[name] for name in names)], rows)


def quality(results: Results) -> str:
    """All tables of `quality` whose results are there, and what was skipped."""
    parts = {"streams": quality_streams, "plasticity": quality_plasticity, "rivals": quality_rivals}
    texts = [write(results) for key, write in parts.items() if results.get(key)]
    return "\n\n".join([*texts, *(f"skipped: {line}" for line in results["skipped"])])


def drift_kinds(results: Results) -> str:
    """`drift`: what was found on streams that change where it is known, and how soon."""
    header = [
        "stream",
        "changes",
        "found",
        "must be",
        "within rows",
        "median delay",
        "named rightly",
        "false / 100,000",
    ]
    rows = []
    for line in results["kinds"]:
        missed = "" if line.get("reached", True) else " (not reached)"
        delay = "" if line["median_rows"] is None else f"{line['median_rows']:,.0f}"
        shares = [_percent(line["found"]) + missed, _percent(line.get("floor")), line.get("within_rows", ""), delay]
        rows.append([line["kind"], line["changes"], *shares, _percent(line["named"]), f"{line['false_per_100k']:.2f}"])
    for line in results["files"]:
        delay = "" if line["median_rows"] is None else f"{line['median_rows']:,.0f}"
        found = "" if line["found"] is None else f"{round(line['found'] * line['changes'])} of {line['changes']}"
        more = ["" if line["reached"] else "not reached", line["within_rows"], delay, _percent(line["named"])]
        rows.append([line["stream"], line["changes"], found, *more, f"{line['false_per_100k']:.2f}"])
    first, end = results["seeds"]
    text = f"{table(header, rows)}\n\n`{results['learner']}`, seeds {first} to {end - 1}."
    if false := results.get("false_per_100k"):
        text += f" Without a change: {false['found']:.2f} alarms in 100,000 rows, {false['ceiling']} at most."
    return text


def drift(results: Results) -> str:
    """The table of `drift`, and what was skipped."""
    texts = [drift_kinds(results)] if results["kinds"] or results["files"] else []
    return "\n\n".join([*texts, *(f"skipped: {line}" for line in results["skipped"])])


def _percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f} %"


def delayed(results: Results) -> str:
    """`delayed`: what late labels cost, and which share of that each policy recovers."""
    skipped = "\n".join(f"skipped: {line}" for line in results["skipped"])
    if not results["streams"]:
        return skipped
    policies = list(dict.fromkeys(policy for line in results["streams"].values() for policy in line["policies"]))
    rows = []
    for name, line in results["streams"].items():
        cells = [name, line["rows"], _share(line["oracle"]), _share(line["naive"])]
        for policy in policies:
            recovered = line["recovered"].get(policy)
            share = "" if recovered is None else f" ({100 * recovered:.0f} %)"
            cells.append(f"{_share(line['policies'][policy])}{share}")
        rows.append(cells)
    text = table(["stream", "rows", "oracle", "naive", *policies], rows)
    lost = [name for name, line in results["streams"].items() if not line["reached"]]
    verdict = f"not so of {', '.join(lost)}" if lost else "reached on all of them"
    return (
        f"{text}\n\nAUC, and the share of the gap that is recovered; `{results['learner']}`, medians of "
        f"{results['seeds']} seeds. With `{policies[0]}`, 35 % are to be recovered wherever the gap is .01 or more: "
        f"{verdict}.{skipped and f'{chr(10)}{chr(10)}{skipped}'}"
    )


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


Sections: TypeAlias = dict[str, tuple[str, str, Callable[[Results], str]]]

PAGES: dict[str, Sections] = {
    "performance.md": {
        "full loop": ("throughput", "", full_loop),
        "way in": ("throughput", "", way_in),
        "short spans": ("scaling", "spans", plain_part("spans")),
        "waiting rows": ("scaling", "waiting", plain_part("waiting")),
        "features": ("scaling", "features", plain_part("features")),
        "partitions": ("scaling", "partitions", plain_part("partitions")),
        "readers": ("scaling", "readers", plain_part("readers")),
        "stall": ("recovery", "", stall),
        "latency": ("latency", "", latency),
        "memory": ("memory", "", memory),
        "profile": ("profile", "", plain),
        "others": ("others", "", others),
    },
    "quality.md": {
        "streams": ("quality", "streams", quality_streams),
        "plasticity": ("quality", "plasticity", quality_plasticity),
        "rivals": ("quality", "rivals", quality_rivals),
        "drift": ("drift", "kinds", drift_kinds),
        "delayed": ("delayed", "streams", delayed),
    },
}
"""By page and section: the benchmark, what of its results the section needs, and who writes it."""


def render(name: str, page: str, results: dict[str, Results]) -> str:
    """The page with what lies between `<!-- begin NAME -->` and `<!-- end -->` replaced. Raises ValueError."""
    for section, (benchmark, part, write) in PAGES[name].items():
        if benchmark not in results or (part and not results[benchmark].get(part)):
            continue
        head, begin, rest = page.partition(f"<!-- begin {section} -->\n")
        _, end, tail = rest.partition("<!-- end -->\n")
        if not end:
            raise ValueError(f"{name} has no place for {section!r}")
        page = f"{head}{begin}{write(results[benchmark])}\n{end}{tail}"
    return page


def bars(path: Path, groups: Sequence[str], series: Mapping[str, Sequence[float]]) -> None:
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
            heights = {label: [line.get(key, 0) for line in found.values()] for key, label in series.items()}
            bars(IMAGES / f"{name}.svg", list(found), heights)


def main() -> None:
    """Rewrites the pages and the plots."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.report", description=__doc__)
    parser.add_argument("folder", type=Path)
    args = parser.parse_args()
    results = {path.stem: json.loads(path.read_text()) for path in sorted(args.folder.glob("*.json"))}
    for name in PAGES:
        (DOCS / name).write_text(render(name, (DOCS / name).read_text(), results))
    plot(results)


if __name__ == "__main__":
    main()
