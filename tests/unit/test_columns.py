"""What a block of rows adds to the sums is what the definition of each statistic says."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from pipeline.drift.columns import BINS, OCTILES, PAIRED_MAX, count_columns
from pipeline.drift.inputs import Inputs
from pipeline.drift.windows import BLOCK_ROWS, ROOT, UNIT


@pytest.mark.parametrize("rows", [1, 37, BLOCK_ROWS])
@pytest.mark.parametrize(("numeric", "categorical"), [(0, 2), (1, 0), (5, 1), (PAIRED_MAX, 0), (PAIRED_MAX + 3, 2)])
def test_the_sums_of_rows_are_what_they_are_said_to_be(numeric: int, categorical: int, rows: int) -> None:
    rng = np.random.default_rng(0)
    inputs = Inputs(numeric, categorical, settle_rows=BLOCK_ROWS, p=1e-3)
    features_RC = rng.normal(3, 2, (rows + 5, numeric + categorical)).astype(np.float32)
    features_RC[rng.random(features_RC.shape) < 0.1] = np.nan
    features_RC[:, numeric:] = rng.integers(0, 200, (rows + 5, categorical))
    arrays = inputs.arrays
    arrays.centre_F[:], arrays.scale_F[:] = 2.5, 0.4
    arrays.edges_EF[:] = ROOT * np.linspace(-1, 1, OCTILES)[:, None].round(1)
    count_columns(features_RC, 5, 5 + rows, arrays)

    numbers_NF = features_RC[5:, :numeric]
    absent_NF = np.isnan(numbers_NF)
    clipped_NF = np.clip((numbers_NF - arrays.centre_F) * arrays.scale_F, -4, 4)
    scores_NF = np.where(absent_NF, 0, np.floor(clipped_NF * np.float32(ROOT) + np.float32(0.5))).astype(np.int64)
    paired_NF = np.clip(scores_NF, -2 * ROOT, 2 * ROOT)
    buckets_NK = features_RC[5:, numeric:].astype(np.int64)
    above_EF = [(scores_NF > edges_F).sum(axis=0) for edges_F in arrays.edges_EF]
    pairs = sorted(combinations(range(min(numeric, PAIRED_MAX)), 2), key=lambda pair: pair[::-1])
    expected = [
        *(scores_NF.sum(axis=0) * ROOT),
        *(scores_NF**2).sum(axis=0),
        *(np.ravel(above_EF) * UNIT),
        *(absent_NF.sum(axis=0) * UNIT),
        *(count * UNIT for bucket_N in buckets_NK.T for count in np.bincount(bucket_N % BINS, minlength=BINS)),
        *((buckets_NK == 0).sum(axis=0) * UNIT),
        *(paired_NF[:, i] @ paired_NF[:, j] for i, j in pairs),
    ]
    np.testing.assert_array_equal(inputs.means.sums_D, expected)
    assert inputs.column_D[len(expected) - len(pairs) :].tolist() == [earlier for earlier, _ in pairs]
