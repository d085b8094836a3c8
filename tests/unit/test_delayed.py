"""Negatives learned before their label: what is learned, with which weight, and what is booked."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from consumers.batch import Batch, Batcher, Examples
from consumers.config import JoinConfig
from consumers.errors import BalanceError
from pipeline import delayed
from pipeline.delayed import Delayed, early_factor
from pipeline.monitor import Monitor
from pipeline.train import learn
from tests.lives import ROWS, Story, same_state
from tests.stream import START_MS, events, job

EARLY = JoinConfig(window=1000, negative_after=100)
POLICY = {"window": "1s", "on_expiry": "negative", "negative_after": "150ms", "keep_negatives": 0.5}


def examples(labels: list[float], assumed: list[bool], *, final: bool = True, score: float = 0.25) -> Examples:
    """With weights 1, 2, 3 and keys whose hashes rise evenly."""
    rows, labels_N, assumed_N = len(labels), np.array(labels, np.float32), np.array(assumed, np.bool_)
    key_N = np.linspace(0, 2.0**64, rows, endpoint=False).astype(np.uint64)
    columns = {
        "key": np.stack([np.zeros_like(key_N), key_N], axis=1),
        "features": np.arange(rows, dtype=np.float32)[:, None],
        "weight": np.arange(1, rows + 1, dtype=np.float32),
        "scores": np.full((rows, 1), score, np.float32),
        "event_time": np.arange(rows),
    }
    return Examples(np.arange(rows), labels_N, np.full(rows, 7), assumed_N, columns, final)


def policy(config: JoinConfig = EARLY) -> Delayed:
    return Delayed(config, Batcher(4, 1, 1))


def learned(found: Examples) -> list[tuple[int, float, float]]:
    """Row, label and weight of what goes to the open batch."""
    batches = list(Batcher(max(len(found), 1), 1, 1).add(found))
    return [
        (int(row), float(label), pytest.approx(float(weight)))
        for batch in batches
        for (row,), label, weight in zip(batch.features_BC, batch.labels_B, batch.weights_B, strict=True)
    ]


@pytest.mark.parametrize("late_share", [0.1, 0.5, 1.0])
@pytest.mark.parametrize("probability", [0.001, 0.3, 0.9])
def test_weighted_the_expected_gradient_is_that_of_the_true_labels(probability: float, late_share: float) -> None:
    as_negative = 1 - probability + probability * late_share  # true ones, and positives that come late
    weight = early_factor(np.array([probability]), late_share)[0]
    assert as_negative * weight == pytest.approx(1 - probability)


def test_at_once_it_is_the_fake_negative_weighting_but_for_a_factor_of_x_alone() -> None:
    score_N = np.array([0.0, 0.2, 0.9])
    np.testing.assert_allclose((1 + score_N) * early_factor(score_N, 1.0), (1 - score_N) * (1 + score_N))


def test_a_score_that_is_not_finite_weighs_nothing_more_and_nothing_less() -> None:
    assert early_factor(np.array([np.nan, np.inf, 1.0]), 0.5).tolist() == [1, 1, 0]


def test_a_negative_is_learned_once_and_a_positive_that_was_taken_for_one_is_corrected() -> None:
    late = policy()
    early = late.to_learn(examples([0, 0], [False, False], final=False))
    assert learned(early) == [(0, 0, 0.75), (1, 0, 2 * 0.75)]
    final = late.to_learn(examples([1, 0, 1, 0], [True, True, False, False]))
    assert learned(final) == [(0, 1, 1), (2, 1, 3), (3, 0, 4)], "the confirmed negative is known already"
    assert late.counts() == {"corrected": 1, "confirmed": 1, "left_out": 0}


def test_the_share_of_late_positives_is_counted_on_the_stream_and_forgets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delayed, "POSITIVES_REMEMBERED", 50)
    late = policy()
    assert late.late_share == 1, "nothing is known: as if negative at once"
    for _ in range(98):
        late.to_learn(examples([1, 0], [False, False]))
    assert late.late_share == pytest.approx(1 / 99)
    for _ in range(200):
        late.to_learn(examples([1, 0], [True, True]))
    assert late.late_share > 0.85, "what was long ago counts less"
    early = late.to_learn(examples([0], [False], final=False, score=0.5))
    assert learned(early) == [(0, 0, 1 / (1 + late.late_share))]


def test_of_the_negatives_a_share_is_learned_by_key_and_weighs_as_much_as_all() -> None:
    late = policy(JoinConfig(keep_negatives=0.25))
    labels = [0.0] * 15 + [1.0]
    found = late.to_learn(examples(labels, [False] * 16))
    assert learned(found) == [(row, 0, 4 * (row + 1)) for row in range(4)] + [(15, 1, 16)]
    assert learned(late.to_learn(examples(labels, [False] * 16))) == learned(found)
    assert late.counts()["left_out"] == 22
    assert sum(len(batch.labels_B) for batch in late.book(examples(labels, [False] * 16))) == 16, "all are booked"


class Watched:
    """A story whose bookings are written down: event time, label, age of each and whether the label was sent."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, **join: Any) -> None:
        self.booked: list[tuple[int, float, int, bool]] = []
        self.story = Story(folder, join={**POLICY, **join})
        observe = Monitor.observe

        def noting(monitor: Monitor, batch: Batch, *rest: Any) -> Any:
            assert batch.age_B is not None
            assert batch.sent_B is not None
            columns = (batch.event_time_B, batch.labels_B, batch.age_B, batch.sent_B)
            self.booked += zip(*(column[: batch.rows].tolist() for column in columns), strict=True)
            return observe(monitor, batch, *rest)

        monkeypatch.setattr(Monitor, "observe", noting)


def truth() -> dict[int, tuple[float, int]]:
    """By event time of the features: label and how late it came."""
    _, labels = events(ROWS)
    found = {}
    for record in labels:
        row = int((record.key or b"")[1:])
        found[START_MS + row] = (float((record.value or b"").endswith(b'"y":1}')), record.timestamp - START_MS - row)
    return found


def test_each_score_is_booked_once_with_its_true_label_never_with_the_assumed_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    watched, known = Watched(tmp_path, monkeypatch), truth()
    counts = watched.story.live()["counts"]
    booked = {time: found for time, *found in watched.booked}
    waiting = known.keys() - booked.keys()
    assert len(booked) == len(watched.booked) == counts["examples"]["booked"] > 0.95 * ROWS
    assert all(known[time][1] > 1000 for time in waiting), "their label came too late, and time stood still"
    for time, found in booked.items():
        assert found == ([*known[time], True] if known[time][1] <= 1000 else [0.0, 1000, False])
    made = counts["examples"]
    assert made["corrected"] > 100 < made["confirmed"]
    assert 0 <= made["assumed"] - made["corrected"] - made["confirmed"] <= len(waiting)
    assert made["trained"] + made["confirmed"] + made["left_out"] == made["booked"] + made["assumed"]


def test_killed_after_a_few_entries_each_time_it_is_the_same_run(tmp_path: Path) -> None:
    straight = Story(tmp_path / "straight", join=POLICY).live()
    story = Story(tmp_path / "killed", join=POLICY)
    lives = [story.live(entries=5) for _ in range(30)]
    assert same_state(lives[-1], straight)
    assert lives[-1]["counts"] == straight["counts"]
    assert lives[-1]["metrics"] == straight["metrics"]
    rows = [life["rows_trained"] for life in lives]
    assert sum(before < after for before, after in pairwise(rows)) > 5, "it was killed on the way"


def test_a_booking_that_is_missing_stops_the_job(tmp_path: Path) -> None:
    with Story(tmp_path, join=POLICY).opened() as run:
        for entry in run.source.entries(run.state.positions):
            learn(run.state, entry)  # type: ignore[arg-type]
        run.state.check_balance()
        assert run.state.delayed is not None
        run.state.delayed.booked -= 1
        with pytest.raises(BalanceError, match="not as many are booked"):
            run.state.check_balance()
        run.state.delayed.booked += 1


@pytest.mark.parametrize(
    ("tables", "reason"),
    [
        ({"join": {"negative_after": "5s"}}, "less than window"),
        ({"join": {"negative_after": "1s"}, "learner": {"task": "regression"}}, "binary task"),
        ({"join": {"keep_negatives": 0.5}, "learner": {"task": "multiclass"}}, "binary task"),
        ({"join": {"keep_negatives": 0.0}}, "greater than 0"),
    ],
)
def test_what_makes_no_sense_is_refused(tables: dict[str, Any], reason: str, tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match=reason):
        job(tmp_path / "state", **tables)


def test_labels_that_come_with_their_features_are_never_early(tmp_path: Path) -> None:
    document = job(tmp_path / "state").model_dump()
    document["features"]["label"], document["labels"] = "y", None
    document["join"]["negative_after"] = 10
    with pytest.raises(ValidationError, match="topic of their own"):
        type(job(tmp_path / "state")).model_validate(document)
