"""The ledger: what was applied, in order, so that any snapshot can be rebuilt from an older one.

Lines are JSON arrays, sealed into gzip members that can be joined end to end. `p` is an index into the cursor.

    ["span", p, start, stop]                   whole messages of one partition
    ["tick"]                                   the open batch was closed
    ["membership", p, idle]                    the partition stops or starts to hold back the watermark
    ["command", name, argument]                what a clock or an operator decided
    ["added", topic, number, start]            a partition that its topic got
    ["lost", p, start, stop, place, reason]    messages that no reader survives: one reject stands for them
    ["config", {key: value}]                   recorded settings from here on
    ["environment", {name: version}]           what runs from here on
    ["drift", family, feature, row, since_row, [action]]    an alarm, and what it did: the rebuild finds it again
    ["gap"]                                    lines before this one are missing: they were damaged
    ["snapshot", sequence, weights_sha256, state_sha256]    closes what that snapshot sealed
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterable, Iterator
from typing import Any, TypeAlias

from consumers.errors import SnapshotError

Line: TypeAlias = list[Any]

_LEVEL = 1  # gzip's fastest: ledgers are offsets, which shrink five times even so


def seal(lines: Iterable[Line]) -> bytes:
    """Lines as one gzip member, the same bytes every time."""
    text = "".join(json.dumps(line, separators=(",", ":"), sort_keys=True) + "\n" for line in lines)
    return gzip.compress(text.encode(), _LEVEL, mtime=0)


def unseal(data: bytes) -> Iterator[Line]:
    """The lines of any number of members. Raises SnapshotError if they cannot be read."""
    try:
        for text in gzip.decompress(data).splitlines():
            line = json.loads(text)
            if not isinstance(line, list):
                raise ValueError(f"{text[:40]!r} is no line of a ledger")
            yield line
    except (OSError, EOFError, zlib.error, ValueError, RecursionError) as error:
        raise SnapshotError(f"a ledger cannot be read: {error}") from None


def between(lines: Iterable[Line], after: int, upto: int) -> Iterator[Line]:
    """The lines sealed by the snapshots after `after`, up to `upto` and with its own."""
    sealed: list[Line] = []
    for line in lines:
        sealed.append(line)
        if line[0] == "snapshot":
            if after < line[1] <= upto:
                yield from sealed
            sealed = []
