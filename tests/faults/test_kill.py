"""Killed at any instant, as often as you like, it is the same run; and nothing of S can be left out of a snapshot.

These are the shares that fit into every test run; `make test-long` runs the programs with their full counts.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]


def run(module: str, *args: str, folder: Path) -> dict[str, Any]:
    """A program in a process of its own: it forks, which pytest's process had better not."""
    command = [sys.executable, "-m", f"tests.faults.{module}", *args, "-o", "json"]
    env = os.environ | {"TMPDIR": str(folder)}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert done.stdout, done.stderr[-4000:]
    report: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    assert done.returncode == 0, json.dumps(report, indent=1)[:8000]
    return report


@pytest.mark.timeout(600)
def test_a_thousand_kills_change_nothing(tmp_path: Path) -> None:
    report = run("kill", "--kills", "1000", "--seed", "1", folder=tmp_path)
    assert (report["kills"], report["differences"]) == (1000, 0)
    hit = {where.partition(": ")[2] for where in report["landed"]}
    assert {"start", "restore", "apply", "step", "freeze", "write", "fsync", "versions"} <= hit


@pytest.mark.timeout(900)
def test_fifty_kills_of_real_processes_change_nothing(tmp_path: Path) -> None:
    report = run("kill", "--real", "--kills", "50", "--seed", "1", folder=tmp_path)
    assert (report["kills"], report["differences"]) == (50, 0)
    assert {"learner", "reader", "releaser"} <= set(report["killed"])
    assert len(report["lives"]) > 1  # with one reader, with two, or with three


@pytest.mark.timeout(600)
def test_each_field_of_a_snapshot_is_missed_when_it_is_dropped(tmp_path: Path) -> None:
    report = run("forget", folder=tmp_path)
    assert report["fields"] > 60
    assert report["not_caught"] == []
