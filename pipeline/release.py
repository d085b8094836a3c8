"""The releaser process: brings what committed snapshots owe to Kafka and MLflow, oldest first.

`python -m pipeline.release STATE_DIR FD` is started by `pipeline.releaser`, which holds the other end of FD.
"""

from __future__ import annotations

import ctypes
import json
import os
import re
import shutil
import signal
import socket
import sys
import threading
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from consumers.errors import EvertrainError
from pipeline.releaser import SINKS, read_marker, replace_file
from pipeline.store import LocalStore, Manifest

if TYPE_CHECKING:
    from pipeline.registry import Registry

_BACKOFF_S = (1.0, 30.0)  # first and longest pause of a sink that fails
_FINISH_S = 1.5  # kept of the time to end, for marking the run FINISHED
_ERROR_LENGTH_MAX = 400
_PR_SET_PDEATHSIG = 1
_NICENESS = 10  # training and reading come first


class Effects:
    """What a snapshot does outside, sink by sink. Every effect may be repeated."""

    def __init__(self, state_dir: Path, store: LocalStore, tell: Callable[[str], None]) -> None:
        self._scratch = state_dir / "release" / "scratch"
        self._store = store
        self._tell = tell
        self._sent: str | None = None
        self._registry: tuple[object, Registry] | None = None
        self._resumed: set[str] = set()

    def dead_letters(self, manifest: Manifest) -> None:
        """Produces the dead letters, then sets the group's offsets."""
        from consumers.kafka import group_id
        from pipeline.deadletter import commit_offsets, send

        target = self._newest()["config"]
        owed = manifest["owed"]["dead_letters"]
        # The offsets may fail for reasons of their own: that must not send the letters again and again.
        if owed and self._sent != manifest["snapshot_id"]:
            send(target["kafka"], target["dead_letters"]["topic"], self._store.get(owed), manifest["lineage"])
            self._sent = manifest["snapshot_id"]
        commit_offsets(target["kafka"], group_id(manifest["name"], target["kafka"]), manifest["cursor"])

    def metrics(self, manifest: Manifest) -> None:
        """Adds the metric points to the lineage's run, which is RUNNING from the first time on."""
        from pipeline.version import Point

        registry, lineage = self.registry(), manifest["lineage"]
        if lineage not in self._resumed:
            registry.resume(manifest["name"], lineage)
            self._resumed.add(lineage)
        if owed := manifest["owed"]["points"]:
            registry.log(manifest["name"], lineage, [Point(**point) for point in json.loads(self._store.get(owed))])

    def versions(self, manifest: Manifest) -> None:
        """Registers the version."""
        if not manifest["owed"]["version"]:
            return
        from pipeline.version import candidate

        number = self.registry().register(candidate(self._store, manifest))
        self._tell(f"registered version {number} of {manifest['name']}: {manifest['rows_trained']:,} rows")

    def finish(self) -> None:
        """Marks the newest lineage's run as FINISHED."""
        manifest = self._newest()
        self.registry().finish(manifest["name"], manifest["lineage"])
        self._resumed.discard(manifest["lineage"])

    def registry(self) -> Registry:
        """The registry that the newest snapshot names: a corrected address frees what waited."""
        from pipeline.registry import MLflowRegistry

        target = self._newest()["config"]["registry"]
        key = (target["tracking_uri"], target["artifact_location"])
        if self._registry is None or self._registry[0] != key:
            self._registry = key, MLflowRegistry(*key, self._scratch)
        return self._registry[1]

    def forget_registry(self) -> None:
        """After a failure: what was remembered of the registry may no longer be there."""
        self._registry = None

    def _newest(self) -> Manifest:
        return self._store.manifest(self._store.sequences()[-1])


@dataclass(slots=True)
class Sink:
    """One kind of effect, how far it came, and when it is tried again after a failure."""

    name: str
    effect: Callable[[Manifest], None]
    released: int
    ready: threading.Event
    error: str | None = None
    pause_s: float = 0.0
    retry_s: float = 0.0  # by the monotonic clock

    def succeeded(self, sequence: int) -> None:
        self.released, self.error, self.pause_s, self.retry_s = sequence, None, 0.0, 0.0

    def failed(self, error: str) -> None:
        first_s, longest_s = _BACKOFF_S
        self.error = error
        self.pause_s = min(2 * self.pause_s, longest_s) or first_s
        self.retry_s = time.monotonic() + self.pause_s


class Service:
    """One thread releases; the caller's thread passes on what the trainer says."""

    def __init__(self, state_dir: Path, channel: Connection) -> None:
        self._state_dir = state_dir
        self._channel = channel
        self._store = LocalStore(state_dir)
        self._effects = Effects(state_dir, self._store, lambda line: self._tell("line", line))
        effects = (self._effects.dead_letters, self._effects.metrics, self._effects.versions)
        self._sinks = [
            Sink(name, effect, read_marker(state_dir, name), threading.Event())
            for name, effect in zip(SINKS, effects, strict=True)
        ]
        self._changed = threading.Condition()
        self._committed = -1
        self._draining = self._ending = self._idle = False

    def start(self) -> None:
        for work in (self._warm_up, self._work):
            threading.Thread(target=work, daemon=True).start()

    def committed(self, sequence: int) -> None:
        with self._changed:
            if self._committed < 0:
                # Repeating the newest snapshot's points marks the run as RUNNING: a trainer lives again.
                metrics = self._sinks[SINKS.index("metrics")]
                metrics.released = min(metrics.released, sequence - 1)
            self._committed = max(self._committed, sequence)
            self._idle = False
            self._changed.notify_all()

    def drain(self) -> None:
        with self._changed:
            self._draining = True
            self._changed.notify_all()

    def end(self, seconds: float) -> None:
        """Releases what is due, marks the run FINISHED and ends the process; at the deadline in any case."""
        deadline = threading.Timer(seconds, os._exit, (0,))
        deadline.daemon = True
        deadline.start()
        with self._changed:
            self._ending = True
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._idle, max(seconds - _FINISH_S, 0))
        try:
            if self._committed >= 0:
                self._effects.finish()
        except Exception as error:  # whatever it is: the next start does it
            print(f"the run was not marked FINISHED: {_one_line(error)}", file=sys.stderr, flush=True)
        os._exit(0)

    def _warm_up(self) -> None:
        """Imports MLflow, which takes seconds, while dead letters go out; what exports waits for the first version."""
        steps: tuple[Callable[[], None], ...] = (lambda: None, _import_mlflow, lambda: None)
        for sink, step in zip(self._sinks, steps, strict=True):
            try:
                step()
            except Exception as error:  # the sink will meet it again, and say so
                print(f"warm-up: {_one_line(error)}", file=sys.stderr, flush=True)
            with self._changed:
                sink.ready.set()
                self._changed.notify_all()

    def _work(self) -> None:
        try:
            while True:
                due = [(sink, sequence) for sink in self._sinks if (sequence := self._due(sink)) is not None]
                for sink, sequence in due:
                    self._attempt(sink, sequence)
                if not due:
                    self._rest()
        except BaseException:  # a defect: the trainer's handle sees the exit code and starts a new process
            sys.excepthook(*sys.exc_info())
            os._exit(1)

    def _due(self, sink: Sink) -> int | None:
        sequence = self._owed(sink)
        return sequence if sink.ready.is_set() and time.monotonic() >= sink.retry_s else None

    def _owed(self, sink: Sink) -> int | None:
        owed = (n for n in self._store.sequences() if sink.released < n <= self._committed)
        return next(owed, None)

    def _attempt(self, sink: Sink, sequence: int) -> None:
        try:
            sink.effect(self._store.manifest(sequence))
        except Exception as error:  # of any kind: the sink waits, is tried again, and nobody else is held up
            line = _one_line(error)
            if sink.error != line:
                self._tell("line", f"{sink.name} of snapshot {sequence} wait (training goes on): {line}")
            sink.failed(line)
            if sink.name != "dead_letters":
                self._effects.forget_registry()
        else:
            if sink.error is not None:
                self._tell("line", f"{sink.name}: released again, from snapshot {sequence} on")
            sink.succeeded(sequence)
            replace_file(self._state_dir / "release" / sink.name, f"{sequence}\n")
        self._write_status()

    def _rest(self) -> None:
        """Nothing can be done just now: says so to whom it concerns, and waits."""
        owed = [sink for sink in self._sinks if self._owed(sink) is not None]
        if self._draining and not owed:
            try:
                self._effects.finish()
            except Exception as error:
                self._tell("line", f"the run is not marked FINISHED yet: {_one_line(error)}")
                self._effects.forget_registry()
            else:
                self._draining = False
                self._tell("drained")
        warming = not all(sink.ready.is_set() for sink in owed)
        retries = [sink.retry_s for sink in owed]
        with self._changed:
            if any(self._due(sink) is not None for sink in self._sinks):
                return  # it came due, or was committed, just now
            if not warming:
                self._idle = True
                self._changed.notify_all()
            pause_s = 0.1 if warming else min(retries, default=time.monotonic() + 60) - time.monotonic()
            self._changed.wait(1.0 if self._draining else max(pause_s, 0.01))

    def _write_status(self) -> None:
        now_ms, now_s = time.time_ns() // 1_000_000, time.monotonic()
        status = {
            sink.name: {
                "released": sink.released,
                "error": sink.error,
                "retry_at_ms": now_ms + int(1000 * (sink.retry_s - now_s)) if sink.error else None,
            }
            for sink in self._sinks
        }
        replace_file(self._state_dir / "release" / "status.json", json.dumps(status) + "\n")

    def _tell(self, *message: Any) -> None:
        try:
            self._channel.send(message)
        except OSError:
            os._exit(1)  # the trainer is gone


def _import_mlflow() -> None:
    from pipeline.registry import import_mlflow

    import_mlflow()


def _one_line(error: Exception) -> str:
    text = str(error) if isinstance(error, EvertrainError) else f"{type(error).__name__}: {error}"
    text = re.sub(r"//[^/@\s]+@", "//", text)  # no password of an address in a log
    return " ".join(text.split())[:_ERROR_LENGTH_MAX]


def _die_with_parent(descriptor: int) -> None:
    """Has the kernel kill this process when the trainer dies; ends it now if that has happened already."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    with socket.socket(fileno=os.dup(descriptor)) as channel:
        credentials = channel.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
    trainer = int.from_bytes(credentials[:4], sys.byteorder)  # struct ucred: pid, uid, gid
    if os.getppid() != trainer:
        os._exit(1)


def main(state_dir: Path, descriptor: int) -> None:
    """Serves the trainer at the other end of `descriptor` until it says so, or is gone."""
    _die_with_parent(descriptor)
    os.nice(_NICENESS)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    warnings.simplefilter("ignore")
    channel = Connection(descriptor)
    shutil.rmtree(state_dir / "release" / "scratch", ignore_errors=True)
    service = Service(state_dir, channel)
    service.start()
    try:
        while True:
            kind, *arguments = channel.recv()
            getattr(service, kind)(*arguments)  # committed, drain or end
    except (EOFError, OSError):
        os._exit(1)  # the trainer died without a word; what is owed stays owed


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
