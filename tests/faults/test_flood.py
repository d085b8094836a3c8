"""More features than memory holds, and no label ever comes for them: memory stays where `join.memory` says."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests.jobs import ROOT

pytestmark = pytest.mark.slow


def test_a_flood_takes_no_more_memory_than_the_budget_a_fifth_and_the_staging_buffer() -> None:
    command = [sys.executable, "-m", "tests.faults.flood", "--memory", "64MiB", "--flood", "224MiB", "-o", "json"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=150)
    figures = json.loads(done.stdout)
    print(figures)
    assert figures["flood"] > 3 * figures["memory"]
    assert figures["growth"] <= 1.2 * figures["memory"] + figures["staging"]
