"""Eight bytes at a time: what compiled loops need of the processor, and numba does not offer.

A word is a uint64 whose lowest byte came first (all machines that PyTorch is built for are little-endian).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from consumers.record import Bytes1

_WORD, _WIDE, _FALSE = ir.IntType(64), ir.IntType(128), ir.Constant(ir.IntType(1), 0)


def _loaded(bits: int, data: Any) -> Any:
    """How to load so many bits of a uint8 array from any place, as a word."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        array = context.make_array(signature.args[0])(context, builder, arguments[0])
        pointer = builder.bitcast(builder.gep(array.data, [arguments[1]]), ir.IntType(bits).as_pointer())
        return builder.zext(builder.load(pointer, align=1), _WORD)

    return types.uint64(data, types.intp), generate


def _word(context: Any, data: Any, place: Any) -> Any:
    return _loaded(64, data)


def _half(context: Any, data: Any, place: Any) -> Any:
    return _loaded(32, data)


def _high_word(context: Any, left: Any, right: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        product = builder.mul(*(builder.zext(each, _WIDE) for each in arguments))
        return builder.trunc(builder.lshr(product, ir.Constant(_WIDE, 64)), _WORD)

    return types.uint64(types.uint64, types.uint64), generate


def _swapped(context: Any, value: Any) -> Any:
    return types.uint64(types.uint64), lambda _context, builder, _signature, values: builder.bswap(values[0])


def _zeros_below(context: Any, value: Any) -> Any:
    return types.int64(types.uint64), lambda _context, builder, _signature, values: builder.cttz(values[0], _FALSE)


def _zeros_above(context: Any, value: Any) -> Any:
    return types.int64(types.uint64), lambda _context, builder, _signature, values: builder.ctlz(values[0], _FALSE)


def _float_of(context: Any, value: Any) -> Any:
    double = ir.DoubleType()
    return types.float64(types.uint64), lambda _context, builder, _signature, values: builder.bitcast(values[0], double)


word: Callable[[Bytes1, int], np.uint64] = intrinsic(_word)
"""`word(data, place)`: bytes `[place, place + 8)` of an array, which must have them."""

half: Callable[[Bytes1, int], np.uint64] = intrinsic(_half)
"""`half(data, place)`: bytes `[place, place + 4)`, likewise; the upper ones are 0."""

high_word: Callable[[np.uint64, np.uint64], np.uint64] = intrinsic(_high_word)
"""The upper 64 bits of a product of 128."""

swapped: Callable[[np.uint64], np.uint64] = intrinsic(_swapped)
"""The same bytes in the other order."""

zeros_below: Callable[[np.uint64], int] = intrinsic(_zeros_below)
"""How many bits are 0 below the lowest 1; 64 if there is none."""

zeros_above: Callable[[np.uint64], int] = intrinsic(_zeros_above)
"""How many bits are 0 above the highest 1; 64 if there is none."""

float_of: Callable[[np.uint64], float] = intrinsic(_float_of)
"""The float64 with these bits."""
