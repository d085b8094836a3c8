"""Bytes to columns: one file and one line per format."""

from __future__ import annotations

from collections.abc import Callable
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


def build_codec(config: FeaturesConfig | LabelsConfig, label: LabelRule) -> Codec:
    """The codec of a topic by its `format`."""
    from consumers.codecs.arrow import ArrowCodec
    from consumers.codecs.json import JsonCodec
    from consumers.codecs.packed import PackedCodec

    codecs: dict[str, Callable[[FeaturesConfig | LabelsConfig, LabelRule], Codec]] = {
        "json": JsonCodec,
        "packed": PackedCodec,
        "arrow": ArrowCodec,
    }
    return codecs[config.format](config, label)
