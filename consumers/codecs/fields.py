"""The rules of single fields, for every format that decodes a message to named values.

Each rule takes a field's name and the decoded record, returns the value, and raises Reject with the reason.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping
from typing import Any

from consumers.config import LabelRule
from consumers.hashing import bucket, canonical, key128

_INT64_MAX = 2**63 - 1
_MEMO_SIZE_MAX = 65_536
_MEMO_TEXT_MAX = 64  # characters: with the size, this bounds the bytes of a memo
_SHOWN_MAX = 60
_FLOAT32 = struct.Struct("<f")


class Reject(Exception):  # noqa: N818 - a bad message is data, not an error
    """Why a message is bad, in words for the person who reads the dead letter."""


class Buckets(dict[Any, int]):
    """Bucket by category. Holds strings (and null) only: as a dict key, 1 is also 1.0 and True."""

    def __init__(self, name: str, nullable: bool, buckets: int) -> None:
        self.name, self._nullable, self._buckets = name, nullable, buckets
        self._reset()

    def _reset(self) -> None:
        self.clear()
        if self._nullable:
            self[None] = 0

    def __missing__(self, value: object) -> int:
        row = bucket(canonical(value), self._buckets)
        if type(value) is str and len(value) <= _MEMO_TEXT_MAX:
            if len(self) >= _MEMO_SIZE_MAX:
                self._reset()
            self[value] = row
        return row


NUMERIC_MAX = 1e19
"""Of a numeric column. A value that float32 cannot square would wreck a standardiser's moments for good."""


def message_key(key: bytes | None) -> bytes:
    """The hash of a message key: UTF-8, not empty."""
    if not key:
        raise Reject("key: the message has no key")
    try:
        key.decode()
    except UnicodeDecodeError:
        raise Reject("key: the message key is not UTF-8") from None
    return key128(key)


def field_key(name: str, record: Mapping[str, Any]) -> bytes:
    """The hash of a key within the record."""
    try:
        return key128(canonical(record.get(name)))
    except ValueError:
        raise Reject(f"key {name!r}: {found(name, record)}, not a non-empty string or an integer") from None


def record_time(timestamp: int) -> int:
    """The timestamp of the Kafka record as event time."""
    if timestamp < 0:
        raise Reject("time: the Kafka record has no timestamp")
    return timestamp


def field_time(name: str, record: Mapping[str, Any], timestamp: int, max_skew: int) -> int:
    """A time within the record, at most `max_skew` ahead of the Kafka record's own; all in ms."""
    time = record.get(name)
    if type(time) is not int:
        raise Reject(f"time {name!r}: {found(name, record)}, not an integer (ms since the epoch)")
    if not 0 <= time <= _INT64_MAX:
        raise Reject(f"time {name!r}: {shown(time)} is {'negative' if time < 0 else 'too large'}")
    if time > timestamp + max_skew:
        raise Reject(
            f"time {name!r}: {time} is more than max_skew = {max_skew} ms "
            f"ahead of the Kafka record's timestamp {timestamp}"
        )
    return time


def number(role: str, name: str, record: Mapping[str, Any]) -> float:
    """A number that is finite as a float32."""
    value = record.get(name)
    if type(value) is not float and type(value) is not int:
        raise Reject(f"{role} {name!r}: {found(name, record)}, not a number")
    try:
        finite = math.isfinite(value)
        _FLOAT32.pack(value)
    except (OverflowError, struct.error):  # of a float, and of an integer, that is too large
        finite = False
    if not finite:
        raise Reject(f"{role} {name!r}: {shown(value)} is not finite as float32")
    return value


def numeric(name: str, record: Mapping[str, Any], nullable: bool) -> float:
    """A numeric column: NaN for null, NaN or nothing, if nullable."""
    value = record.get(name)
    if value is None or is_nan(value):
        if nullable:
            return math.nan
        raise Reject(f"column {name!r}: {found(name, record)}, but the column is not nullable")
    value = number("column", name, record)
    if abs(value) > NUMERIC_MAX:
        raise Reject(f"column {name!r}: {shown(value)} is beyond ±{NUMERIC_MAX:.0e}: its square is no float32")
    return value


def category(buckets: Buckets, record: Mapping[str, Any]) -> int:
    """The bucket of a categorical column."""
    name = buckets.name
    value = record.get(name)
    try:
        return buckets[value]
    except (ValueError, TypeError):
        rule = "but the column is not nullable" if value is None else "not a non-empty string or an integer"
        raise Reject(f"column {name!r}: {found(name, record)}, {rule}") from None


def weight(name: str, record: Mapping[str, Any]) -> float:
    """The weight of an example: a finite number, not negative."""
    value = number("weight", name, record)
    if value < 0:
        raise Reject(f"weight {name!r}: {shown(value)} is negative")
    return value


def label(name: str, record: Mapping[str, Any], rule: LabelRule) -> float:
    """A label that the task accepts."""
    if rule.kind == "number":
        return number("label", name, record)
    value = record.get(name)
    if rule.kind == "binary":
        if isinstance(value, int | float) and value in (0, 1):
            return float(value)
        raise Reject(f"label {name!r}: {found(name, record)}, not true, false, 0 or 1")
    if type(value) is int and 0 <= value < rule.classes:
        return value
    raise Reject(f"label {name!r}: {found(name, record)}, not a class in 0..{rule.classes - 1}")


def is_nan(value: object) -> bool:
    """Whether a value of any type is the float NaN."""
    return isinstance(value, float) and math.isnan(value)


def shown(value: object) -> str:
    """A value for a reason: JSON in ASCII, which any text survives, cut short."""
    text = json.dumps(value, default=str)
    return text if len(text) <= _SHOWN_MAX else f"{text[:_SHOWN_MAX]}…"


def found(name: str, record: Mapping[str, Any]) -> str:
    """What stands in a field, for a reason."""
    return shown(record[name]) if name in record else "missing"
