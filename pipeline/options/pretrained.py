"""`learner.pretrained`: the weights of the start. Run as a program, it writes those of an MLflow version to a file.

A process of its own does that, as the learner's never imports mlflow.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from consumers.errors import ConfigError, DependencyError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from pipeline.config import JobConfig

MODELS = "models:/"
_TIMEOUT_S = 600


def read_weights(job: JobConfig) -> dict[str, Tensor] | None:
    """The tensors that a new lineage begins with; None: as the task makes them.

    Raises ConfigError (no such file, or it is none), and DependencyError if MLflow does not give the version.
    """
    source = job.learner.pretrained
    if source is None:
        return None
    if not source.startswith(MODELS):
        return _read(Path(source), source)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "weights.safetensors"
        command = [sys.executable, "-m", "pipeline.options.pretrained", job.registry.tracking_uri, source, str(path)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False)
        except subprocess.TimeoutExpired:
            raise DependencyError(
                f"learner.pretrained = {source!r} did not come from {job.registry.tracking_uri} in {_TIMEOUT_S} s"
            ) from None
        if done.returncode:
            reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
            raise DependencyError(
                f"learner.pretrained = {source!r} cannot be fetched from {job.registry.tracking_uri}: {reason}"
            )
        return _read(path, source)


def _read(path: Path, source: str) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise ConfigError(f"learner.pretrained = {source!r} cannot be read as a safetensors file: {error}") from None


def put_weights(module: nn.Module, weights: Mapping[str, Tensor], source: str | None) -> None:
    """Gives a module all its parameters and buffers. Raises ConfigError, and changes nothing, if they do not fit."""
    import torch

    wanted = module.state_dict()
    found = [f"{name} is missing" for name in wanted.keys() - weights.keys()]
    found += [f"{name} is not in the module" for name in weights.keys() - wanted.keys()]
    for name in wanted.keys() & weights.keys():
        has, wants = tuple(weights[name].shape), tuple(wanted[name].shape)
        if has != wants:
            found.append(f"{name} has the shape {has}, not {wants}")
        elif not torch.can_cast(weights[name].dtype, wanted[name].dtype):
            found.append(f"{name} is {weights[name].dtype}, not {wanted[name].dtype}")
        elif not weights[name].to(wanted[name].dtype).isfinite().all():
            found.append(f"{name} holds numbers that are not finite as {wanted[name].dtype}")
    if found:
        raise ConfigError(
            f"learner.pretrained = {source!r} does not fit the module of learner.task: {'; '.join(sorted(found))}"
        )
    module.load_state_dict(dict(weights))


if __name__ == "__main__":
    from pipeline.registry import save_weights

    save_weights(sys.argv[1], sys.argv[2], Path(sys.argv[3]))
