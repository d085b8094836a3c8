"""Decimal numbers become the nearest float64, as Python has it, or none."""

import math
import struct
from fractions import Fraction

import numpy as np
from hypothesis import example, given, settings
from hypothesis import strategies as st

from consumers.codecs.numbers import POWER_MAX, digits, rounded

VALUES = st.integers(0, 2**64 - 1) | st.integers(0, 10**17) | st.integers(2**53 - 2, 2**53 + 2)


def bits(number: float) -> bytes:
    return struct.pack("d", number)


@settings(max_examples=1000, deadline=None)
@given(VALUES, st.integers(-POWER_MAX, POWER_MAX) | st.integers(-25, 25))
@example(0, -POWER_MAX)
@example(9007199254740993, 0)  # half-way between two
@example(2**64 - 1, POWER_MAX)
def test_a_value_and_a_power_of_ten(value: int, power: int) -> None:
    assert bits(rounded(np.uint64(value), power)) == bits(float(f"{value}e{power}"))


@settings(max_examples=1000, deadline=None)
@given(st.floats(1, 2**64, exclude_max=True), st.integers(-20, 5), st.integers(-1, 1))
def test_half_way_between_two_and_beside_it(number: float, power: int, beside: int) -> None:
    half_way = (Fraction(number) + Fraction(math.nextafter(number, math.inf))) / 2
    value = int(half_way / Fraction(10) ** power) + beside
    if 0 <= value < 2**64:
        assert bits(rounded(np.uint64(value), power)) == bits(float(f"{value}e{power}"))


def test_beyond_the_powers_it_gives_up() -> None:
    assert math.isnan(rounded(np.uint64(1), POWER_MAX + 1))
    assert math.isnan(rounded(np.uint64(1), -POWER_MAX - 1))
    assert rounded(np.uint64(0), 400) == 0


@given(st.text("0123456789", max_size=30), st.sampled_from([b"", b"}", b".5}", b"/23456789", b":23456789", b"\xb0"]))
def test_digits_end_where_something_else_begins(text: str, behind: bytes) -> None:
    data = np.frombuffer(text.encode() + behind, np.uint8)
    value, end = digits(data, 0, np.uint64(7))
    assert end == len(text)
    assert value == int("7" + text) % 2**64
