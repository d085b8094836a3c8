"""A table in memory as a Source: its rows in order, decoded as Arrow messages are."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from consumers.codecs import build_codec
from consumers.codecs.table import allocate
from consumers.config import FeaturesConfig, LabelRule
from consumers.record import MESSAGE_ROWS_MAX, Entry, Messages, Partition, Position, Span, Tick, Wait

MESSAGE_ROWS = 8192
"""Rows decoded at a time, or `rows_ahead` if that is more. Of many bad ones only a message as a whole is rejected."""


class TableSource:
    """A bounded stream of one partition whose offsets, keys and event times (in ms) are the table's row numbers.

    Args:
        table: rows in the order of the stream, the label among its columns.
        config: the columns of a row, of format "arrow". Its `key` and `time` name the same column, which the source
            adds.
        label: which labels are good.
        rows_ahead: a label is known so many rows after its features: they come in spans of that many rows, each of
            which is scored as a whole before the first of its rows can be learned. At most MESSAGE_ROWS_MAX.
        batch_size: of the learner. A Tick follows a span that fills no batch.
    """

    def __init__(
        self, table: pa.Table, config: FeaturesConfig, label: LabelRule, *, rows_ahead: int, batch_size: int
    ) -> None:
        if not 1 <= rows_ahead <= MESSAGE_ROWS_MAX:
            raise ValueError(f"rows_ahead = {rows_ahead} is not in 1..{MESSAGE_ROWS_MAX}")
        self.partition = Partition(config.topic, 0)
        self._config = config
        self._codec = build_codec(config, label)
        self._table = table
        self._rows_ahead = rows_ahead
        self._batch_size = batch_size

    def entries(self, positions: Mapping[Partition, Position]) -> Iterator[Entry | Wait]:
        """Spans and Ticks from the partition's position on, to the end of the table."""
        step = max(MESSAGE_ROWS // self._rows_ahead, 1) * self._rows_ahead
        for start in range(positions[self.partition].next, self._table.num_rows, step):
            decoded = self._decode(start, min(start + step, self._table.num_rows))
            yield from self._spans(decoded)

    def close(self) -> None:
        """Nothing to close."""

    def _decode(self, start: int, stop: int) -> Span:
        """Rows `[start, stop)` as one span."""
        rows = self._table.slice(start, stop - start).append_column(str(self._config.key), pa.array(range(start, stop)))
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, rows.schema) as writer:
            writer.write_table(rows)
        messages = Messages.of([start], [stop], [b"table"], [sink.getvalue().to_pybytes()])
        events, rejects = self._codec.decode(messages, allocate(int(self._codec.rows_N(messages).sum()), self._codec.columns))
        events = replace(events, offset_N=events.event_time_N)
        return Span(self.partition, start, stop, start, stop - start, events, rejects)

    def _spans(self, whole: Span) -> Iterator[Entry]:
        """Parts of `rows_ahead` rows of a span."""
        bounds = np.arange(whole.start, whole.stop + self._rows_ahead, self._rows_ahead)
        for start, stop in pairwise(bounds):
            pass
