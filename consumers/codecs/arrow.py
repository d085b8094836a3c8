"""Arrow IPC streams to columns: one message is one stream, a schema and batches of it, and each row is an event.

Streams whose columns lie plainly in the message, as most do, are decoded where they are. Others (compressed, with
dictionaries, of a wider choice of types) pyarrow reads, checks in full, and writes again in the plain way. Columns go
by name: new ones are ignored, order does not matter, and an absent one is null in every row. A timestamp is an integer:
ms since the epoch. Numbers, texts, booleans and timestamps are all that a row can be made of, in any width or encoding.

A bad row is one reject: `row` is its place in the message, and its `value` what this job reads of the row, as JSON. A
stream that is bad as a whole is one reject with the bytes of the message, and counts as one row.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import types

from consumers.codecs import Decoded, columnar, fields, ipc
from consumers.codecs.cells import REAL, SIGNED, UNSIGNED
from consumers.codecs.columnar import FLAGS, NOTHING, TEXTS, TIMES, Layout
from consumers.codecs.definition import Definition
from consumers.codecs.fields import Reject
from consumers.codecs.scan import MessageArrays, new_found, planned
from consumers.codecs.table import Rejects, RowArrays
from consumers.config import FeaturesConfig, LabelRule, LabelsConfig
from consumers.record import MESSAGE_ROWS_MAX, REJECT_BYTES_MAX, Blobs, Int64s, Messages

_LAYOUTS_MAX = 16
