"""Power cuts lose nothing that counted, and each rule of the commit is there for a reason: broken, it shows."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.store import LocalStore, Manifest, encode_manifest, fsync_directory, fsync_file
from tests.faults import power
from tests.faults.cycle import Life
from tests.faults.supervise import SUPPORTED
from tests.faults.syscalls import scratch

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not SUPPORTED, reason="needs Linux on x86_64")]


@pytest.fixture
def folder() -> Iterator[Path]:
    """In memory, where there is some: no fault here needs a disk, and fsync takes its time on one."""
    with tempfile.TemporaryDirectory(dir=scratch()) as folder:
        yield Path(folder)


Break = Callable[[pytest.MonkeyPatch], None]


def test_recovery_finds_what_counted_in_10_000_states_of_the_disk(folder: Path) -> None:
    report = power.run(folder, 10_000, seed=1)
    assert report["differences"] == 0
    assert report["states"] == 10_000
    assert report["distinct"] > 4_000
    assert report["finished"] > 10


def without_fsync(of: Callable[[str], bool]) -> Break:
    """No fsync of files and directories whose path is such."""

    def broken(monkeypatch: pytest.MonkeyPatch) -> None:
        fsync = os.fsync
        monkeypatch.setattr(os, "fsync", lambda fd: None if of(os.readlink(f"/proc/self/fd/{fd}")) else fsync(fd))

    return broken


def manifest_before_blobs(monkeypatch: pytest.MonkeyPatch) -> None:
    put, commit = LocalStore.put, LocalStore.commit
    waiting: list[bytes] = []

    def put_later(store: LocalStore, parts: Iterable[Any]) -> str:
        waiting.append(b"".join(parts))
        return hashlib.sha256(waiting[-1]).hexdigest()

    def commit_first(store: LocalStore, *what: Any) -> str:
        checksum = commit(store, *what)
        while waiting:
            put(store, [waiting.pop()])
        return checksum

    monkeypatch.setattr(LocalStore, "put", put_later)
    monkeypatch.setattr(LocalStore, "commit", commit_first)


def manifest_written_in_place(monkeypatch: pytest.MonkeyPatch) -> None:
    def commit(store: LocalStore, sequence: int, manifest: Manifest, *_: Any) -> str:
        path, data = store.path / "snapshots" / f"{sequence:012d}.json", encode_manifest(manifest)
        path.write_bytes(data)
        fsync_file(path)
        fsync_directory(path.parent)
        return data[:64].decode()

    monkeypatch.setattr(LocalStore, "commit", commit)


def no_sync_at_recovery(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor by chance, when what a crash has left is cleared up."""
    remove = LocalStore.remove

    def remove_if_any(store: LocalStore, sequences: Iterable[int], blobs: Iterable[str]) -> None:
        if sequences:
            remove(store, sequences, blobs)

    monkeypatch.setattr(LocalStore, "sync", lambda store, sequence: None)
    monkeypatch.setattr(LocalStore, "remove", remove_if_any)


def blobs_deleted_before_manifests(monkeypatch: pytest.MonkeyPatch) -> None:
    remove = LocalStore.remove

    def blobs_first(store: LocalStore, sequences: Iterable[int], blobs: Iterable[str]) -> None:
        remove(store, [], blobs)
        remove(store, sequences, [])

    monkeypatch.setattr(LocalStore, "remove", blobs_first)


def manifests_deleted_without_fsync(monkeypatch: pytest.MonkeyPatch) -> None:
    def remove(store: LocalStore, sequences: Iterable[int], blobs: Iterable[str]) -> None:
        for sequence in sequences:
            (store.path / "snapshots" / f"{sequence:012d}.json").unlink(missing_ok=True)
        for name in blobs:
            (store.path / "blobs" / name).unlink(missing_ok=True)

    monkeypatch.setattr(LocalStore, "remove", remove)


def markers_alone_say_what_was_released(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.releaser._released_before_newest", lambda store: -1)


def released_before_durable(monkeypatch: pytest.MonkeyPatch) -> None:
    commit = Life._commit

    def early(life: Life, state: Any) -> None:
        life._note(f"release {life._snapshots.sequence + 1} -")
        commit(life, state)

    monkeypatch.setattr(Life, "_commit", early)


@pytest.mark.parametrize(
    "broken",
    [
        pytest.param(without_fsync(lambda path: "/blobs/" in path), id="no-fsync-of-files"),
        pytest.param(without_fsync(lambda path: path.endswith("/blobs")), id="no-fsync-of-the-blobs-directory"),
        pytest.param(without_fsync(lambda path: path.endswith("/snapshots")), id="no-fsync-of-the-manifests-directory"),
        pytest.param(without_fsync(lambda path: path.endswith("/state")), id="no-fsync-of-the-state-directory"),
        pytest.param(
            without_fsync(lambda path: "/recorded-" in path and "/state" not in path),
            id="no-fsync-of-the-folder-it-is-in",
        ),
        manifest_before_blobs,
        manifest_written_in_place,
        no_sync_at_recovery,
        blobs_deleted_before_manifests,
        manifests_deleted_without_fsync,
        markers_alone_say_what_was_released,
        released_before_durable,
    ],
)
def test_each_rule_of_the_commit_is_needed(broken: Break, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken(monkeypatch)
    assert power.run(folder, 10_000, seed=1)["differences"] > 0
