"""The built-in tasks as the bank learns them: its mixture is the score already."""

from __future__ import annotations

from torch import Tensor, nn

from pipeline.bank.module import Bank
from pipeline.config import JobConfig


class BankTask:
    """A `Scoring`."""

    def __init__(self, job: JobConfig) -> None:
        self.kind = job.learner.task
        self._job = job

    def module(self) -> nn.Module:
        return Bank(self._job)

    def score(self, outputs: Tensor) -> Tensor:
        return outputs if self.kind == "multiclass" else outputs[:, -1]
