"""Drops one field of S at a time from a snapshot: a run that goes on from it must not come out the same.

    python -m tests.faults.forget

A dropped field has the value that it has in a new state. Only what can be seen from outside counts: weights, counts,
metrics, versions, dead letters, the place in the topics, a hold. A field that is never missed need not be stored.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import time
from bisect import bisect_left
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, islice
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
from safetensors.numpy import load, save

from consumers.errors import EvertrainError, TooMuchBadInput
from consumers.record import Command, Entry
from pipeline import history
from pipeline.config import JobConfig
from pipeline.image import weights_sha256
from pipeline.learner import Learner
from pipeline.snapshot import Lineage, Snapshots
from pipeline.state import State, fresh_positions
from pipeline.store import MemoryStore, encode_manifest
from pipeline.train import learn
from tests.faults.life import Backlog
from tests.faults.outcome import MANIFEST, differences
from tests.faults.scenario import SMALL_MLP, Scenario
from tests.records import messages_of

SEEN = set(MANIFEST) - {"state_sha256", "cursor"}
WHERE = {"topic", "topic_id", "partition"}  # a cursor's line has these, and the fields of a position
DRIFT = re.compile(r"monitor\.(delay_)?(adwin|drift|inputs|input_means|outcomes|outcome_means|psi|reference)\.")
SLABS = re.compile(r"slab\.(\d+)\.\d+\.(\w+)")
ERRORS = (EvertrainError, KeyError, ValueError, AssertionError, RuntimeError, IndexError)


@dataclass
class Story:
    """A stream, and where its job is killed: after `cut` entries and a `register`. Another `register` comes after.

    `until`: record times at which the topics ended when it was killed, and when it ends.
    """

    name: str
    scenario: Scenario
    cut: int | None = None
    accept_bad: int = 0
    until: tuple[int, int] = (2**62, 2**62)

    @cached_property
    def job(self) -> JobConfig:
        return self.scenario.job(Path("unused"), Path("unused"))

    @cached_property
    def store(self) -> MemoryStore:
        """What the kill has left: the first snapshot and the last one."""
        store = MemoryStore()
        snapshots = self._snapshots(store)
        state = State(self.job, fresh_positions(dict.fromkeys(self.scenario.topics, 0)), Learner(self.job))
        topics = {p.topic: "id" for p in self.scenario.topics}
        snapshots.begin(Lineage.begin("cluster", topics, dict.fromkeys(self.scenario.topics, 0)), state)
        first = [Command("accept_bad", self.accept_bad)] if self.accept_bad else []
        for entry in chain(first, islice(self._entries(state, self.until[0]), self.cut), [Command("register")]):
            learn(state, entry)
        snapshots.commit(state)
        snapshots.wait()
        return store

    @cached_property
    def expected(self) -> dict[str, Any]:
        """How the run ends that forgets nothing: one that takes its snapshot apart and puts it together again."""
        first, again = (self.end(Parts(self.store, 1).write(self.store)) for _ in range(2))
        assert "ended" not in first, first
        assert first == again, differences(first, again)
        return first

    def end(self, store: MemoryStore) -> dict[str, Any]:
        """What is seen of a run from its newest snapshot on."""
        try:
            return self._go_on(store)
        except ERRORS as error:
            return {"ended": f"{type(error).__name__}: {error}"}

    def _go_on(self, store: MemoryStore) -> dict[str, Any]:
        snapshots = self._snapshots(store)
        manifest = snapshots.newest()
        assert manifest is not None
        state = snapshots.restore(manifest, Learner(self.job))
        shown: dict[str, list[Any]] = {"letters": [], "points": [], "versions": [], "held": [], "ledger": []}
        for entry in chain([Command("register")], self._entries(state, self.until[1])):
            try:
                learn(state, entry)
            except TooMuchBadInput as error:
                shown["held"].append(str(error))
                break
            if state.owed.version_due:
                weights = weights_sha256(state.learner.weights())
                held = state.trained < state.held_until
                shown["versions"].append(
                    [state.trained, state.trained_ms, weights, held, state.history.document()["points"]]
                )
                self._commit(snapshots, state, shown)
        self._commit(snapshots, state, shown)
        snapshots.wait()
        manifest = store.manifest(store.sequences()[-1])
        reached = [position.next for position in state.positions.values()]
        alarms = json.loads(store.get(manifest["blobs"]["document"]))["monitor"]["alarms"]
        return {"reached": reached, **shown, "all alarms": alarms, **{name: manifest[name] for name in SEEN}}

    def _commit(self, snapshots: Snapshots, state: State, shown: dict[str, list[Any]]) -> None:
        shown["letters"] += [letter.rejects.to_pylist() for letter in state.owed.letters]
        shown["points"] += state.owed.points
        shown["ledger"] += state.ledger
        snapshots.commit(state)

    def _entries(self, state: State, until: int) -> Iterator[Entry]:
        source = Backlog(self.scenario, self.job, lambda: None)
        source.topics = {p: m.part(0, bisect_left(m.timestamp_N, until)) for p, m in self.scenario.topics.items()}
        return source.entries(state.positions)

    def _snapshots(self, store: MemoryStore) -> Snapshots:
        return Snapshots(store, self.job, on_durable=lambda _: None, released=lambda: 10**9)


class Parts:
    """One snapshot taken apart."""

    def __init__(self, store: MemoryStore, sequence: int) -> None:
        self.manifest = store.manifest(sequence)
        blobs = self.manifest["blobs"]
        self.document = json.loads(store.get(blobs["document"]))
        self.arrays = load(store.get(blobs["arrays"]))
        self.slabs = [load(store.get(sha256)) for _, _, sha256 in blobs["slabs"]]
        self._full = [f"slab.{side}.{number}." for side, number, _ in blobs["slabs"]]

    def fields(self) -> dict[str, list[Any]]:
        """Every field, and the arrays, or the keys of the document, that it is made of."""
        found: dict[str, list[Any]] = {}
        for name in self._all():
            if not DRIFT.match(name):
                found.setdefault(_field(name), []).append(name)
        found = {field: names for field, names in found.items() if any(self._all()[name].size for name in names)}
        for key, value in self.document.items():
            for inner in value if isinstance(value, dict) else [None]:
                found[f"document: {key}" + (f".{inner}" if inner else "")] = [key, inner]
        return found | {f"cursor: {name}": [name] for name in self.manifest["cursor"][0].keys() - WHERE}

    def forget(self, field: str, new: Parts) -> bool:
        """Gives a field the value it has in a new state. Returns whether that is another one."""
        before = self._content()
        parts = self.fields()[field]
        if field.startswith("cursor: "):
            for line, line_then in zip(self.manifest["cursor"], new.manifest["cursor"], strict=True):
                line[parts[0]] = line_then[parts[0]]
        elif field.startswith("document: "):
            key, inner = parts
            if inner is None:
                self.document[key] = new.document[key]
            else:
                self.document[key][inner] = new.document[key][inner]
        else:
            self._forget_arrays(parts, new)
        return self._content() != before

    def write(self, store: MemoryStore) -> MemoryStore:
        """A copy of `store` with this snapshot in place of its own."""
        copy = MemoryStore()
        copy._blobs, copy._taken = dict(store._blobs), store._taken
        blobs = self.manifest["blobs"]
        blobs["document"] = copy.put([json.dumps(self.document).encode()])
        blobs["arrays"] = copy.put([save(self.arrays)])
        for entry, slab in zip(blobs["slabs"], self.slabs, strict=True):
            entry[2] = copy.put([save(slab)])
        copy._manifests = store._manifests | {self.manifest["sequence"]: encode_manifest(self.manifest)}
        return copy

    def _all(self) -> dict[str, Any]:
        return self.arrays | {f + n: a for f, slab in zip(self._full, self.slabs, strict=True) for n, a in slab.items()}

    def _content(self) -> Any:
        arrays = {name: array.tobytes() for name, array in self._all().items()}
        return json.dumps([self.manifest["cursor"], self.document]), arrays

    def _forget_arrays(self, names: list[str], new: Parts) -> None:
        for prefix, arrays in [("", self.arrays), *zip(self._full, self.slabs, strict=True)]:
            for name in set(names) & {prefix + n for n in arrays}:
                array = arrays[name.removeprefix(prefix)]
                if name.startswith("learner.frozen."):
                    del arrays[name]  # it was not taken yet
                elif name in new.arrays and new.arrays[name].shape == array.shape:
                    arrays[name] = new.arrays[name]
                else:
                    arrays[name.removeprefix(prefix)] = np.zeros_like(array)


def _field(name: str) -> str:
    if slab := SLABS.fullmatch(name):
        return f"slabs of {('features', 'labels')[int(slab[1])]}: {slab[2]}"
    if name.startswith("learner.optimizer."):
        return f"learner.optimizer: {name.rpartition('.')[2]}"
    return ".".join(name.split(".")[:2]) if name.startswith("learner.") else name


def stories() -> Iterator[Story]:
    """Each with something that the others lack."""
    for seed in (0, 5, 2, 3, 9, 13, 17, 1):
        scenario = Scenario(seed)
        entries = sum(map(len, scenario.topics.values())) // scenario.tables["stream"]["span"]
        for share in (0.5, 0.8):
            yield Story(f"{scenario.task}, seed {seed}, {share:.0%}", scenario, int(share * entries))
    scenario = _silent_partition()
    (silent, loud), end = scenario.silence, 2**62
    yield Story("killed when a partition was idle", scenario, until=((silent + loud) // 2, end))
    yield Story("killed before a partition comes back", scenario, until=(loud, end))
    yield Story("killed before a partition is idle", scenario, until=(silent + 10, loud))
    for seed in (5, 2):
        yield Story(f"labels that come minutes late, seed {seed}", _slow_labels(seed), 30)
    yield Story("an alarm over scores that wait to be booked", Scenario(5), 23)
    yield Story("killed while rows of short spans waited for their scores", Scenario(5), 45)
    for seed, cut in ((5, 180), (17, 384)):
        yield Story(f"labels that come later than before, seed {seed}", _later_labels(seed), cut)
    yield Story("an optimizer with numbers in its state", _numbers(), 20)
    for cut in (6, 20):
        yield Story(f"a broken producer, {cut} entries", _broken_producer(), cut, accept_bad=40)


def _silent_partition() -> Scenario:
    """A partition is idle for a time, and then brings events of that time: late, by what others brought."""
    scenario = Scenario(4)
    scenario.tables["stream"] |= {"idle_after": "100ms", "labels_may_idle": True}
    scenario.tables["join"]["window"] = "120ms"
    log, (silent, loud) = next(iter(scenario.logs.values())), scenario.silence
    first = bisect_left(log.timestamps, loud)
    for index in range(first, first + 10):
        old = b'"ts":%d' % (silent + 20)
        log.values[index] = re.sub(rb'"ts":\d+', old, log.values[index] or b"")
    scenario.topics = messages_of(scenario.logs)
    return scenario


def _slow_labels(seed: int) -> Scenario:
    """Labels are of the same second as their features, or of two minutes later; the window is wide."""
    return _delayed(Scenario(seed), lambda labels: slice(0, labels, 2))


def _later_labels(seed: int) -> Scenario:
    """Labels are of the same second as their features, and in the last quarter of two minutes later."""
    scenario = Scenario(seed, rows=(4000, 4001))
    scenario.tables["monitor"] |= {"settle_rows": 128}
    return _delayed(scenario, lambda labels: slice(3 * labels // 4, labels))


def _delayed(scenario: Scenario, those: Callable[[int], slice]) -> Scenario:
    scenario.tables["join"] |= {"window": "20m", "memory": "1MiB"}
    for log in (log for partition, log in scenario.logs.items() if partition.topic == "t.labels"):
        for index in range(*those(len(log.values)).indices(len(log.values))):
            value = log.values[index] or b""
            log.values[index] = re.sub(rb'"ts":(\d+)', lambda at: b'"ts":%d' % (int(at[1]) + 120_000), value) or None
    scenario.topics = messages_of(scenario.logs)
    return scenario


def _numbers() -> Scenario:
    scenario = Scenario(1)
    scenario.tables["join"]["on_expiry"] = "drop"
    scenario.tables["learner"] |= {**SMALL_MLP, "task": "tests.tasks:SlowingTask"}
    return scenario


def _broken_producer() -> Scenario:
    scenario = Scenario(4)
    scenario.tables["stream"]["span"] = 16
    scenario.tables["dead_letters"] |= {"hold_window": 150, "hold_share": 0.2}
    log = next(iter(scenario.logs.values()))
    log.values[40:] = [b"garbage"] * len(log.values[40:])
    scenario.topics = messages_of(scenario.logs)
    return scenario


def examine() -> Iterator[tuple[str, str | None]]:
    """Each field of S, and what missed it: None if nothing did.

    What looks for drift needs longer streams: of its own state tests/unit/test_families.py shows the same.
    """
    told = list(stories())
    with patch.object(history, "POINTS_MAX", 4):  # so that these short runs have more
        fields = dict.fromkeys(field for story in told for field in Parts(story.store, 1).fields())
        for field in fields:
            yield field, next((missed for story in told if (missed := _missed(story, field))), None)


def _missed(story: Story, field: str) -> str | None:
    parts, new = Parts(story.store, 1), Parts(story.store, 0)
    if field not in parts.fields() or not parts.forget(field, new):
        return None
    found = story.end(parts.write(story.store))
    wrong = differences(story.expected, found)
    return f"{found.get('ended') or wrong[0]} ({story.name})" if wrong else None


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults.forget", description=__doc__.split("\n")[0])
    parser.add_argument("-o", "--output", choices=("text", "json"), default="text")
    args = parser.parse_args(arguments)
    began, results = time.monotonic(), {}
    for field, missed in examine():
        results[field] = missed
        if args.output == "text":
            print(f"{'caught' if missed else 'NOT CAUGHT':10}  {field:40}  {missed or ''}"[:180], flush=True)
    unmissed = [field for field, missed in results.items() if not missed]
    if args.output == "json":
        seconds = round(time.monotonic() - began, 1)
        print(json.dumps({"fields": len(results), "not_caught": unmissed, "caught": results, "seconds": seconds}))
    return 1 if unmissed else 0


if __name__ == "__main__":
    sys.exit(main())
