"""A small share of what `python -m tests.faults.fuzz` runs, and the fuzzer itself."""

from __future__ import annotations

import base64
import subprocess
import sys
from pathlib import Path

import pytest

from tests.faults.fuzz import TARGETS, fuzz, repeat

pytest.importorskip("atheris", reason="atheris is there for Linux on x86-64 only")

INPUTS = {"json": 1_500, "jobfile": 1_500, "manifest": 20_000, "ledger": 10_000}


@pytest.mark.parametrize("target", TARGETS)
def test_no_input_crashes_or_hangs(target: str) -> None:
    report = fuzz(target, INPUTS[target], seed=4)
    assert "failure" not in report, report
    assert report["inputs"] == INPUTS[target]


@pytest.mark.parametrize(
    ("how", "failure"), [("raises", "ValueError: bad input"), ("dies", "deadly signal"), ("is slow", "took 1.")]
)
def test_what_fails_is_found_and_shown_with_its_input(how: str, failure: str) -> None:
    report = fuzz(f"fragile: {how}", 10**6, seed=0)
    assert failure in report["failure"]
    assert b"bad" in base64.b64decode(report["input"])
    assert report["repeat"].endswith(report["input"])


def test_the_same_seed_makes_the_same_inputs() -> None:
    first, second = (fuzz("fragile: raises", 10**6, seed=7) for _ in range(2))
    assert first["inputs"] == second["inputs"]
    assert first["input"] == second["input"]


def test_one_input_can_be_repeated() -> None:
    assert "failure" in repeat("fragile: raises", b"a bad one")
    assert "failure" not in repeat("fragile: raises", b"a good one")


def test_the_command_says_what_it_ran() -> None:
    command = [sys.executable, "-m", "tests.faults.fuzz", "manifest", "--input", "AA==", "-o", "json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2])
    assert '"target": "manifest", "inputs": 1' in done.stdout
