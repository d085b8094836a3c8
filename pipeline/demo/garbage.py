"""Bad records of every common kind, made of good ones."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import orjson

Spoil: TypeAlias = Callable[[bytes], bytes]

_TEN_YEARS_MS = 10 * 365 * 86_400_000


@dataclass(frozen=True, slots=True)
class Kind:
    """One way to be bad: what it does to a good event, and the topic that it is sent to."""

    name: str
    spoil: Spoil
    of_label: bool  # made of a label event; otherwise of a feature event
    to_labels: bool


def _edit(**changes: Any) -> Spoil:
    return lambda value: orjson.dumps({**orjson.loads(value), **changes})


def _without(name: str) -> Spoil:
    return lambda value: orjson.dumps({k: v for k, v in orjson.loads(value).items() if k != name})


def _later(value: bytes) -> bytes:
    return _edit(ts=orjson.loads(value)["ts"] + _TEN_YEARS_MS)(value)


def _same(value: bytes) -> bytes:
    return value


_FEATURES: dict[str, Spoil] = {
    "cut off": lambda value: value[:-9],
    "not JSON": lambda _: b"<flight>delayed</flight>",
    "not UTF-8": lambda value: value.replace(b'"carrier":"', b'"carrier":"\xff'),
    "an array": lambda value: b"[" + value + b"]",
    "two objects": lambda value: value + value,
    "wrong type": _edit(distance="far"),
    "missing column": _without("distance"),
    "null": _edit(distance=None),
    "infinite": lambda value: value.replace(b'"distance":', b'"distance":1e999,"was":'),
    "duplicate key": lambda value: b'{"distance":1,' + value[1:],
    "deeply nested": lambda value: b'{"deep":' + b"[" * 500 + b"]" * 500 + b"," + value[1:],
    "no key": _without("id"),
    "from the future": _later,
    "negative time": _edit(ts=-1),
}
_LABELS: dict[str, Spoil] = {
    "empty": lambda _: b"",
    "third class": _edit(late=2),
    "text": _edit(late="yes"),
    "no label": _without("late"),
    "no key, label": _without("id"),
    "from the future, label": _later,
}

KINDS = (
    *(Kind(name, spoil, of_label=False, to_labels=False) for name, spoil in _FEATURES.items()),
    *(Kind(name, spoil, of_label=True, to_labels=True) for name, spoil in _LABELS.items()),
    Kind("a label among features", _same, of_label=True, to_labels=False),
    Kind("a feature event among labels", _same, of_label=False, to_labels=True),
)
"""None of them can come out valid by accident."""
