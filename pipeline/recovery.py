"""What is on disk, read back: the newest snapshot that verifies, and how the ledger leads up to it."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import suppress

from consumers.errors import SnapshotError
from pipeline.ledger import seal, unseal
from pipeline.retention import Kept
from pipeline.store import Manifest, Store

log = logging.getLogger("evertrain")

_COPY_BACK = "Copy the state directory back from snapshot.mirror or a backup, or begin anew with another job.state_dir"


def newest_valid(store: Store, newest_format: int, attempted: int) -> Manifest | None:
    """The newest snapshot whose manifest and state verify, made durable once more; None in an empty store.

    Newer ones that do not verify are set aside, and their numbers are never used again.

    Args:
        store: where the snapshots are.
        newest_format: of the snapshots that can be read.
        attempted: the newest snapshot of which anything may have been released.

    Raises:
        SnapshotError: none verifies, a newer one was released already, or it is of another format.
    """
    store.clear_unfinished()
    bad: dict[int, str] = {}
    for sequence in reversed(store.sequences()):
        try:
            manifest = _readable(store, sequence, newest_format)
        except _DamagedError as error:
            bad[sequence] = str(error)
            continue
        _check_released(manifest["sequence"], attempted, bad)
        for damaged, why in bad.items():
            log.warning("snapshot %d is set aside: %s; going on from %d", damaged, why, sequence)
            store.set_aside(damaged)
        store.sync(sequence)
        return manifest
    if bad:
        raise SnapshotError(
            f"none of the {len(bad)} snapshots can be read, the newest because: {next(iter(bad.values()))}. "
            f"{_COPY_BACK}"
        )
    if attempted >= 0:
        raise SnapshotError(
            f"there is no snapshot, but release/ says that snapshot {attempted} was released. {_COPY_BACK}"
        )
    store.sync(None)
    return None


def _check_released(newest: int, attempted: int, bad: dict[int, str]) -> None:
    """Raises SnapshotError if anything was released of a snapshot that is newer than the newest that verifies."""
    if attempted > newest:
        why = f"cannot be read any more ({bad[attempted]})" if attempted in bad else "is not there any more"
        raise SnapshotError(
            f"snapshot {attempted} {why}, but something of it was already released. Copy the state directory back "
            f"from a backup, or go back to snapshot {newest} in a lineage of its own with --rollback-to {newest}"
        )


def roll_back(store: Store, sequence: int, newest_format: int) -> Manifest:
    """Sets all snapshots after `sequence` aside and returns that one, durable.

    Raises SnapshotError if it is not there, or only its ledger is.
    """
    store.clear_unfinished()
    try:
        manifest = _readable(store, sequence, newest_format)
    except _DamagedError as error:
        whole = ", ".join(map(str, _whole(store))) or "none"
        raise SnapshotError(
            f"cannot go back to snapshot {sequence}: {error}. These can be gone back to: {whole}"
        ) from None
    for later in reversed(store.sequences()):
        if later > sequence:
            store.set_aside(later)
    store.sync(sequence)
    return manifest


def _whole(store: Store) -> Iterator[int]:
    """The snapshots whose state is there, newest first: of most, only the ledger is kept."""
    blobs = store.blobs()
    for sequence in reversed(store.sequences()):
        with suppress(SnapshotError):
            if Kept.of(store.manifest(sequence)).state <= blobs:
                yield sequence


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
