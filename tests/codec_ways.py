"""The two ways through a codec, side by side."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from consumers.codecs import Decoded
from consumers.codecs.rowwise import RowCodec
from consumers.codecs.scan import MessageArrays
from consumers.codecs.table import allocate
from consumers.record import Events, Messages
from tests.guarded import GuardedMemory

NOW = 1_700_000_000_000
MEMORY = GuardedMemory()


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
