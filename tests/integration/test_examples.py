"""The examples as a user runs them: one command, through Kafka into MLflow."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import safetensors.numpy

from consumers.errors import DependencyError
from pipeline.jobfile import load
from pipeline.options.pretrained import read_weights
from pipeline.store import LocalStore
from tests.stream import job

ROOT = Path(__file__).parents[2]
NO_JAVA = ""  # so the mock cluster serves, which is faster


def answers(name: str, folder: Path, path: str) -> list[float]:
    """What an example prints in the end; it looks for Java in `path`."""
    command = [sys.executable, "-m", f"examples.{name}", "--state", str(folder / "state")]
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "PATH": path}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return [float(line.rpartition("=")[2]) for line in done.stdout.splitlines()]


@pytest.mark.timeout(400)
def test_y_is_2x_and_so_10_at_5(kafka: Any, tmp_path: Path) -> None:
    """On a Kafka of its own: `kafka` is here so that its jars are."""
    (found,) = answers("linear", tmp_path, os.environ["PATH"])
    assert found == pytest.approx(10, abs=0.05)


@pytest.mark.timeout(400)
def test_after_20_new_digits_the_first_200_are_not_forgotten(tmp_path: Path) -> None:
    base, new, _, base_after, new_after, _ = answers("digits", tmp_path, NO_JAVA)
    assert base > 0.97
    assert new == 0
    assert base_after > base - 0.02
    assert new_after > 0.9
    again = load(tmp_path / "state" / "job.toml", ["learner.pretrained=models:/digits/2"], {})
    published, store = read_weights(again), LocalStore(again.job.state_dir)
    newest = safetensors.numpy.load(store.get(store.manifest(store.sequences()[-1])["blobs"]["arrays"]))
    trained = {n.removeprefix("learner.module."): a for n, a in newest.items() if n.startswith("learner.module.")}
    assert published is not None
    assert {name: tensor.numpy().tobytes() for name, tensor in published.items()} == {
        name: array.tobytes() for name, array in trained.items()
    }, "a version's weights are those to begin another lineage with"


def test_a_version_that_mlflow_does_not_have_is_an_error_that_says_where_it_was_looked_for(tmp_path: Path) -> None:
    config = job(tmp_path / "state", learner={"kind": "mlp", "pretrained": "models:/nothing/1"})
    with pytest.raises(DependencyError, match=r"'models:/nothing/1' cannot be fetched from sqlite:.*nothing"):
        read_weights(config)
