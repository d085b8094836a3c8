"""The metrics agree with scikit-learn, survive anything a stream may hold, and resume bit for bit."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn import metrics as reference

from consumers.errors import ConfigError, SnapshotError
from pipeline.quality import AUC_CLASSES_MAX, CALIBRATION_BINS, LOGLOSS_CLIP, Quality

BIN = 1 / 128  # relative width of a histogram bin


def binary_stream(rows: int, scale: float = 1.0, seed: int = 0):
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 2, rows)
    labels = (rng.random(rows) < scale / (1 + np.exp(-logits))).astype(np.float32)
    noisy = scale / (1 + np.exp(-logits - rng.normal(0, 1, rows)))
    return noisy.astype(np.float32)[:, None], labels, rng.integers(1, 4, rows).astype(np.float32)


def class_stream(rows: int, classes: int, seed: int = 0):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, rows)
    logits = rng.normal(size=(rows, classes)) + 1.5 * np.eye(classes)[labels]
    scores = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    return scores.astype(np.float32), labels.astype(np.float32), rng.integers(1, 4, rows).astype(np.float32)


def value_stream(rows: int, seed: int = 0):
    rng = np.random.default_rng(seed)
    labels = rng.normal(1e4, 3, rows)  # a mean far from 0: naive sums of squares would lose every digit
    scores = labels + rng.normal(0, 2, rows)
    weights = rng.integers(1, 4, rows)
    return scores.astype(np.float32)[:, None], labels.astype(np.float32), weights.astype(np.float32)


def expected_classes(scores, labels, weights):
    binary = scores.shape[1] == 1
    clipped = np.clip(scores.astype(np.float64), LOGLOSS_CLIP, 1 - LOGLOSS_CLIP)
    if binary:
        logloss = reference.log_loss(labels, clipped[:, 0], sample_weight=weights)
        auc = reference.roc_auc_score(labels, scores[:, 0], sample_weight=weights)
    else:
        likelihood = clipped[np.arange(len(labels)), labels.astype(int)]
        logloss = -np.average(np.log(likelihood), weights=weights)
        one_hot = labels[:, None] == np.arange(scores.shape[1])
        auc = reference.roc_auc_score(one_hot, scores, average="macro", sample_weight=weights)
    guess = scores[:, 0] > 0.5 if binary else scores.argmax(axis=1)
    accuracy = reference.accuracy_score(labels, guess, sample_weight=weights)
    unchanged = np.average(np.append(False, labels[1:] == labels[:-1]), weights=weights)
    confidence = scores.max(axis=1)  # binary: of class 1
    return {
        "logloss": logloss,
        "auc": auc,
        "accuracy": accuracy,
        "kappa": reference.cohen_kappa_score(labels, guess, sample_weight=weights),
        "kappa_temporal": (accuracy - unchanged) / (1 - unchanged),
        "calibration_error": calibration_error(confidence, labels if binary else guess == labels, weights),
    }


def calibration_error(confidence, hits, weights):
    place = np.minimum(confidence.astype(np.float64) * CALIBRATION_BINS, CALIBRATION_BINS - 1).astype(int)
    error = 0.0
    for chosen in (place == number for number in range(CALIBRATION_BINS)):
        if chosen.any():
            gap = np.average(hits[chosen] - confidence[chosen].astype(np.float64), weights=weights[chosen])
            error += abs(gap) * weights[chosen].sum() / weights.sum()
    return error


def expected_values(scores, labels, weights):
    scores, labels = scores[:, 0].astype(np.float64), labels.astype(np.float64)
    return {
        "mae": reference.mean_absolute_error(labels, scores, sample_weight=weights),
        "rmse": reference.root_mean_squared_error(labels, scores, sample_weight=weights),
        "r2": reference.r2_score(labels, scores, sample_weight=weights),
    }


def in_batches(quality, stream, size=37):
    rows = len(stream[1])
    for start in range(0, rows, size):
        quality.update(*(array[start : start + size] for array in stream))


STREAMS = {
    "binary": (binary_stream(5000), 2, expected_classes),
    "multiclass": (class_stream(5000, 4), 4, expected_classes),
    "regression": (value_stream(5000), 2, expected_values),
}


@pytest.mark.parametrize("kind", STREAMS)
def test_metrics_of_all_rows_and_of_the_newest_equal_scikit_learns(kind: str) -> None:
    stream, classes, expected = STREAMS[kind]
    quality = Quality(kind, classes, window=700)
    in_batches(quality, stream)
    metrics = quality.metrics()
    newest = tuple(array[-700:] for array in stream)
    wanted = expected(*stream) | {f"{name}_recent": value for name, value in expected(*newest).items()}
    assert metrics.keys() == wanted.keys()
    for name, value in wanted.items():
        tolerance = 1e-3 if name.startswith("auc") else 1e-9
        assert metrics[name] == pytest.approx(value, abs=tolerance, rel=1e-9), name


def test_auc_keeps_its_resolution_when_every_probability_is_tiny() -> None:
    stream = binary_stream(200_000, scale=0.002)
    quality = Quality("binary", 2, window=0)
    quality.update(*stream)
    exact = reference.roc_auc_score(stream[1], stream[0][:, 0], sample_weight=stream[2])
    assert quality.metrics()["auc"] == pytest.approx(exact, abs=1e-3)


def test_auc_tells_scores_a_bin_apart_and_counts_those_in_one_bin_half() -> None:
    def auc(low: float, high: float) -> float:
        quality = Quality("binary", 2, window=0)
        quality.update(np.float32([[low], [high]]), np.float32([0, 1]), np.ones(2, np.float32))
        return quality.metrics()["auc"]

    for p in (1e-4, 0.01, 0.2, 0.49):
        assert auc(p, p * (1 + 1.01 * BIN)) == 1
        assert auc(p * (1 + 1.01 * BIN), p) == 0
        assert auc(1 - p * (1 + 1.01 * BIN), 1 - p) == 1
    assert auc(0.499, 0.501) == 1
    assert auc(0.3, 0.3) == 0.5
    assert auc(0.0, 1.0) == 1
    assert auc(-3.0, 5.0) == 1  # a custom task's score outside [0, 1] lands in an outer bin


def test_a_certain_and_wrong_score_costs_a_bounded_logloss() -> None:
    quality = Quality("binary", 2, window=0)
    quality.update(np.float32([[0], [1]]), np.float32([1, 0]), np.ones(2, np.float32))
    assert quality.metrics()["logloss"] == pytest.approx(-np.log(LOGLOSS_CLIP))


@pytest.mark.parametrize("kind", ["binary", "multiclass"])
def test_kappas_say_what_accuracy_is_worth(kind: str) -> None:
    labels = np.repeat(np.float32([0, 1, 1, 1]), 25)  # who repeats the last class errs at the start and at row 25
    quality = Quality(kind, 2, window=0)
    always = np.ones((100, 1), np.float32) if kind == "binary" else np.tile(np.float32([0, 1]), (100, 1))
    quality.update(always, labels, np.ones(100, np.float32))
    metrics = quality.metrics()
    assert metrics["accuracy"] == 0.75
    assert metrics["kappa"] == 0  # no better than chance
    assert metrics["kappa_temporal"] == pytest.approx((0.75 - 0.98) / (1 - 0.98))
    assert metrics["calibration_error"] == 0.25  # it was certain


def test_rows_of_weight_zero_are_padding() -> None:
    scores, labels, weights = binary_stream(200)
    real, padded = Quality("binary", 2, window=50), Quality("binary", 2, window=50)
    real.update(scores, labels, weights)
    padded.update(
        np.vstack([scores, np.full((9, 1), np.nan, np.float32)]),
        np.append(labels, np.full(9, 7, np.float32)),
        np.append(weights, np.zeros(9, np.float32)),
    )
    assert padded.metrics() == real.metrics()
    assert (padded.rows, padded.unmeasured) == (200, 0)


def test_what_is_undefined_is_left_out() -> None:
    one = np.ones(1, np.float32)
    quality = Quality("binary", 2, window=10)
    assert quality.metrics() == {}
    quality.update(one[:, None], one, one)
    names = {"logloss", "accuracy", "kappa_temporal", "calibration_error"}
    assert quality.metrics().keys() == names | {f"{name}_recent" for name in names}
    quality = Quality("regression", 2, window=0)
    quality.update(one[:, None], one, one)
    assert quality.metrics() == {"mae": 0, "rmse": 0}


def test_a_class_that_never_came_does_not_spoil_the_others_auc() -> None:
    scores, labels, weights = class_stream(2000, 4)
    seen = labels < 3
    quality = Quality("multiclass", 4, window=0)
    quality.update(scores[seen], labels[seen], weights[seen])
    three = labels[seen][:, None] == np.arange(3)
    exact = reference.roc_auc_score(three, scores[seen][:, :3], average="macro", sample_weight=weights[seen])
    assert quality.metrics()["auc"] == pytest.approx(exact, abs=1e-3)


def test_of_very_many_classes_the_first_ones_have_an_auc_and_all_count_for_the_rest() -> None:
    scores, labels, weights = class_stream(3000, AUC_CLASSES_MAX + 44)
    quality = Quality("multiclass", AUC_CLASSES_MAX + 44, window=0)
    quality.update(scores, labels, weights)
    first = labels[:, None] == np.arange(AUC_CLASSES_MAX)
    found = quality.metrics()
    auc = reference.roc_auc_score(first, scores[:, :AUC_CLASSES_MAX], average="macro", sample_weight=weights)
    right = np.average(scores.argmax(axis=1) == labels, weights=weights)
    assert (found["auc"], found["accuracy"]) == pytest.approx((auc, right), abs=1e-3)
    assert sum(array.nbytes for array in quality.state().values()) < 17e6


@pytest.mark.parametrize(
    ("kind", "scores", "label"),
    [
        ("binary", [np.nan], 1),
        ("binary", [0.5], 0.5),
        ("binary", [0.5], 2),
        ("multiclass", [0.5, np.inf, 0], 1),
        ("multiclass", [0.2, 0.3, 0.5], 3),
        ("multiclass", [0.2, 0.3, 0.5], -1),
        ("regression", [np.inf], 1),
        ("regression", [1], np.nan),
    ],
)
def test_a_row_that_cannot_be_measured_is_only_counted(kind: str, scores: list[float], label: float) -> None:
    quality = Quality(kind, 3, window=10)
    quality.update(np.float32([scores]), np.float32([label]), np.ones(1, np.float32))
    assert (quality.metrics(), quality.rows, quality.unmeasured) == ({}, 0, 1)


@pytest.mark.parametrize("kind", STREAMS)
@pytest.mark.parametrize("split", [0, 1, 699, 700, 3333])
def test_a_restored_quality_goes_on_bit_for_bit(kind: str, split: int) -> None:
    stream, classes, _ = STREAMS[kind]
    straight, first, second = (Quality(kind, classes, window=700) for _ in range(3))
    in_batches(straight, stream, 100)
    in_batches(first, tuple(array[:split] for array in stream))
    second.restore({name: array.copy() for name, array in first.state().items()})
    in_batches(second, tuple(array[split:] for array in stream), 211)
    assert second.metrics() == straight.metrics()
    for name, array in straight.state().items():
        np.testing.assert_array_equal(second.state()[name], array)


def test_what_does_not_fit_is_refused_with_a_reason() -> None:
    with pytest.raises(ConfigError, match="'ranking' cannot be measured"):
        Quality("ranking", 2, 10)
    with pytest.raises(ValueError, match="width 3"):
        Quality("multiclass", 3, 10).update(np.zeros((2, 2), np.float32), *np.zeros((2, 2), np.float32))
    state = Quality("binary", 2, window=10).state()
    with pytest.raises(SnapshotError, match=r"'ring_scores': float32\[10, 1\] in the snapshot"):
        Quality("binary", 2, window=20).restore(state)
    with pytest.raises(SnapshotError, match="missing in the snapshot"):
        Quality("binary", 2, window=20).restore({})


def test_who_does_not_know_says_the_first_class_as_with_many():
    undecided, labels = np.full((4, 1), 0.5, np.float32), np.array([0, 0, 0, 1], np.float32)
    quality = Quality("binary", 2, 0)
    quality.update(undecided, labels, np.ones(4, np.float32))
    assert quality.metrics()["accuracy"] == 0.75
