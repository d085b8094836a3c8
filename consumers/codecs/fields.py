"""The rules of single fields, for every format that decodes to named values.

Each function takes the field's name and the decoded record, and raises Reject with the reason.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping
from typing import Any

from consumers.config import LabelRule
from consumers.hashing import bucket, canonical, key128

_MEMO_SIZE_MAX = 65_536
_MEMO_TEXT_MAX = 64  # characters: with the size, this bounds the bytes of a memo
_SHOWN_MAX = 60
_FLOAT32 = struct.Struct("<f")


class Reject(Exception):  # noqa: N818 - a rejected record is data, not an error
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


def message_key(key: bytes | None) -> bytes:
    if not key:
        raise Reject("key: the message has no key")
    try:
        key.decode()
    except UnicodeDecodeError:
        raise Reject("key: the message key is not UTF-8") from None
    return key128(key)


def field_key(name: str, document: Mapping[str, Any]) -> bytes:
    try:
        return key128(canonical(document.get(name)))
    except ValueError:
        raise Reject(
            f"key {name!r}: {found(name, document)}, not a non-empty string or an integer"
        ) from None


def number(role: str, name: str, document: Mapping[str, Any]) -> float:
    """A finite float32. Raises Reject."""
    value = document.get(name)
    if type(value) is not float and type(value) is not int:
        raise Reject(f"{role} {name!r}: {found(name, document)}, not a number")
    try:
        finite = math.isfinite(value)
        _FLOAT32.pack(value)
    except OverflowError:
        finite = False
    if not finite:
        raise Reject(f"{role} {name!r}: {shown(value)} is not finite as float32")
    return value


def column(name: str, document: Mapping[str, Any]) -> float:
    if document.get(name) is None:
        raise Reject(f"column {name!r}: {found(name, document)}, but the column is not nullable")
    return number("column", name, document)


def category(memo: Buckets, document: Mapping[str, Any]) -> int:
    name = memo.name
    try:
        return memo[document.get(name)]
    except (ValueError, TypeError):
        found = found(name, document)
    if document.get(name) is None:
        raise Reject(f"column {name!r}: {found}, but the column is not nullable")
    raise Reject(f"column {name!r}: {found}, not a non-empty string or an integer")


def label(name: str, document: Mapping[str, Any], rule: LabelRule) -> float:
    value = document.get(name)
    if rule.kind == "number":
        return number("label", name, document)
    if rule.kind == "binary":
        if isinstance(value, int | float) and value in (0, 1):
            return float(value)
        raise Reject(f"label {name!r}: {found(name, document)}, not true, false, 0 or 1")
    if type(value) is int and 0 <= value < rule.classes:
        return value
    raise Reject(f"label {name!r}: {found(name, document)}, not a class in 0..{rule.classes - 1}")


def found(name: str, document: Mapping[str, Any]) -> str:
    return shown(document[name]) if name in document else "missing"


def shown(value: object) -> str:
    """As JSON: ASCII, so that any text can stand in a reason."""
    text = json.dumps(value)
    return text if len(text) <= _SHOWN_MAX else f"{text[:_SHOWN_MAX]}…"


