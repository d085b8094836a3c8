"""A join table larger than memory: slabs that lie in files do what they did in memory, to the bit."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from consumers.batch import Examples
from consumers.config import JoinConfig
from consumers.errors import ConfigError
from consumers.join import Join, Outcome
from consumers.mapping import PAGE
from consumers.record import Events, Kind, Side
from consumers.slabs import SlabView
from pipeline.frozen import safetensors

SLAB_ROWS = 4096
COLUMNS = 3
WINDOW = 50_000
FEATURE_SLAB = SLAB_ROWS * (16 + 8 + 4 + 4 * COLUMNS + 4 + 4 + 1)
LABEL_SLAB = SLAB_ROWS * (16 + 8 + 4 + 4 + 1)
LEAST = 3 * (FEATURE_SLAB + LABEL_SLAB)
PARTITION = {Side.FEATURES: 0, Side.LABELS: 1}


def config(memory: int = LEAST, disk: int = 60 * LEAST, **more: Any) -> JoinConfig:
    return JoinConfig(window=WINDOW, memory=memory, disk=disk, slab_rows=SLAB_ROWS, **more)


WHOLE = config(memory=60 * LEAST)


def new_join(config: JoinConfig, room: int = 0) -> Join:
    return Join(config, columns=COLUMNS, score_width=1, partitions=2, labelled_features=False, room=room)


@dataclass
class Snapshotted:
    """A join whose full slabs are written to files, as snapshots do it."""

    join: Join
    folder: Path
    files: dict[tuple[int, int], Path] = field(default_factory=dict)

    def begin(self) -> list[SlabView]:
        self.join.pin()
        return self.join.slabs()

    def end(self, views: list[SlabView]) -> None:
        for view in views:
            path = self.folder / f"{view.side}-{view.number}"
            if view.full and not path.exists():
                path.write_bytes(b"".join(safetensors(view.columns, PAGE)))
                self.files[view.side, view.number] = path
        self.join.unpin(self.files)

    def commit(self) -> None:
        self.end(self.begin())

    @property
    def mapped(self) -> int:
        return sum(len(table._mapped) for table in self.join._tables)

    def restored(self, config: JoinConfig, room: int = 0) -> Snapshotted:
        """What the next start makes of a snapshot of this moment."""
        again = Snapshotted(new_join(config, room), self.folder, dict(self.files))
        self.commit()
        views = [
            SlabView(
                view.side,
                view.number,
                view.full,
                {name: column.copy() for name, column in view.columns.items()},
                view.status.copy(),
                self.files.get((view.side, view.number)),
            )
            for view in self.join.slabs()
        ]
        again.join.restore(views, self.join.counts_PO, self.join.watermark, self.join.filled_in, self.join.assumed, 0)
        return again


@dataclass
class Stream:
    """Spans of features and labels, some keys again after long, from one generator of random numbers."""

    seed: int
    now: int = 0
    labelled: float = 0.5  # of the keys get a label, up to a window later
    span: int = 2000

    def __post_init__(self) -> None:
        self._random = np.random.default_rng(self.seed)
        self._next = 0

    def spans(self, count: int) -> Iterator[tuple[Side, Events]]:
        for _ in range(count):
            self.now += self.span
            fresh_N = np.arange(self._next, self._next + self.span)
            self._next += self.span
            old_N = self._random.integers(0, self._next, self.span // 10)
            yield Side.FEATURES, self._events(Side.FEATURES, np.concatenate([fresh_N, old_N]))
            known_N = self._random.integers(max(0, self._next - WINDOW), self._next, int(self.span * self.labelled))
            yield Side.LABELS, self._events(Side.LABELS, known_N)

    def _events(self, side: Side, id_N: np.ndarray) -> Events:
        count, features = len(id_N), side is Side.FEATURES
        key_N2 = np.zeros((count, 2), np.uint64)
        key_N2[:, 0] = id_N * 2654435761 % 2**32
        key_N2[:, 1] = id_N
        width = COLUMNS if features else 0
        kind_N = np.where(self._random.random(count) < 0.01, Kind.TOMBSTONE, Kind.EVENT)
        return Events(
            key_N2=key_N2,
            event_time_N=np.maximum(self.now + self._random.integers(-3000, 10, count), 0),
            offset_N=self._random.integers(0, 2**40, count),
            row_N=np.zeros(count, np.int32),
            kind_N=kind_N.astype(np.uint8),
            features_NC=self._random.standard_normal((count, width), np.float32),
            weight_N=self._random.random(count, np.float32) if features else np.empty(0, np.float32),
            label_N=None if features else (id_N % 2).astype(np.float32),
        )


def apply(joins: list[Join], side: Side, events: Events, watermark: int) -> list[list[bytes]]:
    """Applies one span to each join; what each puts out, as bytes."""
    scores_N1 = events.features_NC[:, :1] * 2 if side is Side.FEATURES else None
    return [
        [
            array
            for examples in chain(join.apply(side, PARTITION[side], events, scores_N1), join.advance(watermark))
            for array in as_bytes(examples)
        ]
        for join in joins
    ]


def as_bytes(examples: Examples) -> list[bytes]:
    names = ("features", "weight", "scores", "event_time")
    return [examples.labels_N.tobytes(), *(examples.take(name).tobytes() for name in names)]


def content(join: Join) -> list[Any]:
    """All of the join that a snapshot keeps."""
    views = [
        (view.side, view.number, view.full, view.status.tobytes(), [c.tobytes() for c in view.columns.values()])
        for view in join.slabs()
    ]
    return [*views, join.counts_PO.tolist(), join.watermark, join.filled_in, join.waiting_P().tolist()]


@pytest.mark.parametrize("on_expiry", ["drop", "negative"])
@pytest.mark.parametrize("seed", range(2))
def test_a_table_larger_than_memory_does_what_one_in_memory_does(tmp_path: Path, seed: int, on_expiry: str) -> None:
    whole = new_join(WHOLE.model_copy(update={"on_expiry": on_expiry}))
    small = Snapshotted(new_join(config(on_expiry=on_expiry)), tmp_path)
    stream, most = Stream(seed), 0
    for number, (side, events) in enumerate(stream.spans(60)):
        if number % 7 == 0:
            small.commit()
        first, second = apply([whole, small.join], side, events, stream.now - 3000)
        assert first == second
        most = max(most, small.mapped)
    assert most > 5
    assert content(small.join) == content(whole)
    totals = dict(zip(Outcome, small.join.counts_PO.sum(axis=0).tolist(), strict=True))
    for outcome in (Outcome.MATCHED, Outcome.DUPLICATE, Outcome.EXPIRED, Outcome.WITHDRAWN):
        assert totals[outcome] > 0  # all of it was met, in mapped slabs too


def test_what_lies_in_files_is_found_matched_and_expired(tmp_path: Path) -> None:
    small, stream = Snapshotted(new_join(config()), tmp_path), Stream(0, labelled=0.0)
    features = [events for side, events in stream.spans(60) if side is Side.FEATURES]
    for events in features:
        apply([small.join], Side.FEATURES, events, 0)
    small.commit()
    assert small.mapped > 5
    first, count = features[0], len(features[0])
    no_features_N0, no_weight_N = np.empty((count, 0), np.float32), np.empty(0, np.float32)
    labels = replace(first, features_NC=no_features_N0, weight_N=no_weight_N, label_N=np.ones(count, np.float32))

    apply([small.join], Side.FEATURES, first, 0)
    assert small.join.counts_PO[0, Outcome.DUPLICATE] > count * 0.9
    apply([small.join], Side.LABELS, labels, 0)
    assert small.join.counts_PO[1, Outcome.MATCHED] > count * 0.8
    expired = int(small.join.waiting_P()[0])
    apply([small.join], Side.LABELS, labels, stream.now + 2 * WINDOW)
    assert small.join.counts_PO[0, Outcome.EXPIRED] == expired
    assert small.mapped == 0


def test_a_restored_table_goes_on_as_if_nothing_had_happened(tmp_path: Path) -> None:
    whole, stream = new_join(WHOLE), Stream(3)
    small = Snapshotted(new_join(config()), tmp_path)
    for side, events in stream.spans(30):
        apply([whole, small.join], side, events, stream.now - 3000)
    small = small.restored(config())
    assert small.mapped > 5
    assert not small.join.wants_commit
    assert content(small.join) == content(whole)
    for side, events in stream.spans(20):
        first, second = apply([whole, small.join], side, events, stream.now - 3000)
        assert first == second
    assert content(small.join) == content(whole)


def test_after_a_restore_the_oldest_slabs_are_those_in_files(tmp_path: Path) -> None:
    small, stream = Snapshotted(new_join(config()), tmp_path), Stream(3)
    for side, events in stream.spans(40):
        apply([small.join], side, events, 0)
    for table in small.restored(config()).join._tables:
        mapped = [slab in table._mapped for slab in table.order]
        assert any(mapped)
        assert mapped == sorted(mapped, reverse=True)


def test_a_pinned_slab_keeps_its_bytes_until_it_is_written_even_if_it_is_dropped(tmp_path: Path) -> None:
    whole, small, stream = new_join(WHOLE), Snapshotted(new_join(config()), tmp_path), Stream(5)
    for side, events in stream.spans(12):
        apply([whole, small.join], side, events, 0)
    views = small.begin()
    full = [view for view in views if view.full]
    before = [[column.tobytes() for column in view.columns.values()] for view in full]
    stream.now += 10 * WINDOW
    for side, events in stream.spans(25):  # drops them all, and fills as many anew
        apply([whole, small.join], side, events, stream.now - 3000)
    numbers = {(view.side, view.number) for view in small.join.slabs()}
    assert len(full) > 5
    assert not numbers & {(view.side, view.number) for view in full}
    assert [[column.tobytes() for column in view.columns.values()] for view in full] == before
    small.end(views)
    for side, events in stream.spans(25):
        assert len(set(map(str, apply([whole, small.join], side, events, stream.now - 3000)))) == 1
    assert [[column.tobytes() for column in view.columns.values()] for view in full] != before  # their places are used
    assert content(small.join) == content(whole)


def test_the_place_of_a_mapped_slab_is_memory_again_when_it_is_dropped(tmp_path: Path) -> None:
    whole, small, stream = new_join(WHOLE), Snapshotted(new_join(config()), tmp_path), Stream(6)
    for _ in range(4):
        for side, events in stream.spans(15):
            first, second = apply([whole, small.join], side, events, stream.now - 3000)
            assert first == second
        small.commit()
        assert small.mapped > 0
        stream.now += 10 * WINDOW
    assert content(small.join) == content(whole)
    highest = max(max(table.order) for table in small.join._tables)
    assert highest < 25  # of some hundred slabs that there ever were


def test_the_limit_evicts_whole_slabs_wherever_they_lie_and_counts_them(tmp_path: Path) -> None:
    limit = 4 * LEAST
    whole, small = new_join(config(memory=limit, disk=limit)), Snapshotted(new_join(config(disk=limit)), tmp_path)
    stream = Stream(7, labelled=0.0)
    for number, (side, events) in enumerate(stream.spans(120)):
        if number % 5 == 0:
            small.commit()
        apply([whole, small.join], side, events, 0)
        assert small.join.nbytes <= limit
    evicted = small.join.counts_PO[0, Outcome.EVICTED]
    assert evicted > 10 * SLAB_ROWS
    assert content(small.join) == content(whole)
    small.restored(config(disk=limit))


def test_other_limits_from_here_on_evict_or_make_room(tmp_path: Path) -> None:
    small, stream = Snapshotted(new_join(config(disk=8 * LEAST)), tmp_path), Stream(8, labelled=0.0)
    for side, events in stream.spans(60):
        apply([small.join], side, events, 0)
    wide = config(disk=16 * LEAST)
    again = small.restored(config(), room=wide.limit)
    assert again.mapped > 0
    again.join.configure(config(disk=3 * LEAST))
    assert again.join.nbytes <= 3 * LEAST
    waiting, evicted = again.join.waiting_P()[0], again.join.counts_PO[0, Outcome.EVICTED]
    assert evicted > 0
    assert waiting + evicted == small.join.waiting_P()[0]
    again.join.configure(wide)
    for side, events in stream.spans(75):
        apply([again.join], side, events, 0)
    assert 8 * LEAST < again.join.nbytes <= 16 * LEAST
    assert again.join.counts_PO[0, Outcome.EVICTED] == evicted
    with pytest.raises(ConfigError, match=rf"join\.memory is {LEAST - 1:,} B; .* need at least {LEAST:,} B"):
        again.join.configure(config(memory=LEAST - 1))


def test_when_the_index_grows_slabs_make_room_for_it_at_once(tmp_path: Path) -> None:
    memory = 24 * LEAST
    small, stream = Snapshotted(new_join(config(memory=memory)), tmp_path), Stream(9, labelled=0.0)
    grown, features = 0, small.join._tables[Side.FEATURES]
    for side, events in stream.spans(400):
        before = len(features.rows.index_H2), small.mapped
        apply([small.join], side, events, 0)
        if before[1] and len(features.rows.index_H2) > before[0]:
            grown += 1
            assert small.mapped > before[1]
            assert sum(table.resident_bytes for table in small.join._tables) <= memory + FEATURE_SLAB
        if small.join.wants_commit:
            small.commit()
    assert grown


def test_it_asks_for_a_snapshot_when_that_would_free_memory(tmp_path: Path) -> None:
    small, stream = Snapshotted(new_join(config()), tmp_path), Stream(9, labelled=0.0)
    asked = 0
    for side, events in stream.spans(100):
        apply([small.join], side, events, 0)
        if small.join.wants_commit:
            assert small.join.over_memory
            small.commit()
            assert not small.join.wants_commit
            asked += 1
    assert 10 < asked < 50  # about once for each slab that became full
    plain = new_join(config(memory=4 * LEAST, disk=4 * LEAST))
    for side, events in stream.spans(100):
        apply([plain], side, events, 0)
        assert not plain.over_memory  # nothing of it ever goes to a file


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"memory": "2MiB", "disk": "1MiB"}, "disk is smaller than memory"),
        ({"memory": "1MiB", "disk": "2MiB", "slab_rows": 512}, "only go to disk if slab_rows is a multiple of 4096"),
    ],
)
def test_limits_that_make_no_sense_are_refused(settings: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        JoinConfig(**settings)


def test_without_a_limit_on_disk_there_is_one_if_slabs_can_go_there() -> None:
    assert JoinConfig(memory=2**20, slab_rows=4096).limit == 16 * 2**20
    assert JoinConfig(memory=2**20, slab_rows=512).limit == 2**20
    assert JoinConfig(memory=2**20, disk=2**20, slab_rows=512).limit == 2**20
    assert JoinConfig().limit == 8 * 2**30


def test_a_file_that_does_not_hold_the_slab_page_by_page_is_refused(tmp_path: Path) -> None:
    small, stream = Snapshotted(new_join(config()), tmp_path), Stream(10)
    for side, events in stream.spans(20):
        apply([small.join], side, events, 0)
    views = small.begin()
    full = next(view for view in views if view.full)
    path = tmp_path / f"{full.side}-{full.number}"
    path.write_bytes(b"".join(safetensors(full.columns, 8)))
    small.files[full.side, full.number] = path
    with pytest.raises(ValueError, match="does not lie in whole pages"):
        small.end(views)
