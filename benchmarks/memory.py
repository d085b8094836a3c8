"""What learner and readers take: their PSS, without torch, the releaser and the join's tables, under full load."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from statistics import median
from typing import Any

import psutil

from benchmarks.formats import FORMATS
from benchmarks.processes import MIB, limit_s, read_status, readers, running, say
from benchmarks.topics import Topics, filled

SAMPLE_S = 0.5
PARTS = ("learner", "readers", "torch", "join")
ONE_STEP = """
import sys, torch
torch.set_num_threads(1)
model = torch.nn.Sequential(torch.nn.Linear(32, 256), torch.nn.ReLU(), torch.nn.Linear(256, 1))
optimizer = torch.optim.Adam(model.parameters())
model(torch.randn(1024, 32)).sum().backward()
optimizer.step()
print(flush=True)
sys.stdin.read()
"""


@contextmanager
def torch_alone() -> Iterator[int]:
    """A process that has taken one step in torch, which then has loaded what its optimizers need.

    It lives beside the job, so that what the kernel shares out of torch's own files is the same share in both.
    """
    with subprocess.Popen([sys.executable, "-c", ONE_STEP], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdout.readline()
        yield process.pid
        process.stdin.close()


def pss_mib(pid: int) -> float:
    """Proportional set size: pages that several processes map count in parts."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("Pss:"))


def measure(topics: Topics, rows: int) -> dict[str, float]:
    """One run: the sample with the largest rest, of those taken after half of the rows. In MiB."""
    samples, deadline = [], time.monotonic() + limit_s(rows)
    with tempfile.TemporaryDirectory(prefix="evertrain-bench-") as folder, torch_alone() as idle:
        job = topics.write_job(Path(folder))
        with running(job, "benchmarks.watched_run", "-c", job, "--until-caught-up") as process:
            while process.poll() is None and time.monotonic() < deadline:
                time.sleep(SAMPLE_S)
                status = read_status(job)
                if status.get("phase") != "training" or status["rows_trained"] < rows // 2:
                    continue
                with suppress(psutil.NoSuchProcess, FileNotFoundError, ProcessLookupError):
                    samples.append(sample(process.pid, idle, status["join_bytes"] / MIB))
        if process.returncode or not samples:
            raise RuntimeError((Path(folder) / "log").read_text()[-3000:])
    return max(samples, key=lambda found: found["rest"])


def sample(job: int, idle: int, join_mib: float) -> dict[str, float]:
    """The parts at one moment."""
    reading = sum(pss_mib(reader.pid) for reader in readers(job))
    parts = dict(zip(PARTS, (pss_mib(job), reading, pss_mib(idle), join_mib), strict=True))
    return {**parts, "rest": parts["learner"] + parts["readers"] - parts["torch"] - parts["join"]}


def main() -> None:
    """Prints the medians of the runs, in MiB."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.memory", description=__doc__)
    parser.add_argument("--formats", nargs="+", choices=FORMATS, default=list(FORMATS))
    parser.add_argument("--rows", type=int, default=2_000_000)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("-o", "--output", choices=("text", "json"), default="text")
    args = parser.parse_args()
    results: dict[str, dict[str, Any]] = {}
    for name in args.formats:
        runs = []
        with filled(name, args.rows) as topics:
            for _ in range(args.repeat):
                runs.append(measure(topics, args.rows))
                say(f"{name}: " + ", ".join(f"{part} {mib:.0f} MiB" for part, mib in runs[-1].items()))
        medians = {f"{part}_mib": round(median(run[part] for run in runs)) for part in (*PARTS, "rest")}
        results[name] = {**medians, "n": args.repeat, "rows": args.rows}
    print(json.dumps(results, indent=2) if args.output == "json" else results)


if __name__ == "__main__":
    main()
