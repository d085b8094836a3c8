"""The releaser's bookkeeping, without a process: what counts as an error, and what holds up whom."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from consumers.errors import DependencyError
from pipeline import releaser
from pipeline.release import Service, Sink, _one_line
from pipeline.releaser import HOLDING, SINKS, Releaser, released, replace_file
from pipeline.store import LocalStore, Manifest
from pipeline.webhook import RefusedError


class Trainer:
    """The other end of the pipe: what it was told."""

    def __init__(self) -> None:
        self.told: list[tuple[Any, ...]] = []

    def send(self, message: tuple[Any, ...]) -> None:
        self.told.append(message)


@pytest.fixture
def trainer() -> Trainer:
    return Trainer()


@pytest.fixture
def service(tmp_path: Path, trainer: Trainer) -> Service:
    (tmp_path / "release").mkdir()
    store = LocalStore(tmp_path)
    for sequence in range(2):
        store.commit(sequence, {"sequence": sequence, "owed": {}, "released": -1})
    return Service(tmp_path, trainer)  # type: ignore[arg-type]


def sink_that(service: Service, name: str, effect: Any) -> Sink:
    sink = next(sink for sink in service._sinks if sink.name == name)
    sink.effect = effect
    return sink


def status(tmp_path: Path) -> dict[str, Any]:
    document: dict[str, Any] = json.loads((tmp_path / "release" / "status.json").read_text())
    return document


def test_a_failure_is_told_once_and_shown_with_the_time_of_the_next_attempt(
    service: Service, trainer: Trainer, tmp_path: Path
) -> None:
    def fails(_: Manifest) -> None:
        raise DependencyError("Kafka is away")

    sink = sink_that(service, "dead_letters", fails)
    for _ in range(3):
        service._attempt(sink, 0)
    assert trainer.told == [("line", "dead_letters of snapshot 0 wait (training goes on): Kafka is away")]
    shown = status(tmp_path)["dead_letters"]
    assert shown["error"] == "Kafka is away"
    assert shown["retry_at_ms"] > 0
    sink.effect = lambda _: None
    service._attempt(sink, 0)
    assert trainer.told[1:] == [("line", "dead_letters: released again, from snapshot 0 on")]
    assert status(tmp_path)["dead_letters"] == {"released": 0, "error": None, "retry_at_ms": None}


def test_a_snapshot_that_is_collected_meanwhile_is_no_error(service: Service, trainer: Trainer, tmp_path: Path) -> None:
    def collected(_: Manifest) -> None:
        LocalStore(tmp_path).remove([0], [])
        raise FileNotFoundError("a blob of snapshot 0")

    sink = sink_that(service, "mirror", collected)
    service._attempt(sink, 0)
    LocalStore(tmp_path).remove([1], [])
    service._attempt(sink, 1)  # gone before it was read
    assert sink.error is None
    assert trainer.told == []


def test_a_mirror_that_fails_holds_up_no_collection(tmp_path: Path) -> None:
    (tmp_path / "release").mkdir()
    for sink in SINKS:
        replace_file(tmp_path / "release" / sink, "-1\n" if sink == "mirror" else "7\n")
    assert released(tmp_path) == 7


ALARMS = [{"family": "concept", "row": row} for row in (7, 9)]
HOUR_MS = 3_600_000


@pytest.mark.parametrize(
    ("waited_ms", "kept_bytes", "others", "given_up"),
    [(HOUR_MS // 2, 100, 2, 0), (HOUR_MS + 1, 100, 2, 2), (0, 1000, 2, 2), (0, 1000, -1, 0)],
    ids=["they wait", "an hour is over", "too much is kept for them", "it is kept for others"],
)
def test_alarms_that_no_webhook_takes_are_given_up_and_counted(
    service: Service, trainer: Trainer, tmp_path: Path, waited_ms: int, kept_bytes: int, others: int, given_up: int
) -> None:
    store, now_ms = LocalStore(tmp_path), time.time_ns() // 10**6
    config = {"snapshot": {"owed_max": 500}, "on_drift": {"webhook": "http://nobody"}}
    manifest = {"config": config, "committed_ms": now_ms - waited_ms, "released": -1, "name": "n", "lineage": "l"}
    owed = {"alarms": store.put([json.dumps(ALARMS).encode()])}
    store.commit(2, {**manifest, "sequence": 2, "owed": owed, "owed_bytes": kept_bytes})
    for sink in HOLDING:
        replace_file(tmp_path / "release" / sink, f"{others}\n")

    def fails(_: Manifest) -> None:
        raise DependencyError("on_drift.webhook answered 503")

    sink = sink_that(service, "alarms", fails)
    sink.pause_s = 30.0
    service._attempt(sink, 2)
    what = "2 alarms of snapshot 2 are given up" if given_up else "alarms of snapshot 2 wait (training goes on)"
    assert trainer.told == [("line", f"{what}: on_drift.webhook answered 503")]
    assert status(tmp_path)["alarms"]["given_up"] == given_up
    assert sink.released == (2 if given_up else -1)
    again = Service(tmp_path, trainer)  # type: ignore[arg-type]
    again._write_status()
    assert status(tmp_path)["alarms"]["given_up"] == given_up


def waiting_alarms(tmp_path: Path) -> None:
    """Snapshot 2 owes ALARMS since two hours."""
    store = LocalStore(tmp_path)
    config = {"snapshot": {"owed_max": 500}, "on_drift": {"webhook": "http://nobody"}}
    manifest = {"config": config, "committed_ms": time.time_ns() // 10**6 - 2 * HOUR_MS, "released": -1}
    owed = {"alarms": store.put([json.dumps(ALARMS).encode()])}
    named = {"name": "n", "lineage": "l", "sequence": 2, "owed": owed, "owed_bytes": 100}
    store.commit(2, {**manifest, **named})


def test_no_alarm_is_given_up_at_the_first_failure_of_a_process_that_has_just_begun(
    service: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The job was stopped overnight, and the network comes up after it."""
    waiting_alarms(tmp_path)

    def away(address: str, document: dict[str, Any]) -> None:
        raise DependencyError("on_drift.webhook does not answer")

    monkeypatch.setattr("pipeline.webhook.post", away)
    sink = next(sink for sink in service._sinks if sink.name == "alarms")
    tried_s = 0.0
    while sink.released < 2:
        tried_s += sink.pause_s
        service._attempt(sink, 2)
    assert 60 < tried_s < 65
    assert status(tmp_path)["alarms"]["given_up"] == 2


def test_an_alarm_that_the_webhook_refuses_holds_up_no_other_and_alone_is_given_up(
    service: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    waiting_alarms(tmp_path)
    taken: list[str] = []

    def refuses_the_first(address: str, document: dict[str, Any]) -> None:
        if document["row"] == 7:
            raise RefusedError("on_drift.webhook answered 400 Bad Request")
        taken.append(document["id"])

    monkeypatch.setattr("pipeline.webhook.post", refuses_the_first)
    sink = next(sink for sink in service._sinks if sink.name == "alarms")
    while sink.released < 2:
        service._attempt(sink, 2)
    assert taken == ["l-9-concept"]
    assert status(tmp_path)["alarms"]["given_up"] == 1


def test_an_error_names_its_cause_and_no_password() -> None:
    error = OSError(
        "API request to http://user:secret@host:1/api failed with exception HTTPConnectionPool(host='host', port=1): "
        "Max retries exceeded with url: /api (Caused by ResponseError('too many 503 error responses'))"
    )
    assert _one_line(error) == (
        "OSError: API request to http://host:1/api failed with ResponseError('too many 503 error responses')"
    )


def test_a_process_that_does_not_listen_blocks_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(releaser, "_COMMAND", (sys.executable, "-c", "import time; time.sleep(600)"))
    handle = Releaser(tmp_path)
    handle.start(0)
    try:
        for sequence in range(50_000):  # more than a pipe holds
            handle.committed(sequence)
        assert handle.poll() is None
    finally:
        handle.close()
