"""Finds the record batch that no reader survives: a decompression bomb, or bytes that crash or stop a decoder.

Deaths show at the process, not at the record. So readers of one partition are started at later and later offsets: one
started anywhere within the batch dies too, and the first offset at which one does not is the batch's end.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterable, Mapping
from dataclasses import dataclass, replace

from consumers.errors import DependencyError
from consumers.reader import ReaderJob, careful
from consumers.record import NEVER, Lost, Partition, Wait
from consumers.supervisor import ReaderProcess

CONFIRMATIONS = 5
"""So many probes in a row have to die at one offset before a batch is given up: a probe may die of the next one just
before it has given away a batch of one message."""

PROBE_SLOTS = 64
SILENCE_S = 30.0
"""A probe that neither reads nor dies for so long tells nothing: Kafka may be out of reach."""

JobAt = Callable[[dict[Partition, int], dict[Partition, int]], ReaderJob]


@dataclass(frozen=True, slots=True)
class Probe:
    """What became of one reader: all before `reached` can be read."""

    reached: int
    death: str = ""  # empty: it lived


class UndecidedError(Exception):
    """The probes do not single out a batch."""


class Search:
    """One search, from the learner's positions on. `lived_s`: how long the readers that died had lived."""

    def __init__(
        self, job_at: JobAt, ends: Callable[[Iterable[Partition]], Mapping[Partition, int]], lived_s: float
    ) -> None:
        self._job_at = job_at
        self._ends = ends
        self._lived_s = lived_s

    def find(self, positions: Mapping[Partition, int]) -> Generator[Wait, None, Lost]:
        """The first batch of one of these partitions that no reader survives. Raises UndecidedError."""
        for partition, offset in positions.items():
            probe = yield from self._probe(partition, offset, seconds=5 + 2 * self._lived_s)
            if probe.death:
                return (yield from self._locate(partition, probe.reached))
        raise UndecidedError

    def _locate(self, partition: Partition, start: int) -> Generator[Wait, None, Lost]:
        deaths = 0
        while deaths < CONFIRMATIONS:
            probe = yield from self._probe(partition, start, step=True)
            if not probe.death:
                raise UndecidedError
            deaths = deaths + 1 if probe.reached == start else 0
            start, reason = probe.reached, probe.death
        stop = yield from self._end_of_batch(partition, start)
        return Lost(partition, start, stop, NEVER, f"no reader survives this record batch: {reason}")

    def _end_of_batch(self, partition: Partition, start: int) -> Generator[Wait, None, int]:
        end = self._ends([partition])[partition]
        if not (yield from self._lives(partition, end)):
            raise UndecidedError  # not even there: it is not the records
        dies, step = start, 1
        while dies + step < end and not (yield from self._lives(partition, dies + step)):
            dies, step = dies + step, 2 * step
        lives = min(dies + step, end)
        while lives - dies > 1:
            middle = (dies + lives) // 2
            if (yield from self._lives(partition, middle)):
                lives = middle
            else:
                dies = middle
        if (yield from self._lives(partition, dies)):
            raise UndecidedError  # it died by chance the first time
        return lives

    def _lives(self, partition: Partition, offset: int) -> Generator[Wait, None, bool]:
        """Whether a reader started at an offset reads the first record there, or finds the end."""
        probe = yield from self._probe(partition, offset, step=True, first=True)
        return not probe.death

    def _probe(
        self, partition: Partition, start: int, *, step: bool = False, first: bool = False, seconds: float = SILENCE_S
    ) -> Generator[Wait, None, Probe]:
        """Reads from an offset until the reader dies, or the end, or (`first`) the first record, or time runs out.

        With `step`, it takes one batch at a time and gives away each record at once; raises DependencyError if such a
        one is silent for too long.
        """
        job = self._job_at({partition: start}, {})
        if step:
            stream = job.stream.model_copy(update={"span": 1, "slots": PROBE_SLOTS})
            job = replace(careful(job), stream=stream)
        process = ReaderProcess(job)
        reached, reason, deadline = start, "", time.monotonic() + seconds
        try:
            while time.monotonic() < deadline:
                for kind, *rest in process.messages(0.05):
                    if kind == "span":
                        reached = rest[0].stop
                        process.tell(("free", [(0, rest[0].slot)]))
                    elif kind == "unreadable":
                        reason = rest[1]
                    elif kind == "failed":
                        raise rest[0]
                    if kind == "end" or (kind == "span" and first):
                        return Probe(reached)
                    if kind == "span" and step:
                        deadline = time.monotonic() + seconds
                yield Wait(f"looking for a record batch that no reader survives, at {partition}@{reached}")
        except EOFError:
            death = process.death()
            return Probe(reached, reason or death)
        finally:
            process.close()
        if step:
            raise DependencyError(f"{partition}@{reached}: Kafka has not answered for {seconds:.0f} s")
        return Probe(reached)
