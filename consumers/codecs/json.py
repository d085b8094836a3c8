"""JSON objects to columns."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from consumers.codecs import fields, strict
from consumers.codecs.fields import Reject
from consumers.codecs.rowwise import RowCodec
from consumers.codecs.scan import MessageArrays
from consumers.codecs.table import RowArrays
from consumers.config import FeaturesConfig, LabelRule, LabelsConfig


class JsonCodec(RowCodec):
    """Decodes the messages of one topic; `label` says which labels are good, if it carries any."""

    def __init__(self, config: FeaturesConfig | LabelsConfig, label: LabelRule) -> None:
        super().__init__(config, label)
        self._numeric = {column.name for column in config.numeric} if isinstance(config, FeaturesConfig) else set()

    def decode_fast(self, messages: MessageArrays, rows: RowArrays, good_N: npt.NDArray[np.bool_]) -> None:
        """By the scanner."""

    def parse(self, value: bytes) -> dict[str, Any]:
        """The object that a message holds: NaN, which is no JSON, only in numeric columns."""
        document = strict.parse(value)
        for name, item in document.items():
            if fields.is_nan(item) and name not in self._numeric:
                raise Reject(f"field {fields.shown(name)}: NaN, but it is not a numeric column")
        return document
