"""Which category buckets have come so far."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from consumers.compiled import njit_cached
from consumers.record import Bytes1, Float32s, Int64s
from pipeline.quality import Arrays


class Categories:
    """A bit for each bucket of each categorical column, of which there may be none."""

    def __init__(self, buckets: Sequence[int]) -> None:
        self._buckets_K = np.array(buckets, np.int64)
        self._seen = np.zeros(int((-(-self._buckets_K // 8)).sum()), np.uint8)
        self._unknown_1 = np.zeros(1, np.int64)

    @property
    def unknown(self) -> int:
        """Rows times columns whose bucket had never been seen before."""
        return int(self._unknown_1[0])

    def update(self, features_RC: Float32s) -> None:
        """Takes features, the categorical columns last."""
        if len(self._buckets_K):
            ids_RK = features_RC[:, features_RC.shape[1] - len(self._buckets_K) :]
            self._unknown_1[0] += _mark_seen(ids_RK, self._buckets_K, self._seen)

    def state(self) -> Arrays:
        return {"seen": self._seen, "unknown": self._unknown_1}


@njit_cached
def _mark_seen(ids_NK: Float32s, buckets_K: Int64s, seen: Bytes1) -> int:
    """Sets the bit of every bucket and returns how many were not set before; bucket 0 is null."""
    unknown = 0
    for row in range(ids_NK.shape[0]):
        start = 0
        for column in range(len(buckets_K)):
            bucket = int(ids_NK[row, column])
            if 0 < bucket < buckets_K[column]:
                byte, bit = start + (bucket >> 3), np.uint8(1 << (bucket & 7))
                if not seen[byte] & bit:
                    seen[byte] |= bit
                    unknown += 1
            start += (buckets_K[column] + 7) >> 3
    return unknown
