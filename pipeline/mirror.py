"""A copy of the anchors in another directory, which is a state directory itself: copied back, it can be trained on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from consumers.errors import SnapshotError
from pipeline.store import LocalStore, Manifest

_CHUNK_BYTES = 2**20


def mirror(store: LocalStore, target: Path) -> None:
    """Makes the anchors in `target` those that the store has with their state. Repeating it is harmless.

    Anchors are added oldest first, blobs before manifests; the newest one in `target` is never dropped, nor one that
    can no longer be read in the store.

    Raises SnapshotError if `target` holds snapshots of another past, or a blob is damaged; OSError if it cannot be
    written.
    """
    copy = LocalStore(target)
    ours = {sequence: _readable(store, sequence) for sequence in store.sequences()}
    there = {sequence: copy.manifest(sequence) for sequence in copy.sequences()}
    _check_past(store, ours, copy, there)
    present = store.blobs()
    wanted = {n: anchor for n, anchor in ours.items() if anchor and _is_anchor(anchor) and _state(anchor) <= present}
    for sequence, manifest in wanted.items():
        for sha256 in (_state(manifest) | (_owed(manifest) & present)) - copy.blobs():
            _copy_blob(store, copy, sha256)
        if sequence not in there:
            copy.commit(sequence, manifest)
    there |= wanted
    unreadable = {sequence for sequence, manifest in ours.items() if manifest is None}
    dropped = there.keys() - wanted.keys() - unreadable - {max(there, default=-1)}
    needed = {sha256 for n in there.keys() - dropped for sha256 in _state(there[n]) | _owed(there[n])}
    copy.remove(dropped, copy.blobs() - needed)


def _check_past(
    store: LocalStore, ours: dict[int, Manifest | None], copy: LocalStore, there: dict[int, Manifest]
) -> None:
    """A mirror is all that is left of a lost state directory: whatever comes after it must not eat it."""
    last = max(ours)
    newest = store.manifest(last)
    known = {newest["lineage"], *newest.get("ancestors", [])}
    for sequence, found in there.items():
        if found["lineage"] not in known or sequence > last or found != (ours.get(sequence) or found):
            raise SnapshotError(
                f"{copy.path}: the mirror holds snapshot {found['snapshot_id']}, which is not of the past of "
                f"{newest['snapshot_id']} in {store.path}; nothing was changed. If the mirror is of use, stop the job "
                "and copy it back; otherwise move it away, or name another directory in snapshot.mirror"
            )


def _readable(store: LocalStore, sequence: int) -> Manifest | None:
    try:
        return store.manifest(sequence)
    except SnapshotError:  # damaged, or collected just now
        return None


def _copy_blob(store: LocalStore, copy: LocalStore, sha256: str) -> None:
    source = store.path / "blobs" / sha256
    if (found := copy.put(_chunks(source))) != sha256:
        copy.remove([], [found])
        raise SnapshotError(f"{source}: the blob is damaged (its hash does not match its name); it was not mirrored")


def _chunks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            yield chunk


def _is_anchor(manifest: Manifest) -> bool:
    return manifest.get("anchor") is not None


def _state(manifest: Manifest) -> set[str]:
    blobs = manifest["blobs"]
    return {blobs["arrays"], blobs["document"], blobs["ledger"], *(sha256 for _, _, sha256 in blobs["slabs"])}


def _owed(manifest: Manifest) -> set[str]:
    return {sha256 for sha256 in manifest["owed"].values() if sha256}
