"""The right to write to a state directory: a lock, and a generation that every later holder raises."""

from __future__ import annotations

import fcntl
import os
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from consumers.errors import SnapshotError
from pipeline.store import LocalStore, fsync_directory, write_new


class Fence:
    """One trainer's hold on a state directory.

    The lock keeps a second trainer out. Where it cannot (a file system without locks, a removed lock file), the
    generation stops the first one at its next commit: the newest holder wins.

    `leftovers` are the blobs that were there before the generation rose: only these may be orphans of a crash, since
    whoever held the directory until then can commit nothing more.
    """

    def __init__(self, state_dir: Path, lock: int) -> None:
        self._state_dir = state_dir
        self._lock = lock
        self.leftovers = LocalStore(state_dir).blobs()
        self.generation = _number(state_dir, _read_generation(state_dir)) + 1
        self._mark = f"{self.generation} {uuid.uuid4().hex}\n"  # two starts at once are two generations
        _write_generation(state_dir, self._mark)

    def check(self) -> None:
        """Raises SnapshotError unless this trainer still is the directory's only one."""
        path = self._state_dir / "lock"
        try:
            ours = os.path.samestat(os.stat(path), os.fstat(self._lock))
        except FileNotFoundError:
            ours = False
        if not ours or _read_generation(self._state_dir) != self._mark:
            raise SnapshotError(
                f"{self._state_dir}: another trainer took over this state directory (its lock file or generation "
                "changed); this one stops and commits nothing more. Run one trainer per job.state_dir"
            )


@contextmanager
def hold(state_dir: Path) -> Iterator[Fence]:
    """Takes the lock and raises the generation.

    Raises SnapshotError if another trainer holds the lock, or nothing can be written here.
    """
    with ExitStack() as cleanup:
        try:
            state_dir.mkdir(parents=True, exist_ok=True)
            fsync_directory(state_dir.parent)  # else a power cut takes the new directory, whatever is durable in it
            lock = os.open(state_dir / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            cleanup.callback(os.close, lock)
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            fence = Fence(state_dir, lock)
        except BlockingIOError:
            raise SnapshotError(
                f"{state_dir}: another trainer holds the lock; stop it first, or use another job.state_dir"
            ) from None
        except OSError as error:
            raise SnapshotError(
                f"{error.filename or state_dir}: the state directory cannot be written to: {error.strerror}"
            ) from None
        yield fence


def _read_generation(state_dir: Path) -> str:
    try:
        return (state_dir / "generation").read_text(errors="replace")
    except FileNotFoundError:
        return "0\n"


def _number(state_dir: Path, generation: str) -> int:
    try:
        return int(generation.split(maxsplit=1)[0])
    except (ValueError, IndexError):
        raise SnapshotError(
            f"{state_dir / 'generation'}: not a number; remove the file while no trainer runs on this directory"
        ) from None


def _write_generation(state_dir: Path, mark: str) -> None:
    temporary = write_new(state_dir, [mark.encode()])
    temporary.rename(state_dir / "generation")
    fsync_directory(state_dir)
