"""One life of a job, from `execute` to its end or its kill, with everything its own but Kafka and MLflow."""

from __future__ import annotations

import logging
import os
import random
import socket
import subprocess
import time
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping
from itertools import pairwise
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pipeline.deadletter
import pipeline.registry
import pipeline.release
import pipeline.releaser
import pipeline.report
import pipeline.run
import pipeline.telemetry
from consumers.codecs import build_codec
from consumers.cutter import Cut, Cutter, place, span_of
from consumers.inmemory import InMemorySource
from consumers.kafka import Topic
from consumers.planner import Planner
from consumers.record import CaughtUp, Command, Entry, Membership, Messages, Partition, Position, Span, Tick, Wait
from pipeline.config import JobConfig, label_rule
from pipeline.execute import execute
from pipeline.ledger import Line
from pipeline.run import Start
from tests.faults import stages, world
from tests.faults.scenario import Scenario
from tests.records import decoded


def live(scenario: Scenario, job: JobConfig, make_source: Callable[..., Any], log: Path) -> int:
    """`evertrain run --until-caught-up` in this process, over twins. Returns its exit code."""
    logging.basicConfig(filename=log, level=logging.INFO, force=True)
    pipeline.run.Cluster = lambda _: TwinCluster(scenario)
    pipeline.run.KafkaSource = lambda *_, commands, **__: make_source(scenario, job, commands)
    try:
        execute(job, Start(until_caught_up=True))
    except Exception as error:
        logging.exception("the job ended")
        return getattr(error, "exit_code", 70)
    return 0


def move_in() -> None:
    """Puts this process, and all that it forks, into the world of `world`; releasers are forked, not spawned."""
    pipeline.deadletter.send = world.send
    pipeline.deadletter.commit_offsets = world.commit_offsets
    pipeline.registry.import_mlflow = world.mlflow
    pipeline.registry.MLflowRegistry._export = world.export
    pipeline.report.draw = world.draw
    pipeline.run.Releaser = ForkedReleaser
    # A life is some hundredths of a second: what waits for seconds would never come to pass.
    pipeline.telemetry.INTERVAL_S = 0.02
    pipeline.releaser._RESTART_S = (0.005, 0.05)
    pipeline.release._BACKOFF_S = (0.005, 0.05)
    pipeline.release._NICENESS = 0


class TwinCluster:
    """`consumers.kafka.Cluster` of a scenario."""

    is_mock = False

    def __init__(self, scenario: Scenario) -> None:
        self._topics = scenario.topics

    def id(self) -> str:
        return "cluster"

    def topic(self, name: str) -> Topic:
        return Topic(name, f"id-of-{name}", tuple(p for p in self._topics if p.topic == name))

    def resolve(self, partitions: tuple[Partition, ...], _: str) -> dict[Partition, int]:
        return dict.fromkeys(partitions, 0)

    starts = ends = lambda self, partitions: dict.fromkeys(partitions, 0)


class Backlog:
    """`InMemorySource` with the face of `KafkaSource`."""

    lag: int | None = None
    reader_pids: tuple[int, ...] = ()

    def __init__(self, scenario: Scenario, job: JobConfig, commands: Callable[[], Command | None]) -> None:
        self.topics, self.sides, self.stream = scenario.topics, scenario.sides, job.stream
        self.codecs = {c.topic: build_codec(c, label_rule(job.learner)) for c in (job.features, job.labels) if c}
        self.commands = commands

    def entries(self, positions: Mapping[Partition, Position]) -> Iterator[Entry | Wait]:
        stages.begin()
        return InMemorySource(self.topics, self.codecs, self.sides, self.stream).entries(positions)

    def close(self) -> None: ...


class Head(Backlog):
    """The live head: records come in pieces, ends are proven and lapse, people give commands, all by chance."""

    def __init__(self, chance: random.Random, *args: Any) -> None:
        super().__init__(*args)
        self._chance = chance

    def entries(self, positions: Mapping[Partition, Position]) -> Iterator[Entry | Wait]:
        stages.begin()
        chance, now = self._chance, 0.0
        planner = Planner(positions, self.sides, self.stream, batch_wait_ms=1)
        cutters = {p: Cutter(p, self.codecs[p.topic], at.next, self.stream.span) for p, at in positions.items()}
        rest = {p: self._from(p, at.next) for p, at in positions.items()}
        while True:
            now += 0.001
            for partition, cutter in cutters.items():
                rest[partition] = self._arrive(cutter, rest[partition])
                self._cut(cutter, planner, now, last=not len(rest[partition]))
            if chance.random() < 0.02:
                yield Command("register")
            if chance.random() < 0.02:
                yield Command("accept_bad", chance.randrange(3))
            entry = planner.next(now)
            if isinstance(entry, CaughtUp):
                return
            yield entry
            if isinstance(entry, Span):
                planner.taken(entry)

    def _from(self, partition: Partition, offset: int) -> Messages:
        messages = self.topics[partition]
        return messages.part(bisect_left(messages.offset_N, offset), len(messages))

    def _arrive(self, cutter: Cutter, rest: Messages) -> Messages:
        """Takes some of the rest, or none; returns what is left of it."""
        count = min(self._chance.randrange(-20, 40), len(rest))
        if count <= 0 or len(cutter) >= 2 * self.stream.span:
            return rest
        cutter.extend(rest.part(0, count))
        return rest.part(count, len(rest))

    def _cut(self, cutter: Cutter, planner: Planner, now: float, *, last: bool) -> None:
        if last:
            cutter.bound = cutter.expected
        while cut := cutter.cut(flush=last or self._chance.random() < 0.3):
            planner.offer(span_of(cutter.partition, cut))
        if last:
            planner.done(cutter.partition)
        elif not len(cutter) and self._chance.random() < 0.7:
            planner.ended(cutter.partition, now + 0.003)


class ForkedReleaser(pipeline.releaser.Releaser):
    """The real handle on a real releaser, which this process forks instead of starting Python once more."""

    late_s = 0.0  # a real one is up seconds after its learner has begun

    def _spawn(self) -> None:
        if self.late_s:
            self._restart_s, self.late_s = time.monotonic() + self.late_s, 0.0
            return
        self._log_path.parent.mkdir(parents=True, exist_ok=True)
        ours, theirs = socket.socketpair()
        pid = os.fork()
        if not pid:
            try:
                descriptor = os.dup2(theirs.fileno(), 3)
                os.closerange(4, 256)  # as exec does: the lock is not the releaser's
                pipeline.release.main(self._state_dir, descriptor)
            finally:
                os._exit(1)
        theirs.close()
        self._process = _Forked(pid)
        self._spawned_s = time.monotonic()
        with self._sending:
            self._channel = Connection(ours.detach())
        self._send("committed", self._sequence)


class _Forked:
    """As much of a `Popen` as the handle uses."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None

    def poll(self) -> int | None:
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.returncode = os.waitstatus_to_exitcode(status) if pid else None
        return self.returncode

    def kill(self) -> None:
        if self.poll() is None:
            os.kill(self.pid, 9)

    def wait(self, timeout: float | None = None) -> int:
        deadline = None if timeout is None else time.monotonic() + timeout
        while self.poll() is None:
            if deadline and time.monotonic() > deadline:
                raise subprocess.TimeoutExpired("releaser", timeout or 0)
            time.sleep(0.001)
        assert self.returncode is not None
        return self.returncode


class Ledger(Backlog):
    """The entries that a job's own ledger names, and the commits between them: also the cadence of its replay."""

    def __init__(self, lines: list[Line], *args: Any) -> None:
        super().__init__(*args)
        self._lines = [line for line in lines if line[0] != "drift"]
        self._sealed = False

    def entries(self, positions: Mapping[Partition, Position]) -> Iterator[Entry | Wait]:
        partitions = list(positions)
        for line, after in pairwise(self._lines):
            if line[0] != "snapshot":
                self._sealed = after[0] == "snapshot"
                yield self._entry(partitions, *line)

    def due(self, *_: Any) -> bool:
        """Whether the ledger was sealed here."""
        sealed, self._sealed = self._sealed, False
        return sealed

    def _entry(self, partitions: list[Partition], kind: str, *rest: Any) -> Entry:
        if kind == "span":
            return self._span(partitions[rest[0]], *rest[1:])
        if kind == "membership":
            return Membership(partitions[rest[0]], rest[1])
        return Tick() if kind == "tick" else Command(*rest)

    def _span(self, partition: Partition, start: int, stop: int) -> Span:
        messages = self.topics[partition]
        first, last = (bisect_left(messages.offset_N, offset) for offset in (start, stop))
        part = messages.part(first, last)
        rows = decoded(self.codecs[partition.topic], part)
        cut = Cut(start, stop, place(part.timestamp_N), len(part), rows.events, rows.rejects)
        return span_of(partition, cut)
