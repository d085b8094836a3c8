"""What a run comes to: its newest snapshot, whole, and what the world has seen of it."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from safetensors.numpy import load

from pipeline.ledger import Line, unseal
from pipeline.recovery import chain
from pipeline.store import LocalStore, Manifest
from tests.faults.world import World

MANIFEST = (
    "weights_sha256",
    "state_sha256",
    "counts",
    "metrics",
    "rows_trained",
    "cursor",
    "watermark",
    "time_ms",
    "trained_ms",
    "alarms",
    "promotion_held",
)


def outcome(store: LocalStore, world: World) -> dict[str, Any]:
    """Everything that two equal runs have in common, to the bit."""
    manifest = store.manifest(store.sequences()[-1])
    digests = {name: _digest(array) for name, array in arrays(store, manifest).items()}
    document = json.loads(store.get(manifest["blobs"]["document"]))
    chosen = {name: manifest[name] for name in MANIFEST}
    return {**chosen, "arrays": digests, "document": document, "world": world.seen()}


def ledger(store: LocalStore) -> list[Line]:
    """All lines since the lineage began."""
    newest = store.manifest(store.sequences()[-1])
    sealed = [store.get(manifest["blobs"]["ledger"]) for manifest in chain(store, newest)]
    return [line for data in reversed(sealed) for line in unseal(data)]


def uncovered(lines: list[Line], ends: list[int]) -> list[str]:
    """Where a ledger's spans are not every offset once, in order."""
    at = [0] * len(ends)
    wrong = []
    for kind, *rest in lines:
        if kind == "span":
            index, start, stop = rest
            if start != at[index]:
                wrong.append(f"ledger: partition {index} goes on at {start}, not at {at[index]}")
            at[index] = stop
    if at != ends:
        wrong.append(f"ledger: partitions end at {at}, not at {ends}")
    return wrong


def arrays(store: LocalStore, manifest: Manifest) -> dict[str, Any]:
    """Every array of a snapshot."""
    blobs = [manifest["blobs"]["arrays"], *sorted({sha256 for _, _, sha256 in manifest["blobs"]["slabs"]})]
    parts = [load(store.get(sha256)) for sha256 in blobs]
    alive = tuple(f"slab.{side}.{number}." for side, number, _ in manifest["blobs"]["slabs"])
    found = parts[0]
    for part in parts[1:]:  # a blob may hold slabs that were dropped since
        found = {**{name: array for name, array in part.items() if name.startswith(alive)}, **found}
    return found


def differences(expected: Any, found: Any, where: str = "") -> list[str]:
    """One line for each place where two outcomes differ."""
    if isinstance(expected, dict) and isinstance(found, dict):
        names = sorted({*expected, *found}, key=str)
        parts = (differences(expected.get(n), found.get(n), f"{where}/{n}") for n in names)
        return [line for part in parts for line in part]
    if isinstance(expected, list) and isinstance(found, list) and len(expected) == len(found):
        parts = (differences(e, f, f"{where}/{n}") for n, (e, f) in enumerate(zip(expected, found, strict=True)))
        return [line for part in parts for line in part]
    return [] if expected == found else [f"{where}: {_short(expected)} became {_short(found)}"]


def _digest(array: Any) -> str:
    return f"{array.dtype}{list(array.shape)} {hashlib.sha256(array.tobytes()).hexdigest()[:16]}"


def _short(value: Any) -> str:
    return repr(value)[:200]
