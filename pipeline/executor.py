"""What a step computes, and how it is run operation by operation: on a CPU, or where CUDA graphs cannot be used."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from consumers.batch import Batch
from consumers.errors import ConfigError
from consumers.record import Float32s
from pipeline.config import LearnerConfig
from pipeline.device import flushed_denormals, generators, set_generators
from pipeline.normalise import Standardiser
from pipeline.task import Scorer, Task, outputs_of

if TYPE_CHECKING:
    from pipeline.options.anchor import Anchor


class Outcome(Protocol):
    """What became of a step. `refused`: the loss or the gradient was not finite, so nothing changed.

    Reading it waits for the device if that is not done.
    """

    @property
    def loss(self) -> float: ...
    @property
    def refused(self) -> bool: ...


class Executor(Protocol):
    """How a device scores and steps. Every forward runs on a block of exactly [batch_size, C], padded with zeros."""

    def score(self, scorer: Scorer, features_NC: Float32s, width: int) -> Float32s:
        """Scores [N, width] with the weights of this moment."""
        ...

    def step(self, batch: Batch) -> Outcome:
        """Learns from one batch, unless its loss or its gradient norm is not finite."""
        ...

    def settle(self) -> None:
        """Waits until the last step is done, and undone if it was refused."""
        ...

    def forget(self) -> None:
        """The optimizer's state is about to be replaced: what was captured with the old one holds no more."""
        ...


class Training:
    """A module in training: the arithmetic of one step, the same on every device."""

    def __init__(
        self,
        module: nn.Module,
        task: Task,
        optimizer: torch.optim.Optimizer,
        config: LearnerConfig,
        anchor: Anchor | None = None,
    ) -> None:
        self.module = module
        self.optimizer = optimizer
        self._task = task
        self._precision = config.precision
        self._norm_max = config.gradient_norm_max
        self._refuses_beyond = config.on_exceed == "refuse"
        self._anchor = anchor
        self._standardisers = [m for m in module.modules() if isinstance(m, Standardiser)]
        self._parameters = list(module.parameters())
        self._buffers = list(module.buffers())
        self._buffers_before = self.copy_of_buffers()
        self._loss = self._plain_loss
        module.eval()

    def gradients(
        self, features_BC: Tensor, labels_B: Tensor, weights_B: Tensor, new_B: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Leaves gradients in the parameters. Returns the loss and the norm of all gradients, without waiting.

        `new_B` is above 0 for the rows that standardisers have not seen yet; None: those of weight above 0.
        """
        new_B = weights_B if new_B is None else new_B
        for before, buffer in zip(self._buffers_before, self._buffers, strict=True):
            before.copy_(buffer)
        self.module.train()
        for standardiser in self._standardisers:
            standardiser.update(features_BC[:, : len(standardiser.mean_F)], new_B)
        loss = self._loss(features_BC, labels_B, weights_B)
        loss.backward()  # type: ignore[no-untyped-call]
        if self._anchor is not None:
            self._anchor.pull()
        gradients = [p.grad for p in self._parameters if p.grad is not None]
        norm = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(gradient) for gradient in gradients]))
        if self._norm_max is not None:
            norm = self._limit(gradients, norm, self._norm_max)
        return loss.detach(), norm

    def _limit(self, gradients: list[Tensor], norm: Tensor, norm_max: float) -> Tensor:
        """Scales gradients down to a norm of `norm_max`, or calls a greater norm infinite, which refuses the step.

        Pascanu, Mikolov & Bengio, "On the difficulty of training recurrent neural networks" (2013).
        """
        if self._refuses_beyond:
            return torch.where(norm > norm_max, torch.inf, norm)
        scale = (norm_max / norm).clamp_max(1)
        for gradient in gradients:
            gradient.mul_(scale)
        return norm

    @torch.no_grad()
    def judge(self, features_BC: Tensor, labels_B: Tensor, weights_B: Tensor) -> Tensor:
        """The task's loss of rows as they are scored, without learning anything."""
        return self._task.loss(outputs_of(self.module, features_BC, self._precision), labels_B, weights_B)

    def step_unseen(self, batch: tuple[Tensor, Tensor, Tensor], refuse: Tensor) -> Tensor:
        """A whole step in which the host decides nothing: the device drops what is not finite.

        The optimizer has to be one that `skips_by_itself`. `batch` is as for `gradients`; `refuse` [] is 1 to refuse
        the step whatever comes of it, else 0. Returns [loss, 1 if refused else 0].
        """
        loss, norm = self.gradients(*batch)
        refused = torch.maximum((~(loss + norm).isfinite()).float(), refuse)
        optimizer: Any = self.optimizer
        optimizer.found_inf = refused  # as torch.amp.GradScaler tells it; the fused kernels then change nothing
        try:
            optimizer.step()
        finally:
            del optimizer.found_inf
        for before, buffer in zip(self._buffers_before, self._buffers, strict=True):
            buffer.copy_(torch.where(refused > 0, before, buffer))
        self.end()
        return torch.stack([loss.float(), refused])

    def put_back(self) -> None:
        """Gives the buffers the values that they had before `gradients`."""
        self.set_buffers(self._buffers_before)

    def copy_of_buffers(self) -> list[Tensor]:
        """What `set_buffers` takes."""
        return [buffer.clone() for buffer in self._buffers]

    def set_buffers(self, values: list[Tensor]) -> None:
        """Gives the buffers other values."""
        for value, buffer in zip(values, self._buffers, strict=True):
            buffer.copy_(value)

    def end(self) -> None:
        """Drops the gradients; the module scores again."""
        for parameter in self._parameters:
            parameter.grad = None
        self.module.eval()

    def compile(self, rows: int, columns: int, device: torch.device) -> None:
        """Compiles forward and loss for blocks [rows, columns], now and not in the first step. Raises ConfigError.

        Only the step: published is what torch.export makes of the module, and that has other bits than compiled code.
        The code is the same in every run, as on the CPU nothing is chosen by its timing, and on CUDA nothing is while
        torch uses deterministic algorithms.
        """
        os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")  # no pool of threads or processes stays behind
        self._loss = torch.compile(self._plain_loss, fullgraph=True, dynamic=False)
        states = generators(device)
        zeros_BC, zeros_B = torch.zeros(rows, columns, device=device), torch.zeros(rows, device=device)
        try:
            self.gradients(zeros_BC, zeros_B, zeros_B)
        except Exception as error:  # of any kind: torch's own, and those of the module
            reason = str(error).strip().split("\n")[0]
            raise ConfigError(
                f"learner.compile = true, but torch.compile fails ({type(error).__name__}: {reason}); it needs a C++ "
                "compiler (g++, or the one that CXX names) and a module without graph breaks. Or set it to false"
            ) from error
        self.put_back()
        set_generators(states, device)
        self.end()

    def _plain_loss(self, features_BC: Tensor, labels_B: Tensor, weights_B: Tensor) -> Tensor:
        outputs = outputs_of(self.module, features_BC, self._precision)
        loss = self._task.loss(outputs, labels_B, weights_B)
        return loss if self._anchor is None else loss + self._anchor.loss(outputs, features_BC, weights_B)


def skips_by_itself(optimizer: torch.optim.Optimizer) -> bool:
    """Whether its kernels heed `found_inf`, and its `step` is torch's own: the fused ones are so."""
    ours = type(optimizer).__module__.startswith("torch.optim.")
    return ours and getattr(optimizer, "_step_supports_amp_scaling", False)


@dataclass(frozen=True, slots=True)
class Done:
    """An `Outcome` that is known."""

    loss: float
    refused: bool


def fill_block(block_BC: Tensor, features_NC: Float32s) -> None:
    """Makes rows the block that every forward uses, the rest zeros: then memory alignment cannot change a bit."""
    rows, values_BC = len(features_NC), block_BC.numpy()
    values_BC[:rows] = features_NC
    values_BC[rows:] = 0


class Eager:
    """An `Executor` that runs operation by operation and waits for each result."""

    def __init__(self, training: Training, rows: int, columns: int, device: torch.device) -> None:
        self._training = training
        self._device = device
        self._block_BC = torch.zeros(rows, columns)

    @torch.no_grad()
    def score(self, scorer: Scorer, features_NC: Float32s, width: int) -> Float32s:
        rows, size = len(features_NC), len(self._block_BC)
        scores_NS = np.empty((rows, width), np.float32)
        for start in range(0, rows, size):
            stop = min(start + size, rows)
            scores_B = scorer(self._block(features_NC[start:stop]))
            scores_NS[start:stop] = scores_B.reshape(size, -1)[: stop - start].cpu().numpy()
        return scores_NS

    def step(self, batch: Batch, new_B: Float32s | None = None) -> Outcome:
        """Learns from one batch; `new_B` is as in `Training.gradients`."""
        with flushed_denormals():
            return self._step(batch, new_B)

    def _step(self, batch: Batch, new_B: Float32s | None) -> Outcome:
        training = self._training
        features_BC = self._block(batch.features_BC)
        labels_B, weights_B = self._tensor(batch.labels_B), self._tensor(batch.weights_B)
        states = generators(self._device)
        new = None if new_B is None else self._tensor(new_B)
        loss, norm = training.gradients(features_BC, labels_B, weights_B, new)
        value, finite = loss.item(), math.isfinite((loss + norm).item())
        if finite:
            training.optimizer.step()
        else:
            training.put_back()
            set_generators(states, self._device)
        training.end()
        return Done(value, not finite)

    def judge(self, batch: Batch, weights_B: Float32s) -> float:
        """See `Training.judge`; with other weights than the batch's own."""
        features_BC = self._block(batch.features_BC)
        return self._training.judge(features_BC, self._tensor(batch.labels_B), self._tensor(weights_B)).item()

    def settle(self) -> None:
        pass

    def forget(self) -> None:
        pass

    def _tensor(self, column_B: Float32s) -> Tensor:
        return torch.from_numpy(column_B).to(self._device)

    def _block(self, features_NC: Float32s) -> Tensor:
        fill_block(self._block_BC, features_NC)
        return self._block_BC.to(self._device)
