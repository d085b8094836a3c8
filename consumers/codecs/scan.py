"""What a compiled scanner finds in one message, and the rules by which that becomes a row.

Each row format has a scanner of its own; the rules are the same for all of them. Both are the fast way: whatever is not
plainly good they leave to `consumers.codecs.fields`, which defines what is good and says what is wrong.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from consumers.codecs.fields import NUMERIC_MAX
from consumers.codecs.table import RowArrays
from consumers.codecs.text import valid_text
from consumers.codecs.words import swapped
from consumers.codecs.xxh3 import LENGTH_MAX, xxh3_64, xxh3_128
from consumers.compiled import njit_merged
from consumers.config import CategoricalColumn, FeaturesConfig, LabelRule, LabelsConfig, NumericColumn
from consumers.record import Blobs, Bytes1, Float32s, Int64s, Kind, Messages

MISSING, NULL, BOOL, INTEGER, FLOAT, TEXT, SCRATCH, OTHER, OBJECT = range(9)
"""What stands in a field. SCRATCH is text too, but its bytes are in `Found.scratch`: it had
escapes. No part takes OTHER (lists, bytes, numbers beyond float64 and int64, ...) or OBJECT."""

SCRATCH_BYTES = 65_536
"""Of `Found.scratch`, for scanners to unescape text into."""

INTEGER_BYTES = 20
"""At the end of `Found.scratch`: the longest int64 in decimal."""


class MessageArrays(NamedTuple):
    """Messages as compiled loops take them: all arrays are read-only, so that there is one compiled variant."""

    offset_N: Int64s
    timestamp_N: Int64s
    keys: Blobs
    values: Blobs

    @classmethod
    def of(cls, messages: Messages) -> MessageArrays:
        """The same columns."""
        columns = (messages.offset_N, messages.timestamp_N, *messages.keys, *messages.values)
        views: list[Any] = [column[:] for column in columns]
        for view in views:
            view.flags.writeable = False
        return cls(views[0], views[1], Blobs(*views[2:5]), Blobs(*views[5:]))


class Found(NamedTuple):
    """The U fields of one message, as a scanner leaves them. The driver sets all of `kind_U` to MISSING before."""

    kind_U: Bytes1
    integer_U: Int64s  # of INTEGER and BOOL
    number_U: npt.NDArray[np.float64]  # of FLOAT
    start_U: Int64s  # of TEXT, which must be UTF-8, in the message's buffer; of SCRATCH, in `scratch`
    length_U: Int64s  # in bytes
    scratch: Bytes1
    unescaped: Bytes1  # the same memory, read-only as messages are: what reads text is compiled once for both


class Plan(NamedTuple):
    """Which field plays which part, by its index among the U names; -1 for a part that no field plays."""

    numeric_M: Int64s
    nullable_M: npt.NDArray[np.bool_]
    category_K: Int64s
    buckets_K: Int64s
    null_K: npt.NDArray[np.bool_]  # whether that category may be null
    key: int  # -1: the message key
    time: int  # -1: the record's timestamp
    weight: int
    label: int
    max_skew: int
    label_kind: int  # BINARY, CLASS or NUMBER
    classes: int
    bytes_max: int
    envelope: int  # BARE, CLOUDEVENTS or DEBEZIUM


BINARY, CLASS, NUMBER = range(3)
BARE, CLOUDEVENTS, DEBEZIUM = range(3)


def planned(config: FeaturesConfig | LabelsConfig, label: LabelRule) -> tuple[list[str], Plan]:
    """The U distinct names of the fields that a topic's rows are made of, and what each is for."""
    numeric: tuple[NumericColumn, ...] = ()
    categorical: tuple[CategoricalColumn, ...] = ()
    if isinstance(config, FeaturesConfig):
        numeric, categorical = config.numeric, config.categorical
        parts = [config.key, config.time, config.weight, config.label]
    else:
        parts = [config.key, config.time, None, config.column]
    columns = [column.name for column in numeric] + [column.name for column in categorical]
    names = list(dict.fromkeys(columns + [name for name in parts if name is not None]))
    index = {name: number for number, name in enumerate(names)}
    key, time, weight, label_field = (-1 if name is None else index[name] for name in parts)
    plan = Plan(
        np.array([index[column.name] for column in numeric], np.int64),
        np.array([column.nullable for column in numeric], np.bool_),
        np.array([index[column.name] for column in categorical], np.int64),
        np.array([column.buckets for column in categorical], np.int64),
        np.array([column.nullable for column in categorical], np.bool_),
        key,
        time,
        weight,
        label_field,
        config.max_skew,
        ("binary", "class", "number").index(label.kind),
        label.classes,
        config.max_message_bytes,
        ("none", "cloudevents", "debezium").index(config.envelope),
    )
    return names, plan


def new_found(names: int) -> Found:
    """Room for what a scanner finds of so many fields."""
    ints: Any = np.zeros((3, names), np.int64)
    scratch = np.zeros(SCRATCH_BYTES + INTEGER_BYTES, np.uint8)
    unescaped = scratch[:]
    unescaped.flags.writeable = False
    return Found(np.zeros(names, np.uint8), ints[0], np.zeros(names), ints[1], ints[2], scratch, unescaped)


@njit_merged
def take(messages: MessageArrays, index: int, found: Found, plan: Plan, rows: RowArrays) -> bool:
    """Makes row `index` of what was found in message `index`, or returns False: the slow way then decides."""
    for number in range(len(plan.numeric_M)):
        if not take_number(number, found, plan, rows.features_NC, index):
            return False
    rows.row_N[index] = 0
    return take_parts(messages, index, found, plan, rows, index)


@njit_merged
def take_parts(messages: MessageArrays, index: int, found: Found, plan: Plan, rows: RowArrays, at: int) -> bool:
    """Of row `at`, all but its numeric columns and its number within message `index`."""
    rows.offset_N[at] = messages.offset_N[index]
    rows.kind_N[at] = Kind.EVENT
    rows.event_time_N[at] = _time(messages.timestamp_N[index], found, plan)
    rows.weight_N[at] = weight = 1.0 if plan.weight < 0 else _number(found, plan.weight)
    rows.label_N[at] = np.nan if plan.label < 0 else _label(found, plan)
    return (
        rows.event_time_N[at] >= 0
        and weight >= 0
        and np.isfinite(rows.weight_N[at])
        and (plan.label < 0 or np.isfinite(rows.label_N[at]))
        and _put_categories(messages.values.data, found, plan, rows.features_NC, at)
        and _put_key(messages, index, found, plan, rows.key_N2, at)
    )


@njit_merged
def take_number(number: int, found: Found, plan: Plan, features_NC: Float32s, at: int) -> bool:
    """One numeric column of row `at`."""
    field = plan.numeric_M[number]
    if found.kind_U[field] not in (FLOAT, INTEGER, MISSING, NULL):
        return False
    value = _number(found, field)
    if not abs(value) <= NUMERIC_MAX:
        if not (np.isnan(value) and plan.nullable_M[number]):
            return False
        value = np.nan  # whatever NaN it was
    features_NC[at, number] = value
    return True


@njit_merged
def _time(timestamp: int, found: Found, plan: Plan) -> int:
    """The event time; negative where there is none that is good."""
    if plan.time < 0:
        return timestamp
    time = found.integer_U[plan.time]
    return time if found.kind_U[plan.time] == INTEGER and time - plan.max_skew <= timestamp else -1


@njit_merged
def _number(found: Found, field: int) -> float:
    """A number, or NaN."""
    if found.kind_U[field] == INTEGER:
        return float(found.integer_U[field])
    return found.number_U[field] if found.kind_U[field] == FLOAT else np.nan


@njit_merged
def _label(found: Found, plan: Plan) -> float:
    """A label that the task accepts, or something that is not finite."""
    kind, integer = found.kind_U[plan.label], found.integer_U[plan.label]
    if plan.label_kind == CLASS:
        return float(integer) if kind == INTEGER and 0 <= integer < plan.classes else np.nan
    value = float(integer) if kind == BOOL and plan.label_kind == BINARY else _number(found, plan.label)
    return value if plan.label_kind == NUMBER or value in (0.0, 1.0) else np.nan


@njit_merged
def _put_categories(data: Bytes1, found: Found, plan: Plan, features_NC: Float32s, at: int) -> bool:
    for number, field in enumerate(plan.category_K):
        kind, bucket = found.kind_U[field], np.uint64(0)
        if kind in (MISSING, NULL):
            if not plan.null_K[number]:
                return False
        else:
            in_scratch, start, length = _text(found, field)
            if not 0 < length <= LENGTH_MAX:
                return False
            hashed = xxh3_64(found.unescaped if in_scratch else data, start, length)
            bucket = np.uint64(1) + hashed % np.uint64(plan.buckets_K[number] - 1)
        features_NC[at, len(plan.numeric_M) + number] = bucket
    return True


@njit_merged
def _put_key(
    messages: MessageArrays, index: int, found: Found, plan: Plan, key_N2: npt.NDArray[np.uint64], at: int
) -> bool:
    keys = messages.keys
    text, start, length = keys.data, keys.start_N[index], keys.length_N[index]
    if plan.key >= 0:
        in_scratch, start, length = _text(found, plan.key)
        text = found.unescaped if in_scratch else messages.values.data
    if not 0 < length <= LENGTH_MAX:
        return False
    if plan.key < 0 and not valid_text(text, start, start + length):
        return False
    low, high = xxh3_128(text, start, length)
    key_N2[at, 0], key_N2[at, 1] = swapped(high), swapped(low)
    return True


@njit_merged
def _text(found: Found, field: int) -> tuple[bool, int, int]:
    """The canonical text of a key or category: whether it is in `scratch`, its start and length; 0 if there is none."""
    kind = found.kind_U[field]
    if kind in (TEXT, SCRATCH):
        return kind == SCRATCH, found.start_U[field], found.length_U[field]
    if kind != INTEGER:
        return False, 0, 0
    integer, start = found.integer_U[field], len(found.scratch)  # written from the last digit on
    rest = np.uint64(-integer if integer < 0 else integer)
    while True:
        start -= 1
        found.scratch[start] = np.uint64(48) + rest % np.uint64(10)
        rest //= np.uint64(10)
        if not rest:
            break
    if integer < 0:
        start -= 1
        found.scratch[start] = 45
    return True, start, len(found.scratch) - start
