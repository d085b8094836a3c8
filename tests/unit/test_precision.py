"""bfloat16 and compiled code: killed and resumed is the same run, versions are rebuilt, published is what scored."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from consumers.errors import ConfigError
from pipeline.learner import Learner
from pipeline.task import Binary
from tests.unit.test_learner import batch, digest
from tests.unit.test_learner import job as small
from tests.unit.test_verify import check_promises

pytestmark = [pytest.mark.filterwarnings("ignore:::torch", "ignore:::mlflow", "ignore:::sqlalchemy")]
compiles = pytest.mark.skipif(shutil.which(os.environ.get("CXX", "g++")) is None, reason="no C++ compiler here")

BFLOAT16 = {"precision": "bfloat16"}
COMPILED = {"compile": True}
WAYS = [
    pytest.param(BFLOAT16, id="bfloat16"),
    pytest.param(COMPILED, id="compiled", marks=compiles),
    pytest.param(BFLOAT16 | COMPILED, id="both", marks=compiles),
]


@pytest.fixture(autouse=True)
def _forget_compiled_code() -> None:
    torch.compiler.reset()  # a process has one learner; past eight, torch compiles no more


def trained(learner: Learner, steps: int = 4) -> Learner:
    for seed in range(steps):
        assert not learner.step(batch(seed)).refused
    return learner


@pytest.mark.parametrize("task", ["binary", "multiclass", "regression"])
def test_in_bfloat16_state_and_scores_stay_float32(task: str) -> None:
    learner, full = (trained(Learner(small(task=task, **config))) for config in (BFLOAT16, {}))
    scores, full_scores = (one.score(batch(9).features_BC) for one in (learner, full))
    assert scores.dtype == np.float32
    assert {name: a.dtype for name, a in learner.state().items()} == {n: a.dtype for n, a in full.state().items()}
    assert scores.tobytes() != full_scores.tobytes()
    np.testing.assert_allclose(scores, full_scores, atol=0.02)
    if task == "binary":  # float32 behind the module: bfloat16 has no more than 128 values from 0.5 to 1
        assert not torch.from_numpy(scores).bfloat16().float().equal(torch.from_numpy(scores))


def test_in_bfloat16_gradients_do_not_vanish_as_those_of_float16_would() -> None:
    weight = torch.full((4, 4), 2.0**-60, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        (torch.full((4, 4), 2.0**-60) @ weight).sum().backward()
    assert weight.grad is not None
    assert weight.grad.abs().min() > 0
    assert torch.full((), 2.0**-60).half() == 0


@pytest.mark.parametrize("way", WAYS)
def test_a_refused_step_changes_nothing(way: dict[str, Any]) -> None:
    learner = trained(Learner(small(**way)))
    before, bad = digest(learner), batch(9)
    bad.weights_B[0] = np.inf
    assert learner.step(bad).refused
    assert digest(learner) == before


class Restless(nn.Module):
    """Draws random numbers in every training forward, and counts these."""

    forwards: Tensor

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.register_buffer("forwards", torch.zeros(1))

    def forward(self, features_NC: Tensor) -> Tensor:
        if self.training:
            self.forwards.add_(1)
        return nn.functional.dropout(self.inner(features_NC), 0.5, self.training)


class RestlessTask(Binary):
    def module(self) -> nn.Module:
        return Restless(super().module())


RESTLESS = {"task": f"{__name__}:RestlessTask"}


@compiles
def test_compiling_takes_nothing_from_the_state() -> None:
    assert digest(Learner(small(**COMPILED, **RESTLESS))) == digest(Learner(small(**RESTLESS)))


@compiles
def test_compiled_code_draws_from_the_generator_that_is_part_of_the_state() -> None:
    straight = trained(Learner(small(**COMPILED, **RESTLESS)), 2)
    arrays, document = {name: array.copy() for name, array in straight.state().items()}, straight.document()
    expected, at_the_end = digest(trained(straight)), torch.get_rng_state()
    torch.compiler.reset()
    resumed = Learner(small(**COMPILED, **RESTLESS))
    resumed.restore(arrays, document)
    assert not torch.get_rng_state().equal(at_the_end)  # it draws
    assert digest(trained(resumed)) == expected


@compiles
def test_a_compiled_step_learns_and_scores_are_those_of_the_module_as_it_is_published() -> None:
    learner, plain = trained(Learner(small(**COMPILED))), trained(Learner(small()))
    plain.module.load_state_dict(learner.module.state_dict())
    features = batch(9).features_BC
    assert learner.score(features).tobytes() == plain.score(features).tobytes()
    np.testing.assert_allclose(
        learner.weights()["1.weight"], trained(Learner(small())).weights()["1.weight"], atol=1e-4
    )


@pytest.mark.parametrize("way", WAYS)
def test_killed_and_resumed_is_the_same_run_and_every_version_is_rebuilt_and_is_what_was_scored(
    way: dict[str, Any], tmp_path: Path
) -> None:
    check_promises(way, tmp_path)


class Branching(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, features_NC: Tensor) -> Tensor:
        outputs: Tensor = self.inner(features_NC)
        return outputs if outputs.sum() > 0 else outputs * 2


class BranchingTask(Binary):
    def module(self) -> nn.Module:
        return Branching(super().module())


@compiles
def test_a_module_that_cannot_be_compiled_is_a_config_error() -> None:
    with pytest.raises(ConfigError, match=r"learner.compile = true, but torch.compile fails .*Or set it to false"):
        Learner(small(task=f"{__name__}:BranchingTask", **COMPILED))


def test_without_a_compiler_the_job_does_not_start(tmp_path: Path) -> None:
    code = "from tests.unit.test_learner import job; from pipeline.learner import Learner; Learner(job(compile=True))"
    env = os.environ | {"CXX": str(tmp_path / "none"), "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache")}
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, env=env, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    last = done.stderr.strip().splitlines()[-1]
    assert "ConfigError: learner.compile = true" in last
    assert "it needs a C++ compiler (g++, or the one that CXX names)" in last
