"""Takes the rows of a batch through all detectors, block by block: one compiled call for as long as nothing is said.

Arrays come in named tuples. These go into a compiled call as `plain` ones and get their names back there: numba finds
the type of a named tuple in Python, and takes five times as long for the call.
"""

from __future__ import annotations

from typing import Any, NamedTuple, TypeAlias

from consumers.compiled import njit_cached, njit_merged
from consumers.record import Float32s, Int64s
from pipeline.drift.columns import Columns, Layout, close_columns, count_columns
from pipeline.drift.outcomes import Outcome, Places, count_outcomes
from pipeline.drift.reference import Model, count_wrong, learn
from pipeline.drift.windows import BLOCK_ROWS, UNIT, Windows, close_block

Plain: TypeAlias = tuple[Any, ...]
"""A named tuple, and those in it, without their names."""

ERROR_CRITICAL = 0.95
"""Of the deviation that is critical: only a rise of the error counts."""


class Rows(NamedTuple):
    """The rows of a batch that have weight."""

    features_RC: Float32s
    scores_RS: Float32s
    labels_R: Float32s
    number_R: Int64s  # how many were learned with it
    time_R: Int64s  # event time, in ms


class Place(NamedTuple):
    """Where the stream stands."""

    rows_1: Int64s  # watched so far
    noted_B2: Int64s  # number and event time of the first row of each of the newest blocks


class Settled(NamedTuple):
    """Which detectors know what is usual; the others' rows are kept elsewhere."""

    inputs: bool
    outcomes: bool


class Beyond(NamedTuple):
    """How far a block is beyond what is usual, as a multiple of what is critical; 0 where that is not known."""

    inputs: float
    outcomes: float


class Watched(NamedTuple):
    """All that rows are added to."""

    inputs: Columns
    reference: Model
    outcomes: Outcome
    place: Place


def plain(names: tuple[Any, ...]) -> Plain:
    """The same without names, as compiled calls take it."""
    return tuple(plain(value) if isinstance(value, tuple) else value for value in names)


@njit_merged
def named_columns(plain_columns: Plain) -> Columns:
    """The opposite of `plain`."""
    at, centre_F, scale_F, edges_EF, counters, means, standard_FB, rounded_FB = plain_columns
    return Columns(Layout(*at), centre_F, scale_F, edges_EF, counters, Windows(*means), standard_FB, rounded_FB)


@njit_merged
def _watched(plain_watched: Plain) -> Watched:
    inputs, reference, (kind, classes, at, centre_scale_2, means), place = plain_watched
    outcomes = Outcome(kind, classes, Places(*at), centre_scale_2, Windows(*means))
    return Watched(named_columns(inputs), Model(*reference), outcomes, Place(*place))


@njit_cached
def take_rows(
    plain_rows: Plain, plain_watched: Plain, plain_settled: Plain, start: int, stop: int, close_last: bool
) -> tuple[int, Plain]:
    """Takes rows `[start, stop)`, as `plain`, and closes each block, that which ends with `stop` only if `close_last`.

    Ends behind the first block of which there is something to say; returns where, and the last block's `Beyond`.
    """
    rows, watched, settled = Rows(*plain_rows), _watched(plain_watched), Settled(*plain_settled)
    at, beyond = start, (0.0, 0.0)
    while at < stop:
        end = min(stop, at + BLOCK_ROWS - watched.place.rows_1[0] % BLOCK_ROWS)
        _take(rows, watched, settled, at, end)
        at = end
        if watched.place.rows_1[0] % BLOCK_ROWS == 0 and (at < stop or close_last):
            beyond = _close(watched, settled)
            if beyond[0] > 1 or beyond[1] > ERROR_CRITICAL:
                break
    return at, beyond


@njit_cached
def close_detectors(plain_watched: Plain, plain_settled: Plain) -> Plain:
    """Tests after a block; returns its `Beyond`."""
    return _close(_watched(plain_watched), Settled(*plain_settled))


@njit_cached
def _close(watched: Watched, settled: Settled) -> tuple[float, float]:
    inputs = close_columns(watched.inputs) if settled.inputs else 0.0
    outcomes = close_block(watched.outcomes.means, True) if settled.outcomes else 0.0
    return inputs, outcomes


@njit_cached
def _take(rows: Rows, watched: Watched, settled: Settled, start: int, stop: int) -> None:
    """Gives rows of one block to the detectors that have settled, and to the reference model."""
    features_RC, labels_R, standard_FB = rows.features_RC, rows.labels_R, watched.inputs.standard_FB
    if settled.inputs:
        count_columns(features_RC, start, stop, watched.inputs)
        if settled.outcomes:
            wrong = count_wrong(features_RC, labels_R, start, stop, standard_FB, watched.reference)
            watched.outcomes.means.sums_D[watched.outcomes.at.reference] += UNIT * wrong
            count_outcomes(rows.scores_RS, labels_R, start, stop, watched.outcomes)
        else:
            learn(features_RC, labels_R, start, stop, standard_FB, watched.reference)
    go_on(watched.place, rows.number_R, rows.time_R, start, stop)


@njit_merged
def go_on(place: Place, number_R: Int64s, time_R: Int64s, start: int, stop: int) -> None:
    """Goes past rows `[start, stop)` of one block; notes its first one."""
    if place.rows_1[0] % BLOCK_ROWS == 0:
        block = place.rows_1[0] // BLOCK_ROWS % len(place.noted_B2)
        place.noted_B2[block, 0], place.noted_B2[block, 1] = number_R[start], time_R[start]
    place.rows_1[0] += stop - start
