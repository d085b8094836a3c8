"""Reader processes as the learner's side sees them: started, listened to, ended."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any

from consumers.arena import Arena, Published
from consumers.cutter import Cut, span_of
from consumers.planner import Planner
from consumers.reader import PASSING, ReaderJob
from consumers.record import Added, Lost, Partition, Side, Span

END_BELIEVED_S = 3.0
END_S = 2.0
FREED_MAX = 4


class ReaderProcess:
    """One reader, its pipe and its arena. Ends with `close` or with this process."""

    def __init__(self, job: ReaderJob) -> None:
        self.arena = Arena.create(job.shape)
        ours, theirs = socket.socketpair()
        self.pipe = Connection(ours.detach())
        self._process = subprocess.Popen(
            [sys.executable, "-m", "consumers.reader", str(theirs.fileno()), str(self.arena.descriptor)],
            pass_fds=[theirs.fileno(), self.arena.descriptor],
            stdin=subprocess.DEVNULL,
        )
        theirs.close()
        self.arena.close()
        self.tell(job)

    @property
    def pid(self) -> int:
        return self._process.pid

    def tell(self, message: object) -> None:
        """Sends a message. A reader that died does not get it: the next `messages` raises EOFError."""
        with suppress(BrokenPipeError, ConnectionResetError):
            self.pipe.send(message)

    def messages(self, timeout_s: float) -> Iterator[tuple[Any, ...]]:
        """All that is there, after waiting for the first. Raises EOFError if the reader is gone."""
        try:
            while self.pipe.poll(timeout_s):
                yield self.pipe.recv()
                timeout_s = 0
        except ConnectionResetError:
            raise EOFError from None

    def death(self) -> str:
        """How a reader ended whose pipe is closed; empty if it only wants to be started again."""
        status = self._process.wait()
        if status == PASSING:
            return ""
        return f"killed by {signal.Signals(-status).name}" if status < 0 else f"exit code {status}"

    def close(self) -> None:
        """Ends the reader, within 2 s."""
        end([self])

    def reap(self, timeout_s: float) -> None:
        """Waits until a reader whose pipe was closed is gone; kills it after that time."""
        try:
            self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def end(readers: Iterable[ReaderProcess]) -> None:
    """Ends readers, all of them within 2 s."""
    readers = list(readers)
    for reader in readers:
        reader.pipe.close()  # a reader ends when its pipe does
    deadline = time.monotonic() + END_S
    for reader in readers:
        reader.reap(max(0, deadline - time.monotonic()))


class Feed:
    """Takes what one reader has to say to the planner.

    A feed that is `partial` reads only up to a batch that no reader survives: the ends it meets prove nothing.
    """

    def __init__(self, job: ReaderJob, planner: Planner, *, partial: bool = False) -> None:
        self.process = ReaderProcess(job)
        self.job = job
        self.lag: int | None = None
        self.hold = ""  # what is wrong outside, as the reader sees it
        self.added: list[Added] = []
        self.unreadable: tuple[Partition, str, bool] | None = None
        self.reached = dict(job.starts)  # all before it was offered
        self._planner = planner
        self._partial = partial
        self._partitions = list(job.starts)
        self._index = {partition: index for index, partition in enumerate(self._partitions)}
        self._freed: list[tuple[int, int]] = []
        self._slots: dict[Partition, deque[tuple[int, int]]] = {p: deque() for p in self._partitions}

    def receive(self) -> bool:
        """Takes all that is there. False if the reader is gone."""
        try:
            for message in self.process.messages(0):
                self._take(*message)
        except EOFError:
            return False
        return True

    def death(self) -> str:
        """How the reader ended; empty if it only wants to be started again, or has said itself what it was."""
        return "" if self.unreadable else self.process.death()

    def taken(self, span: Span | Lost) -> None:
        """Gives the span's slot back, if it was offered here; some at a time: each message wakes the reader."""
        slots = self._slots.get(span.partition)
        if slots and slots[0][0] == span.start:
            self._freed.append((self._index[span.partition], slots.popleft()[1]))
            if len(self._freed) >= FREED_MAX:
                self.give_back()

    def give_back(self) -> None:
        """Gives back the slots of all spans that were taken."""
        if self._freed:
            self.process.tell(("free", self._freed))
            self._freed = []

    def _take(self, kind: str, *rest: Any) -> None:
        if kind == "span":
            self._offer(rest[0])
        elif kind == "end":
            if not self._partial:
                self._planner.ended(self._partitions[rest[0]], rest[1] + END_BELIEVED_S)
        elif kind == "done":
            if not self._partial:
                self._planner.done(self._partitions[rest[0]])
        elif kind == "lag":
            self.lag = rest[0]
        elif kind == "hold":
            self.hold = rest[0]
        elif kind == "added":
            self.added.append(Added(*rest))
        elif kind == "unreadable":
            self.unreadable = rest[0], rest[1], rest[2]
        else:
            raise rest[0]

    def _offer(self, published: Published) -> None:
        partition, arena = self._partitions[published.lane], self.process.arena
        side = self.job.sides[partition.topic]
        columns, labelled = (0, True)
        if side is Side.FEATURES:
            columns, labelled = self.job.features.columns, self.job.features.label is not None
        events = arena.rows(published.slot, columns).events(published.rows, labelled=labelled)
        rejects = arena.read_rejects(published.slot, published.reject_bytes)
        self._slots[partition].append((published.start, published.slot))
        self.reached[partition] = published.stop
        cut = Cut(published.start, published.stop, published.place, published.messages, events, rejects)
        self._planner.offer(span_of(partition, cut))
