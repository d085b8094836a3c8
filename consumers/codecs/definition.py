"""What a good row is, for every format: slow, one decoded message at a time, with the reason if it is not.

Everything faster is measured against this: it may only take what this takes, and must make the same row of it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from consumers.codecs import fields
from consumers.codecs.envelope import unwrapped
from consumers.codecs.fields import Buckets
from consumers.codecs.table import RowArrays
from consumers.config import FeaturesConfig, LabelRule, LabelsConfig
from consumers.record import Kind


class Row(NamedTuple):
    """One row, without its offset and its number within the message."""

    key: bytes  # 16 of them
    event_time: int
    kind: Kind
    weight: float
    label: float
    features_C: list[float]

    def put(self, rows: RowArrays, at: int, offset: int, number: int = 0) -> None:
        """Writes it to a place of the arrays, with its offset and its number within the message."""
        rows.key_N2[at] = np.frombuffer(self.key, np.uint64)
        rows.event_time_N[at] = self.event_time
        rows.offset_N[at] = offset
        rows.row_N[at] = number
        rows.kind_N[at] = self.kind
        rows.weight_N[at] = self.weight
        rows.label_N[at] = self.label
        rows.features_NC[at] = np.array(self.features_C, np.float64)  # rounded twice, whatever the numbers are


class Definition:
    """The rules of one topic; `label` says which labels are good, if it carries any. All methods raise Reject."""

    def __init__(self, config: FeaturesConfig | LabelsConfig, label: LabelRule) -> None:
        self._key, self._time, self._skew = config.key, config.time, config.max_skew
        self._envelope = config.envelope
        self._rule = label
        self._label: str | None
        if isinstance(config, FeaturesConfig):
            numeric, categorical, self._columns = config.numeric, config.categorical, config.columns
            self._label, self._weight = config.label, config.weight
        else:
            numeric, categorical, self._columns = (), (), 0
            self._label, self._weight = config.column, None
        self._numeric = [(column.name, column.nullable) for column in numeric]
        self._categorical = [Buckets(column.name, column.nullable, column.buckets) for column in categorical]

    def row(self, message: Mapping[str, Any] | None, key: bytes | None, timestamp: int) -> Row:
        """The row of a decoded message, or of a null value; with the key and timestamp (ms) of its record."""
        if message is None:
            return self._tombstone(fields.message_key(key), timestamp)
        kind, record = unwrapped(self._envelope, message)
        hashed = fields.message_key(key) if self._key is None else fields.field_key(self._key, record)
        return self._tombstone(hashed, timestamp) if kind is Kind.TOMBSTONE else self.event(record, hashed, timestamp)

    def event(self, record: Mapping[str, Any], hashed: bytes, timestamp: int) -> Row:
        """The row of an event without its envelope, whose key was hashed before."""
        return Row(
            hashed,
            fields.record_time(timestamp)
            if self._time is None
            else fields.field_time(self._time, record, timestamp, self._skew),
            Kind.EVENT,
            1.0 if self._weight is None else fields.weight(self._weight, record),
            math.nan if self._label is None else fields.label(self._label, record, self._rule),
            [fields.numeric(name, record, nullable) for name, nullable in self._numeric]
            + [fields.category(buckets, record) for buckets in self._categorical],
        )

    def _tombstone(self, hashed: bytes, timestamp: int) -> Row:
        time, zeros = fields.record_time(timestamp), [0.0] * self._columns
        return Row(hashed, time, Kind.TOMBSTONE, 0.0, math.nan, zeros)
