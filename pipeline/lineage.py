"""Whether what MLflow shows of a job comes from the snapshots in its state directory."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from consumers.errors import SnapshotError
from pipeline.store import Manifest

if TYPE_CHECKING:
    from pipeline.version import Registry, Version


class LineageError(SnapshotError):
    """MLflow knows a past that the state directory does not hold: nothing may be released on top of it."""


def check_lineage(registry: Registry, manifest: Manifest, state_dir: Path) -> None:
    """Raises LineageError if the state directory was lost, or restored from an older copy.

    Args:
        registry: what has been released.
        manifest: the newest snapshot's.
        state_dir: where it lies.
    """
    name, lineage = manifest["name"], manifest["lineage"]
    ours = registry.newest(name, lineage)
    if ours is None:
        _check_known(manifest, lambda lineage: registry.newest(name, lineage), state_dir)
    elif _sequence(ours) > manifest["sequence"]:
        raise _older_copy(manifest, state_dir, f"version {ours.number}, made of snapshot {ours.snapshot_id}")
    row = registry.logged(name, lineage)
    if row > manifest["rows_trained"]:
        raise _older_copy(manifest, state_dir, f"metrics of this lineage up to row {row:,}")


def _check_known(manifest: Manifest, newest: Callable[[str | None], Version | None], state_dir: Path) -> None:
    """Without a version of this lineage, others must be of those it was rolled back from, or be accepted."""
    found = newest(None)
    if found is None or manifest.get("new_lineage", False):
        return
    if not any(newest(ancestor) for ancestor in manifest.get("ancestors", [])):
        raise LineageError(
            f"MLflow has versions of {manifest['name']!r} from another lineage (version {found.number}, made of "
            f"snapshot {found.snapshot_id}), but none of lineage {manifest['lineage']}, which {state_dir} holds: was "
            "the state directory lost? Restore it from its mirror or a backup, or train a new lineage beside the "
            "other one with --new-lineage"
        )


def _older_copy(manifest: Manifest, state_dir: Path, found: str) -> LineageError:
    return LineageError(
        f"MLflow has {found} of {manifest['name']!r}, but the newest snapshot in {state_dir} is "
        f"{manifest['snapshot_id']} with {manifest['rows_trained']:,} rows: it was restored from an older copy. "
        f"Restore a newer one, or begin a new lineage from this one with --rollback-to {manifest['sequence']}"
    )


def _sequence(version: Version) -> int:
    return int(version.snapshot_id.rpartition("-")[2])
