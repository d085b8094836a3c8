"""What follows an alarm, and what its report shows."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from consumers.errors import DependencyError
from consumers.record import Partition
from pipeline import report
from pipeline.drift import Alarm
from pipeline.history import POINTS_MAX, History
from pipeline.image import Image, fill
from pipeline.learner import Learner
from pipeline.policies import react
from pipeline.state import State, fresh_positions
from pipeline.version import Candidate, Point
from pipeline.webhook import RefusedError, post
from tests.stream import job
from tests.webhook_server import Answering

ALARM = Alarm("concept", None, 900, 5000, 700, 4000, 0.2, 1e-6, "mean error rose from 0.1 to 0.3")


def state_of(tmp_path: Path, tables: dict[str, Any] | None = None, **on_drift: Any) -> State:
    config = job(tmp_path / "state", on_drift=on_drift, **(tables or {}))
    topics = [config.features.topic, config.labels.topic if config.labels else ""]
    state = State(config, fresh_positions({Partition(topic, 0): 0 for topic in topics}), Learner(config))
    state.trained = 1000
    return state


def restored(state: State) -> State:
    topic_ids = {partition.topic: "id" for partition in state.positions}
    image = Image.of(state, topic_ids)
    again = State(state.job, fresh_positions(dict.fromkeys(state.positions, 0)), Learner(state.job))
    fill(again, image.arrays, json.loads(json.dumps(image.document)), lambda *_: ({}, None))
    return again


def test_an_alarm_alone_does_nothing_but_stand_in_the_ledger(tmp_path: Path) -> None:
    state = state_of(tmp_path)
    react(state, ALARM)
    assert state.ledger == [["drift", "concept", None, 900, 700, []]]
    assert not state.owed.version_due
    assert state.held_until == 0
    assert state.owed.alarms == []


def test_what_follows_goes_by_the_family(tmp_path: Path) -> None:
    state = state_of(tmp_path, version=["concept"], hold_promotion=["concept", "label"], hold_rows=50)
    react(state, replace(ALARM, family="feature", feature="x"))
    assert (state.owed.version_due, state.held_until) == (False, 0)
    react(state, replace(ALARM, family="label"))
    assert (state.owed.version_due, state.held_until) == (False, 1050)
    react(state, ALARM)
    assert state.owed.version_due
    assert state.ledger[-1] == ["drift", "concept", None, 900, 700, ["version", "hold_promotion"]]


def test_a_webhook_is_owed_the_alarm_and_what_was_done(tmp_path: Path) -> None:
    state = state_of(tmp_path, version=["concept"], webhook="http://example.org/alarms")
    react(state, ALARM)
    assert state.owed.alarms == [{**ALARM.document(), "done": ["version"]}]
    state.seal()
    assert state.owed.alarms == []


def test_a_rewarmed_optimizer_has_forgotten_earlier_gradients(tmp_path: Path) -> None:
    state = state_of(tmp_path, rewarm=["concept"])
    batch = next(iter(full_batches(state)))
    state.learner.step(batch)
    assert any(name.startswith("optimizer.") for name in state.learner.state())
    react(state, ALARM)
    assert not any(name.startswith("optimizer.") for name in state.learner.state())
    assert not state.learner.step(batch).refused


def test_a_rewarmed_bank_listens_to_every_member_again(tmp_path: Path) -> None:
    state = state_of(tmp_path, {"learner": {"kind": "bank", "hidden": [256, 128]}}, rewarm=["concept"])
    batch, mixture_M = next(iter(full_batches(state))), state.learner.weights()["mixture_M"]
    for _ in range(5):
        state.learner.step(batch)
    members, least = len(mixture_M), mixture_M.min()
    react(state, ALARM)
    assert least < 0.1 / members
    assert mixture_M.min() > 0.5 / members
    assert mixture_M.sum() == pytest.approx(1)
    assert not state.learner.step(batch).refused


def test_recent_metrics_begin_anew(tmp_path: Path) -> None:
    state = state_of(tmp_path, restart_metrics=["concept"])
    state.monitor.observe(next(iter(full_batches(state))), None, 64)
    assert "live/accuracy_recent" in state.monitor.point()
    react(state, ALARM)
    point = state.monitor.point()
    assert "live/accuracy_recent" not in point
    assert "live/accuracy" in point


def test_the_hold_and_the_course_survive_a_restart(tmp_path: Path) -> None:
    state = state_of(tmp_path, hold_promotion=["concept"])
    react(state, ALARM)
    state.history.add({"time_ms": 5, "values": {"live/auc_recent": 0.7, "drift/psi_max": 1.0}})
    again = restored(state)
    assert again.held_until == state.held_until > 0
    assert again.history.document() == state.history.document()
    assert again.history.document()["points"] == [{"time_ms": 5, "values": {"live/auc_recent": 0.7}}]


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("rewarm", ["konzept"], "'concept', 'feature'"),
        ("webhook", "ftp://x", "http:// or https://"),
        ("webhook", "http://", "http:// or https://"),
    ],
)
def test_what_cannot_be_meant_is_refused(tmp_path: Path, key: str, value: Any, said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        state_of(tmp_path, **{key: value})


def test_a_course_by_the_clock_is_refused_as_it_would_have_no_point(tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="a number of rows such as '10000 rows'"):
        state_of(tmp_path, {"monitor": {"every": "30s"}})


def test_without_drift_nothing_can_follow_an_alarm(tmp_path: Path) -> None:
    off = {"monitor": {"drift": False}}
    state_of(tmp_path, off)
    with pytest.raises(ValidationError, match=r"monitor\.drift = false raises none"):
        state_of(tmp_path, off, hold_promotion=["concept"])
    with pytest.raises(ValidationError, match=r"monitor\.drift = false raises none"):
        state_of(tmp_path, off, webhook="http://example.org/alarms")


def full_batches(state: State) -> Iterator[Any]:
    """Batches of learnable rows, as the batcher gives them."""
    from consumers.batch import Batch

    rows, columns = state.job.learner.batch_size, state.job.features.columns
    draw = np.random.default_rng(0)
    features_BC = np.zeros((rows, columns), np.float32)
    features_BC[:, 0] = draw.normal(size=rows)
    labels_B = (features_BC[:, 0] > 0).astype(np.float32)
    scores_BS = np.full((rows, 1), 0.5, np.float32)
    yield Batch(features_BC, labels_B, np.ones(rows, np.float32), scores_BS, np.arange(rows), rows)


def test_a_long_run_keeps_a_thinned_course() -> None:
    history, count = History(), 5 * POINTS_MAX
    for number in range(count):
        history.add({"time_ms": number, "values": {"live/auc_recent": number / count}})
    times = [point["time_ms"] for point in history.document()["points"]]
    steps = {after - before for before, after in pairwise(times)}
    assert POINTS_MAX / 2 <= len(times) <= POINTS_MAX
    assert times[0] == 0
    assert len(steps) == 1
    assert count - times[-1] <= steps.pop()


def candidate(**changes: Any) -> Candidate:
    points = [{"time_ms": 86_400_000 * day, "values": {"live/auc_recent": 0.7 + day / 100}} for day in range(5)]
    made = Candidate(
        "flights & more", "lineage", "lineage-1", None, np.zeros((2, 1), np.float32), np.zeros(2, np.float32), 0.0, {},
        {}, "", Point(1000, 86_400_000 * 4, {}), alarms=[ALARM.document()], points=points,
    )  # fmt: skip
    return replace(made, **changes)


def test_a_report_is_one_page_with_its_picture_and_every_alarm(tmp_path: Path) -> None:
    report.write(tmp_path / "report", candidate(promoted=False))
    page = (tmp_path / "report" / "report.html").read_text()
    assert (tmp_path / "report" / "report.png").read_bytes().startswith(b"\x89PNG")
    for expected in ("flights &amp; more", "1 concept", "1970-01-01 00:00:04", "mean error rose", "Promotion is held"):
        assert expected in page


def test_quality_by_label_age_is_a_picture_of_its_own_where_labels_come_late(tmp_path: Path) -> None:
    ages = {"below_1h": {"rows": 900.0, "auc": 0.81, "kappa": 0.4}, "below_1d": {"rows": 100.0, "auc": 0.7}}
    ages["below_7d"] = {"rows": 3.0, "auc": 1.0}
    values = {f"live/by_age/{age}/{name}": value for age, found in ages.items() for name, value in found.items()}
    report.write(tmp_path / "late", candidate(point=Point(1000, 86_400_000 * 4, values)))
    report.write(tmp_path / "at-once", candidate())
    assert (tmp_path / "late" / "by_age.png").read_bytes().startswith(b"\x89PNG")
    assert "Quality by how long the label took" in (tmp_path / "late" / "report.html").read_text()
    assert not (tmp_path / "at-once" / "by_age.png").exists()
    assert "how long the label took" not in (tmp_path / "at-once" / "report.html").read_text()


def test_one_wild_event_time_keeps_no_version_from_its_report(tmp_path: Path) -> None:
    alarms = [ALARM.document(), replace(ALARM, since_time=10**18).document()]
    report.write(tmp_path / "report", candidate(alarms=alarms))
    assert "1970-01-05 00:00:00" in (tmp_path / "report" / "report.html").read_text()


def test_a_report_of_a_quiet_run_says_so(tmp_path: Path) -> None:
    report.write(tmp_path / "report", candidate(alarms=[], points=[]))
    page = (tmp_path / "report" / "report.html").read_text()
    assert "no alarm(s)" in page
    assert "<table>" not in page


@pytest.fixture
def webhook() -> Iterator[Answering]:
    server = Answering()
    yield server
    server.stop()


def test_an_alarm_is_posted_with_its_id(webhook: Answering) -> None:
    webhook.answers = [204]
    post(webhook.address, {"id": "a-1", "family": "concept"})
    assert webhook.got == [("a-1", {"id": "a-1", "family": "concept"})]


def test_an_alarm_that_was_not_taken_waits(webhook: Answering) -> None:
    webhook.answers = [503]
    with pytest.raises(DependencyError, match="answered 503"):
        post(webhook.address, {"id": "a-1"})
    webhook.stop()
    with pytest.raises(DependencyError, match="does not answer"):
        post(webhook.address, {"id": "a-1"})


def test_a_webhook_that_has_moved_has_not_taken_the_alarm(webhook: Answering) -> None:
    webhook.answers, webhook.moved_to = [301], "/elsewhere"
    with pytest.raises(RefusedError, match="answered 301 Moved Permanently, which is at /elsewhere"):
        post(webhook.address, {"id": "a-1"})


def _greet(server: socket.socket) -> None:
    client, _ = server.accept()
    with client:
        client.send(b"220 mail\r\n")


def test_what_does_not_speak_http_has_not_taken_it_either() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        Thread(target=_greet, args=[server]).start()
        with pytest.raises(DependencyError, match=r"does not answer .*220 mail"):
            post(f"http://127.0.0.1:{server.getsockname()[1]}/", {"id": "a-1"})
