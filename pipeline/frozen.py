"""Arrays frozen into one reused buffer, laid out as a safetensors file: written by a thread while training goes on.

Format: https://huggingface.co/docs/safetensors (8 bytes of header length, a JSON header, the data).
"""

from __future__ import annotations

import json
from collections.abc import Mapping

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


class Frozen:
    """Copies of named arrays in one buffer that is allocated once and grows when it must.

    Copying into memory that is already mapped is some forty times faster than into fresh memory.
    """

    def __init__(self) -> None:
        self._buffer = np.empty(0, np.uint8)
        self._header = b""
        self._extents: dict[str, tuple[int, int]] = {}
        self._size = 0

    def take(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Replaces the content by copies of these arrays."""
        header = {}
        self._extents = {}
        place = 0
        for name, array in arrays.items():
            end = place + array.nbytes
            header[name] = {
                "dtype": _DTYPES[array.dtype.name],
                "shape": array.shape,
                "data_offsets": [place, end],
            }
            self._extents[name] = (place, end)
            place = end
        self._size = place
        if len(self._buffer) < place:
            self._buffer = np.zeros(place + place // 4, np.uint8)  # zeros, written: maps the pages now
            self._buffer[:] = 0
        for name, array in arrays.items():
            start, end = self._extents[name]
            self._buffer[start:end] = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % _ALIGNMENT)
        self._header = len(text).to_bytes(8, "little") + text

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
