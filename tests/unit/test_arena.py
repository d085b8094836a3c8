"""Slots are written with one copy and read in place; nobody keeps a view of a slot that was given back."""

import numpy as np
import pyarrow as pa
import pytest

from consumers.arena import Arena
from consumers.record import REJECTS, Events, event_schema

SCHEMA = event_schema(2, labelled=True)


def batch(rows: int) -> pa.RecordBatch:
    return pa.RecordBatch.from_pylist(
        [
            {
                "key": bytes([row]) * 16,
                "event_time": row,
                "offset": row + 100,
                "row": 0,
                "kind": 0,
                "features": [row, row + 0.5],
                "weight": 1.0,
                "label": row % 2,
            }
            for row in range(rows)
        ],
        schema=SCHEMA,
    )


def test_what_is_written_is_read_in_place() -> None:
    arena = Arena.create(2, 2**16)
    rejects = pa.RecordBatch.from_pylist(
        [{"offset": 7, "row": 0, "timestamp": 1, "reason": "why", "key": None, "value": b"x", "value_bytes": 1}],
        REJECTS,
    )
    lengths = arena.write(1, [batch(5), rejects])
    events, back = arena.read(1, lengths, [SCHEMA, REJECTS])
    view = Events.from_arrow(events)
    assert view.features_NC.tolist() == [[row, row + 0.5] for row in range(5)]
    assert view.key_N2.shape == (5, 2)
    assert view.label_N is not None
    assert view.label_N.tolist() == [0, 1, 0, 1, 0]
    assert back.to_pylist() == rejects.to_pylist()
    arena.poison(1)
    assert np.isnan(view.features_NC).all()
    arena.close()


def test_slots_do_not_touch_each_other() -> None:
    arena = Arena.create(2, 2**14)
    first, second = arena.write(0, [batch(3)]), arena.write(1, [batch(9)])
    assert arena.read(0, first, [SCHEMA])[0].num_rows == 3
    assert arena.read(1, second, [SCHEMA])[0].num_rows == 9
    arena.close()


def test_a_batch_too_large_for_its_slot_is_refused() -> None:
    arena = Arena.create(1, 256)
    with pytest.raises(ValueError, match="do not fit"):
        arena.write(0, [batch(100)])
    arena.close()


def test_empty_batches_have_their_shapes() -> None:
    arena = Arena.create(1, 2**14)
    lengths = arena.write(0, [batch(0)])
    view = Events.from_arrow(arena.read(0, lengths, [SCHEMA])[0])
    assert view.features_NC.shape == (0, 2)
    assert view.key_N2.shape == (0, 2)
    assert len(view) == 0
    arena.close()
