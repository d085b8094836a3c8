"""A table in memory as a Source: its rows in their order, decoded by the very codec that Arrow messages go through."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import fields, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from consumers.codecs import build_codec
from consumers.codecs.table import allocate
from consumers.config import FeaturesConfig, LabelRule
from consumers.record import MESSAGE_ROWS_MAX, Entry, Events, Messages, Partition, Position, Span, Tick

DECODED_ROWS = 8192
"""Rows decoded at a time, or one span if that is more."""


class TableSource:
    """A bounded stream of one partition. Offset, key and event time (ms) of a row are its number in the table.

    Rows come in spans of `span_rows`, each followed by a Tick: a span is scored as a whole before any of its rows is
    learned, and all of them are learned before the next one is scored.

    Args:
        table: the columns that `config` names, the label's among them.
        config: of format "arrow". Its `key` and `time` name one column that the source adds.
        label: which labels are good.
        span_rows: at most MESSAGE_ROWS_MAX.
    """

    def __init__(self, table: pa.Table, config: FeaturesConfig, label: LabelRule, span_rows: int) -> None:
        if not 1 <= span_rows <= MESSAGE_ROWS_MAX:
            raise ValueError(f"span_rows = {span_rows} is not in 1..{MESSAGE_ROWS_MAX}")
        self.partition = Partition(config.topic, 0)
        self._table = table
        self._row_number = str(config.key)
        self._codec = build_codec(config, label)
        self._span_rows = span_rows

    def entries(self, positions: Mapping[Partition, Position]) -> Iterator[Entry]:
        """Spans and Ticks from the partition's position on, to the end of the table."""
        step, stop = max(DECODED_ROWS // self._span_rows, 1) * self._span_rows, self._table.num_rows
        for start in range(positions[self.partition].next, stop, step):
            for span in self._split(self._decode(start, min(start + step, stop))):
                yield span
                yield Tick()

    def close(self) -> None:
        """Nothing to close."""

    def _decode(self, start: int, stop: int) -> Span:
        """Rows `[start, stop)` as one span, whose rejects are all there: one message holds only so many."""
        span = self._decode_message(start, stop)
        if len(span.events) + span.rejects.num_rows == stop - start:
            return span
        middle = (start + stop) // 2
        return _joined(self._decode(start, middle), self._decode(middle, stop))

    def _decode_message(self, start: int, stop: int) -> Span:
        """Rows `[start, stop)` as one message."""
        rows = self._table.slice(start, stop - start).append_column(self._row_number, pa.array(np.arange(start, stop)))
        stream = pa.BufferOutputStream()
        with pa.ipc.new_stream(stream, rows.schema) as writer:
            writer.write_table(rows)
        messages = Messages.of([start], [stop], [b"table"], [stream.getvalue().to_pybytes()])
        room = allocate(int(self._codec.rows_N(messages).sum()), self._codec.columns)
        return Span(self.partition, start, stop, start, stop - start, *self._codec.decode(messages, room))

    def _split(self, whole: Span) -> Iterator[Span]:
        """Spans of `span_rows`: what is bad is missing in its own."""
        starts = range(whole.start, whole.stop, self._span_rows)
        bounds = [*starts, whole.stop]
        at = np.searchsorted(whole.events.event_time_N, bounds).tolist()
        for number, start in enumerate(starts):
            stop, rejects = bounds[number + 1], whole.rejects
            if rejects.num_rows:
                row = pc.add(rejects.column("offset"), rejects.column("row"))
                rejects = rejects.filter(pc.and_(pc.greater_equal(row, start), pc.less(row, stop)))
            events = whole.events.part(at[number], at[number + 1])
            yield Span(self.partition, start, stop, start, stop - start, events, rejects)


def _joined(first: Span, second: Span) -> Span:
    """Two spans as one; the second begins where the first ends."""
    pairs = ((getattr(first.events, each.name), getattr(second.events, each.name)) for each in fields(Events))
    return replace(
        first,
        stop=second.stop,
        messages=first.messages + second.messages,
        events=Events(*map(np.concatenate, pairs)),
        rejects=pa.concat_batches([first.rejects, second.rejects]),
    )
