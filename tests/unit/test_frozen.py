"""What a snapshot froze is what was there, however many threads copied it."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
from safetensors.numpy import load

from pipeline.frozen import _PIECE_BYTES, Frozen


def test_arrays_of_many_pieces_are_copied_whole_and_later_changes_do_not_show() -> None:
    draw, frozen = np.random.default_rng(0), Frozen()
    with ThreadPoolExecutor(1) as helper:
        for round_ in range(3):
            arrays = {
                "empty": np.zeros((0, 3), np.float32),
                "small": draw.random(5),
                "wide": draw.random((3, _PIECE_BYTES // 8)),
                "odd": draw.integers(0, 255, 3 * _PIECE_BYTES + 1 + round_, np.uint8),
                "turned": draw.random((700, 900), np.float32).T,
            }
            before = {name: array.copy() for name, array in arrays.items()}
            frozen.take(arrays, helper)
            for array in arrays.values():
                array[...] = 0
            found = load(b"".join(frozen.parts()))
            assert set(found) == set(before)
            for name, array in before.items():
                np.testing.assert_array_equal(found[name], array)
