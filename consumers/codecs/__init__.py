"""Bytes to columns: one file and one line per format."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import pyarrow as pa

from consumers.config import FeaturesConfig, LabelRule, LabelsConfig
from consumers.record import Messages


class Decoded(NamedTuple):
    """Good rows (`event_schema`) and bad ones (`REJECTS`), both in the order of the messages."""

    events: pa.RecordBatch
    rejects: pa.RecordBatch


class Codec(Protocol):
    """Decodes the messages of one topic."""

    def decode(self, messages: Messages) -> Decoded:
        """Every message ends up in exactly one of the two batches. Never raises on bad input."""
        ...


def build_codec(config: FeaturesConfig | LabelsConfig, label: LabelRule) -> Codec:
    """The codec of a topic by its `format`."""
    from consumers.codecs.json import JsonCodec

    return {"json": JsonCodec}[config.format](config, label)
