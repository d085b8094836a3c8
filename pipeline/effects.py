"""What a committed snapshot does outside: dead letters, metrics, versions, alarms, the mirror. Each may be repeated."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.lineage import check_lineage
from pipeline.releaser import HOLDING, released
from pipeline.store import LocalStore, Manifest

if TYPE_CHECKING:
    from pipeline.version import Registry

_OWED = {"dead_letters": "dead_letters", "metrics": "points", "registry": "version", "alarms": "alarms"}
"""The owed blob that each sink releases."""

_ALARMS_WAIT_MS = 3_600_000


class Effects:
    """The effects of a snapshot, one method for each sink. Each sink's belong to one thread; MLflow's two share one.

    Args:
        state_dir: the trainer's.
        store: the snapshots in it.
        tell: takes a line for the trainer's log.
    """

    def __init__(self, state_dir: Path, store: LocalStore, tell: Callable[[str], None]) -> None:
        self._state_dir = state_dir
        self._store = store
        self._tell = tell
        self._sent: str | None = None
        self._told: set[str] = set()  # alarms that the webhook has taken, of the snapshot that is at hand
        self._registry: tuple[object, Registry] | None = None
        self._checked: object = None  # the registry at which our lineage was looked up
        self._resumed: set[str] = set()
        self._mirrored: str | None = None

    def dead_letters(self, manifest: Manifest) -> None:
        """Produces the dead letters, then sets the group's offsets."""
        from consumers.kafka import group_id
        from pipeline.deadletter import commit_offsets, send

        target = self._newest()["config"]
        # The offsets may fail for reasons of their own: that must not send the letters again and again.
        if self._sent != manifest["snapshot_id"] and (letters := self._owed(manifest, "dead_letters")):
            send(target["kafka"], target["dead_letters"]["topic"], letters, manifest["lineage"])
            self._sent = manifest["snapshot_id"]
        commit_offsets(target["kafka"], group_id(manifest["name"], target["kafka"]), manifest["cursor"])

    def metrics(self, manifest: Manifest) -> None:
        """Adds the metric points to the lineage's run, which is RUNNING from the first time on."""
        from pipeline.version import Point

        registry, name, lineage = self.registry(), manifest["name"], manifest["lineage"]
        if lineage not in self._resumed:
            for ancestor in manifest.get("ancestors", []):
                registry.finish(name, ancestor)
            registry.resume(name, lineage)
            self._resumed.add(lineage)
        if points := self._owed(manifest, "metrics"):
            registry.log(name, lineage, [Point(**point) for point in json.loads(points)])

    def versions(self, manifest: Manifest) -> None:
        """Registers the version."""
        weights = self._owed(manifest, "registry")
        if weights is None:
            return
        from pipeline.version import candidate

        number = self.registry().register(candidate(weights, manifest))
        if number is None:
            self._tell(f"the version of snapshot {manifest['sequence']} was deleted in MLflow: it stays deleted")
        else:
            self._tell(f"registered version {number} of {manifest['name']}: {manifest['rows_trained']:,} rows")

    def alarms(self, manifest: Manifest) -> None:
        """Tells the webhook of every alarm; one that it refuses holds up none. One that comes again has the same id."""
        address = self._newest()["config"]["on_drift"]["webhook"]
        if address and (alarms := self._untold(manifest)):
            from pipeline.webhook import RefusedError, post

            refusal = None
            for alarm in alarms:
                try:
                    post(address, alarm)
                    self._told.add(alarm["id"])
                except RefusedError as error:
                    refusal = error
            if refusal is not None:
                raise refusal
        self._told.clear()

    def _untold(self, manifest: Manifest) -> list[dict[str, Any]]:
        """The alarms of a snapshot that the webhook has not taken from this process, as it gets them."""
        lineage, alarms = manifest["lineage"], json.loads(self._owed(manifest, "alarms") or b"[]")
        same = {"name": manifest["name"], "lineage": lineage}
        # At a row a family has one alarm at most.
        documents = [{"id": f"{lineage}-{alarm['row']}-{alarm['family']}", **same, **alarm} for alarm in alarms]
        return [document for document in documents if document["id"] not in self._told]

    def alarms_given_up(self, manifest: Manifest) -> int:
        """How many alarms are given up now that the webhook has failed again; 0: they wait.

        They wait for an hour after their snapshot was committed, or until the snapshots that are kept for them alone
        take more than `snapshot.owed_max`. Those that it took are none of them.
        """
        settings, until = self._newest()["config"]["snapshot"], released(self._state_dir, HOLDING)
        kept = (n for n in self._store.sequences() if manifest["sequence"] <= n <= until)
        overdue = time.time_ns() // 10**6 - manifest["committed_ms"] > _ALARMS_WAIT_MS
        if not overdue and sum(self._store.manifest(n)["owed_bytes"] for n in kept) <= settings["owed_max"]:
            return 0
        return len(self._untold(manifest))

    def mirror(self, manifest: Manifest) -> None:
        """Brings the mirror up to date: at each anchor, and once in the life of this process."""
        target = self._newest()["config"]["snapshot"].get("mirror")
        if target and (manifest.get("anchor") is not None or self._mirrored != target):
            from pipeline.mirror import mirror

            mirror(self._store, Path(target))
            self._mirrored = target

    def finish(self) -> None:
        """Marks the runs that this process has marked as RUNNING as FINISHED."""
        for lineage in list(self._resumed):
            self.registry().finish(self._newest()["name"], lineage)
            self._resumed.discard(lineage)

    def registry(self) -> Registry:
        """The registry that the newest snapshot names: a corrected address frees what waited.

        Raises LineageError if it knows a past that the state directory does not hold.
        """
        from pipeline.registry import MLflowRegistry

        newest = self._newest()
        target = newest["config"]["registry"]
        key = (target["tracking_uri"], target["artifact_location"])
        if self._registry is None or self._registry[0] != key:
            self._registry = key, MLflowRegistry(*key, self._state_dir / "release" / "scratch")
        if self._checked != key:
            check_lineage(self._registry[1], newest, self._state_dir)
            self._checked = key
        return self._registry[1]

    def forget_registry(self) -> None:
        """After a failure: what was remembered of the registry may no longer be there."""
        self._registry = None

    def owed_path(self, manifest: Manifest, sink: str) -> Path | None:
        """Where the blob lies that a snapshot owes to a sink; None if it owes nothing."""
        sha256 = manifest["owed"].get(_OWED.get(sink))
        return self._store.path / "blobs" / sha256 if sha256 else None

    def _owed(self, manifest: Manifest, sink: str) -> bytes | None:
        """What a snapshot owes to a sink, or None. Raises SnapshotError if it is damaged."""
        path = self.owed_path(manifest, sink)
        if path is None:
            return None
        if not path.exists():
            # Collected once it was released, and the marker that said so is lost; or given up by a person.
            self._tell(f"{sink} of snapshot {manifest['sequence']} are passed over: {path} is not there any more")
            return None
        return self._store.get(path.name)

    def _newest(self) -> Manifest:
        return self._store.manifest(self._store.sequences()[-1])
