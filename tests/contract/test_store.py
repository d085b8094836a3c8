"""Both stores keep the same promises."""

from pathlib import Path

import pytest

from consumers.errors import SnapshotError
from pipeline.store import LocalStore, MemoryStore, Store


@pytest.fixture(params=["local", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    return LocalStore(tmp_path) if request.param == "local" else MemoryStore()


def test_a_blob_is_named_by_its_content(store: Store) -> None:
    name = store.put([b"ab", memoryview(b"c")])
    assert name == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert store.put([b"abc"]) == name
    assert store.get(name) == b"abc"


def test_a_missing_blob_is_an_error(store: Store) -> None:
    with pytest.raises(SnapshotError, match="missing"):
        store.get("0" * 64)


def test_manifests_come_back_in_order(store: Store) -> None:
    for sequence in (1, 0, 10):
        store.commit(sequence, {"sequence": sequence})
    assert store.sequences() == [0, 1, 10]
    assert store.manifest(10) == {"sequence": 10}
    with pytest.raises(SnapshotError, match="missing"):
        store.manifest(5)


def test_a_second_writer_is_refused(store: Store) -> None:
    store.commit(0, {"writer": 1})
    with pytest.raises(SnapshotError, match="another trainer"):
        store.commit(0, {"writer": 2})
    assert store.manifest(0) == {"writer": 1}


def test_remove_takes_what_it_is_told(store: Store) -> None:
    kept, dropped = store.put([b"kept"]), store.put([b"dropped"])
    store.commit(0, {})
    store.commit(1, {})
    store.remove([0], [dropped])
    assert store.sequences() == [1]
    assert store.get(kept) == b"kept"
    with pytest.raises(SnapshotError):
        store.get(dropped)


def test_damage_is_found(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    name = store.put([b"content"])
    store.commit(0, {"a": 1})
    (tmp_path / "blobs" / name).write_bytes(b"c0ntent")
    manifest = tmp_path / "snapshots" / "000000000000.json"
    manifest.write_bytes(manifest.read_bytes().replace(b"1", b"2"))
    with pytest.raises(SnapshotError, match="damaged"):
        store.get(name)
    with pytest.raises(SnapshotError, match="damaged"):
        store.manifest(0)
