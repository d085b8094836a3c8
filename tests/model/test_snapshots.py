"""Snapshots as a machine: commits, crashes in the middle of them, damage, releases and rollbacks, in any order.

The oracle is the run that was never killed: its state after each entry, and its ledger. What a store holds is judged
from its bytes alone.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from contextlib import suppress
from dataclasses import replace
from functools import cache
from pathlib import Path
from threading import Event
from typing import Any, NamedTuple

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from consumers.codecs import build_codec
from consumers.errors import SnapshotError
from consumers.inmemory import InMemorySource
from consumers.record import Entry, Messages, Partition, Side
from pipeline.config import JobConfig, label_rule
from pipeline.image import Image
from pipeline.ledger import Line, unseal
from pipeline.recovery import chain
from pipeline.snapshot import Lineage, Snapshots
from pipeline.state import State, fresh_positions
from pipeline.store import LocalStore, Manifest, MemoryStore
from tests.records import Log, messages_of
from tests.stream import events, job
from tests.tiny import TinyLearner

ROWS = 400
CHANGES = ("put", "commit", "remove", "sync", "set_aside")


@cache
def config() -> JobConfig:
    """Small enough for slabs to fill, be evicted and be dropped, and for anchors and versions to come often."""
    return job(
        Path("unused"),
        features={"numeric": ["n", "a", {"name": "b", "nullable": True}]},
        join={"window": "100ms", "memory": "12KiB", "slab_rows": 32, "on_expiry": "negative"},
        stream={"span": 16},
        learner={"batch_size": 16},
        monitor={"every": "50 rows", "window": 100, "reference_rows": 100, "frozen_after": 60},
        snapshot={"anchor_every": "100 rows"},
        registry={"register_every": "90 rows"},
    )


def topics() -> dict[Partition, Messages]:
    """Two partitions of each topic; every 37th record is bad."""
    found: dict[Partition, Log] = {}
    for topic, records in zip((config().features.topic, config().labels.topic), events(ROWS), strict=True):
        for number in (0, 1):
            found[Partition(topic, number)] = Log()
        for count, record in enumerate(records):
            log = found[Partition(topic, int((record.key or b"")[1:]) % 2)]
            bad = replace(record, value=b"{")
            log.append(record if count % 37 else bad, len(log) + len(log) // 9)  # every tenth offset holds no message
    return messages_of(found)


TOPIC_IDS = {"t.features": "F", "t.labels": "L"}


class Straight(NamedTuple):
    """The run that was never killed: `digests[n]` is its state after n entries; `lines[n]` is what entry n logs."""

    starts: dict[Partition, int]
    entries: list[Entry]
    digests: list[str]
    lines: list[list[Line]]


def new_state(starts: dict[Partition, int]) -> State:
    return State(config(), fresh_positions(starts), TinyLearner(config()))


def apply(state: State, entry: Entry) -> None:
    for batch in state.apply(entry):
        state.observe(batch, state.learner.step(batch))


def digest(state: State) -> str:
    image = Image.of(state, TOPIC_IDS)
    found = hashlib.sha256(json.dumps([image.document, image.cursor]).encode())
    slabs = {f"{view.side}.{view.number}.{name}": c for view in image.slabs for name, c in view.columns.items()}
    for name, array in (image.arrays | slabs).items():
        found.update(f"{name} {array.dtype} {array.shape}".encode() + array.tobytes())
    return found.hexdigest()


@cache
def straight() -> Straight:
    sides = {config().features.topic: Side.FEATURES, config().labels.topic: Side.LABELS}
    tables = (config().features, config().labels)
    codecs = {table.topic: build_codec(table, label_rule(config().learner)) for table in tables}
    found = topics()
    starts = dict.fromkeys(found, 0)
    state = new_state(starts)
    run = Straight(starts, [], [digest(state)], [])
    for entry in InMemorySource(found, codecs, sides, config().stream).entries(state.positions):
        logged = len(state.ledger)
        apply(state, entry)
        run.entries.append(entry)
        run.lines.append(state.ledger[logged:])
        if state.owed.version_due:
            state.seal()  # as the commit does that is due at once
        run.digests.append(digest(state))
    return run


class Killed(Exception):  # noqa: N818 - it is what happens
    """The trainer dies."""


class Mortal:
    """A store whose trainer dies before one of its changes, once `left` is set, and whose disk waits for `ready`."""

    def __init__(self, store: LocalStore | MemoryStore) -> None:
        self._store = store
        self.left: int | None = None
        self.ready = Event()
        self.ready.set()

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._store, name)
        return method if name not in CHANGES else lambda *arguments: self._change(method, *arguments)

    def _change(self, method: Any, *arguments: Any) -> Any:
        self.ready.wait()
        if self.left is not None:
            if self.left == 0:
                raise Killed
            self.left -= 1
        return method(*arguments)


class Files:
    """What a store holds, as bytes by name: "blobs/..." and "snapshots/000000000005.json"."""

    def __init__(self, store: LocalStore | MemoryStore) -> None:
        self._store = store

    def read(self) -> dict[str, bytes]:
        if isinstance(self._store, LocalStore):
            paths = [path for path in self._store.path.glob("*/*") if not path.name.endswith((".tmp", ".bad"))]
            return {f"{path.parent.name}/{path.name}": path.read_bytes() for path in paths}
        manifests = {f"snapshots/{number:012}.json": data for number, data in self._store._manifests.items()}
        return manifests | {f"blobs/{name}": data for name, data in self._store._blobs.items()}

    def write(self, name: str, data: bytes | None) -> None:
        folder, _, leaf = name.partition("/")
        if isinstance(self._store, LocalStore):
            path = self._store.path / name
            path.unlink() if data is None else path.write_bytes(data)
            return
        table, key = (self._store._blobs, leaf) if folder == "blobs" else (self._store._manifests, int(leaf[:12]))
        if data is None:
            del table[key]
        else:
            table[key] = data


def manifests_in(files: dict[str, bytes]) -> dict[int, Manifest]:
    """The manifests that are what they were when they were written."""
    found = {}
    for name, data in files.items():
        checksum, _, body = data.partition(b"\n")
        if name.startswith("snapshots/") and hashlib.sha256(body.removesuffix(b"\n")).hexdigest().encode() == checksum:
            found[int(name[10:22])] = json.loads(body)
    return found


def sound(files: dict[str, bytes]) -> dict[int, Manifest]:
    """Those whose state is, too."""
    good = {name for name, data in files.items() if name == f"blobs/{hashlib.sha256(data).hexdigest()}"}
    return {number: manifest for number, manifest in manifests_in(files).items() if state_of(manifest) <= good}


def state_of(manifest: Manifest) -> set[str]:
    blobs = manifest["blobs"]
    return {f"blobs/{sha256}" for sha256 in (blobs["arrays"], blobs["document"], *(s for _, _, s in blobs["slabs"]))}


def blobs_of(manifest: Manifest) -> set[str]:
    others = (manifest["blobs"]["ledger"], *manifest["owed"].values())
    return state_of(manifest) | {f"blobs/{sha256}" for sha256 in others if sha256}


class SnapshotMachine(RuleBasedStateMachine):
    """A trainer that lives and dies over a store that outlives it."""

    folder: str | None = None

    @initialize(local=st.booleans())
    def begin(self, local: bool) -> None:
        self.folder = tempfile.mkdtemp(prefix="snapshots-")
        self.store = LocalStore(Path(self.folder)) if local else MemoryStore()
        self.files = Files(self.store)
        self.released = -1
        self.written: dict[int, Manifest] = {}  # every manifest that was ever seen
        self.taken_at: dict[int, int] = {}  # how many entries a snapshot holds
        self.whole_from = 0  # where the trainer last went back to: of what lies before, more may be collected
        self.start()

    def new_life(self) -> None:
        self.alive = True
        self.mortal = Mortal(self.store)
        self.snapshots = Snapshots(self.mortal, config(), on_durable=lambda _: None, released=lambda: self.released)

    def start(self) -> None:
        """A new life, from the newest snapshot that is sound."""
        self.new_life()
        manifest = self.snapshots.newest(self.released)
        if manifest is None:
            self.at, self.state = 0, new_state(straight().starts)
            self.snapshots.begin(Lineage.begin("cluster", TOPIC_IDS, straight().starts), self.state)
            self.taken_at[self.snapshots.sequence] = 0
        else:
            assert manifest["sequence"] == max(sound(self.files.read()))
            self.restore(manifest)

    def restore(self, manifest: Manifest) -> None:
        self.state = self.snapshots.restore(manifest, TinyLearner(config()))
        self.at = self.taken_at[manifest["sequence"]]
        files = self.files.read()
        named = {name for each in manifests_in(files).values() for name in blobs_of(each)}
        assert {name for name in files if name.startswith("blobs/")} <= named, "what a crash left is still there"

    def promised(self, manifests: dict[int, Manifest]) -> set[int]:
        """Snapshots that are kept as a whole: the newest and the anchors."""
        anchors = {number for number, manifest in manifests.items() if manifest["anchor"] is not None}
        return anchors | {number for number in sorted(manifests)[-3:] if number >= self.whole_from}

    def has_its_ledger(self, manifest: Manifest) -> bool:
        """Whether all lines up to a snapshot are there."""
        try:
            return all(self.store.get(link["blobs"]["ledger"]) for link in chain(self.store, manifest))
        except SnapshotError:
            return False

    def die(self) -> dict[str, bytes]:
        """The trainer is gone; what it leaves behind keeps every promise."""
        self.alive = False
        self.mortal.ready.set()
        self.snapshots.close()
        files = self.files.read()
        manifests = manifests_in(files)
        for number, data in manifests.items():
            assert self.written.setdefault(number, data) == data, "a number was used twice"
        found = sound(files)
        assert self.promised(manifests) <= found.keys(), "not all of a snapshot that is kept is there"
        for number, manifest in manifests.items():
            if number > self.released:
                assert all(f"blobs/{sha256}" in files for sha256 in manifest["owed"].values() if sha256)
        links = list(chain(self.store, found[max(found)]))[::-1]
        lines = [line for link in links for line in unseal(self.store.get(link["blobs"]["ledger"]))]
        logged = [line for line in lines if line[0] != "snapshot"]
        assert logged == [line for each in straight().lines[: self.taken_at[max(found)]] for line in each]
        return files

    def commit(self) -> None:
        self.mortal.ready.set()  # a commit waits for the one before
        self.taken_at[self.snapshots.sequence + 1] = self.at
        self.snapshots.commit(self.state)

    @rule(count=st.integers(1, 12))
    def learn(self, count: int) -> None:
        for entry in straight().entries[self.at : self.at + count]:
            apply(self.state, entry)
            self.at += 1
            if self.state.owed.version_due:
                self.commit()

    @rule(count=st.integers(1, 12))
    def learn_while_a_snapshot_is_written(self, count: int) -> None:
        self.snapshots.wait()
        self.mortal.ready.clear()
        self.taken_at[self.snapshots.sequence + 1] = self.at
        self.snapshots.commit(self.state)
        self.learn(count)
        self.mortal.ready.set()

    @rule()
    def take_a_snapshot(self) -> None:
        self.commit()

    @rule()
    def release_all(self) -> None:
        self.snapshots.wait()
        self.released = max(manifests_in(self.files.read()))

    @rule(changes=st.integers(0, 9))
    def die_while_committing(self, changes: int) -> None:
        self.snapshots.wait()
        self.mortal.left = changes
        with suppress(Killed):
            self.commit()
            self.snapshots.wait()
        self.die()
        self.start()

    @rule(changes=st.integers(0, 4))
    def die_again_while_starting(self, changes: int) -> None:
        self.die()
        self.new_life()
        self.mortal.left = changes
        with suppress(Killed):
            self.restore(self.snapshots.newest(self.released))
        self.die()
        self.start()

    @rule(data=st.data(), how=st.sampled_from(["flip", "cut", "delete"]), of_manifest=st.booleans())
    def die_and_find_damage(self, data: st.DataObject, how: str, of_manifest: bool) -> None:
        before = self.die()
        newest = max(manifests_in(before))
        names = [f"snapshots/{newest:012}.json"]
        if not of_manifest:
            names = sorted(state_of(manifests_in(before)[newest]))
        name = data.draw(st.sampled_from(names))
        place = data.draw(st.integers(0, len(before[name]) - 1))
        flipped = before[name][:place] + bytes([before[name][place] ^ 1]) + before[name][place + 1 :]
        self.files.write(name, {"flip": flipped, "cut": before[name][:place], "delete": None}[how])
        damaged = self.files.read()
        if name not in damaged:
            self.written.pop(newest, None)  # nobody can know of it any more
        good = sound(damaged)
        nothing_left = not any(each.startswith("snapshots/") for each in damaged)
        if max(good, default=-1) < self.released or not (good or nothing_left):
            with pytest.raises(SnapshotError):
                self.start()
            assert self.files.read() == damaged, "nothing is touched where only the user can decide"
            if good and data.draw(st.booleans()):
                self.go_back_to(max(good))
                return
            self.files.write(name, before[name])  # from a backup
        elif good and not self.has_its_ledger(good[max(good)]):
            assert max(good) not in self.promised(manifests_in(before))
            self.files.write(name, before[name])  # only its state was still there: that of a newer one that is kept
        self.start()
        self.whole_from = max(sound(self.files.read()))

    def go_back_to(self, sequence: int) -> None:
        """As `--rollback-to` does."""
        self.new_life()
        manifest = self.snapshots.roll_back(sequence, self.released)
        self.whole_from = sequence
        self.restore(manifest)
        self.snapshots.lineage = Lineage.of(manifest).rolled_back()
        self.commit()
        self.snapshots.wait()
        assert self.snapshots.sequence > self.released, "its effects would count as released"

    @rule(data=st.data())
    def roll_back(self, data: st.DataObject) -> None:
        files = self.die()
        sequence = data.draw(st.sampled_from(sorted(self.promised(manifests_in(files)))))
        self.go_back_to(sequence)

    @invariant()
    def the_state_is_that_of_the_run_never_killed(self) -> None:
        if self.folder:
            assert digest(self.state) == straight().digests[self.at]

    def teardown(self) -> None:
        if self.folder and self.alive:
            self.learn(len(straight().entries))
            self.the_state_is_that_of_the_run_never_killed()
            self.commit()
            self.die()
        if self.folder:
            shutil.rmtree(self.folder)


TestSnapshots = SnapshotMachine.TestCase
TestSnapshots.settings = settings(max_examples=25, stateful_step_count=30, deadline=None)


def test_the_run_meets_everything_that_a_snapshot_must_not_forget() -> None:
    state = new_state(straight().starts)
    for entry in straight().entries:
        apply(state, entry)
    totals = state.counts()["totals"]
    for fate in ("matched", "rejected", "expired", "late", "orphan", "evicted"):
        assert totals[fate], fate
    assert state.learner.frozen is not None
    assert len(set(straight().digests)) > len(straight().entries) / 2 > 20


def test_a_new_beginning_beside_what_was_set_aside_uses_a_number_of_its_own() -> None:
    store = MemoryStore()
    for expected in (0, 1):
        snapshots = Snapshots(store, config(), on_durable=lambda _: None, released=lambda: -1)
        assert snapshots.newest() is None
        snapshots.begin(Lineage.begin("cluster", TOPIC_IDS, straight().starts), new_state(straight().starts))
        assert store.sequences() == [expected]
        store.set_aside(expected)
