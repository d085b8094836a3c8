"""A disk that is full, breaks or cannot be written to: what passes is waited for, what does not ends the job."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from threading import Event
from typing import Any

import pytest

from consumers.errors import SnapshotError
from pipeline import snapshot, store
from pipeline.releaser import HOLDING, released
from pipeline.run import Run
from pipeline.store import LocalStore, Manifest
from pipeline.train import learn, train
from tests.jobs import ROOT, evertrain
from tests.lives import Story, same_state


@pytest.fixture(autouse=True)
def quick_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshot, "_RETRY_S", 0.05)


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    return Story(tmp_path_factory.mktemp("straight")).live()


@pytest.fixture
def story(tmp_path: Path) -> Story:
    return Story(tmp_path)


class Disk:
    """The file system under a state directory, which can be made to fail. `fails` names the call that does."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.error: int | None = None
        self.fails = "write"
        self.attempts = 0
        for name in ("write", "fsync", "rename", "link", "unlink"):
            patch.setattr(store.os, name, self._failing(name, getattr(os, name)))
        patch.setattr(Path, "unlink", self._failing("unlink", Path.unlink))

    def _failing(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def failing(*args: Any, **kwargs: Any) -> Any:
            if self.error and self.fails == name and threading.current_thread().name.startswith("snapshot-writer"):
                self.attempts += 1
                raise OSError(self.error, os.strerror(self.error))
            return call(*args, **kwargs)

        return failing


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    return Disk(monkeypatch)


def wait_until(what: Callable[[], Any]) -> None:
    deadline = time.monotonic() + 30
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def learn_entries(run: Run, entries: Iterator[Any], count: int) -> None:
    for _ in range(count):
        learn(run.state, next(entries))


@pytest.mark.parametrize("fails", ["write", "fsync", "rename", "link", "unlink"])
def test_a_full_disk_is_waited_for_and_nothing_shows_afterwards(
    story: Story, straight: Manifest, disk: Disk, fails: str
) -> None:
    stop = Event()
    with story.opened(stop=stop) as run:
        disk.fails, disk.error = fails, errno.ENOSPC
        trainer = threading.Thread(target=train, args=(run, stop))
        trainer.start()
        wait_until(lambda: run.phase == "holding")
        assert "waits for room on disk" in (run.held or "")
        assert "No space left on device" in (run.held or "")
        wait_until(lambda: disk.attempts > 5)  # it tries again and again
        disk.error = None
        trainer.join(60)
        assert run.snapshots.trouble is None
    assert same_state(story.newest(), straight)
    assert not list(story.state_dir.rglob("*.tmp"))


def test_training_goes_on_until_the_next_commit_is_due(story: Story, disk: Disk) -> None:
    story.commit_every = None
    with story.opened() as run:
        entries = run.source.entries(run.state.positions)
        learn_entries(run, entries, 2)
        disk.error = errno.ENOSPC
        run.snapshots.commit(run.state)
        wait_until(lambda: run.snapshots.trouble)
        learned = run.state.trained
        while not run.cadence.due(run.state, run.snapshots.busy):
            learn_entries(run, entries, 1)
        assert run.state.trained >= learned + 64
        disk.error = None
        run.snapshots.commit(run.state)
        run.snapshots.wait()


def test_what_fails_behind_the_manifest_is_done_again_without_the_commit(
    story: Story, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Collecting fails on the full disk: the snapshot counts already, and is not made again."""
    remove, failures = LocalStore.remove, iter([errno.ENOSPC, errno.EDQUOT])

    def remove_later(self: LocalStore, *args: Any) -> None:
        if number := next(failures, None):
            raise OSError(number, os.strerror(number))
        remove(self, *args)

    durable: list[int] = []
    with story.opened() as run:
        run.snapshots._on_durable = durable.append
        entries = run.source.entries(run.state.positions)
        for _ in range(6):
            learn_entries(run, entries, 1)
            run.snapshots.commit(run.state)
        run.snapshots.wait()
        monkeypatch.setattr(LocalStore, "remove", remove_later)
        learn_entries(run, entries, 1)
        run.snapshots.commit(run.state)
        run.snapshots.wait()
        assert durable == [1, 2, 3, 4, 5, 6, 7]
        assert story.store.blobs() == run.snapshots._retention.blobs()


def on_a_small_disk(folder: Path) -> None:
    """A run on a file system that a filler takes the last byte of; prints what it holds for and what it becomes."""
    story, stop = Story(folder), Event()
    with story.opened(stop=stop) as run:
        filler = folder / "filler"
        with suppress(OSError), filler.open("wb", buffering=0) as file:
            while True:
                file.write(bytes(4096))
        trainer = threading.Thread(target=train, args=(run, stop))
        trainer.start()
        wait_until(lambda: run.phase == "holding")
        print(run.held)
        filler.unlink()
        trainer.join(60)
    print(story.newest()["state_sha256"])


def test_a_disk_that_is_really_full(straight: Manifest, tmp_path: Path) -> None:
    code = "import pathlib, sys, tests.faults.test_disk as t; t.on_a_small_disk(pathlib.Path(sys.argv[1]))"
    mount = 'mount -t tmpfs -o size=4m tmpfs "$1" && shift && exec "$@"'
    inside = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", mount, "sh", str(tmp_path)]
    if (
        shutil.which("unshare") is None
        or subprocess.run([*inside, "true"], capture_output=True, check=False).returncode
    ):
        pytest.skip("this system lets nobody mount a file system of their own")
    command = [*inside, sys.executable, "-c", code, str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    held, state_sha256 = done.stdout.splitlines()
    assert "waits for room on disk" in held
    assert state_sha256 == straight["state_sha256"]


def test_sigterm_gives_up_on_a_full_disk(story: Story, disk: Disk, straight: Manifest) -> None:
    stop = Event()
    errors = []

    def run_it(run: Run) -> None:
        try:
            train(run, stop)
        except SnapshotError as error:
            errors.append(error)

    with story.opened(stop=stop) as run:
        disk.error = errno.ENOSPC
        trainer = threading.Thread(target=run_it, args=(run,))
        trainer.start()
        wait_until(lambda: run.phase == "holding")
        stop.set()
        trainer.join(30)
        assert not trainer.is_alive()
    assert "waits for room on disk" in str(errors[0])
    assert errors[0].exit_code == 1
    disk.error = None
    assert same_state(story.live(), straight)


@pytest.mark.parametrize("fails", ["write", "fsync", "rename", "link"])
@pytest.mark.parametrize("error", [errno.EIO, errno.EROFS])
def test_a_broken_disk_ends_the_job_and_what_was_durable_is_gone_on_from(
    story: Story, straight: Manifest, disk: Disk, fails: str, error: int
) -> None:
    with story.opened() as run:
        disk.fails, disk.error = fails, error
        with pytest.raises(
            SnapshotError, match=rf"cannot be written: .*{os.strerror(error)}.* mend the disk"
        ) as caught:
            train(run, Event())
    assert caught.value.exit_code == 1
    if fails in ("write", "fsync"):
        assert not list(story.state_dir.rglob("*.tmp"))  # half a file
    disk.error = None
    assert same_state(story.live(), straight)


def test_a_status_that_cannot_be_written_stops_nothing(story: Story, straight: Manifest) -> None:
    story.state_dir.mkdir()
    (story.state_dir / "status.tmp").mkdir()
    assert same_state(story.live(), straight)


class TestHoldsUntilReleased:
    """MLflow is down for long: `snapshot.owed_max` bounds what waits for it."""

    @pytest.fixture
    def owing(self, tmp_path: Path) -> Story:
        story = Story(tmp_path, snapshot={"owed_max": "2KiB"}, monitor={"every": "64 rows", "window": 1000})
        story.releases = False
        return story

    def test_it_holds_says_so_and_goes_on_by_itself(self, owing: Story, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("pipeline.telemetry.INTERVAL_S", 0.0)
        stop = Event()
        with owing.opened(stop=stop) as run:
            trainer = threading.Thread(target=train, args=(run, stop))
            trainer.start()
            wait_until(lambda: run.phase == "holding")
            assert "more than snapshot.owed_max = 2,048 B" in (run.held or "")
            check = evertrain("status", "--state-dir", str(owing.state_dir), "--check", expect=4)
            assert "on hold" in check.stderr
            at = run.state.trained
            time.sleep(0.2)
            assert run.state.trained == at
            while trainer.is_alive():
                owing.mark_released(run.snapshots.sequence)
                trainer.join(0.05)
        assert owing.newest()["rows_trained"] == 2000

    def test_a_webhook_that_is_down_holds_nothing(self, owing: Story, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("pipeline.telemetry.INTERVAL_S", 0.0)
        owing.releases, owing.sinks = True, HOLDING
        with owing.opened() as run:
            train(run, Event())
            assert run.snapshots.owed_bytes(released(owing.state_dir)) > run.job.snapshot.owed_max
        assert owing.newest()["rows_trained"] == 2000

    def test_it_can_be_stopped_and_refused_while_it_holds(self, owing: Story, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("pipeline.telemetry.INTERVAL_S", 0.0)
        stop = Event()
        with owing.opened(stop=stop) as run:
            trainer = threading.Thread(target=train, args=(run, stop))
            trainer.start()
            wait_until(lambda: run.phase == "holding")
            stop.set()
            trainer.join(30)
            assert not trainer.is_alive()
        with owing.opened() as run:
            threading.Timer(0.7, setattr, (owing, "refusal", "another lineage has versions")).start()
            with pytest.raises(SnapshotError, match="another lineage has versions"):
                train(run, Event())
