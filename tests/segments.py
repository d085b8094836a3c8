"""The log of one partition as it lies on a broker's disk (Kafka's record batches, format 2)."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

_LENGTH_AT, _CRC_AT, _LAST_OFFSET_AT, _RECORDS_AT = 8, 17, 23, 61
_CRC_FROM = 21


class BatchAt(NamedTuple):
    """One record batch: its offsets `[start, stop)` and its bytes `[at, at + size)` in the file."""

    start: int
    stop: int
    at: int
    size: int


def batches(segment: Path) -> Iterator[BatchAt]:
    """All batches of a segment, in order."""
    data, at = segment.read_bytes(), 0
    while at < len(data):
        (start,), (length,) = struct.unpack_from(">q", data, at), struct.unpack_from(">i", data, at + _LENGTH_AT)
        (last,) = struct.unpack_from(">i", data, at + _LAST_OFFSET_AT)
        yield BatchAt(start, start + last + 1, at, 12 + length)
        at += 12 + length


def spoil(segment: Path, batch: BatchAt, *, mend_checksum: bool) -> None:
    """Turns bits of a batch's records over, under the feet of the broker."""
    with segment.open("r+b") as file:
        file.seek(batch.at)
        data = bytearray(file.read(batch.size))
        for at in range(_RECORDS_AT, _RECORDS_AT + 16):
            data[at] ^= 0xFF
        if mend_checksum:
            struct.pack_into(">I", data, _CRC_AT, crc32c(data[_CRC_FROM:]))
        file.seek(batch.at)
        file.write(data)


def crc32c(data: bytes) -> int:
    """The Castagnoli checksum, RFC 3720."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = (crc >> 1) ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF
