"""The built-in tasks as the bank learns them: its mixture is the score already."""

from __future__ import annotations

from torch import Tensor, nn

from consumers.config import FeaturesConfig
from pipeline.bank.module import Bank
from pipeline.config import LearnerConfig


class BankTask:
    """A `Scoring`."""

    def __init__(self, features: FeaturesConfig, learner: LearnerConfig) -> None:
        self.kind = learner.task
        self._features, self._learner = features, learner

    def module(self) -> nn.Module:
        return Bank(self._features, self._learner, self.kind)

    def score(self, outputs: Tensor) -> Tensor:
        return outputs if self.kind == "multiclass" else outputs[:, -1]
