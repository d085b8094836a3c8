"""A learner without torch, for tests that start hundreds of processes or commit thousands of snapshots.

It has the interface of `pipeline.learner.Learner` and one of each thing that a snapshot must not forget: weights,
momentum, random numbers, a frozen copy, and a count of how often each id was learned.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np

from consumers.batch import Batch
from consumers.record import Float32s
from pipeline.config import JobConfig

IDS_MAX = 4096


@dataclass(frozen=True, slots=True)
class StepReport:
    """As `pipeline.learner.StepReport`."""

    loss: float
    refused: bool
    frozen_scores_BS: Float32s | None


class TinyLearner:
    """A linear model of C + 1 weights. The first column holds ids below `ids`; padding has id 0.

    It computes column by column and with nothing but sums, products and quotients: so a row's score has the same
    bits in any company.
    """

    def __init__(self, job: JobConfig, ids: int = IDS_MAX, *, pretrained: None = None) -> None:
        self.task = SimpleNamespace(kind="binary")
        self.score_width = 1
        self.batch_size = job.learner.batch_size
        self.frozen: Float32s | None = None
        self._rate = np.float32(job.learner.learning_rate)
        self._weight_C1 = np.zeros(job.features.columns + 1, np.float32)
        self._momentum_C1 = np.zeros_like(self._weight_C1)
        self._learned_I = np.zeros(ids, np.int64)
        self._random = np.random.Generator(np.random.PCG64(job.job.seed))

    def score(self, features_NC: Float32s) -> Float32s:
        """Scores [N, 1] in (0, 1)."""
        return _scores(self._weight_C1, features_NC)[:, None]

    def step(self, batch: Batch) -> StepReport:
        """Learns from one batch, unless its loss is not finite."""
        frozen = self.frozen_scores(batch)
        error_B = (_scores(self._weight_C1, batch.features_BC) - batch.labels_B) * batch.weights_B
        gradient_C1 = np.array(
            [*(np.sum(error_B * column_B) for column_B in _columns(batch.features_BC)), np.sum(error_B)], np.float32
        )
        loss = float(np.square(error_B).sum() / max(batch.weights_B.sum(), np.float32(1e-6)))
        if not np.isfinite(loss) or not np.isfinite(gradient_C1).all():
            return StepReport(loss, True, frozen)
        noise_C1 = self._random.standard_normal(len(gradient_C1), np.float32)
        self._momentum_C1 = np.float32(0.5) * self._momentum_C1 + gradient_C1 / np.float32(self.batch_size)
        self._weight_C1 = self._weight_C1 - self._rate * (self._momentum_C1 + np.float32(0.01) * noise_C1)
        np.add.at(self._learned_I, batch.features_BC[: batch.rows, 0].astype(np.int64), 1)
        return StepReport(loss, False, frozen)

    def frozen_scores(self, batch: Batch) -> Float32s | None:
        """Scores [B, 1] of the frozen copy."""
        return None if self.frozen is None else _scores(self.frozen, batch.features_BC)[:, None]

    def rewarm(self) -> None:
        """Its steps are always the same."""

    def freeze(self) -> None:
        """Takes the frozen copy."""
        self.frozen = self._weight_C1.copy()

    def weights(self) -> dict[str, np.ndarray]:
        """What a version publishes; `learned` says how often each id was learned."""
        return {"weight": self._weight_C1, "learned": self._learned_I}

    def state(self) -> dict[str, np.ndarray]:
        """Everything that `restore` needs beside `document`."""
        arrays = {f"module.{name}": array for name, array in self.weights().items()}
        arrays["optimizer.momentum"] = self._momentum_C1
        return arrays if self.frozen is None else arrays | {"frozen.weight": self.frozen}

    def document(self) -> dict[str, Any]:
        """The random generator (JSON)."""
        return {"random": self._random.bit_generator.state}

    def restore(self, arrays: dict[str, np.ndarray], document: dict[str, Any]) -> None:
        """Takes the state from a snapshot."""
        self._weight_C1, self._learned_I = arrays["module.weight"].copy(), arrays["module.learned"].copy()
        self._momentum_C1 = arrays["optimizer.momentum"].copy()
        self.frozen = arrays["frozen.weight"].copy() if "frozen.weight" in arrays else None
        self._random.bit_generator.state = document["random"]


def _columns(features_NC: Float32s) -> list[Float32s]:
    """Columns scaled into reach of a small learning rate; null is 0."""
    known_NC = np.where(np.isnan(features_NC), np.float32(0), features_NC)
    return [column_N / (np.float32(1) + np.abs(column_N)) for column_N in known_NC.T]


def _scores(weight_C1: Float32s, features_NC: Float32s) -> Float32s:
    sum_N = np.full(len(features_NC), weight_C1[-1], np.float32)
    for weight, column_N in zip(weight_C1, _columns(features_NC), strict=False):
        sum_N += weight * column_N
    return np.float32(0.5) + np.float32(0.5) * sum_N / (np.float32(1) + np.abs(sum_N))
