"""A reader decodes into slots, the learner reads them in place; nobody keeps a view of a slot that was given back."""

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pytest

from consumers.arena import Arena, Shape
from consumers.codecs.table import ALIGNMENT, Rejects, RowArrays
from consumers.record import REJECTS

SHAPE = Shape(slots=2, rows=9, columns=2, reject_bytes=4000)  # no multiple of ALIGNMENT


@pytest.fixture
def reader() -> Iterator[Arena]:
    arena = Arena.create(SHAPE)
    yield arena
    arena.close()


@pytest.fixture
def learner(reader: Arena) -> Arena:
    """The same slots, mapped once more."""
    return Arena(reader.descriptor, SHAPE)


def fill(rows: RowArrays, number: int) -> None:
    """Every value of every row, other ones for each number."""
    for column, array in enumerate(rows, 1):
        array[:] = np.arange(array.size).reshape(array.shape) + 20 * number + column


def values(rows: RowArrays) -> list[object]:
    return [array.tolist() for array in rows]


def rejects(value: bytes = b"x") -> pa.RecordBatch:
    found = Rejects()
    found.add(7, 0, 1, "why", None, value)
    return found.batch()


def test_what_is_written_is_read_in_place(reader: Arena, learner: Arena) -> None:
    fill(reader.rows(1, 2), 1)
    size = reader.write_rejects(1, rejects())
    events = learner.rows(1, 2).events(5, labelled=True)
    assert events.features_NC.tolist() == [[28 + 2 * row, 29 + 2 * row] for row in range(5)]
    assert events.key_N2.tolist() == [[21 + 2 * row, 22 + 2 * row] for row in range(5)]
    assert events.offset_N.tolist() == [23, 24, 25, 26, 27]
    assert events.label_N is not None
    assert events.label_N.tolist() == [27, 28, 29, 30, 31]
    back = learner.read_rejects(1, size)
    assert back.schema == REJECTS
    assert back.to_pylist() == rejects().to_pylist()
    reader.poison(1)
    assert np.isnan(events.features_NC).all()
    assert back["offset"].to_pylist() == [-1]


def test_slots_and_their_rejects_do_not_touch_each_other(reader: Arena, learner: Arena) -> None:
    largest = rejects(b"x" * 3000)
    for slot in (0, 1):
        fill(reader.rows(slot, 2), slot)
    sizes = [reader.write_rejects(slot, largest) for slot in (1, 0)]
    assert 3000 < sizes[0] <= SHAPE.reject_bytes
    for slot in (0, 1):
        expected = learner.rows(slot, 2)
        assert all(len(array) == SHAPE.rows for array in expected)
        assert [array.ravel()[0] for array in expected] == [column + 20 * slot for column in range(1, 9)]
        assert [array.ravel()[-1] for array in expected] == [
            array.size - 1 + column + 20 * slot for column, array in enumerate(expected, 1)
        ]
        assert learner.read_rejects(slot, sizes[slot]) == largest


@pytest.mark.parametrize("columns", [0, 1, 2])
def test_a_slot_holds_rows_of_any_width_up_to_its_own_and_each_column_lies_aligned(
    reader: Arena, learner: Arena, columns: int
) -> None:
    size = reader.write_rejects(0, rejects())
    fill(reader.rows(0, columns), 0)
    assert values(learner.rows(0, columns)) == values(reader.rows(0, columns))
    for slot in (0, 1):
        assert all(array.ctypes.data % ALIGNMENT == 0 for array in learner.rows(slot, columns))
    assert learner.read_rejects(0, size) == rejects()


def test_rejects_too_large_for_their_slot_are_refused(reader: Arena) -> None:
    with pytest.raises(ValueError, match=r"\d+ bytes of rejects do not fit into \d+ bytes"):
        reader.write_rejects(0, rejects(b"x" * 2**12))


def test_no_rejects_take_no_bytes(reader: Arena, learner: Arena) -> None:
    fill(reader.rows(1, 2), 0)
    before = values(reader.rows(1, 2))
    assert reader.write_rejects(0, Rejects().batch()) == 0
    assert learner.read_rejects(0, 0).num_rows == 0
    assert learner.read_rejects(0, 0).schema == REJECTS
    assert values(learner.rows(1, 2)) == before
