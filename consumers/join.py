"""The join: features wait for their label, and labels for their features, within a window of event time.

Every event meets exactly one `Outcome`, or waits; each rule is in `consumers.kernels`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from consumers.batch import Examples
from consumers.config import JoinConfig
from consumers.errors import ConfigError
from consumers.index import OLDEST
from consumers.kernels import (
    EventRows,
    Findings,
    Outcome,
    Rules,
    apply_features,
    apply_labels,
    assume,
    count_waiting,
    expire,
)
from consumers.record import NEVER, Events, Float32s, Int64s, Side
from consumers.slabs import SlabTable, SlabView, slab_bytes, slab_layout

__all__ = ["Join", "Outcome"]

SLABS_MIN = 3
"""Slabs of each side for which the budget must have room."""


class Join:
    """Joins two sides by key in event time; a pure function of the calls made to it.

    Args:
        config: window, expiry rule and byte budget of the slabs of both sides together.
        columns: C, the width of the feature matrix.
        score_width: S.
        partitions: how many partitions, of both topics together, have a row in `counts_PO`.
        labelled_features: features carry their label and never wait.
        room: bytes up to which `configure` may raise the limit; at least the limit itself.

    Raises:
        ConfigError: the budget has no room for three slabs of each side.
    """

    def __init__(
        self,
        config: JoinConfig,
        *,
        columns: int,
        score_width: int,
        partitions: int,
        labelled_features: bool,
        room: int = 0,
    ) -> None:
        layouts = [slab_layout(side, columns, score_width) for side in Side]
        sizes = [slab_bytes(layout, config.slab_rows) for layout in layouts]
        self._least = SLABS_MIN * sum(sizes)
        self._check(config)
        self._tables = [
            SlabTable(side, layout, config.slab_rows, max(config.limit, room) // size)
            for side, layout, size in zip(Side, layouts, sizes, strict=True)
        ]
        self._config = config
        self._window = min(config.window, 2**61)  # for ever; no sum with it overflows
        self._fill_in = config.on_expiry == "negative"
        self._labelled = labelled_features
        self._files: Mapping[tuple[int, int], Path] = {}  # of full slabs, as of the newest snapshot
        self.watermark = NEVER
        self.filled_in = 0  # examples that expiry has filled in
        self.assumed = 0  # examples that are not final
        self.unscored_rows = 0  # features without scores, the newest ones
        self.counts_PO: Int64s = np.zeros((partitions, len(Outcome)), np.int64)

    @property
    def nbytes(self) -> int:
        """Bytes of all slabs in use: what `join.disk` limits."""
        return sum(table.nbytes for table in self._tables)

    @property
    def over_memory(self) -> bool:
        """Whether slabs, their index included, take more memory than `join.memory`: some should be mapped."""
        spills = self._config.limit > self._config.memory
        return spills and sum(table.resident_bytes for table in self._tables) > self._config.memory

    def apply(self, side: Side, partition: int, events: Events, scores_NS: Float32s | None) -> Iterator[Examples]:
        """Applies the events of one span, in order. Copies all that it keeps.

        Args:
            side: which side of the join the span's topic feeds.
            partition: the row of `counts_PO` that counts these events.
            events: N rows.
            scores_NS: their scores, tombstones included; None for labels, and for features that get theirs later: see
                `unscored`. Such features must fit the open slab (`fits`).

        Yields:
            The examples, in the order of the events that completed them: each time before a new slab is begun, for
            which one may be evicted that holds them, and at the end.
        """
        mine, theirs = self._tables[side], self._tables[1 - side]
        kernel = apply_features if side is Side.FEATURES else apply_labels
        rules = Rules(self._window, self.watermark - self._window, self._labelled)
        rows, count, done = _event_rows(events), len(events), 0
        found = Findings.room(count)
        kept: dict[str, npt.NDArray[Any]] = {}
        if side is Side.FEATURES:
            kept = {"features": events.features_NC, "weight": events.weight_N}
        if scores_NS is not None:
            kept["scores"] = scores_NS
        while done < count:
            if mine.reserve(min(count - done, mine.slab_rows)):
                self._spill()
            first = mine.next_row
            done, stored, matched = kernel(mine.rows, theirs.rows, rows, done, partition, rules, self.counts_PO, found)
            mine.store(first, found.inserted_N[:stored], kept)
            if side is Side.FEATURES and scores_NS is None:
                mine.columns["scores"][first : first + stored] = 0  # a snapshot may see them so
                self.unscored_rows += stored
            if matched:
                yield Examples(
                    found.feature_N[:matched],
                    found.label_N[:matched],
                    found.age_N[:matched],
                    found.assumed_N[:matched],
                    self._tables[Side.FEATURES].columns,
                )
            if done < count:
                self._make_room(side)
                mine.open_slab()

    def fits(self, rows: int) -> bool:
        """Whether the open slab of features takes so many rows more."""
        return self._tables[Side.FEATURES].room >= rows

    def lacks_scores(self, examples: Examples) -> bool:
        """Whether one of them has no scores yet."""
        start, stop = self._unscored_rows()
        return start < stop and bool(((examples.row_N >= start) & (examples.row_N < stop)).any())

    def unscored(self) -> tuple[Float32s, Float32s]:
        """Features [N, C] without scores, and where these belong [N, S]: views, valid until the next `apply`."""
        rows, columns = slice(*self._unscored_rows()), self._tables[Side.FEATURES].columns
        return columns["features"][rows], columns["scores"][rows]

    def scored(self, rows: int) -> None:
        """The first `rows` of the rows that had no scores have theirs."""
        self.unscored_rows -= rows

    def _unscored_rows(self) -> tuple[int, int]:
        stop = self._tables[Side.FEATURES].next_row
        return stop - self.unscored_rows, stop

    def advance(self, watermark: int) -> Iterator[Examples]:
        """Expires what waited for longer than the window, then drops slabs that lie wholly behind it.

        The newest slab of a side is never dropped, so that the numbering goes on from it after a restore.

        Yields:
            In slab and row order: features without a label as negatives, if `on_expiry` says so; and those that wait
            for longer than `negative_after` as examples that are not final.
        """
        self.watermark = max(self.watermark, watermark)
        horizon = self.watermark - self._window
        features, labels = self._tables
        expired_N, assumed_N = self._expire(features, horizon, Outcome.EXPIRED)
        self._expire(labels, horizon, Outcome.ORPHAN)
        if self._fill_in and len(expired_N):
            self.filled_in += len(expired_N)
            yield self._negatives(expired_N, assumed_N, self._window)
        if self._config.negative_after is not None:
            early_N = self._assume(features, self.watermark - self._config.negative_after)
            if len(early_N):
                self.assumed += len(early_N)
                yield self._negatives(
                    early_N, np.zeros(len(early_N), np.bool_), self._config.negative_after, final=False
                )
        for table in self._tables:
            while len(table.order) > 1 and table.rows.newest_P[table.order[0]] < horizon:
                table.drop_oldest()

    def add_partition(self) -> None:
        """One more partition is counted, with the next index."""
        self.counts_PO = np.vstack([self.counts_PO, np.zeros_like(self.counts_PO[:1])])

    def waiting_P(self) -> Int64s:
        """Waiting events of each partition, counted in the slabs themselves."""
        waiting_P = np.zeros(len(self.counts_PO), np.int64)
        for table in self._tables:
            table.count_waiting(waiting_P)
        return waiting_P

    @property
    def wants_commit(self) -> bool:
        """Whether a snapshot would free memory: it writes full slabs to files that can be mapped."""
        return self.over_memory and any(table.has_unwritten for table in self._tables)

    def pin(self) -> None:
        """Until `unpin`, what `slabs()` gave for full slabs stays as it is, whatever is applied."""
        for table in self._tables:
            table.pin()

    def unpin(self, files: Mapping[tuple[int, int], Path]) -> None:
        """Full slabs are in files, by side and number: those that memory has no room for are mapped from there."""
        for table in self._tables:
            table.unpin()
        self._files = files
        self._spill()
        for table in self._tables:
            table.release()

    def slabs(self) -> list[SlabView]:
        """All slabs, for a snapshot: features first, oldest first. See `SlabView` for how long they last."""
        return [view for table in self._tables for view in table.views()]

    def restore(
        self, slabs: Iterable[SlabView], counts_PO: Int64s, watermark: int, filled_in: int, assumed: int, unscored: int
    ) -> None:
        """Takes up, in a new object, where a snapshot left off. A smaller budget evicts the oldest slabs.

        Args:
            slabs: as `slabs()` gave them, in the same order.
            counts_PO: as `counts_PO` was.
            watermark: as `watermark` was.
            filled_in: as `filled_in` was.
            assumed: as `assumed` was.
            unscored: as `unscored_rows` was.
        """
        self.counts_PO = counts_PO.copy()
        self.watermark = watermark
        self.filled_in, self.assumed, self.unscored_rows = filled_in, assumed, unscored
        files: dict[tuple[int, int], Path] = {}
        self._files = files
        for view in slabs:
            self._make_room(view.side)
            self._tables[view.side].load(view)
            if view.file is not None:
                files[view.side, view.number] = view.file
            self._spill()

    def configure(self, config: JoinConfig) -> None:
        """Takes over changed limits, up to `room`; evicts down to a smaller one. Raises ConfigError."""
        self._check(config)
        self._config = config
        while self.nbytes > config.limit:
            self._evict()

    def _check(self, config: JoinConfig) -> None:
        if config.memory < self._least:
            raise ConfigError(
                f"join.memory is {config.memory:,} B; slabs of {config.slab_rows:,} rows need at least "
                f"{self._least:,} B here. Raise join.memory or, for a new job, lower join.slab_rows"
            )

    def _spill(self) -> None:
        by_side = [
            {number: path for (side, number), path in self._files.items() if side == table.side}
            for table in self._tables
        ]
        while self.over_memory:
            if not any(table.spill_oldest(found) for table, found in zip(self._tables, by_side, strict=True)):
                break  # the rest has no file yet

    def _make_room(self, side: Side) -> None:
        """Evicts oldest slabs until one more of this side fits the limit."""
        while self.nbytes + self._tables[side].slab_bytes > self._config.limit:
            self._evict(side)

    def _evict(self, side: Side = Side.FEATURES) -> None:
        # The least limit guarantees that one of the two has as many slabs.
        table = next(t for t in (self._tables[side], self._tables[1 - side]) if len(t.order) >= SLABS_MIN)
        self.counts_PO[:, Outcome.EVICTED] += self._waiting_in(table, table.order[0])
        table.drop_oldest()

    def _waiting_in(self, table: SlabTable, slab: int) -> Int64s:
        waiting_P = np.zeros(len(self.counts_PO), np.int64)
        count_waiting(table.rows, *table.bounds(slab), waiting_P)
        return waiting_P

    def _expire(self, table: SlabTable, horizon: int, outcome: Outcome) -> tuple[Int64s, npt.NDArray[np.bool_]]:
        """Physical rows that expired, in slab and row order, and whether they were assumed to be negatives."""
        expired, assumed = [np.empty(0, np.int64)], [np.empty(0, np.bool_)]
        if table.rows.cursor_6[OLDEST] >= horizon:
            return expired[0], assumed[0]
        for slab in table.order:
            if table.rows.oldest_waiting_P[slab] < horizon:
                start, stop = table.bounds(slab)
                rows_N, assumed_N = np.empty(stop - start, np.int64), np.empty(stop - start, np.bool_)
                count, oldest = expire(table.rows, start, stop, horizon, rows_N, assumed_N)
                table.rows.oldest_waiting_P[slab] = oldest
                expired.append(rows_N[:count])
                assumed.append(assumed_N[:count])
        table.rows.cursor_6[OLDEST] = table.rows.oldest_waiting_P[list(table.order)].min()
        expired_N = np.concatenate(expired)
        self.counts_PO[:, outcome] += np.bincount(table.rows.partition_R[expired_N], minlength=len(self.counts_PO))
        return expired_N, np.concatenate(assumed)

    def _assume(self, table: SlabTable, horizon: int) -> Int64s:
        """Physical rows that are negatives until a label says otherwise, in slab and row order."""
        early = [np.empty(0, np.int64)]
        for slab in table.order:
            if table.rows.oldest_open_P[slab] < horizon:
                start, stop = table.bounds(slab)
                rows_N = np.empty(stop - start, np.int64)
                count, table.rows.oldest_open_P[slab] = assume(table.rows, start, stop, horizon, rows_N)
                early.append(rows_N[:count])
        return np.concatenate(early)

    def _negatives(
        self, row_N: Int64s, assumed_N: npt.NDArray[np.bool_], age_ms: int, *, final: bool = True
    ) -> Examples:
        """Rows as examples whose label nobody has sent."""
        labels_N, age_N = np.zeros(len(row_N), np.float32), np.full(len(row_N), age_ms)
        return Examples(row_N, labels_N, age_N, assumed_N, self._tables[Side.FEATURES].columns, final, sent=False)


def _event_rows(events: Events) -> EventRows:
    label_N = np.empty(0, np.float32) if events.label_N is None else events.label_N
    rows = EventRows(events.key_N2[:], events.event_time_N[:], events.kind_N[:], label_N[:])
    for view in rows:
        view.flags.writeable = False
    return rows
