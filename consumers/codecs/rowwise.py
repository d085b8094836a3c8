"""The driver of every format with one event in a message: fast for what is plainly good, slow for the rest.

One bad message among thousands costs itself and nothing else.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from consumers.codecs import Decoded
from consumers.codecs.definition import Definition
from consumers.codecs.fields import Reject
from consumers.codecs.scan import MessageArrays
from consumers.codecs.table import Rejects, RowArrays
from consumers.config import FeaturesConfig, LabelRule, LabelsConfig
from consumers.record import Int64s, Messages


class RowCodec(ABC):
    """Decodes the messages of one topic; `label` says which labels are good, if it carries any."""

    def __init__(self, config: FeaturesConfig | LabelsConfig, label: LabelRule) -> None:
        self.columns = config.columns if isinstance(config, FeaturesConfig) else 0
        self.labelled = isinstance(config, LabelsConfig) or config.label is not None
        self._bytes_max = config.max_message_bytes
        self._definition = Definition(config, label)

    @abstractmethod
    def decode_fast(self, messages: MessageArrays, rows: RowArrays, good_N: npt.NDArray[np.bool_]) -> None:
        """Puts message i into row i and sets `good_N[i]`, wherever the definition would give the same row.

        `good_N` is all False before. What becomes of a row that is not good does not matter.
        """

    @abstractmethod
    def parse(self, value: bytes) -> Mapping[str, Any]:
        """The decoded message, with its envelope. Raises Reject."""

    def rows_N(self, messages: Messages) -> Int64s:
        """One for each message."""
        return np.ones(len(messages), np.int64)

    def decode(self, messages: Messages, rows: RowArrays) -> Decoded:
        """Every message becomes one event or one reject. Never raises on bad input."""
        good_N = np.zeros(len(messages), np.bool_)
        self.decode_fast(MessageArrays.of(messages), rows, good_N)
        rejects = Rejects()
        for index in np.flatnonzero(~good_N).tolist():
            offset, timestamp = int(messages.offset_N[index]), int(messages.timestamp_N[index])
            key, value = messages.keys.at(index), messages.values.at(index)
            try:
                self._definition.row(self._parsed(value), key, timestamp).put(rows, index, offset)
                good_N[index] = True
            except Reject as reject:
                rejects.add(offset, 0, timestamp, str(reject), key, value)
        count = rows.keep(good_N) if len(rejects) else len(messages)
        return Decoded(rows.events(count, labelled=self.labelled), rejects.batch())

    def _parsed(self, value: bytes | None) -> Mapping[str, Any] | None:
        if value is None:
            return None
        if len(value) > self._bytes_max:
            raise Reject(f"value is {len(value)} bytes, more than max_message_bytes = {self._bytes_max}")
        return self.parse(value)
