"""Rows out of the columns of Arrow streams that are laid out as most are, compiled.

Like every fast way it may only take what the slow way takes: a row that is not plainly good is left to it, and so is a
whole stream whose columns are not where they should be.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from consumers.codecs.cells import REAL, SIGNED, UNSIGNED, find_number, integer_at, real_at
from consumers.codecs.fields import NUMERIC_MAX
from consumers.codecs.ipc import BATCH, Part, buffer_at, int32_at, int64_at, pair, part_at
from consumers.codecs.scan import BOOL, INTEGER, NULL, TEXT, Found, MessageArrays, Plan, take_parts
from consumers.codecs.table import RowArrays
from consumers.codecs.text import valid_text
from consumers.codecs.words import half
from consumers.compiled import njit_cached, njit_merged
from consumers.config import INT64_MAX
from consumers.record import Bytes1, Int64s

FLAGS, TEXTS, TIMES, NOTHING = range(REAL + 1, REAL + 5)
"""What the cells of a column mean, beside the numbers of `cells`; the width of TEXTS is that of their offsets."""


_FLOAT32_MAX = np.float32(NUMERIC_MAX)  # rounded down, so that no float32 is between the two


class Layout(NamedTuple):
    """Where a schema has the U columns that rows are made of, and what they hold."""

    meaning_U: Int64s
    width_U: Int64s  # of a cell, in bytes
    factor_U: Int64s  # of TIMES: ms in a unit, or, negative, units in a ms
    node_U: Int64s  # -1: the schema has no such column
    buffer_U: Int64s  # the first of its buffers
    part_P: Int64s  # the columns that are more than numeric
    nodes: int  # of a whole batch
    buffers: int


class Places(NamedTuple):
    """Where the U columns of one batch begin in the stream's buffer."""

    valid_U: Int64s  # -1: nothing is null
    cells_U: Int64s  # of TEXTS: the offsets
    text_U: Int64s
    float32_M: Int64s  # where the cells of a numeric column begin that has float32 and no null; -1 for another one


def new_places(columns: int, numeric: int) -> Places:
    """Room for the places of one batch."""
    return Places(*(np.zeros(size, np.int64) for size in (columns, columns, columns, numeric)))


class Columns(NamedTuple):
    """All about the columns: of a schema, of one batch, what they are for, and what is found in one row."""

    layout: Layout
    places: Places
    plan: Plan
    found: Found


class Target(NamedTuple):
    """Where the R rows of N messages go."""

    start_N1: Int64s  # the first row of each; then R
    rows: RowArrays
    good_R: npt.NDArray[np.bool_]

    def part(self, index: int) -> Target:
        """Of one message."""
        start, stop = self.start_N1[index : index + 2].tolist()
        arrays: tuple[Any, ...] = self.rows
        rows = RowArrays(*[array[start:stop] for array in arrays])
        return Target(self.start_N1[index : index + 2] - start, rows, self.good_R[start:stop])


@njit_cached
def decode(messages: MessageArrays, index_M: Int64s, columns: Columns, target: Target) -> None:
    """Puts the rows of the messages with these indices, all of one layout; sets `good_R` of the good ones."""
    data, rows = messages.values.data, target.rows
    for index in index_M:
        start = messages.values.start_N[index]
        stop = start + messages.values.length_N[index]
        first = at = target.start_N1[index]
        part = part_at(data, part_at(data, start, stop).stop, stop)
        while part.kind == BATCH and _locate(data, part, columns):
            _take_batch(messages, index, part.rows, at, columns, target)
            for row in range(at, at + part.rows):
                rows.row_N[row] = row - first
            at += part.rows
            part = part_at(data, part.stop, stop)


@njit_cached
def _locate(data: Bytes1, part: Part, columns: Columns) -> bool:
    """Finds the columns of a batch. False unless all of them are whole and lie within its body."""
    layout, places = columns.layout, columns.places
    good = part.node_count == layout.nodes and part.buffer_count == layout.buffers
    for column in range(len(layout.meaning_U)):
        good = good and _locate_column(data, part, layout, places, column)
    for number, column in enumerate(columns.plan.numeric_M):
        swift = layout.meaning_U[column] == REAL and layout.width_U[column] == 4 and places.valid_U[column] < 0
        places.float32_M[number] = places.cells_U[column] if swift else -1
    return good


@njit_cached
def _locate_column(data: Bytes1, part: Part, layout: Layout, places: Places, column: int) -> bool:
    meaning, width, buffer = layout.meaning_U[column], layout.width_U[column], layout.buffer_U[column]
    places.valid_U[column] = -1
    if layout.node_U[column] < 0:
        return True
    rows, nulls = pair(data, part.nodes, layout.node_U[column])
    if meaning == NOTHING or rows == 0 or rows != part.rows:
        return rows == part.rows
    if nulls != 0:
        valid = buffer_at(data, part, buffer, (rows + 7) // 8)
        places.valid_U[column] = valid
        if valid < 0 or _count_nulls(data, valid, rows) != nulls:
            return False
    cells_bytes = (rows + 7) // 8 if meaning == FLAGS else width * (rows + 1 if meaning == TEXTS else rows)
    cells = buffer_at(data, part, buffer + 1, cells_bytes)
    places.cells_U[column] = cells
    if cells < 0 or meaning != TEXTS:
        return cells >= 0
    text = buffer_at(data, part, buffer + 2, _offset(data, cells + width * rows, width))
    places.text_U[column] = text
    return text >= 0 and _ascend(data, cells, rows, width)


@njit_cached
def _count_nulls(data: Bytes1, valid: int, rows: int) -> int:
    nulls = 0
    for row in range(rows):
        nulls += not _bit(data, valid, row)
    return nulls


@njit_cached
def _ascend(data: Bytes1, offsets: int, rows: int, width: int) -> bool:
    """Whether each text begins where the one before it ends, or later than 0 if it is the first, and none has ended."""
    good = _offset(data, offsets, width) >= 0
    for row in range(rows):
        at = offsets + row * width
        good &= _offset(data, at, width) <= _offset(data, at + width, width)
    return good


@njit_merged
def _offset(data: Bytes1, at: int, width: int) -> int:
    return int32_at(data, at) if width == 4 else int64_at(data, at)


@njit_merged
def _bit(data: Bytes1, start: int, number: int) -> bool:
    return bool(data[start + (number >> 3)] >> (number & 7) & 1)


@njit_cached
def _take_batch(messages: MessageArrays, index: int, count: int, first: int, columns: Columns, target: Target) -> None:
    """Makes `count` rows, from `first` on, of a batch of message `index`."""
    layout, places, plan, found = columns
    data, rows = messages.values.data, target.rows
    for row in range(count):
        at, good = first + row, True
        for number in range(len(plan.numeric_M)):
            start = places.float32_M[number]
            if start >= 0:
                single = np.uint32(half(data, start + 4 * row)).view(np.float32)
                rows.features_NC[at, number] = single
                usable = bool(abs(single) <= _FLOAT32_MAX)
            else:
                value = _number(data, row, layout, places, plan.numeric_M[number])
                rows.features_NC[at, number] = value
                usable = abs(value) <= NUMERIC_MAX
            if not usable:
                good = good and np.isnan(rows.features_NC[at, number]) and plan.nullable_M[number]
                rows.features_NC[at, number] = np.nan  # whatever NaN it was
        for column in layout.part_P:
            good = good and _cell(data, row, layout, places, column, found)
        target.good_R[at] = good and take_parts(messages, index, found, plan, rows, at)


@njit_merged
def _number(data: Bytes1, row: int, layout: Layout, places: Places, column: int) -> float:
    """A number; NaN for null, and infinite for what only the slow way can tell."""
    meaning, width, valid = layout.meaning_U[column], layout.width_U[column], places.valid_U[column]
    if meaning == NOTHING or (valid >= 0 and not _bit(data, valid, row)):
        return float(np.nan)
    at = places.cells_U[column] + width * row
    if meaning == REAL:
        return real_at(data, at, width)
    integer = integer_at(data, at, meaning, width) if meaning in (SIGNED, UNSIGNED) else -1
    return float(integer) if meaning == SIGNED or integer >= 0 else np.inf


@njit_merged
def _cell(data: Bytes1, row: int, layout: Layout, places: Places, column: int, found: Found) -> bool:
    """Takes one cell for what is found in its field. False if only the slow way can tell what it is."""
    meaning, width, cells = layout.meaning_U[column], layout.width_U[column], places.cells_U[column]
    if meaning == NOTHING or (places.valid_U[column] >= 0 and not _bit(data, places.valid_U[column], row)):
        found.kind_U[column] = NULL
    elif meaning == TEXTS:
        start = places.text_U[column] + _offset(data, cells + row * width, width)
        stop = places.text_U[column] + _offset(data, cells + row * width + width, width)
        found.kind_U[column], found.start_U[column], found.length_U[column] = TEXT, start, stop - start
        return valid_text(data, start, stop)
    elif meaning == FLAGS:
        found.kind_U[column], found.integer_U[column] = BOOL, _bit(data, cells, row)
    elif meaning == TIMES:
        return _time(int64_at(data, cells + 8 * row), layout.factor_U[column], column, found)
    else:
        return find_number(data, cells + width * row, meaning, width, column, found)
    return True


@njit_merged
def _time(value: int, factor: int, column: int, found: Found) -> bool:
    found.kind_U[column] = INTEGER
    if factor < 0:
        found.integer_U[column] = value // -factor
        return True
    found.integer_U[column] = value * factor
    return bool(abs(value) <= INT64_MAX // factor)
