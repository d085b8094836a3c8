"""What a compiled scanner finds in one message, and the rules by which that becomes a row.

Each row format has a scanner of its own; the rules are the same for all of them. Both are the fast way: whatever is not
plainly good they leave to `consumers.codecs.fields`, which defines what is good and says what is wrong.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from consumers.codecs.table import RowArrays
from consumers.compiled import njit_inlined
from consumers.config import CategoricalColumn, FeaturesConfig, LabelRule, LabelsConfig, NumericColumn
from consumers.record import Blobs, Bytes1, Int64s, Messages

MISSING, NULL, BOOL, INTEGER, FLOAT, TEXT, SCRATCH, OTHER = range(8)
"""What stands in a field. SCRATCH is text too, but its bytes are in `Found.scratch`: it had escapes."""

SCRATCH_BYTES = 65_536


class MessageArrays(NamedTuple):
    """Messages as compiled loops take them: all arrays are read-only, so that there is one compiled variant."""

    offset_N: Int64s
    timestamp_N: Int64s
    keys: Blobs
    values: Blobs

    @classmethod
    def of(cls, messages: Messages) -> MessageArrays:
        """The same columns."""
        keys, values = (Blobs(*map(_read_only, blobs)) for blobs in (messages.keys, messages.values))
        return cls(_read_only(messages.offset_N), _read_only(messages.timestamp_N), keys, values)


def _read_only(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    view = array.view()
    view.flags.writeable = False
    return view


class Found(NamedTuple):
    """The U fields of one message, as a scanner leaves them. The driver sets all of `kind_U` to MISSING before."""

    kind_U: Bytes1
    integer_U: Int64s  # of INTEGER and BOOL
    number_U: npt.NDArray[np.float64]  # of FLOAT
    start_U: Int64s  # of TEXT, which must be UTF-8, in the message's buffer; of SCRATCH, in `scratch`
    length_U: Int64s  # in bytes
    scratch: Bytes1


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


BINARY, CLASS, NUMBER = range(3)


def planned(config: FeaturesConfig | LabelsConfig, label: LabelRule) -> tuple[list[str], Plan]:
    """The U distinct names of the fields that a topic's rows are made of, and what each is for."""
    numeric: tuple[NumericColumn, ...] = ()
    categorical: tuple[CategoricalColumn, ...] = ()
    if isinstance(config, FeaturesConfig):
        numeric, categorical = config.numeric, config.categorical
        parts = [config.key, config.time, config.weight, config.label]
    else:
        parts = [config.key, config.time, None, config.column]
    names = list(dict.fromkeys(column.name for column in (*numeric, *categorical)))
    names += dict.fromkeys(name for name in parts if name is not None and name not in names)
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
    )
    return names, plan


def new_found(names: int) -> Found:
    """Room for what a scanner finds of so many fields."""
    ints: Any = np.zeros((3, names), np.int64)
    return Found(
        np.zeros(names, np.uint8), ints[0], np.zeros(names), ints[1], ints[2], np.zeros(SCRATCH_BYTES, np.uint8)
    )


@njit_inlined
def take(messages: MessageArrays, index: int, found: Found, plan: Plan, rows: RowArrays) -> bool:
    """Makes row `index` of what was found in message `index`, or returns False: the slow way then decides."""
    return False
