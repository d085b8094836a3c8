"""Snapshots: one atomic, verified, content-addressed copy of S and of what it owes the outside world.

A commit freezes S into reused memory; one writer thread makes it durable while training goes on. What is on disk is
read back in `pipeline.recovery`.
"""

from __future__ import annotations

import errno
import json
import time
import uuid
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as NotYet
from dataclasses import dataclass, field, replace
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING, Any

from safetensors.numpy import load

from consumers.errors import SnapshotError
from consumers.mapping import PAGE
from consumers.record import Partition
from pipeline.config import JobConfig
from pipeline.frozen import Frozen, safetensors
from pipeline.identity import check_identity, code_version, environment, with_recorded
from pipeline.image import Arrays, Image, fill, positions_of, weights_sha256
from pipeline.ledger import Line, seal
from pipeline.owed import owed_blobs
from pipeline.recovery import newest_valid, pieces_since_anchor, retained, roll_back
from pipeline.retention import Kept, Retention
from pipeline.state import State, crossed, never
from pipeline.store import Manifest, Store

if TYPE_CHECKING:
    from pipeline.learner import Learner

FORMAT = 6

_PASSING = (errno.ENOSPC, errno.EDQUOT)
_RETRY_S = 2.0  # between two attempts to write to a full disk


@dataclass(frozen=True, slots=True)
class Lineage:
    """One chain of snapshots: where it began, and on which topics."""

    id: str
    cluster_id: str
    topic_ids: dict[str, str]
    started: list[dict[str, Any]]  # the first offset of each partition
    ancestors: list[str] = field(default_factory=list)  # lineages that it was rolled back from
    accepted: bool = False  # the user said that another lineage of this name may exist

    @classmethod
    def begin(cls, cluster_id: str, topic_ids: dict[str, str], starts: dict[Partition, int]) -> Lineage:
        """A new lineage at resolved offsets."""
        started = [{"topic": p.topic, "partition": p.number, "next": offset} for p, offset in starts.items()]
        return cls(uuid.uuid4().hex, cluster_id, topic_ids, started)

    @classmethod
    def of(cls, manifest: Manifest) -> Lineage:
        """The lineage of a snapshot."""
        topic_ids = {line["topic"]: line["topic_id"] for line in manifest["cursor"]}
        known = (manifest["started"], manifest["ancestors"], manifest["new_lineage"])
        return cls(manifest["lineage"], manifest["cluster_id"], topic_ids, *known)

    def rolled_back(self) -> Lineage:
        """A new lineage that goes on from a snapshot of this one."""
        return replace(self, id=uuid.uuid4().hex, ancestors=[*self.ancestors, self.id])


@dataclass(frozen=True, slots=True)
class _Sealed:
    """A snapshot that only has to be written. Its arrays are in the staging buffer."""

    manifest: Manifest
    image: Image
    lines: list[Line]
    owed: dict[str, bytes | None]


class Snapshots:
    """Commits and restores S.

    Args:
        store: where to.
        job: what the job file says.
        on_durable: called, from the writer thread, with each durable sequence number.
        released: the newest snapshot that owes the outside world nothing, nor does any before it.
        fence: raises SnapshotError if the store is no longer ours to write to.
        leftovers: blobs that may be orphans of a crash; None: all that are there.

    `on_wait` is called twice a second while the learner waits for the disk, with what stands in the way, if anything
    does; true gives up.
    """

    def __init__(
        self,
        store: Store,
        job: JobConfig,
        *,
        on_durable: Callable[[int], None],
        released: Callable[[], int],
        fence: Callable[[], None] = lambda: None,
        leftovers: set[str] | None = None,
    ) -> None:
        self._store = store
        self._job = job
        self._on_durable = on_durable
        self._released = released
        self._fence = fence
        self._leftovers = store.blobs() if leftovers is None else leftovers
        self.on_wait: Callable[[str | None], bool] = lambda _: False
        self._frozen = Frozen()
        self._slab_blobs: dict[tuple[int, int], str] = {}
        self._retention = Retention(job.snapshot.keep)
        self._attempted = -1  # the newest snapshot of which anything may have been released
        self._pieces: list[bytes] = []  # the ledger since the last anchor
        self._anchor: Manifest | None = None  # the last one
        self._parent: dict[str, Any] | None = None
        self._writer = ThreadPoolExecutor(1, "snapshot-writer")
        self._writing: tuple[Future[None], State] | None = None
        self._giving_up = Event()
        self.trouble: str | None = None  # why the newest snapshot is not durable yet
        self.sequence = -1
        self.lineage: Lineage | None = None

    def newest(self, attempted: int = -1) -> Manifest | None:
        """The newest snapshot that verifies; see `recovery.newest_valid`."""
        self._attempted = attempted
        return newest_valid(self._store, FORMAT, attempted)

    def roll_back(self, sequence: int, attempted: int = -1) -> Manifest:
        """Sets aside every snapshot after one, and returns that. Raises SnapshotError if it is not there."""
        self._attempted = attempted
        return roll_back(self._store, sequence, FORMAT)

    def begin(self, lineage: Lineage, state: State) -> None:
        """Commits a lineage's first snapshot, before any entry."""
        self.sequence = self._store.taken()  # -1, unless what was set aside is all there is
        self.lineage = lineage
        self.commit(state)
        self.wait()

    def restore(self, manifest: Manifest, learner: Learner) -> State:
        """The state of a snapshot, which later ones extend. Raises SnapshotError or ConfigError."""
        check_identity(self._job, manifest["config"])
        self.lineage = Lineage.of(manifest)
        # a number that was released once would count as released, although its snapshot be gone
        self.sequence = max(manifest["sequence"], self._store.taken(), self._attempted)
        self._parent = {"sequence": manifest["sequence"], "checksum": self._store.checksum(manifest["sequence"])}
        self._slab_blobs = {(side, number): sha256 for side, number, sha256 in manifest["blobs"]["slabs"]}
        self._anchor, self._pieces = pieces_since_anchor(self._store, manifest)
        kept = list(retained(self._store, self._released()))
        self._retention = Retention(self._job.snapshot.keep, kept)
        if len(kept) == len(self._store.sequences()):  # a manifest that cannot be read now may name any of them
            self._store.remove([], self._leftovers - self._retention.blobs())  # what a crash has left
        job = with_recorded(self._job, manifest["config"])
        return load_state(self._store, manifest, job, learner, room=self._job.join.limit)

    def owed_bytes(self, released: int) -> int:
        """Bytes that durable snapshots after `released` owe the outside world."""
        return self._retention.owed_bytes(released)

    @property
    def busy(self) -> bool:
        """Whether a commit is being written, and nothing hinders it; raises what went wrong with the last one.

        Not so while the disk is full: a commit that falls due then waits, and says why.
        """
        if self._writing is not None and self._writing[0].done():
            self._finish()
        return self._writing is not None and self.trouble is None

    def wait(self) -> None:
        """Waits until the last commit is durable. Raises what went wrong with it."""
        while self._writing is not None:
            try:
                self._writing[0].exception(0.5)
                self._finish()
            except NotYet:
                if self.on_wait(self.trouble) and self.trouble:
                    self._giving_up.set()

    def close(self) -> None:
        """Ends the writer thread, whatever it has to tell: nothing writes to the store from here on."""
        self._giving_up.set()
        self._writer.shutdown()

    def commit(self, state: State) -> None:
        """Freezes S, with what it owes, and starts to write it."""
        counts = state.check_balance()
        self.wait()
        assert self.lineage is not None
        self.sequence += 1
        lines, owed = state.seal()
        image = Image.of(state, self.lineage.topic_ids)
        self._frozen.take(image.arrays, self._writer)  # which has nothing to write now
        state.join.pin()  # full slabs are written from where they lie
        manifest = {**self._manifest(state, self.lineage), "cursor": image.cursor, "counts": counts}
        blobs = owed_blobs(state, owed, self.lineage.topic_ids)
        self._writing = self._writer.submit(self._persist, _Sealed(manifest, image, lines, blobs)), state

    def _finish(self) -> None:
        """Takes note, in the learner's thread, of a commit that is written or has failed."""
        assert self._writing is not None
        (writing, state), self._writing = self._writing, None
        writing.result()
        files = {key: self._store.file(sha256) for key, sha256 in self._slab_blobs.items()}
        state.join.unpin({key: path for key, path in files.items() if path is not None})

    def _persist(self, sealed: _Sealed) -> None:
        """Writes a snapshot, then collects what need not be kept any more. Runs in the writer thread."""
        self._insist(sealed, lambda: self._write(sealed))
        superfluous = self._retention.collect(sealed.manifest["released"])
        self._insist(sealed, lambda: self._store.remove(*superfluous))

    def _insist(self, sealed: _Sealed, step: Callable[[], None]) -> None:
        """Takes a step that may be repeated: waits and tries again while the disk is full."""
        snapshot_id = sealed.manifest["snapshot_id"]
        while True:
            try:
                step()
                self.trouble = None
                return
            except OSError as error:
                what = f"{error.filename or 'the state directory'}: {error.strerror}"
                if error.errno not in _PASSING:
                    raise SnapshotError(
                        f"snapshot {snapshot_id} cannot be written: {what}. What was learned since the one before is "
                        "learned again at the next start; mend the disk first"
                    ) from error
                self.trouble = f"snapshot {snapshot_id} waits for room on disk ({what}): free some"
                if self._giving_up.wait(_RETRY_S):
                    raise SnapshotError(self.trouble) from error

    def _write(self, sealed: _Sealed) -> None:
        """The commit. May be repeated as long as it raises: nothing is booked before the manifest is durable."""
        manifest = sealed.manifest
        piece = self._put_blobs(sealed)  # durable, and counting for nothing yet
        checksum = self._store.commit(manifest["sequence"], manifest, self._check_fence)  # from here on it counts
        self._book(manifest, checksum, piece)
        self._on_durable(manifest["sequence"])  # and may be released

    def _put_blobs(self, sealed: _Sealed) -> bytes:
        """Makes all that a manifest names durable, and completes the manifest. Returns the sealed ledger."""
        store, manifest, image = self._store, sealed.manifest, sealed.image
        full = {(int(slab.side), slab.number): slab.columns for slab in image.slabs if slab.full}
        self._slab_blobs = {
            key: self._slab_blobs.get(key) or store.put(safetensors(columns, PAGE)) for key, columns in full.items()
        }
        arrays, document = store.put(self._frozen.parts()), store.put([json.dumps(image.document).encode()])
        weights = {name: self._frozen.part(name) for name in self._frozen.names("learner.module.")}
        manifest["weights_sha256"] = weights_sha256({n.removeprefix("learner.module."): w for n, w in weights.items()})
        manifest["state_sha256"] = image.state_sha256(arrays, self._slab_blobs)
        closing = ["snapshot", manifest["sequence"], manifest["weights_sha256"], manifest["state_sha256"]]
        piece = seal([*sealed.lines, closing])
        manifest["blobs"] = {
            "arrays": arrays,
            "document": document,
            "ledger": store.put([piece] if manifest["anchor"] is None else [*self._pieces, piece]),
            "slabs": [[*key, sha256] for key, sha256 in self._slab_blobs.items()],
        }
        manifest["owed"] = {name: store.put([data]) if data else None for name, data in sealed.owed.items()}
        manifest["owed_bytes"] = sum(len(data) for data in sealed.owed.values() if data)
        manifest.setdefault("released", self._released())  # what is deleted next relies on it: markers may be lost
        return piece

    def _book(self, manifest: Manifest, checksum: str, piece: bytes) -> None:
        """The snapshot is the one that the next one extends."""
        self._parent = {"sequence": manifest["sequence"], "checksum": checksum}
        if manifest["anchor"] is None:
            self._pieces = [*self._pieces, piece]
        else:
            self._pieces, self._anchor = [], manifest
        self._retention.add(Kept.of(manifest))

    def _check_fence(self) -> None:
        """Raises SnapshotError unless the store is ours and the snapshot that this one extends is still there."""
        self._fence()
        parent = self._parent
        if parent is not None and self._store.checksum(parent["sequence"]) != parent["checksum"]:
            raise SnapshotError(
                f"snapshot {parent['sequence']}, which the next one extends, was removed or replaced; stop whatever "
                "else writes to the state directory and start again"
            )

    def _manifest(self, state: State, lineage: Lineage) -> Manifest:
        """What is known of a snapshot before it is written."""
        now_ms, anchor = time.time_ns() // 10**6, self._next_anchor(state)
        since = self._anchor if anchor is not None else self._parent
        return {
            "format": FORMAT,
            "sequence": self.sequence,
            "snapshot_id": f"{lineage.id}-{self.sequence}",
            "parent": self._parent,
            "anchor": anchor,
            "ledger_since": since["sequence"] if since else -1,  # the ledger blob begins after this snapshot
            "committed_ms": now_ms,  # by the clock; nothing but the cadence of anchors goes by it
            "lineage": lineage.id,
            "ancestors": lineage.ancestors,
            "new_lineage": lineage.accepted,
            "cluster_id": lineage.cluster_id,
            "started": lineage.started,
            "name": self._job.job.name,
            "config": self._job.model_dump(mode="json"),
            "config_sha256": self._job.sha256(),
            "code_version": code_version(),
            "environment": environment(self._job),
            "watermark": never(state.watermark),
            "time_ms": state.time_ms,
            "trained_ms": state.trained_ms,
            "rows_trained": state.trained,
            "metrics": state.monitor.point(),
            "alarms": state.monitor.alarm_count,
            "promotion_held": state.trained < state.held_until,
        }

    def _next_anchor(self, state: State) -> int | None:
        """The ordinal of the next snapshot if it is an anchor."""
        last, every = self._anchor, self._job.snapshot.anchor_every
        if last is None:
            return 0
        passed_ms = abs(time.time_ns() // 10**6 - last["committed_ms"])  # a clock may step back
        due = crossed(every, last["rows_trained"], state.trained) or (every.ms is not None and passed_ms >= every.ms)
        return last["anchor"] + 1 if due else None


def load_state(store: Store, manifest: Manifest, job: JobConfig, learner: Learner, *, room: int = 0) -> State:
    """The state of a snapshot under `job`'s settings; `room` as in `Join`. Raises SnapshotError."""
    blobs = {(side, number): sha256 for side, number, sha256 in manifest["blobs"]["slabs"]}

    def full_slab(side: int, number: int) -> tuple[Arrays, Path | None]:
        sha256 = blobs[side, number]
        return load(store.get(sha256)), store.file(sha256)

    arrays = load(store.get(manifest["blobs"]["arrays"]))
    document = json.loads(store.get(manifest["blobs"]["document"]))
    state = State(job, positions_of(manifest["cursor"]), learner, room=room)
    fill(state, arrays, document, full_slab)
    return state
