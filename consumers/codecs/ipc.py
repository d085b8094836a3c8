"""What stands where in an Arrow IPC stream, compiled: as much as tells its size, and where its columns lie.

A stream is a schema and then dictionary and record batches; each is metadata (a flatbuffer) and a body. Nothing in it
is believed: a position or length counts only once it is known to lie within the message. Format:
https://arrow.apache.org/docs/format/Columnar.html, field numbers from Message.fbs and Schema.fbs of Apache Arrow.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from consumers.codecs.words import half, word
from consumers.compiled import njit_cached, njit_merged
from consumers.record import Blobs, Bytes1, Int64s

BROKEN, END, SCHEMA, DICTIONARY, BATCH = range(-1, 4)
"""What a part of a stream is; from SCHEMA on the numbers of Message.fbs."""

_VERSION_5 = 4
_CONTINUES = -1
_PREFIX_BYTES = 8
_LENGTH_BYTES = 8
_PAIR_BYTES = 16  # of a node (rows, nulls) and of a buffer (position in the body, length)
MANY = 2**40
"""Rows or bytes beyond which a count stops: more than any limit, and far from overflow."""


class Part(NamedTuple):
    """One part of a stream. All positions are in the buffer of the whole stream."""

    kind: int
    plain: bool  # laid out as most are: nothing is compressed, foreign or new
    stop: int  # where the next part begins
    body: int
    body_bytes: int
    rows: int  # of a batch
    nodes: int  # pairs
    node_count: int
    buffers: int  # pairs
    buffer_count: int
    compressed: bool


@njit_merged
def _nothing(kind: int, at: int) -> Part:
    return Part(kind, False, at, at, 0, 0, at, 0, at, 0, False)


@njit_merged
def int32_at(data: Bytes1, at: int) -> int:
    """Four bytes from `at` on, which must be there; so are eight for `int64_at`."""
    return int(np.int32(half(data, at)))


@njit_merged
def int64_at(data: Bytes1, at: int) -> int:
    """Eight bytes from `at` on."""
    return int(np.int64(word(data, at)))


@njit_merged
def _uint16_at(data: Bytes1, at: int) -> int:
    return int(np.int64(data[at]) | np.int64(data[at + 1]) << 8)


@njit_merged
def pair(data: Bytes1, first: int, number: int) -> tuple[int, int]:
    """Of a node, its rows and nulls; of a buffer, its position in the body and its length."""
    at = first + _PAIR_BYTES * number
    return int64_at(data, at), int64_at(data, at + 8)


@njit_cached
def _slot(data: Bytes1, start: int, stop: int, table: int, number: int, size: int) -> int:
    """Where a table has a field of so many bytes; 0 if it has none, -1 if that is not within [start, stop)."""
    vtable = table - int32_at(data, table) if start <= table <= stop - 4 else -1
    if not start <= vtable <= stop - 4:
        return -1
    entry = vtable + 4 + 2 * number
    if entry + 2 > vtable + _uint16_at(data, vtable):
        return 0
    distance = _uint16_at(data, entry) if entry + 2 <= stop else stop
    if distance == 0:
        return 0
    return table + distance if table + distance <= stop - size else -1


@njit_cached
def _number(data: Bytes1, start: int, stop: int, table: int, number: int, size: int) -> int:
    """A field of 1, 2 or 8 bytes that is 0 or more; 0 if it is not there, -1 if it is broken."""
    at = _slot(data, start, stop, table, number, size)
    if at <= 0:
        return at
    if size == 8:
        return max(int64_at(data, at), -1)
    return int(np.int64(data[at])) if size == 1 else _uint16_at(data, at)


@njit_cached
def _target(data: Bytes1, start: int, stop: int, table: int, number: int) -> int:
    """The table, or vector, that a field points to; 0 if it is not there, -1 if it is broken."""
    at = _slot(data, start, stop, table, number, 4)
    if at <= 0:
        return at
    target = at + int32_at(data, at)
    return target if start <= target <= stop - 4 else -1


@njit_cached
def _pairs(data: Bytes1, start: int, stop: int, table: int, number: int) -> tuple[int, int]:
    """The first of a vector of pairs, and how many there are; -1 for one that is broken."""
    vector = _target(data, start, stop, table, number)
    if vector <= 0:
        return start, vector
    count = int32_at(data, vector)
    return (vector + 4, count) if vector + 4 + _PAIR_BYTES * count <= stop else (start, -1)


@njit_cached
def part_at(data: Bytes1, at: int, stop: int) -> Part:
    """The part that begins at `at` in a stream that ends at `stop`."""
    start = at + _PREFIX_BYTES
    if start > stop or int32_at(data, at) != _CONTINUES:
        return _nothing(END if at == stop else BROKEN, at)
    meta_bytes = int32_at(data, at + 4)
    body = start + meta_bytes
    if meta_bytes < 4 or body > stop:
        return _nothing(END if meta_bytes == 0 else BROKEN, at)
    message = start + int32_at(data, start)
    version = _number(data, start, body, message, 0, 2)
    kind = _number(data, start, body, message, 1, 1)
    header = _target(data, start, body, message, 2)
    body_bytes = _number(data, start, body, message, 3, 8)
    if kind == DICTIONARY and header > 0:
        header = _target(data, start, body, header, 1)
    if version < 0 or header <= 0 or not 0 <= body_bytes <= stop - body or kind not in (SCHEMA, DICTIONARY, BATCH):
        return _nothing(BROKEN, at)
    if kind == SCHEMA:
        plain = version == _VERSION_5 and _number(data, start, body, header, 0, 2) == 0  # little-endian
        return Part(kind, plain, body + body_bytes, body, body_bytes, 0, at, 0, at, 0, False)
    rows = _number(data, start, body, header, 0, 8)
    nodes, node_count = _pairs(data, start, body, header, 1)
    buffers, buffer_count = _pairs(data, start, body, header, 2)
    compression = _target(data, start, body, header, 3)
    views = _target(data, start, body, header, 4)
    if min(rows, node_count, buffer_count, compression, views) < 0:
        return _nothing(BROKEN, at)
    plain = kind == BATCH and version == _VERSION_5 and compression == 0 and views == 0
    stop = body + body_bytes
    return Part(kind, plain, stop, body, body_bytes, rows, nodes, node_count, buffers, buffer_count, compression != 0)


@njit_cached
def decoded_bytes(data: Bytes1, part: Part) -> int:
    """Bytes of its body once it is decompressed, at most MANY; -1 if a buffer of it is broken."""
    if not part.compressed:
        return part.body_bytes
    total = 0
    for number in range(part.buffer_count):
        length = pair(data, part.buffers, number)[1]
        if length != 0:  # its length when decompressed stands before it; -1: it is not compressed
            start = buffer_at(data, part, number, _LENGTH_BYTES)
            if start < 0:
                return -1
            size = int64_at(data, start)
            if size < -1:
                return -1
            total = min(total + min(length - _LENGTH_BYTES if size == -1 else size, MANY), MANY)
    return total


@njit_cached
def buffer_at(data: Bytes1, part: Part, number: int, size: int) -> int:
    """Where a buffer of a batch begins, if it has at least so many bytes (0 or more), all within the body; or -1."""
    position, length = pair(data, part.buffers, number)
    within = 0 <= size <= length <= part.body_bytes and 0 <= position <= part.body_bytes - length
    return part.body + position if within else -1


class Sizes(NamedTuple):
    """What the metadata of N streams say."""

    rows_N: Int64s  # at most MANY
    bytes_N: Int64s  # of all bodies once they are decompressed, at most MANY
    schema_stop_N: Int64s  # where its schema ends, in the buffer
    broken_N: Int64s  # the byte of the stream from which on it cannot be understood, or -1
    plain_N: npt.NDArray[np.bool_]  # whether all its parts are


def measured(streams: Blobs) -> Sizes:
    """Sizes of these streams. A null one counts as an empty one, which is broken: it has no schema."""
    count = len(streams.start_N)
    rows_N, bytes_N, schema_stop_N, broken_N = np.zeros((4, count), np.int64)
    sizes = Sizes(rows_N, bytes_N, schema_stop_N, broken_N, np.zeros(count, np.bool_))
    _measure(streams, sizes)
    return sizes


@njit_cached
def _measure(streams: Blobs, sizes: Sizes) -> None:
    data = streams.data
    for index in range(len(streams.start_N)):
        start = streams.start_N[index]
        stop = start + max(streams.length_N[index], 0)
        rows, size, broken, plain = 0, 0, -1, True
        part = part_at(data, start, stop)
        sizes.schema_stop_N[index] = part.stop
        if part.kind != SCHEMA:
            broken = start
        while part.kind != END and broken < 0:
            at = part.stop
            plain &= part.plain
            part = part_at(data, at, stop)
            added = decoded_bytes(data, part)
            if part.kind in (BROKEN, SCHEMA) or added < 0:
                broken = at
            size = min(size + added, MANY)
            if part.kind == BATCH:
                rows = min(rows + min(part.rows, MANY), MANY)
        sizes.rows_N[index], sizes.bytes_N[index] = rows, size
        sizes.broken_N[index] = broken - start if broken >= 0 else -1
        sizes.plain_N[index] = plain
