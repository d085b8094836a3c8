"""When a snapshot or a version is due."""

from __future__ import annotations

from collections.abc import Callable

from consumers.record import Command
from pipeline.config import Cadence
from pipeline.state import State, crossed

OWED_BYTES_MAX = 16 * 2**20
"""Dead letters not yet committed; above it a commit is due at once."""


class SnapshotCadence:
    """Due for a version at exactly its entry, and when memory runs short; otherwise when the last commit is durable."""

    def __init__(self, every: Cadence, clock: Callable[[], float], rows: int) -> None:
        self._every = every
        self._clock = clock
        self._committed_at = clock()
        self._committed_rows = rows  # trained by then

    def due(self, state: State, busy: bool) -> bool:
        """Whether to commit now. Answering yes starts the next interval."""
        now = self._clock()
        due = (
            state.owed.version_due
            or state.join.wants_commit
            or sum(letters.rejects.nbytes for letters in state.owed.letters) > OWED_BYTES_MAX
            or (
                not busy
                and bool(state.ledger)
                and (
                    crossed(self._every, self._committed_rows, state.trained)
                    or (self._every.ms is not None and (now - self._committed_at) * 1000 >= self._every.ms)
                )
            )
        )
        if due:
            self._committed_at, self._committed_rows = now, state.trained
        return due


class Commands:
    """What clocks and operators decide, polled by the source between spans."""

    def __init__(self, register_every: Cadence, clock: Callable[[], float], first: list[Command]) -> None:
        self._every = register_every
        self._clock = clock
        self._registered_at = clock()
        self._waiting = first

    def poll(self) -> Command | None:
        """The next command, if one is due."""
        if self._waiting:
            return self._waiting.pop(0)
        now = self._clock()
        if self._every.ms is not None and (now - self._registered_at) * 1000 >= self._every.ms:
            self._registered_at = now
            return Command("register")
        return None
