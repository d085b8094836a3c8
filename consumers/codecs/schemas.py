"""The driver of formats that can only be read by the writer's schema: of a file, or of the registry.

In Confluent's wire format a message begins with a header that names its schema. Messages with the same header are
decoded together, by a reader that is made once for each header.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from consumers.codecs.fields import Reject
from consumers.codecs.registry import Registry
from consumers.codecs.rowwise import RowCodec
from consumers.codecs.scan import MessageArrays
from consumers.codecs.table import RowArrays
from consumers.compiled import njit_cached
from consumers.config import FeaturesConfig, LabelRule, LabelsConfig
from consumers.errors import ConfigError
from consumers.record import Blobs, Bytes1, Int64s

READERS_MAX = 1024
"""Headers whose readers are kept: bad messages may have any number."""

HEADER_BYTES = 5  # a zero, and the schema's id


class Bodies(NamedTuple):
    """What is behind the header in those of the messages that have the same one."""

    messages: MessageArrays
    index_M: Int64s
    header_bytes: int


class Reader(ABC):
    """Reads the messages of one header."""

    @abstractmethod
    def decode_fast(self, bodies: Bodies, rows: RowArrays, good_N: npt.NDArray[np.bool_]) -> None:
        """As that of `RowCodec`, for some of its messages."""

    @abstractmethod
    def parse(self, body: bytes) -> Mapping[str, Any]:
        """The decoded message, which had its header in front. Raises Reject."""


class SchemaCodec(RowCodec):
    """Decodes the messages of one topic by their writers' schemas.

    `decode` raises DependencyError, and leaves the messages as they were, if the registry has to be asked and does not
    answer: the messages are as good as before, and can be tried again.
    """

    def __init__(self, config: FeaturesConfig | LabelsConfig, label: LabelRule) -> None:
        super().__init__(config, label)
        self._registry = None if config.schema_registry is None else Registry(config.topic, config.schema_registry)
        self._readers: dict[bytes, Reader | str] = {}  # by header; the reason if all its messages are bad
        if config.schema_file is not None:
            try:
                self._readers[b""] = self.of_file(config.schema_file)
            except OSError as error:
                raise ConfigError(f"schema_file {config.schema_file} of {config.topic}: {error.strerror}") from None
            except Reject as reject:
                raise ConfigError(f"schema_file {config.schema_file} of {config.topic}: {reject}") from None

    @abstractmethod
    def of_file(self, path: Path) -> Reader:
        """The reader of messages without a header. Raises OSError and Reject."""

    @abstractmethod
    def of_registry(self, registry: Registry, header: bytes) -> Reader:
        """The reader of messages with this header. Raises Reject and DependencyError."""

    def header(self, value: bytes) -> bytes:
        """The bytes in front of a message of the registry's. Raises Reject."""
        if len(value) < HEADER_BYTES or value[0]:
            raise Reject("not in Confluent's wire format: a zero byte and a schema id of four in front")
        return value[:HEADER_BYTES]

    def decode_fast(self, messages: MessageArrays, rows: RowArrays, good_N: npt.NDArray[np.bool_]) -> None:
        """All messages of a header at once, then those of the next."""
        values = messages.values
        left_M = np.flatnonzero((values.length_N >= 0) & (values.length_N <= self._bytes_max))
        while len(left_M):
            try:
                header, reader = self._header_and_reader(values.at(left_M[0]) or b"")
            except Reject:
                left_M = left_M[1:]
                continue
            same_M = np.zeros(len(left_M), np.bool_)
            _find(values, left_M, np.frombuffer(header, np.uint8), same_M)
            reader.decode_fast(Bodies(messages, left_M[same_M], len(header)), rows, good_N)
            left_M = left_M[~same_M]

    def parse(self, value: bytes) -> Mapping[str, Any]:
        """By the reader of its header."""
        header, reader = self._header_and_reader(value)
        return reader.parse(value[len(header) :])

    def _header_and_reader(self, value: bytes) -> tuple[bytes, Reader]:
        header = b"" if self._registry is None else self.header(value)
        if header not in self._readers and self._registry is not None:
            if len(self._readers) == READERS_MAX:
                self._readers.clear()
            try:
                self._readers[header] = self.of_registry(self._registry, header)
            except Reject as reject:
                self._readers[header] = str(reject)
        reader = self._readers[header]
        if isinstance(reader, str):
            raise Reject(reader)
        return header, reader


@njit_cached
def _find(values: Blobs, index_M: Int64s, header: Bytes1, same_M: npt.NDArray[np.bool_]) -> None:
    """Marks which of these messages begin with the header."""
    for number in range(len(index_M)):
        start = values.start_N[index_M[number]]
        same = values.length_N[index_M[number]] >= len(header)
        for place in range(len(header) if same else 0):
            same &= values.data[start + place] == header[place]
        same_M[number] = same
