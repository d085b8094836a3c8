"""Each kind of change is found soon, named by its cause, and said once; a steady stream raises nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from consumers.batch import Batch
from consumers.config import FeaturesConfig
from consumers.errors import EvertrainError
from consumers.record import Float32s
from pipeline.config import MonitorConfig
from pipeline.drift import FAMILIES, Alarm
from pipeline.drift.columns import close_columns, count_columns
from pipeline.drift.inputs import Inputs
from pipeline.drift.means import REFERENCE_MIN, Means
from pipeline.drift.watch import Drift
from pipeline.drift.windows import BLOCK_ROWS, OTHER, SHARE, UNIT, WINDOWS
from pipeline.quality import Arrays

ROWS, CHANGE = 12_000, 8000
NUMERIC = 4
FEATURES = FeaturesConfig(
    topic="t",
    numeric=tuple({"name": f"x{n}", "nullable": True} for n in range(NUMERIC)),  # type: ignore[arg-type]
    categorical=("c",),  # type: ignore[arg-type]
)


class Rows:
    """A stream in whose second part something may be different; scores are those of a learner that knows the first."""

    def __init__(self, kind: str = "binary", seed: int = 0) -> None:
        rng = self.rng = np.random.default_rng(seed)
        self.kind = kind
        self.reference_rows = 10_000  # of PSI
        self.x = rng.normal(size=(ROWS, NUMERIC))
        self.x[:, 1] = 0.6 * self.x[:, 0] + 0.8 * self.x[:, 1]
        self.c = rng.integers(1, 9, ROWS)
        self.noise = rng.normal(size=ROWS)
        self.truth = self.x[:, 2].copy()
        self.late_ms = rng.integers(300_000, 600_000, ROWS)
        self.new = np.arange(ROWS) >= CHANGE
        self.keep = np.ones(ROWS, bool)
        self.lean = np.zeros(ROWS)

    def batches(self, cuts: list[int]) -> list[tuple[Batch, int]]:
        """The rows that are kept, as batches with the rows trained."""
        keep = np.flatnonzero(self.keep)
        features = np.column_stack([self.x, self.c])[keep].astype(np.float32)
        signal, truth = np.nan_to_num(self.x[keep, 2]), self.truth[keep] + 0.5 * self.noise[keep]
        p = np.clip(1 / (1 + np.exp(-3.4 * signal)) + self.lean[keep], 0, 1)
        if self.kind == "regression":
            labels, scores = truth, signal[:, None] + self.lean[keep, None]
        elif self.kind == "binary":
            labels, scores = truth > 0, p[:, None]
        else:
            labels, scores = truth > 0, np.column_stack([1 - p, p, np.zeros(len(p))])
        labels, scores = labels.astype(np.float32), scores.astype(np.float32)
        weights, times = np.ones(len(keep), np.float32), np.arange(len(keep)) * 1000
        return [
            (
                Batch(
                    features[a:b], labels[a:b], weights[a:b], scores[a:b], times[a:b], b - a, self.late_ms[keep[a:b]]
                ),
                b,
            )
            for a, b in pairwise(cuts)
        ]

    def alarms(self, cuts: list[int] | None = None, *, resume: bool = False) -> list[Alarm]:
        """What a monitor says of it; `resume`: with a new one, restored from the last, for every batch."""
        drift, found = self.drift(), []
        for batch, trained in self.batches(cuts or [*range(0, int(self.keep.sum()), 100), int(self.keep.sum())]):
            found += drift.observe(batch, trained, batch.age_B)
            if resume:
                state = {part: {name: a.copy() for name, a in arrays.items()} for part, arrays in drift.state().items()}
                drift = self.drift()
                drift.restore(state)
        self.last = drift
        return found

    def drift(self) -> Drift:
        return Drift(MonitorConfig(reference_rows=self.reference_rows), self.kind, 3, FEATURES)


def mean(rows: Rows) -> None:
    rows.x[rows.new, 3] += 0.5


def spread(rows: Rows) -> None:
    rows.x[rows.new, 3] *= 1.5


def shape(rows: Rows) -> None:  # of the same mean and variance
    rows.x[rows.new, 3] = np.sign(rows.x[rows.new, 3])


def correlation(rows: Rows) -> None:
    rows.x[rows.new, 0] *= -1


def missing(rows: Rows) -> None:
    rows.x[rows.new & (rows.rng.random(ROWS) < 0.1), 1] = np.nan


def category(rows: Rows) -> None:
    rows.c[rows.new & (rows.rng.random(ROWS) < 0.1)] = 17


def concept(rows: Rows) -> None:
    rows.truth[rows.new] *= -1


def worse(rows: Rows) -> None:  # a part of it, then all of it
    rows.truth[rows.new & (rows.rng.random(ROWS) < 0.35)] *= -1
    rows.truth[CHANGE + 2000 :] *= -1


def label(rows: Rows) -> None:
    rows.keep = ~rows.new | (rows.truth > 0) | (rows.rng.random(ROWS) < 0.3)


def late(rows: Rows) -> None:
    rows.late_ms[rows.new] *= 3


CHANGES: dict[str, tuple[Callable[[Rows], None], set[str], str | None]] = {
    "mean": (mean, {"feature"}, "x3"),
    "spread": (spread, {"feature"}, "x3"),
    "shape": (shape, {"feature"}, "x3"),
    "correlation": (correlation, {"correlation"}, "x0 x x1"),
    "missing": (missing, {"missing"}, "x1"),
    "category": (category, {"category"}, "c"),
    "concept": (concept, {"concept"}, None),
    "label": (label, {"label", "feature"}, None),
    "late": (late, {"label_delay"}, None),
}


@pytest.mark.parametrize("kind", ["binary", "multiclass", "regression"])
def test_a_steady_stream_raises_nothing(kind: str) -> None:
    assert Rows(kind).alarms() == []


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_is_found_named_and_said_once(name: str) -> None:
    change, families, feature = CHANGES[name]
    rows = Rows()
    change(rows)
    (alarm,) = rows.alarms()
    assert alarm.family in families <= set(FAMILIES)
    assert alarm.feature == feature or len(families) > 1
    assert CHANGE < alarm.row <= CHANGE + 1100
    assert CHANGE - 1024 <= alarm.since_row <= alarm.row
    assert alarm.since_row - 128 <= alarm.since_time // 1000 + 1 <= alarm.since_row
    assert alarm.event_time == (alarm.row - 1) * 1000
    assert 0 <= alarm.p < 1e-3
    assert alarm.effect != 0
    assert alarm.detail


@pytest.mark.parametrize("kind", ["binary", "multiclass", "regression"])
@pytest.mark.parametrize("name", ["mean", "concept"])
def test_other_tasks_find_it_too(kind: str, name: str) -> None:
    change, families, _ = CHANGES[name]
    rows = Rows(kind)
    change(rows)
    assert rows.alarms()[0].family in families


def test_scores_that_lean_to_one_side_are_no_longer_calibrated() -> None:
    rows = Rows()
    rows.lean[rows.new] = 0.15
    found = {alarm.family for alarm in rows.alarms()}
    assert found <= {"calibration", "prediction", "concept"}
    assert found & {"calibration", "prediction"}


def test_a_season_is_no_drift() -> None:
    rows = Rows()
    rows.x[:, 3] += 0.5 * np.sin(2 * np.pi * np.arange(ROWS) / 500)
    assert rows.alarms() == []


def test_a_column_that_never_stands_still_is_not_said_again_and_again() -> None:
    rows = Rows()
    rows.x[:, 3] += np.arange(ROWS) / 300
    assert 1 <= len(rows.alarms()) <= 3


def test_a_column_that_only_the_longest_window_sees_move_is_given_longer_to_settle() -> None:
    """A restart at the first test of that window is one in quick succession."""
    settle_rows, x_N1 = 512, np.random.default_rng(0).normal(size=(8192, 1)).astype(np.float32)
    inputs, settled_at = Inputs(1, 0, settle_rows=settle_rows, p=1e-3), []
    first_test = settle_rows + (REFERENCE_MIN + int(WINDOWS[-1])) * BLOCK_ROWS
    for start in range(0, first_test + 2 * settle_rows, BLOCK_ROWS):
        _take(inputs, x_N1[start : start + BLOCK_ROWS])
        _close(inputs)
        if start + BLOCK_ROWS == first_test:
            inputs.restart()
        settled_at += [start + BLOCK_ROWS] if inputs.settled else []
    assert settled_at[0] == settle_rows
    assert [at for at in settled_at if at > first_test] == [first_test + 2 * settle_rows]


@pytest.mark.parametrize("seed", range(4))
def test_columns_with_heavy_tails_do_not_seem_to_go_together(seed: int) -> None:
    rows = Rows(seed=seed)
    rows.x[:, [0, 1, 3]] = rows.rng.standard_cauchy((ROWS, 3))
    assert [alarm for alarm in rows.alarms() if alarm.family == "correlation"] == []


@pytest.mark.parametrize("kind", ["binary", "multiclass"])
def test_of_equal_scores_the_first_class_is_said(kind: str) -> None:
    errors = []
    for label in (0, 1):
        rows = Rows(kind)
        rows.truth[:], rows.noise[:] = 2 * label - 1, 0
        drift = rows.drift()
        for batch, trained in rows.batches([*range(0, 4000, 100)]):
            drift.observe(replace(batch, scores_BS=np.full_like(batch.scores_BS, 0.5)), trained)
        errors.append((drift._concept.mean, drift.state()["outcome_means"]["total"][0] > 0))
    assert errors == [(0, False), (1, True)]


@pytest.mark.parametrize("name", ["mean", "concept", "label", "missing", "late"])
def test_nothing_depends_on_how_the_stream_is_cut_or_resumed(name: str) -> None:
    rows = Rows()
    CHANGES[name][0](rows)
    stop = int(rows.keep.sum())
    straight = rows.alarms([0, stop])
    whole = rows.last.state()
    assert straight
    rng = np.random.default_rng(1)
    cuts = sorted({0, stop, *rng.integers(1, stop, 60).tolist()})
    assert rows.alarms(cuts, resume=True) == straight
    for part, arrays in rows.last.state().items():
        for at, array in arrays.items():
            np.testing.assert_array_equal(array, whole[part][at], f"{part}.{at}")


def test_labels_that_were_all_equally_late_and_come_later_are_noticed() -> None:
    rows, drift, found = Rows(), Rows().drift(), []
    rows.late_ms = np.where(rows.new, 1_000_000, 10_000)
    for batch, trained in rows.batches([*range(CHANGE - 3000, CHANGE + 1000)]):
        found += drift.observe(batch, trained, batch.age_B)
    (alarm,) = found
    assert alarm.family == "label_delay"
    assert 3 < alarm.effect < np.log2(100)


@pytest.mark.parametrize("change", [late, None])
def test_a_label_that_nobody_sent_has_no_delay(change: Callable[[Rows], None] | None) -> None:
    """Of negatives that expiry fills in only positives have one; how many these are is another matter."""
    rows, found, states = Rows(), [], []
    if change:
        change(rows)
    sent = rows.rng.random(ROWS) < np.where(rows.new, 0.6, 0.3)
    given_up = np.where(sent, rows.late_ms, 86_400_000)
    for cuts in ([0, ROWS], [*range(0, ROWS, 100), ROWS]):
        drift, delays = rows.drift(), []
        for (batch, trained), (a, b) in zip(rows.batches(cuts), pairwise(cuts), strict=True):
            delays += drift.observe(replace(batch, sent_B=sent[a:b]), trained, given_up[a:b])
        found.append([alarm for alarm in delays if alarm.family == "label_delay"])
        states.append(repr(drift.state()))
    assert found[0] == found[1]
    assert states[0] == states[1]
    assert [0.5 < alarm.effect < 1.6 for alarm in found[0]] == ([True] if change else [])  # three times: 1.58 octaves


@pytest.mark.parametrize("factor", [3, 1e30])
@pytest.mark.parametrize("kind", ["binary", "multiclass"])
def test_scores_that_are_no_probabilities_count_as_the_nearest_ones(kind: str, factor: float) -> None:
    wild, tame = Rows(kind).drift(), Rows(kind).drift()
    for batch, trained in Rows(kind).batches([*range(0, 4000, 100)]):
        scores_BS = ((batch.scores_BS - 0.5) * factor + 0.5).astype(np.float32)
        wild.observe(replace(batch, scores_BS=scores_BS), trained)
        tame.observe(replace(batch, scores_BS=np.clip(scores_BS, 0, 1)), trained)
    for name, array in tame.state()["outcome_means"].items():
        np.testing.assert_array_equal(wild.state()["outcome_means"][name], array, name)


def test_what_is_usual_is_learned_of_enough_rows_also_after_an_alarm_within_a_block() -> None:
    inputs = Inputs(1, 0, settle_rows=BLOCK_ROWS, p=1e-3)
    values = np.random.default_rng(0).normal(1000, 1, (BLOCK_ROWS, 1)).astype(np.float32)
    for _ in range(50):  # long enough for the restart to be no early one
        _take(inputs, values)
        _close(inputs)
    _take(inputs, values)
    inputs.restart()
    _close(inputs)  # of a block whose rows all came before the restart
    _take(inputs, values)
    _close(inputs)
    assert inputs.settled
    assert inputs.arrays.centre_F[0] == pytest.approx(1000, rel=1e-3)


def _take(inputs: Inputs, values_N1: Float32s) -> None:
    if inputs.settled:
        count_columns(values_N1, 0, len(values_N1), inputs.arrays)
    else:
        inputs.keep(values_N1)


def _close(inputs: Inputs) -> None:
    if inputs.settled:
        close_columns(inputs.arrays)
    else:
        inputs.settle()


@pytest.mark.parametrize("p", [1e-3, 1e-17])
def test_however_long_it_settles_and_however_sure_it_is_to_be_it_goes_on_watching(p: float) -> None:
    means = Means(np.array([SHARE]), np.array([0]), np.array([0]), p, notable=0.4, trend=False)
    means.restart(10_000)
    draw = np.random.default_rng(0)
    for block in range(400):
        means.sums_D[0] = UNIT * draw.binomial(BLOCK_ROWS, 0.2)
        assert means.close() < 1, block
    for _ in range(16):
        means.sums_D[0] = UNIT * BLOCK_ROWS
        moved = means.close() > 1
    assert moved


def test_means_say_the_same_at_any_moment_after_a_resume() -> None:
    def fresh() -> Means:
        return Means(np.array([SHARE, OTHER]), np.array([0, 0]), np.array([0, 1]), 1e-3, notable=0.4, trend=False)

    means, draw = fresh(), np.random.default_rng(0)
    for block in range(300):  # past the halving of what is old
        resumed = fresh()
        resumed.restore({name: array.copy() for name, array in means.state().items()})
        assert resumed.peek(64) == means.peek(64), block
        assert [resumed.stray(d) for d in (0, 1)] == [means.stray(d) for d in (0, 1)], block
        share = 0.3 if block % 50 == 49 else 0.2
        sums_D = UNIT * np.array([draw.binomial(BLOCK_ROWS, share), round(draw.normal(0, 9))])
        for each in (means, resumed):
            each.sums_D[:] = sums_D
            each.close()
        if block > 16:  # else there is nothing before the longest window
            assert [resumed.moved(d) for d in (0, 1)] == [means.moved(d) for d in (0, 1)], block


def test_where_rows_are_booked_apart_from_what_is_learned_a_change_is_dated_as_well() -> None:
    rows, found = Rows(), []
    concept(rows)
    for learned in (1, 50):  # one row in so many
        drift = rows.drift()
        for batch, trained in rows.batches([*range(0, ROWS, 100)]):
            found += drift.observe(batch, trained // learned)
    known, thinned = found
    assert (thinned.event_time, thinned.since_time) == (known.event_time, known.since_time)
    assert 0 < thinned.since_row <= thinned.row < known.row


def test_each_array_of_the_state_is_missed_when_it_is_dropped() -> None:
    """One that nothing misses need not be stored. Dropped, it is as in a new monitor; what misses it are others."""
    needed: dict[tuple[str, str], bool] = {}
    changes = [(change, "binary") for change, _, _ in CHANGES.values()]
    for change, kind in [*changes, (worse, "binary"), (concept, "multiclass"), (concept, "regression")]:
        rows = Rows(kind)
        change(rows)
        rows.reference_rows = 1500
        batches = rows.batches([*range(0, int(rows.keep.sum()), 100)])
        for cut in (3, *(CHANGE // 100 + past for past in (-1, 1, 2, 3, 8))):
            saved = _copied(_watched(rows.drift(), batches[:cut])[0].state())
            whole = _seen(rows, saved, batches[cut:])
            for part, at in [(part, at) for part, arrays in saved.items() for at in arrays]:
                same_class = ("means" if part.endswith("means") else part.removeprefix("delay_"), at)
                if not needed.get(same_class):
                    dropped = _copied(saved)
                    dropped[part][at] = _like_new(rows.drift().state()[part].get(at), dropped[part][at])
                    needed[same_class] = _differ(_seen(rows, dropped, batches[cut:]), whole, but=f"{part}.{at}")
    assert [field for field, missed in needed.items() if not missed] == []


def _watched(drift: Drift, batches: list[tuple[Batch, int]]) -> tuple[Drift, list[Alarm]]:
    return drift, [alarm for batch, trained in batches for alarm in drift.observe(batch, trained, batch.age_B)]


def _seen(rows: Rows, state: dict[str, Arrays], batches: list[tuple[Batch, int]]) -> dict[str, bytes]:
    """What comes of a run that goes on from a state: metrics, alarms, and its state in the end. Or why it cannot."""
    drift = rows.drift()
    try:
        drift.restore(state)
        seen = repr((drift.point(), _watched(drift, batches)[1], drift.point()))
    except (EvertrainError, ValueError, IndexError, ArithmeticError, RuntimeWarning) as error:
        return {"error": repr(error).encode()}
    end = {f"{part}.{at}": array.tobytes() for part, arrays in drift.state().items() for at, array in arrays.items()}
    return {**end, "seen": seen.encode()}


def _differ(one: dict[str, bytes], other: dict[str, bytes], but: str) -> bool:
    return any(one.get(name) != value for name, value in other.items() if name != but)


def _copied(state: dict[str, Arrays]) -> dict[str, Arrays]:
    return {part: {at: array.copy() for at, array in arrays.items()} for part, arrays in state.items()}


def _like_new(new: npt.NDArray[Any] | None, array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    return new.copy() if new is not None and new.shape == array.shape else np.zeros_like(array)
