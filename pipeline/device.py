"""Where tensors are computed, and what torch and the C library are told so that a step costs no more than its sums."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from consumers.errors import DependencyError

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h
_TRIM_BYTES, _MMAP_BYTES = 2**25, 2**22


def choose_device(wanted: str) -> torch.device:
    """The device to train on; CUDA runs with deterministic algorithms. Raises DependencyError without CUDA."""
    if wanted == "cpu" or (wanted == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise DependencyError("learner.device is 'cuda', but torch finds no CUDA device; use 'auto' or 'cpu'")
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    return torch.device("cuda")


def generators(device: torch.device) -> dict[str, Tensor]:
    """The states of torch's generators that a module on `device` may draw from."""
    cuda = {"cuda": torch.cuda.get_rng_state(device)} if device.type == "cuda" else {}
    return {"cpu": torch.get_rng_state(), **cuda}


def set_generators(states: dict[str, Tensor], device: torch.device) -> None:
    """Takes states as `generators` gave them."""
    torch.set_rng_state(states["cpu"])
    if device.type == "cuda":
        torch.cuda.set_rng_state(states["cuda"], device)


def keep_freed_memory() -> None:
    """Keeps memory that tensors give back: every step takes as much again, and fresh pages are cleared one by one.

    Without it some 900 page faults a step cost a tenth of the time. Does nothing where the C library is not glibc.
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        libc.mallopt(_M_MMAP_THRESHOLD, _MMAP_BYTES)
        libc.mallopt(_M_TRIM_THRESHOLD, _TRIM_BYTES)


@contextmanager
def flushed_denormals() -> Iterator[None]:
    """Numbers below 1.2e-38 count as 0 in here: in a step, whose averages of vanished gradients decay to such.

    A processor takes up to a hundred times as long for them. Not for scores, which a published model gives anywhere,
    and not for decoded input, which stays as it was sent.
    """
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)
