"""Bytes to columns: one file and one line per format."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import NamedTuple, Protocol

import pyarrow as pa

from consumers.codecs.table import RowArrays
from consumers.config import FeaturesConfig, LabelRule, LabelsConfig
from consumers.record import Events, Int64s, Messages


class Decoded(NamedTuple):
    """Good rows and bad ones, both in the order of the messages."""

    events: Events
    rejects: pa.RecordBatch  # of schema REJECTS


class Codec(Protocol):
    """Decodes the messages of one topic."""

    columns: int  # C: the width of the feature matrix; 0 for a label topic
    labelled: bool  # whether its rows carry a label

    def rows_N(self, messages: Messages) -> Int64s:
        """How many rows each message takes while it is decoded, good or bad."""
        ...

    def decode(self, messages: Messages, rows: RowArrays) -> Decoded:
        """Every row of every message ends up in exactly one of the two. Never raises on bad input.

        The events are views of the first rows of `rows`, which must have room for `rows_N` of all the messages.
        """
        ...


CODECS = {
    "json": "JsonCodec",
    "avro": "AvroCodec",
    "protobuf": "ProtobufCodec",
    "packed": "PackedCodec",
    "arrow": "ArrowCodec",
}
"""By format, which is also the name of the file."""


def build_codec(config: FeaturesConfig | LabelsConfig, label: LabelRule) -> Codec:
    """The codec of a topic by its `format`; no other is imported. Raises ConfigError."""
    module = import_module(f"consumers.codecs.{config.format}")
    codec: Callable[[FeaturesConfig | LabelsConfig, LabelRule], Codec] = getattr(module, CODECS[config.format])
    return codec(config, label)
