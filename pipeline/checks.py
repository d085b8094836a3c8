"""Tests that every Task has to pass. A test class inherits them and says which task it is about; pytest finds it.

class TestMine(TaskChecks):
    task = "package.module:MyTask"
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import torch

from consumers.batch import Batch
from consumers.record import Float32s
from consumers.tabular import TableSource
from pipeline.config import JobConfig
from pipeline.learner import Learner
from pipeline.snapshot import Lineage, Snapshots
from pipeline.state import State, fresh_positions
from pipeline.store import MemoryStore
from pipeline.task import build_scorer, label_rule_of
from pipeline.train import learn

STEPS = 6

ROUNDING = 1e-5
"""Of the largest score: what the order of a sum may change. It differs by a row's place in its block, for the libraries
that multiply matrices take several rows at a time, and what is left over otherwise."""

TINY = 1e-30


class TaskChecks:
    """Inherit it, set `task`, and whatever else differs. Tables are as in the job file."""

    task: ClassVar[str]
    features: ClassVar[Mapping[str, Any]] = {
        "numeric": ["a", "b", {"name": "c", "nullable": True}],
        "categorical": [{"name": "d", "buckets": 16}],
    }
    learner: ClassVar[Mapping[str, Any]] = {}
    batch_size: ClassVar[int] = 32
    steps: ClassVar[int] = 300  # after which it has learned something
    improvement: ClassVar[float] = 0.8  # the loss is below this share of what it was at first

    def rows(self, random: np.random.Generator, job: JobConfig, count: int) -> tuple[Float32s, Float32s]:
        """Features [N, C] as the module takes them and labels [N] that depend on them. Override it for other data."""
        numeric, categorical = job.features.numeric, job.features.categorical
        features_NC = np.zeros((count, job.features.columns), np.float32)
        for index, column in enumerate(numeric):
            features_NC[:, index] = random.normal(index, 1 + index, count)
            if column.nullable:
                features_NC[random.random(count) < 0.2, index] = np.nan
        for index, category in enumerate(categorical, len(numeric)):
            features_NC[:, index] = random.integers(1, category.buckets, count)
        signal_N = features_NC[:, 0] * (1 if numeric else 1 / categorical[0].buckets)
        kind = Learner(job).task.kind
        if kind == "regression":
            return features_NC, 3 * signal_N + 1
        classes = job.learner.classes if kind == "multiclass" else 2
        edges = np.quantile(signal_N, np.arange(1, classes) / classes)
        return features_NC, np.searchsorted(edges, signal_N).astype(np.float32)

    def job(self, **learner: Any) -> JobConfig:
        """The task's job; `learner` changes more of its settings."""
        return JobConfig.model_validate(
            {
                "job": {"name": "checks", "state_dir": "unused"},
                "kafka": {"bootstrap.servers": "unused"},
                "features": {"topic": "f", "format": "arrow", "key": "n", "time": "n", "label": "y", **self.features},
                "stream": {"span": self.batch_size},
                "join": {"window": 0, "slab_rows": 4096},
                "learner": {"task": self.task, "batch_size": self.batch_size, **self.learner, **learner},
                "monitor": {"frozen_after": 3 * self.batch_size},
                "dead_letters": {"topic": "d"},
            }
        )

    def batches(self, job: JobConfig, seed: int = 0, rows: int | None = None) -> Iterator[Batch]:
        """Batches without end, the first `rows` rows of each filled."""
        random, size = np.random.default_rng(seed), job.learner.batch_size
        count = size if rows is None else rows
        while True:
            features_BC = np.zeros((size, job.features.columns), np.float32)
            labels_B, weights_B = np.zeros(size, np.float32), np.zeros(size, np.float32)
            features_BC[:count], labels_B[:count] = self.rows(random, job, count)
            weights_B[:count] = 1
            scores_BS, times_B = np.zeros((size, 1), np.float32), np.zeros(size, np.int64)
            yield Batch(features_BC, labels_B, weights_B, scores_BS, times_B, count)

    def test_it_learns_something(self) -> None:
        job = self.job()
        learner = Learner(job)
        losses = [learner.step(batch).loss for batch in islice(self.batches(job), self.steps)]
        first, last = float(np.mean(losses[:3])), float(np.mean(losses[-self.steps // 10 :]))
        assert last < self.improvement * first, f"the loss went from {first:.4g} to {last:.4g} in {self.steps} steps"

    def test_scores_are_float32_of_the_shape_and_range_of_their_kind(self) -> None:
        job = self.job()
        learner = _trained(job, self.batches(job))
        scores_BS = learner.score(next(self.batches(job, seed=1)).features_BC)
        kind = learner.task.kind
        assert kind in ("binary", "multiclass", "regression"), f"kind = {kind!r}"
        width = job.learner.classes if kind == "multiclass" else 1
        assert scores_BS.dtype == np.float32, f"scores are {scores_BS.dtype}"
        assert scores_BS.shape == (self.batch_size, width), f"scores have the shape {scores_BS.shape}"
        assert np.isfinite(scores_BS).all(), "scores are not finite"
        if kind != "regression":
            assert scores_BS.min() >= 0 <= 1 - scores_BS.max() + 1e-6, "scores are no probabilities"
        if kind == "multiclass":
            assert np.allclose(scores_BS.sum(axis=1), 1, atol=1e-4), "a row's probabilities do not add up to 1"

    def test_a_row_has_the_same_score_in_any_company(self) -> None:
        job = self.job(precision="float32")  # else rounding could hide much
        learner = _trained(job, self.batches(job))
        features_NC = np.concatenate([b.features_BC for b in islice(self.batches(job, seed=1), 3)])
        scores_NS = learner.score(features_NC)
        parts_NS = np.concatenate([learner.score(part) for part in np.array_split(features_NC, 7)])
        apart = float(np.abs(parts_NS - scores_NS).max() / max(np.abs(scores_NS).max(), TINY))
        assert apart <= ROUNDING, (
            f"a score depends on the rows beside it, by {apart:.2g} of the largest: "
            "does the module look across rows in eval mode?"
        )

    def test_padding_does_not_count(self) -> None:
        job, rows = self.job(), self.batch_size // 2 + 1
        zeros = Learner(job)
        for batch in islice(self.batches(job, rows=rows), STEPS):
            zeros.step(batch)
        other = Learner(job)
        for batch in islice(self.batches(job, rows=rows), STEPS):
            batch.features_BC[rows:], _ = self.rows(np.random.default_rng(9), job, self.batch_size - rows)
            other.step(batch)
        ours, theirs = zeros.weights(), other.weights()
        changed = [name for name in ours if not np.array_equal(ours[name], theirs[name], equal_nan=True)]
        assert not changed, (
            f"rows of weight 0 change {', '.join(changed)}: the loss has to heed the weights, and no layer may take "
            "statistics of the whole batch, as BatchNorm does"
        )

    def test_a_step_that_is_not_finite_changes_nothing(self) -> None:
        job = self.job()
        learner, batch = _trained(job, self.batches(job)), next(self.batches(job, seed=1))
        before = digest(learner)
        batch.weights_B[0] = np.nan
        assert learner.step(batch).refused, "a weight that is no number leaves the loss finite"
        assert digest(learner) == before, "a refused step changes something"
        assert not learner.step(next(self.batches(job, seed=1))).refused, "after a refused step no other is learned"

    def test_the_same_seed_gives_the_same_bits(self) -> None:
        job = self.job()
        one, other = (digest(_trained(job, self.batches(job))) for _ in range(2))
        assert one == other, "the same rows give other weights: is there a random number that torch does not know of?"

    def test_restored_it_goes_on_bit_for_bit(self) -> None:
        job = self.job()
        straight, batches = Learner(job), list(islice(self.batches(job), 2 * STEPS))
        for batch in batches[:STEPS]:
            straight.step(batch)
        straight.freeze()
        saved, document = digest(straight), straight.document()
        arrays = {name: array.copy() for name, array in straight.state().items()}
        for batch in batches[STEPS:]:
            straight.step(batch)
        whole, resumed = digest(straight), Learner(job)  # one after the other: torch has one generator for both
        resumed.restore(arrays, document)
        assert digest(resumed) == saved, "what is restored is not what was saved"
        for batch in batches[STEPS:]:
            resumed.step(batch)
        assert digest(resumed) == whole, "restored, it goes on otherwise: something is not in state_dict()"

    def test_killed_and_resumed_is_the_same_run(self) -> None:
        job = self.job()
        straight, store = MemoryStore(), MemoryStore()
        whole = self._live(job, straight)
        for entries in (5, 9):
            self._live(job, store, die_after=entries)
        resumed = self._live(job, store)
        assert resumed == whole, "killed and resumed, the state differs from that of a run never killed"

    def test_its_export_gives_the_same_scores(self, tmp_path: Path) -> None:
        job = self.job()
        learner = _trained(job, self.batches(job))
        batch = next(self.batches(job, seed=1))
        exported_BS = _exported(job, learner, batch.features_BC, tmp_path / "scorer.pt2")
        same = exported_BS.tobytes() == learner.score(batch.features_BC).tobytes()
        assert same, "the exported module has other scores than the trainer"

    def _live(self, job: JobConfig, store: MemoryStore, die_after: int | None = None) -> dict[str, Any]:
        """A life of a trainer over the same rows, up to its end or its death; what its last snapshot says."""
        features_NC, labels_N = self.rows(np.random.default_rng(5), job, 12 * self.batch_size + 3)
        names = [column.name for column in job.features.numeric] + [column.name for column in job.features.categorical]
        columns = {name: features_NC[:, index].astype(np.float64) for index, name in enumerate(names)}
        for column in job.features.categorical:
            columns[column.name] = columns[column.name].astype(np.int64)
        table = pa.table({n: pa.array(c, from_pandas=True) for n, c in {**columns, "y": labels_N}.items()})
        source = TableSource(table, job.features, label_rule_of(job), self.batch_size // 2)
        snapshots = Snapshots(store, job, on_durable=lambda _: None, released=lambda: 2**62)
        manifest = snapshots.newest()
        if manifest is None:
            state = State(job, fresh_positions({source.partition: 0}), Learner(job))
            snapshots.begin(Lineage.begin("none", {source.partition.topic: "none"}, {source.partition: 0}), state)
        else:
            state = snapshots.restore(manifest, Learner(job))
        for count, entry in enumerate(source.entries(state.positions), 1):
            learn(state, entry)
            if count == die_after:
                snapshots.wait()
                return {}
            if count % 4 == 0:
                snapshots.commit(state)
        snapshots.commit(state)
        snapshots.wait()
        return {name: store.manifest(store.sequences()[-1])[name] for name in ("state_sha256", "weights_sha256")}


def digest(learner: Learner) -> str:
    """Hash of all of a learner's state."""
    content = hashlib.sha256(repr(learner.document()).encode())
    for name, array in sorted(learner.state().items()):
        content.update(name.encode() + array.tobytes())
    return content.hexdigest()


def _trained(job: JobConfig, batches: Iterator[Batch]) -> Learner:
    learner = Learner(job)
    for batch in islice(batches, STEPS):
        learner.step(batch)
    return learner


def _exported(job: JobConfig, learner: Learner, features_BC: Float32s, path: Path) -> Float32s:
    """Scores [B, S] of the weights in a new scorer, exported as MLflow does it, and loaded again."""
    scorer = build_scorer(job)
    scorer.module.load_state_dict({name: torch.from_numpy(array) for name, array in learner.weights().items()})
    example = torch.from_numpy(np.nan_to_num(features_BC[:3]))
    program = torch.export.export(scorer, (example,), dynamic_shapes=[{0: torch.export.Dim.AUTO}])
    torch.export.save(program, path)
    with torch.inference_mode():
        scores: Float32s = torch.export.load(path).module()(torch.from_numpy(features_BC)).numpy()
    return scores.reshape(len(features_BC), -1)
