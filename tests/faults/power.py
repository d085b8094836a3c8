"""Cuts the power at every moment of a job, as often as it is told, and lets it recover from what the disk kept.

    python -m tests.faults.power --states 100000 --seed 1

Lives of a small job are recorded, call by call: some end by SIGKILL or a power cut, and the next one goes on from
there. A model of the disk (`tests.faults.disk`) then loses or tears any of what was not synced, after any of the
calls. From each such state recovery has to find a snapshot that verifies, is no older than the newest that counted
as durable, and no older than any of which something was released; some of them learn on to the end, which has to be
the end of the run never disturbed.
"""

from __future__ import annotations

import argparse
import gc
import json
import logging
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from consumers.errors import EvertrainError
from pipeline.fence import hold
from pipeline.store import LocalStore
from tests.faults.cycle import (
    FINISHED,
    SMALL,
    Cycle,
    Life,
    Place,
    differing,
    incomplete,
    live,
    live_noting,
    on_disk,
    outcome,
)
from tests.faults.disk import Disk, Tree
from tests.faults.supervise import KILL, READING, SUPPORTED, Call, fork, supervise, wait
from tests.faults.syscalls import scratch

FINISHED_EVERY = 200  # one of so many distinct states learns on to the end
LIVES_MAX = 3  # in one recording
FAILED_MAX = 10


@dataclass(frozen=True)
class Promise:
    """What was promised so far: the newest snapshot that may not be lost, and what was done outside."""

    sequence: int = -1
    checksum: str = ""
    world: dict[str, str] = field(default_factory=dict)

    def noted(self, line: str) -> Promise:
        what, *about = line.split()
        if what not in ("durable", "release") or int(about[0]) < self.sequence:
            return self
        return Promise(int(about[0]), about[1], self.world)

    def done(self, path: str, data: bytes) -> Promise:
        return Promise(self.sequence, self.checksum, {**self.world, path: self.world.get(path, "") + data.decode()})


@dataclass
class Recorder:
    """Writes down the calls that change something, and ends the process before one of them."""

    kill_at: int | None = None  # the number of the call
    kill_after_links: int | None = None  # or so many snapshots are there, the last of them not durable yet
    events: list[tuple[Call, bytes]] = field(default_factory=list)
    calls: int = 0
    links: int = 0

    def __call__(self, call: Call) -> int | None:
        if call.name in READING or (call.name in ("open", "openat") and not call.creates):
            return None
        if on_disk(call):
            if self.calls == self.kill_at or self.links == self.kill_after_links:
                return KILL
            self.calls += 1
            self.links += call.name in ("link", "linkat")
        self.events.append((call, call.data() if call.size else b""))
        return None


@dataclass
class Moment:
    """A point in a recording: the disk, and what was promised."""

    disk: Disk
    promise: Promise

    def apply(self, call: Call, data: bytes) -> bool:
        """What the call changes. Returns whether it was a call on the disk."""
        if call.path == "notes":
            for line in data.decode().splitlines():
                self.promise = self.promise.noted(line)
        elif call.path.startswith("world/"):
            if call.creates or data:
                self.promise = self.promise.done(call.path.removeprefix("world/"), data)
        elif on_disk(call):
            self.disk.apply(call, data)
            return True
        return False


class StoppedError(Exception):
    """A life ended that should have gone on."""


class Harness:
    """Draws states and has them recovered."""

    def __init__(self, folder: Path, seed: int, states: int, only: int | None = None) -> None:
        self._folder = folder
        self._states_max, self._only = states, only
        self._seed = seed
        self._cycle = Cycle(160, 2, SMALL)
        self._found = Materialised(folder / "found")
        self._seen: set[int] = set()
        self.states = self.recordings = self.finished = 0
        self.failed: list[str] = []
        undisturbed = Place(folder / "undisturbed")
        undisturbed.folder.mkdir()
        assert live(self._cycle, undisturbed) == FINISHED, undisturbed.log.read_text()
        self._expected = outcome(undisturbed)
        gc.collect()
        gc.freeze()
        self._first = self._record(Place(folder / "first"), Recorder())

    def run(self) -> None:
        """Records lives, and cuts the power in each, until all states are spent."""
        while self.states < self._states_max and len(self.failed) < FAILED_MAX:
            chance = random.Random(f"{self._seed} {self.recordings}")
            place = Place(self._folder / f"recorded-{self.recordings}")
            self.recordings += 1
            try:
                self._recording(chance, place)
            except StoppedError as error:
                self.failed.append(f"recording {self.recordings}: a life does not go on: {error}")
            shutil.rmtree(place.folder)

    def _record(self, place: Place, recorder: Recorder) -> Recorder:
        """One life: up to a call, or to the end."""
        place.folder.mkdir(exist_ok=True)
        code = supervise(partial(live_noting, self._cycle, place), place.folder, recorder)
        if code not in (FINISHED, -signal.SIGKILL):
            raise StoppedError(place.log.read_text())
        return recorder

    def _recording(self, chance: random.Random, place: Place) -> None:
        """Some lives, one after another, and the states that each might have left."""
        place.folder.mkdir()
        moment = Moment(Disk({}), Promise())
        for last in [False] * chance.randrange(LIVES_MAX) + [True]:
            recorder = self._record(place, Recorder() if last else self._killer(chance))
            self._cut(recorder, moment, chance)
            model, real = moment.disk.tree(), read_tree(place)
            different = [path for path in model.keys() | real.keys() if model.get(path) != real.get(path)]
            assert not different, f"the model is not what the disk is: {different}"
            if chance.random() < 0.5:
                tree = moment.disk.after_power_cut(chance)
                moment = Moment(Disk(tree), moment.promise)
                write_tree(place, tree)

    def _killer(self, chance: random.Random) -> Recorder:
        """Kills anywhere, or where a snapshot is there that its writer could not make durable any more."""
        if chance.random() < 0.5 or not self._first.links:
            return Recorder(kill_at=chance.randrange(self._first.calls))
        return Recorder(kill_after_links=chance.randrange(1, self._first.links + 1))

    def _cut(self, recorder: Recorder, moment: Moment, chance: random.Random) -> None:
        """Draws a state after each call of one life."""
        for call, data in recorder.events:
            if not moment.apply(call, data):
                continue
            if self.states < self._states_max and len(self.failed) < FAILED_MAX:
                tree = moment.disk.after_power_cut(chance)
                self.states += 1
                if self._only in (None, self.states):
                    self._check(tree, moment.promise, call)

    def _check(self, tree: Tree, promise: Promise, call: Call) -> None:
        key = hash((frozenset(tree.items()), promise.sequence))
        if key in self._seen:
            return
        self._seen.add(key)
        wrong = self._found.recover(self._cycle, tree, promise)
        if not wrong and (len(self._seen) % FINISHED_EVERY == 0 or self._only):
            wrong = self._finish(tree, promise)
            self.finished += 1
        if wrong:
            self.failed.append(f"state {self.states}, after {call}: {'; '.join(wrong)}")

    def _finish(self, tree: Tree, promise: Promise) -> list[str]:
        """Learns on to the end, in a process of its own."""
        place = Place(self._folder / "finished")
        shutil.rmtree(place.folder, ignore_errors=True)
        place.folder.mkdir()
        write_tree(place, tree)
        place.world.mkdir()
        for name, content in promise.world.items():
            (place.world / name).write_text(content)
        if wait(fork(partial(live, self._cycle, place))) != FINISHED:
            return [f"it does not go on: {place.log.read_text()}"]
        return differing(self._expected, outcome(place))

    @property
    def distinct(self) -> int:
        return len(self._seen)


class Materialised:
    """A directory that is made to hold one tree after another: only what differs is written."""

    def __init__(self, folder: Path) -> None:
        self._place = Place(folder)
        self._pool = folder / "pool"
        self._pool.mkdir(parents=True)
        self._pooled: dict[bytes, Path] = {}
        self._now: Tree = {}

    def recover(self, cycle: Cycle, tree: Tree, promise: Promise) -> list[str]:
        """What is wrong with what recovery finds there."""
        self._become(tree)
        try:
            with hold(self._place.state) as fence:
                life = Life(cycle, self._place, fence.check)
                manifest = life.newest()
                wrong = _broken(self._place, manifest, promise)
                if manifest is not None and not wrong:
                    wrong = incomplete(self._place.state)
                    wrong += [f"{path.name}: no power cut does this" for path in self._place.state.rglob("*.bad")]
                    life.restore(manifest)
                return wrong
        except (EvertrainError, OSError) as error:
            return [f"recovery ends: {error}"]

    def _become(self, tree: Tree) -> None:
        found = read_names(self._place)
        now = {path: data for path, data in self._now.items() if path in found and path != "state/generation"}
        for path in sorted(found - {p for p, data in tree.items() if now.get(p) == data}, reverse=True):
            there = self._place.folder / path
            if path.endswith("/"):
                there.rmdir()
            else:
                there.unlink()
        for path, data in sorted(tree.items()):
            if now.get(path) != data or path not in found:
                there = self._place.folder / path
                if path.endswith("/"):
                    there.mkdir()
                else:
                    os.link(self._file(data), there)
        self._now = tree

    def _file(self, data: bytes) -> Path:
        if data not in self._pooled:
            self._pooled[data] = self._pool / str(len(self._pooled))
            self._pooled[data].write_bytes(data)
        return self._pooled[data]


def _broken(place: Place, manifest: dict[str, Any] | None, promise: Promise) -> list[str]:
    """Whether a promise is broken by what recovery has chosen."""
    if promise.sequence < 0:
        return []
    if manifest is None or manifest["sequence"] < promise.sequence:
        found = "nothing" if manifest is None else f"snapshot {manifest['sequence']}"
        return [f"recovery finds {found}, but snapshot {promise.sequence} was durable"]
    if LocalStore(place.state).checksum(promise.sequence) != promise.checksum:
        return [f"snapshot {promise.sequence} was durable and is another one now"]
    return []


def read_names(place: Place) -> set[str]:
    """Paths below the folder of a job's state, as in a `Tree`."""
    names: set[str] = set()
    for root, directories, files in os.walk(place.state):
        base = f"{os.path.relpath(root, place.folder)}/"
        names |= {base, *(base + name for name in files), *(f"{base}{name}/" for name in directories)}
    return names


def read_tree(place: Place) -> Tree:
    """What a process sees."""
    return {path: b"" if path.endswith("/") else (place.folder / path).read_bytes() for path in read_names(place)}


def write_tree(place: Place, tree: Tree) -> None:
    """Makes the state directory hold just this."""
    shutil.rmtree(place.state, ignore_errors=True)
    for path, data in sorted(tree.items()):
        there = place.folder / path
        if path.endswith("/"):
            there.mkdir()
        else:
            there.write_bytes(data)


def run(folder: Path, states: int, seed: int, only: int | None = None) -> dict[str, Any]:
    """Draws so many states and reports."""
    began = time.monotonic()
    harness = Harness(folder, seed, states, only)
    harness.run()
    for failure in harness.failed:
        print(
            f"{failure}\n    python -m tests.faults.power --states {states} --seed {seed}  # --only N: state N alone",
            file=sys.stderr,
        )
    return {
        "states": harness.states,
        "distinct": harness.distinct,
        "recordings": harness.recordings,
        "finished": harness.finished,
        "differences": len(harness.failed),
        "seed": seed,
        "seconds": round(time.monotonic() - began, 1),
    }


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults.power", description=__doc__.splitlines()[0])
    parser.add_argument("--states", type=int, default=10_000, help="how many states of the disk (default: 10000)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, help="look only at the state with this number, and learn on from it")
    parser.add_argument("-o", dest="output", choices=("json",), default="json", help="how to print the result")
    args = parser.parse_args(argv)
    if not SUPPORTED:
        parser.error("needs Linux on x86_64")
    logging.getLogger("evertrain").setLevel(logging.CRITICAL)
    with tempfile.TemporaryDirectory(dir=scratch(), prefix="evertrain-power-") as folder:
        report = run(Path(folder), args.states, args.seed, args.only)
    print(json.dumps(report))
    return 1 if report["differences"] else 0


if __name__ == "__main__":
    sys.exit(main())
