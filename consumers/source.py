"""The Source seam, and the source that reads Kafka through reader processes."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from multiprocessing.connection import wait
from typing import Protocol

from consumers.errors import DependencyError, StreamError
from consumers.planner import Planner
from consumers.poison import Search, UndecidedError
from consumers.reader import PAUSE_MS, ReaderJob, careful
from consumers.record import Added, CaughtUp, Command, Entry, Lost, Partition, Position, Span, Wait
from consumers.supervisor import Feed, end

RESTARTS_MAX = 5
LOOK_UP_S = 0.02
"""How long the source waits for readers before its caller may look at the rest of the world."""

log = logging.getLogger("evertrain")


class Source(Protocol):
    """Where entries come from. Live and replay differ only in the source."""

    def entries(self, positions: Mapping[Partition, Position]) -> Iterator[Entry | Wait]:
        """Entries from `positions` on. The caller applies each (which moves `positions`) before the next."""
        ...

    def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class _Death:
    """How a reader ended, and its session with it; `cause` is empty if it only wants to be started again."""

    cause: str
    lived_s: float
    unreadable: tuple[Partition, str, bool] | None


class KafkaSource:
    """Reader processes, which share the partitions. When one dies, all start again at the learner's positions.

    `reader_job` gives the job of a reader that starts at given positions within given bounds;
    `ends` the present ends of partitions; `commands` is polled between spans; `last` is the last entry at the bounds.
    """

    def __init__(
        self,
        reader_job: Callable[[dict[Partition, int], dict[Partition, int]], ReaderJob],
        ends: Callable[[Iterable[Partition]], dict[Partition, int]],
        *,
        batch_wait_ms: int,
        bounds: dict[Partition, int] | None,
        commands: Callable[[], Command | None],
        last: Command | None = None,
    ) -> None:
        self.lag: int | None = None
        self._reader_job = reader_job
        self._ends = ends
        self._batch_wait_ms = batch_wait_ms
        self._bounds = bounds or {}
        self._commands = commands
        self._last = last
        self._finish_requested = False
        self._mains: list[Feed] = []
        self._carriers: dict[Partition, Feed] = {}
        self._lost: dict[Partition, Lost] = {}  # batches ahead that no reader survives
        self._restarts = 0
        self._restarted_at: dict[Partition, int] = {}

    @property
    def reader_pids(self) -> list[int]:
        """The reader processes, for status and tests."""
        return [feed.process.pid for feed in self._mains]

    def finish(self) -> None:
        """Makes the ends of this moment the bounds: the source ends when they are reached. Signal-safe."""
        self._finish_requested = True

    def entries(self, positions: Mapping[Partition, Position]) -> Iterator[Entry | Wait]:
        while death := (yield from self._session(positions)):
            yield from self._recover(death, {p: position.next for p, position in positions.items()})

    def close(self) -> None:
        end([feed.process for feed in self._feeds()])
        self._mains, self._carriers = [], {}

    def _feeds(self) -> list[Feed]:
        return [*self._carriers.values(), *self._mains]

    def _session(self, positions: Mapping[Partition, Position]) -> Generator[Entry | Wait, None, _Death | None]:
        """The life of readers that share all partitions. Returns None at the bounds, else how the first one ended."""
        started_at = time.monotonic()
        planner = self._start(positions)
        while True:
            self._send_finish(positions)
            if dead := self._receive(planner):
                return _Death(dead.death(), time.monotonic() - started_at, dead.unreadable)
            if not self._bounds and (added := self._added(positions)):
                yield from added
                return _Death("", 0, None)  # new readers read them, too
            self.lag = self._sum_lags()
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
                return None
            yield replace(entry, hold=self._hold()) if isinstance(entry, Wait) else entry
            if isinstance(entry, Span | Lost):
                planner.taken(entry)
                for feed in self._feeds():
                    feed.taken(entry)
            elif isinstance(entry, Wait):
                for feed in self._feeds():
                    feed.give_back()
                wait([feed.process.pipe for feed in self._feeds()], LOOK_UP_S)

    def _start(self, positions: Mapping[Partition, Position]) -> Planner:
        """Readers of everything ahead: the main ones, and one of its own for what lies before a lost batch."""
        self.close()
        starts = {p: position.next for p, position in positions.items()}
        ahead = {p: lost for p, lost in self._lost.items() if starts[p] < lost.stop}
        job = self._reader_job(starts | {p: lost.stop for p, lost in ahead.items()}, self._bounds)
        planner = Planner(positions, job.sides, job.stream, self._batch_wait_ms)
        for part in deal(job):
            self._mains.append(Feed(part, planner))
        for partition, lost in ahead.items():
            planner.offer(lost)
            if starts[partition] < lost.start:
                self._carriers[partition] = self._carrier(partition, starts[partition], planner)
        return planner

    def _carrier(self, partition: Partition, start: int, planner: Planner, pause_ms: int = PAUSE_MS) -> Feed:
        """A reader of what lies before a lost batch, which kills it in the end."""
        job = self._reader_job({partition: start}, {partition: self._lost[partition].start})
        return Feed(careful(job, pause_ms), planner, partial=True)

    def _receive(self, planner: Planner) -> Feed | None:
        """Takes what the readers have to say. Returns one that is gone and has no successor."""
        for partition, carrier in list(self._carriers.items()):
            if carrier.receive():
                continue
            if carrier.reached[partition] == self._lost[partition].start:
                self._carriers.pop(partition).process.close()  # its work is done
                continue
            died_too_soon = carrier.reached == carrier.job.starts  # then the next one takes more time
            pause_ms = 2 * carrier.job.pause_ms if died_too_soon else PAUSE_MS
            if pause_ms > PAUSE_MS * 2**RESTARTS_MAX:
                return carrier
            carrier.process.close()
            self._carriers[partition] = self._carrier(partition, carrier.reached[partition], planner, pause_ms)
        return next((main for main in self._mains if not main.receive()), None)

    def _added(self, positions: Mapping[Partition, Position]) -> list[Added]:
        """Partitions that the topics got. Each reader tells of all that it does not read itself."""
        told = {added.partition: added for main in self._mains for added in main.added}
        return [added for partition, added in told.items() if partition not in positions]

    def _sum_lags(self) -> int | None:
        """None until every reader has said something."""
        lags = [main.lag for main in self._mains if main.lag is not None]
        return sum(lags) if len(lags) == len(self._mains) else None

    def _hold(self) -> str:
        return next((main.hold for main in self._mains if main.hold), "")

    def _send_finish(self, positions: Mapping[Partition, Position]) -> None:
        if self._finish_requested and not self._bounds:
            with suppress(DependencyError):  # asked again until Kafka answers
                self._bounds = self._ends(positions)
                for main in self._mains:
                    main.process.tell(("bound", self._bounds))

    def _is_past_bound(self, lost: Lost) -> bool:
        return lost.start >= self._bounds.get(lost.partition, lost.stop)

    def _recover(self, death: _Death, positions: dict[Partition, int]) -> Iterator[Wait]:
        """Waits a little; after RESTARTS_MAX deaths at one position, looks for what kills every reader there.

        Raises StreamError if it is not one record batch.
        """
        if not death.cause and death.unreadable is None:
            return
        if positions != self._restarted_at:
            self._restarts, self._restarted_at = 0, positions
        self._restarts += 1
        suspects, cause, may_pass = positions, death.cause, True
        if death.unreadable is not None:
            partition, cause, may_pass = death.unreadable
            suspects = {partition: positions[partition]}
        if self._restarts <= RESTARTS_MAX and may_pass:
            log.warning("a reader died (%s); reading starts again at the learner's positions", cause)
            time.sleep(min(0.1 * 2**self._restarts, 2))
            return
        self.close()
        try:
            lost = yield from Search(self._reader_job, self._ends, death.lived_s).find(suspects)
        except DependencyError as error:
            log.warning("%s", error)
            return
        except UndecidedError:
            lost = None
        if lost is None or lost == self._lost.get(lost.partition) or self._is_past_bound(lost):
            where = ", ".join(f"{p}@{offset}" for p, offset in suspects.items())
            raise StreamError(
                f"the reader died {self._restarts} times ({cause}) at one position: {where}. No single record batch "
                "is to blame; give the machine, or stream.reader_memory, more memory, or look at the records with "
                "Kafka's tools"
            )
        log.error("%s@%d: lost %d offsets: %s", lost.partition, lost.start, lost.stop - lost.start, lost.reason)
        self._lost[lost.partition], self._restarts = lost, 0


def deal(job: ReaderJob) -> list[ReaderJob]:
    """The same work for up to `stream.readers` readers: all get their share of each topic, as far as it goes round."""
    partitions, readers = sorted(job.starts), job.stream.readers
    hands = [partitions[first::readers] for first in range(min(readers, len(partitions)))]
    return [replace(job, starts={partition: job.starts[partition] for partition in hand}) for hand in hands]
