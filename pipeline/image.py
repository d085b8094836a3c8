"""S as arrays and a JSON document, and back: what a snapshot stores, whatever stores it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy.typing as npt

from consumers.record import Partition, Position, Side
from consumers.slabs import SlabView
from pipeline.state import State, never
from pipeline.store import Buffer

Arrays = dict[str, npt.NDArray[Any]]


@dataclass(frozen=True, slots=True)
class Image:
    """S at one moment, as views that are valid until the next entry is applied. Full slabs are in `slabs` alone."""

    arrays: Arrays
    document: dict[str, Any]
    slabs: list[SlabView]
    cursor: list[dict[str, Any]]

    @classmethod
    def of(cls, state: State, topic_ids: Mapping[str, str]) -> Image:
        """All of S but the ledger and what is owed, which a commit seals."""
        arrays = {f"learner.{name}": array for name, array in state.learner.state().items()}
        arrays |= {f"batch.{name}": array for name, array in state.batcher.state().items()}
        if state.delayed:
            arrays |= {f"delayed.{name}": array for name, array in state.delayed.state().items()}
        arrays |= {f"monitor.{name}": array for name, array in state.monitor.state().items()}
        arrays["counts"] = state.join.counts_PO
        arrays["read"], arrays["rejected"], arrays["skipped"] = state.read_P, state.rejected_P, state.skipped_P
        slabs = state.join.slabs()
        for slab in slabs:
            prefix = _slab_prefix(slab.side, slab.number)
            arrays[f"{prefix}status"] = slab.status
            if not slab.full:
                arrays |= {prefix + column: array for column, array in slab.columns.items()}
        return cls(dict(sorted(arrays.items())), _document(state, slabs), slabs, _cursor(state, topic_ids))

    def state_sha256(self, arrays: str, slabs: Mapping[tuple[int, int], str]) -> str:
        """Hash of all of S, given the hashes of the arrays and of each full slab."""
        full = [slabs[int(slab.side), slab.number] for slab in self.slabs if slab.full]
        text = json.dumps([arrays, self.document, full, self.cursor], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()


FullSlab = Callable[[int, int], tuple[Arrays, Path | None]]
"""Gives the columns of a full slab by side and number, and the file they can be mapped from."""


def fill(state: State, arrays: Arrays, document: Mapping[str, Any], full_slab: FullSlab) -> None:
    """Fills a new state, which has the positions already, with what an `Image` was taken of."""
    learner = state.learner
    learner.restore(_under("learner.", arrays), document["learner"])
    state.batcher.restore(_under("batch.", arrays))
    if state.delayed:
        state.delayed.restore(_under("delayed.", arrays))
    state.monitor.restore(_under("monitor.", arrays), document["monitor"])
    slabs = _slabs(document["slabs"], arrays, full_slab)
    counts = (document["watermark"], document["filled_in"], document["assumed"], document["unscored"])
    state.join.restore(slabs, arrays["counts"], *counts)
    state.read_P, state.rejected_P = arrays["read"].copy(), arrays["rejected"].copy()
    state.skipped_P = arrays["skipped"].copy()
    state.trained, state.refused = document["trained"], document["refused"]
    state.trained_ms = document["trained_ms"]
    state.registered, state.held_until = document["registered"], document["held_until"]
    state.history.restore(document["history"])
    state.bad_input.accept, state.bad_input.recent = document["accept_bad"], document["recent_bad"]


def weights_sha256(weights: Mapping[str, Buffer]) -> str:
    """Hash of a module's parameters and buffers, in the order of their names."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        digest.update(name.encode() + b"\0")
        digest.update(weights[name])
    return digest.hexdigest()


def _document(state: State, slabs: list[SlabView]) -> dict[str, Any]:
    """What S holds beside arrays and cursor (JSON)."""
    return {
        "learner": state.learner.document(),
        "monitor": state.monitor.document(),
        "slabs": [[int(slab.side), slab.number, slab.full] for slab in slabs],
        "watermark": int(state.join.watermark),
        "filled_in": int(state.join.filled_in),
        "assumed": int(state.join.assumed),
        "unscored": int(state.join.unscored_rows),
        "trained": state.trained,
        "trained_ms": state.trained_ms,
        "refused": state.refused,
        "registered": state.registered,
        "held_until": state.held_until,
        "history": state.history.document(),
        "accept_bad": state.bad_input.accept,
        "recent_bad": state.bad_input.recent,
    }


def _cursor(state: State, topic_ids: Mapping[str, str]) -> list[dict[str, Any]]:
    lines = []
    for partition, position in state.positions.items():
        where = {"topic": partition.topic, "topic_id": topic_ids[partition.topic], "partition": partition.number}
        fields = {name: never(value) if type(value) is int else value for name, value in asdict(position).items()}
        lines.append(where | fields)
    return lines


def positions_of(cursor: list[dict[str, Any]]) -> dict[Partition, Position]:
    """The positions of a cursor, in its order."""
    positions = {}
    for line in cursor:
        where, known = ("topic", "topic_id", "partition"), {k: v for k, v in line.items() if v is not None}
        fields = {name: value for name, value in known.items() if name not in where}
        positions[Partition(line["topic"], line["partition"])] = Position(**fields)
    return positions


def _slabs(listed: list[Any], arrays: Arrays, full_slab: FullSlab) -> Iterator[SlabView]:
    """One after another: a table that is larger than memory is never there as a whole."""
    for side, number, full in listed:
        columns = _under(_slab_prefix(side, number), arrays)
        status = columns.pop("status")
        columns, file = full_slab(side, number) if full else (columns, None)
        yield SlabView(Side(side), number, full, columns, status, file)


def _slab_prefix(side: int, number: int) -> str:
    return f"slab.{int(side)}.{number}."


def _under(prefix: str, arrays: Mapping[str, npt.NDArray[Any]]) -> Arrays:
    """The arrays whose name begins with `prefix`, without it."""
    return {n.removeprefix(prefix): array for n, array in arrays.items() if n.startswith(prefix)}
