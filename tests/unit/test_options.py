"""The options of gradient descent: each does what its source says, and is part of S."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import save_file
from torch import Tensor

from consumers.batch import Batch
from consumers.errors import ConfigError
from consumers.record import Partition
from pipeline.checks import TaskChecks, digest
from pipeline.learner import Learner
from pipeline.options.anchor import Ewc
from pipeline.options.config import ReplayConfig
from pipeline.options.pretrained import read_weights
from pipeline.options.replay import Replay
from pipeline.run import Bounds, Start, _begin
from pipeline.snapshot import Snapshots, load_state
from pipeline.store import MemoryStore
from pipeline.task import Regression
from tests.unit.test_learner import SIZE, batch, job

SMALL = {"kind": "mlp", "learning_rate": 0.01, "hidden": [16]}


class TestAveraged(TaskChecks):
    task = "binary"
    learner = {**SMALL, "average": 0.99}


class TestSeveralEpochs(TaskChecks):
    task = "multiclass"
    learner = {**SMALL, "classes": 3, "epochs": 3}


class TestReplayed(TaskChecks):
    task = "regression"
    learner = {**SMALL, "replay": 100, "gradient_norm_max": 1.0}


class TestHeldToItsStart(TaskChecks):
    task = "regression"
    learner = {**SMALL, "anchor": {"kind": "l2_init", "weight": 1e-3}}


class TestHeldToWhatMattered(TaskChecks):
    task = "binary"
    learner = {**SMALL, "anchor": {"kind": "ewc", "weight": 1.0, "every": 160}}


class TestDistilled(TaskChecks):
    task = "multiclass"
    learner = {**SMALL, "classes": 3, "anchor": {"kind": "distill", "weight": 0.1, "every": 64}}


class Column(Regression):
    """Its scores are [N, 1]."""

    def score(self, outputs: Tensor) -> Tensor:
        return outputs


def test_scores_that_are_a_column_are_as_far_from_older_ones_as_any() -> None:
    distilled = {**SMALL, "anchor": {"kind": "distill", "weight": 0.5}}
    losses = []
    for task in ("regression", f"{__name__}:Column"):
        learner = Learner(job(**distilled, task=task))
        losses.append([learner.step(batch(seed)).loss for seed in range(4)])
    assert losses[0] == pytest.approx(losses[1])


class TestAllTogether(TaskChecks):
    task = "binary"
    learner = {
        **SMALL,
        "average": 0.9,
        "epochs": 2,
        "replay": {"rows": 50, "keep": "recent"},
        "anchor": {"kind": "distill", "weight": 0.1, "every": 64},
        "gradient_norm_max": 5.0,
        "freeze": ["0.embeddings*"],
    }


def learned(steps: int = 20, rows: int = SIZE, **learner: Any) -> Learner:
    """A learner after some steps."""
    made = Learner(job(**{"learning_rate": 0.01, **learner}))
    for seed in range(steps):
        made.step(batch(seed, rows))
    return made


def flat(learner: Learner) -> np.ndarray:
    """All parameters in one array."""
    return torch.cat([parameter.detach().flatten() for parameter in learner.module.parameters()]).numpy()


def moved(learner: Learner) -> float:
    """How far the parameters are from those of the start."""
    return float(np.linalg.norm(flat(learner) - flat(Learner(job()))))


def test_options_that_do_nothing_change_no_bit() -> None:
    plain = learned()
    for option in ({"gradient_norm_max": 1e9}, {"average": 1e-9}, {"epochs": 1}):
        other = learned(**option)
        assert other.score(batch().features_BC).tobytes() == plain.score(batch().features_BC).tobytes(), option
        assert flat(other).tobytes() == flat(plain).tobytes(), option


def test_of_the_average_as_of_any_other_weights_just_what_is_scored_is_published() -> None:
    averaged, plain = learned(average=0.9), learned()
    trained = {name.removeprefix("average.trained."): array for name, array in averaged.state().items()}
    for name, array in plain.weights().items():
        assert array.tobytes() == trained[name].tobytes(), "the average is no matter to what learns"
    assert averaged.weights()["1.weight"].tobytes() != trained["1.weight"].tobytes()
    assert averaged.weights()["0.standardise.count_F"][0] == 20 * SIZE
    fresh = Learner(job(average=0.9))
    fresh.module.load_state_dict({name: torch.from_numpy(array) for name, array in averaged.weights().items()})
    features = batch(99).features_BC
    assert fresh.score(features).tobytes() == averaged.score(features).tobytes()


def test_the_average_is_that_of_its_formula() -> None:
    learner, mean = Learner(job(average=0.9)), None
    for seed in range(150):
        learner.step(batch(seed))
        weights = learner.state()["average.trained.1.weight"].astype(np.float64)
        decay = min(0.9, (2 + seed) / (11 + seed))
        before = Learner(job()).weights()["1.weight"] if mean is None else mean
        mean = decay * before + (1 - decay) * weights
    np.testing.assert_allclose(learner.weights()["1.weight"], mean, rtol=1e-4, atol=1e-6)


def test_frozen_parameters_stay_and_all_others_learn() -> None:
    before, after = Learner(job()).weights(), learned(freeze=["0.embeddings*", "1.bias"]).weights()
    same = {name for name in before if before[name].tobytes() == after[name].tobytes()}
    assert same == {"0.embeddings.0.weight", "1.bias"}


@pytest.mark.parametrize(
    ("patterns", "complaint"),
    [
        (["0.embedings*"], r"matches no parameter; there are 0\.embeddings\.0\.weight, 1\.weight"),
        (["*"], "nothing to learn"),
    ],
)
def test_what_cannot_be_frozen_is_an_error(patterns: list[str], complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        Learner(job(freeze=patterns))


def test_a_gradient_too_large_is_scaled_down_to_the_norm_that_is_allowed() -> None:
    learner = Learner(job(task="regression", gradient_norm_max=0.5))
    training = learner.method.executor._training
    columns = batch(0)
    _, norm = training.gradients(
        *(torch.from_numpy(c) for c in (columns.features_BC, columns.labels_B * 100, columns.weights_B))
    )
    clipped = torch.cat([p.grad.flatten() for p in learner.module.parameters()]).norm()
    assert norm > 5
    assert clipped.item() == pytest.approx(0.5, rel=1e-5)


def test_or_its_batch_is_refused_and_changes_nothing() -> None:
    learner = learned(task="regression", gradient_norm_max=10.0, on_exceed="refuse")
    before, wild = digest(learner), batch(77)
    wild.labels_B[:] *= 1e4
    assert learner.step(wild).refused
    assert digest(learner) == before
    assert not learner.step(batch(78)).refused


def test_l2_init_keeps_the_weights_near_those_of_the_start() -> None:
    distances = [
        moved(learned(200, **({"anchor": {"kind": "l2_init", "weight": w}} if w else {}))) for w in (0, 0.01, 1)
    ]
    assert distances == sorted(distances, reverse=True)
    assert distances[2] < 0.5 * distances[0]


def two_stretches(**learner: Any) -> tuple[float, float]:
    """Squared errors on a first concept, before and after a second one was learned; a category tells them apart."""

    def rows(concept: int, seed: int) -> Batch:
        made = batch(seed)
        made.features_BC[:, 0] = np.random.default_rng(seed).uniform(-2, 2, SIZE)
        made.features_BC[:, 1], made.features_BC[:, 2] = 0, concept
        made.labels_B[:] = made.features_BC[:, 0] * (3 if concept == 1 else -3)
        return made

    made, check = Learner(job(task="regression", learning_rate=0.01, **learner)), rows(1, 999)

    def error() -> float:
        return float(np.square(made.score(check.features_BC)[:, 0] - check.labels_B).mean())

    for seed in range(400):
        made.step(rows(1, seed))
    before = error()
    for seed in range(400, 700):
        made.step(rows(2, seed))
    return before, error()


ROWS = 400 * SIZE


@pytest.mark.parametrize(
    "option",
    [
        {"replay": 1000},
        {"anchor": {"kind": "ewc", "weight": 100.0, "every": ROWS}},
        {"anchor": {"kind": "distill", "weight": 3.0, "every": ROWS}},
    ],
    ids=["replay", "ewc", "distill"],
)
def test_what_was_learned_first_is_forgotten_less(option: dict[str, Any]) -> None:
    _, forgotten = two_stretches()
    before, kept = two_stretches(**option)
    assert before < 0.5
    assert kept < 0.5 * forgotten


def test_several_epochs_learn_more_of_the_same_rows() -> None:
    def loss(**learner: Any) -> float:
        made = learned(1, task="regression", **learner)
        return float(np.square(made.score(batch(0).features_BC)[:, 0] - batch(0).labels_B).mean())

    assert loss(epochs=40) < 0.98 * loss()


def test_passes_end_once_the_newest_rows_which_wait_are_scored_no_better() -> None:
    learner = Learner(job(task="regression", learning_rate=0.01, epochs=50))
    steps: list[np.ndarray] = []
    executor = learner.method.executor
    inner = executor._stepping.step
    executor._stepping.step = lambda each, new: steps.append((each.weights_B.copy(), new.copy())) or inner(each, new)
    opposite = batch(0)
    opposite.labels_B[:] = np.where(np.arange(SIZE) < 28, 5, -5)  # the newest contradict all that came before
    learner.step(opposite)
    (first, new), (last, old) = steps
    assert first.tolist() == [1] * 28 + [0] * 4
    assert last.tolist() == [1] * 32
    assert (new.sum(), old.sum()) == (32, 0), "standardisers see each row once"
    assert learner.weights()["0.standardise.count_F"][0] == 32
    steps.clear()
    opposite.labels_B[:] = 5
    learner.step(opposite)
    assert len(steps) > 5


def test_if_a_later_pass_is_refused_none_has_happened() -> None:
    learner = learned(task="regression", epochs=4, replay=40, average=0.9)
    before, bad = digest(learner), batch(9)
    bad.labels_B[-1] = np.inf  # held back: the passes before the last are finite
    assert learner.step(bad).refused
    assert digest(learner) == before
    assert not learner.step(batch(10)).refused


def test_a_batch_of_one_row_has_nothing_to_hold_back() -> None:
    learner = Learner(job(epochs=3))
    assert not learner.step(batch(0, rows=1)).refused


def remembered(keep: str, rows: int = 50, stream: int = 1000) -> list[float]:
    """The numbers of the rows that a buffer holds after a stream, in batches that are not all full."""
    replay, number = Replay(ReplayConfig(rows=rows, keep=keep), 3, seed=1), 0
    for size in np.random.default_rng(0).integers(1, SIZE + 1, 10**6):
        if number >= stream:
            break
        each = batch(0, int(size))
        each.features_BC[:size, 0] = np.arange(number, number + size)
        replay.learned(each)
        number += int(size)
    return sorted(replay.state()["features"][:, 0].tolist())


def test_the_ring_holds_the_newest_rows() -> None:
    found = remembered("recent")
    assert found == list(np.arange(found[-1] - 49, found[-1] + 1))


def test_the_reservoir_holds_a_uniform_sample_of_all_rows() -> None:
    found = np.array(remembered("reservoir", rows=500, stream=10_000))
    assert len(set(found)) == 500
    assert np.histogram(found, 5, (0, 10_000))[0].min() > 70  # 100 expected in each fifth, 9 the deviation
    assert found.mean() == pytest.approx(5000, abs=400)


def test_as_many_rows_are_replayed_as_are_new_and_none_before_there_are_any() -> None:
    replay = Replay(ReplayConfig(rows=10), 3, seed=0)
    assert replay.draw(batch(0, 20)).weights_B.tolist() == [1] * 20 + [0] * 44
    replay.learned(batch(0, 20))
    drawn = replay.draw(batch(1, 5))
    assert drawn.weights_B.tolist() == [1] * 5 + [0] * 27 + [1] * 5 + [0] * 27
    assert set(drawn.features_BC[32:37, 0]) <= set(batch(0, 20).features_BC[:20, 0])


def test_standardisers_see_a_replayed_row_once() -> None:
    assert learned(10, replay=64).weights()["0.standardise.count_F"][0] == 10 * SIZE


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"cuda_graphs": True, "average": 0.9}, "cuda_graphs = true is not for average"),
        ({"cuda_graphs": True, "epochs": 2}, "cuda_graphs = true is not for epochs"),
        ({"cuda_graphs": True, "replay": 9}, "cuda_graphs = true is not for replay"),
        ({"cuda_graphs": True, "anchor": {"kind": "l2_init", "weight": 1}}, "cuda_graphs = true is not for anchor"),
        ({"compile": True, "anchor": {"kind": "distill", "weight": 1}}, "compile = true is not for anchor.kind"),
        ({"anchor": {"kind": "ewc", "weight": 1}}, "needs anchor.every"),
        ({"anchor": {"kind": "l2_init", "weight": 1, "every": 5}}, "anchor.every is not for"),
        ({"kind": "bank", "average": 0.9}, "average is for models that learn by gradient descent: set learner.kind"),
        ({"kind": "bank", "pretrained": "w"}, "pretrained is for models that learn by gradient descent"),
        ({"kind": "bank"}, "hidden is for models that learn by gradient descent"),
        ({"kind": "bank", "hidden": (256, 128), "learning_rate": 0.1}, "learning_rate is for models that learn by"),
        ({"average": 1.0}, "less than 1"),
        ({"replay": True}, "valid dictionary"),
        ({"on_exceed": "refuse"}, "on_exceed = 'refuse' needs gradient_norm_max"),
        ({"on_exceed": "ignore"}, "'clip' or 'refuse'"),
    ],
)
def test_what_makes_no_sense_together_is_an_error(settings: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValidationError, match=complaint):
        job(**settings)


def saved(learner: Learner, path: Path, **changed: Any) -> str:
    tensors = {name: torch.from_numpy(array) for name, array in learner.weights().items()} | changed
    save_file({name: tensor for name, tensor in tensors.items() if tensor is not None}, path)
    return str(path)


def test_a_lineage_begins_with_pretrained_weights(tmp_path: Path) -> None:
    old = learned()
    config = job(pretrained=saved(old, tmp_path / "w.safetensors"), anchor={"kind": "l2_init", "weight": 1})
    young = Learner(config, read_weights(config))
    assert young.weights().keys() == old.weights().keys()
    for name, array in old.weights().items():
        assert young.weights()[name].tobytes() == array.tobytes()
    assert young.state()["anchor.start.1"].tobytes() == old.weights()["1.weight"].tobytes(), (
        "that is what it is held to"
    )
    assert read_weights(job()) is None


def test_a_run_begins_with_them_and_goes_on_without_the_file(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    config = job(pretrained=saved(learned(), path), anchor={"kind": "l2_init", "weight": 1})
    store = MemoryStore()
    snapshots = Snapshots(store, config, on_durable=lambda _: None, released=lambda: -1)
    cluster: Any = SimpleNamespace(id=lambda: "cluster")
    topics: Any = [SimpleNamespace(name=name, id="id") for name in ("f", "l")]
    starts = {Partition("f", 0): 0, Partition("l", 0): 0}
    _begin(config, snapshots, cluster, topics, Bounds(starts=starts), Start())
    snapshots.close()
    path.unlink()
    resumed = load_state(store, store.manifest(0), config, Learner(config)).learner
    for name, array in learned().weights().items():
        assert resumed.weights()[name].tobytes() == array.tobytes(), name
    assert resumed.state()["anchor.start.1"].tobytes() == learned().weights()["1.weight"].tobytes()


@pytest.mark.parametrize(
    ("changed", "complaint"),
    [
        ({"1.weight": None}, r"does not fit the module of learner\.task: 1\.weight is missing$"),
        ({"8.weight": torch.zeros(3)}, r"8\.weight is not in the module$"),
        ({"1.bias": torch.zeros(3)}, r"1\.bias has the shape \(3,\), not \(16,\)$"),
        ({"1.bias": torch.full((16,), torch.nan)}, r"1\.bias holds numbers that are not finite as torch\.float32$"),
        ({"1.bias": torch.full((16,), 1e300, dtype=torch.float64)}, r"1\.bias holds numbers that are not finite as"),
        ({"1.bias": torch.zeros(16, dtype=torch.complex64)}, r"1\.bias is torch\.complex64, not torch\.float32$"),
    ],
)
def test_pretrained_weights_that_do_not_fit_are_an_error(
    tmp_path: Path, changed: dict[str, Any], complaint: str
) -> None:
    config = job(pretrained=saved(learned(1), tmp_path / "w.safetensors", **changed))
    with pytest.raises(ConfigError, match=complaint):
        Learner(config, read_weights(config))


def test_a_file_that_holds_no_weights_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "w").write_text("no")
    for name in ("w", "none"):
        with pytest.raises(ConfigError, match="cannot be read as a safetensors file"):
            read_weights(job(pretrained=str(tmp_path / name)))


def test_what_a_batch_did_not_use_matters_no_more_for_it() -> None:
    layer = torch.nn.Linear(1, 1, bias=False)
    held = Ewc(layer, weight=1.0, every=10**6)
    for gradient in (torch.ones(1, 1), None):
        layer.weight.grad = gradient
        held.pull()
        held.learned(batch())
    assert held.state()["squares.0"] == [[1.0]]
