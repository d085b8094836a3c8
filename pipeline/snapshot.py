"""Snapshots: one atomic, verified, content-addressed copy of S and of what it owes the outside world.

A commit freezes S into reused memory; one writer thread makes it durable while training goes on.
"""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from safetensors.numpy import load

from consumers.errors import SnapshotError
from consumers.record import REJECTS, Partition, Position, Side
from consumers.slabs import SlabView
from pipeline.config import JobConfig
from pipeline.frozen import Frozen
from pipeline.identity import check_identity, code_version, environment
from pipeline.learner import Learner
from pipeline.state import Letters, State, never
from pipeline.store import Manifest, Store

FORMAT = 1


@dataclass(frozen=True, slots=True)
class Lineage:
    """One chain of snapshots: where it began, and on which topics."""

    id: str
    cluster_id: str
    topic_ids: dict[str, str]
    started: list[dict[str, Any]]  # the first offset of each partition

    @classmethod
    def begin(cls, cluster_id: str, topic_ids: dict[str, str], starts: dict[Partition, int]) -> Lineage:
        """A new lineage at resolved offsets."""
        started = [{"topic": p.topic, "partition": p.number, "next": offset} for p, offset in starts.items()]
        return cls(uuid.uuid4().hex, cluster_id, topic_ids, started)


class Snapshots:
    """Commits and restores S. `on_durable` is called, from the writer thread, with each durable sequence number."""

    def __init__(
        self, store: Store, job: JobConfig, *, on_durable: Callable[[int], None], released: Callable[[], int]
    ) -> None:
        self._store = store
        self._job = job
        self._on_durable = on_durable
        self._released = released
        self._frozen = Frozen()
        self._slab_frozen = Frozen()
        self._slab_blobs: dict[tuple[int, int], str] = {}
        self._writer = ThreadPoolExecutor(1, "snapshot-writer")
        self._writing: Future[None] | None = None
        self.sequence = -1
        self.lineage: Lineage | None = None

    def begin(self, lineage: Lineage, state: State) -> None:
        """Commits snapshot 0, before any entry."""
        self.lineage = lineage
        self.commit(state)
        self.wait()

    @property
    def busy(self) -> bool:
        """Whether a commit is still being written; raises what went wrong with the last one."""
        if self._writing is not None and self._writing.done():
            self.wait()
        return self._writing is not None

    def wait(self) -> None:
        """Waits until the last commit is durable. Raises what went wrong with it."""
        if self._writing is not None:
            writing, self._writing = self._writing, None
            writing.result()

    def close(self) -> None:
        """Ends the writer thread, whatever it has to tell: nothing writes to the store from here on."""
        self._writer.shutdown()

    def commit(self, state: State) -> None:
        """Freezes S, with what it owes, and starts to write it."""
        state.check_balance()
        self.wait()
        assert self.lineage is not None
        self.sequence += 1
        arrays, slabs = _arrays(state)
        self._frozen.take(arrays)
        new_slabs = self._freeze_slabs(slabs)
        manifest = self._manifest(state, self.lineage)
        entries, due = state.seal()
        owed = {
            "dead_letters": _letters_blob(due.letters, self.lineage.topic_ids),
            "points": json.dumps(due.points).encode() if due.points else None,
            "version": _version_blob(state) if due.version_due else None,
        }
        ledger = json.dumps(entries).encode()
        document = json.dumps(_document(state, slabs)).encode()
        self._writing = self._writer.submit(
            self._write, manifest, document, ledger, owed, new_slabs, [(s.side, s.number) for s in slabs if s.full]
        )

    def _freeze_slabs(self, slabs: list[SlabView]) -> list[tuple[int, int]]:
        new = [slab for slab in slabs if slab.full and (slab.side, slab.number) not in self._slab_blobs]
        self._slab_frozen.take(
            {_slab_name(slab, column): array for slab in new for column, array in slab.columns.items()}
        )
        return [(slab.side, slab.number) for slab in new]

    def _write(
        self,
        manifest: Manifest,
        document: bytes,
        ledger: bytes,
        owed: dict[str, bytes | None],
        new_slabs: list[tuple[int, int]],
        live_slabs: list[tuple[int, int]],
    ) -> None:
        """Makes a frozen snapshot durable: blobs, then the manifest. Runs in the writer thread."""
        store = self._store
        if new_slabs:
            sha256 = store.put(self._slab_frozen.parts())
            self._slab_blobs |= dict.fromkeys(new_slabs, sha256)
        self._slab_blobs = {key: self._slab_blobs[key] for key in live_slabs}
        manifest["blobs"] = {
            "arrays": store.put(self._frozen.parts()),
            "document": store.put([document]),
            "ledger": store.put([ledger]),
            "slabs": [[side, number, sha256] for (side, number), sha256 in self._slab_blobs.items()],
        }
        manifest["owed"] = {name: store.put([data]) if data else None for name, data in owed.items()}
        manifest["weights_sha256"] = _weights_sha256(self._frozen)
        store.commit(manifest["sequence"], manifest)
        self._on_durable(manifest["sequence"])
        self._collect(manifest["sequence"])

    def _collect(self, newest: int) -> None:
        """Keeps the newest snapshots, and of older ones only what they still owe."""
        released = self._released()
        keep: set[str] = set()
        remove = []
        for sequence in self._store.sequences():
            manifest = self._store.manifest(sequence)
            owed = {sha256 for sha256 in manifest["owed"].values() if sha256}
            if sequence > newest - self._job.snapshot.keep:
                keep |= owed | _state_blobs(manifest)
            elif sequence > released:
                keep |= owed
            else:
                remove.append(sequence)
        self._store.remove(remove, keep)

    def _manifest(self, state: State, lineage: Lineage) -> Manifest:
        values = state.monitor.point()
        cursor = [
            {
                "topic": partition.topic,
                "topic_id": lineage.topic_ids[partition.topic],
                "partition": partition.number,
                "next": position.next,
                "reached": never(position.reached),
                "recent": position.recent,
                "places": position.places,
                "idle": position.idle,
            }
            for partition, position in state.positions.items()
        ]
        return {
            "format": FORMAT,
            "sequence": self.sequence,
            "snapshot_id": f"{lineage.id}-{self.sequence}",
            "parent": f"{lineage.id}-{self.sequence - 1}" if self.sequence else None,
            "lineage": lineage.id,
            "cluster_id": lineage.cluster_id,
            "started": lineage.started,
            "name": self._job.job.name,
            "config": self._job.model_dump(mode="json"),
            "config_sha256": self._job.sha256(),
            "code_version": code_version(),
            "environment": environment(),
            "cursor": cursor,
            "watermark": never(state.watermark),
            "time_ms": state.time_ms,
            "rows_trained": state.trained,
            "counts": state.counts(),
            "metrics": values,
            "alarms": state.monitor.alarm_count,
        }

    def newest(self) -> Manifest | None:
        """The newest manifest. Raises SnapshotError if it is damaged."""
        sequences = self._store.sequences()
        return self._store.manifest(sequences[-1]) if sequences else None

    def restore(self, manifest: Manifest, learner: Learner) -> State:
        """The state of a snapshot. Raises SnapshotError or ConfigError."""
        if manifest["format"] > FORMAT:
            raise SnapshotError(
                f"snapshot {manifest['snapshot_id']} has format {manifest['format']}, newer than this Evertrain "
                f"reads ({FORMAT}); install the version that wrote it: {manifest['code_version']}"
            )
        check_identity(self._job, manifest["config"])
        arrays = load(self._store.get(manifest["blobs"]["arrays"]))
        document = json.loads(self._store.get(manifest["blobs"]["document"]))
        topic_ids = {line["topic"]: line["topic_id"] for line in manifest["cursor"]}
        self.lineage = Lineage(manifest["lineage"], manifest["cluster_id"], topic_ids, manifest["started"])
        self.sequence = manifest["sequence"]
        self._slab_blobs = {(side, number): sha256 for side, number, sha256 in manifest["blobs"]["slabs"]}
        state = State(self._job, _positions(manifest), learner)
        learner.restore(_under("learner.", arrays), document["learner"])
        state.batcher.restore(_under("batch.", arrays))
        state.monitor.restore(_under("monitor.", arrays), document["monitor"])
        state.join.restore(
            self._restore_slabs(document["slabs"], arrays),
            arrays["counts"],
            document["watermark"],
            document["filled_in"],
        )
        state.read_P, state.rejected_P = arrays["read"].copy(), arrays["rejected"].copy()
        state.skipped_P = arrays["skipped"].copy()
        state.trained, state.refused = document["trained"], document["refused"]
        state.registered = document["registered"]
        state.bad_input.accept, state.bad_input.recent = document["accept_bad"], document["recent_bad"]
        return state

    def _restore_slabs(self, slabs: list[Any], arrays: dict[str, np.ndarray]) -> list[SlabView]:
        blobs = {sha256: load(self._store.get(sha256)) for sha256 in set(self._slab_blobs.values())}
        views = []
        for side, number, full in slabs:
            prefix = f"slab.{side}.{number}."
            source = blobs[self._slab_blobs[side, number]] if full else arrays
            columns = _under(prefix, source)
            columns.pop("status", None)
            views.append(SlabView(Side(side), number, full, columns, arrays[prefix + "status"]))
        return views


def _arrays(state: State) -> tuple[dict[str, np.ndarray], list[SlabView]]:
    """Every array of S but the full slabs, and the slabs."""
    arrays = {f"learner.{name}": array for name, array in state.learner.state().items()}
    arrays |= {f"batch.{name}": array for name, array in state.batcher.state().items()}
    arrays |= {f"monitor.{name}": array for name, array in state.monitor.state().items()}
    arrays["counts"] = state.join.counts_PO
    arrays["read"], arrays["rejected"], arrays["skipped"] = state.read_P, state.rejected_P, state.skipped_P
    slabs = state.join.slabs()
    for slab in slabs:
        arrays[_slab_name(slab, "status")] = slab.status
        if not slab.full:
            arrays |= {_slab_name(slab, column): array for column, array in slab.columns.items()}
    return arrays, slabs


def _document(state: State, slabs: list[SlabView]) -> dict[str, Any]:
    """What S holds beside arrays and cursor (JSON)."""
    return {
        "learner": state.learner.document(),
        "monitor": state.monitor.document(),
        "slabs": [[int(slab.side), slab.number, slab.full] for slab in slabs],
        "watermark": int(state.join.watermark),
        "filled_in": int(state.join.filled_in),
        "trained": state.trained,
        "refused": state.refused,
        "registered": state.registered,
        "accept_bad": state.bad_input.accept,
        "recent_bad": state.bad_input.recent,
    }


def _positions(manifest: Manifest) -> dict[Partition, Position]:
    fields = [field for field in asdict(Position(0)) if field != "next"]
    positions = {}
    for line in manifest["cursor"]:
        known = {field: line[field] for field in fields if line[field] is not None}
        positions[Partition(line["topic"], line["partition"])] = Position(line["next"], **known)
    return positions


def _letters_blob(letters: list[Letters], topic_ids: dict[str, str]) -> bytes | None:
    if not letters:
        return None
    schema = pa.schema([*REJECTS, ("topic", pa.string()), ("topic_id", pa.string()), ("partition", pa.int32())])
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, schema) as writer:
        for letter in letters:
            rows, partition = letter.rejects.num_rows, letter.partition
            extra = [
                pa.array([partition.topic] * rows, pa.string()),
                pa.array([topic_ids[partition.topic]] * rows, pa.string()),
                pa.array([partition.number] * rows, pa.int32()),
            ]
            writer.write_batch(pa.record_batch([*letter.rejects.columns, *extra], schema=schema))
    data: bytes = sink.getvalue().to_pybytes()
    return data


def _version_blob(state: State) -> bytes:
    """The weights to publish, and a full block with the scores that they give here."""
    features_BC = state.batcher.newest_BC
    scores_BS = state.learner.score(features_BC)
    arrays = {f"model.{name}": array for name, array in state.learner.weights().items()}
    arrays["check.features"] = features_BC
    arrays["check.scores"] = scores_BS if state.learner.score_width > 1 else scores_BS[:, 0]
    frozen = Frozen()
    frozen.take(arrays)
    return b"".join(frozen.parts())


def _weights_sha256(frozen: Frozen) -> str:
    digest = hashlib.sha256()
    for name in frozen.names("learner.module."):
        digest.update(name.encode() + b"\0")
        digest.update(frozen.part(name))
    return digest.hexdigest()


def _state_blobs(manifest: Manifest) -> set[str]:
    blobs = manifest["blobs"]
    slabs = {sha256 for _, _, sha256 in blobs["slabs"]}
    return slabs | {blobs["arrays"], blobs["document"], blobs["ledger"]}


def _slab_name(slab: SlabView, column: str) -> str:
    return f"slab.{int(slab.side)}.{slab.number}.{column}"


def _under(prefix: str, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The arrays whose name begins with `prefix`, without it."""
    return {n.removeprefix(prefix): array for n, array in arrays.items() if n.startswith(prefix)}
