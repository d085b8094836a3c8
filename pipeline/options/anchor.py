"""`learner.anchor`: what holds a module near what it was, against forgetting and against losing plasticity."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from consumers.batch import Batch
from pipeline.method import arrays_of, fill, numbered, tensors_of
from pipeline.options.config import AnchorConfig
from pipeline.task import Task, outputs_of, weighted_mean

_FISHER_DECAY = 0.95  # what matters for older stretches counts less with each new one
_SMALLEST = 1e-7  # a probability whose logarithm is taken


class Anchor:
    """A `Part` that adds a term to the loss, or its gradient to the gradients. By itself it does neither."""

    def loss(self, outputs: Tensor, features_BC: Tensor, weights_B: Tensor) -> Tensor | float:
        """A term to add to the task's loss of these outputs."""
        return 0.0

    def pull(self) -> None:
        """Adds to the gradients, which are those of the loss."""

    def learned(self, batch: Batch) -> None:
        pass

    def state(self) -> dict[str, np.ndarray]:
        return {}

    def document(self) -> dict[str, Any]:
        return {}

    def restore(self, arrays: Mapping[str, np.ndarray], document: Mapping[str, Any]) -> None:
        pass


class L2Init(Anchor):
    """weight |w - w0|², where w0 are the weights of the start: units that have died come back to where they can learn.

    Kumar, Marklund & Van Roy, "Maintaining Plasticity in Continual Learning via Regenerative Regularization" (2023).
    """

    def __init__(self, trained: nn.Module, weight: float) -> None:
        self._parameters = list(trained.parameters())
        self._start = [parameter.detach().clone() for parameter in self._parameters]
        self._weight = weight

    @torch.no_grad()
    def pull(self) -> None:
        for parameter, start in zip(self._parameters, self._start, strict=True):
            if parameter.grad is not None:
                parameter.grad.add_(parameter - start, alpha=2 * self._weight)

    def state(self) -> dict[str, np.ndarray]:
        return numbered("start.", self._start)

    def restore(self, arrays: Mapping[str, np.ndarray], document: Mapping[str, Any]) -> None:
        fill(self._start, "start.", arrays)


class Ewc(Anchor):
    """weight/2 sum F (w - w*)²: the weights that mattered stay, and the others are free.

    w* are the weights after the last `every` rows, F the mean square of the batches' gradients: F <- .95 F + that of
    the stretch. It is the diagonal of Fisher's information divided by about the rows of a batch. Kirkpatrick et al.,
    "Overcoming catastrophic forgetting in neural networks" (2017); online, as in Schwarz et al., "Progress & Compress"
    (2018).
    """

    def __init__(self, trained: nn.Module, weight: float, every: int) -> None:
        self._parameters = list(trained.parameters())
        self._weight, self._every = weight, every
        self._reference = [parameter.detach().clone() for parameter in self._parameters]
        self._fisher, self._squares, self._newest = (
            [torch.zeros_like(parameter) for parameter in self._reference] for _ in range(3)
        )
        self._rows = self._batches = 0  # of the stretch

    @torch.no_grad()
    def pull(self) -> None:
        each = zip(self._parameters, self._reference, self._fisher, self._newest, strict=True)
        for parameter, reference, fisher, newest in each:
            if parameter.grad is not None:
                torch.square(parameter.grad, out=newest)
                parameter.grad.addcmul_(fisher, parameter - reference, value=self._weight)
            else:  # a module may have parts that this batch did not use
                newest.zero_()

    @torch.no_grad()
    def learned(self, batch: Batch) -> None:
        for squares, newest in zip(self._squares, self._newest, strict=True):
            squares.add_(newest)
        self._rows, self._batches = self._rows + batch.rows, self._batches + 1
        if self._rows >= self._every:
            for fisher, squares in zip(self._fisher, self._squares, strict=True):
                fisher.mul_(_FISHER_DECAY).add_(squares, alpha=1 / self._batches)
                squares.zero_()
            for reference, parameter in zip(self._reference, self._parameters, strict=True):
                reference.copy_(parameter)
            self._rows = self._batches = 0

    def state(self) -> dict[str, np.ndarray]:
        arrays = numbered("reference.", self._reference)
        return arrays | numbered("fisher.", self._fisher) | numbered("squares.", self._squares)

    def document(self) -> dict[str, Any]:
        return {"rows": self._rows, "batches": self._batches}

    def restore(self, arrays: Mapping[str, np.ndarray], document: Mapping[str, Any]) -> None:
        fill(self._reference, "reference.", arrays)
        fill(self._fisher, "fisher.", arrays)
        fill(self._squares, "squares.", arrays)
        self._rows, self._batches = document["rows"], document["batches"]


class Distill(Anchor):
    """weight times the distance of the scores from those of an older copy: knowledge may move, answers may not.

    The copy is of what was scored: at the start (with `learner.pretrained` that version, such as a champion), or with
    `every` after so many rows, and anew after as many more. The distance is the cross-entropy of probabilities, or the
    squared error of values. Li & Hoiem, "Learning without Forgetting" (2016).
    """

    def __init__(self, scored: nn.Module, task: Task, precision: str, weight: float, every: int | None) -> None:
        self._scored, self._task, self._precision = scored, task, precision
        self._weight, self._every = weight, every
        self._copy = copy.deepcopy(scored).eval().requires_grad_(False)
        self._taken = every is None
        self._rows = 0  # since the copy was taken

    def loss(self, outputs: Tensor, features_BC: Tensor, weights_B: Tensor) -> Tensor | float:
        if not self._taken:
            return 0.0
        with torch.no_grad():
            then = self._task.score(outputs_of(self._copy, features_BC, self._precision))
        distance_B = _distance(self._task.kind, self._task.score(outputs), then).flatten()  # scores may be [B, 1]
        return self._weight * weighted_mean(distance_B, weights_B)

    def learned(self, batch: Batch) -> None:
        self._rows += batch.rows
        if self._every is not None and self._rows >= self._every:
            self._copy.load_state_dict(self._scored.state_dict())
            self._taken, self._rows = True, 0

    def state(self) -> dict[str, np.ndarray]:
        return arrays_of("copy.", self._copy.state_dict())

    def document(self) -> dict[str, Any]:
        return {"rows": self._rows, "taken": self._taken}

    def restore(self, arrays: Mapping[str, np.ndarray], document: Mapping[str, Any]) -> None:
        self._copy.load_state_dict(tensors_of("copy.", arrays))
        self._rows, self._taken = document["rows"], document["taken"]


def _distance(kind: str, now: Tensor, then: Tensor) -> Tensor:
    """[B], how far scores [B] or [B, K] of one kind are from older ones."""
    if kind == "regression":
        return (now - then).square()
    if kind == "binary":
        return functional.binary_cross_entropy(now.clamp(_SMALLEST, 1 - _SMALLEST), then, reduction="none")
    return -(then * now.clamp_min(_SMALLEST).log()).sum(dim=1)


def build_anchor(config: AnchorConfig, trained: nn.Module, scored: nn.Module, task: Task, precision: str) -> Anchor:
    """The configured anchor, at the weights that the modules have now."""
    if config.kind == "l2_init":
        return L2Init(trained, config.weight)
    if config.kind == "ewc":
        assert config.every is not None  # the config's own check
        return Ewc(trained, config.weight, config.every)
    return Distill(scored, task, precision, config.weight, config.every)
