"""What a snapshot owes the outside world: collected while S moves on, sealed as blobs by the commit."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from consumers.record import REJECTS, Partition
from pipeline.frozen import safetensors

if TYPE_CHECKING:
    from pipeline.state import State


@dataclass(frozen=True, slots=True)
class Letters:
    """The rejects of one span, owed to the dead-letter topic."""

    partition: Partition
    rejects: pa.RecordBatch


@dataclass(slots=True)
class Owed:
    """What the outside world is to see of the entries since the last snapshot. A commit empties it."""

    letters: list[Letters] = field(default_factory=list)
    points: list[dict[str, Any]] = field(default_factory=list)
    alarms: list[dict[str, Any]] = field(default_factory=list)
    version_due: bool = False


def owed_blobs(state: State, owed: Owed, topic_ids: dict[str, str]) -> dict[str, bytes | None]:
    """What the outside world is to see, by sink."""
    return {
        "dead_letters": _letters_blob(owed.letters, topic_ids),
        "points": json.dumps(owed.points).encode() if owed.points else None,
        "alarms": json.dumps(owed.alarms).encode() if owed.alarms else None,
        "version": _version_blob(state) if owed.version_due else None,
    }


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
    """The weights to publish, a full block with the scores that they give here, and the run's course for its report."""
    features_BC = state.batcher.newest_BC
    scores_BS = state.learner.score(features_BC)
    arrays = {f"model.{name}": array for name, array in state.learner.weights().items()}
    arrays["check.features"] = features_BC
    arrays["check.scores"] = scores_BS if state.learner.score_width > 1 else scores_BS[:, 0]
    course = {"alarms": state.monitor.document()["alarms"], "points": state.history.document()["points"]}
    arrays["course"] = np.frombuffer(json.dumps(course).encode(), np.uint8)
    return b"".join(safetensors(arrays))
