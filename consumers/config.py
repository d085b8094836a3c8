"""What a job file says about topics, columns and the join."""

from __future__ import annotations

import re
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

_DURATION = {"ms": 1, "s": 1000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}
_SIZE = {"B": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}


def parse_duration(value: Any) -> Any:
    """'1500ms', '30s', '5m', '24h' or '7d' to milliseconds. Raises ValueError."""
    if isinstance(value, str):
        match = re.fullmatch(r"(\d+)\s*(ms|s|m|h|d)", value.strip())
        if match:
            return int(match[1]) * _DURATION[match[2]]
        raise ValueError("a duration is a whole number with ms, s, m, h or d, for example '30s'")
    return value


def parse_size(value: Any) -> Any:
    """'64KiB', '512MiB' or '2GiB' to bytes. Raises ValueError."""
    if isinstance(value, str):
        match = re.fullmatch(r"(\d+)\s*(B|KiB|MiB|GiB)", value.strip())
        if match:
            return int(match[1]) * _SIZE[match[2]]
        raise ValueError("a size is a whole number with B, KiB, MiB or GiB, for example '512MiB'")
    return value


INT64_MAX = 2**63 - 1

DurationMs = Annotated[int, BeforeValidator(parse_duration), Field(ge=0, le=INT64_MAX)]
SizeBytes = Annotated[int, BeforeValidator(parse_size), Field(gt=0, le=INT64_MAX)]


class Model(BaseModel):
    """Base of all configuration: unknown keys are errors, values never change, numbers are finite."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class NumericColumn(Model):
    """A numeric column. A `nullable` one may be null, absent or NaN: imputed, with an indicator."""

    name: str
    nullable: bool = False


class CategoricalColumn(Model):
    """A categorical column, hashed into `buckets` (bucket 0 means null, if `nullable`)."""

    name: str
    nullable: bool = False
    buckets: int = Field(default=1024, ge=2, le=2**22)


def _named(value: Any) -> Any:
    if not isinstance(value, list | tuple):
        return value  # pydantic says what is expected
    return [{"name": column} if isinstance(column, str) else column for column in value]


def _check_start(value: str) -> str:
    if value not in ("earliest", "latest"):
        try:
            datetime.fromisoformat(value)
        except ValueError:
            raise ValueError("start is 'earliest', 'latest' or an ISO 8601 time") from None
    return value


LAYOUT_ENTRY = re.compile(r"(.+):([iu](?:8|16|32|64)|f32|f64|bool|text([1-9]\d{0,5}))")


def _check_layout(layout: tuple[str, ...]) -> tuple[str, ...]:
    for entry in layout:
        if not LAYOUT_ENTRY.fullmatch(entry):
            raise ValueError(
                f"{entry!r} in layout is no 'name:type'; types are i8, i16, i32, i64, u8, u16, u32, u64, f32, f64, "
                "bool, and text20 for 20 bytes of text"
            )
    names = [entry.rpartition(":")[0] for entry in layout]
    if len(set(names)) != len(names):
        raise ValueError("layout names a field twice")
    return layout


class TopicConfig(Model):
    """What both topics have in common."""

    topic: str
    format: Literal["json", "avro", "protobuf", "packed", "arrow"] = "json"
    envelope: Literal["none", "cloudevents", "debezium"] = "none"  # what is around an event
    key: str | None = None  # a field; None: the message key
    time: str | None = None  # a field with ms since the epoch; None: the record's timestamp
    start: Annotated[str, AfterValidator(_check_start)] = "earliest"
    max_skew: DurationMs = 300_000  # an event time may be this far ahead of its record's timestamp
    max_message_bytes: SizeBytes = 2**20
    schema_file: Path | None = None  # avro: the writer's schema; protobuf: a FileDescriptorSet
    message: str | None = None  # protobuf: full name of the message in `schema_file`
    schema_registry: dict[str, str] | None = None  # url, and other settings of Confluent's client
    layout: Annotated[tuple[str, ...], AfterValidator(_check_layout)] = ()  # of packed messages, in their order

    @model_validator(mode="after")
    def _schema_fits(self) -> TopicConfig:
        keys = [key for key in ("schema_file", "message", "schema_registry") if getattr(self, key) is not None]
        if self.format not in ("avro", "protobuf"):
            if keys:
                raise ValueError(f"{keys[0]} is for format = 'avro' and 'protobuf', not for {self.format!r}")
            return self
        usual = ["schema_file"] if self.format == "avro" else ["schema_file", "message"]
        if keys not in (usual, ["schema_registry"]):
            raise ValueError(f"format = {self.format!r} takes either {' and '.join(usual)}, or schema_registry")
        if self.schema_registry is not None and not re.match(r"https?://[^@]+$", self.schema_registry.get("url", "")):
            raise ValueError("schema_registry.url is http(s)://host:port; basic.auth.user.info is for 'user:password'")
        if self.format == "protobuf" and self.envelope != "none":
            raise ValueError("messages of format = 'protobuf' have no envelope")
        return self

    @property
    def fields(self) -> list[str]:
        """Names of the fields that its rows are made of."""
        return [name for name in (self.key, self.time) if name is not None]

    @model_validator(mode="after")
    def _layout_fits(self) -> TopicConfig:
        if (self.format == "packed") != bool(self.layout):
            raise ValueError("layout says what packed messages hold: give it with format = 'packed', and only then")
        if self.format in ("packed", "arrow") and self.envelope != "none":
            raise ValueError(f"messages of format = {self.format!r} have no envelope")
        names = [entry.rpartition(":")[0] for entry in self.layout]
        absent = [name for name in self.fields if name not in names]
        if self.layout and absent:
            raise ValueError(f"layout has no field {absent[0]!r}")
        return self


class FeaturesConfig(TopicConfig):
    """`[features]`: the order of the columns is the order in the tensor, numeric first."""

    numeric: Annotated[tuple[NumericColumn, ...], BeforeValidator(_named)] = ()
    categorical: Annotated[tuple[CategoricalColumn, ...], BeforeValidator(_named)] = ()
    label: str | None = None  # only without [labels]: the label's column
    weight: str | None = None  # a column with each example's weight, a finite number >= 0

    @property
    def columns(self) -> int:
        """C: the width of the feature matrix."""
        return len(self.numeric) + len(self.categorical)

    @property
    def fields(self) -> list[str]:
        """Names of the fields that its rows are made of."""
        columns = [column.name for column in self.numeric] + [column.name for column in self.categorical]
        return super().fields + columns + [name for name in (self.label, self.weight) if name is not None]

    @model_validator(mode="after")
    def _some_columns(self) -> FeaturesConfig:
        names = [column.name for column in self.numeric] + [column.name for column in self.categorical]
        if not names:
            raise ValueError("name at least one column in numeric or categorical")
        if len(set(names)) != len(names):
            raise ValueError("a column is named twice")
        return self


class LabelsConfig(TopicConfig):
    """`[labels]`."""

    column: str

    @property
    def fields(self) -> list[str]:
        """Names of the fields that its rows are made of."""
        return [*super().fields, self.column]


PAGE_ROWS = 4096
"""Rows of a slab that fill whole pages in every column, which is what mapping it from a file takes."""


class JoinConfig(Model):
    """`[join]`."""

    window: DurationMs = 86_400_000
    on_expiry: Literal["drop", "negative"] = "drop"
    negative_after: DurationMs | None = None  # without a label for so long: learned as a negative, until corrected
    keep_negatives: float = Field(default=1.0, gt=0, le=1)  # the share of negatives that is learned, each weighing more
    memory: SizeBytes = 512 * 2**20  # of both tables; beyond it full slabs are read from the snapshots' files
    disk: SizeBytes | None = None  # of both tables, in memory or not: beyond it the oldest are evicted, and counted
    slab_rows: int = Field(default=32_768, ge=16, le=2**22)

    @property
    def limit(self) -> int:
        """Bytes of both tables at which the oldest slabs are evicted."""
        if self.disk is not None:
            return self.disk
        return 16 * self.memory if self.slab_rows % PAGE_ROWS == 0 else self.memory

    @property
    def learns_otherwise(self) -> bool:
        """Whether what is learned differs from what is booked: see `pipeline.delayed`."""
        return self.negative_after is not None or self.keep_negatives < 1

    @property
    def needs_binary(self) -> bool:
        """Whether negatives are told apart from positives."""
        return self.on_expiry == "negative" or self.learns_otherwise

    @model_validator(mode="after")
    def _negatives_come_within_the_window(self) -> JoinConfig:
        if self.negative_after is not None and self.negative_after >= self.window:
            raise ValueError("negative_after is less than window: after that no label can correct a negative")
        return self

    @model_validator(mode="after")
    def _disk_is_usable(self) -> JoinConfig:
        if self.disk is not None and self.disk < self.memory:
            raise ValueError("disk is smaller than memory; it limits all that waits, in memory or not")
        if self.disk is not None and self.disk > self.memory and self.slab_rows % PAGE_ROWS:
            raise ValueError(f"slabs can only go to disk if slab_rows is a multiple of {PAGE_ROWS}")
        return self


class StreamConfig(Model):
    """`[stream]`: how topics are cut into spans and put in order."""

    span: int = Field(default=2048, ge=1, le=2**20)  # messages: identity of the run
    slots: int = Field(default=4, ge=1, le=64)  # spans decoded ahead, per partition
    readers: int = Field(default=1, ge=1, le=64)  # processes that share the partitions
    reader_memory: SizeBytes = 2**30  # what each may use beside its queues: the largest batch, decompressed, twice
    linger: DurationMs = 50  # a part-filled span waits this long at the end of its partition
    idle_after: DurationMs = 60_000  # a feature partition this far behind the others is idle
    labels_may_idle: bool = False


class LabelRule(Model):
    """Which labels a task accepts; anything else is bad input."""

    kind: Literal["binary", "class", "number"]
    classes: int = 2
