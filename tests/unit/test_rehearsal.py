"""A task of one's own that cannot work is refused before the first record, in one line that says what and where."""

from __future__ import annotations

from threading import Lock
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from consumers.config import LabelRule
from consumers.errors import ConfigError
from pipeline.checks import TaskChecks, digest
from pipeline.config import JobConfig
from pipeline.learner import Learner
from pipeline.models.mlp import Encoder
from pipeline.task import Binary, Multiclass, label_rule_of


class Linear(Binary):
    def module(self) -> nn.Module:
        encoder = Encoder(self.features, self.learner.embedding)
        return nn.Sequential(encoder, nn.BatchNorm1d(encoder.width), nn.Dropout(0.1), nn.Linear(encoder.width, 1))


class Wide(Linear):
    def module(self) -> nn.Module:
        return nn.Linear(999, 1)


class Broken(Linear):
    def module(self) -> nn.Module:
        raise KeyError("no such column")


class NoModule(Linear):
    def module(self) -> Any:
        return [super().module()]


class NoParameters(Linear):
    def module(self) -> nn.Module:
        return nn.Identity()


class Bfloat(Linear):
    def module(self) -> nn.Module:
        return super().module().to(torch.bfloat16)


class ManyLosses(Linear):
    def loss(self, outputs: Tensor, labels_N: Tensor, weights_N: Tensor) -> Tensor:
        return (outputs.squeeze(1) - labels_N).square() * weights_N


class PlainLoss(Linear):
    def loss(self, outputs: Tensor, labels_N: Tensor, weights_N: Tensor) -> Any:
        return 0.5


class DetachedLoss(Linear):
    def loss(self, outputs: Tensor, labels_N: Tensor, weights_N: Tensor) -> Tensor:
        return outputs.detach().mean()


class RaisingLoss(Linear):
    def loss(self, outputs: Tensor, labels_N: Tensor, weights_N: Tensor) -> Tensor:
        raise ValueError("shapes differ\nand more")


class SparseGradient(Linear):
    """Its norm cannot be taken."""

    def module(self) -> nn.Module:
        return Sparse()


class Sparse(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(16, 1, sparse=True)

    def forward(self, features_NC: Tensor) -> Tensor:
        return self.embedding(features_NC[:, 0].long().clamp(0, 15))


class NoScore(Linear):
    def score(self, outputs: Tensor) -> Any:
        return None


class OneScoreForAll(Linear):
    def score(self, outputs: Tensor) -> Tensor:
        return outputs.mean()


class DoubleScores(Linear):
    """MLflow would publish other scores than these."""

    def score(self, outputs: Tensor) -> Tensor:
        return super().score(outputs).double()


class Narrow(Multiclass):
    """Its scores would be copied to all classes."""

    def score(self, outputs: Tensor) -> Tensor:
        return outputs.argmax(dim=1).float()


class NoParametersToOptimize(Linear):
    def optimizer(self, module: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.SGD([], lr=0.1)


class NoStep(torch.optim.SGD):
    def step(self, closure: Any = None) -> Any:
        raise RuntimeError("no rate for this group")


class RaisingStep(Linear):
    def optimizer(self, module: nn.Module) -> torch.optim.Optimizer:
        return NoStep(module.parameters(), lr=0.1)


class Foreign(Linear):
    """Its weights would never change."""

    def optimizer(self, module: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.SGD(nn.Linear(2, 1).parameters(), lr=0.1)


class Listing(torch.optim.SGD):
    def step(self, closure: Any = None) -> Any:
        for parameter in self.param_groups[0]["params"]:
            self.state[parameter]["history"] = [parameter.detach().clone()]


class ListedState(Linear):
    def optimizer(self, module: nn.Module) -> torch.optim.Optimizer:
        return Listing(module.parameters(), lr=0.1)


class Locked(nn.Linear):
    def __init__(self) -> None:
        super().__init__(2, 1)
        self.lock = Lock()


class NoCopy(Linear):
    def module(self) -> nn.Module:
        return Locked()


class Lazy(Linear):
    def module(self) -> nn.Module:
        return nn.LazyLinear(1)


class Remembering(Linear):
    """It holds what cannot be copied, and what `module` made; its rate is a scheduler's."""

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self.lock = Lock()

    def module(self) -> nn.Module:
        self.made = super().module()
        return self.made

    def optimizer(self, module: nn.Module) -> torch.optim.Optimizer:
        optimizer = torch.optim.SGD(self.made.parameters(), lr=0.1)
        torch.optim.lr_scheduler.StepLR(optimizer, 10)
        return optimizer


class Momentum(Linear):
    """Its state begins with the first step, and every step takes some of its weights."""

    def optimizer(self, module: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)


class Ranking(Linear):
    kind = "ranking"


class NoLoss(Linear):
    loss = None  # type: ignore[assignment]


def job(task: str, **learner: Any) -> JobConfig:
    return JobConfig.model_validate(
        {
            "job": {"name": "rehearsal", "state_dir": "none"},
            "kafka": {"bootstrap.servers": "none"},
            "features": {"topic": "f", "label": "y", "numeric": ["a"], "categorical": ["b"]},
            "learner": {"task": f"{__name__}:{task}" if ":" not in task else task, "batch_size": 8, **learner},
            "dead_letters": {"topic": "d"},
        }
    )


@pytest.mark.parametrize(
    ("task", "says"),
    [
        ("Wide", r"score\(\) of what module\(\) answers fails: RuntimeError: mat1 and mat2 shapes"),
        ("Broken", r"module\(\) fails at test_rehearsal.py:\d+: KeyError: 'no such column'$"),
        ("NoModule", r"module\(\) gives list, not a torch.nn.Module"),
        ("NoParameters", "the module has no parameters"),
        ("Bfloat", r"3.weight is torch.bfloat16, which a snapshot cannot hold|0.\S+ is torch.bfloat16, which a snapsh"),
        ("ManyLosses", r"loss\(\) gives a tensor \[8\], not a tensor of one number"),
        ("PlainLoss", r"loss\(\) gives 0.5, not a tensor of one number"),
        ("DetachedLoss", r"loss\(\) depends on no parameter"),
        ("RaisingLoss", r"loss\(\) fails at test_rehearsal.py:\d+: ValueError: shapes differ$"),
        ("SparseGradient", r"the gradient of loss\(\) fails"),
        ("NoScore", r"score\(\) of 8 rows gives None, not a tensor \[8\] or \[8, 1\]"),
        ("OneScoreForAll", r"score\(\) of 8 rows gives a tensor \[\], not"),
        ("DoubleScores", r"score\(\) of 8 rows gives a tensor \[8\] of torch.float64, not .* of float32$"),
        ("Narrow", r"score\(\) of 8 rows gives a tensor \[8\], not a tensor \[8, 3\]"),
        ("NoParametersToOptimize", r"optimizer\(\) fails at test_rehearsal.py:\d+: ValueError"),
        ("RaisingStep", r"step\(\) of its optimizer\(\) fails at test_rehearsal.py:\d+: RuntimeError: no rate for"),
        ("Foreign", r"its optimizer\(\) moves a parameter that is none of its argument's"),
        ("ListedState", r"keeping the state of its optimizer\(\) in a snapshot fails"),
        ("NoCopy", "copying the module fails: TypeError: cannot pickle '_thread.lock' object"),
        ("Lazy", r"copying the module fails: ValueError: .*uninitialized"),
        ("Ranking", "its kind is 'ranking'; allowed: binary, multiclass, regression"),
        ("NoLoss", r"has no method loss\(\)"),
        ("no_such_module:Task", "No module named 'no_such_module'; is its folder in PYTHONPATH"),
        (":Task", "cannot be imported"),
        ("..relative:Task", "cannot be imported"),
    ],
)
def test_what_cannot_work_is_refused_at_once_and_in_one_line(task: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says) as caught:
        Learner(job(task, classes=3))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("options", [{}, {"average": 0.9}, {"epochs": 2}, {"replay": 100}])
@pytest.mark.parametrize("task", ["Linear", "Momentum"])
def test_it_leaves_no_trace(monkeypatch: pytest.MonkeyPatch, task: str, options: dict[str, Any]) -> None:
    rehearsed = digest(Learner(job(task, **options)))
    monkeypatch.setattr("pipeline.descent.rehearse", lambda *_: None)
    assert digest(Learner(job(task, **options))) == rehearsed


class Counting(nn.Linear):
    """Counts how often it was asked, scoring included."""

    def __init__(self) -> None:
        super().__init__(2, 1)
        self.register_buffer("asked", torch.zeros(1))

    def forward(self, features_NC: Tensor) -> Tensor:
        self.asked += 1
        return super().forward(features_NC)


class CountingTask(Binary):
    def module(self) -> nn.Module:
        return Counting()


@pytest.mark.parametrize("options", [{}, {"average": 0.9}])
def test_nor_in_a_module_that_changes_as_it_scores(options: dict[str, Any]) -> None:
    learner = Learner(job("CountingTask", **options))
    assert learner.module.asked == 0
    assert not any(array.any() for name, array in learner.state().items() if name.endswith("asked"))


class Drawing(Linear):
    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self.start = torch.rand(1)


def test_asking_for_the_labels_draws_nothing_from_the_generator_that_is_part_of_s() -> None:
    before = torch.get_rng_state()
    label_rule_of(job("Drawing"))
    assert torch.equal(torch.get_rng_state(), before)


def test_a_label_that_no_class_has_is_bad_input_whoever_s_task_it_is() -> None:
    """The loss would raise at it, in this life and in each one after."""
    assert label_rule_of(job("Narrow", classes=3)) == LabelRule(kind="class", classes=3)
    assert label_rule_of(job("Linear")).kind == "binary"


def test_a_task_may_hold_what_cannot_be_copied_and_what_it_made_before() -> None:
    learner = Learner(job("Remembering"))
    learner.freeze()
    assert learner.frozen is not None
    assert learner.frozen.module is not learner.module


def test_what_is_for_binary_tasks_is_for_those_of_ones_own_too() -> None:
    negatives = {"join": {"window": "1h", "keep_negatives": 0.5}}
    Learner(job("Linear").model_validate(job("Linear").model_dump() | negatives))
    with pytest.raises(ConfigError, match=r"keep_negatives are for binary tasks, but .*Narrow' is of the kind 'multi"):
        Learner(job("Narrow").model_validate(job("Narrow", classes=3).model_dump() | negatives))


def test_a_snapshot_of_another_module_is_refused_in_one_line() -> None:
    linear, counting = Learner(job("Linear")), Learner(job("CountingTask"))
    with pytest.raises(ConfigError, match=r"the snapshot is not of the model that .*Linear' gives now") as caught:
        linear.restore(counting.state(), counting.document())
    assert "\n" not in str(caught.value)


class TestSlowing(TaskChecks):
    task = "tests.tasks:SlowingTask"
    learner = {"hidden": [8]}
    improvement = 1.0


def test_numbers_of_an_optimizer_are_numbers_again() -> None:
    checks = TestSlowing()
    learner, resumed = Learner(checks.job()), Learner(checks.job())
    learner.step(next(checks.batches(checks.job())))
    resumed.restore({name: np.copy(array) for name, array in learner.state().items()}, learner.document())
    states = [list(each.method.optimizer.state.values()) for each in (learner, resumed)]  # type: ignore[attr-defined]
    assert states[0] == states[1]
    assert {type(value) for value in states[1][0].values()} == {int, float, list}
    groups = [each.method.optimizer.param_groups[0].items() for each in (learner, resumed)]  # type: ignore[attr-defined]
    assert [[(name, value) for name, value in group if name != "params"] for group in groups] == [
        [("lr", 0.1), ("pace", torch.tensor(0.97)), ("bounds", (0.495, 1.0))]
    ] * 2
