"""How a module learns: the seam between the learner and gradient descent, or whatever else there is."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
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

    def rewarm(self) -> None:
        """The world has changed: learns faster for a while."""
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


class Part(Protocol):
    """A part of a method that has a state of its own, and goes on with every batch that was learned."""

    def learned(self, batch: Batch) -> None:
        """The module has just learned this batch; a refused one is not told."""
        ...

    def state(self) -> dict[str, np.ndarray]: ...

    def document(self) -> dict[str, Any]: ...

    def restore(self, arrays: Mapping[str, np.ndarray], document: Mapping[str, Any]) -> None: ...


def arrays_of(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
    """Tensors as arrays, under names that begin with `prefix`. Raises TypeError for what NumPy does not have."""
    found: dict[str, np.ndarray] = {}
    for name, tensor in tensors.items():
        try:
            found[prefix + name] = tensor.detach().cpu().numpy()
        except TypeError:
            raise TypeError(f"{name} is {tensor.dtype}, which a snapshot cannot hold; keep it in float32") from None
    return found


def numbered(prefix: str, tensors: Iterable[Tensor]) -> dict[str, np.ndarray]:
    """Tensors without names as arrays: `prefix`0, `prefix`1, ..."""
    return arrays_of(prefix, {str(index): tensor for index, tensor in enumerate(tensors)})


@torch.no_grad()
def fill(tensors: Iterable[Tensor], prefix: str, arrays: Mapping[str, np.ndarray]) -> None:
    """Gives tensors the values that `numbered` took."""
    for index, tensor in enumerate(tensors):
        tensor.copy_(torch.from_numpy(arrays[f"{prefix}{index}"].copy()))


def tensors_of(prefix: str, arrays: Mapping[str, np.ndarray]) -> dict[str, Tensor]:
    """Copies of the arrays whose names begin with `prefix`, without it."""
    return {
        name.removeprefix(prefix): torch.from_numpy(array.copy())
        for name, array in arrays.items()
        if name.startswith(prefix)
    }
