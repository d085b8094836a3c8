"""The learner: scores blocks, and learns from batches by its method. All of it is part of S."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from consumers.batch import Batch
from consumers.errors import ConfigError
from consumers.record import Float32s
from pipeline.bank.method import BankMethod
from pipeline.bank.module import Bank
from pipeline.config import JobConfig
from pipeline.descent import Descent
from pipeline.device import choose_device, generators, keep_freed_memory, set_generators
from pipeline.executor import Outcome
from pipeline.identity import torch_threads
from pipeline.method import Method, arrays_of, tensors_of
from pipeline.options.pretrained import put_weights
from pipeline.task import Scorer, Task, build_module, build_scoring, score_width

_REASON_MAX = 300  # characters


class StepReport:
    """What one step did. `refused`: the loss or the gradient was not finite, so nothing changed.

    Both are asked of the device when they are read, and no sooner.
    """

    __slots__ = ("_outcome", "frozen_scores_BS")

    def __init__(self, outcome: Outcome, frozen_scores_BS: Float32s | None) -> None:
        self._outcome = outcome
        self.frozen_scores_BS = frozen_scores_BS

    @property
    def loss(self) -> float:
        return self._outcome.loss

    @property
    def refused(self) -> bool:
        return self._outcome.refused


class Learner:
    """What is scored, its frozen copy and the random state; how it learns is its method's business."""

    def __init__(self, job: JobConfig, pretrained: Mapping[str, Tensor] | None = None) -> None:
        """Raises ConfigError if `pretrained`, the weights that a lineage begins with, does not fit."""
        self.device = torch.device("cpu") if job.learner.is_bank else choose_device(job.learner.device)
        torch.set_num_threads(torch_threads(job))
        keep_freed_memory()
        torch.manual_seed(job.job.seed)
        self._task_name = job.learner.task
        self.task = build_scoring(job)
        self.module = build_module(self.task, self._task_name)
        if pretrained is not None:
            put_weights(self.module, pretrained, job.learner.pretrained)
        self.module.to(self.device)
        self.scorer = Scorer(self.module, self.task, job.learner.precision)
        self.frozen: Scorer | None = None
        self.score_width = score_width(self.task, job.learner)
        self.batch_size = job.learner.batch_size
        self.method = self._method(job)

    def _method(self, job: JobConfig) -> Method:
        if isinstance(self.module, Bank):
            return BankMethod(self.module, job)
        return Descent(self.module, cast(Task, self.task), job, self.device)

    def score(self, features_NC: Float32s) -> Float32s:
        """Scores [N, S] with the weights of this moment."""
        return self.method.score(self.scorer, features_NC, self.score_width)

    def step(self, batch: Batch) -> StepReport:
        """Learns from one batch, unless its loss or its gradient norm is not finite."""
        frozen_scores_BS = self.frozen_scores(batch)
        return StepReport(self.method.step(batch), frozen_scores_BS)

    def frozen_scores(self, batch: Batch) -> Float32s | None:
        """What the frozen copy says of a batch; None before there is one."""
        return self.method.score(self.frozen, batch.features_BC, self.score_width) if self.frozen else None

    def rewarm(self) -> None:
        """The world has changed: learns faster for a while."""
        self.method.rewarm()

    def freeze(self) -> None:
        """Takes the frozen copy that later quality is compared with."""
        self.frozen = self.scorer.copy()

    def weights(self) -> dict[str, np.ndarray]:
        """The module's parameters and buffers: what a version publishes and what `weights_sha256` is taken of."""
        return arrays_of("", self.module.state_dict())

    def state(self) -> dict[str, np.ndarray]:
        """Everything that `restore` needs, as arrays."""
        arrays = self.method.state() | arrays_of("module.", self.module.state_dict())
        if self.frozen is not None:
            arrays |= arrays_of("frozen.", self.frozen.module.state_dict())
        return arrays | arrays_of("random.", generators(self.device))

    def document(self) -> dict[str, Any]:
        """The method's settings (JSON)."""
        return self.method.document()

    def restore(self, arrays: dict[str, np.ndarray], document: dict[str, Any]) -> None:
        """Takes the state from a snapshot. Raises ConfigError if the module is another one now."""
        try:
            self.method.restore(arrays, document)
            self.module.load_state_dict(tensors_of("module.", arrays))
        except (RuntimeError, ValueError, KeyError) as error:
            reason = " ".join(str(error).split())[:_REASON_MAX]
            raise ConfigError(
                f"the snapshot is not of the model that learner.task = {self._task_name!r} gives now ({reason}); bring "
                "its code back, or begin a new lineage with another job.name and job.state_dir"
            ) from error
        frozen = tensors_of("frozen.", arrays)
        if frozen:
            self.freeze()
            assert self.frozen is not None
            self.frozen.module.load_state_dict(frozen)
        set_generators(tensors_of("random.", arrays), self.device)
