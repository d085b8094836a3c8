"""The learner without torch can stand in for the real one."""

from __future__ import annotations

import inspect
import subprocess
import sys
from pathlib import Path

import numpy as np

from consumers.batch import Batch
from pipeline.learner import Learner, StepReport
from tests import tiny
from tests.stream import job

COLUMNS = 3


def random_batch(rows: int, seed: int = 0) -> Batch:
    rng = np.random.default_rng(seed)
    features_BC = rng.standard_normal((rows, COLUMNS), np.float32)
    features_BC[:, 0] = rng.integers(1, 50, rows)
    ones_B = np.ones(rows, np.float32)
    labels_B = rng.integers(0, 2, rows).astype(np.float32)
    return Batch(features_BC, labels_B, ones_B, ones_B[:, None], np.zeros(rows, np.int64), rows)


def test_it_has_every_public_method_of_the_real_one_with_the_same_parameters(tmp_path: Path) -> None:
    for name, method in inspect.getmembers(Learner, inspect.isfunction):
        if not name.startswith("_"):
            assert inspect.signature(getattr(tiny.TinyLearner, name)).parameters.keys() == (
                inspect.signature(method).parameters.keys()
            ), name
    real, stand_in = Learner(job(tmp_path)), tiny.TinyLearner(job(tmp_path))
    for name in ("score_width", "batch_size", "frozen"):
        assert getattr(stand_in, name) == getattr(real, name), name
    assert stand_in.task.kind == real.task.kind
    for report in (tiny.StepReport, StepReport):
        assert {name for name in dir(report) if name[0] != "_"} == {"loss", "refused", "frozen_scores_BS"}


def test_neither_it_nor_state_and_snapshots_import_torch() -> None:
    code = "import sys, tests.tiny, pipeline.state, pipeline.snapshot; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])


def test_what_is_restored_goes_on_to_the_bit(tmp_path: Path) -> None:
    learner = tiny.TinyLearner(job(tmp_path))
    for seed in range(5):
        learner.step(random_batch(64, seed))
        if seed == 2:
            learner.freeze()
    again = tiny.TinyLearner(job(tmp_path))
    again.restore(learner.state(), learner.document())
    for each in (learner, again):
        each.step(random_batch(64, 9))
    left, right = learner.state(), again.state()
    assert {name: array.tobytes() for name, array in left.items()} == {n: a.tobytes() for n, a in right.items()}
    assert learner.document() == again.document()
    assert learner.weights()["learned"].sum() == 6 * 64


def test_a_score_has_the_same_bits_in_any_company(tmp_path: Path) -> None:
    learner = tiny.TinyLearner(job(tmp_path))
    batch = random_batch(64)
    learner.step(batch)
    together = learner.score(batch.features_BC)
    alone = [learner.score(batch.features_BC[row : row + 1]) for row in range(64)]
    assert np.concatenate(alone).tobytes() == together.tobytes()
    assert len(np.unique(together)) > 10


def test_a_batch_whose_loss_is_not_finite_changes_nothing(tmp_path: Path) -> None:
    learner = tiny.TinyLearner(job(tmp_path))
    batch = random_batch(64)
    learner.step(batch)
    before = {name: array.tobytes() for name, array in learner.state().items()}, str(learner.document())
    batch.labels_B[3] = np.inf
    assert learner.step(batch).refused
    assert ({name: array.tobytes() for name, array in learner.state().items()}, str(learner.document())) == before
