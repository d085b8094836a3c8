"""The examples as a user runs them: one command, through Kafka into MLflow. The mock cluster serves, for its speed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def answers(name: str, folder: Path) -> list[float]:
    """What an example prints in the end, without Java on the PATH."""
    (folder / "bin").mkdir()
    command = [sys.executable, "-m", f"examples.{name}", "--state", str(folder / "state")]
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "PATH": str(folder / "bin")}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return [float(line.rpartition("=")[2]) for line in done.stdout.splitlines()]


def test_y_is_2x_and_so_10_at_5(tmp_path: Path) -> None:
    (found,) = answers("linear", tmp_path)
    assert found == pytest.approx(10, abs=0.05)


def test_after_20_new_digits_the_first_200_are_not_forgotten(tmp_path: Path) -> None:
    base, new, _, base_after, new_after, _ = answers("digits", tmp_path)
    assert base > 0.97
    assert new == 0
    assert base_after > base - 0.02
    assert new_after > 0.9
