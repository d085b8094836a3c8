"""How compiled loops are made: with numba, once for a version of the code, and kept on disk."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numba
from numba.core import config

F = TypeVar("F", bound=Callable[..., Any])


def compiled_sources() -> list[Path]:
    """All of consumers, and what is compiled in pipeline: where one file changes, those that call it are compiled anew.

    Of the bank all files are: constants that it has from the others are compiled in.
    """
    here = Path(__file__).resolve().parent
    others = here.parent.glob("pipeline/**/*.py")
    compiled = (path for path in others if path.parent.name == "bank" or b"njit_" in path.read_bytes())
    return sorted([*here.rglob("*.py"), *compiled])


def _code_hash() -> str:
    digest = hashlib.sha256()
    for path in compiled_sources():
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def _choose_cache() -> None:
    """A folder beside the code, named by what it was compiled from: numba alone looks at one file's time."""
    folder = Path(__file__).resolve().parent / "__pycache__"
    if not config.CACHE_DIR and os.access(folder if folder.exists() else folder.parent, os.W_OK):
        config.CACHE_DIR = str(folder / f"compiled-{_code_hash()}")


_choose_cache()


def njit_cached(function: F) -> F:
    """`numba.njit` with the on-disk cache, keeping the function's type, for what makes no arrays.

    Without numba's runtime no references are counted: two atomic operations for each array that goes with a call
    take as long as everything else that a loop over events does. Division by zero is not looked for either.
    """
    compiled: F = numba.njit(cache=True, _nrt=False, error_model="numpy")(function)
    return compiled


def njit_inlined(function: F) -> F:
    """For what runs once an event: as a call it would count references to every array of its arguments."""
    compiled: F = numba.njit(inline="always")(function)
    return compiled


def njit_merged(function: F) -> F:
    """The same, compiled into its caller: for what runs many times a message and takes many arrays."""
    compiled: F = numba.njit(cache=True, _nrt=False, error_model="numpy", forceinline=True)(function)
    return compiled


def njit_reordered(function: F) -> F:
    """As `njit_cached`, but sums may be taken in any order, several terms at a time: for whole numbers below 2^24."""
    compiled: F = numba.njit(cache=True, _nrt=False, error_model="numpy", fastmath={"reassoc"})(function)
    return compiled
