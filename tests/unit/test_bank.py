"""The bank of experts: each finds what it is for, the mixture finds the right one, and S holds all of it to the bit.

What holds of every kind of learner stands in test_learner.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from consumers.batch import Batch
from consumers.record import Float32s
from pipeline.bank import mixture
from pipeline.bank.experts import EXPERTS, HIDDEN, L2_EXPERT, LINEAR, MIXERS, TRAINED
from pipeline.bank.kernels import REPLAYED, SUB_BATCH
from pipeline.bank.memory import Values
from pipeline.bank.module import MEMORY, Bank
from pipeline.config import JobConfig, LearnerConfig
from pipeline.descent import Descent
from pipeline.identity import with_settings
from pipeline.learner import Learner
from tests.unit.test_learner import BANK, SIZE, batch, digest
from tests.unit.test_learner import job as learner_job
from tests.unit.test_verify import check_promises

TASKS = ("binary", "multiclass", "regression")
WIDE, NEAREST, FREQUENT = len(LINEAR) + len(EXPERTS), len(LINEAR) + len(EXPERTS) + 1, -2


def job(**learner: Any) -> JobConfig:
    return learner_job(**BANK | learner)


def bank(learner: Learner) -> Bank:
    assert isinstance(learner.module, Bank)
    return learner.module


def batch_of(features_NC: Any, labels_N: Any) -> Batch:
    """A batch of the columns a, b and c, padded."""
    made, rows = batch(0, rows=0), len(labels_N)
    made.features_BC[:rows], made.labels_B[:rows], made.weights_B[:rows] = features_NC, labels_N, 1
    return Batch(made.features_BC, made.labels_B, made.weights_B, made.scores_BS, made.event_time_B, rows)


def answers(learner: Learner, features_BC: Float32s) -> Float32s:
    """What each member says [N, K, M]."""
    with torch.no_grad():
        return bank(learner).answers(bank(learner).encode(torch.from_numpy(features_BC))).numpy()


@pytest.mark.parametrize("task", TASKS)
def test_each_task_learns_and_an_untrained_bank_is_neutral(task: str) -> None:
    learner, classes = Learner(job(task=task)), {"binary": 2, "multiclass": 5, "regression": 5}[task]
    neutral = {"binary": 0.5, "multiclass": 0.2, "regression": 0}[task]
    np.testing.assert_allclose(learner.score(batch().features_BC), neutral, rtol=1e-5)
    losses = [learner.step(batch(seed % 3, classes=classes)).loss for seed in range(90)]
    assert np.mean(losses[-10:]) < 0.5 * np.mean(losses[:3])
    assert learner.score(batch().features_BC).shape == (SIZE, 5 if task == "multiclass" else 1)


def test_a_task_of_ones_own_and_the_plain_learner_go_by_gradient_descent() -> None:
    for config in (job(kind="mlp"), job(task="tests.tasks:CountingTask")):
        assert isinstance(Learner(config).method, Descent)


@pytest.mark.parametrize(
    "setting",
    [{"device": "cuda"}, {"cuda_graphs": True}, {"precision": "bfloat16"}, {"compile": True}],
)
def test_what_only_the_plain_learner_can_is_refused(setting: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"learner\.kind = 'bank' learns on a CPU.* set learner\.kind = 'mlp'"):
        job(**setting)
    job(task="tests.tasks:CountingTask", **setting)


def test_scores_do_not_depend_on_how_rows_are_grouped() -> None:
    learner = Learner(job(task="multiclass"))
    for seed in range(3):
        learner.step(batch(seed, classes=5))
    features = np.concatenate([batch(seed).features_BC for seed in range(4)])
    whole = learner.score(features)
    parts = np.concatenate([learner.score(part) for part in np.array_split(features, 17)])
    assert whole.tobytes() == parts.tobytes()
    np.testing.assert_allclose(whole.sum(axis=1), 1, rtol=1e-5)


@pytest.mark.parametrize("task", TASKS)
def test_padding_does_not_count_nor_does_a_row_of_weight_zero(task: str) -> None:
    short, long, weightless = (batch(3, rows=20) for _ in range(3))
    long.features_BC[20:, 0] = 1e6
    weightless = Batch(*(getattr(weightless, name) for name in Batch.__slots__[:-1]), 24)
    weightless.features_BC[20:24, 0] = 1e6
    digests = []
    for one in (short, long, weightless):
        learner = Learner(job(task=task))
        learner.step(one)
        digests.append(digest(learner))
    assert digests[0] == digests[1] == digests[2]


@pytest.mark.parametrize("task", TASKS)
def test_what_was_just_said_is_not_asked_again_and_that_changes_no_bit(
    task: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    encode = Bank.encode
    monkeypatch.setattr(Bank, "encode", lambda self, rows: asked.append(len(rows)) or encode(self, rows))
    left, right = Learner(job(task=task)), Learner(job(task=task))
    for seed in range(4):
        for learner in (left, right):
            if learner is left:
                learner.score(batch(seed).features_BC)
            learner.step(batch(seed))
        assert digest(left) == digest(right)
    assert len(asked) == 9  # the first step asks again: it standardises first


@pytest.mark.parametrize("rows", [600, 1300])
def test_after_a_batch_larger_than_the_ring_of_replayed_rows_it_holds_the_newest(rows: int) -> None:
    learner, random, ones = Learner(job(batch_size=rows)), np.random.default_rng(0), REPLAYED - 100
    features_BC, weights_B = np.zeros((rows, 3), np.float32), np.ones(rows, np.float32)
    features_BC[:, 0], weights_B[-50::2] = random.normal(0, 1, rows), 0
    newest = np.flatnonzero(weights_B)[-REPLAYED:]
    labels_B = np.zeros(rows, np.float32)
    labels_B[newest[-ones:]] = 1
    unscored = np.zeros((rows, 1), np.float32), np.zeros(rows, np.int64)
    learner.step(Batch(features_BC, labels_B, weights_B, *unscored, rows))
    assert learner.state()["bank.past.target_N"].sum() == ones
    for _ in range(2):  # the rows labelled 0 are the oldest: they go first
        learner.step(Batch(features_BC, np.ones_like(labels_B), np.ones_like(weights_B), *unscored, 50))
    assert learner.state()["bank.past.target_N"].sum() == REPLAYED


def test_nor_where_numbers_are_too_small_for_a_step() -> None:
    digests = []
    for asks in (True, False):
        learner, random = Learner(job()), np.random.default_rng(0)
        for seed in range(20):
            made = batch(seed)
            made.features_BC[:, 0] = np.where(random.random(SIZE) < 0.5, 0, random.random(SIZE) * 2e-39)  # denormal
            if asks:
                learner.score(made.features_BC)
            learner.step(made)
        digests.append(digest(learner))
    assert digests[0] == digests[1]


@pytest.mark.parametrize("task", TASKS)
def test_whatever_finite_or_infinite_numbers_come_the_state_stays_finite(task: str) -> None:
    learner, random = Learner(job(task=task)), np.random.default_rng(0)
    for step in range(200):
        wild = batch(step, classes=2)
        wild.features_BC[:, 0] = random.choice([-np.inf, -3e38, 0, 1, 3e38, np.inf], SIZE)
        if task == "regression":
            wild.labels_B[:] = random.choice([-1e18, 0, 1e-30, 1e18], SIZE)
        wild.weights_B[:] = random.choice([0, 1e-20, 1, 1e30], SIZE)
        assert not learner.step(wild).refused
    for name, array in learner.state().items():
        assert np.isfinite(array).all(), name
    assert np.isfinite(learner.score(wild.features_BC)).all()


def test_the_seed_decides() -> None:
    digests = []
    for seed in (0, 0, 1):
        document = job().model_dump()
        document["job"]["seed"] = seed
        learner = Learner(JobConfig.model_validate(document))
        learner.step(batch(0))
        digests.append(digest(learner))
    assert digests[0] == digests[1] != digests[2]


def mixtures(members: int, outputs: int) -> mixture.Mixtures:
    weights_m, mixers = np.full(members, 1 / members, np.float32), len(MIXERS)
    return mixture.Mixtures(
        mixture_M=weights_m,
        mixers_SM=np.tile(weights_m, (mixers, 1)),
        top_Z=np.full(mixers + 1, 1 / (mixers + 1), np.float32),
        right_M=np.zeros(members, np.float32),
        right_Z=np.zeros(mixers + 1, np.float32),
        said_SK=np.zeros((mixers, outputs), np.float32),
    )


def judge(said: Float32s, label: int, all_of_them: mixture.Mixtures) -> float:
    labels_n, weights_n = np.full(len(said), label, np.float32), np.ones(len(said), np.float32)
    return float(mixture.judge_classes(said, np.log(said), labels_n, weights_n, all_of_them, 0.01))


def test_the_mixture_follows_whoever_is_right_and_turns_when_another_is() -> None:
    found = mixtures(3, 2)
    said = np.full((100, 2, 3), 0.5, np.float32)
    said[:, :, 0] = [0.9, 0.1]
    said[:, :, 2] = [0.2, 0.8]
    judge(said, 0, found)
    assert found.mixture_M[0] > 0.95
    assert judge(said, 0, found) < -np.log(0.88)  # near the best one's
    judge(said[:25], 1, found)
    assert found.mixture_M[2] > 0.9
    for weights in (found.mixture_M, found.top_Z):
        np.testing.assert_allclose(weights.sum(), 1, rtol=1e-5)
    assert found.mixture_M.min() >= 0.99 * mixture.SHARE / 3  # a share is left to each: so it comes back


def test_logistic_mixtures_add_up_what_members_know_and_are_believed_for_it() -> None:
    random, found = np.random.default_rng(0), mixtures(2, 2)
    hints = random.random((4000, 2)) < 0.5
    odds = np.where(hints, 2.0, -2.0)
    labels_n = (random.random(4000) < 1 / (1 + np.exp(-odds.sum(axis=1)))).astype(np.float32)
    right = 1 / (1 + np.exp(-odds))
    said = np.stack([1 - right, right], axis=1).astype(np.float32)
    mixture.judge_classes(said, np.log(said), labels_n, np.ones(4000, np.float32), found, 0.01)
    assert found.top_Z[0] < 0.05
    assert (found.mixers_SM[2] > 0.8).all()  # the sum of both log-odds is the truth


def test_of_values_the_mixture_follows_who_errs_least_on_the_scale_of_its_errors() -> None:
    random, found = np.random.default_rng(0), mixtures(3, 1)
    labels_n = (1e6 * random.normal(size=200)).astype(np.float32)
    said = np.stack([labels_n + np.float32(scale) for scale in (1e6, 2e5, 2e6)], axis=1)[:, None]
    values = Values(np.zeros(4), np.array([0, 1e6], np.float32))
    told = (said / np.float32(1e6)).astype(np.float32)
    mixture.judge_values(said, told, labels_n, np.ones(200, np.float32), found, values)
    assert found.mixture_M[1] > 0.9
    assert values.sums_4[3] < 1e12


def test_neighbours_tell_islands_apart_and_only_the_newest_rows_are_remembered() -> None:
    learner, random = Learner(job(task="multiclass")), np.random.default_rng(0)

    def islands(shift: int) -> Batch:
        places = random.integers(0, 5, SIZE)
        features = np.stack([places * 10 + random.normal(0, 0.1, SIZE), np.zeros(SIZE), np.ones(SIZE)], axis=1)
        return batch_of(features, (places + shift) % 5)

    for _ in range(10):
        learner.step(islands(0))
    now = islands(0)
    assert (answers(learner, now.features_BC)[:, :, NEAREST].argmax(axis=1) == now.labels_B).mean() > 0.95
    for _ in range(MEMORY // SIZE):
        learner.step(islands(2))
    now = islands(2)
    assert (answers(learner, now.features_BC)[:, :, NEAREST].argmax(axis=1) == now.labels_B).all()


def test_the_hashed_table_learns_what_two_columns_say_together() -> None:
    learner, random = Learner(job()), np.random.default_rng(0)

    def crossed() -> Batch:
        signs, categories = random.choice([-1, 1], SIZE), random.integers(1, 3, SIZE)
        features = np.stack([signs * 1.0, np.zeros(SIZE), categories], axis=1)
        return batch_of(features, (signs > 0) == (categories == 1))

    for _ in range(60):
        learner.step(crossed())
    now = crossed()
    assert (answers(learner, now.features_BC)[:, :, WIDE].argmax(axis=1) == now.labels_B).all()


def test_what_two_categories_say_together_is_not_drowned_by_numbers() -> None:
    document = job().model_dump()
    document["features"] |= {"numeric": list("abcd"), "categorical": list("ef")}
    learner, random, right = Learner(JobConfig.model_validate(document)), np.random.default_rng(0), []
    classes = random.integers(0, 2, (13, 13))
    for _ in range(150):
        made, kinds = batch(), random.integers(1, 13, (SIZE, 2))
        features = np.concatenate([random.normal(0, 1, (SIZE, 4)), kinds], axis=1).astype(np.float32)
        labels = classes[kinds[:, 0], kinds[:, 1]].astype(np.float32)
        right.append(
            ((answers(learner, features)[:, :, WIDE : WIDE + 2].argmax(axis=1)) == labels[:, None]).mean(axis=0)
        )
        learner.step(Batch(features, labels, *(getattr(made, name) for name in Batch.__slots__[2:])))
    wide, narrow = np.mean(right[-50:], axis=0)
    assert narrow > 0.9 > wide


@pytest.mark.parametrize("only", ["numeric", "categorical"])
def test_columns_of_one_kind_are_enough(only: str) -> None:
    document = job().model_dump()
    document["features"] |= {"numeric": [], "categorical": []}
    document["features"][only] = [{"name": "a"}, {"name": "b"}]
    learner, random = Learner(JobConfig.model_validate(document)), np.random.default_rng(0)
    for _ in range(60):
        made = batch()
        features = random.integers(1, 3, (SIZE, 2)).astype(np.float32)
        step = Batch(features, features[:, 0] - 1, *(getattr(made, n) for n in Batch.__slots__[2:]))
        learner.step(step)
    assert ((learner.score(features)[:, 0] > 0.5) == step.labels_B).all()


def test_experts_that_see_the_newest_labels_know_what_repeats() -> None:
    learner, random = Learner(job(batch_size=2)), np.random.default_rng(0)
    label, right = 0, []
    for _ in range(1500):
        label = 1 - label if random.random() < 0.1 else label
        rows = np.zeros((2, 3), np.float32)
        rows[0] = random.normal(size=3)
        rows[0, 2] = 1
        right.append((learner.score(rows[:1])[0, 0] > 0.5) == label)
        weights = np.array([1, 0], np.float32)
        made = Batch(rows, label * weights, weights, np.zeros((2, 1), np.float32), np.zeros(2, np.int64), 1)
        learner.step(made)
    assert np.mean(right[500:]) > 0.87  # 0.9 is all that there is to know


@pytest.mark.parametrize("rows", [1, 2, SUB_BATCH])
def test_what_remembers_moves_by_rows_however_few_come_at_once(rows: int) -> None:
    learner = Learner(job())
    learner.step(batch_of(np.ones((rows, 3)), np.ones(rows)))
    mean, square = learner.state()["bank.slots.second_2EKH"]
    moved = square > 0
    assert moved.any()
    share = rows / SUB_BATCH  # of the shares of full ones: 0.1 of the gradient, and 0.01 of its square
    np.testing.assert_allclose(mean[moved] ** 2 / square[moved], share, rtol=1e-4)


def test_labels_that_come_sorted_pull_no_score_to_the_last_ones() -> None:
    learner, random = Learner(job(batch_size=256)), np.random.default_rng(0)
    for _ in range(40):
        features = np.column_stack([random.normal(size=(256, 2)), np.ones(256)]).astype(np.float32)
        labels = np.sort(random.random(256) < 0.5)[::-1].astype(np.float32)
        zeros = np.zeros(256, np.int64)
        learner.step(Batch(features, labels, np.ones(256, np.float32), np.zeros((256, 1), np.float32), zeros, 256))
    assert abs(learner.score(features).mean() - 0.5) < 0.1


def test_scores_are_those_of_all_negatives_though_a_share_is_learned() -> None:
    learner, random = Learner(with_settings(job(), {"join.keep_negatives": 0.1})), np.random.default_rng(0)
    for seed in range(60):
        step = batch(seed)
        step.labels_B[:] = random.random(SIZE) < 0.4
        learner.step(step)
    scores = np.concatenate([learner.score(batch(seed).features_BC) for seed in range(60, 70)])
    assert scores.mean() == pytest.approx(0.4 * 0.1 / (0.4 * 0.1 + 0.6), abs=0.03)


@pytest.mark.parametrize(("after", "least", "most"), [(None, 0.9, 1.0), (1000, 0.0, 0.7)])
def test_bursts_of_early_negatives_and_of_corrections_foretell_less(
    after: int | None, least: float, most: float
) -> None:
    learner = Learner(with_settings(job(), {"join.negative_after": after}))
    means = []
    for seed in range(80):
        step = batch(seed)
        step.labels_B[:] = seed % 2
        learner.step(step)
        means.append(learner.score(batch(1000 + seed).features_BC).mean())
    assert least <= np.abs(np.diff(means[-20:])).mean() <= most


def test_an_outlier_and_a_sentinel_do_not_make_all_other_values_alike() -> None:
    learner, random, accuracies = Learner(job()), np.random.default_rng(0), []
    for seed in range(90):
        step = batch(seed)
        step.features_BC[:, 0] = random.normal(0, 1, SIZE)
        step.labels_B[:] = step.features_BC[:, 0] > 0
        step.features_BC[random.random(SIZE) < 0.1, 0] = -9999  # which says nothing of the label
        if seed == 20:
            step.features_BC[3, 0] = 1e9
        accuracies.append(((learner.score(step.features_BC)[:, 0] > 0.5) == step.labels_B).mean())
        learner.step(step)
    assert np.mean(accuracies[40:]) > 0.88
    assert bank(learner).heavy_F.tolist() == [True, False]


def test_scales_are_those_of_the_deviation_where_tails_are_not_heavy() -> None:
    learner, random = Learner(job()), np.random.default_rng(0)
    for seed in range(70):
        step = batch(seed)
        step.features_BC[:, 0] = random.exponential(10, SIZE)
        step.features_BC[:, 1] = 7  # one and the same
        learner.step(step)
    assert not bank(learner).heavy_F.any()
    assert bank(learner).standardise.scale_F[0] == pytest.approx(0.1, rel=0.1)


def test_a_few_rows_are_not_enough_to_call_a_column_heavy() -> None:
    learner, ones_B = Learner(job(batch_size=2)), np.ones(2, np.float32)
    for number in range(70):
        features_BC = np.zeros((2, 3), np.float32)
        features_BC[:, 0] = (0, 1e-3) if number < 60 else (1, -1)
        learner.step(Batch(features_BC, ones_B, ones_B, ones_B[:, None], np.zeros(2, np.int64), 2))
        assert bank(learner).heavy_F[0].item() == (number >= 63)


@pytest.mark.parametrize("rows", [2, 7, SIZE])
def test_heavy_columns_are_found_however_rows_are_cut(rows: int) -> None:
    learner, random = Learner(job(batch_size=rows)), np.random.default_rng(0)
    values = np.exp(2 * random.normal(0, 1, 1600)).astype(np.float32)
    for start in range(0, len(values), rows):
        part, features_BC, ones_B = (
            values[start : start + rows],
            np.zeros((rows, 3), np.float32),
            np.ones(rows, np.float32),
        )
        features_BC[: len(part), 0] = part
        learner.step(Batch(features_BC, ones_B, ones_B, ones_B[:, None], np.zeros(rows, np.int64), len(part)))
    assert bank(learner).heavy_F.tolist() == [True, False]
    assert bank(learner).standardise.shift_F[0] == pytest.approx(np.median(values), rel=0.4)
    apart = np.subtract(*np.quantile(values, [0.75, 0.25]))
    assert bank(learner).standardise.scale_F[0] == pytest.approx(1.349 / apart, rel=0.4)


def test_an_average_lies_between_and_l2_init_stays_near_where_it_began() -> None:
    learner, heads = Learner(job()), len(LINEAR) * 2
    begun = bank(learner).first_DJ.clone()
    for seed in range(200):
        learner.step(batch(seed))
    moved = (bank(learner).first_DJ - begun)[:, heads:].view(-1, len(EXPERTS), HIDDEN).square().sum(dim=(0, 2))
    source = next(e for e in EXPERTS if e.l2_init).step
    twin = next(i for i, e in enumerate(EXPERTS) if e.rule == "adam" and e.step == source and not e.l2_init)
    assert moved[L2_EXPERT] < moved[twin]
    for index in range(TRAINED, len(EXPERTS)):
        assert 0 < moved[index] < moved[EXPERTS[index].source]


def test_with_many_columns_and_many_classes_tables_stay_small() -> None:
    document = job(task="multiclass", classes=1000).model_dump()
    document["features"]["numeric"] = [{"name": f"n{number}"} for number in range(100)]
    learner = Learner(JobConfig.model_validate(document))
    assert bank(learner).wide_RK.numel() <= 2**22
    features = np.zeros((SIZE, 101), np.float32)
    made = Batch(features, np.full(SIZE, 999, np.float32), *(getattr(batch(), n) for n in Batch.__slots__[2:]))
    assert not learner.step(made).refused
    assert learner.score(features).shape == (SIZE, 1000)


@pytest.mark.filterwarnings("ignore:::torch", "ignore:::mlflow", "ignore:::sqlalchemy")
@pytest.mark.parametrize("task", TASKS)
def test_killed_and_resumed_is_the_same_run_and_every_version_is_rebuilt_and_is_what_was_scored(
    task: str, tmp_path: Path
) -> None:
    check_promises(BANK | {"task": task, "classes": 3}, tmp_path)


@pytest.mark.parametrize(
    ("given", "rows"),
    [({}, 256), ({"batch_size": 64}, 64), ({"kind": "mlp"}, 1024), ({"task": "examples.custom_task:GatedTask"}, 1024)],
)
def test_batches_are_small_where_their_size_is_that_of_scored_blocks(given: dict[str, Any], rows: int) -> None:
    assert LearnerConfig.model_validate(given).batch_size == rows
