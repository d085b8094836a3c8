"""Named fields become the matrix that the trainer would have made of them."""

import math

import numpy as np
import pytest

import pipeline
from consumers.config import FeaturesConfig
from consumers.hashing import bucket
from pipeline.encoding import columns_of

COLUMNS = columns_of(
    FeaturesConfig(
        topic="features",
        numeric=["distance", {"name": "delay", "nullable": True}],
        categorical=["carrier", {"name": "gate", "nullable": True, "buckets": 16}],
    )
)
ROW = {"distance": 12, "delay": 0.5, "carrier": "AA", "gate": 7}


def test_numbers_come_as_they_are_and_categories_as_their_buckets():
    features_NC = pipeline.encode([ROW], COLUMNS)
    assert features_NC.dtype == np.float32
    assert features_NC.tolist() == [[12.0, 0.5, bucket(b"AA", 1024), bucket(b"7", 16)]]


def test_null_absent_and_nan_mean_the_same_in_nullable_columns():
    absent = {"distance": 1, "carrier": "AA"}
    rows = [absent, absent | {"delay": None, "gate": None}, absent | {"delay": math.nan}]
    features_NC = pipeline.encode(rows, COLUMNS)
    assert np.isnan(features_NC[:, 1]).all()
    assert (features_NC[:, 3] == 0).all()


def test_numpy_scalars_and_unknown_names_do_no_harm():
    fancy = {
        "distance": np.float32(12),
        "delay": np.float64(0.5),
        "carrier": "AA",
        "gate": np.int64(7),
        "x": "y",
    }
    np.testing.assert_array_equal(pipeline.encode([fancy], COLUMNS), pipeline.encode([ROW], COLUMNS))


def test_no_rows_make_an_empty_matrix_of_the_right_width():
    assert pipeline.encode([], COLUMNS).shape == (0, 4)


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("distance", None),
        ("distance", math.nan),
        ("distance", math.inf),
        ("distance", 1e39),
        ("distance", 10**400),
        ("distance", True),
        ("distance", "12"),
        ("delay", -math.inf),
        ("carrier", None),
        ("carrier", ""),
        ("carrier", 1.5),
        ("gate", True),
    ],
)
def test_what_the_trainer_rejects_is_refused_with_row_and_column(column, value):
    with pytest.raises(ValueError, match=f"row 1, column '{column}'"):
        pipeline.encode([ROW, ROW | {column: value}], COLUMNS)
