"""Has the stream changed? One file per detector."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy.typing as npt

FAMILIES = (
    "concept",
    "feature",
    "correlation",
    "label",
    "prediction",
    "calibration",
    "missing",
    "category",
    "label_delay",
)


class Shift(NamedTuple):
    """What a detector noticed, and at which of the rows it was given."""

    row: int
    column: int
    before: float
    after: float
    rows: int  # the newest, which it holds for


class DriftDetector(Protocol):
    """Watches a stream of numbers; what it finds does not depend on how the stream is cut into updates."""

    def update(self, values: npt.NDArray[Any]) -> list[Shift]:
        """Takes the next rows, [N] or [N, C], in order, and returns the shifts that they prove."""
        ...

    def state(self) -> dict[str, npt.NDArray[Any]]:
        """Everything, as views that are valid until the next update."""
        ...

    def restore(self, state: Mapping[str, npt.NDArray[Any]]) -> None:
        """Copies a `state`. Raises SnapshotError if it was made with another configuration."""
        ...


@dataclass(frozen=True, slots=True)
class Alarm:
    """One noticed change, for people and for the gate."""

    family: str  # one of FAMILIES
    feature: str | None  # the column that moved most, or the pair of them
    row: int  # rows learned when it was raised
    event_time: int  # ms since the epoch, of the row that proved it
    since_row: int  # the change is in all rows from here on, as far as can be told
    since_time: int  # ms since the epoch, of that row or of one at most 128 rows before it
    effect: float  # concept: rise of the mean error; shares: their change; else in standard deviations
    p: float  # probability of this or more without a change, corrected for how much is watched
    detail: str

    def document(self) -> dict[str, Any]:
        """All fields, ready for JSON; ten times as fast as `dataclasses.asdict`."""
        return {name: getattr(self, name) for name in self.__slots__}
