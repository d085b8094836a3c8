"""Memory whose ranges can be exchanged for files: arrays stay where they are while their bytes move to disk and back.

A full slab never changes, and a snapshot has it in a file anyway: mapping that file over the slab's place gives its
memory back without a copy, and without the kernels noticing.
"""

from __future__ import annotations

import ctypes
import json
import mmap
import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

PAGE = mmap.PAGESIZE

_MAP_FIXED, _MAP_NORESERVE = 0x10, 0x4000
_MADV_RANDOM, _MADV_DONTNEED, _MADV_HUGEPAGE = 1, 4, 14
_MAP_FAILED = ctypes.c_void_p(-1).value

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
_libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]


def reserve(shape: tuple[int, ...], dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    """An array of zeros in a mapping of its own; pages that nobody touches cost nothing, whatever its size."""
    size = max(1, int(np.prod(shape)) * dtype.itemsize)
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE)
    return np.frombuffer(memory, dtype, int(np.prod(shape))).reshape(shape)


def prefer_huge_pages(array: npt.NDArray[Any]) -> None:
    """Asks for pages of 2 MiB where an array is not touched yet; a kernel that has none is no error.

    A processor remembers where some 2,000 pages lie. A row here and a row there costs a walk through tables in memory
    for each of the others, of 4 KiB each.
    """
    with suppress(OSError):
        _madvise(array, _MADV_HUGEPAGE)


def map_file(path: Path, arrays: dict[str, npt.NDArray[Any]]) -> None:
    """Replaces the memory of arrays, whole pages each, by the tensors of a safetensors file, read-only.

    Raises OSError if the file cannot be mapped, and ValueError if it does not hold these arrays page by page.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        length = int.from_bytes(os.read(descriptor, 8), "little")
        header = json.loads(os.read(descriptor, length))
        for name, array in arrays.items():
            start, stop = header[name]["data_offsets"]
            offset = 8 + length + start
            if stop - start != array.nbytes or offset % PAGE or array.nbytes % PAGE or array.ctypes.data % PAGE:
                raise ValueError(f"{path}: {name} does not lie in whole pages")
            _mmap(array, mmap.PROT_READ, mmap.MAP_PRIVATE, descriptor, offset)
            _madvise(array, _MADV_RANDOM)  # what is looked up is a row here and a row there
    finally:
        os.close(descriptor)


def unmap(arrays: Iterable[npt.NDArray[Any]]) -> None:
    """Gives arrays writable memory again, all zeros, without the file."""
    for array in arrays:
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE
        _mmap(array, mmap.PROT_READ | mmap.PROT_WRITE, flags, -1, 0)


def release(arrays: Iterable[npt.NDArray[Any]]) -> None:
    """Gives the memory of arrays back: mapped ones are read again when they are needed, others are all zeros then."""
    for array in arrays:
        _madvise(array, _MADV_DONTNEED)


def _mmap(array: npt.NDArray[Any], protection: int, flags: int, descriptor: int, offset: int) -> None:
    address = _libc.mmap(array.ctypes.data, array.nbytes, protection, flags | _MAP_FIXED, descriptor, offset)
    if address == _MAP_FAILED:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def _madvise(array: npt.NDArray[Any], advice: int) -> None:
    if _libc.madvise(array.ctypes.data, array.nbytes, advice):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
