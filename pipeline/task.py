"""What is learned: the Task seam, and the three built-in tasks."""

from __future__ import annotations

import copy
import importlib
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from consumers.config import FeaturesConfig, LabelRule
from consumers.errors import ConfigError, EvertrainError
from pipeline.bank.task import BankTask
from pipeline.config import BUILT_IN_TASKS, ONLY_BINARY, JobConfig, LearnerConfig, label_rule
from pipeline.models.mlp import mlp


class Scoring(Protocol):
    """A model and what its outputs mean: enough to score and to publish.

    Shapes: N rows, C feature columns, K outputs; `outputs` is what the module returned, as float32.
    `kind` says which labels there are and how scores are measured: "binary" (labels 0 and 1, scores [N], probability
    of 1), "multiclass" (labels below `learner.classes`, scores [N, K], probabilities) or "regression" (scores [N]).
    """

    kind: str

    def module(self) -> nn.Module:
        """A new module, float32 [N, C] -> outputs. Called once, after the seed is set.

        In training N is the batch size: rows that are missing are zeros of weight 0. What a layer takes from the whole
        batch, as BatchNorm does, it takes from these too, where a batch is part filled.
        """
        ...

    def score(self, outputs: Tensor) -> Tensor:
        """Scores, float32: [N] or [N, K]."""
        ...


class Task(Scoring, Protocol):
    """A model, its loss and its optimizer: what gradient descent learns."""

    def optimizer(self, module: nn.Module) -> torch.optim.Optimizer:
        """Moves parameters of `module`. What its `step` goes by has to be in `state` or `param_groups`.

        Only these are in snapshots: a schedule counts in `param_groups`, and is moved by `step` itself.
        """
        ...

    def loss(self, outputs: Tensor, labels_N: Tensor, weights_N: Tensor) -> Tensor:
        """The scalar to minimise. Rows of weight 0 are padding and must not count."""
        ...


class MLPTask:
    """Hashed embeddings, online standardisation, an MLP and Adam. Subclass it to change one of them."""

    kind: str
    outputs = 1

    def __init__(self, features: FeaturesConfig, learner: LearnerConfig) -> None:
        self.features = features
        self.learner = learner

    def module(self) -> nn.Module:
        return mlp(self.features, self.learner, outputs=self.outputs)

    def optimizer(self, module: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.Adam(module.parameters(), lr=self.learner.learning_rate, fused=True)


class Binary(MLPTask):
    """Log-loss on one logit."""

    kind = "binary"

    def loss(self, outputs: Tensor, labels_N: Tensor, weights_N: Tensor) -> Tensor:
        logits_N = outputs.squeeze(1)
        loss = functional.binary_cross_entropy_with_logits(logits_N, labels_N, weights_N, reduction="sum")
        return loss / total(weights_N)

    def score(self, outputs: Tensor) -> Tensor:
        return outputs.squeeze(1).sigmoid()


class Multiclass(MLPTask):
    """Cross-entropy over `learner.classes` classes."""

    kind = "multiclass"

    def __init__(self, features: FeaturesConfig, learner: LearnerConfig) -> None:
        super().__init__(features, learner)
        self.outputs = learner.classes

    def loss(self, outputs: Tensor, labels_N: Tensor, weights_N: Tensor) -> Tensor:
        losses_N = functional.cross_entropy(outputs, labels_N.long(), reduction="none")
        return weighted_mean(losses_N, weights_N)

    def score(self, outputs: Tensor) -> Tensor:
        return outputs.softmax(dim=1)


class Regression(MLPTask):
    """Squared error."""

    kind = "regression"

    def loss(self, outputs: Tensor, labels_N: Tensor, weights_N: Tensor) -> Tensor:
        return weighted_mean((outputs.squeeze(1) - labels_N).square(), weights_N)

    def score(self, outputs: Tensor) -> Tensor:
        return outputs.squeeze(1)


def weighted_mean(values_N: Tensor, weights_N: Tensor) -> Tensor:
    """Mean of `values_N` with `weights_N`; 0 if all weights are 0."""
    return (values_N * weights_N).sum() / total(weights_N)


def total(weights_N: Tensor) -> Tensor:
    """The sum of weights as a divisor: never 0."""
    return weights_N.sum().clamp_min(1e-12)


class Scorer(nn.Module):
    """Exactly what is scored and published: features float32 [N, C] -> scores [N] or [N, K]."""

    def __init__(self, module: nn.Module, task: Scoring, precision: str) -> None:
        super().__init__()
        self.module = module
        self._task = task
        self._precision = precision

    def copy(self) -> Scorer:
        """One with weights of its own. The task is shared: it may hold what cannot be copied."""
        return Scorer(copy.deepcopy(self.module), self._task, self._precision)

    def forward(self, features_NC: Tensor) -> Tensor:
        return self._task.score(outputs_of(self.module, features_NC, self._precision))


def outputs_of(module: nn.Module, features_NC: Tensor, precision: str) -> Tensor:
    """What the module answers, float32. With "bfloat16" it multiplies matrices in bfloat16 (`torch.autocast`).

    Weights, buffers, loss, score, gradients of weights and optimizer stay float32. Gradients need no scaling
    (`GradScaler`), as those of float16 do: bfloat16 has the exponents of float32, so none becomes 0 that float32 could
    hold. Micikevicius et al., "Mixed Precision Training" (2018); Kalamkar et al., "A Study of BFLOAT16" (2019).
    """
    if precision == "float32":
        return module(features_NC)  # type: ignore[no-any-return]
    # Without the cache of cast weights: each is used once, and a captured graph would keep those of its capture.
    with torch.autocast(features_NC.device.type, torch.bfloat16, cache_enabled=False):
        outputs: Tensor = module(features_NC)
    return outputs.float()


_METHODS = ("module", "optimizer", "loss", "score")
_REASON_MAX = 300  # characters

BUILT_IN: dict[str, type[Any]] = dict(zip(BUILT_IN_TASKS, (Binary, Multiclass, Regression), strict=True))


def build_scoring(job: JobConfig) -> Scoring:
    """The configured task, or the bank's view of it. Raises ConfigError as `build_task` does."""
    return BankTask(job) if job.learner.is_bank else build_task(job)


def build_task(job: JobConfig) -> Task:
    """The configured task. Raises ConfigError if a custom one cannot be imported or built."""
    name = job.learner.task
    task_type = BUILT_IN.get(name) or _import(name)
    try:
        task: Task = task_type(job.features, job.learner)
    except Exception as error:
        raise ConfigError(f"learner.task = {name!r} could not be built: {error!r}") from error
    missing = [method for method in _METHODS if not callable(getattr(task, method, None))]
    if missing:
        raise ConfigError(f"learner.task = {name!r} has no method {missing[0]}(); a task has {', '.join(_METHODS)}")
    kind = getattr(task, "kind", None)
    if kind not in BUILT_IN_TASKS:
        raise ConfigError(f"learner.task = {name!r}: its kind is {kind!r}; allowed: {', '.join(BUILT_IN_TASKS)}")
    if job.join.needs_binary and kind != "binary":
        raise ConfigError(f"{ONLY_BINARY}, but learner.task = {name!r} is of the kind {kind!r}")
    return task


def build_module(task: Scoring, name: str) -> nn.Module:
    """The task's new module. Raises ConfigError if that fails."""
    with blamed_on(name, "module()"):
        module = task.module()
    if not isinstance(module, nn.Module):
        raise ConfigError(f"learner.task = {name!r}: module() gives {type(module).__name__}, not a torch.nn.Module")
    return module


@contextmanager
def blamed_on(name: str, what: str) -> Iterator[None]:
    """Whatever is raised within becomes a ConfigError that names the task, what failed, and a line of its own code."""
    try:
        yield
    except EvertrainError:
        raise
    except Exception as error:
        reason = next(iter(str(error).strip().splitlines()), "")[:_REASON_MAX]
        place = _place(error)
        raise ConfigError(f"learner.task = {name!r}: {what} fails{place}: {type(error).__name__}: {reason}") from error


def _place(error: Exception) -> str:
    """Where, of what is neither ours nor Python's nor installed, the error came from."""
    others = {Path(__file__).parent, Path(traceback.__file__).parent}
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        path = Path(frame.filename)
        if "site-packages" not in path.parts and others.isdisjoint(path.parents):
            return f" at {path.name}:{frame.lineno}"
    return ""


def label_rule_of(job: JobConfig) -> LabelRule:
    """Which labels the job takes. One that no class has would break every step with it, whoever's loss it is."""
    with torch.random.fork_rng(devices=[]):  # a constructor may draw, and the generator is part of S
        kind = build_scoring(job).kind
    return label_rule(job.learner, kind)


def score_width(task: Scoring, learner: LearnerConfig) -> int:
    """S: how many numbers one score has."""
    return learner.classes if task.kind == "multiclass" else 1


def build_scorer(job: JobConfig) -> Scorer:
    """A new scorer on the CPU, in eval mode, its weights to be loaded into `scorer.module`."""
    task = build_scoring(job)
    return Scorer(build_module(task, job.learner.task), task, job.learner.precision).eval()


def _import(name: str) -> Any:
    module_name, _, attribute = name.partition(":")
    try:
        return getattr(importlib.import_module(module_name), attribute)
    except Exception as error:  # of any kind: the module's code runs
        hint = "; is its folder in PYTHONPATH?" if isinstance(error, ModuleNotFoundError) else ""
        raise ConfigError(f"learner.task = {name!r} cannot be imported: {error}{hint}") from error
