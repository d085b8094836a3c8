"""Tasks that tests plug in."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from pipeline.task import Binary

IDS_MAX = 100_000
SMALL_IDS_MAX = 1000


class Counting(nn.Module):
    """Counts in a buffer how often each id was learned; ids are the first column, and padding has id 0."""

    counts: Tensor

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.register_buffer("counts", torch.zeros(IDS_MAX + 1, dtype=torch.int64))

    def forward(self, features_NC: Tensor) -> Tensor:
        if self.training:
            ids_N = features_NC[:, 0].long()
            self.counts.index_add_(0, ids_N, torch.ones_like(ids_N))
        return self.inner(features_NC)


class CountingTask(Binary):
    """The binary task with a count for each id."""

    def module(self) -> nn.Module:
        return Counting(super().module())


class Noisy(nn.Module):
    """Counts as `Counting` does, for small streams, and draws from torch's global generator in each step."""

    counts: Tensor

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.register_buffer("counts", torch.zeros(SMALL_IDS_MAX + 1, dtype=torch.int64))

    def forward(self, features_NC: Tensor) -> Tensor:
        if not self.training:
            return self.inner(features_NC)
        ids_N = features_NC[:, 0].long()
        self.counts.index_add_(0, ids_N, torch.ones_like(ids_N))
        return self.inner(features_NC) + 0.1 * torch.randn(len(ids_N), 1)


class CoolingAdam(torch.optim.Adam):
    """Its rate falls with every step, as a schedule would have it."""

    def step(self, closure: Any = None) -> Any:
        loss = super().step(closure)
        for group in self.param_groups:
            group["lr"] *= 0.99
        return loss


class Slowing(torch.optim.Optimizer):
    """Its steps get smaller; keeps numbers, not tensors, in its state, and a tensor and a tuple in its settings."""

    def __init__(self, parameters: Any) -> None:
        super().__init__(parameters, {"lr": 0.1, "pace": torch.tensor(1.0), "bounds": (0.5, 1.0)})

    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            least, most = group["bounds"]
            group["bounds"] = (least * 0.99, most)
            group["pace"] = (group["pace"] * 0.97).clamp(least, most)
            for parameter in [p for p in group["params"] if p.grad is not None]:
                state = self.state[parameter]
                state["steps"], state["scale"] = state.get("steps", 0) + 1, state.get("scale", 1.0) * 0.97
                state["norms"] = [float(parameter.grad.norm())]
                step = group["lr"] * group["pace"].item() * state["scale"] / state["steps"] ** 0.5
                parameter.data.add_(parameter.grad, alpha=-step)


class SlowingTask(Binary):
    """Its optimizer keeps numbers."""

    def optimizer(self, module: nn.Module) -> torch.optim.Optimizer:
        return Slowing(module.parameters())


class SecondOrderTask(Binary):
    """Its optimizer evaluates the loss itself."""

    def optimizer(self, module: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.LBFGS(module.parameters())


class NoisyTask(Binary):
    """The binary task with noise on its logits, a falling rate, and a count for each id."""

    def module(self) -> nn.Module:
        return Noisy(super().module())

    def optimizer(self, module: nn.Module) -> torch.optim.Optimizer:
        return CoolingAdam(module.parameters(), lr=self.learner.learning_rate)


class Branching(nn.Linear):
    """What it does depends on values: nothing that could be exported."""

    def forward(self, features_NC: Tensor) -> Tensor:
        return super().forward(features_NC) if float(features_NC.sum()) > 1 else super().forward(-features_NC)


class NoExport(Binary):
    """It learns, and cannot be published."""

    def module(self) -> nn.Module:
        return Branching(self.features.columns, 1)


class EndlessLoss(Binary):
    """No step of it can be taken."""

    def loss(self, outputs: Tensor, labels_N: Tensor, weights_N: Tensor) -> Tensor:
        return super().loss(outputs, labels_N, weights_N) + torch.inf
