"""Arrays frozen into one reused buffer, laid out as a safetensors file: written by a thread while training goes on.

Format: https://huggingface.co/docs/safetensors (8 bytes of header length, a JSON header, the data).
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import Executor

import numpy as np

from pipeline.store import Buffer

_DTYPES = {
    "float64": "F64",
    "float32": "F32",
    "float16": "F16",
    "int64": "I64",
    "int32": "I32",
    "int16": "I16",
    "int8": "I8",
    "uint64": "U64",
    "uint32": "U32",
    "uint16": "U16",
    "uint8": "U8",
    "bool": "BOOL",
}
_ALIGNMENT = 8
_PIECE_BYTES = 2**21


class Frozen:
    """Copies of named arrays in one buffer that is allocated once and grows when it must.

    Copying into memory that is already mapped is some forty times faster than into fresh memory.
    """

    def __init__(self) -> None:
        self._buffer = np.empty(0, np.uint8)
        self._header = b""
        self._extents: dict[str, tuple[int, int]] = {}
        self._size = 0

    def take(self, arrays: Mapping[str, np.ndarray], helper: Executor) -> None:
        """Replaces the content by copies of these arrays. An idle thread helps while there are pieces left."""
        self._header, self._extents = layout(arrays)
        self._size = max((end for _, end in self._extents.values()), default=0)
        if len(self._buffer) < self._size:
            self._buffer = np.zeros(self._size + self._size // 4, np.uint8)  # zeros, written: maps the pages now
            self._buffer[:] = 0
        pieces = deque(self._pieces(arrays))
        if self._size > _PIECE_BYTES:
            helping = helper.submit(_copy, pieces)
            _copy(pieces)
            helping.result()
        else:
            _copy(pieces)

    def _pieces(self, arrays: Mapping[str, np.ndarray]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Where bytes go, and where they are."""
        for name, array in arrays.items():
            begin, end = self._extents[name]
            source = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
            for start in range(begin, end, _PIECE_BYTES):
                stop = min(start + _PIECE_BYTES, end)
                yield self._buffer[start:stop], source[start - begin : stop - begin]

    def parts(self) -> list[Buffer]:
        """The safetensors file, in parts."""
        return [self._header, self._buffer.data[: self._size]]

    def part(self, name: str) -> memoryview:
        """The bytes of one array."""
        start, end = self._extents[name]
        return self._buffer.data[start:end]

    def names(self, prefix: str) -> list[str]:
        """The names that begin with `prefix`, sorted."""
        return sorted(name for name in self._extents if name.startswith(prefix))


def _copy(pieces: deque[tuple[np.ndarray, np.ndarray]]) -> None:
    """Copies what is left; numpy lets other threads run meanwhile."""
    while True:
        try:
            target, source = pieces.popleft()
        except IndexError:
            return
        np.copyto(target, source)


def layout(arrays: Mapping[str, np.ndarray], alignment: int = _ALIGNMENT) -> tuple[bytes, dict[str, tuple[int, int]]]:
    """The header of a safetensors file of these arrays, and where each lies behind it; the data begins aligned."""
    header, extents, place = {}, {}, 0
    for name, array in arrays.items():
        extents[name] = place, place + array.nbytes
        header[name] = {"dtype": _DTYPES[array.dtype.name], "shape": array.shape, "data_offsets": extents[name]}
        place += array.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-(8 + len(text)) % alignment)
    return len(text).to_bytes(8, "little") + text, extents


def safetensors(arrays: Mapping[str, np.ndarray], alignment: int = _ALIGNMENT) -> Iterator[Buffer]:
    """The safetensors file of arrays, in parts that view them where they are contiguous."""
    yield layout(arrays, alignment)[0]
    for array in arrays.values():
        yield np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
