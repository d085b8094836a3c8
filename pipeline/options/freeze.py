"""`learner.freeze`: parameters that do not learn."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase

from torch import nn

from consumers.errors import ConfigError


def freeze(module: nn.Module, patterns: Sequence[str]) -> None:
    """Takes the parameters whose names match out of training. Buffers go on: a standardiser's moments do not learn.

    Patterns are those of file names, in which "*" takes dots, too. Raises ConfigError for one that matches nothing,
    and if nothing is left to learn.
    """
    names = [name for name, _ in module.named_parameters()]
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise ConfigError(f"learner.freeze: {pattern!r} matches no parameter; there are {', '.join(names)}")
    learning = 0
    for name, parameter in module.named_parameters():
        if any(fnmatchcase(name, pattern) for pattern in patterns):
            parameter.requires_grad_(False)
        learning += parameter.requires_grad
    if not names:
        raise ConfigError("the module has no parameters, so there is nothing to learn")
    if not learning:
        raise ConfigError(f"learner.freeze = {list(patterns)} leaves nothing to learn; frozen are {', '.join(names)}")
