"""Evertrain's learning side. `pipeline.encode` makes a model's input from named fields."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline.encoding import encode as encode

__all__ = ["encode"]


def __getattr__(name: str) -> Any:
    # Lazy, so that `evertrain --help` does not pay for numpy.
    if name == "encode":
        from pipeline.encoding import encode

        return encode
    raise AttributeError(f"module 'pipeline' has no attribute {name!r}")
