"""`evertrain status`: the newest snapshot, what the trainer does now, and what has been released."""

from __future__ import annotations

import argparse
import json
import logging
import os
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.cli.options import add_job_options, add_output_option, load_job, print_json

if TYPE_CHECKING:
    from pipeline.store import Manifest

logger = logging.getLogger(__name__)

STALE_MS = 60_000
"""A trainer that has not written its live status for this long is not running, whatever has its pid now."""

FROM_MANIFEST = (
    "name", "lineage", "sequence", "snapshot_id", "time_ms", "rows_trained", "weights_sha256", "watermark",
    "cursor", "counts", "metrics", "alarms",
)  # fmt: skip
"""Keys of a manifest that the JSON output repeats."""

LIVE = ("rows_per_second", "lag", "waiting", "dead_letters", "waits_for")
"""Keys of the live status that the page shows."""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds `status`."""
    parser = subparsers.add_parser("status", help="shows where a job stands")
    where = parser.add_mutually_exclusive_group(required=True)
    add_job_options(parser, config_group=where)
    where.add_argument("--state-dir", type=Path, metavar="DIR", help="the job's state directory")
    parser.add_argument("--check", action="store_true", help="exit with 4 unless the job is running and not on hold")
    add_output_option(parser)
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    from consumers.errors import CheckError

    state_dir = args.state_dir or load_job(args).job.state_dir
    status = read_status(state_dir, int(time.time() * 1000))
    if args.output == "json":
        print_json(status)
    else:
        print("\n".join(_page(status)))
    if args.check and not status["running"]:
        raise CheckError(f"{status['name']}: not running")
    if args.check and (status["live"] or {}).get("hold"):
        raise CheckError(f"{status['name']}: on hold: {status['live']['hold']}")
    return 0


def read_status(state_dir: Path, now_ms: int) -> dict[str, Any]:
    """All that a state directory tells, as a JSON document. Raises SnapshotError without a snapshot."""
    manifest = _newest_manifest(state_dir)
    live = _read_json(state_dir / "status.json")
    return {
        **{name: manifest.get(name) for name in FROM_MANIFEST},
        "state_dir": str(state_dir),
        "running": live is not None and _alive(live["pid"]) and now_ms - live["updated_ms"] < STALE_MS,
        "live": live,
        "release": _read_json(state_dir / "release" / "status.json"),
    }


def _newest_manifest(state_dir: Path) -> Manifest:
    from consumers.errors import SnapshotError
    from pipeline.store import LocalStore

    if not (state_dir / "snapshots").is_dir():  # LocalStore would make it
        raise SnapshotError(f"{state_dir}: no snapshot here; start the job with `evertrain run`")
    store = LocalStore(state_dir)
    for sequence in reversed(store.sequences()):
        try:
            return store.manifest(sequence)
        except SnapshotError as error:
            logger.warning("%s", error)
    raise SnapshotError(f"{state_dir}: no readable snapshot yet; look at the trainer's log")


def _read_json(path: Path) -> dict[str, Any] | None:
    try:
        # What is not finite becomes null: the output is strict JSON.
        document: dict[str, Any] = json.loads(path.read_bytes(), parse_constant=lambda _: None)
    except FileNotFoundError:
        return None
    return document


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # alive, and another user's
        return True
    return True


def _page(status: dict[str, Any]) -> list[str]:
    live = status["live"] or {}
    head = {
        "job": f"{status['name']}: {_activity(status)}",
        "lineage": status["lineage"],
        "state": status["state_dir"],
        "snapshot": f"{status['sequence']}  {status['snapshot_id']}",
        "rows trained": f"{status['rows_trained']:,}",
        "stream time": _time(status["time_ms"]),
        "watermark": _time(status["watermark"]),
        "weights": status["weights_sha256"],
        "drift alarms": f"{status['alarms'] or 0:,}",
    }
    if status["running"]:
        head |= {key.replace("_", " "): _cell(live.get(key)) for key in LIVE}
    lines = _aligned(head)
    for title in ("counts", "metrics", "release"):
        cells = _sums(status[title]) if title == "counts" else {k: _cell(v) for k, v in _flat(status[title] or {})}
        lines += ["", title, *_aligned(cells, indent="  ")] if cells else []
    cursor = {
        f"{at['topic']}[{at['partition']}]": f"next {at['next']:,}  reached {_time(at['reached'])}"
        + ("  idle" if at["idle"] else "")
        for at in status["cursor"] or ()
    }
    return [*lines, "", "cursor", *_aligned(cursor, indent="  ")]


def _activity(status: dict[str, Any]) -> str:
    if not status["running"]:
        return "not running"
    live = status["live"]
    hold = f", on hold: {live['hold']}" if live.get("hold") else ""
    return f"running as process {live['pid']}, {live.get('phase', 'training')}{hold}"


def _flat(value: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    rows: list[tuple[str, Any]] = []
    for key, below in value.items():
        rows += _flat(below, f"{prefix}{key}.") if isinstance(below, dict) else [(f"{prefix}{key}", below)]
    return rows


def _sums(counts: dict[str, Any] | None) -> dict[str, str]:
    """One line for each partition, one for all of them, one for the examples; what is 0 is left out."""
    counts = counts or {}
    groups = {**counts.get("events", {}), **{name: counts[name] for name in ("totals", "examples") if name in counts}}
    return {
        group: "  ".join(f"{name} {parts[name]:,}" for name in sorted(parts, key="read".__ne__) if parts[name])
        for group, parts in groups.items()
    }


def _aligned(rows: dict[str, Any], indent: str = "") -> list[str]:
    width = max((len(name) for name in rows), default=0)
    return [f"{indent}{name:<{width}}  {value}" for name, value in rows.items()]


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.6g}"
    return f"{value:,}" if isinstance(value, int) else str("-" if value in (None, "") else value)


def _time(ms: int | None) -> str:
    if ms is None:
        return "-"
    return datetime.fromtimestamp(ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
