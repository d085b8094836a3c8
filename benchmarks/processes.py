"""The processes that are measured: started, watched from outside, and read."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).resolve().parent.parent
EVERTRAIN = "pipeline.cli"
SAMPLE_S = 0.2
MIB = 2**20


def say(line: str) -> None:
    """Progress, on stderr."""
    print(line, file=sys.stderr, flush=True)


def limit_s(rows: int) -> float:
    """How long learning so many rows may take."""
    return 600 + rows / 1000


def result_of(module: str, *arguments: object, rows: int) -> dict[str, Any]:
    """What one contender prints, alone in a process of its own. Raises CalledProcessError or TimeoutExpired."""
    command = [sys.executable, "-m", module, *map(str, arguments), "--rows", str(rows)]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, check=True, timeout=limit_s(rows))
    result: dict[str, Any] = json.loads(done.stdout)
    return result


@contextmanager
def running(job_file: Path, *command: object) -> Iterator[subprocess.Popen[bytes]]:
    """A job in the background, `python -m COMMAND`, with its output in the file `log` beside it; killed at the end."""
    with (job_file.parent / "log").open("ab") as log:
        words = [sys.executable, "-m", *map(str, command)]
        job = subprocess.Popen(words, cwd=ROOT, stdout=log, stderr=log)
    try:
        yield job
    finally:
        job.kill()
        job.wait()


def run_job(job_file: Path, *command: object, rows: int) -> dict[str, float]:
    """A job that ends once it is caught up, its memory watched from outside.

    Raises RuntimeError if it fails or does not take all rows but the few labelled after the window, and TimeoutError.
    """
    deadline, samples = time.monotonic() + limit_s(rows), [(0, 0.0)]
    with running(job_file, *command) as job:
        while job.poll() is None:
            if time.monotonic() > deadline:
                raise TimeoutError(f"the job has not ended after {limit_s(rows):.0f} s")
            time.sleep(SAMPLE_S)
            trained = read_status(job_file).get("rows_trained")
            with suppress(psutil.NoSuchProcess):
                if trained and (reading := readers(job.pid)):
                    samples.append((trained, resident_mib([psutil.Process(job.pid), *reading])))
    final = read_status(job_file)
    learned = final.get("rows_trained", 0)
    if job.returncode or learned < 0.999 * rows:
        tail = (job_file.parent / "log").read_text(errors="replace")[-3000:]
        raise RuntimeError(f"the job ended with {job.returncode} after {learned} of {rows} rows\n{tail}")
    quarter = next((mib for trained, mib in samples if trained >= rows // 4), samples[-1][1])
    return {
        "rows": learned,
        "seconds": final["seconds"],
        "rows_per_s": learned / final["seconds"],
        "rss_mb_at_quarter": round(quarter, 1),
        "rss_mb_at_end": round(samples[-1][1], 1),
    }


def read_status(job_file: Path) -> dict[str, Any]:
    """What the job last said of itself; empty before it has said anything."""
    try:
        status: dict[str, Any] = json.loads((job_file.parent / "state" / "status.json").read_bytes())
    except FileNotFoundError:
        return {}
    return status


def readers(pid: int) -> list[psutil.Process]:
    """The reader processes of a job."""
    return [child for child in psutil.Process(pid).children() if "consumers.reader" in child.cmdline()]


def resident_mib(processes: list[psutil.Process]) -> float:
    """Of all of them; what they share counts once for each."""
    return float(sum(process.memory_info().rss for process in processes) / MIB)
