"""Breaks a job at every system call it makes on its state directory, and compares what becomes of it.

    python -m tests.faults.syscalls
    python -m tests.faults.syscalls --fault eio --point 217

Two short lives are traced once, which numbers their calls: one begins a lineage, one goes on from a snapshot,
maps slabs, commits an anchor and two more, collects and releases. Then each is lived again for every call and fault:

    kill    SIGKILL before the call, if it changes something
    eio     it fails with EIO, reads too
    enospc  it and the two after it that take room fail with ENOSPC
    short   a write takes half of what it is given
    torn    likewise, and the three calls after it that take room fail with ENOSPC

After it no file holds less than its name promises, and the next life ends with the state, weights, counts, ledger
and effects of the life never disturbed. A fault that the job has to survive must not end it, and the others must.
"""

from __future__ import annotations

import argparse
import errno
import gc
import json
import logging
import os
import re
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from pipeline.store import LocalStore
from tests.faults.cycle import (
    FINISHED,
    MAPPED,
    SMALL,
    STOPPED,
    Cycle,
    Place,
    copy,
    damaged,
    differing,
    live,
    live_noting,
    noted,
    on_disk,
    outcome,
)
from tests.faults.supervise import HALF, KILL, SUPPORTED, Call, fork, supervise, wait

FAULTS = ("kill", "eio", "enospc", "short", "torn")
FULL_CALLS = 3  # so many calls find no room before there is some again
_TAKES_ROOM = ("write", "pwrite64", "fsync", "rename", "link", "linkat", "unlink", "mkdir", "ftruncate")


@dataclass
class Subject:
    """A life to disturb, from where it starts to what must come of it."""

    cycle: Cycle
    start: Place
    calls: list[Call] = field(default_factory=list)
    by_releaser: list[bool] = field(default_factory=list)  # for each call: a process of its own makes it
    expected: dict[str, Any] = field(default_factory=dict)

    def there(self, index: int) -> bool:
        """Whether the directory that a call makes is there already."""
        path = self.calls[index].path
        before = {call.path for call in self.calls[:index] if call.name == "mkdir"}
        return path in before or (self.start.folder / path).exists()

    def trace(self, place: Place) -> None:
        """Lives once, undisturbed, and notes each call."""
        copy(self.start, place)
        releasing = False

        def note(call: Call) -> None:
            nonlocal releasing
            for line in noted(call):
                releasing = {"releaser begins": True, "releaser ends": False}.get(line, releasing)
            if on_disk(call):
                self.calls.append(call)
                self.by_releaser.append(releasing)

        code = supervise(partial(live_noting, self.cycle, place), place.folder, note)
        assert code == FINISHED, place.log.read_text()
        self.expected = outcome(place)


@dataclass(frozen=True)
class Point:
    """One call of one subject, and what happens to it."""

    number: int  # of the call, counted over all subjects
    subject: Subject
    index: int
    fault: str

    @property
    def call(self) -> Call:
        return self.subject.calls[self.index]

    @property
    def command(self) -> str:
        return f"python -m tests.faults.syscalls --fault {self.fault} --point {self.number}"

    @property
    def applies(self) -> bool:
        if self.fault == "kill":
            return takes_room(self.call)
        if self.fault == "enospc":
            return takes_room(self.call)
        return self.fault == "eio" or self.call.size > 1

    @property
    def ends_with(self) -> tuple[int, ...]:
        """The exit codes that the life may have."""
        call, subject = self.call, self.subject
        if self.fault == "kill":
            return (-signal.SIGKILL,)
        if self.fault == "short" or call.path.startswith("state/status."):
            return (FINISHED,)  # the status file describes a live process, and is no reason to end it
        if subject.by_releaser[self.index]:
            return (FINISHED,)  # it is started again
        if call.name == "mkdir" and subject.there(self.index):
            return (FINISHED,) if self.fault == "eio" else (FINISHED, STOPPED)  # the next calls find no room either
        if self.fault == "eio" and not takes_room(call):
            return (FINISHED, STOPPED)  # what cannot be read is damaged: an old ledger leaves a gap, a snapshot ends it
        if self.fault in ("enospc", "torn") and not call.main_thread:
            return (FINISHED,)  # a commit holds until there is room
        return (STOPPED,)


def takes_room(call: Call) -> bool:
    return call.creates or call.name in _TAKES_ROOM


class Injector:
    """Lets calls pass up to one, and breaks that."""

    def __init__(self, point: Point) -> None:
        self._point = point
        self._seen = 0
        self._full = 0  # calls that will find no room
        self.hit = ""

    def __call__(self, call: Call) -> int | None:
        if not on_disk(call):
            return None
        index, self._seen = self._seen, self._seen + 1
        if self._full and takes_room(call):
            self._full -= 1
            return errno.ENOSPC
        if index != self._point.index:
            return None
        self.hit = same_every_time(call)
        if self._point.fault == "enospc":
            self._full = FULL_CALLS - 1
            return errno.ENOSPC
        if self._point.fault == "torn":
            self._full = FULL_CALLS
        return {"kill": KILL, "eio": errno.EIO, "short": HALF, "torn": HALF}[self._point.fault]


def same_every_time(call: Call) -> str:
    """A call as text, without the process id in names of temporary files."""
    return re.sub(r"\.\d+(-\w+)?\.tmp", ".PID.tmp", str(call))


def subjects(folder: Path) -> list[Subject]:
    """The lives to disturb, traced. What warms this process warms all that it forks."""
    small, mapped = Cycle(96, 3, SMALL), Cycle(16_600, 3, MAPPED)
    nothing, half_way = Place(folder / "nothing"), Place(folder / "half-way")
    for place in (nothing, half_way):
        place.folder.mkdir()
    assert live(mapped, half_way, upto=12) == FINISHED, half_way.log.read_text()
    found = [Subject(small, nothing), Subject(mapped, half_way)]
    gc.collect()
    gc.freeze()
    for number, subject in enumerate(found):
        subject.trace(Place(folder / f"traced-{number}"))
    return found


def points(found: list[Subject], faults: Iterable[str]) -> list[Point]:
    """Every call with every fault that it can meet."""
    numbered = [(subject, index) for subject in found for index in range(len(subject.calls))]
    every = (Point(n, *each, fault) for fault in faults for n, each in enumerate(numbered))
    return [point for point in every if point.applies]


def differences(point: Point, folder: Path) -> list[str]:
    """What is wrong after one fault; nothing, if all is well."""
    shutil.rmtree(folder, ignore_errors=True)
    place, injector = Place(folder), Injector(point)
    copy(point.subject.start, place)
    code = supervise(partial(live_noting, point.subject.cycle, place), place.folder, injector)
    expected_call = same_every_time(point.call)
    if injector.hit != expected_call:
        return [f"another call has this number now: {injector.hit}"]
    wrong = _wrong_code(point, code, place)
    report = folder / "report"
    judge = fork(partial(_written, report, partial(_judged, point.subject, place, gap=point.fault == "eio")))
    if code := wait(judge):
        return [*wrong, f"the next life ended with exit code {code}"]
    return [*wrong, *json.loads(report.read_text())]


def _written(report: Path, body: Callable[[], list[str]]) -> int:
    report.write_text(json.dumps(body()))
    return 0


def _wrong_code(point: Point, code: int, place: Place) -> list[str]:
    if code in point.ends_with:
        return []
    log = place.log.read_text() if place.log.exists() else ""
    return [f"the life ended with exit code {code}, not with one of {point.ends_with}: {log}"]


def _judged(subject: Subject, place: Place, *, gap: bool) -> list[str]:
    """Looks at what the fault has left, then lives on. Runs in a process of its own."""
    wrong = [f"after the fault: {line}" for line in damaged(place.state)] if place.state.exists() else []
    notes = (place.folder / "notes").read_text()
    durable = [line.split() for line in notes.splitlines() if line.startswith("durable")]
    if durable and LocalStore(place.state).checksum(int(durable[-1][1])) != durable[-1][2]:
        wrong.append(f"snapshot {durable[-1][1]} was durable and is not there")
    effects = place.effects() if place.world.exists() else {}
    wrong += [f"{name} should not be outside" for name in effects.keys() - subject.expected["world"].keys()]
    place.log.unlink(missing_ok=True)
    if live(subject.cycle, place) != FINISHED:
        return [*wrong, f"the next life ended: {place.log.read_text()}"]
    found, expected = outcome(place), subject.expected
    if gap and ["gap"] in found["ledger"]:
        expected = {name: value for name, value in expected.items() if name != "ledger"}
    wrong += differing(expected, found)
    return wrong + [f"at the end: {line}" for line in damaged(place.state)]


def run(
    folder: Path, faults: Iterable[str], number: int | None = None, *, sample: int = 1, enough: float = float("inf")
) -> dict[str, Any]:
    """Goes through the points, or those of one call, or every `sample`-th; up to `enough` differences."""
    began = time.monotonic()
    found = subjects(folder)
    every = [p for p in points(found, faults) if number is None or p.number == number][::sample]
    counts: Counter[str] = Counter()
    failed = []
    for point in every:
        if len(failed) >= enough:
            break
        counts[point.fault] += 1
        if wrong := differences(point, folder / "place"):
            failed.append(point)
            print(f"{point.fault} at {same_every_time(point.call)}\n    {point.command}", file=sys.stderr)
            for line in wrong:
                print(f"    {line[:2000]}", file=sys.stderr)
    return {
        "points": counts.total(),
        "calls": sum(len(subject.calls) for subject in found),
        "kills": counts["kill"],
        "eio": counts["eio"],
        "enospc": counts["enospc"],
        "short": counts["short"] + counts["torn"],
        "differences": len(failed),
        "seconds": round(time.monotonic() - began, 1),
    }


def scratch() -> str | None:
    """Memory, where there is some to put files in: no fault here needs a disk."""
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults.syscalls", description=__doc__.splitlines()[0])
    parser.add_argument("--fault", action="append", choices=FAULTS, help="only this one (repeatable)")
    parser.add_argument("--point", type=int, help="only the call with this number")
    parser.add_argument("-o", dest="output", choices=("json",), default="json", help="how to print the result")
    args = parser.parse_args(argv)
    if not SUPPORTED:
        parser.error("needs Linux on x86_64")
    logging.getLogger("evertrain").setLevel(logging.CRITICAL)  # that what is broken on purpose is so
    with tempfile.TemporaryDirectory(dir=scratch(), prefix="evertrain-syscalls-") as folder:
        report = run(Path(folder), args.fault or FAULTS, args.point)
    print(json.dumps(report))
    return 1 if report["differences"] else 0


if __name__ == "__main__":
    sys.exit(main())
