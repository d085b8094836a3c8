"""Gradient descent: a module, a task's loss and its optimizer, one step a batch."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from consumers.batch import Batch
from consumers.record import Float32s
from pipeline.config import JobConfig
from pipeline.cuda import Graphed
from pipeline.executor import Eager, Executor, Outcome, Training
from pipeline.method import Part
from pipeline.optimizer import build_optimizer, optimizer_arrays, optimizer_document, restore_optimizer
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
        with blamed_on(config.task, "copying the module"):
            trained = copy.deepcopy(module) if config.average else module
        freeze(trained, config.freeze)
        self._average = Average(module.eval(), trained, config.average) if config.average else None
        if self._average:
            self._parts["average"] = self._average
        anchor = build_anchor(config.anchor, trained, module, task, config.precision) if config.anchor else None
        if anchor:
            self._parts["anchor"] = anchor
        replay = Replay(config.replay, columns, job.job.seed) if config.replay else None
        if replay:
            self._parts["replay"] = replay
        self.optimizer = build_optimizer(task, trained, config.task)
        training = Training(trained, task, self.optimizer, config, anchor)
        if not config.is_built_in:
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

        An average forgets older weights sooner. Plain SGD knows nothing of earlier gradients, so nothing changes.
        Resetting the moments when the objective changes: Asadi et al., "Resetting the Optimizer in Deep RL" (2023).
        """
        self.executor.forget()
        self.optimizer.state.clear()
        if self._average:
            self._average.begin_anew()

    def state(self) -> dict[str, np.ndarray]:
        self.executor.settle()
        arrays = optimizer_arrays(self.optimizer)
        for name, part in self._parts.items():
            arrays |= {f"{name}.{key}": array for key, array in part.state().items()}
        return arrays

    def document(self) -> dict[str, Any]:
        parts = {name: part.document() for name, part in self._parts.items()}
        return optimizer_document(self.optimizer) | parts

    def restore(self, arrays: Mapping[str, np.ndarray], document: Mapping[str, Any]) -> None:
        self.executor.forget()
        restore_optimizer(self.optimizer, arrays, document)
        for name, part in self._parts.items():
            under = f"{name}."
            part.restore({k.removeprefix(under): a for k, a in arrays.items() if k.startswith(under)}, document[name])
