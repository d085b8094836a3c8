"""The learner: fixed shapes, refusals that change nothing, and a state that comes back to the bit."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from consumers.batch import Batch
from consumers.errors import ConfigError
from pipeline.config import JobConfig
from pipeline.learner import Learner

SIZE = 32
BANK: dict[str, Any] = {"kind": "bank", "hidden": [256, 128], "classes": 5}
EACH_KIND = pytest.mark.parametrize("kind", [{}, BANK], ids=["mlp", "bank"])


def job(**learner: Any) -> JobConfig:
    return JobConfig.model_validate(
        {
            "job": {"name": "test", "state_dir": Path("unused")},
            "kafka": {"bootstrap.servers": "unused"},
            "features": {
                "topic": "f",
                "numeric": ["a", {"name": "b", "nullable": True}],
                "categorical": [{"name": "c", "buckets": 16}],
            },
            "labels": {"topic": "l", "column": "y"},
            "learner": {"kind": "mlp", "batch_size": SIZE, "hidden": [16], **learner},
            "dead_letters": {"topic": "d"},
        }
    )


def batch(seed: int = 0, rows: int = SIZE, classes: int = 2) -> Batch:
    rng = np.random.default_rng(seed)
    features = np.zeros((SIZE, 3), np.float32)
    features[:rows, 0] = rng.normal(5, 3, rows)
    features[:rows, 1] = np.where(rng.random(rows) < 0.3, np.nan, rng.normal(0, 1, rows))
    features[:rows, 2] = rng.integers(0, 16, rows)
    labels, weights = np.zeros(SIZE, np.float32), np.zeros(SIZE, np.float32)
    labels[:rows] = rng.integers(0, classes, rows)
    weights[:rows] = 1
    return Batch(features, labels, weights, np.zeros((SIZE, 1), np.float32), np.zeros(SIZE, np.int64), rows)


def digest(learner: Learner) -> str:
    content = hashlib.sha256()
    for name, array in sorted(learner.state().items()):
        content.update(name.encode() + array.tobytes())
    return content.hexdigest()


@pytest.mark.parametrize(("task", "width"), [("binary", 1), ("multiclass", 5), ("regression", 1)])
def test_each_task_learns(task: str, width: int) -> None:
    learner = Learner(job(task=task, classes=max(2, width)))
    first = learner.step(batch(classes=max(2, width))).loss
    for _ in range(200):
        last = learner.step(batch(classes=max(2, width))).loss
    assert last < first * 0.8
    assert learner.score(batch().features_BC).shape == (SIZE, width)


def test_an_untrained_model_answers_neutrally() -> None:
    assert (Learner(job()).score(batch().features_BC) == 0.5).all()


def test_scores_do_not_depend_on_how_rows_are_grouped() -> None:
    learner = Learner(job())
    learner.step(batch(1))
    features = np.concatenate([batch(seed).features_BC for seed in range(4)])
    whole = learner.score(features)
    parts = np.concatenate([learner.score(part) for part in np.array_split(features, 17)])
    assert whole.tobytes() == parts.tobytes()


def test_padding_does_not_count() -> None:
    short, long = batch(3, rows=20), batch(3, rows=20)
    long.features_BC[20:, 0] = 1e6
    left, right = Learner(job()), Learner(job())
    left.step(short)
    right.step(long)
    left_state, right_state = left.state(), right.state()
    for name in ("module.0.standardise.mean_F", "module.0.standardise.count_F"):
        assert left_state[name].tobytes() == right_state[name].tobytes()
    assert left_state["module.0.standardise.count_F"][0] == 20


@EACH_KIND
@pytest.mark.parametrize(("name", "poison"), [("labels_B", np.inf), ("labels_B", 1e38), ("weights_B", np.inf)])
def test_a_step_that_is_not_finite_changes_nothing(kind: dict[str, Any], name: str, poison: float) -> None:
    learner = Learner(job(task="regression", **kind))
    for seed in range(3):
        learner.step(batch(seed))
    before, bad = digest(learner), batch(9)
    getattr(bad, name)[0] = poison
    assert learner.step(bad).refused
    assert digest(learner) == before
    assert not learner.step(batch(4)).refused
    assert digest(learner) != before


@EACH_KIND
@pytest.mark.parametrize("task", ["binary", "multiclass", "regression"])
def test_restored_it_goes_on_bit_for_bit(kind: dict[str, Any], task: str) -> None:
    straight = Learner(job(task=task, **kind))
    for seed in range(40):
        straight.step(batch(seed))
        if seed == 20:
            straight.freeze()
        if seed == 29:
            arrays = {name: array.copy() for name, array in straight.state().items()}
            document = straight.document()
    resumed = Learner(job(task=task, **kind))
    resumed.restore(arrays, document)
    reports = [resumed.step(batch(seed)) for seed in range(30, 40)]
    assert digest(resumed) == digest(straight)
    assert reports[0].frozen_scores_BS is not None


@EACH_KIND
def test_the_frozen_copy_does_not_learn(kind: dict[str, Any]) -> None:
    learner = Learner(job(**kind))
    learner.step(batch(0))
    learner.freeze()
    frozen = [learner.step(batch(1)).frozen_scores_BS for _ in range(2)]
    assert frozen[0] is not None
    assert frozen[1] is not None
    assert frozen[0].tobytes() == frozen[1].tobytes()
    assert learner.score(batch(1).features_BC).tobytes() != frozen[0].tobytes()


def test_the_standardiser_merges_moments_as_if_all_rows_were_one_batch() -> None:
    learner = Learner(job())
    rows = np.concatenate([batch(seed).features_BC for seed in range(5)])
    for seed in range(5):
        learner.step(batch(seed))
    state = learner.state()
    np.testing.assert_allclose(state["module.0.standardise.mean_F"], np.nanmean(rows[:, :2], axis=0, dtype=np.float64))
    variance = state["module.0.standardise.m2_F"] / state["module.0.standardise.count_F"]
    np.testing.assert_allclose(variance, np.nanvar(rows[:, :2].astype(np.float64), axis=0))


def test_averages_of_gradients_that_vanished_become_zero_and_scores_are_as_anywhere() -> None:
    learner = Learner(job())
    once, again = batch(0), batch(1)
    once.features_BC[:, 2], again.features_BC[:, 2] = 1, 2  # a category that never comes again
    for number in range(1200):
        learner.step(once if number < 3 else again)
    (embedding,) = (slots for parameter, slots in learner.method.optimizer.state.items() if parameter.shape == (16, 8))
    assert embedding["exp_avg_sq"][1].all()
    assert not embedding["exp_avg"][1].any()  # else it would end at some 5e-45, which is slow, for ever
    assert (torch.tensor(1e-40) * 1).item() > 0, "only steps flush"


def test_one_refused_step_among_others_leaves_no_gradient_behind() -> None:
    left, right = Learner(job(task="regression")), Learner(job(task="regression"))
    bad = batch(9)
    bad.labels_B[0] = np.inf
    for learner, batches in ((left, [batch(0), bad, batch(1)]), (right, [batch(0), batch(1)])):
        for each in batches:
            learner.step(each)
    assert digest(left) == digest(right)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
def test_on_cuda_the_same_steps_give_the_same_bits() -> None:
    digests = []
    for _ in range(2):
        learner = Learner(job(device="cuda"))
        for seed in range(3):
            learner.step(batch(seed))
        digests.append(digest(learner))
    assert digests[0] == digests[1]


def test_an_optimizer_that_evaluates_the_loss_itself_is_an_error() -> None:
    with pytest.raises(ConfigError, match=r"its optimizer\(\) gives LBFGS.* needs no closure"):
        Learner(job(task="tests.tasks:SecondOrderTask"))
