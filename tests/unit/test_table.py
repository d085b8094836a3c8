"""Rows as arrays in any memory."""

import numpy as np
import pytest

from consumers.codecs.table import ALIGNMENT, RowArrays, allocate, laid_out, row_bytes
from consumers.record import Events


@pytest.mark.parametrize(("rows", "columns"), [(0, 0), (1, 0), (1, 1), (7, 3), (2048, 32)])
def test_columns_lie_in_the_memory_one_after_another_and_aligned(rows: int, columns: int) -> None:
    memory = np.zeros(row_bytes(rows, columns) + 8, np.uint8)
    arrays = laid_out(memoryview(memory), rows, columns)
    start = memory.__array_interface__["data"][0]
    end = start
    for array, like in zip(arrays, allocate(rows, columns), strict=True):
        place = array.__array_interface__["data"][0]
        assert (array.dtype, array.shape) == (like.dtype, like.shape)
        assert array.nbytes == 0 or end <= place < end + ALIGNMENT
        assert (place - start) % ALIGNMENT == 0
        array.view(np.uint8)[...] = 255
        end = place + array.nbytes
    assert not memory[row_bytes(rows, columns) :].any()


def test_who_lays_out_the_same_memory_again_sees_the_same_rows() -> None:
    memory = bytearray(row_bytes(3, 2))
    laid_out(memoryview(memory), 3, 2).features_NC[:] = [[1, 2], [3, 4], [5, 6]]
    assert laid_out(memoryview(memory), 3, 2).events(2, labelled=False).features_NC.tolist() == [[1, 2], [3, 4]]


@pytest.mark.parametrize("good", [[], [1], [0], [1, 1, 1], [0, 1, 1], [1, 0, 1], [1, 1, 0], [0, 0, 1, 0, 1]])
def test_keeping_good_rows_closes_the_gaps(good: list[int]) -> None:
    rows = allocate(9, 2)
    for array in rows:
        array[...] = np.arange(9).reshape(-1, *[1] * (array.ndim - 1))
    count = rows.keep(np.array(good, np.bool_))
    expected = [index for index, each in enumerate(good) if each]
    assert count == len(expected)
    assert all(array.reshape(9, -1)[:count, 0].tolist() == expected for array in rows)


@pytest.mark.parametrize(("columns", "labelled"), [(0, True), (2, True), (2, False)])
def test_no_rows_are_the_empty_events(columns: int, labelled: bool) -> None:
    arrays: RowArrays = allocate(5, columns)
    for name, column in _columns(arrays.events(0, labelled=labelled)):
        like = dict(_columns(Events.none(columns, labelled=labelled)))[name]
        assert (column is None) == (like is None)
        assert column is None or (column.dtype, column.shape) == (like.dtype, like.shape)


def _columns(events: Events) -> list[tuple[str, np.ndarray | None]]:
    return [(name, getattr(events, name)) for name in events.__slots__]
