"""The job file as typed models; see `pipeline.jobfile` for how it is read."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, Field, field_validator, model_validator

from consumers.config import (
    INT64_MAX,
    DurationMs,
    FeaturesConfig,
    JoinConfig,
    LabelRule,
    LabelsConfig,
    Model,
    SizeBytes,
    StreamConfig,
    parse_duration,
)
from pipeline.drift import FAMILIES
from pipeline.options.config import HOST_DECIDES, OptionsConfig


class Cadence(Model):
    """How often: by time ('5m') or by rows trained ('100000 rows'). Exactly one is set."""

    ms: Annotated[int, Field(ge=0, le=INT64_MAX)] | None = None
    rows: Annotated[int, Field(gt=0, le=INT64_MAX)] | None = None

    @model_validator(mode="after")
    def _one_of_two(self) -> Cadence:
        if (self.ms is None) == (self.rows is None):
            raise ValueError("a cadence has either ms or rows")
        return self


def _parse_cadence(value: Any) -> Any:
    if isinstance(value, str):
        number, _, unit = value.strip().partition(" ")
        if unit.strip() == "rows" and number.replace("_", "").isdigit() and int(number) > 0:
            return {"rows": int(number)}
        try:
            return {"ms": parse_duration(value)}
        except ValueError:
            raise ValueError(
                "a cadence is a duration such as '30s' or a number of rows such as '100000 rows'"
            ) from None
    return value


Every = Annotated[Cadence, BeforeValidator(_parse_cadence)]


NAME_MAX = 200
"""Characters: MLflow's stores take 250, and a name may grow by a suffix."""


def _check_name(value: str) -> str:
    if not value or any(character in value for character in "/\\:.\"%'") or value != value.strip():
        raise ValueError("a name has no slash, colon, dot, quote or percent sign and no space at its ends")
    if len(value) > NAME_MAX:
        raise ValueError(f"a name has at most {NAME_MAX} characters")
    return value


def _check_path(value: Path) -> Path:
    if "\0" in str(value):
        raise ValueError("a path has no zero byte")
    return value


Directory = Annotated[Path, AfterValidator(_check_path)]

BUILT_IN_TASKS = ("binary", "multiclass", "regression")


def _check_task(value: str) -> str:
    if value not in BUILT_IN_TASKS and ":" not in value:
        raise ValueError(f"a task is {', '.join(BUILT_IN_TASKS)} or 'package.module:Task'")
    return value


class RunConfig(Model):
    """`[job]`."""

    name: Annotated[str, AfterValidator(_check_name)]
    state_dir: Directory
    seed: int = Field(default=0, ge=0, le=2**63 - 1)


_OF_THE_MLP = ("hidden", "embedding", "learning_rate")


CLASSES_MAX = 4096

BANK_BATCH_SIZE = 256
"""Its batches are learned eight rows at a time, so their size is one of blocks that are scored: larger ones leave the
processor's caches, and at the head of a stream every short span is scored as a whole block."""


def _is_bank(kind: str, task: str) -> bool:
    return kind == "bank" and task in BUILT_IN_TASKS


class LearnerConfig(OptionsConfig):
    """`[learner]`: the task, who learns it, the settings of the plain MLP, and the options of gradient descent."""

    kind: Literal["bank", "mlp"] = "bank"  # of built-in tasks: the bank of experts, or one MLP and Adam
    task: Annotated[str, AfterValidator(_check_task)] = "binary"
    classes: int = Field(default=2, ge=2, le=CLASSES_MAX)
    batch_size: int = Field(default=1024, ge=2, le=2**20)  # of the bank: BANK_BATCH_SIZE, if it is left out
    batch_wait: DurationMs = 1000
    # This and the next two are the MLP's; a task of one's own may use them.
    hidden: tuple[Annotated[int, Field(ge=1, le=65_536)], ...] = (256, 128)
    embedding: int = Field(default=8, ge=1, le=1024)
    learning_rate: float = Field(default=1e-3, gt=0)
    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: Annotated[int, Field(ge=1, le=256)] | Literal["auto"] = "auto"  # see `identity.torch_threads`
    precision: Literal["float32", "bfloat16"] = "float32"  # of products in the module; see `task.outputs_of`
    compile: bool = False  # forward and loss of the step, by torch.compile; scoring stays as it is published
    cuda_graphs: bool = False  # on CUDA: see `pipeline.cuda`; on a CPU it changes nothing

    @model_validator(mode="before")
    @classmethod
    def _choose_batch_size(cls, given: Any) -> Any:
        bank = isinstance(given, dict) and _is_bank(given.get("kind", "bank"), given.get("task", "binary"))
        return {"batch_size": BANK_BATCH_SIZE, **given} if bank else given

    @property
    def is_built_in(self) -> bool:
        """Whether the task is one of ours."""
        return self.task in BUILT_IN_TASKS

    @property
    def is_bank(self) -> bool:
        """Whether the bank of experts learns: built-in tasks only, as it brings loss and steps of its own."""
        return _is_bank(self.kind, self.task)

    @model_validator(mode="after")
    def _options_fit(self) -> LearnerConfig:
        fields = LearnerConfig.model_fields
        of_the_mlp = [name for name in _OF_THE_MLP if getattr(self, name) != fields[name].default]
        of_descent = self.options_set() + of_the_mlp
        if self.is_bank and of_descent:
            raise ValueError(
                f"{of_descent[0]} is for models that learn by gradient descent: set learner.kind = 'mlp', or "
                "name a task of your own"
            )
        host = [name for name in self.options_set() if name in HOST_DECIDES]
        if self.cuda_graphs and host:
            raise ValueError(
                f"cuda_graphs = true is not for {host[0]}: the host decides between its steps; leave one out"
            )
        if self.compile and self.anchor is not None and self.anchor.kind == "distill":
            raise ValueError("compile = true is not for anchor.kind = 'distill', which runs two modules; leave one out")
        return self

    @model_validator(mode="after")
    def _bank_on_cpu(self) -> LearnerConfig:
        for_cuda = self.device == "cuda" or self.cuda_graphs
        if self.is_bank and (for_cuda or self.precision != "float32" or self.compile):
            raise ValueError(
                "learner.kind = 'bank' learns on a CPU, in float32, by loops of its own; set learner.kind = 'mlp' "
                "for device = 'cuda', cuda_graphs = true, precision = 'bfloat16' or compile = true"
            )
        return self


class MonitorConfig(Model):
    """`[monitor]`: prequential quality, the frozen copy and drift."""

    every: Every = Cadence(rows=10_000)  # a metric point
    window: int = Field(default=10_000, ge=100, le=10**7)  # rows of the recent metrics
    frozen_after: int | None = Field(default=None, ge=0)  # rows trained when the frozen copy is taken
    compare_after: int | None = Field(default=None, ge=0)  # rows trained when live and frozen start to be compared
    drift: bool = True
    reference_rows: int = Field(default=10_000, ge=100)  # PSI: the reference window, and each window after it
    psi_threshold: float = Field(default=0.25, gt=0)
    adwin_delta: float = Field(default=0.002, gt=0, lt=1)
    drift_p: float = Field(default=5e-4, gt=0, lt=1)  # of a look at a family without a change, Bonferroni-corrected
    settle_rows: int = Field(default=512, ge=128)  # after a change, until what comes is taken as usual

    @field_validator("every")
    @classmethod
    def _by_rows(cls, value: Cadence) -> Cadence:
        if value.rows is None:
            raise ValueError("a number of rows such as '10000 rows': metric points are part of what is rebuilt")
        return value


Families = tuple[Literal[FAMILIES], ...]  # type: ignore[valid-type]


class OnDriftConfig(Model):
    """`[on_drift]`: what follows an alarm, by its family. See `pipeline.policies`."""

    version: Families = ()  # a version at once
    hold_promotion: Families = ()  # versions take no alias ...
    hold_rows: int = Field(default=50_000, ge=1)  # ... for so many rows
    rewarm: Families = ()  # the learner learns faster for a while
    restart_metrics: Families = ()  # the recent metrics are of rows from here on
    webhook: str | None = None  # an http(s) address that gets every alarm as JSON

    @property
    def acts(self) -> bool:
        """Whether anything follows an alarm."""
        return bool(self.version or self.hold_promotion or self.rewarm or self.restart_metrics or self.webhook)

    @field_validator("webhook")
    @classmethod
    def _http(cls, value: str | None) -> str | None:
        if value is None:
            return None
        parts = urlsplit(value)  # raises ValueError
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.port == 0:
            raise ValueError("a webhook is an http:// or https:// address")
        return value


class SnapshotConfig(Model):
    """`[snapshot]`."""

    every: Every = Cadence(ms=30_000)
    keep: int = Field(default=3, ge=3)
    anchor_every: Every = Cadence(ms=3_600_000)  # snapshots from which versions can be rebuilt
    owed_max: SizeBytes = 2**30  # of what is not released yet, alarms apart; beyond it the job holds
    mirror: Directory | None = None  # a directory that gets a copy of every anchor


class RegistryConfig(Model):
    """`[registry]`: where versions and metrics go."""

    tracking_uri: str = "sqlite:///mlflow.db"
    register_every: Every = Cadence(ms=300_000)
    artifact_location: str | None = None  # SQLite stores: default is `mlartifacts` beside the database
    release_timeout: DurationMs = 300_000  # a bounded run waits this long for MLflow and the dead letters


class DeadLettersConfig(Model):
    """`[dead_letters]`."""

    topic: str
    hold_share: float = Field(default=0.5, gt=0, le=1)  # hold when more than this share ...
    hold_window: int = Field(default=10_000, ge=10)  # ... of the last so many records was bad


ONLY_BINARY = "join.on_expiry = 'negative', join.negative_after and join.keep_negatives are for binary tasks"


class JobConfig(Model):
    """One job file."""

    job: RunConfig
    kafka: dict[str, str | int | float | bool]
    features: FeaturesConfig
    labels: LabelsConfig | None = None
    join: JoinConfig = JoinConfig()
    stream: StreamConfig = StreamConfig()
    learner: LearnerConfig = LearnerConfig()
    monitor: MonitorConfig = MonitorConfig()
    on_drift: OnDriftConfig = OnDriftConfig()
    snapshot: SnapshotConfig = SnapshotConfig()
    registry: RegistryConfig = RegistryConfig()
    dead_letters: DeadLettersConfig

    @model_validator(mode="after")
    def _consistent(self) -> JobConfig:
        if "bootstrap.servers" not in self.kafka:
            raise ValueError("kafka: 'bootstrap.servers' is missing")
        if (self.labels is None) == (self.features.label is None):
            raise ValueError("name the label once: either a [labels] table or features.label")
        topics = [self.features.topic, self.dead_letters.topic]
        topics += [self.labels.topic] if self.labels else []
        if len(set(topics)) != len(topics):
            raise ValueError("features, labels and dead_letters need topics of their own")
        if self.join.needs_binary and self.learner.is_built_in and self.learner.task != "binary":
            raise ValueError(ONLY_BINARY)
        if self.join.negative_after is not None and self.labels is None:
            raise ValueError("join.negative_after is for labels of a topic of their own: name it in [labels]")
        if self.join.slab_rows < self.stream.span:
            raise ValueError("join.slab_rows must be at least stream.span")
        if not self.monitor.drift and self.on_drift.acts:
            raise ValueError("[on_drift] waits for alarms, but monitor.drift = false raises none: leave one out")
        return self

    def sha256(self) -> str:
        """Hash of everything but how Kafka is reached and where the state lies: the `config hash` of a version."""
        topic = {"schema_registry"}
        without: Any = {"job": {"state_dir"}, "kafka": True, "features": topic, "labels": topic}
        document = self.model_dump(mode="json", exclude=without)
        return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()


def label_rule(learner: LearnerConfig, kind: str = "") -> LabelRule:
    """Which labels a task of a kind accepts; a built-in one's name is its kind. See `task.label_rule_of`."""
    kind = kind or learner.task
    if kind == "binary":
        return LabelRule(kind="binary")
    if kind == "multiclass":
        return LabelRule(kind="class", classes=learner.classes)
    return LabelRule(kind="number")
