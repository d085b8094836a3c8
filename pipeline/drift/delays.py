"""What labels are late by, in octaves. Only labels that were sent count, so the blocks are of these rows alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from consumers.compiled import njit_cached
from consumers.record import Float32s, Int64s
from pipeline.drift import Alarm
from pipeline.drift.blocks import Place, Plain, go_on, named_columns, plain
from pipeline.drift.columns import close_columns, count_columns
from pipeline.drift.inputs import Inputs
from pipeline.drift.naming import Since, delay_alarm
from pipeline.drift.windows import BLOCK_ROWS
from pipeline.quality import Arrays, fill

_MIN = 0.5  # octaves: rows of a batch share much of theirs, so a window holds few of them
_NOTABLE = 0.4  # of what is critical: the mean is said even where it was a share that has moved
_DEVIATION = 2.0  # octaves at least: where all delays are alike, others still lie within the 4 that are told apart


class Delays:
    """Watches one column: log2(1 + ms)."""

    def __init__(self, *, settle_rows: int, p: float) -> None:
        self._inputs = Inputs(1, 0, settle_rows=settle_rows, p=p, deviation_min=_DEVIATION, notable=_NOTABLE)
        self._since = Since()
        self._columns, self._place = plain(self._inputs.arrays), plain(self._since.arrays)

    def observe(self, late_R: Int64s, number_R: Int64s, time_R: Int64s) -> list[Alarm]:
        """The alarms that rows raise, in their order: their delays in ms, numbers and event times."""
        late_R1 = np.log2(1 + np.maximum(late_R, 0)).astype(np.float32)[:, None]
        alarms: list[Alarm] = []
        at = 0
        while at < len(late_R1):
            start, settled = at, self._inputs.settled
            at, beyond = _take(late_R1, number_R, time_R, self._columns, self._place, start, settled)
            self._since.here = int(number_R[at - 1]), int(time_R[at - 1])
            if not settled:
                self._inputs.keep(late_R1[start:at])
                if self._since.block_to_go == BLOCK_ROWS:
                    self._inputs.settle()
            elif beyond > 1:
                alarm = delay_alarm(self._inputs, self._since)
                if abs(alarm.effect) >= _MIN:
                    self._inputs.restart()
                    alarms.append(alarm)
        return alarms

    def state(self) -> dict[str, Arrays]:
        parts = {**self._inputs.state(), "since": self._since.state()}
        return {f"delay_{name}": part for name, part in parts.items()}

    def restore(self, parts: Mapping[str, Mapping[str, npt.NDArray[Any]]]) -> None:
        own = {name.removeprefix("delay_"): part for name, part in parts.items() if name.startswith("delay_")}
        self._inputs.restore(own)
        fill(self._since.state(), own.get("since", {}))


@njit_cached
def _take(
    late_R1: Float32s,
    number_R: Int64s,
    time_R: Int64s,
    plain_columns: Plain,
    plain_place: Plain,
    start: int,
    settled: bool,
) -> tuple[int, float]:
    """Takes rows from `start` on. Ends behind the first block that says something, or any before it has settled.

    Returns where, and how far that block is beyond what is usual, as a multiple of what is critical.
    """
    columns, place, at, beyond = named_columns(plain_columns), Place(*plain_place), start, 0.0
    while at < len(late_R1):
        stop = min(len(late_R1), at + BLOCK_ROWS - place.rows_1[0] % BLOCK_ROWS)
        if settled:
            count_columns(late_R1, at, stop, columns)
        go_on(place, number_R, time_R, at, stop)
        at = stop
        if place.rows_1[0] % BLOCK_ROWS == 0:
            beyond = close_columns(columns) if settled else 0.0
            if not settled or beyond > 1:
                break
    return at, beyond
