"""A task's optimizer: what it has to be, and its state as a snapshot holds it."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from consumers.errors import ConfigError
from pipeline.method import arrays_of, tensors_of
from pipeline.task import Task, blamed_on

_SLOTS, _GROUPS = "optimizer.", "groups."  # of names of arrays


def build_optimizer(task: Task, trained: nn.Module, name: str) -> torch.optim.Optimizer:
    """The task's own. Raises ConfigError if it moves what no snapshot holds, or has to evaluate the loss itself."""
    with blamed_on(name, "optimizer()"):
        optimizer = task.optimizer(trained)
    if not isinstance(optimizer, torch.optim.Optimizer) or _needs_closure(optimizer):
        raise ConfigError(
            f"learner.task = {name!r}: its optimizer() gives {type(optimizer).__name__}, but a step has its gradients "
            "already: give a torch.optim.Optimizer whose step() needs no closure, such as SGD or Adam"
        )
    own = set(map(id, trained.parameters()))
    if any(id(parameter) not in own for group in optimizer.param_groups for parameter in group["params"]):
        raise ConfigError(
            f"learner.task = {name!r}: its optimizer() moves a parameter that is none of its argument's, so no version "
            "would have it: make it one of the module's, and take parameters from the argument"
        )
    return optimizer


def _needs_closure(optimizer: torch.optim.Optimizer) -> bool:
    """Whether a step evaluates the loss itself, as L-BFGS does. A scheduler hides `step` on the optimizer itself."""
    _, *arguments = inspect.signature(type(optimizer).step).parameters.values()
    variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return any(each.default is each.empty and each.kind not in variadic for each in arguments)


def optimizer_arrays(optimizer: torch.optim.Optimizer) -> dict[str, np.ndarray]:
    """Tensors of its slots and groups; with `optimizer_document` all that `restore_optimizer` needs."""
    saved, arrays = optimizer.state_dict(), dict[str, np.ndarray]()
    for index, slots in saved["state"].items():
        tensors = {name: torch.as_tensor(value) for name, value in slots.items() if not _is_plain(value)}
        arrays |= arrays_of(f"{_SLOTS}{index}.", tensors)
    for index, group in enumerate(saved["param_groups"]):
        tensors = {name: value for name, value in group.items() if isinstance(value, Tensor)}
        arrays |= arrays_of(f"{_GROUPS}{index}.", tensors)
    return arrays


def optimizer_document(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """What of its slots and groups JSON can hold. Functions and the like are the code's business."""
    saved = optimizer.state_dict()
    numbers = {str(index): _plain(slots) for index, slots in saved["state"].items()}
    return {"param_groups": [_plain(group) for group in saved["param_groups"]], "slots": numbers}


def restore_optimizer(
    optimizer: torch.optim.Optimizer, arrays: Mapping[str, np.ndarray], document: Mapping[str, Any]
) -> None:
    """Takes its state out of a learner's arrays and a document."""
    slots: dict[int, dict[str, Any]] = {int(i): dict(plain) for i, plain in document["slots"].items()}
    groups: dict[int, dict[str, Any]] = {i: dict(plain) for i, plain in enumerate(document["param_groups"])}
    for prefix, found in ((_SLOTS, slots), (_GROUPS, groups)):
        for name, tensor in tensors_of(prefix, arrays).items():
            index, _, key = name.partition(".")
            found.setdefault(int(index), {})[key] = tensor
    fresh = optimizer.state_dict()["param_groups"]
    merged = [{**now, **_as_before(saved, now)} for now, saved in zip(fresh, groups.values(), strict=True)]
    optimizer.load_state_dict({"state": slots, "param_groups": merged})


def _as_before(saved: dict[str, Any], fresh: dict[str, Any]) -> dict[str, Any]:
    """Values of a group, as they were before JSON and NumPy: tuples are lists in a document."""
    found = dict(saved)
    for name, now in fresh.items():
        if isinstance(now, tuple) and name in found:
            found[name] = tuple(found[name])
        elif isinstance(now, Tensor) and isinstance(found.get(name), Tensor):
            found[name] = found[name].to(now.device)
    return found


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if _is_plain(value)}


def _is_plain(value: object) -> bool:
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, bool | int | float | str)
