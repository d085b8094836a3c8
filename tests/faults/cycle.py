"""A small job without torch, Kafka and MLflow, which starts, learns, commits, collects and releases in 0.2 s.

Snapshots, store, fence, recovery and status file are the real ones; the outside world is a directory.
"""

from __future__ import annotations

import json
import os
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

import pipeline.snapshot
from consumers.codecs import build_codec
from consumers.errors import EvertrainError, SnapshotError
from consumers.inmemory import InMemorySource
from consumers.record import Entry, Messages, Partition, Side, Span, Wait
from pipeline.config import JobConfig, label_rule
from pipeline.fence import hold
from pipeline.ledger import Line, unseal
from pipeline.recovery import chain
from pipeline.releaser import read_marker, released, replace_file
from pipeline.snapshot import Lineage, Snapshots
from pipeline.state import State, fresh_positions
from pipeline.store import LocalStore, Manifest
from pipeline.telemetry import StatusFile
from pipeline.train import learn
from tests.faults.supervise import Call
from tests.stream import events, job
from tests.tiny import TinyLearner

FINISHED, STOPPED, BROKEN = 0, 1, 70  # exit codes of a life: all learned; an error that says what to do; a defect

pipeline.snapshot._RETRY_S = 0.0  # a full disk has room again at the next attempt, or not: nobody waits here


@dataclass
class Cycle:
    """A stream of both topics, cut into entries, and the job that learns it: so many entries a snapshot."""

    rows: int
    entries_a_commit: int
    tables: dict[str, Any]
    topics: dict[Partition, Messages] = field(default_factory=dict, repr=False)
    entries: list[Entry] = field(default_factory=list, repr=False)

    def __post_init__(self) -> None:
        features, labels = events(self.rows, delay_mean=self.rows / 10)
        for topic, records in (("t.features", features), ("t.labels", labels)):
            values = [b"garbage" if n % (self.rows // 6) == 7 else record.value for n, record in enumerate(records)]
            stamps, keys = [record.timestamp for record in records], [record.key for record in records]
            self.topics[Partition(topic, 0)] = Messages.of(range(len(records)), stamps, keys, values)
        config = self.job(Path("unused"))
        sides = {"t.features": Side.FEATURES, "t.labels": Side.LABELS}
        assert config.labels is not None
        codecs = {c.topic: build_codec(c, label_rule(config.learner)) for c in (config.features, config.labels)}
        source = InMemorySource(self.topics, codecs, sides, config.stream)
        learner: Any = TinyLearner(config, self.rows + 1)
        state = State(config, fresh_positions(dict.fromkeys(self.topics, 0)), learner)
        for entry in source.entries(state.positions):  # the source goes by what was applied
            assert not isinstance(entry, Wait), entry
            self.entries.append(entry)
            learn(state, entry)

    def job(self, state_dir: Path) -> JobConfig:
        columns = {"numeric": ["n", "a", {"name": "b", "nullable": True}]}
        return job(state_dir, **{"features": columns, **self.tables})

    def rest(self, state: State) -> list[tuple[int, Entry]]:
        """What was not applied yet, numbered."""
        numbered = list(enumerate(self.entries, 1))
        return [(n, e) for n, e in numbered if not isinstance(e, Span) or e.start >= state.positions[e.partition].next]


MAPPED = {
    "join": {"window": "1h", "memory": "1500KiB", "slab_rows": 4096},
    "stream": {"span": 2048},
    "learner": {"batch_size": 1024},
    "monitor": {"every": "4000 rows", "window": 1000, "reference_rows": 2000, "frozen_after": 2000},
    "snapshot": {"anchor_every": "6000 rows"},
    "registry": {"register_every": "5000 rows"},
    "on_drift": {"webhook": "http://nobody"},
}
"""Slabs that are mapped from their files: the memory has room for three of each side."""

SMALL = {
    "join": {"window": "1h", "memory": "1MiB", "slab_rows": 64},
    "stream": {"span": 32},
    "learner": {"batch_size": 16},
    "monitor": {"every": "50 rows", "window": 100, "reference_rows": 100, "frozen_after": 32},
    "snapshot": {"anchor_every": "40 rows"},
    "registry": {"register_every": "80 rows"},
    "on_drift": {"webhook": "http://nobody"},
}
"""Snapshots of a few kilobytes, for thousands of them."""

OWED = {"dead_letters": "dead_letters", "metrics": "points", "registry": "version", "alarms": "alarms"}
"""Sinks, and under which name a snapshot owes them something."""

Note = Callable[[str], None]
"""Hears of `durable SEQUENCE CHECKSUM`, a commit has returned, of `release SEQUENCE CHECKSUM`, and of both ends of what
the releaser does, which is a process of its own: `releaser begins`, `releaser ends`."""

_RELEASER_STARTS_MAX = 5


@dataclass(frozen=True)
class Place:
    """Where a job lives: its state, and the world outside, which no fault touches."""

    folder: Path

    @property
    def state(self) -> Path:
        return self.folder / "state"

    @property
    def world(self) -> Path:
        return self.folder / "world"

    @property
    def log(self) -> Path:
        return self.folder / "log"

    def effects(self) -> dict[str, str]:
        """All that was done outside, by id."""
        return {str(p.relative_to(self.world)): p.read_text() for p in self.world.rglob("*") if p.is_file()}


def live(cycle: Cycle, place: Place, *, upto: int | None = None, note: Note = lambda _: None) -> int:
    """One life of the job, from its start to the end of the stream or the entry `upto`. Returns its exit code."""
    try:
        with hold(place.state) as fence:
            Life(cycle, place, fence.check, note).run(upto)
        return FINISHED
    except (EvertrainError, OSError):
        place.log.write_text(traceback.format_exc())
        return STOPPED
    except BaseException:
        place.log.write_text(traceback.format_exc())
        return BROKEN


def live_noting(cycle: Cycle, place: Place) -> int:
    """A life whose notes can be seen by who supervises its folder."""
    with (place.folder / "notes").open("a", buffering=1) as notes:
        return live(cycle, place, note=lambda line: print(line, file=notes))


def on_disk(call: Call) -> bool:
    """Whether a call in a job's folder is about the state directory, or the folder that it is in."""
    return call.path in ("", "state") or call.path.startswith("state/")


def noted(call: Call) -> list[str]:
    """What a call notes."""
    return call.data().decode().splitlines() if call.path == "notes" and call.size else []


class Life:
    """What `open_run` opens, without Kafka and with a releaser that takes its turn after each snapshot."""

    def __init__(self, cycle: Cycle, place: Place, fence: Callable[[], None], note: Note = lambda _: None) -> None:
        self._cycle, self._place, self._note = cycle, place, note
        self._job = cycle.job(place.state)
        self._store = LocalStore(place.state)
        self._snapshots = Snapshots(
            self._store,
            self._job,
            on_durable=lambda sequence: note(f"durable {sequence} {self._store.checksum(sequence)}"),
            released=lambda: released(place.state),
            fence=fence,
        )
        self._status = StatusFile(place.state / "status.json", self._job.job.name)

    def newest(self) -> Manifest | None:
        """The snapshot to go on from."""
        return self._snapshots.newest(max(read_marker(self._place.state, sink) for sink in OWED))

    def restore(self, manifest: Manifest) -> State:
        return self._snapshots.restore(manifest, self._learner())

    def run(self, upto: int | None) -> None:
        try:
            manifest = self.newest()
            state = self.restore(manifest) if manifest is not None else self._begun()
            (self._place.state / "release").mkdir(exist_ok=True)
            self._release(state)
            for number, entry in self._cycle.rest(state)[:upto]:
                learn(state, entry)
                if number % self._cycle.entries_a_commit == 0:
                    self._commit(state)
            if state.ledger:
                self._commit(state)
        finally:
            self._snapshots.close()

    def _learner(self) -> Any:
        return TinyLearner(self._job, self._cycle.rows + 1)

    def _begun(self) -> State:
        starts = dict.fromkeys(self._cycle.topics, 0)
        state = State(self._job, fresh_positions(starts), self._learner())
        started = [{"topic": p.topic, "partition": p.number, "next": 0} for p in starts]
        topic_ids = {partition.topic: "id" for partition in starts}
        self._snapshots.begin(Lineage("lineage", "cluster", topic_ids, started), state)
        return state

    def _commit(self, state: State) -> None:
        self._snapshots.commit(state)
        self._snapshots.wait()  # so that the calls of both threads have one order
        self._release(state)

    def _release(self, state: State) -> None:
        """Lets the releaser take its turn. What it cannot read or write ends it, and it is started again."""
        self._status.write("training", state, snapshot={"sequence": self._snapshots.sequence})
        self._note("releaser begins")
        for _ in range(_RELEASER_STARTS_MAX):
            try:
                self._release_all()
                break
            except (OSError, SnapshotError):
                continue
        self._note("releaser ends")

    def _release_all(self) -> None:
        """As `pipeline.release`, sink by sink and oldest first, and a marker after each snapshot."""
        sequences = self._store.sequences()
        for sink in OWED:
            marker = read_marker(self._place.state, sink)
            for sequence in sequences:
                if sequence > marker:
                    manifest = self._store.manifest(sequence)
                    self._note(f"release {sequence} {self._store.checksum(sequence)}")
                    for name, content in effects(self._store, manifest, sink):
                        _do(self._place.world / name, content)
                    replace_file(self._place.state / "release" / sink, f"{sequence}\n")


def effects(store: LocalStore, manifest: Manifest, sink: str) -> list[tuple[str, str]]:
    """What a snapshot owes to one sink: ids and contents."""
    owed = manifest["owed"][OWED[sink]]
    if owed is None:
        return []
    if sink == "dead_letters":
        rows = pa.ipc.open_stream(store.get(owed)).read_all().to_pylist()
        return [(f"{row['topic']}-{row['partition']}-{row['offset']}-{row['row']}", row["reason"]) for row in rows]
    if sink == "metrics":
        points = json.loads(store.get(owed))
        return [(f"point-{point['step']}", json.dumps(point, sort_keys=True)) for point in points]
    if sink == "alarms":
        alarms = json.loads(store.get(owed))
        return [(f"alarm-{alarm['row']}-{alarm['family']}", json.dumps(alarm, sort_keys=True)) for alarm in alarms]
    store.verify(owed)
    return [(f"version-{manifest['snapshot_id']}", f"{owed} {manifest['weights_sha256']} {manifest['rows_trained']}")]


def _do(path: Path, content: str) -> None:
    """An effect that may be repeated, but never with another content."""
    path.parent.mkdir(exist_ok=True)
    if path.exists():
        assert path.read_text() == content, f"{path.name} was there already, with another content"
    else:
        path.write_text(content)


def outcome(place: Place) -> dict[str, Any]:
    """What must be the same however often a run was disturbed."""
    store = LocalStore(place.state)
    manifest = store.manifest(store.sequences()[-1])
    names = ("sequence", "state_sha256", "weights_sha256", "counts", "metrics", "rows_trained", "watermark", "cursor")
    found = {name: manifest[name] for name in names}
    return {**found, "world": place.effects(), "ledger": ledger(store, manifest), "owed_till": released(place.state)}


def differing(expected: dict[str, Any], found: dict[str, Any]) -> list[str]:
    """In what two outcomes differ."""
    return [f"{name} is {found[name]!r}, not {value!r}" for name, value in expected.items() if found[name] != value]


def ledger(store: LocalStore, manifest: Manifest) -> list[Line]:
    """All lines from the last anchor but one on: the pieces since the last one, joined, and that one's own."""
    lines: list[Line] = []
    anchors = 0
    for found in chain(store, manifest):
        lines[:0] = unseal(store.get(found["blobs"]["ledger"]))
        anchors += found["anchor"] is not None
        if anchors == 2:
            break
    return lines


def damaged(state_dir: Path) -> list[str]:
    """Files whose name promises what their content does not hold."""
    store, wrong = LocalStore(state_dir), []
    for name in store.blobs():
        if not name.startswith("."):
            try:
                store.verify(name)
            except EvertrainError as error:
                wrong.append(str(error))
    for sequence in store.sequences():
        try:
            store.manifest(sequence)
        except EvertrainError as error:
            wrong.append(str(error))
    return wrong


def incomplete(state_dir: Path) -> list[str]:
    """Snapshots without their ledger, or without what they owe: what a manifest names is deleted after it."""
    store, wrong = LocalStore(state_dir), []
    for sequence in store.sequences():
        manifest = store.manifest(sequence)
        owed = [sha256 for sha256 in manifest["owed"].values() if sha256 and sequence > released(state_dir)]
        for sha256 in (manifest["blobs"]["ledger"], *owed):
            try:
                store.verify(sha256)
            except EvertrainError as error:
                wrong.append(f"snapshot {sequence}: {error}")
    return wrong


def copy(source: Place, target: Place) -> None:
    """Another job that is where the first one is. Blobs and manifests never change: links will do."""
    target.folder.mkdir()
    for path in sorted(source.folder.rglob("*")):
        there = target.folder / path.relative_to(source.folder)
        if path.is_dir():
            there.mkdir()
        elif path.name not in ("lock", "notes"):
            os.link(path, there)
