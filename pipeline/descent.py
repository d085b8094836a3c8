"""Gradient descent: a module, a task's loss and its optimizer, one step a batch."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from consumers.batch import Batch
from consumers.errors import ConfigError
from consumers.record import Float32s
from pipeline.config import JobConfig
from pipeline.cuda import Graphed
from pipeline.executor import Eager, Executor, Outcome, Training
from pipeline.method import Part, arrays_of, tensors_of
from pipeline.options.anchor import build_anchor
from pipeline.options.average import Average
from pipeline.options.freeze import freeze
from pipeline.options.passes import Passes, step_rows
from pipeline.options.replay import Replay
from pipeline.rehearsal import rehearse
from pipeline.task import Scorer, Task, blamed_on


class Descent:
    """A `Method`. How a device runs it is its executor's business; each option is a part or an argument.

    `module` is scored and published. It also learns, unless it is an average of one that does.
    """

    def __init__(self, module: nn.Module, task: Task, job: JobConfig, device: torch.device) -> None:
        config, rows, columns = job.learner, job.learner.batch_size, job.features.columns
        self._parts: dict[str, Part] = {}  # in the order in which they are told of a batch
        trained = copy.deepcopy(module) if config.average else module
        freeze(trained, config.freeze)
        if config.average:
            self._parts["average"] = Average(module.eval(), trained, config.average)
        anchor = build_anchor(config.anchor, trained, module, task, config.precision) if config.anchor else None
        if anchor:
            self._parts["anchor"] = anchor
        replay = Replay(config.replay, columns, job.job.seed) if config.replay else None
        if replay:
            self._parts["replay"] = replay
        self.optimizer = _optimizer(task, trained, job.learner.task)
        training = Training(trained, task, self.optimizer, config, anchor)
        if not job.learner.is_built_in:
            rehearse(training, Scorer(module, task, config.precision), task, job, device)
        if config.compile:
            training.compile(step_rows(rows, replay), columns, device)
        self.executor: Executor
        if replay or config.epochs > 1:
            self.executor = Passes(training, (rows, columns), device, epochs=config.epochs, replay=replay)
        else:
            run_by = Graphed if device.type == "cuda" and config.cuda_graphs else Eager
            self.executor = run_by(training, rows, columns, device)

    def score(self, scorer: Scorer, features_NC: Float32s, width: int) -> Float32s:
        return self.executor.score(scorer, features_NC, width)

    def step(self, batch: Batch) -> Outcome:
        outcome = self.executor.step(batch)
        if self._parts and not outcome.refused:
            for part in self._parts.values():
                part.learned(batch)
        return outcome

    def rewarm(self) -> None:
        """Forgets what the optimizer knows of earlier gradients: Adam's steps begin at their full size again.

        Resetting the moments when the objective changes: Asadi et al., "Resetting the Optimizer in Deep RL" (2023).
        """
        self.executor.forget()
        self.optimizer.state.clear()

    def state(self) -> dict[str, np.ndarray]:
        self.executor.settle()
        arrays: dict[str, np.ndarray] = {}
        for index, slots in self.optimizer.state_dict()["state"].items():
            plain = _plain(slots)
            tensors = {name: torch.as_tensor(value) for name, value in slots.items() if name not in plain}
            arrays |= arrays_of(f"optimizer.{index}.", tensors)
        for name, part in self._parts.items():
            arrays |= {f"{name}.{key}": array for key, array in part.state().items()}
        return arrays

    def document(self) -> dict[str, Any]:
        saved = self.optimizer.state_dict()
        parts = {name: part.document() for name, part in self._parts.items()}
        numbers = {str(index): _plain(slots) for index, slots in saved["state"].items()}
        return {"param_groups": [_plain(group) for group in saved["param_groups"]], "slots": numbers, **parts}

    def restore(self, arrays: Mapping[str, np.ndarray], document: Mapping[str, Any]) -> None:
        self.executor.forget()
        slots: dict[int, dict[str, Any]] = {int(i): dict(plain) for i, plain in document["slots"].items()}
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
        for name, part in self._parts.items():
            under = f"{name}."
            part.restore({k.removeprefix(under): a for k, a in arrays.items() if k.startswith(under)}, document[name])


def _optimizer(task: Task, trained: nn.Module, name: str) -> torch.optim.Optimizer:
    """The task's own. Raises ConfigError if a step of it would have to evaluate the loss itself, as L-BFGS does."""
    with blamed_on(name, "optimizer()"):
        optimizer = task.optimizer(trained)
    is_one = isinstance(optimizer, torch.optim.Optimizer)
    if not is_one or any(p.default is p.empty for p in inspect.signature(optimizer.step).parameters.values()):
        raise ConfigError(
            f"learner.task = {name!r}: its optimizer() gives {type(optimizer).__name__}, but a step has its gradients "
            "already: give a torch.optim.Optimizer whose step() needs no closure, such as SGD or Adam"
        )
    return optimizer


def _plain(group: dict[str, Any]) -> dict[str, Any]:
    """What of a parameter group, or of a parameter's state, JSON can hold."""
    return {name: value for name, value in group.items() if _is_plain(value)}


def _is_plain(value: object) -> bool:
    if isinstance(value, list):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, bool | int | float | str)
