"""The live view of the demo: a panel in a terminal, a plain line every few seconds elsewhere."""

from __future__ import annotations

import json
import re
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from rich import box
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

PANEL_INTERVAL_S = 0.25
LINE_INTERVAL_S = 5.0

_SPARKS = "▁▂▃▄▅▆▇█"
_HISTORY = 24
_UNKNOWN = "–"
_WIDTH = 84


@dataclass(slots=True)
class View:
    """Everything the panel shows. What is not known yet is None."""

    broker: str
    kind: str
    produced: int = 0
    total: int = 0
    time_ms: int | None = None
    producer_waits: bool = False
    status: Mapping[str, Any] = field(default_factory=dict)
    version: str | None = None
    snapshot_at: float | None = None

    def metric(self, name: str) -> float | None:
        """One metric of the trainer."""
        value = (self.status.get("metrics") or {}).get(name)
        return None if value is None else float(value)

    @property
    def snapshot(self) -> int | None:
        """The number of the newest snapshot."""
        sequence = (self.status.get("snapshot") or {}).get("sequence")
        return None if sequence is None else int(sequence)


def read_status(state_dir: Path) -> dict[str, Any]:
    """The trainer's own status; empty before its first."""
    try:
        status: dict[str, Any] = json.loads((state_dir / "status.json").read_bytes())
    except (FileNotFoundError, ValueError):
        return {}
    return status


def last_version(log: Path) -> str | None:
    """The newest model version that the trainer's log tells of."""
    try:
        found = re.findall(r"registered version (\d+)", log.read_text(encoding="utf-8", errors="replace"))
    except FileNotFoundError:
        return None
    return str(found[-1]) if found else None


class Display:
    """Shows a `View`, again and again. Cheap to call often."""

    def __init__(self, view: View, state_dir: Path, log: Path, console: Console) -> None:
        self.view = view
        self._state_dir, self._log = state_dir, log
        self._console = console
        self._live = Live(console=console, auto_refresh=False) if console.is_terminal else None
        self._interval_s = PANEL_INTERVAL_S if self._live else LINE_INTERVAL_S
        self._started_at = self._shown_at = time.monotonic()
        self._history: dict[str, deque[float]] = {}
        self._line = ""

    def __enter__(self) -> Self:
        if self._live:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live:
            self._live.stop()

    def say(self, text: str) -> None:
        """One line, above the panel."""
        self._console.print(text, highlight=False, soft_wrap=True)

    def show(self, *, now: bool = False) -> None:
        """Reads the trainer's status and shows it, if it is time."""
        if not now and time.monotonic() - self._shown_at < self._interval_s:
            return
        self._shown_at = time.monotonic()
        view, snapshot = self.view, self.view.snapshot
        view.status = read_status(self._state_dir) or view.status
        view.version = last_version(self._log) or view.version
        if view.snapshot != snapshot:
            view.snapshot_at = self._shown_at
        seconds = self._shown_at - self._started_at
        if not self._live:
            if (text := line(view, seconds)) != self._line:
                self._console.print(text, highlight=False, soft_wrap=True)
            self._line = text
            return
        for name in ("live/auc_recent", "frozen/auc_recent"):
            value = view.metric(name)
            seen = self._history.setdefault(name, deque(maxlen=_HISTORY))
            if value is not None and (not seen or seen[-1] != value):
                seen.append(value)
        self._live.update(panel(view, seconds, self._history), refresh=True)


def line(view: View, seconds: float) -> str:
    """The view in one line."""
    status = view.status
    cells = (
        f"{seconds:4.0f} s",
        _day(view.time_ms),
        f"{_count(status.get('rows_trained'))} rows",
        f"{_count(status.get('rows_per_second'))} rows/s",
        f"lag {_count(status.get('lag'))}",
        f"label delay {_duration(status.get('label_delay_ms'))}",
        f"waiting {_count(status.get('waiting'))}",
        f"AUC live {_auc(view.metric('live/auc'))} frozen {_auc(view.metric('frozen/auc'))}",
        f"drift alarms {_count(status.get('alarms'))}",
        f"snapshot {_count(view.snapshot)}",
        f"version {view.version or _UNKNOWN}",
        f"dead letters {_count(status.get('dead_letters'))}",
        *(["producer waits"] if view.producer_waits else []),
        *([f"HOLD: {status['hold']}"] if status.get("hold") else []),
    )
    return " · ".join(cells)


def panel(view: View, seconds: float, history: Mapping[str, deque[float]]) -> RenderableType:
    """The view as a panel."""
    status = view.status
    numbers = Table.grid(expand=True, padding=(0, 1))
    for _ in range(4):
        numbers.add_column(ratio=1)
    ago = "" if view.snapshot_at is None else f", {time.monotonic() - view.snapshot_at:.0f} s ago"
    cells = (
        ("rows/s", _count(status.get("rows_per_second")), "bold green"),
        ("rows trained", _count(status.get("rows_trained")), "bold"),
        ("lag", _count(status.get("lag")), "bold"),
        ("label delay", _duration(status.get("label_delay_ms")), "bold"),
        ("waiting for a label", _count(status.get("waiting")), "bold"),
        ("last snapshot", f"{_count(view.snapshot)}{ago}", "bold"),
        ("last version", view.version or _UNKNOWN, "bold magenta"),
        ("dead letters", _count(status.get("dead_letters")), "bold yellow"),
    )
    for start in (0, 4):
        numbers.add_row(*(_cell(*cell) for cell in cells[start : start + 4]))
        if start == 0:
            numbers.add_row()
    parts: list[RenderableType] = [_progress(view), Text(), numbers, Text(), _quality(view, history)]
    if status.get("hold"):
        parts += [Text(), Text(f"on hold: {status['hold']}", style="bold red")]
    return Panel(
        Group(*parts),
        title="[bold]evertrain demo[/] · flights from New York, 2013",
        subtitle=f"{view.kind} at {view.broker} · {status.get('phase', 'starting')} · {seconds:.0f} s",
        box=box.ROUNDED,
        border_style="cyan",
        padding=(1, 2),
        width=_WIDTH,
    )


def _progress(view: View) -> RenderableType:
    row = Table.grid(padding=(0, 2))
    share = view.produced / view.total if view.total else 0.0
    note = "waits for the trainer" if view.producer_waits else f"{share:.0%} produced"
    bar = ProgressBar(total=1.0, completed=share, width=38, complete_style="cyan", finished_style="green")
    row.add_row(Text(_day(view.time_ms), style="bold cyan"), bar, Text(note))
    return row


def _quality(view: View, history: Mapping[str, deque[float]]) -> RenderableType:
    table = Table.grid(padding=(0, 2))
    table.add_row("", *(Text(title, style="dim") for title in ("AUC", "last 10,000", "")))
    for name, style in (("live", "green"), ("frozen", "blue")):
        recent = f"{name}/auc_recent"
        table.add_row(
            Text(f"{name} model" if name == "live" else "frozen copy"),
            Text(_auc(view.metric(f"{name}/auc")), style=f"bold {style}"),
            Text(_auc(view.metric(recent)), style=style),
            Text(_sparks(history.get(recent, ()), history), style=style),
        )
    largest = view.metric("drift/psi_max")
    table.add_row(
        Text("drift"),
        Text(f"{_count(view.status.get('alarms'))} alarms", style="bold red"),
        Text(_UNKNOWN if largest is None else f"PSI {largest:.2f}", style="red"),
        "",
    )
    return table


def _cell(title: str, value: str, style: str) -> Text:
    return Text.assemble((title, "dim"), "\n", (value, style))


def _sparks(values: deque[float] | tuple[()], history: Mapping[str, deque[float]]) -> str:
    """Both curves share one scale, so that they can be compared."""
    every = [value for curve in history.values() for value in curve]
    if not every:
        return ""
    low, span = min(every), max(max(every) - min(every), 1e-9)
    return "".join(_SPARKS[int((value - low) / span * (len(_SPARKS) - 1))] for value in values)


def _count(value: float | None) -> str:
    return _UNKNOWN if value is None else f"{value:,.0f}"


def _auc(value: float | None) -> str:
    return _UNKNOWN if value is None else f"{value:.4f}"


def _duration(ms: float | None) -> str:
    return _UNKNOWN if ms is None else f"{ms / 3_600_000:.1f} h"


def _day(ms: int | None) -> str:
    return _UNKNOWN if ms is None else datetime.fromtimestamp(ms / 1000, UTC).strftime("%d %b %Y")
