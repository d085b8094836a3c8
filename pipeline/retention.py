"""What stays of the snapshots that were made: pure rules, no I/O.

| snapshot                          | state | owed effects | ledger |
|-----------------------------------|-------|--------------|--------|
| one of the newest `keep`          | kept  | kept         | kept   |
| an anchor, see `ANCHORS_MAX`      | kept  | until released | kept |
| since the newest covering anchor  |       | until released | kept |
| an anchor since the oldest kept   |       | until released | kept |
| any other                         |       | until released |      |

An anchor's ledger holds all since the anchor before it, so the ledgers between two anchors go with the second one:
once that one is no longer among the newest, which recovery may have to set aside.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from pipeline.store import Manifest

ANCHORS_MAX = 168
"""Anchors kept with their state: seven days of hourly ones. Of older ones ..."""

SPARSE_EVERY, SPARSE_MAX = 24, 90
"""... every 24th, 90 of these: three months of daily ones."""


class Parts(NamedTuple):
    """Which blobs of a snapshot are kept."""

    state: bool = False
    ledger: bool = False
    owed: bool = False


NOTHING, EVERYTHING = Parts(), Parts(True, True, True)


@dataclass(slots=True)
class Kept:
    """One snapshot, as far as deciding what to keep of it goes."""

    sequence: int
    anchor: int | None  # which anchor it is, counted from 0
    state: frozenset[str]
    ledger: str
    owed: frozenset[str]
    owed_bytes: int
    parts: Parts = NOTHING  # kept now

    def blobs(self) -> set[str]:
        """Those of the parts that are kept."""
        ledger = {self.ledger} if self.parts.ledger else set()
        return ledger.union(self.state if self.parts.state else (), self.owed if self.parts.owed else ())

    @classmethod
    def of(cls, manifest: Manifest) -> Kept:
        """What a manifest names."""
        blobs = manifest["blobs"]
        slabs = {sha256 for _, _, sha256 in blobs["slabs"]}
        owed = frozenset(sha256 for sha256 in manifest["owed"].values() if sha256)
        return cls(
            manifest["sequence"],
            manifest["anchor"],
            frozenset(slabs | {blobs["arrays"], blobs["document"]}),
            blobs["ledger"],
            owed,
            manifest["owed_bytes"],
        )


class Retention:
    """The snapshots in a store, oldest first, and how many of them need each blob."""

    def __init__(self, keep: int, kept: Iterable[Kept] = ()) -> None:
        self._keep = keep
        self._kept: list[Kept] = []
        self._needed: Counter[str] = Counter()
        for entry in kept:
            self.add(entry)

    def add(self, entry: Kept) -> None:
        """A new snapshot, the newest one."""
        self._kept.append(entry)
        self._hold(entry, EVERYTHING)

    def owed_bytes(self, released: int) -> int:
        """Bytes that snapshots after `released` owe the outside world."""
        return sum(entry.owed_bytes for entry in self._kept if entry.sequence > released)

    def blobs(self) -> set[str]:
        """Every blob that is needed."""
        return set(self._needed)

    def collect(self, released: int) -> tuple[list[int], list[str]]:
        """Forgets what need not be kept, and returns the manifests and the blobs to delete.

        Args:
            released: the newest snapshot that owes nothing, nor does any before it.
        """
        with_state, ledgers_from = self._plan()
        oldest = min(with_state)
        owed_from = min(released + 1, self._kept[-self._keep :][0].sequence)
        garbage: list[str] = []
        for entry in self._kept:
            sequence, has_state = entry.sequence, entry.sequence in with_state
            has_ledger = has_state or sequence >= ledgers_from or (entry.anchor is not None and sequence >= oldest)
            parts = Parts(has_state, has_ledger, sequence >= owed_from)
            if parts != entry.parts:
                garbage += self._hold(entry, parts)
        removed = [entry.sequence for entry in self._kept if entry.parts == NOTHING]
        self._kept = [entry for entry in self._kept if entry.parts != NOTHING]
        return removed, garbage

    def _plan(self) -> tuple[set[int], int]:
        """The snapshots that keep their state, and from which on every snapshot keeps its ledger."""
        newest = [entry.sequence for entry in self._kept[-self._keep :]]
        anchors = [entry for entry in self._kept if entry.anchor is not None]
        sparse = [entry for entry in anchors[:-ANCHORS_MAX] if not (entry.anchor or 0) % SPARSE_EVERY]
        kept = anchors[-ANCHORS_MAX:] + sparse[-SPARSE_MAX:]
        covering = [entry.sequence for entry in anchors if entry.sequence < newest[0]]
        return {*newest, *(entry.sequence for entry in kept)}, covering[-1] if covering else 0

    def _hold(self, entry: Kept, parts: Parts) -> list[str]:
        """Keeps just these parts of an entry, and returns the blobs that nobody needs any more."""
        before = entry.blobs()
        entry.parts = parts
        now = entry.blobs()
        self._needed.update(now - before)
        dropped = before - now
        self._needed.subtract(dropped)
        garbage = [sha256 for sha256 in dropped if not self._needed[sha256]]
        for sha256 in garbage:
            del self._needed[sha256]
        return garbage
