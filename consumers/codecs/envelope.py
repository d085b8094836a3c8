"""What is around an event: CloudEvents (structured mode) and Debezium's change events, for every format.

The definition, on decoded messages. Raises Reject with what is missing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from consumers.codecs import fields
from consumers.codecs.fields import Reject
from consumers.record import Kind

WRITTEN = ("c", "u", "r")
"""Debezium's operations that leave a row: created, updated, read in a snapshot."""

DELETED = "d"


def unwrapped(envelope: str, message: Mapping[str, Any]) -> tuple[Kind, Mapping[str, Any]]:
    """The event within a message; for a deletion TOMBSTONE and what the row was."""
    if envelope == "cloudevents":
        _member("specversion", message, str, "a string")
        return Kind.EVENT, _member("data", message, Mapping, "an object")
    if envelope == "debezium":
        return _change(message)
    return Kind.EVENT, message


def _change(message: Mapping[str, Any]) -> tuple[Kind, Mapping[str, Any]]:
    if "payload" in message and "op" not in message:  # with its schema beside it
        message = _member("payload", message, Mapping, "an object")
    op = _member("op", message, str, "a string")
    if op in WRITTEN:
        return Kind.EVENT, _member("after", message, Mapping, "an object")
    if op == DELETED:
        return Kind.TOMBSTONE, _member("before", message, Mapping, "an object")
    raise Reject(f"envelope: op {fields.shown(op)} is no change of a row (c, u, r or d)")


def _member(name: str, message: Mapping[str, Any], kind: type, words: str) -> Any:
    value = message.get(name)
    if not isinstance(value, kind):
        raise Reject(f"envelope: {name!r}: {fields.found(name, message)}, not {words}")
    return value
