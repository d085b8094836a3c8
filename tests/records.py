"""The log of a partition as a test writes it, and what a codec makes of messages."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from consumers.codecs import Codec, Decoded
from consumers.codecs.table import allocate
from consumers.record import Messages, Partition
from tests.stream import Record


@dataclass
class Log:
    """Records in the order of their offsets. They may be changed at will before they are read."""

    offsets: list[int] = field(default_factory=list)
    timestamps: list[int] = field(default_factory=list)
    keys: list[bytes | None] = field(default_factory=list)
    values: list[bytes | None] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.offsets)

    @property
    def end(self) -> int:
        """The offset after the last one."""
        return self.offsets[-1] + 1 if self.offsets else 0

    def append(self, record: Record, offset: int | None = None) -> None:
        """One more, at the end or further on: what lies between holds no record."""
        self.offsets.append(self.end if offset is None else offset)
        self.timestamps.append(record.timestamp)
        self.keys.append(record.key)
        self.values.append(record.value)

    def drop(self, count: int) -> None:
        """Takes the first ones away."""
        for column in (self.offsets, self.timestamps, self.keys, self.values):
            del column[:count]

    def messages(self) -> Messages:
        """All of them, as a consumer gets them."""
        return Messages.of(self.offsets, self.timestamps, self.keys, self.values)


def messages_of(logs: Mapping[Partition, Log]) -> dict[Partition, Messages]:
    """What a source of these topics reads."""
    return {partition: log.messages() for partition, log in logs.items()}


def decoded(codec: Codec, messages: Messages) -> Decoded:
    """All of these messages, in memory of their own."""
    return codec.decode(messages, allocate(int(codec.rows_N(messages).sum()), codec.columns))
