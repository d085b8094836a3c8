"""Arrow IPC streams to columns: one message is one stream, a schema and batches of it, and each row is an event.

Streams that are laid out plainly, as most are, are decoded where they lie. The others (compressed, with dictionaries,
of rarer types) pyarrow reads, checks and writes again in the plain way. Columns go by name: those that make no part of
a row are not looked at, and one that is absent is null in every row. A timestamp is an integer, ms since the epoch.

A bad row is one reject: `row` is its number in the message, and `value` what was read of it, as JSON. A stream that is
bad as a whole is one reject with the bytes of the message, and counts as one row.
"""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from consumers.codecs import Decoded, columnar, fields, ipc, streams
from consumers.codecs.columnar import Target
from consumers.codecs.definition import Definition
from consumers.codecs.fields import Reject
from consumers.codecs.scan import MessageArrays, new_found, planned
from consumers.codecs.table import Rejects, RowArrays
from consumers.config import FeaturesConfig, LabelRule, LabelsConfig
from consumers.record import MESSAGE_ROWS_MAX, REJECT_BYTES_MAX, REJECT_RAW_BYTES_MAX, Blobs, Int64s, Messages

_SCHEMAS_MAX = 16
"""Schemas remembered: those of a topic are few, but no message can be trusted to keep it so."""


class ArrowCodec:
    """Decodes the messages of one topic; `label` says which labels are good, if it carries any."""

    def __init__(self, config: FeaturesConfig | LabelsConfig, label: LabelRule) -> None:
        self.columns = config.columns if isinstance(config, FeaturesConfig) else 0
        self.labelled = isinstance(config, LabelsConfig) or config.label is not None
        self._config = config
        self._definition = Definition(config, label)
        names, self._plan = planned(config, label)
        self._wanted = streams.Wanted.of(names, self._plan)
        self._found = new_found(len(names))
        self._places = columnar.new_places(len(names), len(self._plan.numeric_M))
        self._schemas: dict[bytes, streams.Schema] = {}  # by their bytes

    def rows_N(self, messages: Messages) -> Int64s:
        """As many as its batches say; one for a tombstone, and for a message that is refused unread."""
        values = MessageArrays.of(messages).values
        return self._rows_N(values, ipc.measured(values))

    def decode(self, messages: Messages, rows: RowArrays) -> Decoded:
        """Every row becomes one event or one reject. Never raises on bad input."""
        arrays = MessageArrays.of(messages)
        sizes = ipc.measured(arrays.values)
        start_N1 = np.zeros(len(messages) + 1, np.int64)
        np.cumsum(self._rows_N(arrays.values, sizes), out=start_N1[1:])
        target = Target(start_N1, rows, np.zeros(start_N1[-1], np.bool_))
        plain = np.flatnonzero(sizes.plain_N & ~self._refused_N(arrays.values, sizes)).tolist()
        decoded = self._decode_plain(arrays, sizes, plain, target)
        rejects, bad_R = Rejects(), np.flatnonzero(~target.good_R)
        for index in np.unique(np.searchsorted(target.start_N1, bad_R, side="right") - 1).tolist():
            self._decode_slowly(messages.part(index, index + 1), target.part(index), rejects, decoded=index in decoded)
        count = rows.keep(target.good_R) if len(rejects) else len(target.good_R)
        return Decoded(rows.events(count, labelled=self.labelled), rejects.batch())

    def _rows_N(self, values: Blobs, sizes: ipc.Sizes) -> Int64s:
        return np.where(self._refused_N(values, sizes), 1, sizes.rows_N)

    def _refused_N(self, values: Blobs, sizes: ipc.Sizes) -> npt.NDArray[np.bool_]:
        """Which messages are not read; `_read` has the words for it."""
        bytes_N = np.maximum(values.length_N, sizes.bytes_N)
        return (sizes.broken_N >= 0) | (bytes_N > self._config.max_message_bytes) | (sizes.rows_N > MESSAGE_ROWS_MAX)

    def _decode_plain(self, messages: MessageArrays, sizes: ipc.Sizes, plain: list[int], target: Target) -> set[int]:
        """Decodes messages that are laid out plainly; returns those whose columns are, too."""
        values, alike = messages.values, dict[bytes, list[int]]()
        for index in plain:
            schema = values.data[values.start_N[index] : sizes.schema_stop_N[index]].tobytes()
            alike.setdefault(schema, []).append(index)
        decoded = set[int]()
        for schema, indices in alike.items():
            layout = self._understood(schema).layout
            if layout is not None:
                columns = columnar.Columns(layout, self._places, self._plan, self._found)
                columnar.decode(messages, np.array(indices), columns, target)
                decoded.update(indices)
        return decoded

    def _understood(self, schema: bytes) -> streams.Schema:
        if schema not in self._schemas:
            if len(self._schemas) >= _SCHEMAS_MAX:
                self._schemas.clear()
            self._schemas[schema] = streams.understood(schema, self._wanted)
        return self._schemas[schema]

    def _decode_slowly(self, message: Messages, target: Target, rejects: Rejects, *, decoded: bool) -> None:
        """Decides on the rows of one message that are not good yet; `decoded`: that is what became of them."""
        offset, timestamp = int(message.offset_N[0]), int(message.timestamp_N[0])
        key, value = message.keys.at(0), message.values.at(0)
        try:
            if value is None:
                self._definition.row(None, key, timestamp).put(target.rows, 0, offset)
                target.good_R[0] = True
                return
            table = self._read(message, value)
            if table.num_rows != len(target.good_R):
                raise Reject("not an Arrow IPC stream: its columns and batches differ in length")
            if not decoded:
                plain = MessageArrays.of(replace(message, values=Blobs.of([streams.written(table)])))
                self._decode_plain(plain, ipc.measured(plain.values), [0], target)
            for row, reason, shown in self._bad_rows(table, message, target):
                rejects.add(offset, row, timestamp, reason, key, shown)
        except Reject as reject:
            target.good_R[:] = False
            rejects.add(offset, 0, timestamp, str(reject), key, value)

    def _read(self, message: Messages, value: bytes) -> pa.Table:
        """The columns of one message. Raises Reject, also for those of which nothing may be read (`_refused_N`)."""
        values = MessageArrays.of(message).values
        sizes, most = ipc.measured(values), self._config.max_message_bytes
        if len(value) > most:
            raise Reject(f"value is {len(value)} bytes, more than max_message_bytes = {most}")
        if sizes.broken_N[0] >= 0:
            raise Reject(f"not an Arrow IPC stream: it is broken at byte {sizes.broken_N[0]}")
        if sizes.bytes_N[0] > most:
            raise Reject(f"decodes to {sizes.bytes_N[0]} bytes, more than max_message_bytes = {most}")
        if sizes.rows_N[0] > MESSAGE_ROWS_MAX:
            raise Reject(f"holds {sizes.rows_N[0]} rows, more than {MESSAGE_ROWS_MAX}")
        schema = self._understood(value[: sizes.schema_stop_N[0] - values.start_N[0]])
        return streams.read(value, schema, self._wanted.names, most)

    def _bad_rows(self, table: pa.Table, message: Messages, target: Target) -> list[tuple[int, str, bytes]]:
        """Number, reason and JSON of the rows that are bad. Raises Reject if these are too many for one span."""
        offset, timestamp, key = int(message.offset_N[0]), int(message.timestamp_N[0]), message.keys.at(0)
        name = self._config.key
        hashed = fields.message_key(key) if name is None else b""
        if self._config.time is None:
            fields.record_time(timestamp)  # what is wrong with the message is not wrong with each row
        bad: list[tuple[int, str, bytes]] = []
        size = 0
        for row in np.flatnonzero(~target.good_R).tolist():
            record = {each: streams.cell(table.column(each), row) for each in self._wanted.names}
            try:
                row_key = hashed if name is None else fields.field_key(name, record)
                self._definition.event(record, row_key, timestamp).put(target.rows, row, offset, row)
                target.good_R[row] = True
            except Reject as reject:
                bad.append((row, str(reject), json.dumps(record, default=str).encode()))
                raw_bytes = sum(min(len(raw or b""), REJECT_RAW_BYTES_MAX) for raw in (key, bad[-1][2]))
                size += raw_bytes + len(bad[-1][1].encode())
            if size > REJECT_BYTES_MAX:
                count = len(target.good_R)
                raise Reject(f"{len(bad)} or more of its {count} rows are bad; row {bad[0][0]}: {bad[0][1]}")
        return bad
