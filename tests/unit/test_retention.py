"""What is kept of snapshots, against the rules written out: nothing that is needed goes, nothing else stays."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from consumers.errors import SnapshotError
from pipeline import retention
from pipeline.recovery import chain, pieces_since_anchor, retained
from pipeline.retention import ANCHORS_MAX, SPARSE_EVERY, SPARSE_MAX, Kept, Retention
from pipeline.store import MemoryStore

KEEP = 3


@dataclass
class Shelf:
    """Every snapshot that was ever made, what the rules say of each, and what is really there."""

    history: list[Kept] = field(default_factory=list)
    released: int = -1
    there: set[str] = field(default_factory=set)
    manifests: set[int] = field(default_factory=set)
    retention: Retention = field(default_factory=lambda: Retention(KEEP))

    def make(self, *, anchor: bool, slabs: range, owes: bool) -> None:
        sequence = len(self.history)
        ordinal = sum(entry.anchor is not None for entry in self.history)
        entry = Kept(
            sequence,
            ordinal if anchor or not sequence else None,
            frozenset({f"arrays {sequence}", *(f"slab {number}" for number in slabs)}),
            f"ledger {sequence}",
            frozenset({f"owed {sequence}"} if owes else ()),
            10 if owes else 0,
        )
        self.history.append(entry)
        self.manifests.add(sequence)
        self.there |= entry.state | entry.owed | {entry.ledger}
        self.retention.add(Kept(entry.sequence, entry.anchor, entry.state, entry.ledger, entry.owed, entry.owed_bytes))

    def collect(self) -> None:
        removed, garbage = self.retention.collect(self.released)
        assert set(garbage) <= self.there  # nothing is collected twice
        self.there -= set(garbage)
        self.manifests -= set(removed)

    def expected(self) -> set[str]:
        newest = self.history[-KEEP:]
        anchors = [entry for entry in self.history if entry.anchor is not None]
        dense, older = anchors[-retention.ANCHORS_MAX :], anchors[: -retention.ANCHORS_MAX]
        daily = [entry for entry in older if (entry.anchor or 0) % retention.SPARSE_EVERY == 0]
        with_state = [*newest, *dense, *daily[-retention.SPARSE_MAX :]]
        oldest = min(entry.sequence for entry in with_state)
        covering = max((entry.sequence for entry in anchors if entry.sequence < newest[0].sequence), default=0)
        needed = set().union(*(entry.state for entry in with_state))
        for entry in self.history:
            is_link = entry.sequence >= covering or (entry.anchor is not None and entry.sequence >= oldest)
            if is_link or entry in newest:
                needed.add(entry.ledger)
            if entry.sequence > self.released or entry in newest:
                needed |= entry.owed
        return needed


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with monkeypatch.context() as patch:
        shrink(patch)
        yield


def shrink(patch: pytest.MonkeyPatch) -> None:
    for name, value in (("ANCHORS_MAX", 4), ("SPARSE_EVERY", 3), ("SPARSE_MAX", 2)):
        patch.setattr(retention, name, value)


STEPS = st.lists(
    st.tuples(st.booleans(), st.integers(0, 3), st.integers(1, 4), st.booleans(), st.integers(0, 6)), max_size=60
)


@settings(deadline=None, max_examples=150)
@given(STEPS)
def test_exactly_what_the_rules_need_is_there_after_every_snapshot(
    steps: list[tuple[bool, int, int, bool, int]],
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        shrink(patch)
        shelf, first_slab = Shelf(), 0
        for anchor, dropped_slabs, slabs, owes, lag in steps:
            first_slab += dropped_slabs
            shelf.make(anchor=anchor, slabs=range(first_slab, first_slab + slabs), owes=owes)
            shelf.released = max(shelf.released, len(shelf.history) - 1 - lag)
            shelf.collect()
            assert shelf.there == shelf.expected() == shelf.retention.blobs()
            needs_manifest = {int(name.split()[1]) for name in shelf.there if not name.startswith("slab")}
            assert needs_manifest <= shelf.manifests
            assert shelf.retention.owed_bytes(shelf.released) == sum(
                entry.owed_bytes for entry in shelf.history if entry.sequence > shelf.released
            )


def test_a_week_of_hourly_anchors_then_three_months_of_daily_ones() -> None:
    shelf = Shelf()
    for _ in range(120):
        for _ in range(24):
            shelf.make(anchor=True, slabs=range(0), owes=False)
        shelf.released = len(shelf.history)
        shelf.collect()
    hours = [int(name.split()[1]) for name in shelf.there if name.startswith("arrays")]
    hourly, daily = [h for h in hours if h >= 24 * 113], [h for h in hours if h < 24 * 113]
    assert len(hourly) == ANCHORS_MAX == 7 * 24
    assert sorted(daily) == list(range(24 * (113 - SPARSE_MAX), 24 * 113, SPARSE_EVERY))
    ledgers = {int(name.split()[1]) for name in shelf.there if name.startswith("ledger")}
    assert ledgers == set(range(min(daily), 24 * 120))  # all hours of these months can be rebuilt
    assert shelf.manifests == ledgers


def test_owed_effects_outlive_their_snapshot_until_they_are_released() -> None:
    shelf = Shelf()
    for _ in range(20):
        shelf.make(anchor=False, slabs=range(0), owes=True)
        shelf.collect()
    assert {f"owed {sequence}" for sequence in range(20)} <= shelf.there
    assert "arrays 10" not in shelf.there
    assert shelf.retention.owed_bytes(-1) == 200
    shelf.released = 9
    shelf.make(anchor=False, slabs=range(0), owes=True)
    shelf.collect()
    assert {name for name in shelf.there if name.startswith("owed")} == {f"owed {n}" for n in range(10, 21)}
    assert shelf.retention.owed_bytes(9) == 110


def test_a_slab_goes_with_the_last_snapshot_that_has_it(small: None) -> None:
    shelf = Shelf(released=10**9)
    shelf.make(anchor=False, slabs=range(0), owes=False)
    for _ in range(5):
        shelf.make(anchor=False, slabs=range(1, 2), owes=False)
        shelf.collect()
    for count in range(1, KEEP + 1):
        assert "slab 1" in shelf.there
        shelf.make(anchor=False, slabs=range(2, 3), owes=False)
        shelf.collect()
        assert ("slab 1" in shelf.there) == (count < KEEP)


def manifest(sequence: int, anchor: int | None, since: int) -> dict[str, Any]:
    blobs = {"arrays": f"arrays {sequence}", "document": f"document {sequence}", "ledger": f"ledger {sequence}"}
    owed = {"points": f"owed {sequence}", "version": None}
    return {
        "sequence": sequence,
        "anchor": anchor,
        "ledger_since": since,
        "blobs": {**blobs, "slabs": [[0, n, f"slab {n}"] for n in range(sequence // 5, sequence // 5 + 3)]},
        "owed": owed,
        "owed_bytes": 7,
    }


class Names(MemoryStore):
    """A store that holds names of blobs alone: thousands of snapshots in a moment."""

    def hold(self, kept: Kept) -> None:
        self._blobs |= dict.fromkeys(kept.state | kept.owed | {kept.ledger}, b"")


@pytest.mark.parametrize("seed", range(3))
def test_the_way_back_to_the_oldest_anchor_never_breaks(small: None, seed: int) -> None:
    """A thousand snapshots, released late, anchors now and then, and many starts."""
    random = Random(seed)
    store, kept = Names(), Retention(KEEP)
    released, last, ordinal = -1, -1, 0
    for sequence in range(1000):
        anchor = ordinal if not sequence or random.random() < 0.2 else None
        made = manifest(sequence, anchor, sequence - 1 if anchor is None else last)
        if anchor is not None:
            last, ordinal = sequence, ordinal + 1
        store.commit(sequence, made)
        store.hold(Kept.of(made))
        kept.add(Kept.of(made))
        if random.random() < 0.3:
            released = random.randint(released, sequence)
        store.remove(*kept.collect(released))
        if random.random() < 0.02:
            kept = Retention(KEEP, retained(store, released))
            store.remove([], store.blobs() - kept.blobs())
            store.remove(*kept.collect(released))
        assert store.blobs() == kept.blobs()
        check_way_back(store)


def check_way_back(store: Names) -> None:
    """All state, ledgers and manifests that lead from the newest snapshots to the oldest anchor are there."""
    blobs = store.blobs()
    anchors = {n for n in store.sequences() if store.manifest(n)["anchor"] is not None and f"arrays {n}" in blobs}
    links = []
    for sequence in store.sequences()[-KEEP:]:  # recovery may have to go back to each of them
        assert Kept.of(store.manifest(sequence)).state <= blobs
        links = [sequence]
        for link in chain(store, store.manifest(sequence)):
            links.append(link["sequence"])
            if link["sequence"] == min(anchors):
                break
            assert link["blobs"]["ledger"] in blobs
    assert anchors <= set(links) | set(store.sequences()[-KEEP:])


def test_a_broken_way_back_is_a_gap_and_goes_on_from_the_last_anchor(caplog: pytest.LogCaptureFixture) -> None:
    store = Names()
    for sequence, anchor in enumerate([0, None, 1, None, None]):
        made = manifest(sequence, anchor, sequence - 1 if anchor is None else (0 if anchor else -1))
        store.commit(sequence, made)
    with pytest.raises(SnapshotError):
        store.get("ledger 4")
    anchor, pieces = pieces_since_anchor(store, store.manifest(4))
    assert anchor is not None
    assert anchor["sequence"] == 2
    assert len(pieces) == 1
    assert "cannot be rebuilt" in caplog.text
