"""What a compiled scanner finds in one message, and the rules by which that becomes a row.

Each row format has a scanner of its own; the rules are the same for all of them. Both are the fast way: whatever is not
plainly good they leave to `consumers.codecs.fields`, which defines what is good and says what is wrong.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from consumers.record import Bytes1, Int64s

MISSING, NULL, BOOL, INTEGER, FLOAT, TEXT, SCRATCH = range(7)
"""What stands in a field. SCRATCH is text too, but its bytes are in `Found.scratch`: it had escapes."""

SCRATCH_BYTES = 65_536


class Found(NamedTuple):
    """The U fields of one message, as a scanner leaves them. The driver sets all of `kind_U` to MISSING before."""

    kind_U: Bytes1
    integer_U: Int64s  # of INTEGER and BOOL
    number_U: npt.NDArray[np.float64]  # of FLOAT
    start_U: Int64s  # of TEXT, in the message's buffer; of SCRATCH, in `scratch`
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


def new_found(names: int) -> Found:
    """Room for what a scanner finds of so many fields."""
    ints: Any = np.zeros((3, names), np.int64)
    return Found(
        np.zeros(names, np.uint8), ints[0], np.zeros(names), ints[1], ints[2], np.zeros(SCRATCH_BYTES, np.uint8)
    )
