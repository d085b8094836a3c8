"""Columns of a file as the codec takes them: numbers that float32 can hold, categories and classes.

What becomes of values that cannot be taken as they are is logged, once for a column.
"""

from __future__ import annotations

import logging

import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import types

from consumers.codecs.fields import NUMERIC_MAX
from consumers.errors import ConfigError
from pipeline.bank.method import LABEL_MAX
from pipeline.config import CLASSES_MAX

_OFFSET_MAX = 1e4
"""Standard deviations between 0 and a column's values beyond which float32 loses much of what differs among them."""

_OFFSET_ROUNDED = 1e14  # beyond it, what differs is rounding of float64
_CODES_SHOWN = 5
_TICKS_PER_S = {"s": 1.0, "ms": 1e3, "us": 1e6, "ns": 1e9}

log = logging.getLogger("evertrain")


def feature(name: str, column: pa.ChunkedArray, *, categorical: bool) -> tuple[str, pa.ChunkedArray]:
    """Whether a column is "numeric" or "categorical", and its values. Raises ConfigError."""
    column = _plain(column)
    if types.is_large_string(column.type):
        return "categorical", column
    if not (_is_number(column.type) or _is_time(column.type)):
        raise ConfigError(f"column {name!r} is {column.type}, neither text nor a number; add it to --drop")
    if categorical:
        return "categorical", _category(name, column)
    numbers = _seconds(column) if _is_time(column.type) else _numbers(column)
    return "numeric", _limited(name, _without_offset(f"column {name!r}", numbers))


def targets(name: str, column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Labels of a regression, float64. Raises ConfigError."""
    where, column = f"--label {name}", _plain(column)
    if not _is_number(column.type):
        raise ConfigError(f"{where} is {_type_name(column)}; the task regression takes numbers")
    numbers = _without_offset(where, _known(where, _numbers(column)))
    beyond = pc.greater(pc.abs(numbers), LABEL_MAX)
    if count := _count(beyond):
        what = f"{count} labels are infinite or beyond ±{LABEL_MAX:.0e}"
        log.warning("%s: %s: their rows are left out; divide the column to have them learned", where, what)
        numbers = pc.if_else(beyond, None, numbers)
    return numbers


def classes(name: str, column: pa.ChunkedArray, task: str) -> tuple[pa.ChunkedArray, int]:
    """Labels of the task "binary" or "multiclass", int64, and how many classes there are. Raises ConfigError.

    Whole numbers that are classes already are taken as they are; other values are classes in their sorted order.
    """
    where, most, column = f"--label {name}", 2 if task == "binary" else CLASSES_MAX, _plain(column)
    if not (_is_number(column.type) or types.is_large_string(column.type)):
        raise ConfigError(f"{where} is {column.type}; the task {task} takes text or numbers")
    values = _known(where, _finite(_numbers(column)) if types.is_floating(column.type) else column)
    whole = _whole(values) if _is_number(values.type) else None
    if whole is not None:
        bounds = pc.min_max(whole).as_py()
        if 0 <= bounds["min"] <= bounds["max"] < most:
            return whole, max(bounds["max"] + 1, 2)
    distinct = pc.unique(values).drop_null()
    if len(distinct) > most:
        other = {"binary": ["multiclass"], "multiclass": []}[task] + ["regression"] * _is_number(values.type)
        advice = f"; take --task {' or '.join(other)}" if other else ""
        raise ConfigError(f"{where} has {len(distinct)} distinct values; the task {task} takes {most}{advice}")
    return _coded(where, values, distinct), max(len(distinct), 2)


def _coded(where: str, values: pa.ChunkedArray, distinct: pa.Array) -> pa.ChunkedArray:
    """The rank of each value, int64, null where there is none."""
    ranked = distinct.take(pc.sort_indices(distinct))
    names = [repr(each) if isinstance(each, str) else str(each) for each in ranked[:_CODES_SHOWN].to_pylist()]
    shown = ", ".join(f"{value} is {code}" for code, value in enumerate(names))
    more = f", and so on: {len(ranked)} classes" if len(ranked) > _CODES_SHOWN else ""
    log.info("%s: %s%s", where, shown, more)
    return pc.index_in(values, value_set=ranked).cast(pa.int64())


def _plain(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Without a dictionary; text as large_string, null where it is empty."""
    coded = types.is_dictionary(column.type)
    kind = column.type.value_type if coded else column.type
    if types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind):
        text = column.cast(pa.large_string())
        return pc.if_else(pc.equal(text, ""), None, text)
    return column.cast(kind) if coded else column


def _is_number(kind: pa.DataType) -> bool:
    """A column in which nothing has a value counts as numeric."""
    tests = (types.is_integer, types.is_floating, types.is_decimal, types.is_boolean, types.is_null)
    return any(test(kind) for test in tests)


def _is_time(kind: pa.DataType) -> bool:
    return any(test(kind) for test in (types.is_timestamp, types.is_date, types.is_time, types.is_duration))


def _type_name(column: pa.ChunkedArray) -> str:
    return "text" if types.is_large_string(column.type) else str(column.type)


def _category(name: str, column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Whole numbers, as text where int64 has no room for them: a category's hash is that of its text."""
    column = _ticks(column) if _is_time(column.type) else column
    whole = _whole(column)
    if whole is None and types.is_uint64(column.type):
        return column.cast(pa.large_string())
    if whole is None:
        raise ConfigError(
            f"--categorical {name}: a category is text or a whole number, but it holds fractions or more than 64 bits"
        )
    return whole


def _numbers(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """As float64, null where there is no number."""
    numbers = column.cast(pa.uint8() if types.is_boolean(column.type) else column.type).cast(pa.float64(), safe=False)
    return pc.if_else(pc.is_nan(numbers), None, numbers)


def _whole(column: pa.ChunkedArray) -> pa.ChunkedArray | None:
    """As int64, null where there is no number; None if they are not all whole."""
    try:
        return (column if types.is_integer(column.type) else _numbers(column)).cast(pa.int64())
    except pa.ArrowInvalid:
        return None


def _ticks(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Times as the integers that stand for them: since midnight, or since 1970, in the column's unit; days in s."""
    if types.is_date(column.type):
        column = column.cast(pa.timestamp("s"), safe=False)
    return column.cast(pa.int32() if types.is_time32(column.type) else pa.int64())


def _seconds(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Times as seconds since the first one that is known, float64."""
    ticks = _ticks(column).cast(pa.float64(), safe=False)
    known = ticks.drop_null()
    if not len(known):
        return ticks
    unit = "s" if types.is_date(column.type) else column.type.unit
    return pc.divide(pc.subtract(ticks, known[0]), _TICKS_PER_S[unit])


def _known(where: str, labels: pa.ChunkedArray) -> pa.ChunkedArray:
    if labels.null_count == len(labels):
        raise ConfigError(f"{where}: no row has a label")
    return labels


def _finite(numbers: pa.ChunkedArray) -> pa.ChunkedArray:
    """Null where they are infinite; no zero is negative."""
    return pc.add(pc.if_else(pc.is_inf(numbers), None, numbers), 0.0)


def _limited(name: str, numbers: pa.ChunkedArray) -> pa.ChunkedArray:
    """What a numeric column may hold: null for infinity, and the nearest that the pipeline takes."""
    infinite = pc.is_inf(numbers)
    if count := _count(infinite):
        log.warning("column %r: %d values are infinite, taken as missing", name, count)
        numbers = pc.if_else(infinite, None, numbers)
    if count := _count(pc.greater(pc.abs(numbers), NUMERIC_MAX)):
        log.warning("column %r: %d values are beyond ±%.0e, taken as that", name, count, NUMERIC_MAX)
        numbers = pc.min_element_wise(numbers, NUMERIC_MAX, skip_nulls=False)
        numbers = pc.max_element_wise(numbers, -NUMERIC_MAX, skip_nulls=False)
    return numbers


def _without_offset(where: str, numbers: pa.ChunkedArray) -> pa.ChunkedArray:
    """Less the first finite one, where they are that far from 0 that float32 does not tell them apart."""
    finite = numbers.filter(pc.is_finite(numbers))
    if not len(finite):
        return numbers
    first = finite[0].as_py()
    spread = pc.stddev(pc.subtract(finite, first)).as_py()
    if not _OFFSET_MAX * spread < abs(first) < _OFFSET_ROUNDED * spread:
        return numbers
    log.info("%s: %r, its first value, is subtracted: float32 holds only what differs from it", where, first)
    return pc.subtract(numbers, first)


def _count(flags: pa.ChunkedArray) -> int:
    return pc.sum(flags).as_py() or 0
