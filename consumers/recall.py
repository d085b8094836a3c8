"""Spans that were applied once, fetched again: the same offsets, cut where they were cut then."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Self

from consumers.cutter import span_of
from consumers.errors import DependencyError, StreamError
from consumers.kafka import Fetcher, UnreadableBatchError
from consumers.reader import ReaderJob
from consumers.record import Partition, Span

PATIENCE_S = 60.0


class Recall:
    """Reads partitions again from `job.starts` on, in this process, in whatever order spans are asked for."""

    def __init__(self, job: ReaderJob) -> None:
        self._job = job
        self._cutters = {cutter.partition: cutter for cutter in job.cutters()}
        self._unreadable: dict[Partition, str] = {}
        self._fetcher = self._fetch_from_here()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._fetcher.close()

    def span(self, partition: Partition, start: int, stop: int) -> Span:
        """The span `[start, stop)`, which must begin where the partition's last one ended.

        Raises StreamError if Kafka no longer holds these records, and DependencyError if it does not answer.
        """
        cutter = self._cutters[partition]
        if cutter.next != start:
            raise StreamError(f"{partition}@{start}: the ledger's span before it ends at {cutter.next}")
        deadline = time.monotonic() + PATIENCE_S
        while cutter.expected < stop and (cutter.end is None or cutter.end < stop):
            if partition in self._unreadable:
                raise StreamError(f"{partition}@{cutter.expected}: unreadable now ({self._unreadable[partition]})")
            if self._fetch(partition):
                deadline = time.monotonic() + PATIENCE_S
            elif time.monotonic() > deadline:
                raise DependencyError(f"{partition}@{cutter.expected}: no answer within {PATIENCE_S:.0f} s; try again")
        return span_of(partition, cutter.cut_to(stop))

    def skip(self, partition: Partition, stop: int) -> None:
        """Leaves out the offsets before `stop`, which were lost: no reader survived them."""
        self._cutters[partition].skip_to(stop)
        self._unreadable.pop(partition, None)
        self._fetcher.close()
        self._fetcher = self._fetch_from_here()

    def _fetch_from_here(self) -> Fetcher:
        starts = {p: cutter.expected for p, cutter in self._cutters.items() if p not in self._unreadable}
        return Fetcher(self._job.settings, self._job.group, starts, pause_ms=self._job.pause_ms)

    def _fetch(self, partition: Partition) -> bool:
        try:
            fetched, ends = self._fetcher.fetch(0.2, [partition])
        except UnreadableBatchError as error:  # the ledger may know, and skip it
            self._unreadable[error.partition] = str(error)
            self._fetcher.close()
            self._fetcher = self._fetch_from_here()
            return True
        for messages in fetched.values():
            self._cutters[partition].extend(messages)
        for offset in ends.values():
            self._cutters[partition].ended(offset)
        return bool(fetched or ends)
