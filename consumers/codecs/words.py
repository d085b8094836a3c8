"""Eight bytes at a time: what compiled loops need of the processor and numba does not offer.

A word is a uint64 whose lowest byte came first (all machines that PyTorch is built for are little-endian).
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

_WORD, _WIDE = ir.IntType(64), ir.IntType(128)


def _loaded(bits: int, data: Any) -> Any:
    """How to load so many bits of a uint8 array from any place, as a word."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        array = context.make_array(signature.args[0])(context, builder, arguments[0])
        pointer = builder.bitcast(builder.gep(array.data, [arguments[1]]), ir.IntType(bits).as_pointer())
        return builder.zext(builder.load(pointer, align=1), _WORD)

    return types.uint64(data, types.intp), generate


@intrinsic
def word(context: Any, data: Any, place: Any) -> Any:
    """`word(data, place)`: bytes `[place, place + 8)` of a uint8 array, which must have them."""
    return _loaded(64, data)


@intrinsic
def half(context: Any, data: Any, place: Any) -> Any:
    """`half(data, place)`: bytes `[place, place + 4)`, likewise; the upper ones are 0."""
    return _loaded(32, data)


@intrinsic
def high_word(context: Any, left: Any, right: Any) -> Any:
    """`high_word(left, right)`: the upper 64 bits of a product of 128."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        product = builder.mul(*(builder.zext(each, _WIDE) for each in arguments))
        return builder.trunc(builder.lshr(product, ir.Constant(_WIDE, 64)), _WORD)

    return types.uint64(types.uint64, types.uint64), generate


@intrinsic
def swapped(context: Any, value: Any) -> Any:
    """`swapped(word)`: its bytes in the other order."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bswap(arguments[0])

    return types.uint64(types.uint64), generate


@intrinsic
def zeros_below(context: Any, value: Any) -> Any:
    """`zeros_below(word)`: how many bits are 0 below its lowest 1; 64 if there is none."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.cttz(arguments[0], ir.Constant(ir.IntType(1), 0))

    return types.int64(types.uint64), generate


@intrinsic
def zeros_above(context: Any, value: Any) -> Any:
    """`zeros_above(word)`: how many bits are 0 above its highest 1; 64 if there is none."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.ctlz(arguments[0], ir.Constant(ir.IntType(1), 0))

    return types.int64(types.uint64), generate


@intrinsic
def float_of(context: Any, bits: Any) -> Any:
    """`float_of(word)`: the float64 with these bits."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], ir.DoubleType())

    return types.float64(types.uint64), generate
