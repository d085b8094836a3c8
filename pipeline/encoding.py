"""Named fields to a model's input: the same numbers as the trainer makes of the same values."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from consumers.config import FeaturesConfig
from consumers.hashing import bucket, canonical
from consumers.record import Float32s

_FLOAT32_MAX = float(np.finfo(np.float32).max)


def columns_of(features: FeaturesConfig) -> dict[str, list[dict[str, Any]]]:
    """What `encode` needs to know of the columns: the content of a version's `columns.json`."""
    return {
        "numeric": [column.model_dump(mode="json") for column in features.numeric],
        "categorical": [column.model_dump(mode="json") for column in features.categorical],
    }


def encode(rows: Sequence[Mapping[str, Any]], columns: Mapping[str, Any]) -> Float32s:
    """The matrix that a published model takes.

    Args:
        rows: N mappings from column name to value; other names are ignored, None and absence mean null.
        columns: the content of the version's `columns.json`.

    Returns:
        float32 [N, C]: numeric columns as they are (null is NaN), then category buckets (null is 0).

    Raises:
        ValueError: a value that the trainer would have rejected; the message names row and column.
    """
    numeric, categorical = columns["numeric"], columns["categorical"]
    features_NC = np.empty((len(rows), len(numeric) + len(categorical)), np.float32)
    for index, column in enumerate([*numeric, *categorical]):
        encode_one = _number if index < len(numeric) else _bucket
        for row, fields in enumerate(rows):
            value = fields.get(column["name"])
            try:
                features_NC[row, index] = encode_one(value, column)
            except (ValueError, OverflowError) as error:
                raise ValueError(f"row {row}, column {column['name']!r}: {error}") from None
    return features_NC


def _number(value: Any, column: Mapping[str, Any]) -> float:
    value = _plain(value)
    if value is None or (isinstance(value, float) and math.isnan(value)):
        if not column["nullable"]:
            raise ValueError("is null, but the column is not nullable")
        return math.nan
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{value!r} is not a number")
    if abs(value) > _FLOAT32_MAX:
        raise ValueError(f"{value!r} is not a finite float32")
    return float(value)


def _bucket(value: Any, column: Mapping[str, Any]) -> int:
    if value is None:
        if not column["nullable"]:
            raise ValueError("is null, but the column is not nullable")
        return 0
    return bucket(canonical(_plain(value)), column["buckets"])


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value
