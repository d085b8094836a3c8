"""Every example learns what it says, through the pipeline in memory, and its task passes the checks."""

from __future__ import annotations

from dataclasses import replace
from importlib import import_module
from typing import Any

import numpy as np
import pytest

from examples.stream import Example, in_memory
from pipeline.checks import TaskChecks

WANTED = {
    "linear": [{"y at x = 5": (9.95, 10.05)}],
    "iris": [{"accuracy on new flowers": (0.9, 1)}],
    "recommender": [{"accuracy on pairs that never came": (0.8, 1)}],
    "images": [{"accuracy on 297 images that never came": (0.9, 1)}],
    "driving": [{"R² on new drives": (0.85, 1)}],
}


def example(name: str) -> Example:
    found: Example = import_module(f"examples.{name}").EXAMPLE
    return found


@pytest.mark.parametrize("name", WANTED)
def test_an_example_learns_what_it_says(name: str) -> None:
    for values, bounds in zip(in_memory(example(name)), WANTED[name], strict=True):
        assert values.keys() == bounds.keys()
        for what, (low, high) in bounds.items():
            assert low <= values[what] <= high, f"{what} = {values[what]}"


def test_new_digits_are_learned_and_the_old_ones_not_forgotten() -> None:
    base, new, unseen = (
        "accuracy on the 200 base images",
        "accuracy on the 20 new images",
        "accuracy on 500 images that never came",
    )
    before, after = in_memory(example("digits"))
    assert before[base] >= 0.97
    assert before[new] == 0
    assert after[base] >= before[base] - 0.02
    assert after[new] >= 0.9
    assert after[unseen] > before[unseen]
    digits = example("digits")
    _, forgotten = in_memory(replace(digits, learner={**digits.learner, "replay": None}))
    assert forgotten[base] < after[base] - 0.1, "without replay they are"


class ExampleChecks(TaskChecks):
    """The checks for the task of an example."""

    example: str

    @property
    def task(self) -> str:
        return str(example(self.example).learner["task"])

    @property
    def features(self) -> Any:
        return example(self.example).features

    @property
    def learner(self) -> Any:
        return {k: v for k, v in example(self.example).learner.items() if k not in ("task", "batch_size")}


class TestLinear(ExampleChecks):
    example = "linear"


class TestIris(ExampleChecks):
    example = "iris"


class TestRecommender(ExampleChecks):
    example = "recommender"

    def rows(self, random: np.random.Generator, job: Any, count: int) -> Any:
        features_NC = random.integers(1, 20, (count, 2)).astype(np.float32)
        return features_NC, (features_NC.sum(axis=1) > 20).astype(np.float32)


class TestImages(ExampleChecks):
    example = "images"

    def rows(self, random: np.random.Generator, job: Any, count: int) -> Any:
        features_NC = random.uniform(0, 4, (count, 64)).astype(np.float32)
        labels_N = random.integers(0, 10, count)
        for row, label in enumerate(labels_N):
            features_NC[row].reshape(8, 8)[label // 3, 2 * (label % 3)] = 16  # a bright point
        return features_NC, labels_N.astype(np.float32)


class TestDriving(ExampleChecks):
    example = "driving"
