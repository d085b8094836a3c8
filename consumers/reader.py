"""The reader process: fetches, decodes and cuts; `python -m consumers.reader PIPE MEMORY`.

It owns nothing that matters: whatever it holds can be fetched again. It ends when its pipe does.

Messages from the learner: ("free", partition index, slot) and ("bound", {partition: offset}).
Messages to the learner: ("span", ...), ("end", partition index, monotonic time), ("done", partition index),
("lag", records not yet cut) and ("failed", error).
"""

from __future__ import annotations

import gc
import os
import signal
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

from consumers.arena import Arena
from consumers.codecs import build_codec
from consumers.config import FeaturesConfig, LabelRule, LabelsConfig, StreamConfig
from consumers.cutter import SPAN_RAW_BYTES_MAX, Cut, Cutter
from consumers.errors import DependencyError, EvertrainError, StreamError
from consumers.kafka import Cluster, Fetcher
from consumers.record import Partition, Side

FETCH_MESSAGES = 1000
QUEUE_BYTES_MAX = 2 * SPAN_RAW_BYTES_MAX
QUEUE_SPANS_MAX = 8
END_PROOF_EVERY_S = 1.0
GC_THRESHOLD = 100_000


@dataclass(frozen=True, slots=True)
class ReaderJob:
    """All a reader needs to know; the index of a partition is its place in `starts`."""

    settings: Mapping[str, Any]
    group: str
    starts: dict[Partition, int]
    bounds: dict[Partition, int]
    sides: dict[str, Side]
    features: FeaturesConfig
    labels: LabelsConfig | None
    label: LabelRule
    stream: StreamConfig
    slot_bytes: int
    gaps_allowed: bool

    def cutters(self) -> list[Cutter]:
        """One per partition, in order of index."""
        configs = {Side.FEATURES: self.features, Side.LABELS: self.labels}
        codecs = {}
        for topic, side in self.sides.items():
            config = configs[side]
            assert config is not None
            codecs[topic] = build_codec(config, self.label)
        cutters = []
        for partition, start in self.starts.items():
            cutters.append(Cutter(partition, codecs[partition.topic], start, self.stream.span))
            cutters[-1].bound = self.bounds.get(partition)
        return cutters


class Reader:
    """The loop of one reader process."""

    def __init__(self, pipe: Connection, arena: Arena, job: ReaderJob) -> None:
        self._pipe = pipe
        self._arena = arena
        self._job = job
        self._cutters = job.cutters()
        self._index = {cutter.partition: index for index, cutter in enumerate(self._cutters)}
        slots = job.stream.slots
        self._free = [list(range(i * slots, (i + 1) * slots)) for i in range(len(self._cutters))]
        self._paused: set[int] = set()
        self._done: set[int] = set()
        self._waiting_since: dict[int, float] = {}  # part-filled spans at their partition's end
        self._cluster = Cluster(job.settings)
        self._fetcher = Fetcher(job.settings, job.group, job.starts)
        self._proved_at = 0.0

    def run(self) -> None:
        """Runs until the learner closes the pipe."""
        while self._listen():
            self._fetch()
            for index in range(len(self._cutters)):
                self._publish(index)
            self._balance()
            now = time.monotonic()
            if now - self._proved_at > END_PROOF_EVERY_S:
                self._proved_at = now
                self._prove_ends()

    def _listen(self) -> bool:
        try:
            while self._pipe.poll():
                kind, *rest = self._pipe.recv()
                if kind == "free":
                    self._free[rest[0]].append(rest[1])
                else:
                    for cutter in self._cutters:
                        cutter.bound = rest[0][cutter.partition]
                    self._prove_ends()
        except (EOFError, ConnectionResetError):
            return False
        return True

    def _fetch(self) -> None:
        fetched, ends = self._fetcher.fetch(FETCH_MESSAGES, 0.01)
        now = time.monotonic()
        for partition, messages in fetched.items():
            cutter = self._cutters[self._index[partition]]
            if not self._job.gaps_allowed:
                _check_gap(cutter, messages.offsets)
            cutter.extend(messages)
        for partition, offset in ends.items():
            self._cutters[self._index[partition]].ended(offset)
            self._report_end(self._index[partition], now)

    def _publish(self, index: int) -> None:
        """Cuts and sends spans of one partition while it has free slots."""
        cutter = self._cutters[index]
        while self._free[index]:
            cut = cutter.cut(flush=cutter.drained or self._lingered(index))
            if cut is None:
                break
            self._waiting_since.pop(index, None)
            self._send(index, cut)
            if not len(cutter) and cutter.end is not None:
                self._report_end(index, time.monotonic())
        if cutter.done and index not in self._done:
            self._done.add(index)
            self._pipe.send(("done", index))

    def _lingered(self, index: int) -> bool:
        cutter = self._cutters[index]
        if cutter.end is None or not len(cutter):
            self._waiting_since.pop(index, None)
            return False
        since = self._waiting_since.setdefault(index, time.monotonic())
        return (time.monotonic() - since) * 1000 >= self._job.stream.linger

    def _send(self, index: int, cut: Cut) -> None:
        slot = self._free[index].pop()
        lengths = self._arena.write(slot, [cut.events, cut.rejects])
        self._pipe.send(("span", index, slot, lengths, cut.start, cut.stop, cut.place, cut.messages))

    def _report_end(self, index: int, proved_at: float) -> None:
        if not len(self._cutters[index]):
            self._pipe.send(("end", index, proved_at))

    def _prove_ends(self) -> None:
        """Asks the broker whether the ends still stand, and how far behind the learner is."""
        now = time.monotonic()
        try:
            ends = self._cluster.ends([cutter.partition for cutter in self._cutters])
        except DependencyError:
            return  # an outage proves nothing: ends that were believed lapse at the learner
        lag = 0
        for index, cutter in enumerate(self._cutters):
            end = ends[cutter.partition]
            lag += max(0, end - cutter.next)
            if cutter.end is not None and cutter.end >= end:
                self._report_end(index, now)
        self._pipe.send(("lag", lag))

    def _balance(self) -> None:
        """Pauses partitions whose queue is full and resumes them at half."""
        rows_max = QUEUE_SPANS_MAX * self._job.stream.span
        for index, cutter in enumerate(self._cutters):
            fill = max(len(cutter) / rows_max, cutter.bytes / QUEUE_BYTES_MAX)
            if index in self._paused and fill <= 0.5:
                self._paused.discard(index)
                self._fetcher.resume([cutter.partition])
            elif index not in self._paused and fill >= 1:
                self._paused.add(index)
                self._fetcher.pause([cutter.partition])


def _check_gap(cutter: Cutter, offsets: list[int]) -> None:
    expected = cutter.expected
    if offsets[0] > expected or offsets[-1] - offsets[0] >= len(offsets):
        raise StreamError(
            f"{cutter.partition}@{expected}: the embedded broker dropped records before offset {offsets[-1]}; it keeps "
            "about 5 MB a partition. Produce more slowly, or use Apache Kafka"
        )


def main() -> None:
    """Runs a reader over the two inherited descriptors."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    pipe = Connection(int(sys.argv[1]))
    job: ReaderJob = pipe.recv()
    slots = job.stream.slots * len(job.starts)
    gc.freeze()  # what is here stays; what comes is documents, which hold no cycles
    gc.set_threshold(GC_THRESHOLD)
    try:
        Reader(pipe, Arena(int(sys.argv[2]), slots, job.slot_bytes), job).run()
    except (BrokenPipeError, ConnectionResetError):
        pass
    except EvertrainError as error:
        pipe.send(("failed", error))
    os._exit(0)  # librdkafka's close could wait for a broker that is gone


if __name__ == "__main__":
    main()
