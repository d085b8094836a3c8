"""Gradient descent: a module, a task's loss and its optimizer, one step a batch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from consumers.batch import Batch
from consumers.record import Float32s
from pipeline.config import JobConfig
from pipeline.cuda import Graphed
from pipeline.executor import Eager, Executor, Outcome, Training
from pipeline.method import arrays_of, tensors_of
from pipeline.task import Scorer, Task


class Descent:
    """A `Method`. How a device runs it is its executor's business."""

    def __init__(self, module: nn.Module, task: Task, job: JobConfig, device: torch.device) -> None:
        self.optimizer = task.optimizer(module)
        rows, columns = job.learner.batch_size, job.features.columns
        training = Training(module, task, self.optimizer, job.learner)
        if job.learner.compile:
            training.compile(rows, columns, device)
        run_by = Graphed if device.type == "cuda" and job.learner.cuda_graphs else Eager
        self.executor: Executor = run_by(training, rows, columns, device)

    def score(self, scorer: Scorer, features_NC: Float32s, width: int) -> Float32s:
        return self.executor.score(scorer, features_NC, width)

    def step(self, batch: Batch) -> Outcome:
        return self.executor.step(batch)

    def state(self) -> dict[str, np.ndarray]:
        self.executor.settle()
        arrays: dict[str, np.ndarray] = {}
        for index, slots in self.optimizer.state_dict()["state"].items():
            tensors = {name: torch.as_tensor(value) for name, value in slots.items()}
            arrays |= arrays_of(f"optimizer.{index}.", tensors)
        return arrays

    def document(self) -> dict[str, Any]:
        groups = self.optimizer.state_dict()["param_groups"]
        return {"param_groups": [_plain(group) for group in groups]}

    def restore(self, arrays: Mapping[str, np.ndarray], document: Mapping[str, Any]) -> None:
        self.executor.forget()
        slots: dict[int, dict[str, Tensor]] = {}
        for name, tensor in tensors_of("optimizer.", arrays).items():
            index, _, slot = name.partition(".")
            slots.setdefault(int(index), {})[slot] = tensor
        groups = [
            {**default, **saved}
            for default, saved in zip(
                self.optimizer.state_dict()["param_groups"], document["param_groups"], strict=True
            )
        ]
        self.optimizer.load_state_dict({"state": slots, "param_groups": groups})


def _plain(group: dict[str, Any]) -> dict[str, Any]:
    """The settings of a parameter group that JSON can hold."""
    return {
        name: value
        for name, value in group.items()
        if value is None or isinstance(value, bool | int | float | str | list)
    }
