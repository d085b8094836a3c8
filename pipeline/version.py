"""What is published of a snapshot, metric points and a version with its model, tags and description; and where to."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from consumers.errors import CheckError
from consumers.record import Float32s
from pipeline.config import JobConfig
from pipeline.encoding import columns_of
from pipeline.store import Manifest

if TYPE_CHECKING:
    from torch import nn

_CUDA_TOLERANCE = {"float32": 1e-5, "bfloat16": 2e-2}  # bfloat16 has 8 bits: a sum in another order rounds elsewhere
_TAG_MAX = 60_000  # characters: what a MySQL store takes; MLflow itself takes 100,000
_DESCRIPTION_MAX = 4_900  # characters: stores take 5,000, and the version's number is still to come
_TITLES = {"auc": "AUC", "logloss": "log-loss", "accuracy": "accuracy", "rmse": "RMSE", "mae": "MAE", "r2": "R²"}


@dataclass(frozen=True, slots=True)
class Point:
    """Metrics at one step of the stream. `step` is the number of rows trained, `time_ms` is stream time."""

    step: int
    time_ms: int
    values: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Candidate:
    """What one snapshot wants to publish. `scorer` is in eval mode on the CPU; its answers are checked."""

    name: str
    lineage: str
    snapshot_id: str
    scorer: nn.Module  # float32 [N, C] -> scores
    features_BC: Float32s  # the check block
    scores: Float32s  # [B] or [B, K]: what the trainer answered
    tolerance: float  # 0: the answers must be equal bit for bit
    columns: Mapping[str, Any]  # the content of columns.json
    tags: Mapping[str, str]
    description: str  # Markdown; "{version}" stands for the version's number
    point: Point
    promoted: bool = True  # may take aliases
    alarms: Sequence[Mapping[str, Any]] = ()  # the newest ones, as documents
    points: Sequence[Mapping[str, Any]] = ()  # see `pipeline.history`

    def check(self, scores: npt.NDArray[Any]) -> None:
        """Raises CheckError if `scores`, of the check block, are not those of the trainer."""
        same = (
            scores.shape == self.scores.shape and np.allclose(scores, self.scores, self.tolerance, self.tolerance)
            if self.tolerance
            else scores.dtype == self.scores.dtype and scores.tobytes() == self.scores.tobytes()
        )
        if not same:
            raise CheckError(
                f"snapshot {self.snapshot_id}: the exported model does not score its check block as the "
                f"trainer did ({self._difference(scores)}); nothing was registered. Does the module "
                "behave differently in eval mode, or depend on something outside its state_dict?"
            )

    def _difference(self, scores: npt.NDArray[Any]) -> str:
        if scores.shape != self.scores.shape:
            return f"shape {scores.shape}, not {self.scores.shape}"
        return f"up to {np.max(np.abs(scores - self.scores)):.3g} apart"


@dataclass(frozen=True, slots=True)
class Version:
    """One registered version."""

    number: int
    snapshot_id: str
    lineage: str
    tags: Mapping[str, str] = field(repr=False)
    description: str = field(repr=False)


class Registry(Protocol):
    """Versions of models by name, and one run of metrics per lineage. Any call may be repeated."""

    def resume(self, name: str, lineage: str) -> None:
        """Marks the lineage's run as RUNNING; creates it if there is none."""
        ...

    def finish(self, name: str, lineage: str) -> None:
        """Marks the lineage's run, if there is one, as FINISHED."""
        ...

    def log(self, name: str, lineage: str, points: Sequence[Point]) -> None:
        """Adds points that the lineage's run does not have yet. Values that are not finite are dropped."""
        ...

    def logged(self, name: str, lineage: str) -> int:
        """The step of the newest point that the lineage's run has; -1 without one."""
        ...

    def register(self, candidate: Candidate) -> int | None:
        """Registers a candidate once and moves the aliases.

        Returns its version number; None if it was registered before and somebody has deleted the version: it stays
        deleted. Raises CheckError.
        """
        ...

    def newest(self, name: str, lineage: str | None = None) -> Version | None:
        """The newest version that a trainer has registered, of one lineage or of any."""
        ...

    def versions(self, name: str) -> list[Version]:
        """All versions of a name, oldest first."""
        ...

    def aliases(self, name: str) -> dict[str, int]:
        """Version numbers by alias."""
        ...


def alias_moves(aliases: Mapping[str, int], placed: Mapping[str, int], version: int) -> list[tuple[str, int]]:
    """Which aliases to set for a version, in the order in which a crash between two of them does no harm.

    An alias moves only forward, and only if it still points where the trainer last `placed` it: one that a
    person has moved or deleted is theirs.
    """

    def ours(alias: str, target: int) -> bool:
        if aliases.get(alias) == target:
            return placed.get(alias) != target  # set, but a crash came before it was noted
        return aliases.get(alias) == placed.get(alias) and target > placed.get(alias, 0)

    moves = []
    champion = aliases.get("champion")
    if ours("champion", version):
        if champion is not None and champion != version and ours("previous", champion):
            moves.append(("previous", champion))
        moves.append(("champion", version))
    if ours("challenger", version):
        moves.append(("challenger", version))
    return moves


def candidate(owed: bytes, manifest: Manifest) -> Candidate:
    """What a snapshot wants to publish that owes a version: the blob `owed`. Raises ConfigError."""
    import safetensors.torch
    import torch

    from pipeline.task import build_scorer

    job = JobConfig.model_validate(manifest["config"])
    tensors = safetensors.torch.load(owed)
    weights = {name.removeprefix("model."): tensor for name, tensor in tensors.items() if name.startswith("model.")}
    torch.set_num_threads(int(manifest["environment"]["threads"]))  # the trainer's: sums are split, and rounded, alike
    scorer = build_scorer(job)
    scorer.module.load_state_dict(weights)
    auto = job.learner.device == "auto" and not job.learner.is_bank
    on_cuda = job.learner.device == "cuda" or (auto and torch.cuda.is_available())
    course = json.loads(tensors["course"].numpy().tobytes())
    return Candidate(
        name=manifest["name"],
        lineage=manifest["lineage"],
        snapshot_id=manifest["snapshot_id"],
        scorer=scorer,
        features_BC=tensors["check.features"].numpy(),
        scores=tensors["check.scores"].numpy(),
        tolerance=_CUDA_TOLERANCE[job.learner.precision] if on_cuda else 0.0,
        columns=columns_of(job.features),
        tags=tags(manifest) | drift_tag(course["alarms"]),
        description=describe(manifest),
        point=Point(manifest["rows_trained"], manifest["trained_ms"], manifest["metrics"]),
        promoted=not manifest["promotion_held"],
        **course,
    )


def drift_tag(alarms: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """A tag that says what moved last, if anything did."""
    if not alarms:
        return {}
    family, feature, since_row = (alarms[-1][name] for name in ("family", "feature", "since_row"))
    return {"drift_newest": f"{family}{f' {feature}' if feature else ''} since row {since_row}"}


def tags(manifest: Manifest) -> dict[str, str]:
    """Everything that names what a version was made of."""
    return {
        "offsets": _offsets(manifest),
        "watermark": _time(manifest["watermark"]),
        "rows_trained": str(manifest["rows_trained"]),
        "drift_alarms": str(manifest["alarms"]),
        "config_sha256": manifest["config_sha256"],
        "code_version": manifest["code_version"],
        "weights_sha256": manifest["weights_sha256"],
        **{name: f"{value:.6g}" for name, value in _quality(manifest["metrics"]).items()},
    }


def describe(manifest: Manifest) -> str:
    """Markdown: what the version learned, until when, how good it was, and how to score rows with it."""
    ranges = [(where, f"{first:,}", f"{stop:,}") for where, first, stop in _ranges(manifest)]
    text = _describe(manifest, _block(["", "from", "up to, without"], ranges))
    if len(text) <= _DESCRIPTION_MAX:
        return text
    sums = [(topic, f"{partitions:,}", f"{offsets:,}") for topic, partitions, offsets in _sums(manifest)]
    return _describe(manifest, _block(["", "partitions", "offsets"], sums))


def _describe(manifest: Manifest, learned: list[str]) -> str:
    name, features = manifest["name"], manifest["config"]["features"]
    labels = manifest["config"]["labels"]
    source = f"`{features['topic']}`" + (f" joined with `{labels['topic']}`" if labels else "")
    alarms = manifest["alarms"]
    lines = [
        f"**{name}** has learned {manifest['rows_trained']:,} rows of {source}, complete until "
        f"{_readable(manifest['watermark'])}; {alarms} drift alarm{'' if alarms == 1 else 's'} so far.",
        "",
        *_quality_table(manifest),
        "Score `rows`, a list of dicts with the columns named in `columns.json`:",
        "",
        "```python",
        "import mlflow, pipeline",
        f'uri = "models:/{name}/{{version}}"',
        'columns = mlflow.artifacts.load_dict(f"{uri}/columns.json")',
        "scores = mlflow.pyfunc.load_model(uri).predict(pipeline.encode(rows, columns))",
        "```",
        "",
        "Learned, by partition and offset:",
        "",
        *learned,
        f"Snapshot `{manifest['snapshot_id']}`, code `{manifest['code_version']}`, "
        f"configuration `{manifest['config_sha256'][:12]}`.",
    ]
    return "\n".join(lines)


def _quality_table(manifest: Manifest) -> list[str]:
    metrics, monitor = manifest["metrics"], manifest["config"]["monitor"]
    after = monitor["compare_after"]
    stretches = {"all rows": "{}/{}", f"last {monitor['window']:,} rows": "{}/{}_recent"}
    if after is not None:
        stretches = {f"from row {after:,} on": "compare/{}_{}"} | stretches
    rows = []
    for metric, title in _TITLES.items():
        for stretch, path in stretches.items():
            live, frozen = (metrics.get(path.format(who, metric)) for who in ("live", "frozen"))
            if live is not None:
                rows.append((f"{title}, {stretch}", f"{live:.4f}", "" if frozen is None else f"{frozen:.4f}"))
    if not rows:
        return []
    head = "Every row was scored before it was learned."
    if not any(frozen for _, _, frozen in rows):
        return [head, "", *_block(["", "live"], [row[:2] for row in rows])]
    taken = monitor["frozen_after"]  # None if the job file asks for no copy any more
    head += f" *Frozen* is a copy that learned no more{'' if taken is None else f' after row {taken:,}'}"
    head += " and is measured from there on."
    return [head, "", *_block(["", "live", "frozen"], rows)]


def _block(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A table as a code block: MLflow's page shows Markdown tables without any space between the columns."""
    table = [head, *rows]
    widths = [max(len(row[column]) for row in table) for column in range(len(head))]
    lines = ["   ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in table]
    return ["```", *(line.rstrip() for line in lines), "```", ""]


def _quality(metrics: Mapping[str, float]) -> dict[str, float]:
    return {
        name: value
        for name, value in metrics.items()
        if ("live" in name or "frozen" in name) and not name.endswith("unmeasured") and "drift" not in name
    }


def _ranges(manifest: Manifest) -> list[tuple[str, int, int]]:
    starts = {(line["topic"], line["partition"]): line["next"] for line in manifest["started"]}
    return [
        (f"{topic}[{number}]", starts.get((topic, number), 0), line["next"])
        for line in manifest["cursor"]
        for topic, number in [(line["topic"], line["partition"])]
    ]


def _offsets(manifest: Manifest) -> str:
    """Offsets by partition; by topic where these are too many for a tag: the ledger has the exact ones."""
    exact = json.dumps({where: f"{first}-{stop}" for where, first, stop in _ranges(manifest)})
    if len(exact) <= _TAG_MAX:
        return exact
    return json.dumps({f"{topic}[*]": f"{offsets} in {partitions}" for topic, partitions, offsets in _sums(manifest)})


def _sums(manifest: Manifest) -> list[tuple[str, int, int]]:
    """Of each topic, the number of partitions and of the offsets learned."""
    offsets: dict[str, list[int]] = {}
    for where, first, stop in _ranges(manifest):
        offsets.setdefault(where.rpartition("[")[0], []).append(stop - first)
    return [(topic, len(learned), sum(learned)) for topic, learned in offsets.items()]


def _time(milliseconds: int | None) -> str:
    if milliseconds is None:
        return "the beginning"
    return datetime.fromtimestamp(milliseconds / 1000, UTC).isoformat(timespec="seconds")


def _readable(milliseconds: int | None) -> str:
    return _time(milliseconds).replace("T", " ").replace("+00:00", " UTC")
