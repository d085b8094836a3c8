"""The trainer's handle on the releaser process, and what both sides know. Imports nothing heavy."""

from __future__ import annotations

import json
import os
import select
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from consumers.errors import SnapshotError
from pipeline.store import LocalStore

SINKS = ("dead_letters", "metrics", "registry", "alarms", "mirror")
"""Where a snapshot's effects go. Each is released in order, and none waits for another."""

HOLDING = SINKS[:3]
"""Of what these have not released, so much may be owed: `snapshot.owed_max`. No webhook ever stops training."""

_OWING = SINKS[:4]  # these need the blobs that a snapshot owes; a mirror that fails holds up none of them

_COMMAND = (sys.executable, "-m", "pipeline.release")
_RESTART_S = (1.0, 30.0)  # first and longest pause before a dead releaser is started again
_HEALTHY_S = 60.0  # one that lived this long starts again after the first pause
_EXIT_MARGIN_S = 0.5


def released(state_dir: Path, sinks: Sequence[str] = _OWING) -> int:
    """The newest snapshot that owes these sinks nothing any more, nor does any before it; -1 if there is none."""
    return min(read_marker(state_dir, sink) for sink in sinks)


def read_marker(state_dir: Path, sink: str) -> int:
    """The last sequence a sink released, as far as is known: then harmless work is repeated.

    Markers are not durable. The newest snapshot is, and says what was released before it: what those owed is deleted.
    """
    return max(_marks(state_dir, sink)[0], _released_before_newest(LocalStore(state_dir)))


def read_shown(state_dir: Path, sink: str) -> int:
    """The last sequence that owed a sink something which it has released, as far as is known."""
    return _marks(state_dir, sink)[-1]


def write_marker(state_dir: Path, sink: str, sequence: int, shown: int) -> None:
    """Notes that a sink has released everything up to `sequence`; `shown` is the last that owed it something."""
    replace_file(state_dir / "release" / sink, f"{sequence} {shown}\n")


def shown(state_dir: Path) -> int:
    """The newest snapshot of which something can be seen in MLflow. A dead letter may come again: it has an id."""
    return max(read_shown(state_dir, sink) for sink in ("metrics", "registry"))


def _marks(state_dir: Path, sink: str) -> list[int]:
    try:
        return [int(word) for word in (state_dir / "release" / sink).read_text().split()] or [-1]
    except (FileNotFoundError, ValueError):
        return [-1]


def _released_before_newest(store: LocalStore) -> int:
    for sequence in reversed(store.sequences()):
        try:
            known: int = store.manifest(sequence).get("released", -1)  # an older format: recovery will refuse it
            return known
        except SnapshotError:  # recovery will set it aside
            continue
    return -1


def read_status(state_dir: Path) -> dict[str, Any]:
    """By sink: `released`, the last `error` or None, `retry_at_ms` or None; of alarms, how many were `given_up`.

    Empty before any release.
    """
    try:
        status: dict[str, Any] = json.loads((state_dir / "release" / "status.json").read_text())
    except (FileNotFoundError, ValueError):
        return {}
    return status


class Releaser:
    """Starts the releaser process, tells it what was committed, and starts it again when it dies.

    `committed` may be called from any thread; everything else belongs to the thread that called `start`: the
    kernel ends the process together with the thread that started it.

    `refusal` says, after a `poll` or a `drain`, why nothing may be released to MLflow: it knows a past that the state
    directory does not hold. A trainer that reads it should stop.
    """

    def __init__(self, state_dir: Path) -> None:
        self._state_dir = state_dir
        self._process: subprocess.Popen[bytes] | None = None
        self._channel: Connection | None = None
        self._sending = threading.Lock()
        self._sequence = -1
        self.refusal: str | None = None
        self._lines: deque[str] = deque(maxlen=100)
        self._running = self._drained = False
        self._pause_s, self._spawned_s, self._restart_s = 0.0, 0.0, 0.0

    @property
    def pid(self) -> int | None:
        """Of the process, while there is one."""
        return self._process.pid if self._process else None

    def start(self, sequence: int) -> None:
        """Starts the process; all snapshots up to this one are durable."""
        self._sequence = max(self._sequence, sequence)
        self._running = True
        self._spawn()

    def committed(self, sequence: int) -> None:
        """A snapshot is durable: it may be released. Harmless before `start`."""
        with self._sending:
            self._sequence = max(self._sequence, sequence)
        self._send("committed", sequence)

    def poll(self) -> str | None:
        """Starts a dead process again, when it is time. Returns a line to log, or None; never blocks."""
        self._tend()
        return self._lines.popleft() if self._lines else None

    def drain(self, timeout_s: float) -> bool:
        """Waits until everything owed is released and the run is marked FINISHED; False: not in time."""
        deadline_s = time.monotonic() + timeout_s
        asked: int | None = None
        self._drained = False
        while not self._drained and time.monotonic() < deadline_s:
            self._tend()
            if self.pid != asked:
                asked = self.pid
                self._send("drain")
            if self._channel:
                self._channel.poll(0.1)
            else:
                time.sleep(0.1)
        return self._drained

    def end(self, seconds: float) -> None:
        """Lets the process release what it can, mark the run FINISHED and exit; kills it after `seconds`."""
        self._running = False
        self._send("end", max(seconds - _EXIT_MARGIN_S, 0.0))
        if self._process:
            try:
                self._process.wait(seconds)
            except subprocess.TimeoutExpired:
                self._lines.append(
                    "the releaser did not end in time and was killed; the rest is released at the next start"
                )
        self.close()

    def close(self) -> None:
        """Ends the process at once. What it has not released stays owed. Harmless after `end`."""
        self._running = False
        if self._channel:
            self._receive()
            self._hang_up()
        if self._process:
            self._process.kill()
            self._process.wait()
            self._process = None

    def status(self) -> dict[str, Any]:
        """What `read_status` says, and whether the process lives."""
        alive = self._process is not None and self._process.poll() is None
        return {"alive": alive, "released": released(self._state_dir), "sinks": read_status(self._state_dir)}

    def _tend(self) -> None:
        self._receive()
        if self._process and self._process.poll() is not None:
            self._bury()
        if self._running and not self._process and time.monotonic() >= self._restart_s:
            self._spawn()

    def _bury(self) -> None:
        assert self._process is not None
        code, self._process = self._process.returncode, None
        self._hang_up()
        lived_s = time.monotonic() - self._spawned_s
        first_s, longest_s = _RESTART_S
        self._pause_s = first_s if lived_s > _HEALTHY_S or not self._pause_s else min(2 * self._pause_s, longest_s)
        self._restart_s = time.monotonic() + self._pause_s
        self._lines.append(
            f"the releaser ended with exit code {code} (its last words: {self._log_path}); "
            f"it starts again in {self._pause_s:.0f} s, and training goes on"
        )

    def _spawn(self) -> None:
        ours, theirs = socket.socketpair()
        self._log_path.parent.mkdir(parents=True, exist_ok=True)
        with theirs, self._log_path.open("ab") as log:
            self._process = subprocess.Popen(
                [*_COMMAND, str(self._state_dir), str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                process_group=0,  # a Ctrl-C is the trainer's business, also before the child can ignore it
            )
        self._spawned_s = time.monotonic()
        with self._sending:
            self._channel = Connection(ours.detach())
        self._send("committed", self._sequence)

    def _hang_up(self) -> None:
        with self._sending:  # the snapshot writer may be sending
            if self._channel:
                self._channel.close()
            self._channel = None

    def _send(self, *message: object) -> None:
        with self._sending:
            try:
                # A process that is stopped reads nothing: what does not fit is left out, for the next to make up.
                if self._channel and _writable(self._channel):
                    self._channel.send(message)
            except OSError:
                pass  # it died: the next poll sees it and starts another

    def _receive(self) -> None:
        try:
            while self._channel and self._channel.poll():
                kind, *rest = self._channel.recv()
                if kind == "drained":
                    self._drained = True
                elif kind == "foreign":
                    self.refusal = str(rest[0])
                else:
                    self._lines.append(str(rest[0]))
        except (EOFError, OSError):
            pass  # likewise

    @property
    def _log_path(self) -> Path:
        return self._state_dir / "release" / "log"


def _writable(channel: Connection) -> bool:
    poll = select.poll()
    poll.register(channel, select.POLLOUT)
    return bool(poll.poll(0))


def replace_file(path: Path, text: str) -> None:
    """Writes a file so that a reader sees the old content or the new. Not fsynced: these files are hints."""
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    temporary.write_text(text)
    temporary.replace(path)
