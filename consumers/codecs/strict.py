"""JSON taken strictly, and the words for what is wrong with it: slow, for messages that may be bad."""

from __future__ import annotations

import json
import math
from typing import Any

from consumers.codecs import fields
from consumers.codecs.fields import Reject

NESTING_MAX = 32
"""Levels of objects and arrays, the message itself included."""

_TOO_DEEP = f"nested more than {NESTING_MAX} levels deep"


def parse(value: bytes) -> dict[str, Any]:
    """The object that a message holds. Raises Reject."""
    try:
        document = json.loads(value.decode(), object_pairs_hook=_object, parse_constant=_constant)
    except UnicodeDecodeError as error:
        raise Reject(f"not JSON: byte {error.start} is not UTF-8") from None
    except ValueError as error:
        raise Reject(f"not JSON: {error}") from None
    except RecursionError:
        raise Reject(_TOO_DEEP) from None
    _check_nested(document)
    if not isinstance(document, dict):
        raise Reject(f"not an object: {fields.shown(document)}")
    return document


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, item in pairs:
        if name in found:
            raise Reject(f"duplicate key {name[:60]!a}")
        found[name] = item
    return found


def _constant(text: str) -> float:
    if text == "NaN":
        return math.nan
    raise Reject(f"not JSON: {text}")


def _check_nested(document: object) -> None:
    """Depth, text and NaN, level by level: the parser's own limit depends on who calls it."""
    level, depth = [document], 0
    while level:
        inner: list[object] = []
        for item in level:
            if isinstance(item, dict):
                inner += (*item.keys(), *item.values())
            elif isinstance(item, list):
                inner += item
            elif isinstance(item, str):
                _check_text(item)
            elif depth > 1 and fields.is_nan(item):
                raise Reject("not JSON: NaN within an object or array")
            if depth == NESTING_MAX and isinstance(item, dict | list):
                raise Reject(_TOO_DEEP)
        level, depth = inner, depth + 1


def _check_text(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise Reject(f"not JSON: a lone surrogate in {fields.shown(text)}") from None
