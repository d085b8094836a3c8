"""A fault at every system call of a short life, and faults that the harness has to notice."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

import pipeline.snapshot
import pipeline.store
from consumers import mapping
from pipeline.store import LocalStore
from tests.faults import syscalls
from tests.faults.cycle import FINISHED, Place, copy, live
from tests.faults.supervise import SUPPORTED

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not SUPPORTED, reason="needs Linux on x86_64")]


@pytest.fixture
def folder() -> Iterator[Path]:
    """In memory, where there is some: no fault here needs a disk, and fsync takes its time on one."""
    with tempfile.TemporaryDirectory(dir=syscalls.scratch()) as folder:
        yield Path(folder)


SAMPLE = 17  # one point of so many; the program goes through all


def test_a_fault_at_any_call_changes_nothing(folder: Path) -> None:
    report = syscalls.run(folder, syscalls.FAULTS, sample=SAMPLE)
    assert report["differences"] == 0
    assert min(report[name] for name in ("kills", "eio", "enospc", "short")) > 5


def test_the_lives_make_every_kind_of_call(folder: Path) -> None:
    begun, resumed = syscalls.subjects(folder)
    made = [syscalls.same_every_time(call) for call in begun.calls]
    assert {"mkdir state", "fsync ", "mkdir state/blobs", "mkdir state/release"} <= set(made)
    made = [syscalls.same_every_time(call) for call in resumed.calls]
    assert any(call.name == "unlink" and call.path.endswith(".json") for call in resumed.calls), "collects manifests"
    assert any("state/blobs" in call and call.startswith("unlink") and "PID" not in call for call in made)
    assert sum(call.startswith("link") for call in made) == 3
    assert made.count("rename state/release/registry.PID.tmp -> state/release/registry") == 3
    assert len(resumed.expected["world"]) > 15


def test_the_second_life_maps_slabs(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, mapped = mapping.map_file, []

    def map_file(path: Path, arrays: Any) -> None:
        mapped.append(path)
        real(path, arrays)

    monkeypatch.setattr(mapping, "map_file", map_file)
    resumed, place = syscalls.subjects(folder)[1], Place(folder / "again")
    copy(resumed.start, place)
    mapped.clear()
    assert live(resumed.cycle, place) == FINISHED
    assert len(mapped) > 1


def half_a_blob_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk is taken for success."""

    def write_all(descriptor: int, data: Any) -> None:
        try:
            os.write(descriptor, data)
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise

    monkeypatch.setattr(pipeline.store, "_write_all", write_all)


def a_short_write_is_taken_for_a_whole_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline.store, "_write_all", os.write)


def a_full_disk_ends_the_job(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline.snapshot, "_PASSING", ())


def eio_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline.snapshot, "_PASSING", (errno.ENOSPC, errno.EIO))


def written_under_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """A manifest is no temporary file first."""

    def commit(store: LocalStore, sequence: int, manifest: dict[str, Any], *_: Any) -> str:
        data = pipeline.store.encode_manifest(manifest)
        with (store.path / "snapshots" / f"{sequence:012d}.json").open("wb", buffering=0) as file:
            for place in range(0, len(data), 1000):
                file.write(data[place : place + 1000])
        return data[:64].decode()

    monkeypatch.setattr(LocalStore, "commit", commit)


def blobs_deleted_before_they_are_superfluous(monkeypatch: pytest.MonkeyPatch) -> None:
    """The last snapshot's arrays go when the next one is begun."""
    put = LocalStore.put

    def put_over(store: LocalStore, parts: Iterable[Any]) -> str:
        for sequence in store.sequences()[-1:]:
            (store.path / "blobs" / store.manifest(sequence)["blobs"]["arrays"]).unlink(missing_ok=True)
        return put(store, parts)

    monkeypatch.setattr(LocalStore, "put", put_over)


@pytest.mark.parametrize(
    ("broken", "fault"),
    [
        (half_a_blob_counts, "enospc"),
        (a_short_write_is_taken_for_a_whole_one, "short"),
        (a_full_disk_ends_the_job, "enospc"),
        (a_full_disk_ends_the_job, "torn"),
        (eio_passes, "eio"),
        (written_under_its_name, "kill"),
        (blobs_deleted_before_they_are_superfluous, "kill"),
    ],
)
def test_what_is_broken_shows(broken: Any, fault: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken(monkeypatch)
    assert syscalls.run(folder, [fault], sample=5, enough=1)["differences"] == 1
