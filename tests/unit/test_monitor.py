"""A monitor shows what learning is worth, notices change, and resumes as if nothing had happened."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from consumers.batch import Batch
from consumers.config import FeaturesConfig
from consumers.errors import SnapshotError
from pipeline.config import MonitorConfig
from pipeline.monitor import ALARMS_MAX, Monitor

SIZE = 64
FEATURES = FeaturesConfig(
    topic="t",
    numeric=("a", "b"),  # type: ignore[arg-type]
    categorical=({"name": "c", "buckets": 100}, {"name": "d", "buckets": 13}),  # type: ignore[arg-type]
)
CONFIG = MonitorConfig(window=500, reference_rows=1000)


def monitor(kind: str = "binary", config: MonitorConfig = CONFIG, classes: int = 3) -> Monitor:
    return Monitor(config, kind=kind, classes=classes, features=FEATURES)


class Stream:
    """Batches of a stream; `error` is the share of wrong scores, or the size of a regression's errors."""

    def __init__(self, kind: str = "binary", seed: int = 0, size: int = SIZE) -> None:
        self.kind, self.size = kind, size
        self.rng = np.random.default_rng(seed)
        self.clock = 0

    def batch(self, error: float = 0.2, shift: float = 0.0, rows: int | None = None) -> Batch:
        rng, size, rows = self.rng, self.size, self.size if rows is None else rows
        features = np.column_stack(
            [rng.normal([shift, 0], size=(size, 2)), rng.integers(0, 100, size), rng.integers(0, 13, size)]
        ).astype(np.float32)
        wrong = rng.random(size) < error
        weights = np.ones(size, np.float32)
        if self.kind == "regression":
            labels = rng.normal(size=size)
            scores = (labels + error * rng.normal(size=size))[:, None]
        elif self.kind == "binary":
            labels = rng.integers(0, 2, size)
            confidence = rng.uniform(0, 0.5, size)
            scores = np.where((labels == 1) ^ wrong, 1 - confidence, confidence)[:, None]
        else:
            labels = rng.integers(0, 3, size)
            scores = 0.1 + 0.7 * np.eye(3)[(labels + wrong) % 3]
        times = np.arange(self.clock, self.clock + size)
        self.clock += rows
        arrays = [features, labels.astype(np.float32), weights, scores.astype(np.float32), times]
        for array in arrays:
            array[rows:] = 0
        return Batch(*arrays, rows=rows)


def feed(watcher: Monitor, stream: Stream, batches: int, **how: float) -> list[Batch]:
    found = []
    for _ in range(batches):
        found.append(stream.batch(**how))  # type: ignore[arg-type]
        watcher.observe(found[-1], None, stream.clock)
    return found


def test_a_new_monitor_has_nothing_undefined_to_say() -> None:
    point = monitor().point()
    assert point["drift/alarms"] == 0
    assert not {"live/auc", "live/logloss", "drift/psi_max"} & point.keys()
    assert all(map(math.isfinite, point.values()))


@pytest.mark.parametrize("kind", ["binary", "multiclass", "regression"])
def test_live_and_frozen_are_compared_over_exactly_the_same_rows(kind: str) -> None:
    stream, watcher = Stream(kind), monitor(kind)
    feed(watcher, stream, 20, error=0.5)
    assert not any(name.startswith(("frozen", "compare")) for name in watcher.point())
    for _ in range(40):
        batch = stream.batch(error=0.1)
        watcher.observe(batch, batch.scores_BS[::-1].copy(), stream.clock)
    point = watcher.point()
    metrics = ["mae", "rmse"] if kind == "regression" else ["logloss", "auc", "accuracy"]
    for metric in metrics:
        assert point[f"compare/frozen_{metric}"] == point[f"frozen/{metric}"], "both began with the copy"
        assert point[f"compare/live_{metric}"] != point[f"live/{metric}"], "live has older rows"
        assert f"live/{metric}_recent" in point
        assert f"frozen/{metric}_recent" in point
    best, worst = ("frozen", "live") if kind == "regression" else ("live", "frozen")
    assert point[f"compare/{best}_{metrics[-1]}"] > point[f"compare/{worst}_{metrics[-1]}"]
    assert all(map(math.isfinite, point.values()))


def test_the_comparison_can_begin_later_than_the_frozen_copy() -> None:
    stream, config = Stream(), CONFIG.model_copy(update={"compare_after": 10 * SIZE})
    watcher = monitor(config=config)
    for number in range(1, 21):
        batch = stream.batch(error=0.5 if number < 10 else 0.0)
        watcher.observe(batch, batch.scores_BS, number * SIZE)
        assert ("compare/live_accuracy" in watcher.point()) == (number >= 10)
    assert watcher.point()["compare/frozen_accuracy"] == 1.0 > watcher.point()["frozen/accuracy"]


def test_a_row_that_only_one_of_the_two_scored_is_left_out_of_the_comparison() -> None:
    stream, watcher = Stream(), monitor()
    batch = stream.batch()
    frozen = batch.scores_BS.copy()
    frozen[:5] = np.nan
    watcher.observe(batch, frozen, SIZE)
    point = watcher.point()
    assert ("live/unmeasured" in point, point["frozen/unmeasured"]) == (False, 5)
    assert point["compare/live_logloss"] == point["compare/frozen_logloss"] != point["live/logloss"]


def test_padding_and_rows_of_weight_zero_are_not_observed() -> None:
    whole, padded = monitor(), monitor()
    batch = Stream(seed=3).batch(rows=40)
    arrays = (batch.features_BC, batch.labels_B, batch.weights_B, batch.scores_BS, batch.event_time_B)
    whole.observe(Batch(*(array[:40].copy() for array in arrays), rows=40), None, 40)
    for array in arrays:
        array[40:] = 77  # only `rows` says that these are padding
    spread = [np.zeros((2 * SIZE, *array.shape[1:]), array.dtype) for array in arrays]
    for wide, array in zip(spread, arrays, strict=True):
        wide[1::2] = array
    spread[0][::2], spread[1][::2], spread[3][::2] = 99, 1, np.nan  # of weight 0
    padded.observe(Batch(*spread, rows=80), None, 40)
    assert padded.point() == whole.point()
    for name, array in whole.state().items():
        if name != "drift.noted":  # numbers of rows, which count those of weight 0
            np.testing.assert_array_equal(padded.state()[name], array)


@pytest.mark.parametrize("kind", ["binary", "multiclass", "regression"])
def test_more_errors_raise_one_concept_alarm_with_where_since_when_and_how_much(kind: str) -> None:
    stream, watcher = Stream(kind, size=256), monitor(kind)
    feed(watcher, stream, 40, error=0.2)
    assert watcher.alarms == []
    feed(watcher, stream, 10, error=0.6)
    alarm = watcher.alarms[0]
    assert (alarm.family, alarm.feature) == ("concept", None)
    assert 40 * 256 < alarm.row <= 44 * 256
    assert alarm.event_time == alarm.row - 1, "of the row that proved it"
    assert 40 * 256 - 128 <= alarm.since_row <= 40 * 256 + 128
    assert alarm.since_row - 128 <= alarm.since_time < alarm.since_row
    assert alarm.p < 1e-4
    before, after = map(float, alarm.detail.removeprefix("mean error rose from ").split(" to "))
    usual = 0.2 * math.sqrt(2 / math.pi) if kind == "regression" else 0.2
    assert before == pytest.approx(usual, rel=0.15), "in the error's own unit"
    assert alarm.effect == pytest.approx(after - before, rel=0.05)
    assert [found.family for found in watcher.alarms].count("concept") == 1, "said once"
    assert len(watcher.alarms) == watcher.alarm_count
    assert watcher.point()["drift/alarms"] == watcher.alarm_count


def test_of_several_cuts_in_one_batch_the_first_is_the_alarm() -> None:
    stream, watcher = Stream(size=8000), monitor()
    feed(watcher, stream, 1, error=0.2)
    feed(watcher, stream, 1, error=0.3)
    (alarm,) = (alarm for alarm in watcher.alarms if alarm.family == "concept")
    assert alarm.event_time < 8000 + 1000


def test_a_regression_that_gets_better_and_better_or_meets_an_outlier_raises_nothing() -> None:
    stream, watcher = Stream("regression"), monitor("regression")
    for error in np.geomspace(1e6, 1e-3, 400):
        feed(watcher, stream, 1, error=float(error))
    batch = stream.batch(error=1e-3)
    batch.scores_BS[7] = 1e30
    watcher.observe(batch, None, stream.clock)
    feed(watcher, stream, 100, error=1e-3)
    assert "concept" not in {alarm.family for alarm in watcher.alarms}
    assert watcher.point()["drift/error_mean"] < 0.1
    feed(watcher, stream, 20, error=3e-3)
    assert watcher.alarms[-1].family == "concept", "and yet it notices a small error that triples"


def test_perfect_scores_and_scores_that_are_not_finite_do_no_harm() -> None:
    stream, watcher = Stream("regression"), monitor("regression")
    feed(watcher, stream, 5, error=0.0)
    batch = stream.batch()
    batch.scores_BS[:] = np.nan
    watcher.observe(batch, None, stream.clock)
    feed(watcher, stream, 5, error=0.0)
    point = watcher.point()
    assert (point["drift/error_mean"], point["drift/error_window"]) == (0, 10 * SIZE)
    assert point["live/unmeasured"] == SIZE
    half = stream.batch(error=0.0)
    half.scores_BS[::3] += 1
    watcher.observe(half, None, stream.clock)
    assert watcher.point()["drift/error_mean"] == pytest.approx(22 / (11 * SIZE)), "a median of 0 hides none"


def test_quality_is_split_by_how_late_the_labels_came() -> None:
    stream, watcher = Stream(), monitor()
    batch = stream.batch(error=0.0)
    worse = batch.scores_BS.copy()
    worse[: SIZE // 2] = 1 - worse[: SIZE // 2]
    ages = np.where(np.arange(SIZE) < SIZE // 2, 59_999, 604_800_000)
    watcher.observe(replace(batch, scores_BS=worse, age_B=ages), None, SIZE)
    point = watcher.point()
    assert {name.split("/")[2] for name in point if "by_age" in name} == {"below_1m", "7d_and_more"}
    assert (point["live/by_age/below_1m/accuracy"], point["live/by_age/7d_and_more/accuracy"]) == (0.0, 1.0)
    assert (point["live/accuracy"], point["live/by_age/below_1m/rows"]) == (0.5, SIZE // 2)
    watcher.observe(replace(batch, age_B=np.full(SIZE, 60_000)), None, 2 * SIZE)
    assert watcher.point()["live/by_age/below_1h/accuracy"] == 1.0
    again = monitor()
    again.restore({name: array.copy() for name, array in watcher.state().items()}, watcher.document())
    assert again.point() == watcher.point()


def test_labels_that_come_with_their_features_have_no_age() -> None:
    features = FEATURES.model_copy(update={"label": "y"})
    watcher = Monitor(CONFIG, kind="binary", classes=2, features=features)
    watcher.observe(replace(Stream().batch(), age_B=np.zeros(SIZE, np.int64)), None, SIZE)
    assert not any("by_age" in name for name in watcher.point())


def test_a_column_that_moves_raises_a_feature_alarm_by_name() -> None:
    stream, watcher = Stream(), monitor()
    feed(watcher, stream, 40)
    feed(watcher, stream, 40, shift=2.0)
    (alarm,) = watcher.alarms
    assert (alarm.family, alarm.feature) == ("feature", "a")
    point = watcher.point()
    assert alarm.detail.startswith("mean, in standard deviations, went from ")
    assert alarm.effect == pytest.approx(2, abs=0.4)
    assert 40 * SIZE < alarm.row <= 40 * SIZE + 256
    assert point["drift/psi_max"] < 0.25, "what comes next is the new reference"


def test_every_category_is_unknown_once_and_null_never() -> None:
    stream, watcher = Stream(), monitor()
    feed(watcher, stream, 100)
    assert watcher.unknown_categories == 99 + 12
    assert watcher.point()["drift/unknown_categories"] == 99 + 12


def test_without_drift_only_quality_is_watched() -> None:
    stream, watcher = Stream(), monitor(config=CONFIG.model_copy(update={"drift": False}))
    feed(watcher, stream, 20)
    assert watcher.unknown_categories == 0
    assert all(name.startswith("live/") for name in watcher.point())
    assert all(name.startswith("live.") for name in watcher.state())


def test_only_the_newest_alarms_are_kept_and_all_are_counted() -> None:
    watcher = monitor(config=CONFIG.model_copy(update={"reference_rows": 100, "psi_threshold": 1e-9}))
    stream = Stream(size=100)
    feed(watcher, stream, 1)
    # Every second window differs from the one before, which is its reference.
    reference, other = Stream(size=100).batch(), stream.batch(shift=9.0)
    for number in range(1, 2401):
        watcher.observe(other if number % 2 else reference, None, (number + 1) * 100)
    assert len(watcher.alarms) == ALARMS_MAX
    assert watcher.alarm_count == 1200
    assert watcher.alarms[-1].row == 2400 * 100
    assert "of 3 other columns" in watcher.alarms[-1].detail


@pytest.mark.parametrize("kind", ["binary", "multiclass", "regression"])
def test_a_restored_monitor_goes_on_bit_for_bit(kind: str) -> None:
    stream, batches = Stream(kind), []
    for number in range(200):
        error, shift = 0.6 if number > 140 else 0.2, 2.0 * (number > 60)
        batches.append(stream.batch(error=error, shift=shift, rows=SIZE - number % 5))
    frozen = [batch.scores_BS[::-1].copy() for batch in batches]

    def run(watcher: Monitor, start: int, stop: int) -> None:
        for number in range(start, stop):
            copy = frozen[number] if number >= 30 else None
            watcher.observe(batches[number], copy, (number + 1) * SIZE)

    straight = monitor(kind)
    run(straight, 0, 200)
    assert {alarm.family for alarm in straight.alarms} == {"concept", "feature"}
    for seed in range(3):
        cuts = np.sort(np.random.default_rng(seed).integers(0, 201, 6))
        watcher = monitor(kind)
        for start, stop in pairwise([0, *cuts.tolist(), 200]):
            run(watcher, start, stop)
            arrays = {name: array.copy() for name, array in watcher.state().items()}
            document = json.loads(json.dumps(watcher.document(), allow_nan=False))
            watcher = monitor(kind)
            watcher.restore(arrays, document)
        assert watcher.point() == straight.point()
        assert watcher.document() == straight.document()
        assert watcher.state().keys() == straight.state().keys()
        for name, array in straight.state().items():
            np.testing.assert_array_equal(watcher.state()[name], array)


def test_the_state_of_another_configuration_is_refused() -> None:
    state, document = monitor().state(), monitor().document()
    with pytest.raises(SnapshotError, match=r"ring_scores.*\[monitor\] their old values"):
        monitor(config=CONFIG.model_copy(update={"window": 600})).restore(state, document)
    with pytest.raises(SnapshotError, match="missing in the snapshot"):
        monitor().restore({}, document)
