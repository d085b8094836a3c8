"""`evertrain run` that notes when each row was learned, and says in its status file what the join holds.

The notes are an .npz file, written at the end: for each step its time (ns since the epoch) and rows, and for each row
the event time (ms) of its feature event.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np

from consumers.batch import Batch
from consumers.record import Int64s
from pipeline.execute import execute
from pipeline.jobfile import load
from pipeline.run import Start
from pipeline.state import State
from pipeline.telemetry import StatusFile


def main() -> None:
    """Runs the job until it is told to end."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.watched_run", description=__doc__)
    parser.add_argument("-c", "--config", type=Path, required=True, help="the job file")
    parser.add_argument("--set", dest="overrides", action="append", default=[])
    parser.add_argument("--until-caught-up", action="store_true")
    parser.add_argument("--notes", type=Path, help="where to write them; left out: none are taken")
    args = parser.parse_args()
    steps_ns: list[int] = []
    times: list[Int64s] = []
    observe, write = State.observe, StatusFile.write

    def observed(state: State, batch: Batch, *rest: Any) -> None:
        observe(state, batch, *rest)
        steps_ns.append(time.time_ns())
        times.append(batch.event_time_B[: batch.rows].copy())

    def written(status: StatusFile, phase: str, state: State, **more: Any) -> None:
        join_bytes = sum(table.resident_bytes for table in state.join._tables)
        write(status, phase, state, join_bytes=join_bytes, **more)

    if args.notes:
        State.observe = observed  # type: ignore[method-assign, assignment]
    StatusFile.write = written  # type: ignore[method-assign, assignment]
    execute(load(args.config, args.overrides), Start(until_caught_up=args.until_caught_up))
    if args.notes:
        rows = [len(part) for part in times]
        np.savez(args.notes, step_ns=steps_ns, rows=rows, event_time_ms=np.concatenate(times))


if __name__ == "__main__":
    main()
