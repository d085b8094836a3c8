"""The learner: scores blocks and takes optimizer steps. All of it is part of S."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from consumers.batch import Batch
from consumers.record import Float32s
from pipeline.config import JobConfig
from pipeline.device import choose_device, flushed_denormals, keep_freed_memory
from pipeline.identity import torch_threads
from pipeline.normalise import Standardiser
from pipeline.task import Scorer, build_task, score_width


@dataclass(frozen=True, slots=True)
class StepReport:
    """What one step did. `refused`: the loss or the gradient was not finite, so nothing changed."""

    loss: float
    refused: bool
    frozen_scores_BS: Float32s | None


class Learner:
    """A module, its optimizer and its random state.

    Every forward runs on a block of exactly [batch_size, C], padded with zeros: other shapes differ in the last bits.
    """

    def __init__(self, job: JobConfig) -> None:
        self.device = choose_device(job.learner.device)
        torch.set_num_threads(torch_threads(job))
        keep_freed_memory()
        torch.manual_seed(job.job.seed)
        self.task = build_task(job)
        self.module = self.task.module().to(self.device)
        self.optimizer = self.task.optimizer(self.module)
        self.scorer = Scorer(self.module, self.task)
        self.frozen: Scorer | None = None
        self.score_width = score_width(self.task, job.learner)
        self.batch_size = job.learner.batch_size
        self._block_BC = torch.zeros(self.batch_size, job.features.columns)
        self._standardisers = [m for m in self.module.modules() if isinstance(m, Standardiser)]
        self._parameters = list(self.module.parameters())
        self._buffers = list(self.module.buffers())
        self._buffers_before = [buffer.clone() for buffer in self._buffers]
        self.module.eval()

    def score(self, features_NC: Float32s) -> Float32s:
        """Scores [N, S] with the weights of this moment."""
        return self._score(self.scorer, features_NC)

    @torch.no_grad()
    def _score(self, scorer: Scorer, features_NC: Float32s) -> Float32s:
        rows = len(features_NC)
        scores_NS = np.empty((rows, self.score_width), np.float32)
        for start in range(0, rows, self.batch_size):
            stop = min(start + self.batch_size, rows)
            scores_B = scorer(self._block(features_NC[start:stop]))
            scores_NS[start:stop] = scores_B.reshape(self.batch_size, -1)[: stop - start].cpu().numpy()
        return scores_NS

    def step(self, batch: Batch) -> StepReport:
        """Learns from one batch, unless its loss or its gradient norm is not finite."""
        frozen_scores_BS = self._frozen_scores(batch)
        with flushed_denormals():
            loss, finite = self._step(batch)
        return StepReport(loss, not finite, frozen_scores_BS)

    def _frozen_scores(self, batch: Batch) -> Float32s | None:
        return self._score(self.frozen, batch.features_BC) if self.frozen else None

    def _step(self, batch: Batch) -> tuple[float, bool]:
        features_BC = self._block(batch.features_BC)
        labels_B = torch.from_numpy(batch.labels_B).to(self.device)
        weights_B = torch.from_numpy(batch.weights_B).to(self.device)
        for before, buffer in zip(self._buffers_before, self._buffers, strict=True):
            before.copy_(buffer)
        generators = self._generators()

        self.module.train()
        for standardiser in self._standardisers:
            standardiser.update(features_BC[:, : len(standardiser.mean_F)], weights_B)
        loss = self.task.loss(self.module(features_BC), labels_B, weights_B)
        loss.backward()  # type: ignore[no-untyped-call]
        gradients = [p.grad for p in self._parameters if p.grad is not None]
        norm = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(gradient) for gradient in gradients]))
        value, finite = loss.item(), math.isfinite((loss.detach() + norm).item())
        if finite:
            self.optimizer.step()
        else:
            for before, buffer in zip(self._buffers_before, self._buffers, strict=True):
                buffer.copy_(before)
            self._set_generators(generators)
        for parameter in self._parameters:
            parameter.grad = None
        self.module.eval()
        return value, finite

    def freeze(self) -> None:
        """Takes the frozen copy that later quality is compared with."""
        self.frozen = copy.deepcopy(self.scorer)

    def _block(self, features_NC: Float32s) -> Tensor:
        """Rows as the block that every forward uses, so that memory alignment cannot change a bit."""
        rows = len(features_NC)
        block_BC = self._block_BC.numpy()
        block_BC[:rows] = features_NC
        block_BC[rows:] = 0
        return self._block_BC.to(self.device)

    def weights(self) -> dict[str, np.ndarray]:
        """The module's parameters and buffers: what a version publishes and what `weights_sha256` is taken of."""
        return _arrays("", self.module.state_dict())

    def state(self) -> dict[str, np.ndarray]:
        """Everything that `restore` needs, as arrays."""
        arrays = _arrays("module.", self.module.state_dict())
        for index, slots in self.optimizer.state_dict()["state"].items():
            tensors = {name: torch.as_tensor(value) for name, value in slots.items()}
            arrays |= _arrays(f"optimizer.{index}.", tensors)
        if self.frozen is not None:
            arrays |= _arrays("frozen.", self.frozen.module.state_dict())
        return arrays | _arrays("random.", self._generators())

    def document(self) -> dict[str, Any]:
        """The optimizer's settings (JSON)."""
        groups = self.optimizer.state_dict()["param_groups"]
        return {"param_groups": [_plain(group) for group in groups]}

    def restore(self, arrays: dict[str, np.ndarray], document: dict[str, Any]) -> None:
        """Takes the state from a snapshot."""
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
        self._set_generators(_tensors("random.", arrays))

    def _generators(self) -> dict[str, Tensor]:
        """The states of torch's generators that a module may draw from."""
        cuda = {"cuda": torch.cuda.get_rng_state(self.device)} if self.device.type == "cuda" else {}
        return {"cpu": torch.get_rng_state(), **cuda}

    def _set_generators(self, states: dict[str, Tensor]) -> None:
        torch.set_rng_state(states["cpu"])
        if self.device.type == "cuda":
            torch.cuda.set_rng_state(states["cuda"], self.device)


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
