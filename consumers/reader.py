"""The reader process: fetches, decodes and cuts; `python -m consumers.reader PIPE MEMORY`.

It owns nothing that matters: whatever it holds can be fetched again. It ends when its pipe does.

Messages from the learner: ("free", [(partition index, slot), ...]) and ("bound", {partition: offset}).
Messages to the learner: ("span", ...), ("end", partition index, monotonic time), ("done", partition index),
("lag", records not yet cut), ("hold", what is wrong outside, or nothing), ("added", a partition of its topics that it
does not read, its first offset), ("unreadable", partition, reason, whether it may pass) and ("failed", error).
"""

from __future__ import annotations

import gc
import os
import signal
import sys
import time
import traceback
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from typing import Any

from consumers.arena import Arena, Published, Shape
from consumers.codecs import Codec, build_codec
from consumers.config import FeaturesConfig, LabelRule, LabelsConfig, StreamConfig
from consumers.cutter import SPAN_RAW_BYTES_MAX, Cut, Cutter, reject_bytes
from consumers.errors import DependencyError, EvertrainError, StreamError
from consumers.kafka import CONSUMER_SETTINGS, Cluster, Fetcher, OffsetGoneError, UnreadableBatchError
from consumers.limits import limit_memory, limit_stacks
from consumers.record import MESSAGE_ROWS_MAX, Int64s, Messages, Partition, Side
from consumers.watch import TopicWatch

HELD_BYTES_MAX = SPAN_RAW_BYTES_MAX
QUEUE_SPANS_MAX = 2
NICENESS = 5
"""The learner goes first: a reader that is behind gets the time in which the learner waits for it."""
FETCH_WAIT_S = 0.01
END_PROOF_EVERY_S = 1.0
RECORD_BYTES = 48  # what a record takes beside its key and value
PAUSE_MS = 100
PASSING, DIED = 0, 1
"""Exit codes: the reader is to be started again at once, or something may be wrong with what it read."""


@dataclass(frozen=True, slots=True)
class ReaderJob:
    """All a reader needs to know; the index of a partition is its place in `starts`."""

    settings: Mapping[str, Any]
    topic_ids: Mapping[str, str]  # of the topics that are watched
    group: str
    starts: dict[Partition, int]
    bounds: dict[Partition, int]
    sides: dict[str, Side]
    features: FeaturesConfig
    labels: LabelsConfig | None
    label: LabelRule
    stream: StreamConfig
    gaps_allowed: bool
    pause_ms: int = 0  # 0, or how long to wait after each batch: see `careful`

    @property
    def shape(self) -> Shape:
        """Of an arena whose slots hold any span, `stream.slots` of them for each partition."""
        many = any(config and config.format == "arrow" for config in (self.features, self.labels))
        rows = max(self.stream.span, MESSAGE_ROWS_MAX if many else 1)
        return Shape(self.stream.slots * len(self.starts), rows, self.features.columns, reject_bytes(rows))

    def codecs(self) -> dict[str, Codec]:
        """One per topic."""
        configs = {Side.FEATURES: self.features, Side.LABELS: self.labels}
        codecs = {}
        for topic, side in self.sides.items():
            config = configs[side]
            assert config is not None
            codecs[topic] = build_codec(config, self.label)
        return codecs

    def cutters(self) -> list[Cutter]:
        """One per partition, in order of index."""
        codecs = self.codecs()
        cutters = []
        for partition, start in self.starts.items():
            cutters.append(Cutter(partition, codecs[partition.topic], start, self.stream.span))
            cutters[-1].bound = self.bounds.get(partition)
        return cutters


def careful(job: ReaderJob, pause_ms: int = PAUSE_MS) -> ReaderJob:
    """The same job one batch at a time, to get as far as can be: all before a batch that kills the reader.

    It takes one message at a time: while one is left in its queue, librdkafka does not fetch the next batch, and once
    there is none it takes up to `pause_ms`. So what was read has mostly gone to the learner before the reader dies of
    the next batch.
    """
    # Nothing that was read waits until the topics were seen again.
    return replace(job, pause_ms=pause_ms, topic_ids={})


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
        self._columns = [job.features.columns * (job.sides[p.topic] is Side.FEATURES) for p in job.starts]
        self._done: set[int] = set()
        self._waiting_since: dict[int, float] = {}  # when the first record of a part-filled span was fetched
        self._cluster = Cluster(job.settings)
        self._watch = TopicWatch(self._cluster, job.topic_ids, set(job.starts))
        self._reading = [cutter for cutter in self._cutters if not cutter.done]
        starts = {cutter.partition: cutter.next for cutter in self._reading}
        self._fetcher = Fetcher(job.settings, job.group, starts, pause_ms=job.pause_ms)
        self._held: deque[tuple[float, dict[Partition, Messages], dict[Partition, int]]] = deque()
        self._held_bytes = 0
        self._announced: set[Partition] = set()
        self._short: set[Partition] = set()  # whose end lay before what was read, when last asked
        self._outage = self._hold = ""
        self._proved_at = 0.0

    def run(self) -> None:
        """Runs until the learner closes the pipe, or until it has to be started again."""
        while self._listen() and self.watch_topics():
            self.turn()

    def turn(self) -> None:
        """Fetches, and hands on what it may."""
        self._fetch()
        self._release()
        for index in range(len(self._cutters)):
            self._publish(index)
        now = time.monotonic()
        if now - self._proved_at > END_PROOF_EVERY_S:
            self._proved_at = now
            self._prove_ends()

    def _listen(self) -> bool:
        try:
            while self._pipe.poll():
                kind, *rest = self._pipe.recv()
                if kind == "free":
                    for index, slot in rest[0]:
                        self._free[index].append(slot)
                else:
                    for cutter in self._cutters:
                        cutter.bound = rest[0][cutter.partition]
                    self._prove_ends()
        except (EOFError, ConnectionResetError):
            return False
        return True

    def watch_topics(self) -> bool:
        """Tells the learner what is wrong and what is new. False once a topic is back: a new consumer is safer."""
        was_missing = self._watch.missing
        self._watch.poll(time.monotonic(), held=bool(self._held))
        hold = self._watch.missing or self._watch.outage or self._outage
        if hold != self._hold:
            self._hold = hold
            self._pipe.send(("hold", hold))
        return bool(self._watch.missing) or not was_missing

    def _fetch(self) -> None:
        full = self._held_bytes >= HELD_BYTES_MAX
        room = [] if full else [cutter.partition for cutter in self._reading if self._has_room(cutter)]
        try:
            fetched, ends = self._fetcher.fetch(FETCH_WAIT_S, room, [self._pipe])
        except OffsetGoneError as error:
            raise self._gone(self._cutters[self._index[error.partition]]) from None
        if fetched or ends:
            self._held.append((time.monotonic(), fetched, ends))
            self._held_bytes += _bytes(fetched)

    def _release(self) -> None:
        """Takes what was fetched before the topics were last seen to be the same ones."""
        while self._held and self._held[0][0] < self._watch.confirmed_at:
            fetched_at, fetched, ends = self._held.popleft()
            self._held_bytes -= _bytes(fetched)
            for partition, messages in fetched.items():
                cutter = self._cutters[self._index[partition]]
                if not self._job.gaps_allowed:
                    _check_gap(cutter, messages.offset_N)
                cutter.extend(messages)
                self._waiting_since.setdefault(self._index[partition], fetched_at)
            for partition, offset in ends.items():
                self._cutters[self._index[partition]].ended(offset)
                self._report_end(self._index[partition], fetched_at)

    def _publish(self, index: int) -> None:
        """Cuts and sends spans of one partition while it has free slots."""
        cutter = self._cutters[index]
        while self._free[index]:
            rows = self._arena.rows(self._free[index][-1], self._columns[index])
            cut = cutter.cut(rows, flush=cutter.drained or self._lingered(index))
            if cut is None:
                break
            self._waiting_since[index] = time.monotonic()  # of what is left, the newest is no older
            self._send(index, cut)
            if not len(cutter) and cutter.end is not None:
                self._report_end(index, time.monotonic())
        if cutter.done and index not in self._done:
            self._done.add(index)
            self._pipe.send(("done", index))

    def _lingered(self, index: int) -> bool:
        """Whether a part-filled span at its partition's end has waited long enough for more records."""
        cutter = self._cutters[index]
        if not len(cutter):
            self._waiting_since.pop(index, None)
            return False
        waited_s = time.monotonic() - self._waiting_since[index]
        return cutter.end is not None and waited_s * 1000 >= self._job.stream.linger

    def _send(self, index: int, cut: Cut) -> None:
        slot = self._free[index].pop()
        size = self._arena.write_rejects(slot, cut.rejects)
        coordinates = cut.start, cut.stop, cut.place, cut.messages
        self._pipe.send(("span", Published(index, slot, len(cut.events), size, *coordinates)))

    def _report_end(self, index: int, proved_at: float) -> None:
        if not len(self._cutters[index]):
            self._pipe.send(("end", index, proved_at))

    def _prove_ends(self) -> None:
        """Asks the broker whether the ends still stand, and how far behind the learner is."""
        now = time.monotonic()
        try:
            ends = self._cluster.ends([cutter.partition for cutter in self._cutters])
            self._announce()
        except DependencyError as error:
            self._outage = str(error)
            return  # an outage proves nothing: ends that were believed lapse at the learner
        self._outage, lag = "", 0
        short = {cutter.partition for cutter in self._cutters if ends[cutter.partition] < cutter.expected}
        if self._short & short and self._job.gaps_allowed:  # twice: a broker that has just started may be behind
            raise self._gone(self._cutters[self._index[min(self._short & short)]])
        self._short = short
        for index, cutter in enumerate(self._cutters):
            end = ends[cutter.partition]
            lag += max(0, end - cutter.next)
            if cutter.end is not None and cutter.end >= end:
                self._report_end(index, now)
        self._pipe.send(("lag", lag))

    def _announce(self) -> None:
        """Tells the learner of partitions that the topics got, with their first offsets."""
        new = sorted(self._watch.new - self._announced)
        for partition, start in self._cluster.starts(new).items():
            self._announced.add(partition)
            self._pipe.send(("added", partition, start))

    def _gone(self, cutter: Cutter) -> Exception:
        """Why the next offset cannot be had: an error for the user, or UnexplainedError if it seems to be there."""
        partition, expected = cutter.partition, cutter.expected
        self._watch.check()
        if self._watch.missing:
            return UnexplainedError(f"{partition}@{expected}: {self._watch.missing}")
        start, end = self._cluster.starts([partition])[partition], self._cluster.ends([partition])[partition]
        if start > expected:
            return StreamError(
                f"{partition}@{expected}: records that were not learned are gone: retention or an operator moved the "
                f"log's start to {start}. Restore them, or start a new lineage under another job.name and "
                "job.state_dir; a longer retention.ms prevents it"
            )
        if end < expected:
            return StreamError(
                f"{partition}@{expected}: the log ends at {end}, before the next record to learn: it was truncated "
                "(an unclean leader election, or a broker restored from a copy), and what was learned past its end is "
                "no longer in Kafka. Start a new lineage under another job.name and job.state_dir"
            )
        return UnexplainedError(f"{partition}@{expected}: Kafka refused an offset between {start} and {end}")

    def _has_room(self, cutter: Cutter) -> bool:
        """Whether a partition's queue may grow, as one full to the byte must; the rest stays in librdkafka's."""
        spans = max(len(cutter), cutter.rows) / self._job.stream.span
        return spans < QUEUE_SPANS_MAX and cutter.bytes <= SPAN_RAW_BYTES_MAX


class UnexplainedError(Exception):
    """Something that a new reader may get over."""


def _bytes(fetched: Mapping[Partition, Messages]) -> int:
    return sum(messages.values.data.nbytes + RECORD_BYTES * len(messages) for messages in fetched.values())


def _check_gap(cutter: Cutter, offset_N: Int64s) -> None:
    expected = cutter.expected
    if offset_N[0] > expected or offset_N[-1] - offset_N[0] >= len(offset_N):
        raise StreamError(
            f"{cutter.partition}@{expected}: the embedded broker dropped records before offset {offset_N[-1]}; it "
            "keeps about 5 MB a partition. Produce more slowly, or use Apache Kafka"
        )


def main() -> None:
    """Runs a reader over the two inherited descriptors."""
    os.nice(NICENESS)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    code = DIED
    try:
        code = _serve(Connection(int(sys.argv[1])), int(sys.argv[2]))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        pass  # the learner has closed the pipe
    except BaseException:
        traceback.print_exc()
    os._exit(code)  # librdkafka's close could wait for a broker that is gone


def _serve(pipe: Connection, memory: int) -> int:
    """Runs the job that comes through the pipe; returns the exit code."""
    job: ReaderJob = pipe.recv()
    gc.freeze()  # what is here stays
    arena = Arena(memory, job.shape)
    limit_stacks()
    queues = 2 * SPAN_RAW_BYTES_MAX + int(CONSUMER_SETTINGS["queued.max.messages.kbytes"]) * 1024
    limit_memory(job.stream.reader_memory + HELD_BYTES_MAX + queues * len(job.starts))
    try:
        Reader(pipe, arena, job).run()
    except UnreadableBatchError as error:
        pipe.send(("unreadable", error.partition, error.reason, error.may_pass))
        return DIED
    except (UnexplainedError, DependencyError) as error:
        print(f"evertrain: a reader starts again: {error}", file=sys.stderr)
        return PASSING if isinstance(error, DependencyError) else DIED
    except EvertrainError as error:
        pipe.send(("failed", error))
    return PASSING


if __name__ == "__main__":
    main()
