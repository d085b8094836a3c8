"""One trainer to a state directory, also where locks do not work: what the older one learns is not committed."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable
from pathlib import Path
from threading import Event

import pytest

from consumers.errors import SnapshotError
from pipeline import fence
from pipeline.identity import with_settings
from pipeline.ledger import unseal
from pipeline.recovery import chain
from pipeline.store import LocalStore, Manifest
from pipeline.train import learn, train
from tests.lives import Story, same_state


def test_a_second_trainer_is_refused_while_the_first_one_lives(tmp_path: Path) -> None:
    refused = pytest.raises(SnapshotError, match="another trainer holds the lock")
    with fence.hold(tmp_path), refused, fence.hold(tmp_path):
        pass
    with fence.hold(tmp_path):
        pass


def test_the_generation_rises_at_every_start(tmp_path: Path) -> None:
    generations = []
    for _ in range(3):
        with fence.hold(tmp_path) as held:
            generations.append(held.generation)
            held.check()
    assert generations == [1, 2, 3]
    assert (tmp_path / "generation").read_text().startswith("3 ")


@pytest.mark.parametrize("content", [b"", b"seven\n", b"\xff\xfe"])
def test_a_damaged_generation_is_an_error_that_says_what_to_do(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "generation").write_bytes(content)
    with pytest.raises(SnapshotError, match="generation: not a number; remove the file"), fence.hold(tmp_path):
        pass


def test_a_directory_that_cannot_be_written_to_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    refused = pytest.raises(SnapshotError, match="file/state: the state directory cannot be written to: Not a dir")
    with refused, fence.hold(tmp_path / "file" / "state"):
        pass


def remove_lock(state_dir: Path) -> None:
    (state_dir / "lock").unlink()


def replace_lock(state_dir: Path) -> None:
    remove_lock(state_dir)
    (state_dir / "lock").touch()


def raise_generation(state_dir: Path) -> None:
    path = state_dir / "generation"
    path.write_text(f"{int(path.read_text().split()[0]) + 1} another\n")


def remove_generation(state_dir: Path) -> None:
    (state_dir / "generation").unlink()


@pytest.mark.parametrize("take_over", [remove_lock, replace_lock, raise_generation, remove_generation])
def test_a_trainer_that_was_taken_over_from_commits_nothing_more(
    tmp_path: Path, take_over: Callable[[Path], None]
) -> None:
    story = Story(tmp_path)
    with story.opened(entries=8) as run:
        for count, entry in enumerate(run.source.entries(run.state.positions)):
            learn(run.state, entry)
            if count == 3:
                run.snapshots.commit(run.state)
                run.snapshots.wait()
                before = sorted(path.name for path in (story.state_dir / "snapshots").iterdir())
                take_over(story.state_dir)
            if count == 5:
                break
        run.snapshots.commit(run.state)
        with pytest.raises(SnapshotError, match=r"another trainer took over .* commits nothing more"):
            run.snapshots.wait()
        assert sorted(path.name for path in (story.state_dir / "snapshots").iterdir()) == before


@pytest.mark.parametrize("how", ["removed", "replaced"])
def test_the_snapshot_that_the_next_one_extends_must_still_be_there(tmp_path: Path, how: str) -> None:
    story = Story(tmp_path)
    with story.opened(entries=2) as run:
        entry = next(iter(run.source.entries(run.state.positions)))
        parent = story.state_dir / "snapshots" / "000000000000.json"
        parent.unlink()
        if how == "replaced":
            parent.write_bytes(b"0" * 64 + b"\n{}\n")
        learn(run.state, entry)
        run.snapshots.commit(run.state)
        with pytest.raises(SnapshotError, match="snapshot 0, which the next one extends, was removed or replaced"):
            run.snapshots.wait()
    assert story.store.sequences() == ([0] if how == "replaced" else [])


class TestWithoutLocks:
    """Two trainers at once on a file system whose locks hold nobody back."""

    @pytest.fixture(autouse=True)
    def no_locks(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(fcntl, "flock", lambda *_: None)

    def test_the_newer_one_wins_and_there_is_one_chain(self, tmp_path: Path) -> None:
        older, newer = Story(tmp_path), Story(tmp_path)
        with older.opened(entries=30) as first:
            entries = first.source.entries(first.state.positions)
            for _ in range(4):
                learn(first.state, next(entries))
            first.snapshots.commit(first.state)
            first.snapshots.wait()
            with newer.opened() as second:
                learn(first.state, next(entries))
                first.snapshots.commit(first.state)
                with pytest.raises(SnapshotError, match="another trainer took over"):
                    first.snapshots.wait()
                train(second, Event())
        assert same_state(newer.newest(), Story(tmp_path / "straight").live())
        self.check_chain(newer)

    @pytest.mark.parametrize("quicker", ["older", "newer"])
    def test_if_the_older_one_had_its_check_behind_it_its_manifest_is_gone_from_under_it(
        self, tmp_path: Path, quicker: str
    ) -> None:
        older, newer = Story(tmp_path), Story(tmp_path)
        older.releases = newer.releases = False
        with older.opened(entries=30) as first:
            entries = first.source.entries(first.state.positions)
            learn(first.state, next(entries))
            reached, go_on = Event(), Event()
            first.snapshots._fence = lambda: (reached.set(), go_on.wait(30))[0]
            first.snapshots.commit(first.state)
            assert reached.wait(30)
            with newer.opened(entries=6) as second:
                learn(second.state, next(second.source.entries(second.state.positions)))
                if quicker == "newer":
                    second.snapshots.commit(second.state)
                    second.snapshots.wait()
                go_on.set()
                with pytest.raises(SnapshotError, match="another trainer took over"):
                    first.snapshots.wait()
                second.snapshots.commit(second.state)
                second.snapshots.wait()
        assert same_state(newer.live(), Story(tmp_path / "straight").live())
        self.check_chain(newer)

    def check_chain(self, story: Story) -> None:
        """From the newest snapshot back to the first, no offset is learned twice and none is missing."""
        reached: dict[int, int] = {}
        for manifest in reversed(list(chain(story.store, story.newest()))):
            for kind, *rest in unseal(story.store.get(manifest["blobs"]["ledger"])):
                if kind == "span":
                    index, start, stop = rest
                    assert reached.get(index, 0) == start
                    reached[index] = stop
        assert list(reached.values()) == [line["next"] for line in story.newest()["cursor"] if line["next"]]


def test_the_lock_is_not_inherited_by_the_processes_a_trainer_starts(tmp_path: Path) -> None:
    with fence.hold(tmp_path) as held:
        assert not os.get_inheritable(held._lock)


def test_a_start_that_fails_gives_up_the_lock_only_when_nothing_is_written_any_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A changed setting is committed at once; Kafka goes away a moment later."""
    story = Story(tmp_path)
    story.live(entries=2)
    story.job = with_settings(story.job, {"monitor.frozen_after": 7})
    locked = []
    commit = LocalStore.commit

    def slow_commit(store: LocalStore, sequence: int, manifest: Manifest, check: Callable[[], None]) -> str:
        failed.wait(30)
        time.sleep(0.1)
        with pytest.raises(SnapshotError, match="holds the lock"), fence.hold(story.state_dir):
            pass
        locked.append(sequence)
        return commit(store, sequence, manifest, check)

    failed = Event()
    monkeypatch.setattr(LocalStore, "commit", slow_commit)
    monkeypatch.setattr("tests.lives._Source", lambda *_: failed.set() or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        story.live()
    assert locked == [2]
    assert story.newest()["sequence"] == 2
