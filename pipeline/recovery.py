"""What is on disk, read back: the newest snapshot that verifies, and how the ledger leads up to it."""

from __future__ import annotations

import logging
from collections.abc import Iterator

from consumers.errors import SnapshotError
from pipeline.ledger import seal, unseal
from pipeline.retention import Kept
from pipeline.store import Manifest, Store

log = logging.getLogger("evertrain")


def newest_valid(store: Store, newest_format: int, attempted: int) -> Manifest | None:
    """The newest snapshot whose manifest and state verify, made durable once more; None in an empty store.

    Newer ones that do not verify are set aside, and their numbers are never used again.

    Args:
        store: where the snapshots are.
        newest_format: of the snapshots that can be read.
        attempted: the newest snapshot of which anything may have been released.

    Raises:
        SnapshotError: none verifies, one that does not was released already, or it is of another format.
    """
    bad: dict[int, str] = {}
    for sequence in reversed(store.sequences()):
        try:
            manifest = _readable(store, sequence, newest_format)
        except _DamagedError as error:
            bad[sequence] = str(error)
            continue
        _set_aside(store, bad, attempted, manifest)
        store.sync(sequence)
        return manifest
    if bad:
        raise SnapshotError(
            f"none of the {len(bad)} snapshots can be read, the newest because: {next(iter(bad.values()))}. Copy the "
            "state directory back from snapshot.mirror or a backup, or begin anew with another job.state_dir"
        )
    store.sync(None)
    return None


def roll_back(store: Store, sequence: int, newest_format: int) -> Manifest:
    """Sets all snapshots after `sequence` aside and returns that one, durable. Raises SnapshotError without it."""
    if sequence not in store.sequences():
        there = ", ".join(map(str, store.sequences()[-10:])) or "none"
        raise SnapshotError(f"there is no snapshot {sequence} to roll back to; the newest are: {there}")
    manifest = _readable(store, sequence, newest_format)
    for later in reversed(store.sequences()):
        if later > sequence:
            store.set_aside(later)
    store.sync(sequence)
    return manifest


def retained(store: Store, released: int) -> Iterator[Kept]:
    """What is kept of each snapshot. Raises SnapshotError for a damaged one that may owe something."""
    for sequence in store.sequences():
        try:
            yield Kept.of(store.manifest(sequence))
        except SnapshotError as error:
            if sequence > released:
                raise SnapshotError(
                    f"{error}; what it owes MLflow and the dead letters was not released and cannot be known any more. "
                    "Go back to a snapshot before it with --rollback-to, and the same records are learned again"
                ) from None
            log.warning("%s; it owes nothing, and is of no use any more", error)


def chain(store: Store, manifest: Manifest) -> Iterator[Manifest]:
    """A snapshot and those before it whose ledgers join on, newest first: every one back to an anchor, then anchors.

    Raises SnapshotError where the chain is broken.
    """
    while True:
        yield manifest
        if manifest["ledger_since"] < 0:
            return
        manifest = store.manifest(manifest["ledger_since"])


def pieces_since_anchor(store: Store, manifest: Manifest) -> tuple[Manifest | None, list[bytes]]:
    """The last anchor up to a snapshot, and the sealed ledgers since, oldest first.

    Where one is missing or damaged, a line says that versions cannot be rebuilt across it.
    """
    pieces: list[bytes] = []
    try:
        for found in chain(store, manifest):
            if found["anchor"] is not None:
                return found, pieces[::-1]
            piece = store.get(found["blobs"]["ledger"])
            list(unseal(piece))
            pieces.append(piece)
    except SnapshotError as error:
        log.warning("%s; versions after it cannot be rebuilt from snapshots before it", error)
    return _last_anchor(store, manifest["sequence"]), [seal([["gap"]]), *pieces[::-1]]


def _last_anchor(store: Store, upto: int) -> Manifest | None:
    for sequence in reversed(store.sequences()):
        if sequence <= upto:
            try:
                manifest = store.manifest(sequence)
            except SnapshotError:
                continue
            if manifest["anchor"] is not None:
                return manifest
    return None


class _DamagedError(SnapshotError):
    """A snapshot does not verify: an older one may."""


def _readable(store: Store, sequence: int, newest_format: int) -> Manifest:
    """A manifest whose state verifies. Raises _DamagedError if it does not, and SnapshotError for another format."""
    try:
        manifest = store.manifest(sequence)
    except SnapshotError as error:
        raise _DamagedError(str(error)) from None
    if manifest["format"] != newest_format:
        age = "newer" if manifest["format"] > newest_format else "older"
        raise SnapshotError(
            f"snapshot {manifest['snapshot_id']} has format {manifest['format']}, {age} than the one this Evertrain "
            f"reads ({newest_format}); install the version that wrote it: {manifest['code_version']}"
        )
    try:
        for sha256 in Kept.of(manifest).state:
            store.verify(sha256)
    except SnapshotError as error:
        raise _DamagedError(str(error)) from None
    return manifest


def _set_aside(store: Store, bad: dict[int, str], attempted: int, good: Manifest) -> None:
    released = [sequence for sequence in bad if sequence <= attempted]
    if released:
        raise SnapshotError(
            f"snapshot {released[0]} cannot be read any more ({bad[released[0]]}), but something of it was already "
            f"released. Copy the state directory back from a backup, or go back to snapshot {good['sequence']} "
            f"in a lineage of its own with --rollback-to {good['sequence']}"
        )
    for sequence, why in bad.items():
        log.warning("snapshot %d is set aside: %s; going on from %d", sequence, why, good["sequence"])
        store.set_aside(sequence)
