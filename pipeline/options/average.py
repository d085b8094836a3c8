"""`learner.average`: what is scored and published is a moving mean of the weights that learn."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from consumers.batch import Batch
from pipeline.method import arrays_of, tensors_of


class Average:
    """A `Part` that keeps `scored` at the exponential moving mean of `trained`'s parameters.

    mean <- d mean + (1 - d) weights after each batch, with d = min(decay, (1 + n) / (10 + n)) after n of them: so the
    weights of the start, which know nothing, are forgotten quickly. Polyak & Juditsky, "Acceleration of Stochastic
    Approximation by Averaging" (1992); the warm-up is that of TensorFlow's ExponentialMovingAverage. Buffers are
    copied: moments of the input are means already.
    """

    def __init__(self, scored: nn.Module, trained: nn.Module, decay: float) -> None:
        self._trained = trained
        self._decay = decay
        self._batches = 0
        self._parameters = list(zip(scored.parameters(), trained.parameters(), strict=True))
        self._buffers = list(zip(scored.buffers(), trained.buffers(), strict=True))

    @torch.no_grad()
    def learned(self, batch: Batch) -> None:
        self._batches += 1
        decay = min(self._decay, (1 + self._batches) / (10 + self._batches))
        for mean, weights in self._parameters:
            mean.lerp_(weights, 1 - decay)
        for copied, buffer in self._buffers:
            copied.copy_(buffer)

    def begin_anew(self) -> None:
        """Forgets older weights as quickly as those of the start."""
        self._batches = 0

    def state(self) -> dict[str, np.ndarray]:
        return arrays_of("trained.", self._trained.state_dict())

    def document(self) -> dict[str, Any]:
        return {"batches": self._batches}

    def restore(self, arrays: Mapping[str, np.ndarray], document: Mapping[str, Any]) -> None:
        self._trained.load_state_dict(tensors_of("trained.", arrays))
        self._batches = document["batches"]
