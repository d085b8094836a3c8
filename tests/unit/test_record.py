"""Messages and events are columns: what is taken from them, and joined, is what it was."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from consumers.codecs.table import allocate
from consumers.record import Blobs, Events, Messages

Text: TypeAlias = bytes | None
Row: TypeAlias = tuple[int, int, Text, Text]

TEXTS: list[Text] = [b"first", None, b"", b"\0\xff", None, b"last"]


def messages_of(rows: list[Row]) -> Messages:
    return Messages.of(*map(list, zip(*rows, strict=True))) if rows else Messages.of([], [], [], [])


def rows_of(messages: Messages) -> list[Row]:
    columns = messages.offset_N.tolist(), messages.timestamp_N.tolist()
    texts = ([blobs.at(index) for index in range(len(messages))] for blobs in (messages.keys, messages.values))
    return list(zip(*columns, *texts, strict=True))


def test_null_is_not_the_empty_string() -> None:
    blobs = Blobs.of(TEXTS)
    assert [blobs.at(index) for index in range(len(TEXTS))] == TEXTS
    assert blobs.length_N.tolist() == [5, -1, 0, 2, -1, 4]


def test_what_is_taken_lies_in_the_same_buffer() -> None:
    blobs = Blobs.of(TEXTS)
    for found, expected in ((blobs.part(2, 5), TEXTS[2:5]), (blobs.take(np.array([5, 0])), [TEXTS[5], TEXTS[0]])):
        assert [found.at(index) for index in range(len(expected))] == expected
        assert found.data is blobs.data


texts = st.none() | st.binary(max_size=5)
rows = st.lists(st.tuples(st.integers(0, 2**62), st.integers(-1, 2**62), texts, texts), max_size=8)


@given(rows, st.data())
def test_a_part_and_a_choice_of_messages_are_those_messages(rows: list[Row], data: st.DataObject) -> None:
    messages = messages_of(rows)
    assert rows_of(messages) == rows
    start = data.draw(st.integers(0, len(rows)))
    stop = data.draw(st.integers(start, len(rows)))
    assert rows_of(messages.part(start, stop)) == rows[start:stop]
    chosen = data.draw(st.lists(st.sampled_from(range(len(rows)))) if rows else st.just([]))
    assert rows_of(messages.take(np.array(chosen, np.int64))) == [rows[index] for index in chosen]


@given(st.lists(rows, min_size=1, max_size=4), st.data())
def test_joined_messages_are_those_messages_in_one_buffer_no_larger_than_theirs(
    lists: list[list[Row]], data: st.DataObject
) -> None:
    parts, expected = [], []
    for each in lists:
        start = data.draw(st.integers(0, len(each)))
        parts.append(messages_of(each).part(start, len(each)))
        expected += each[start:]
    joined = Messages.joined(parts)
    assert rows_of(joined) == expected
    assert joined.keys.data is joined.values.data
    assert joined.nbytes == sum(len(key or b"") + len(value or b"") for _, _, key, value in expected)
    assert joined.nbytes <= len(joined.values.data) <= sum(len(part.values.data) for part in parts)


@pytest.mark.parametrize(("columns", "labelled"), [(0, True), (3, True), (3, False)])
def test_no_events_have_the_shapes_and_types_of_some(columns: int, labelled: bool) -> None:
    none, some = Events.none(columns, labelled=labelled), allocate(2, columns).events(0, labelled=labelled)
    assert len(none) == 0
    for name in Events.__slots__:
        left, right = getattr(none, name), getattr(some, name)
        assert (left is None) == (right is None) == (name == "label_N" and not labelled), name
        if left is not None:
            assert (left.dtype, left.shape) == (right.dtype, right.shape), name
