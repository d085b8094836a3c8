"""Kills a job at random instants until it has learned a stream, and compares it with one that was never killed.

    python -m tests.faults.kill --kills 10000 --seed 1
    python -m tests.faults.kill --real --kills 300

Each life is a process of its own: the real `execute`, with the real snapshots, store, release and registry, over
a stream in memory and a world (`tests.faults.world`) that no kill can roll back. SIGKILL hits the learner, its
releaser or both. Three of four runs read a backlog: their end must be, to the bit, that of the run never killed.
The fourth stands at a live head, where chance decides about spans, ticks and commands: its end must be that of a
clean run of its own ledger. `--real` does the first with Apache Kafka, an MLflow server and real processes.
"""

from __future__ import annotations

import os

os.environ["CUDA_VISIBLE_DEVICES"] = ""  # a process that has used CUDA, or asked for it, cannot be forked

import argparse
import ctypes
import gc
import json
import random
import select
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pipeline.run
from pipeline.ledger import Line
from pipeline.store import LocalStore
from tests.faults import stages
from tests.faults.life import Backlog, ForkedReleaser, Head, Ledger, live, move_in
from tests.faults.outcome import arrays, differences, ledger, outcome, uncovered
from tests.faults.scenario import Scenario
from tests.faults.world import World

RUNS_A_SCENARIO = 4
START_S = 0.03  # mean time to a kill of a life that may still be starting
LEARN_SHARE, LEARN_S_MAX = 0.12, 0.1  # likewise of one that has begun to learn, as a share of an undisturbed run
STARTS = 0.3  # share of the lives that may be killed before they begin to learn
LIVES_MAX = 3000
ENDED_S = 60.0  # a life that neither ends nor is to be killed
_PR_SET_CHILD_SUBREAPER = 36


class Harness:
    """Counts kills and keeps what is dear: the parent of all lives, and the straight runs."""

    def __init__(self, kills: int, seed: int, folder: Path) -> None:
        self.kills_left = kills
        self.seed = seed
        self.folder = folder
        self.kills: Counter[str] = Counter()
        self.landed: Counter[str] = Counter()
        self.runs = 0
        self.lives = 0
        self.failed: list[dict[str, Any]] = []
        self._learn_s = LEARN_S_MAX
        self._straight: tuple[tuple[int, bool], dict[str, Any]] = ((-1, False), {})
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1)  # releasers whose learner was killed are ours to bury
        move_in()
        stages.watch()

    def run_all(self) -> None:
        """Runs until all kills are spent; the last run still learns its stream."""
        while self.kills_left > 0:
            self.run(self.seed + self.runs)
            self.runs += 1

    def run(self, seed: int) -> None:
        """One stream learned to its end through its kills."""
        chance = random.Random(seed)
        at_head = seed % 4 == 3
        scenario = Scenario(seed // RUNS_A_SCENARIO, calm=at_head and seed % 8 == 7)
        folder = self.folder / str(seed)
        folder.mkdir()
        straight = self.straight(scenario)
        killed = Kept(scenario, folder / "killed")
        found = self._learn(killed, chance, at_head=at_head)
        if not found:
            found += self._check(killed, None if at_head else straight)
        if found:
            self.failed.append({"seed": seed, "kept": str(folder), "differences": found})
        else:
            shutil.rmtree(folder)

    def straight(self, scenario: Scenario) -> dict[str, Any]:
        """The outcome of the run never killed, made in this process: it warms what every life inherits."""
        key = scenario.seed, scenario.calm
        if self._straight[0] != key:
            kept = Kept(scenario, self.folder / "straight")
            handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)}
            began = time.monotonic()
            code = kept.live(Backlog)
            self._learn_s = min(LEARN_SHARE * (time.monotonic() - began), LEARN_S_MAX)
            code = code or kept.live(Backlog)  # this one has nothing to learn, but restores
            for number, handler in handlers.items():
                signal.signal(number, handler)
            assert code == 0, kept.log.read_text()
            self._straight = key, kept.outcome()
            shutil.rmtree(kept.folder)
            gc.freeze()
        return self._straight[1]

    def _learn(self, killed: Kept, chance: random.Random, *, at_head: bool) -> list[str]:
        """Lives and kills until all is learned and released. Returns what went wrong."""
        for number in range(LIVES_MAX):
            source = partial(Head, random.Random(chance.random())) if at_head else Backlog
            patience = 1.5 ** (number // 50)
            late_s = chance.choice((0.0, 0.1)) if self.kills_left > 0 else 0.0
            code = self._life(partial(killed.live, source, late_s), chance, patience)
            if code == 0:
                return []
            if code != -signal.SIGKILL:
                return [f"life {number} ended with exit code {code}: {killed.log.read_text()[-2000:]}"]
        return [f"not learned within {LIVES_MAX} lives"]

    def _life(self, body: Callable[[], int], chance: random.Random, patience: float) -> int:
        """One forked life, and a kill if it does not end before. Returns its exit code."""
        begun = stages.clear()
        self.lives += 1
        pid = _fork(body)
        descriptor = os.pidfd_open(pid)
        mean_s = START_S if (early := chance.random() < STARTS) else self._learn_s
        try:
            if not early:
                select.select([descriptor, begun], [], [], ENDED_S)
            while True:
                wait_s = chance.expovariate(1 / (mean_s * patience)) if self.kills_left > 0 else ENDED_S
                if select.select([descriptor], [], [], wait_s)[0]:
                    break
                if not self._kill(pid, chance):
                    break
            return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        finally:
            os.close(descriptor)
            self._bury()

    def _kill(self, learner: int, chance: random.Random) -> bool:
        """Kills the learner, its releaser or both. Returns whether the learner lives on."""
        assert self.kills_left > 0, f"life {learner} hangs"
        releaser = _child(learner)
        whom = chance.choices(("learner", "releaser", "both"), (6, 3, 1))[0] if releaser else "learner"
        for pid in {"learner": [learner], "releaser": [releaser], "both": [releaser, learner]}[whom]:
            os.kill(pid or learner, signal.SIGKILL)
        self.kills[whom] += 1
        self.kills_left -= 1
        if whom == "learner":  # what the memory says is what it was doing: it does nothing any more
            os.waitid(os.P_PID, learner, os.WEXITED | os.WNOWAIT)
        self.landed.update(f"{k}: {v}" for k, v in stages.seen().items() if whom in ("both", *_hit(k)))
        return whom == "releaser"

    def _bury(self) -> None:
        """Waits for releasers that died with their learner."""
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            pass

    def _check(self, killed: Kept, straight: dict[str, Any] | None) -> list[str]:
        if straight is None:
            replayed = Kept(killed.scenario, killed.folder.parent / "replayed")
            code = os.waitstatus_to_exitcode(os.waitpid(_fork(partial(replayed.replay, killed)), 0)[1])
            if code:
                return [f"the replay of its ledger ended with exit code {code}: {replayed.log.read_text()[-2000:]}"]
            straight = replayed.outcome() | {"ledger": replayed.ledger()}
            return differences(straight, killed.outcome() | {"ledger": killed.ledger()}) + killed.wrong_counts()
        return differences(straight, killed.outcome()) + killed.wrong_counts()

    def report(self) -> dict[str, Any]:
        return {
            "kills": sum(self.kills.values()),
            "runs": self.runs,
            "differences": len(self.failed),
            "seed": self.seed,
            "killed": dict(self.kills),
            "landed": dict(sorted(self.landed.items())),
            "failed": self.failed,
        }


class Kept:
    """A folder with a state directory, the world that it talks to, and a log."""

    def __init__(self, scenario: Scenario, folder: Path) -> None:
        folder.mkdir()
        self.scenario, self.folder = scenario, folder
        self.log = folder / "log"
        self.world = World(str(folder / "world"))
        self.job = scenario.job(folder / "state", folder / "world")
        self.store = LocalStore(folder / "state")

    def live(self, source: Callable[..., Any], releaser_late_s: float = 0.0) -> int:
        ForkedReleaser.late_s = releaser_late_s
        return live(self.scenario, self.job, source, self.log)

    def replay(self, killed: Kept) -> int:
        """A clean run of another's ledger, with its commits."""
        source = Ledger(killed.ledger(), self.scenario, self.job, lambda: None)
        pipeline.run.SnapshotCadence = lambda *_: source
        return self.live(lambda *_: source)

    def outcome(self) -> dict[str, Any]:
        return outcome(self.store, self.world)

    def ledger(self) -> list[Line]:
        return ledger(self.store)

    def wrong_counts(self) -> list[str]:
        """Offsets, by the ledger, and ids, by the counter inside the model, that were learned twice or never."""
        manifest = self.store.manifest(self.store.sequences()[-1])
        wrong = uncovered(self.ledger(), [log.end for log in self.scenario.logs.values()])
        counts = arrays(self.store, manifest).get("learner.module.counts")
        if counts is None:
            return wrong
        learned = {number for number, count in enumerate(counts) if number and count}
        if int(counts[1:].sum()) != manifest["rows_trained"]:
            wrong.append(f"{manifest['rows_trained']} rows trained, but the model has seen {int(counts[1:].sum())}")
        if self.scenario.calm and (learned != self.scenario.ids or counts[1:].max() > 1):
            lost, twice = sorted(self.scenario.ids - learned), [n for n in learned if counts[n] > 1]
            wrong.append(f"ids never learned: {lost}; more than once: {twice}; unknown: {learned - self.scenario.ids}")
        return wrong


def _fork(body: Callable[[], int]) -> int:
    pid = os.fork()
    if not pid:
        code = 70
        try:
            code = body()
        finally:
            os._exit(code)
    return pid


def _child(pid: int) -> int | None:
    """A process's youngest child, if it has one."""
    try:
        found = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return None
    return int(found[-1]) if found else None


def _hit(thread: str) -> tuple[str, ...]:
    """Who has to be killed to hit a thread: the releaser dies with its learner."""
    return ("learner", "releaser") if thread == "releaser" else ("learner",)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults.kill", description=__doc__.split("\n")[0])
    parser.add_argument("--kills", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--real", action="store_true", help="Apache Kafka, an MLflow server and real processes")
    parser.add_argument("--folder", type=Path, help="where state directories lie; one that differs stays there")
    parser.add_argument("-o", "--output", choices=("text", "json"), default="text")
    args = parser.parse_args(arguments)
    began = time.monotonic()
    folder = Path(tempfile.mkdtemp(prefix="kill-", dir=args.folder))
    harness = (_real() if args.real else Harness)(args.kills, args.seed, folder)
    harness.run_all()
    report = {**harness.report(), "seconds": round(time.monotonic() - began, 1)}
    if not harness.failed:
        shutil.rmtree(folder)
    print_report(report, args.output)
    return 1 if harness.failed else 0


def _real() -> Any:
    from tests.faults.real import RealHarness

    return RealHarness


def print_report(report: dict[str, Any], output: str) -> None:
    if output == "json":
        print(json.dumps(report))
        return
    print(", ".join(f"{report[name]:,} {name}" for name in ("kills", "runs", "differences", "seconds")))
    for where, count in report["landed"].items():
        print(f"  {count:7,} in {where}")
    for failed in report["failed"]:
        print(f"run {failed['seed']} differs; its state directories: {failed['kept']}")
        print(*(f"  {line}" for line in failed["differences"][:20]), sep="\n")
        print(f"  repeat it: python -m tests.faults.kill --kills 100 --seed {failed['seed']}")


if __name__ == "__main__":
    sys.exit(main())
