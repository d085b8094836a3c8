"""The mirror: the anchors of a state directory in another one, which can be copied back."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from consumers.errors import SnapshotError
from pipeline.mirror import mirror
from pipeline.store import LocalStore


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    return LocalStore(tmp_path / "state")


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "mirror"


def commit(store: LocalStore, sequence: int, anchor: int | None = None, **changes: Any) -> None:
    """A snapshot of one array blob, a slab that all share, and a version that it owes."""
    manifest = {
        "sequence": sequence,
        "snapshot_id": f"a-{sequence}",
        "lineage": "a",
        "ancestors": [],
        "anchor": anchor,
        "blobs": {
            "arrays": store.put([b"arrays %d" % sequence]),
            "document": store.put([b"document"]),
            "ledger": store.put([b"ledger %d" % sequence]),
            "slabs": [[0, 0, store.put([b"slab"])]],
        },
        "owed": {"dead_letters": None, "points": None, "version": store.put([b"version %d" % sequence])},
    }
    store.commit(sequence, manifest | changes)


def collect(store: LocalStore, sequence: int) -> None:
    """Drops the state of an old anchor, of which the manifest and the ledger stay."""
    store.remove([], [store.manifest(sequence)["blobs"]["arrays"]])


def test_anchors_are_copied_with_their_state_and_nothing_else_is(store: LocalStore, target: Path) -> None:
    for sequence, anchor in enumerate([0, None, 1, None]):
        commit(store, sequence, anchor)
    mirror(store, target)
    copy = LocalStore(target)
    assert copy.sequences() == [0, 2]
    for sequence in copy.sequences():
        manifest = copy.manifest(sequence)
        assert manifest == store.manifest(sequence)
        assert copy.get(manifest["blobs"]["arrays"]) == b"arrays %d" % sequence
        assert copy.get(manifest["blobs"]["ledger"]) == b"ledger %d" % sequence
        assert copy.get(manifest["owed"]["version"]) == b"version %d" % sequence
    assert len(copy.blobs()) == 2 + 2 * 3


def test_a_repeated_or_interrupted_copy_ends_the_same(store: LocalStore, target: Path) -> None:
    commit(store, 0, 0)
    commit(store, 1, 1)
    mirror(store, target)
    everything = LocalStore(target).blobs()
    LocalStore(target).remove([1], [store.manifest(1)["blobs"]["arrays"]])  # as if it had been killed before
    (target / "blobs" / ".1.tmp").write_bytes(b"half")
    mirror(store, target)
    mirror(store, target)
    assert LocalStore(target).sequences() == [0, 1]
    assert LocalStore(target).blobs() == everything


def test_anchors_that_lost_their_state_are_dropped_but_never_the_newest(store: LocalStore, target: Path) -> None:
    commit(store, 0, 0)
    commit(store, 1, 1)
    mirror(store, target)
    collect(store, 0)
    collect(store, 1)
    mirror(store, target)
    copy = LocalStore(target)
    assert copy.sequences() == [1]
    assert copy.get(copy.manifest(1)["blobs"]["arrays"]) == b"arrays 1"
    with pytest.raises(SnapshotError, match="missing"):
        copy.get(store.manifest(0)["blobs"]["arrays"])


def test_an_anchor_that_is_damaged_in_the_store_stays_in_the_mirror(store: LocalStore, target: Path) -> None:
    for sequence in range(3):
        commit(store, sequence, sequence)
    mirror(store, target)
    (store.path / "snapshots" / f"{0:012d}.json").write_bytes(b"?")
    mirror(store, target)
    assert LocalStore(target).sequences() == [0, 1, 2]


def test_what_is_owed_no_more_is_not_missed(store: LocalStore, target: Path) -> None:
    commit(store, 0, 0)
    store.remove([], [store.manifest(0)["owed"]["version"]])
    mirror(store, target)
    assert LocalStore(target).sequences() == [0]


def test_a_damaged_blob_is_not_mirrored(store: LocalStore, target: Path) -> None:
    commit(store, 0, 0)
    damaged = store.manifest(0)["blobs"]["arrays"]
    (store.path / "blobs" / damaged).write_bytes(b"?")
    with pytest.raises(SnapshotError, match=f"{damaged}: the blob is damaged"):
        mirror(store, target)
    assert LocalStore(target).sequences() == []
    assert damaged not in LocalStore(target).blobs()


def test_a_mirror_copied_back_is_a_state_directory(store: LocalStore, target: Path) -> None:
    commit(store, 0, 0)
    mirror(store, target)
    shutil.rmtree(store.path)
    shutil.copytree(target, store.path)
    restored = LocalStore(store.path)
    assert restored.get(restored.manifest(0)["blobs"]["arrays"]) == b"arrays 0"
    commit(restored, 1, 1)
    mirror(restored, target)
    assert LocalStore(target).sequences() == [0, 1]


@pytest.mark.parametrize(
    ("lost", "why"),
    [
        ({"lineage": "b", "snapshot_id": "b-0"}, "a new lineage after the state directory was lost"),
        ({"watermark": 1}, "another snapshot under the same number"),
    ],
)
def test_a_mirror_of_another_past_is_not_touched(
    store: LocalStore, target: Path, lost: dict[str, Any], why: str
) -> None:
    commit(store, 0, 0)
    commit(store, 1, 1)
    mirror(store, target)
    shutil.rmtree(store.path)
    again = LocalStore(store.path)
    commit(again, 0, 0, **lost)
    with pytest.raises(SnapshotError, match="not of the past of"):
        mirror(again, target)
    assert LocalStore(target).sequences() == [0, 1], why


def test_a_state_directory_older_than_its_mirror_does_not_touch_it(store: LocalStore, target: Path) -> None:
    commit(store, 0, 0)
    commit(store, 1, 1)
    mirror(store, target)
    store.remove([1], [])
    with pytest.raises(SnapshotError, match="the mirror holds snapshot a-1"):
        mirror(store, target)
    assert LocalStore(target).sequences() == [0, 1]


def test_a_lineage_that_was_rolled_back_shares_the_mirror_of_its_ancestor(store: LocalStore, target: Path) -> None:
    commit(store, 0, 0)
    commit(store, 1, 1)
    mirror(store, target)
    store.set_aside(1)
    commit(store, 2, 1, lineage="b", ancestors=["a"], snapshot_id="b-2")
    mirror(store, target)
    assert LocalStore(target).sequences() == [0, 2]
