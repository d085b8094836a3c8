"""How a module learns: the seam between the learner and gradient descent, or whatever else there is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from consumers.batch import Batch
from consumers.record import Float32s
from pipeline.executor import Outcome
from pipeline.task import Scorer


class Method(Protocol):
    """Changes a module's parameters and buffers in place, and scores with them."""

    def score(self, scorer: Scorer, features_NC: Float32s, width: int) -> Float32s:
        """Scores [N, width] with the weights of this moment. `scorer` may be a frozen copy."""
        ...

    def step(self, batch: Batch) -> Outcome:
        """Learns from one batch, or changes nothing if what comes of it is not finite."""
        ...

    def state(self) -> dict[str, np.ndarray]:
        """What `restore` needs beside the module's parameters and buffers, as arrays."""
        ...

    def document(self) -> dict[str, Any]:
        """Its settings (JSON)."""
        ...

    def restore(self, arrays: Mapping[str, np.ndarray], document: Mapping[str, Any]) -> None:
        """Takes its state out of a learner's arrays, before the module gets its own."""
        ...


def arrays_of(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
    """Tensors as arrays, under names that begin with `prefix`."""
    return {prefix + name: tensor.detach().cpu().numpy() for name, tensor in tensors.items()}


def tensors_of(prefix: str, arrays: Mapping[str, np.ndarray]) -> dict[str, Tensor]:
    """Copies of the arrays whose names begin with `prefix`, without it."""
    return {
        name.removeprefix(prefix): torch.from_numpy(array.copy())
        for name, array in arrays.items()
        if name.startswith(prefix)
    }
