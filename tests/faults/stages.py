"""Where in its work a process was when it was killed: one byte a thread, in memory that outlives it."""

from __future__ import annotations

import mmap
import os
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pipeline.release
import pipeline.snapshot
import pipeline.state
from pipeline.learner import Learner
from pipeline.store import LocalStore

THREADS = ("learner", "writer", "releaser")
STAGES = (
    "idle", "start", "restore", "apply", "step", "freeze", "write", "fsync", "rename", "link", "unlink", "collect",
    "letters", "metrics", "versions",
)  # fmt: skip

_memory = mmap.mmap(-1, len(THREADS))
_begun, _begins = os.pipe()
os.set_blocking(_begun, False)


def clear() -> int:
    """Forgets the last life. Returns what becomes readable once the next one begins to learn."""
    _memory[:] = bytes([STAGES.index("start"), 0, 0])
    with suppress(BlockingIOError):
        os.read(_begun, 1)
    return _begun


def begin() -> None:
    """This life begins to learn."""
    os.write(_begins, b".")


def seen() -> dict[str, str]:
    """The stage of each thread that has begun."""
    return {thread: STAGES[byte] for thread, byte in zip(THREADS, _memory[:], strict=True) if byte}


def watch() -> None:
    """From here on this process, and all that it forks, note what they are doing."""
    for owner, name, stage in (
        (pipeline.snapshot.Snapshots, "restore", "restore"),
        (pipeline.snapshot.Snapshots, "commit", "freeze"),
        (Learner, "step", "step"),
        (LocalStore, "put", "write"),
        (LocalStore, "commit", "write"),
        (LocalStore, "remove", "collect"),
        (pipeline.release.Effects, "dead_letters", "letters"),
        (pipeline.release.Effects, "metrics", "metrics"),
        (pipeline.release.Effects, "versions", "versions"),
        (os, "fsync", "fsync"),
        (os, "rename", "rename"),
        (os, "link", "link"),
        (os, "unlink", "unlink"),
    ):
        setattr(owner, name, _noted(getattr(owner, name), STAGES.index(stage)))
    pipeline.state.State.apply = _applied(pipeline.state.State.apply)


def _noted(function: Callable[..., Any], stage: int) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        thread = _thread()
        before, _memory[thread] = _memory[thread], stage
        try:
            return function(*args, **kwargs)
        finally:
            _memory[thread] = before

    return call


def _applied(apply: Callable[..., Any]) -> Callable[..., Any]:
    def call(*args: Any) -> Any:
        _memory[0] = STAGES.index("apply")
        yield from apply(*args)

    return call


def _thread() -> int:
    name = threading.current_thread().name
    return 1 if name.startswith("snapshot-writer") else 2 if name.endswith("(_work)") else 0
