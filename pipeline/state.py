"""S: everything that can be resumed. `State.apply` is pure: no clock, no I/O, no unseeded randomness."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from consumers.batch import Batch, Batcher, Examples
from consumers.errors import BalanceError
from consumers.join import Join, Outcome
from consumers.record import (
    NEVER,
    REJECTS,
    Added,
    Command,
    Entry,
    Events,
    Float32s,
    Lost,
    Membership,
    Partition,
    Position,
    Side,
    Span,
    Tick,
)
from pipeline.bad_input import BadInput
from pipeline.config import Cadence, JobConfig
from pipeline.delayed import Delayed
from pipeline.history import History
from pipeline.identity import recorded
from pipeline.monitor import Monitor
from pipeline.owed import Letters, Owed
from pipeline.policies import react

if TYPE_CHECKING:  # S works with every learner; only the real one needs torch
    from pipeline.learner import Learner, StepReport


class State:
    """The cursor, the join, the open batch, the learner, the monitor and the counts.

    Partitions count by their index in `positions`: at first in the order of topic rank and number, and those that a
    topic got later at the end, in the order in which they were added. `room` is as in `Join`.
    """

    def __init__(
        self, job: JobConfig, positions: dict[Partition, Position], learner: Learner, *, room: int = 0
    ) -> None:
        self.job = job
        self.positions = positions
        self.learner = learner
        self.join = Join(
            job.join,
            columns=job.features.columns,
            score_width=learner.score_width,
            partitions=len(positions),
            labelled_features=job.labels is None,
            room=room,
        )
        size = (job.learner.batch_size, job.features.columns, learner.score_width)
        self.batcher = Batcher(*size)
        self.delayed: Delayed | None = None
        if job.join.learns_otherwise:
            self.delayed = Delayed(job.join, Batcher(*size), weighs=not job.learner.is_bank)
        self.monitor = Monitor(job.monitor, kind=learner.task.kind, classes=job.learner.classes, features=job.features)
        self.read_P = np.zeros(len(positions), np.int64)  # rows decoded or rejected
        self.rejected_P = np.zeros(len(positions), np.int64)
        self.skipped_P = np.zeros(len(positions), np.int64)  # offsets that held no message
        self.trained = 0
        self.refused = 0
        self.trained_ms = 0  # the stream's time at the last step
        self.registered = 0  # rows trained when the last version fell due
        self.held_until = 0  # rows trained when versions may take aliases again
        self.label_delay_ms: float | None = None  # newest labels' mean time less their features'; not part of S
        self.bad_input = BadInput(job.dead_letters)
        self.history = History()
        self.ledger: list[list[Any]] = []
        self.owed = Owed()
        self._index = {partition: index for index, partition in enumerate(positions)}
        self._sides = {job.features.topic: Side.FEATURES}
        if job.labels is not None:
            self._sides[job.labels.topic] = Side.LABELS

    def apply(self, entry: Entry) -> Iterator[Batch]:
        """Applies one entry and yields each batch that it fills. Raises TooMuchBadInput before anything changed."""
        for batch in self._apply(entry):
            self.fill_scores()  # the batch is learned next, so the weights move
            yield batch

    def _apply(self, entry: Entry) -> Iterator[Batch]:
        if isinstance(entry, Span):
            self.bad_input.check(entry)
            self.ledger.append(["span", self._index[entry.partition], entry.start, entry.stop])
            yield from self._apply_span(entry)
        elif isinstance(entry, Lost):
            yield from self._apply_lost(entry)
        elif isinstance(entry, Added):
            self._add_partition(entry)
        elif isinstance(entry, Tick):
            if self.batcher.filled or (self.delayed and self.delayed.finals.filled):
                self.ledger.append(["tick"])
                yield from self.batcher.close()
                if self.delayed:
                    self._book(self.delayed.finals.close())
        elif isinstance(entry, Membership):
            self.ledger.append(["membership", self._index[entry.partition], entry.idle])
            self.positions[entry.partition].idle = entry.idle
            yield from self._advance()
        else:
            self.ledger.append(["command", entry.name, entry.argument])
            self._obey(entry)

    def _apply_span(self, span: Span) -> Iterator[Batch]:
        index, events = self._index[span.partition], span.events
        side = self._sides[span.partition.topic]
        self.read_P[index] += len(events) + span.rejects.num_rows
        self.rejected_P[index] += span.rejects.num_rows
        self.skipped_P[index] += span.skipped
        if span.rejects.num_rows:
            self.owed.letters.append(Letters(span.partition, _copied(span.rejects)))
        scores_NS = None
        if side is Side.FEATURES and not self.join.fits(len(events)):
            self.fill_scores()  # all now: a batch may be learned before the span's last row is in
            scores_NS = self.learner.score(events.features_NC)
        self.positions[span.partition].take(span)
        for examples in self.join.apply(side, index, events, scores_NS):
            if side is Side.LABELS:
                self.label_delay_ms = float(events.event_time_N.mean() - examples.take("event_time").mean())
            yield from self._take(examples)
        self.fill_scores(whole_blocks=self.join.fits(1))  # a full slab is complete: a snapshot writes it for good
        yield from self._advance()

    def fill_scores(self, *, whole_blocks: bool = False) -> None:
        """Scores the rows that have none yet, or as many of them as fill blocks.

        A row is scored by the weights of the moment at which its span is applied. They stay as they are until the next
        batch is learned: until then, or until an example needs its score, rows of several short spans wait to share a
        block, as a forward costs the same however many rows its block holds. Which rows share one follows from the
        entries alone, and a snapshot leaves it so: at another place of its block a row's score may have other bits.
        """
        features_NC, scores_NS = self.join.unscored()
        rows = len(features_NC)
        if whole_blocks:
            rows -= rows % self.job.learner.batch_size
        if rows:
            scores_NS[:rows] = self.learner.score(features_NC[:rows])
            self.join.scored(rows)

    def _take(self, examples: Examples) -> Iterator[Batch]:
        """Examples to the open batch, or, where what is learned differs from what is booked, both to their own."""
        if self.join.lacks_scores(examples):
            self.fill_scores()
        if self.delayed:
            if examples.final:
                self._book(self.delayed.book(examples))
            examples = self.delayed.to_learn(examples)
        yield from self.batcher.add(examples)

    def _book(self, batches: Iterable[Batch]) -> None:
        """Books what is final but not learned in that batch."""
        for batch in batches:
            self.fill_scores()  # an alarm may rewarm the learner
            self._observe(batch, self.learner.frozen_scores(batch))

    def _observe(self, batch: Batch, frozen_scores_BS: Float32s | None) -> None:
        """Books the scores of a batch, and does what follows the alarms that it raises."""
        for alarm in self.monitor.observe(batch, frozen_scores_BS, self.trained):
            react(self, alarm)

    def _apply_lost(self, lost: Lost) -> Iterator[Batch]:
        """Applies a batch that no reader survives as a span without events, with one reject that stands for it."""
        index, side = self._index[lost.partition], self._sides[lost.partition.topic]
        columns = self.job.features.columns if side is Side.FEATURES else 0
        span = lost_span(lost, Events.none(columns, labelled=not columns or self.job.labels is None))
        self.bad_input.check(span)
        self.ledger.append(["lost", index, lost.start, lost.stop, lost.place, lost.reason])
        yield from self._apply_span(span)

    def _add_partition(self, added: Added) -> None:
        """A partition more, at the end of every count."""
        self.ledger.append(["added", added.partition.topic, added.partition.number, added.start])
        self._index[added.partition] = len(self.positions)
        self.positions[added.partition] = Position(added.start)
        self.join.add_partition()
        self.read_P, self.rejected_P, self.skipped_P = (
            np.append(counts_P, 0) for counts_P in (self.read_P, self.rejected_P, self.skipped_P)
        )

    def _advance(self) -> Iterator[Batch]:
        for examples in self.join.advance(self.watermark):
            yield from self._take(examples)

    def _obey(self, command: Command) -> None:
        if command.name == "register":
            self.owe_version()
        elif command.name == "accept_bad":
            self.bad_input.accept += command.argument
        else:
            raise ValueError(f"unknown command {command.name!r}")

    def reconfigure(self, job: JobConfig) -> None:
        """Goes on under other recorded settings (`identity.RECORDED`). Raises ConfigError."""
        self.ledger.append(["config", recorded(job)])
        self.job = job
        self.join.configure(job.join)
        self.monitor.configure(job.monitor)
        self.bad_input.configure(job.dead_letters)

    @property
    def watermark(self) -> int:
        """Event time up to which the join considers the stream complete; NEVER before it is known."""
        reached = min((p.reached for p in self.positions.values() if not p.idle), default=NEVER)
        return max(reached, int(self.join.watermark))

    def observe(self, batch: Batch, report: StepReport) -> None:
        """Books a batch: counts, quality, drift, the frozen copy, metric points and a due version."""
        if report.refused:
            self.refused += batch.rows
            return
        before, self.trained, self.trained_ms = self.trained, self.trained + batch.rows, self.time_ms
        if self.delayed is None:
            self._observe(batch, report.frozen_scores_BS)
        frozen_after = self.job.monitor.frozen_after
        if self.learner.frozen is None and frozen_after is not None and self.trained >= frozen_after:
            self.learner.freeze()
        if crossed(self.job.monitor.every, before, self.trained):
            self.owed.points.append(self.point())
            self.history.add(self.owed.points[-1])
        if crossed(self.job.registry.register_every, before, self.trained):
            self.owe_version()

    def owe_version(self) -> None:
        """A version falls due, unless nothing was learned since the last one."""
        self.owed.version_due = self.trained > self.registered

    def seal(self) -> tuple[list[list[Any]], Owed]:
        """The ledger and what is owed, for the commit of this moment; both begin anew."""
        sealed = self.ledger, self.owed
        if self.owed.version_due:
            self.registered = self.trained
        self.ledger, self.owed = [], Owed()
        return sealed

    def point(self) -> dict[str, Any]:
        """A metric point: its step is the number of rows trained, its time the stream's."""
        return {"step": self.trained, "time_ms": self.trained_ms, "values": self.monitor.point()}

    @property
    def time_ms(self) -> int:
        """The stream's time: the newest event time that a partition has reached."""
        return max(0, *(position.reached for position in self.positions.values()))

    def counts(self) -> dict[str, Any]:
        """All counts, per partition and in total (JSON)."""
        waiting_P = self.join.waiting_P()
        events = {}
        for partition, index in self._index.items():
            fates = {o.name.lower(): int(self.join.counts_PO[index, o]) for o in Outcome}
            events[str(partition)] = {
                "read": int(self.read_P[index]),
                "waiting": int(waiting_P[index]),
                "rejected": int(self.rejected_P[index]),
                **fates,
                "skipped_offsets": int(self.skipped_P[index]),
            }
        names = next(iter(events.values()))
        totals = {name: sum(counts[name] for counts in events.values()) for name in names}
        examples = {
            "trained": self.trained,
            "refused": self.refused,
            "open": self.batcher.filled,
            "filled_in": int(self.join.filled_in),
        }
        if self.delayed:
            examples |= {"assumed": self.join.assumed, "booked": self.delayed.booked, **self.delayed.counts()}
        return {"events": events, "totals": totals, "examples": examples}

    def check_balance(self) -> dict[str, Any]:
        """Promise 6: returns the counts if they add up. Raises BalanceError with the sum that does not."""
        counts = self.counts()
        for name, events in counts["events"].items():
            fates = {k: v for k, v in events.items() if k not in ("read", "skipped_offsets")}
            if sum(fates.values()) != events["read"]:
                terms = " + ".join(f"{value} {fate}" for fate, value in fates.items())
                raise BalanceError(f"{name}: {events['read']} events read, but {terms} = {sum(fates.values())}")
        examples = counts["examples"]
        matched = sum(counts["events"][str(p)]["matched"] for p in self.positions if p.topic == self.job.features.topic)
        final = matched + examples["filled_in"]
        made = final + examples.get("assumed", 0)
        used = sum(examples.get(fate, 0) for fate in ("trained", "refused", "open", "confirmed", "left_out"))
        if made != used:
            raise BalanceError(f"{made} examples made (matched + filled in + assumed), but {used} used: {examples}")
        if examples.get("booked", final) != final:
            raise BalanceError(f"{final} final examples (matched + filled in), but not as many are booked: {examples}")
        return counts


def lost_span(lost: Lost, no_events: Events) -> Span:
    """The span that stands for a lost batch: no events, and one reject without key and value."""
    reject = {"offset": lost.start, "row": 0, "timestamp": max(lost.place, 0), "reason": lost.reason, "value_bytes": 0}
    return Span(
        lost.partition,
        lost.start,
        lost.stop,
        lost.place,
        messages=1,
        events=no_events,
        rejects=pa.RecordBatch.from_pylist([reject], REJECTS),
        skipped=lost.stop - lost.start - 1,
    )


def crossed(cadence: Cadence, before: int, after: int) -> bool:
    """Whether a cadence in rows fell due between two row counts."""
    return cadence.rows is not None and before // cadence.rows != after // cadence.rows


def _copied(batch: pa.RecordBatch) -> pa.RecordBatch:
    """A copy that owns its memory."""
    return pa.ipc.read_record_batch(batch.serialize(), batch.schema)


def fresh_positions(starts: Mapping[Partition, int]) -> dict[Partition, Position]:
    """The cursor of a new lineage."""
    return {partition: Position(next=offset) for partition, offset in starts.items()}


def never(value: int) -> int | None:
    """JSON's way to say NEVER."""
    return None if value == NEVER else value
