"""The drift report of a run: one picture, and a page around it, for people who look at it in MLflow."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.monitor import AGES

if TYPE_CHECKING:
    from pipeline.version import Candidate

_ALARMS_SHOWN = 200
_PANELS = (  # what is drawn of classes, or else of values
    (
        ("auc", "AUC"),
        ("kappa", "kappa"),
        ("kappa_temporal", "temporal kappa"),
        ("calibration_error", "calibration error"),
    ),
    (("mae", "MAE"), ("rmse", "RMSE")),
)
_BY_AGE = (
    ("auc", "AUC"),
    ("accuracy", "accuracy"),
    ("calibration_error", "calibration error"),
    ("mae", "MAE"),
    ("rmse", "RMSE"),
)
_AGE_ROWS_MIN = 100  # fewer say nothing of an age
_PICTURES = (
    ("report.png", "Quality over event time, and alarms"),
    ("by_age.png", "Quality by how long the label took, all rows"),
)
_COLORS = {"live": "#1f6f8b", "frozen": "#b0b0b0"}
_ALARM = "#c0392b"
_CSS = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 64rem; margin: 2rem auto; padding: 0 1rem; color: #222 }
img { width: 100% } table { border-collapse: collapse; width: 100%; font-size: 13px }
td, th { text-align: left; padding: .3rem .6rem; border-bottom: 1px solid #ddd; vertical-align: top }
td.number { text-align: right; font-variant-numeric: tabular-nums }
"""


def write(folder: Path, candidate: Candidate) -> None:
    """Writes report.png, by_age.png if labels come late, and report.html, which shows both and lists the alarms.

    An alarm whose row has an event time in the stream's future, which a calendar may not even know, is shown as of now.
    """
    folder.mkdir(parents=True)
    now_ms = candidate.point.time_ms
    alarms = [{**alarm, "since_time": min(alarm["since_time"], now_ms)} for alarm in candidate.alarms]
    candidate = replace(candidate, alarms=alarms)
    draw(folder / "report.png", candidate.alarms, candidate.points)
    draw_by_age(folder / "by_age.png", candidate.point.values)
    pictures = [(folder / name, title) for name, title in _PICTURES if (folder / name).exists()]
    (folder / "report.html").write_text(page(candidate, {title: path.read_bytes() for path, title in pictures}))


def draw(path: Path, alarms: Sequence[Mapping[str, Any]], points: Sequence[Mapping[str, Any]]) -> None:
    """Recent quality over event time, live beside the frozen copy, and under it each family's alarms."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    panels = [panel for group in _PANELS for panel in group if _course(points, f"live/{panel[0]}_recent")[0]]
    began = [_date(alarm["since_time"]) for alarm in alarms]
    families = list(dict.fromkeys(alarm["family"] for alarm in alarms))
    heights = [2.0] * len(panels) + [0.5 + 0.25 * max(len(families), 1)]
    figure = Figure(figsize=(11, sum(heights) + 0.6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(heights), 1, sharex=True, squeeze=False, height_ratios=heights)[:, 0]
    for axis, (metric, title) in zip(axes, panels, strict=False):
        for who, color in _COLORS.items():
            times, values = _course(points, f"{who}/{metric}_recent")
            if times:
                axis.plot(times, values, color=color, label=who)
        axis.vlines(began, 0, 1, transform=axis.get_xaxis_transform(), color=_ALARM, alpha=0.25, linewidth=0.8)
        axis.set_title(f"{title}, recent rows", loc="left", fontsize=10)
        axis.legend(loc="upper left", frameon=False, fontsize=9)
    last = axes[-1]
    last.plot(began, [families.index(alarm["family"]) for alarm in alarms], "|", color=_ALARM, markersize=10)
    last.set_title("alarms, where each change began", loc="left", fontsize=10)
    last.set_yticks(range(len(families)), families)
    last.set_ylim(max(len(families), 1) - 0.5, -0.5)
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=110)


def draw_by_age(path: Path, values: Mapping[str, float]) -> None:
    """Quality of all rows by how long their label took, in event time; a bar is missing where it is not defined.

    No picture where no label comes late.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    ages = [age for age in AGES if _at_age(values, age, "rows") >= _AGE_ROWS_MIN]
    panels = [panel for panel in _BY_AGE if any(_at_age(values, age, panel[0]) for age in ages)]
    if not panels:
        return
    figure = Figure(figsize=(11, 2.6), layout="constrained")
    FigureCanvasAgg(figure)
    names = [f"{age.replace('_', ' ')}\n{_at_age(values, age, 'rows'):,.0f} rows" for age in ages]
    for axis, (metric, title) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        axis.bar(names, [_at_age(values, age, metric) for age in ages], color=_COLORS["live"], width=0.6)
        axis.set_title(title, loc="left", fontsize=10)
        axis.tick_params(labelsize=7)
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=110)


def _at_age(values: Mapping[str, float], age: str, metric: str) -> float:
    """0 where it is not known."""
    return values.get(f"live/by_age/{age}/{metric}", 0.0)


def _course(points: Sequence[Mapping[str, Any]], metric: str) -> tuple[list[datetime], list[float]]:
    """Where a metric is known, and its values."""
    known = [(_date(point["time_ms"]), point["values"][metric]) for point in points if metric in point["values"]]
    return [time for time, _ in known], [value for _, value in known]


def page(candidate: Candidate, pictures: Mapping[str, bytes]) -> str:
    """The report as one HTML file that needs nothing else."""
    alarms = list(candidate.alarms)[::-1]
    counts: dict[str, int] = {}
    for alarm in alarms:
        counts[alarm["family"]] = counts.get(alarm["family"], 0) + 1
    summary = ", ".join(f"{count} {family.replace('_', ' ')}" for family, count in counts.items())
    held = "" if candidate.promoted else " Promotion is held: this version took no alias."
    rows = "\n".join(_row(alarm) for alarm in alarms[:_ALARMS_SHOWN])
    more = f"<p>The newest {_ALARMS_SHOWN} of {len(alarms)}.</p>" if len(alarms) > _ALARMS_SHOWN else ""
    shown = "\n".join(
        f'<h2>{title}</h2>\n<img alt="{title}" src="data:image/png;base64,{base64.b64encode(picture).decode()}">'
        for title, picture in pictures.items()
    )
    table = f"""<h2>Alarms, newest first</h2>{more}
<table><tr><th>family</th><th>column</th><th>since</th><th>since row</th><th>found at row</th><th>effect</th><th>p</th>
<th></th></tr>
{rows}
</table>"""
    return f"""<!doctype html><html lang="en"><meta charset="utf-8"><title>{escape(candidate.name)}: drift</title>
<style>{_CSS}</style>
<h1>{escape(candidate.name)}: has the world moved?</h1>
<p>After {candidate.point.step:,} rows, until {_readable(candidate.point.time_ms)}: {summary or "no"} alarm(s).{held}
Red lines stand where a change began. <em>Frozen</em> is a copy that learned no more.</p>
{shown}
{table if alarms else ""}
"""


def _row(alarm: Mapping[str, Any]) -> str:
    words = [alarm["family"].replace("_", " "), alarm["feature"] or "", _readable(alarm["since_time"])]
    numbers = [f"{alarm['since_row']:,}", f"{alarm['row']:,}", f"{alarm['effect']:.3g}", f"{alarm['p']:.2g}"]
    cells = "".join(f"<td>{escape(word)}</td>" for word in words)
    cells += "".join(f'<td class="number">{number}</td>' for number in numbers)
    return f"<tr>{cells}<td>{escape(alarm['detail'])}</td></tr>"


def _date(time_ms: int) -> datetime:
    return datetime.fromtimestamp(time_ms / 1000, UTC)


def _readable(time_ms: int) -> str:
    return _date(time_ms).strftime("%Y-%m-%d %H:%M:%S")
