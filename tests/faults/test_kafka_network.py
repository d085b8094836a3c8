"""What lies between a job and its Kafka fails: the stream is learned as if nothing had happened, or the job says so."""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from pipeline.config import JobConfig
from pipeline.identity import with_settings
from tests.jobs import Job
from tests.kafka_proxy import FETCH
from tests.live import ROWS, Stream, comparable, learned
from tests.stream import job_document

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]


@pytest.fixture
def stream(fault_broker: Any, tmp_path: Path) -> Iterator[Stream]:
    found = Stream(fault_broker, tmp_path)
    yield found
    found.close()
    fault_broker.proxy.heal()


def through_the_proxy(stream: Stream) -> JobConfig:
    kafka = {"bootstrap.servers": stream.broker.proxied, "socket.timeout.ms": 2000, "reconnect.backoff.max.ms": 500}
    return stream.config.model_copy(update={"kafka": kafka})


class Tampering:
    """Does something to the next few answers with records."""

    def __init__(self, kind: str, times: int) -> None:
        self.kind, self.left, self.before = kind, times, b""

    def __call__(self, api: int, answer: bytes) -> bytes | None:
        if api != FETCH or b'"a":' not in answer:
            return answer
        before, self.before = self.before, answer
        if self.left <= 0 or (self.kind == "replayed" and not before):
            return answer
        self.left -= 1
        if self.kind == "dropped":
            return None
        if self.kind == "replayed":
            return before
        at = answer.index(b'"a":') + len(b'"a":') + 7
        return answer[:at] + bytes([answer[at] ^ 1]) + answer[at + 1 :]


@pytest.mark.parametrize("kind", ["flipped", "dropped", "replayed"])
def test_answers_that_are_tampered_with_change_nothing(stream: Stream, kind: str) -> None:
    stream.produce()
    expected = learned(stream.config)
    tampering = Tampering(kind, 2)
    stream.broker.proxy.tamper = tampering
    config = through_the_proxy(stream)
    small = config.model_copy(update={"kafka": {**config.kafka, "fetch.message.max.bytes": 10_000}})
    live = stream.live(config=small, until_caught_up=True)
    live.run(seconds=200)
    assert tampering.left == 0
    assert comparable(live.commit()) == expected


def test_connections_that_are_cut_and_stalled_change_nothing(stream: Stream) -> None:
    stream.produce()
    expected = learned(stream.config)
    proxy = stream.broker.proxy
    live = stream.live(config=through_the_proxy(stream), until_caught_up=True)
    live.run(until=lambda: live.read() > 0)
    proxy.cut()
    live.run(until=lambda: live.read() > ROWS // 2)
    proxy.flowing.clear()
    live.run(until=pause(1))
    proxy.flowing.set()
    live.run()
    assert comparable(live.commit()) == expected


def pause(seconds: float) -> Any:
    """True after so many seconds."""
    end = time.monotonic() + seconds
    return lambda: time.monotonic() > end


def test_a_frozen_broker_is_waited_for_and_so_is_a_frozen_reader(stream: Stream) -> None:
    stream.produce(0, 200)
    live = stream.live()
    live.run(until=lambda: live.read() == 400)
    for pid, said in (
        (stream.broker.pid, "neither a record nor"),
        (live.source.reader_pids[1], "neither a record nor"),
    ):
        os.kill(pid, signal.SIGSTOP)
        try:
            live.run(until=lambda: said in live.wait.reason, seconds=60)  # noqa: B023
        finally:
            os.kill(pid, signal.SIGCONT)
        live.run(until=lambda: "at the end of every partition" in live.wait.reason, seconds=60)
    stream.produce(200, ROWS)
    live.run(until=lambda: live.read() == 2 * ROWS)
    assert live.commit()["counts"]["totals"]["matched"] == 2 * ROWS


@pytest.mark.parametrize("readers", [1, 2, 3])
def test_a_reader_killed_while_it_holds_slots_changes_nothing(stream: Stream, readers: int) -> None:
    stream.produce()
    expected = learned(stream.config)
    live = stream.live(config=with_settings(stream.config, {"stream.readers": readers}), until_caught_up=True)
    for turn, read in enumerate((1, ROWS // 2, ROWS)):
        live.run(until=lambda: live.read() >= read)  # noqa: B023
        pids = live.source.reader_pids
        assert len(pids) == readers
        os.kill(pids[turn % readers], signal.SIGKILL)
    live.run()
    assert comparable(live.commit()) == expected


def test_a_broker_that_stops_is_waited_for_and_one_restored_from_a_copy_stops_the_job(stream: Stream) -> None:
    broker = stream.broker
    stream.produce(0, 200)
    live = stream.live()
    live.run(until=lambda: live.read() == 400)
    broker.stop()
    copy = Path(shutil.copytree(broker.data / "log", broker.data / "copy"))
    live.run(until=lambda: "not reachable" in live.wait.hold, seconds=60)
    broker.start()
    stream.produce(200, ROWS)
    live.run(until=lambda: live.read() == 2 * ROWS, seconds=90)
    assert not live.wait.hold
    broker.stop()
    shutil.rmtree(broker.data / "log")
    copy.rename(broker.data / "log")
    broker.start()
    error = live.fails(seconds=90)
    assert "[0]@200" in error or "[1]@200" in error
    assert "the log ends at 100" in error


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"sasl.password": "wrong"}, "Authentication failed"),
        ({"security.protocol": "SASL_SSL"}, "SSL handshake failed"),
    ],
)
def test_a_kafka_that_lets_nobody_in_is_an_error_that_says_why(
    fault_broker: Any, tmp_path: Path, settings: dict[str, str], words: str
) -> None:
    document = job_document(tmp_path / "state")
    document["kafka"] = {**fault_broker.sasl, **settings}
    started = Job(tmp_path, document)
    started.run(expect=3)
    (line,) = [line for line in started.log.read_text().splitlines() if line.startswith("evertrain: error")]
    assert words in line
    assert "security settings in [kafka]" in line


def test_a_kafka_that_lets_nobody_in_any_more_holds_the_job_and_says_so(stream: Stream) -> None:
    stream.produce(0, 200)
    proxy = stream.broker.proxy
    live = stream.live(config=through_the_proxy(stream))
    live.run(until=lambda: live.read() == 400)
    proxy.refusing = True
    proxy.cut()
    live.run(until=lambda: "not reachable" in live.wait.hold, seconds=60)
    proxy.heal()
    stream.produce(200, ROWS)
    live.run(until=lambda: live.read() == 2 * ROWS)


def test_the_readers_and_the_releaser_of_a_killed_learner_end(stream: Stream, tmp_path: Path) -> None:
    stream.produce(0, 200)
    document = job_document(tmp_path / "state", stream.broker.bootstrap, stream.prefix, stream={"readers": 2})
    started = Job(tmp_path, document)
    process = started.start()
    started.wait_for(lambda: started.status().get("rows_trained"), process)
    pids = [*started.status()["reader_pids"], started.status()["releaser_pid"]]
    children = [psutil.Process(pid) for pid in pids]
    process.kill()
    process.wait()
    _, alive = psutil.wait_procs(children, timeout=30)
    assert not [child for child in alive if child.status() != psutil.STATUS_ZOMBIE]
