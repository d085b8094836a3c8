"""The learner: scores blocks and takes optimizer steps. All of it is part of S."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch
from torch import Tensor

from consumers.batch import Batch
from consumers.record import Float32s
from pipeline.config import JobConfig
from pipeline.cuda import Graphed
from pipeline.device import choose_device, generators, keep_freed_memory, set_generators
from pipeline.executor import Eager, Executor, Outcome, Training
from pipeline.identity import torch_threads
from pipeline.task import Scorer, build_task, score_width


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
    """A module, its optimizer and its random state. How a device runs them is its executor's business."""

    def __init__(self, job: JobConfig) -> None:
        self.device = choose_device(job.learner.device)
        torch.set_num_threads(torch_threads(job))
        keep_freed_memory()
        torch.manual_seed(job.job.seed)
        self.task = build_task(job)
        self.module = self.task.module().to(self.device)
        self.optimizer = self.task.optimizer(self.module)
        self.scorer = Scorer(self.module, self.task, job.learner.precision)
        self.frozen: Scorer | None = None
        self.score_width = score_width(self.task, job.learner)
        self.batch_size = job.learner.batch_size
        training = Training(self.module, self.task, self.optimizer, job.learner)
        if job.learner.compile:
            training.compile(self.batch_size, job.features.columns, self.device)
        run_by = Graphed if self.device.type == "cuda" and job.learner.cuda_graphs else Eager
        self._executor: Executor = run_by(training, self.batch_size, job.features.columns, self.device)

    def score(self, features_NC: Float32s) -> Float32s:
        """Scores [N, S] with the weights of this moment."""
        return self._executor.score(self.scorer, features_NC, self.score_width)

    def step(self, batch: Batch) -> StepReport:
        """Learns from one batch, unless its loss or its gradient norm is not finite."""
        frozen_scores_BS = self.frozen_scores(batch)
        return StepReport(self._executor.step(batch), frozen_scores_BS)

    def frozen_scores(self, batch: Batch) -> Float32s | None:
        """What the frozen copy says of a batch; None before there is one."""
        return self._executor.score(self.frozen, batch.features_BC, self.score_width) if self.frozen else None

    def freeze(self) -> None:
        """Takes the frozen copy that later quality is compared with."""
        self.frozen = copy.deepcopy(self.scorer)

    def weights(self) -> dict[str, np.ndarray]:
        """The module's parameters and buffers: what a version publishes and what `weights_sha256` is taken of."""
        return _arrays("", self.module.state_dict())

    def state(self) -> dict[str, np.ndarray]:
        """Everything that `restore` needs, as arrays."""
        self._executor.settle()
        arrays = _arrays("module.", self.module.state_dict())
        for index, slots in self.optimizer.state_dict()["state"].items():
            tensors = {name: torch.as_tensor(value) for name, value in slots.items()}
            arrays |= _arrays(f"optimizer.{index}.", tensors)
        if self.frozen is not None:
            arrays |= _arrays("frozen.", self.frozen.module.state_dict())
        return arrays | _arrays("random.", generators(self.device))

    def document(self) -> dict[str, Any]:
        """The optimizer's settings (JSON)."""
        groups = self.optimizer.state_dict()["param_groups"]
        return {"param_groups": [_plain(group) for group in groups]}

    def restore(self, arrays: dict[str, np.ndarray], document: dict[str, Any]) -> None:
        """Takes the state from a snapshot."""
        self._executor.forget()
        self.module.load_state_dict(_tensors("module.", arrays))
        slots: dict[int, dict[str, Tensor]] = {}
        for name, tensor in _tensors("optimizer.", arrays).items():
            index, _, slot = name.partition(".")
            slots.setdefault(int(index), {})[slot] = tensor
        groups = [
            {**default, **saved}
            for default, saved in zip(
                self.optimizer.state_dict()["param_groups"], document["param_groups"], strict=True
            )
        ]
        self.optimizer.load_state_dict({"state": slots, "param_groups": groups})
        frozen = _tensors("frozen.", arrays)
        if frozen:
            self.freeze()
            assert self.frozen is not None
            self.frozen.module.load_state_dict(frozen)
        set_generators(_tensors("random.", arrays), self.device)


def _arrays(prefix: str, tensors: dict[str, Tensor]) -> dict[str, np.ndarray]:
    return {prefix + name: tensor.detach().cpu().numpy() for name, tensor in tensors.items()}


def _tensors(prefix: str, arrays: dict[str, np.ndarray]) -> dict[str, Tensor]:
    return {
        name.removeprefix(prefix): torch.from_numpy(array.copy())
        for name, array in arrays.items()
        if name.startswith(prefix)
    }


def _plain(group: dict[str, Any]) -> dict[str, Any]:
    """The settings of a parameter group that JSON can hold."""
    return {
        name: value
        for name, value in group.items()
        if value is None or isinstance(value, bool | int | float | str | list)
    }
