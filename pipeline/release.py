"""The releaser process: brings what committed snapshots owe to Kafka, MLflow and the mirror, oldest first.

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
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, TypeAlias

from consumers.errors import DependencyError, EvertrainError
from pipeline.effects import Effects
from pipeline.lineage import LineageError
from pipeline.releaser import SINKS, read_marker, read_shown, read_status, replace_file, write_marker
from pipeline.store import LocalStore, Manifest

_BACKOFF_S = (1.0, 30.0)  # first and longest pause of a sink that fails
_FINISH_S = 1.5  # kept of the time to end, for marking the run FINISHED
_ATTEMPT_S = 900.0  # of one attempt: an answer that trickles in never times out
_WATCH_S = 5.0
_ERROR_LENGTH_MAX = 400
_PR_SET_PDEATHSIG = 1
_NICENESS = 10  # training and reading come first
_REFUSALS = ("BAD_REQUEST", "INVALID_PARAMETER_VALUE")  # MLflow's ways to say: never


@dataclass(slots=True, eq=False)
class Sink:
    """One kind of effect, how far it came, and when it is tried again after a failure."""

    name: str
    effect: Callable[[Manifest], None]
    released: int
    shown: int  # the last snapshot that owed it something
    ready: threading.Event = field(default_factory=threading.Event)
    error: str | None = None
    pause_s: float = 0.0
    retry_s: float = 0.0  # this one and the next by the monotonic clock
    started_s: float | None = None  # of the attempt under way

    def succeeded(self, sequence: int) -> None:
        self.released, self.error, self.pause_s, self.retry_s = sequence, None, 0.0, 0.0

    def failed(self, error: str) -> None:
        first_s, longest_s = _BACKOFF_S
        self.error = error
        self.pause_s = min(2 * self.pause_s, longest_s) or first_s
        self.retry_s = time.monotonic() + self.pause_s


Group: TypeAlias = tuple[Sink, ...]


class Service:
    """A thread for each place outside releases; the caller's thread passes on what the trainer says."""

    def __init__(self, state_dir: Path, channel: Connection) -> None:
        self._state_dir = state_dir
        self._channel = channel
        self._store = LocalStore(state_dir)
        self._effects = effects = Effects(state_dir, self._store, lambda line: self._tell("line", line))
        does = (effects.dead_letters, effects.metrics, effects.versions, effects.alarms, effects.mirror)
        kafka, metrics, registry, webhook, mirror = self._sinks = [
            Sink(name, effect, read_marker(state_dir, name), read_shown(state_dir, name))
            for name, effect in zip(SINKS, does, strict=True)
        ]
        self._webhook = webhook
        self._alarms_given_up: int = read_status(state_dir).get(webhook.name, {}).get("given_up", 0)
        self._mlflow: Group = (metrics, registry)
        self._groups: tuple[Group, ...] = ((kafka,), self._mlflow, (webhook,), (mirror,))
        lock = threading.Lock()
        self._changed, self._rested = threading.Condition(lock), threading.Condition(lock)
        self._resting: set[Group] = set()  # groups for which nothing can be done just now
        self._writing = threading.Lock()  # of the channel and the status file
        self._committed = -1
        self._draining = False

    def start(self) -> None:
        threading.Thread(target=self._warm_up, daemon=True).start()
        for group in self._groups:
            threading.Thread(target=self._work, args=(group,), daemon=True).start()

    def committed(self, sequence: int) -> None:
        with self._changed:
            if self._committed < 0:
                # Repeating the newest snapshot's points marks the run as RUNNING: a trainer lives again.
                metrics = self._mlflow[0]
                metrics.released = min(metrics.released, sequence - 1)
            self._committed = max(self._committed, sequence)
            self._resting.clear()
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
        with self._rested:
            self._rested.wait_for(lambda: len(self._resting) == len(self._groups), max(seconds - _FINISH_S, 0))
        try:
            self._effects.finish()
        except Exception as error:  # whatever it is: the next start does it
            print(f"the run was not marked FINISHED: {_one_line(error)}", file=sys.stderr, flush=True)
        os._exit(0)

    def watch(self) -> None:
        """Ends the process if an attempt hangs: what it holds is let go, and the next process tries again."""
        for sink in self._sinks:
            hangs = sink.started_s is not None and time.monotonic() - sink.started_s > _ATTEMPT_S
            if hangs and sink.name != "mirror":  # whose first copy takes as long as it takes
                self._tell("line", f"{sink.name}: no answer in {_ATTEMPT_S:.0f} s, the releaser starts anew")
                os._exit(1)

    def _warm_up(self) -> None:
        """Imports MLflow, which takes seconds, while dead letters go out; what exports waits for the first version."""
        for sink in self._sinks:
            try:
                if sink.name == "metrics":
                    _import_mlflow()
            except Exception as error:  # the sink will meet it again, and say so
                print(f"warm-up: {_one_line(error)}", file=sys.stderr, flush=True)
            with self._changed:
                sink.ready.set()
                self._changed.notify_all()

    def _work(self, group: Group) -> None:
        try:
            while True:
                due = [(sink, sequence) for sink in group if (sequence := self._due(sink)) is not None]
                for sink, sequence in due:
                    self._attempt(sink, sequence)
                if not due:
                    self._rest(group)
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
        sink.started_s = time.monotonic()
        manifest: Manifest = {"sequence": sequence, "owed": {}}
        try:
            manifest = self._store.manifest(sequence)
            sink.effect(manifest)
        except Exception as error:  # of any kind: the sink waits, is tried again, and nobody else is held up
            if sequence in self._store.sequences():  # else it was collected meanwhile: it owes nothing more
                self._failed(sink, manifest, error)
        else:
            if sink.error is not None:
                self._tell("line", f"{sink.name}: released again, from snapshot {sequence} on")
            self._released(sink, manifest)
        sink.started_s = None
        self._write_status()

    def _released(self, sink: Sink, manifest: Manifest) -> None:
        sink.succeeded(manifest["sequence"])
        if self._effects.owed_path(manifest, sink.name) is not None:
            sink.shown = manifest["sequence"]
        write_marker(self._state_dir, sink.name, manifest["sequence"], sink.shown)

    def _failed(self, sink: Sink, manifest: Manifest, error: Exception) -> None:
        line, what = _one_line(error), f"{sink.name} of snapshot {manifest['sequence']}"
        # Only what the webhook says is given up: its own blob may be damaged, and that is for a person to see. And not
        # at the first failure of this process, which may have begun long after the alarm was raised.
        unheard = sink is self._webhook and isinstance(error, DependencyError) and sink.pause_s >= _BACKOFF_S[1]
        if unheard and (given_up := self._effects.alarms_given_up(manifest)):
            self._tell("line", f"{given_up} {what} are given up: {line}")
            self._alarms_given_up += given_up
            self._released(sink, manifest)
            return
        if isinstance(error, LineageError):
            self._tell("foreign", str(error))
        elif sink.error != line:
            self._tell("line", f"{what} wait (training goes on): {line}")
        elif _is_refusal(error) and (blob := self._effects.owed_path(manifest, sink.name)):
            self._tell("line", f"{what} are refused, and newer ones wait: {line}; mend that, or give up by rm {blob}")
        sink.failed(line)
        if sink in self._mlflow:
            self._effects.forget_registry()

    def _rest(self, group: Group) -> None:
        """Nothing can be done just now: says so to whom it concerns, and waits."""
        if group is self._mlflow and self._draining and all(self._owed(sink) is None for sink in self._sinks):
            self._finish()
        owed = [sink for sink in group if self._owed(sink) is not None]
        warming = not all(sink.ready.is_set() for sink in owed)
        retries = [sink.retry_s for sink in owed]
        with self._changed:
            if any(self._due(sink) is not None for sink in group):
                return  # it came due, or was committed, just now
            if not warming:
                self._resting.add(group)
                self._rested.notify()
            pause_s = 0.1 if warming else min(retries, default=time.monotonic() + 60) - time.monotonic()
            self._changed.wait(1.0 if self._draining else max(pause_s, 0.01))
            self._resting.discard(group)

    def _finish(self) -> None:
        try:
            self._effects.finish()
        except Exception as error:
            self._tell("line", f"the run is not marked FINISHED yet: {_one_line(error)}")
            self._effects.forget_registry()
        else:
            self._draining = False
            self._tell("drained")

    def _write_status(self) -> None:
        with self._writing:
            now_ms, now_s = time.time_ns() // 1_000_000, time.monotonic()
            status = {
                sink.name: {
                    "released": sink.released,
                    "error": sink.error,
                    "retry_at_ms": now_ms + int(1000 * (sink.retry_s - now_s)) if sink.error else None,
                }
                for sink in self._sinks
            }
            status[self._webhook.name]["given_up"] = self._alarms_given_up
            replace_file(self._state_dir / "release" / "status.json", json.dumps(status) + "\n")

    def _tell(self, *message: Any) -> None:
        try:
            with self._writing:
                self._channel.send(message)
        except OSError:
            os._exit(1)  # the trainer is gone


def _import_mlflow() -> None:
    from pipeline.registry import import_mlflow

    import_mlflow()


def _is_refusal(error: Exception) -> bool:
    """Whether waiting alone will not help."""
    refused = isinstance(error, EvertrainError) and not isinstance(error, DependencyError)
    return refused or getattr(error, "error_code", None) in _REFUSALS


def _one_line(error: Exception) -> str:
    text = str(error) if isinstance(error, EvertrainError) else f"{type(error).__name__}: {error}"
    text = re.sub(r"//[^/@\s]+@", "//", " ".join(text.split()))  # no password of an address in a log
    text = re.sub(r"exception \w*Pool\(.*\(Caused by (.*)\)$", r"\1", text)  # MLflow names the address twice more
    return text[:_ERROR_LENGTH_MAX]


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
            if channel.poll(_WATCH_S):
                kind, *arguments = channel.recv()
                getattr(service, kind)(*arguments)  # committed, drain or end
            service.watch()
    except (EOFError, OSError):
        os._exit(1)  # the trainer died without a word; what is owed stays owed


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
