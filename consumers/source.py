"""The Source seam, and the source that reads Kafka through a reader process."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any, Protocol

from consumers.arena import Arena
from consumers.cutter import Cut, slot_bytes, span_of
from consumers.errors import DependencyError, StreamError
from consumers.planner import Planner
from consumers.reader import ReaderJob
from consumers.record import (
    REJECTS,
    CaughtUp,
    Command,
    Entry,
    Partition,
    Position,
    Side,
    Span,
    Wait,
    event_schema,
)

END_BELIEVED_S = 3.0
RESTARTS_MAX = 5


class Source(Protocol):
    """Where entries come from. Live and replay differ only in the source."""

    def entries(self, positions: Mapping[Partition, Position]) -> Iterator[Entry | Wait]:
        """Entries from `positions` on. The caller applies each (which moves `positions`) before the next."""
        ...

    def close(self) -> None: ...


class KafkaSource:
    """One reader process, started again at the learner's position when it dies.

    `reader_job` gives the job of a reader that starts at given positions within given bounds;
    `current_ends` the bounds for `finish`; `commands` is polled between spans; `last` is the last entry at the bounds.
    """

    def __init__(
        self,
        reader_job: Callable[[dict[Partition, int], dict[Partition, int]], ReaderJob],
        current_ends: Callable[[], dict[Partition, int]],
        *,
        batch_wait_ms: int,
        bounds: dict[Partition, int] | None,
        commands: Callable[[], Command | None],
        last: Command | None = None,
    ) -> None:
        self.lag: int | None = None
        self._reader_job = reader_job
        self._current_ends = current_ends
        self._batch_wait_ms = batch_wait_ms
        self._bounds = bounds or {}
        self._commands = commands
        self._last = last
        self._finish_requested = False
        self._process: subprocess.Popen[bytes] | None = None
        self._restarts = 0
        self._restarted_at: dict[Partition, int] = {}

    @property
    def reader_pid(self) -> int | None:
        """The reader process, for status and tests."""
        return self._process.pid if self._process else None

    def finish(self) -> None:
        """Makes the ends of this moment the bounds: the source ends when they are reached. Signal-safe."""
        self._finish_requested = True

    def entries(self, positions: Mapping[Partition, Position]) -> Iterator[Entry | Wait]:
        while not (yield from self._session(positions)):
            self._count_restart({p: position.next for p, position in positions.items()})

    def close(self) -> None:
        if self._process is not None:
            self._pipe.close()  # a reader ends when its pipe does
            try:
                self._process.wait(2)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._process = None

    def _session(self, positions: Mapping[Partition, Position]) -> Generator[Entry | Wait, None, bool]:
        """The life of one reader. Returns True at the bounds and False if the reader died."""
        job = self._start({p: position.next for p, position in positions.items()})
        planner = Planner(positions, job.sides, job.stream, self._batch_wait_ms)
        slots: dict[Partition, deque[int]] = {p: deque() for p in positions}
        inbox = _Inbox(job, self._arena, planner, slots)
        while True:
            self._send_finish()
            if not inbox.receive(self._pipe, 0):
                return False
            self.lag = inbox.lag
            command = self._commands()
            if command is not None:
                yield command
                continue
            entry = planner.next(time.monotonic())
            if isinstance(entry, CaughtUp):
                self.lag = 0
                self.close()
                if self._last is not None:
                    yield self._last
                return True
            yield entry
            if isinstance(entry, Span):
                planner.taken(entry)
                index = inbox.index[entry.partition]
                self._tell(("free", index, slots[entry.partition].popleft()))
            elif isinstance(entry, Wait) and not inbox.receive(self._pipe, 0.02):
                return False

    def _start(self, starts: dict[Partition, int]) -> ReaderJob:
        self.close()
        job = self._reader_job(starts, self._bounds)
        self._arena = Arena.create(job.stream.slots * len(starts), job.slot_bytes)
        ours, theirs = socket.socketpair()
        self._pipe = Connection(ours.detach())
        self._process = subprocess.Popen(
            [sys.executable, "-m", "consumers.reader", str(theirs.fileno()), str(self._arena.descriptor)],
            pass_fds=[theirs.fileno(), self._arena.descriptor],
            stdin=subprocess.DEVNULL,
        )
        theirs.close()
        self._arena.close()
        self._tell(job)
        return job

    def _tell(self, message: object) -> None:
        with suppress(BrokenPipeError, ConnectionResetError):  # the reader died: the next receive notices
            self._pipe.send(message)

    def _send_finish(self) -> None:
        if self._finish_requested and not self._bounds:
            with suppress(DependencyError):  # asked again until Kafka answers
                self._bounds = self._current_ends()
                self._tell(("bound", self._bounds))

    def _count_restart(self, positions: dict[Partition, int]) -> None:
        """Counts deaths at one position: past RESTARTS_MAX something there kills every reader."""
        status = self._process.wait() if self._process else None
        if positions != self._restarted_at:
            self._restarts, self._restarted_at = 0, positions
        self._restarts += 1
        if self._restarts > RESTARTS_MAX:
            where = ", ".join(f"{p}@{offset}" for p, offset in positions.items())
            raise StreamError(
                f"the reader died {RESTARTS_MAX} times (exit status {status}) at one position: {where}. "
                "One of the next records kills it; look at them with Kafka's tools"
            )
        time.sleep(min(0.1 * 2**self._restarts, 2))


class _Inbox:
    """Takes a reader's messages to the planner."""

    def __init__(self, job: ReaderJob, arena: Arena, planner: Planner, slots: dict[Partition, deque[int]]) -> None:
        self.lag: int | None = None
        self._partitions = list(job.starts)
        self.index = {partition: index for index, partition in enumerate(self._partitions)}
        self._arena = arena
        self._planner = planner
        self._slots = slots
        self._schemas = {
            Side.FEATURES: [
                event_schema(job.features.columns, labelled=job.features.label is not None),
                REJECTS,
            ],
            Side.LABELS: [event_schema(0, labelled=True), REJECTS],
        }
        self._sides = job.sides

    def receive(self, pipe: Connection, timeout_s: float) -> bool:
        """Takes all that is there, waiting for the first message. False if the reader is gone."""
        try:
            while pipe.poll(timeout_s):
                self._take(*pipe.recv())
                timeout_s = 0
        except (EOFError, ConnectionResetError):
            return False
        return True

    def _take(self, kind: str, *rest: Any) -> None:
        if kind == "span":
            self._offer(*rest)
        elif kind == "end":
            self._planner.ended(self._partitions[rest[0]], rest[1] + END_BELIEVED_S)
        elif kind == "done":
            self._planner.done(self._partitions[rest[0]])
        elif kind == "lag":
            self.lag = rest[0]
        else:
            raise rest[0]

    def _offer(
        self, index: int, slot: int, lengths: list[int], start: int, stop: int, place: int, messages: int
    ) -> None:
        partition = self._partitions[index]
        schemas = self._schemas[self._sides[partition.topic]]
        events, rejects = self._arena.read(slot, lengths, schemas)
        self._slots[partition].append(slot)
        self._planner.offer(span_of(partition, Cut(start, stop, place, messages, events, rejects)))


def make_reader_job(starts: dict[Partition, int], bounds: dict[Partition, int], **settings: Any) -> ReaderJob:
    """A `ReaderJob` with slots large enough for any span of its topics."""
    features, stream = settings["features"], settings["stream"]
    return ReaderJob(starts=starts, bounds=bounds, slot_bytes=slot_bytes(stream.span, features.columns), **settings)
