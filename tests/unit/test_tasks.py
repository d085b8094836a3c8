"""Every task that comes with Evertrain passes the checks that a user's own inherits."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pipeline.checks import TaskChecks
from pipeline.task import Binary, Regression


class TestBinary(TaskChecks):
    task = "binary"
    learner = {"kind": "mlp", "learning_rate": 0.01, "hidden": [16]}


class TestMulticlass(TaskChecks):
    task = "multiclass"
    learner = {"kind": "mlp", "classes": 5, "learning_rate": 0.01, "hidden": [16]}


class TestRegression(TaskChecks):
    task = "regression"
    learner = {"kind": "mlp", "learning_rate": 0.01, "hidden": [16]}


class TestBankOfBinary(TaskChecks):
    task = "binary"


class TestBankOfMulticlass(TaskChecks):
    task = "multiclass"
    learner = {"classes": 5}


class TestBankOfRegression(TaskChecks):
    task = "regression"


class TestNumbersOnly(TaskChecks):
    task = "binary"
    features = {"numeric": ["a"]}
    learner = {"kind": "mlp", "learning_rate": 0.01, "hidden": []}


class TestCategoriesOnly(TaskChecks):
    task = "regression"
    features = {"categorical": ["a", {"name": "b", "buckets": 4}]}
    learner = {"kind": "mlp", "learning_rate": 0.01, "hidden": [16]}
    steps = 600


class TestGated(TaskChecks):
    task = "examples.custom_task:GatedTask"
    learner = {"learning_rate": 0.01}


class TestNoisy(TaskChecks):
    task = "tests.tasks:NoisyTask"
    test_padding_does_not_count = None  # it counts padding, too
    learner = {"learning_rate": 0.01, "hidden": [16]}

    def rows(self, random: np.random.Generator, job: Any, count: int) -> Any:
        features_NC, _ = super().rows(random, job, count)
        features_NC[:, 0] = np.arange(count)  # it counts ids
        return features_NC, (features_NC[:, 1] > 1).astype(np.float32)


class Deaf(Binary):
    """Does not heed weights."""

    def loss(self, outputs: Tensor, labels_N: Tensor, weights_N: Tensor) -> Tensor:
        return super().loss(outputs, labels_N, torch.ones_like(weights_N))


class Counting(nn.Module):
    """Has a state that `state_dict()` does not know, and scores that depend on it."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner, self.seen = inner, 0

    def forward(self, features_NC: Tensor) -> Tensor:
        self.seen += self.training
        return self.inner(features_NC) + self.seen


class Forgetful(Binary):
    def module(self) -> nn.Module:
        return Counting(super().module())


class Restless(Binary):
    """Draws from a generator of its own."""

    random = np.random.default_rng(0)

    def loss(self, outputs: Tensor, labels_N: Tensor, weights_N: Tensor) -> Tensor:
        return super().loss(outputs + float(self.random.normal()), labels_N, weights_N)


class Gossip(nn.Module):
    """Looks across rows."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, features_NC: Tensor) -> Tensor:
        outputs = self.inner(features_NC)
        return outputs - outputs.mean()


class Sociable(Binary):
    def module(self) -> nn.Module:
        return Gossip(super().module())


class Normalised(nn.Module):
    """Normalises by the batch at hand, also in eval mode."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner, self.norm = inner, nn.BatchNorm1d(1)

    def forward(self, features_NC: Tensor) -> Tensor:
        self.norm.train()
        return self.norm(self.inner(features_NC))


class Crowded(Binary):
    def module(self) -> nn.Module:
        return Normalised(super().module())


class Attention(nn.Module):
    """Attends to all rows of the batch; what it adds is small at first."""

    def __init__(self, columns: int) -> None:
        super().__init__()
        self.attend, self.head = nn.MultiheadAttention(columns, 1), nn.Linear(columns, 1)

    def forward(self, features_NC: Tensor) -> Tensor:
        rows_NC = torch.nan_to_num(features_NC)
        return self.head(rows_NC + 0.01 * self.attend(rows_NC, rows_NC, rows_NC, need_weights=False)[0])


class Attentive(Binary):
    def module(self) -> nn.Module:
        return Attention(len(self.features.numeric) + len(self.features.categorical))


class Convolutions(nn.Module):
    """Over a row's own columns."""

    def __init__(self, columns: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv1d(1, 16, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(16 * columns, 1))

    def forward(self, features_NC: Tensor) -> Tensor:
        return self.layers(torch.nan_to_num(features_NC)[:, None])


class Convolved(Binary):
    def module(self) -> nn.Module:
        return Convolutions(len(self.features.numeric) + len(self.features.categorical))


class Placed(nn.Module):
    """Rounds otherwise at every other place of a block, as a library may that multiplies matrices."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, features_NC: Tensor) -> Tensor:
        outputs = self.inner(features_NC)
        return torch.where(torch.arange(len(outputs))[:, None] % 2 == 0, outputs, outputs + 1e-6)


class Rounded(Binary):
    def module(self) -> nn.Module:
        return Placed(super().module())


class Lazy(Binary):
    def optimizer(self, module: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.SGD(module.parameters(), lr=0.0)


class Logits(Binary):
    """Scores that are no probabilities."""

    def score(self, outputs: Tensor) -> Tensor:
        return outputs.squeeze(1) + 7


class Unmoved(Regression):
    """A loss that is finite whatever comes."""

    def loss(self, outputs: Tensor, labels_N: Tensor, weights_N: Tensor) -> Tensor:
        return super().loss(outputs, labels_N, weights_N.nan_to_num(1.0))


@pytest.mark.parametrize(
    ("task", "check", "complaint"),
    [
        ("Deaf", "test_padding_does_not_count", "has to heed the weights"),
        ("Forgetful", "test_restored_it_goes_on_bit_for_bit", "not in state_dict"),
        ("Forgetful", "test_killed_and_resumed_is_the_same_run", "differs from that of a run never killed"),
        ("Restless", "test_the_same_seed_gives_the_same_bits", "torch does not know of"),
        ("Sociable", "test_a_row_has_the_same_score_in_any_company", "look across rows"),
        ("Crowded", "test_a_row_has_the_same_score_in_any_company", "look across rows"),
        ("Attentive", "test_a_row_has_the_same_score_in_any_company", "look across rows"),
        ("Lazy", "test_it_learns_something", "the loss went from"),
        ("Logits", "test_scores_are_float32_of_the_shape_and_range_of_their_kind", "no probabilities"),
        ("Unmoved", "test_a_step_that_is_not_finite_changes_nothing", "leaves the loss finite"),
    ],
)
def test_each_check_finds_what_it_is_for(task: str, check: str, complaint: str) -> None:
    checks = TaskChecks()
    checks.task = f"{__name__}:{task}"
    with pytest.raises(AssertionError, match=complaint):
        getattr(checks, check)()


@pytest.mark.parametrize("size", [7, 32, 50])
@pytest.mark.parametrize(
    ("task", "learner"),
    [
        ("binary", {"kind": "mlp", "hidden": [256, 256]}),
        ("binary", {}),
        (f"{__name__}:Convolved", {}),
        (f"{__name__}:Rounded", {}),
    ],
)
def test_rounding_by_the_place_in_a_block_is_no_company(task: str, learner: dict[str, Any], size: int) -> None:
    checks = TaskChecks()
    checks.task, checks.learner, checks.batch_size = task, learner, size
    checks.test_a_row_has_the_same_score_in_any_company()


def test_an_export_that_scores_otherwise_is_found(tmp_path: Any) -> None:
    checks = TaskChecks()
    checks.task = f"{__name__}:Forgetful"
    with pytest.raises(AssertionError, match="other scores than the trainer"):
        checks.test_its_export_gives_the_same_scores(tmp_path)
