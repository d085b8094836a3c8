"""The twin of `KafkaSource`: the same cutter and planner over messages in memory, bounded by what they hold."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from consumers.codecs import Codec
from consumers.config import StreamConfig
from consumers.cutter import Cutter, span_of
from consumers.planner import Planner
from consumers.record import (
    CaughtUp,
    Entry,
    Messages,
    Partition,
    Position,
    Side,
    Span,
    Wait,
)


class InMemorySource:
    """Entries of fixed topics: `topics` holds each partition's messages in offset order."""

    def __init__(
        self,
        topics: Mapping[Partition, Messages],
        codecs: Mapping[str, Codec],
        sides: Mapping[str, Side],
        stream: StreamConfig,
    ) -> None:
        self._topics = topics
        self._codecs = codecs
        self._sides = sides
        self._stream = stream

    def entries(self, positions: Mapping[Partition, Position]) -> Iterator[Entry | Wait]:
        cutters = {p: self._cutter(p, position.next) for p, position in positions.items()}
        planner = Planner(positions, self._sides, self._stream, batch_wait_ms=0)
        for cutter in cutters.values():
            _advance(cutter, planner)
        while True:
            entry = planner.next(0.0)
            if isinstance(entry, CaughtUp):
                return
            yield entry
            if isinstance(entry, Span):
                planner.taken(entry)
                _advance(cutters[entry.partition], planner)

    def close(self) -> None:
        """Nothing to close."""

    def _cutter(self, partition: Partition, start: int) -> Cutter:
        messages = self._topics[partition]
        cutter = Cutter(partition, self._codecs[partition.topic], start, self._stream.span)
        cutter.bound = int(messages.offset_N[-1]) + 1 if len(messages) else start
        if len(messages):
            cutter.extend(messages)
        return cutter


class InMemorySpans:
    """The twin of `Recall`: spans of fixed topics, cut again where a ledger says."""

    def __init__(
        self, topics: Mapping[Partition, Messages], codecs: Mapping[str, Codec], starts: Mapping[Partition, int]
    ) -> None:
        self._cutters = {p: Cutter(p, codecs[p.topic], start, 1) for p, start in starts.items()}
        for partition, cutter in self._cutters.items():
            cutter.extend(topics[partition])

    def span(self, partition: Partition, start: int, stop: int) -> Span:
        """The span `[start, stop)`, which begins where the partition's last one ended."""
        return span_of(partition, self._cutters[partition].cut_to(stop))

    def skip(self, partition: Partition, stop: int) -> None:
        """Leaves out the offsets before `stop`, which were lost."""
        self._cutters[partition].skip_to(stop)


def _advance(cutter: Cutter, planner: Planner) -> None:
    cut = cutter.cut(flush=True)
    if cut is None:
        planner.done(cutter.partition)
    else:
        planner.offer(span_of(cutter.partition, cut))
