"""The two ways through a codec, side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from random import Random
from typing import Any

import numpy as np

from consumers.codecs import Decoded, fields
from consumers.codecs.json import JsonCodec
from consumers.codecs.rowwise import RowCodec
from consumers.codecs.scan import MessageArrays
from consumers.codecs.table import allocate
from consumers.record import Events, Messages
from tests.guarded import GuardedMemory

NOW = 1_700_000_000_000
MEMORY = GuardedMemory()


class SlowJson(JsonCodec):
    """The definition of correctness by itself."""

    def decode_fast(self, *_: object) -> None:
        pass


class FastJson(JsonCodec):
    """Shows what the fast way does not take."""

    def parse(self, value: bytes) -> dict[str, Any]:
        raise fields.Reject("not taken by the fast way")


def messages(*values: bytes | None, key: bytes | None = b"k", timestamp: int = NOW) -> Messages:
    count = len(values)
    return Messages.of(list(range(100, 100 + count)), [timestamp] * count, [key] * count, list(values))


def decoded(codec: RowCodec, *values: bytes | None, **how: Any) -> Decoded:
    """What the codec makes of messages, having checked that the slow way alone makes the same, to the bit.

    One of the messages lies at the end of memory.
    """
    batch = messages(*values, **how)
    guarded = replace(batch, values=MEMORY.blobs(batch.values, last=len(batch) // 2))
    both = codec.decode(guarded, allocate(len(batch), codec.columns))
    slow = _slowly(codec, batch)
    assert slow.rejects.equals(both.rejects)
    assert _bits(slow.events) == _bits(both.events)
    return both


def taken_fast(codec: RowCodec, *values: bytes | None, **how: Any) -> list[bool]:
    """Which of them the fast way takes."""
    batch = messages(*values, **how)
    good_N = np.zeros(len(batch), np.bool_)
    codec.decode_fast(MessageArrays.of(batch), allocate(len(batch), codec.columns), good_N)
    return list(map(bool, good_N))


def event(codec: RowCodec, value: bytes, **how: Any) -> Events:
    """The event of a plainly good message, which is one that the fast way takes."""
    result = decoded(codec, value, **how)
    assert result.rejects.num_rows == 0, result.rejects["reason"][0]
    assert taken_fast(codec, value, **how) == [True]
    return result.events


def reason(codec: RowCodec, value: bytes, **how: Any) -> str:
    """Why a message is rejected."""
    result = decoded(codec, value, **how)
    assert len(result.events) == 0
    return str(result.rejects["reason"][0])


def check_one_is_slow(codec: RowCodec, good: bytes, bad: bytes) -> None:
    """One bad message among thousands costs one slow one."""
    slow: list[bytes] = []
    parse = codec.parse
    codec.parse = lambda value: slow.append(value) or parse(value)  # type: ignore[method-assign, func-returns-value]
    result = decoded(codec, *[good] * 1500, bad, *[good] * 1500)
    assert (len(result.events), result.rejects["offset"].to_pylist()) == (3000, [1600])
    assert slow[0] == bad
    assert len(slow) == 1 + 3001  # the latter in the check that the slow way says the same


def random_columns(random: Random, names: Sequence[str], numbers: list[str], texts: list[str]) -> dict[str, Any]:
    """Some use of these fields, mostly of one that fits, and of one that is not there. The time is `t`."""

    def some(likely: list[str]) -> str:
        return random.choice(likely if likely and random.randrange(10) else [*names, "absent"])

    columns = [{"name": name, "nullable": bool(random.randrange(10))} for name in {some(numbers): 0, some(texts): 0}]
    parts = {"key": some(texts), "time": "t", "weight": some(numbers), "label": some(numbers)}
    parts = {part: name for part, name in parts.items() if not random.randrange(3)}
    return {"numeric": columns[:1], "categorical": columns[1:], **parts}


def _slowly(codec: RowCodec, batch: Messages) -> Decoded:
    codec.decode_fast = lambda *_: None  # type: ignore[method-assign]
    try:
        return codec.decode(batch, allocate(len(batch), codec.columns))
    finally:
        del codec.decode_fast  # type: ignore[method-assign]


def _bits(events: Events) -> list[bytes]:
    """Comparing numbers would take NaN for unequal and -0.0 for 0.0."""
    columns = (getattr(events, name) for name in Events.__slots__)
    return [b"" if column is None else column.tobytes() for column in columns]
