"""A score and a step of a task of one's own before the first record: what cannot work is said at once, in one line."""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from consumers.errors import ConfigError
from pipeline.config import JobConfig
from pipeline.device import generators, set_generators
from pipeline.executor import Training
from pipeline.method import arrays_of
from pipeline.optimizer import optimizer_arrays
from pipeline.task import Scorer, Task, blamed_on, outputs_of, score_width


def rehearse(training: Training, scorer: Scorer, task: Task, job: JobConfig, device: torch.device) -> None:
    """Scores one block of zeros and learns it, and takes back all that this changes.

    Raises ConfigError if something fails, has the wrong shape, or leaves nothing to learn from.
    """
    modules = {training.module, scorer.module}  # one, unless an average is scored
    tensors = [tensor for module in modules for tensor in (*module.parameters(), *module.buffers())]
    with blamed_on(job.learner.task, "copying the module"):
        kept = [tensor.detach().clone() for tensor in tensors]
        scorer.copy()  # as the frozen copy is made
    states, settings = generators(device), copy.deepcopy(training.optimizer.state_dict())
    try:
        _score(scorer, task, job, device)
        _learn(training, task, job, device)
    finally:
        with torch.no_grad():
            for tensor, before in zip(tensors, kept, strict=True):
                tensor.copy_(before)
        training.optimizer.load_state_dict(settings)
        training.end()
        set_generators(states, device)


def _score(scorer: Scorer, task: Task, job: JobConfig, device: torch.device) -> None:
    name, rows, width = job.learner.task, job.learner.batch_size, score_width(task, job.learner)
    with blamed_on(name, "keeping the module in a snapshot"):
        arrays_of("", scorer.module.state_dict())
    with blamed_on(name, "score() of what module() answers"), torch.no_grad():
        scores = scorer(torch.zeros(rows, job.features.columns, device=device))
    shapes = [(rows, width)] if width > 1 else [(rows,), (rows, 1)]
    if not isinstance(scores, Tensor) or tuple(scores.shape) not in shapes or scores.dtype != torch.float32:
        wanted = " or ".join(str(list(shape)) for shape in shapes)
        raise ConfigError(
            f"learner.task = {name!r}: score() of {rows} rows gives {_shown(scores)}, not a tensor {wanted} of float32"
        )


def _learn(training: Training, task: Task, job: JobConfig, device: torch.device) -> None:
    name, rows, trained = job.learner.task, job.learner.batch_size, training.module
    zeros_BC, zeros_B = torch.zeros(rows, job.features.columns, device=device), torch.zeros(rows, device=device)
    trained.train()
    with blamed_on(name, "loss()"):
        loss = task.loss(outputs_of(trained, zeros_BC, job.learner.precision), zeros_B, zeros_B + 1)
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        raise ConfigError(f"learner.task = {name!r}: loss() gives {_shown(loss)}, not a tensor of one number")
    if not loss.requires_grad:
        raise ConfigError(f"learner.task = {name!r}: loss() depends on no parameter that learns")
    with blamed_on(name, "the gradient of loss()"):
        training.gradients(zeros_BC, zeros_B, zeros_B + 1)
    with blamed_on(name, "step() of its optimizer()"):
        training.optimizer.step()
    with blamed_on(name, "keeping the state of its optimizer() in a snapshot"):
        optimizer_arrays(training.optimizer)


def _shown(value: object) -> str:
    if not isinstance(value, Tensor):
        return f"{value!r:.60}"
    return f"a tensor {list(value.shape)}" + (f" of {value.dtype}" if value.dtype != torch.float32 else "")
