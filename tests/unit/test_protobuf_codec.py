"""Protobuf codec: how columns are found by number, what is not there, and what is refused."""

from __future__ import annotations

import base64
from pathlib import Path
from random import Random
from struct import pack
from typing import Any

import numpy as np
import pytest
from google.protobuf import descriptor_pool, message_factory, timestamp_pb2, wrappers_pb2
from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    Edition,
    FeatureSet,
    FieldDescriptorProto,
    FileDescriptorProto,
    FileDescriptorSet,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from consumers.codecs.protobuf import ProtobufCodec
from consumers.config import FeaturesConfig, LabelRule, LabelsConfig
from consumers.errors import ConfigError, DependencyError
from consumers.hashing import bucket, key128
from consumers.record import Kind
from tests.codec_ways import NOW, check_one_is_slow, decoded, event, random_columns, reason, taken_fast
from tests.schema_registry import SchemaRegistry

BINARY = LabelRule(kind="binary")
F = FieldDescriptorProto
SCALARS = {name.removeprefix("TYPE_").lower(): number for name, number in F.Type.items()}
for _name in ("group", "message", "enum"):
    del SCALARS[_name]

INTEGERS = [
    (kind, number)
    for kinds, numbers in {
        ("int32", "sint32", "sfixed32"): (0, 7, -1, 2**31 - 1, -(2**31)),
        ("uint32", "fixed32"): (0, 7, 2**31, 2**32 - 1),
        ("int64", "sint64", "sfixed64"): (0, 7, -1, 2**53 + 1, 2**63 - 1, -(2**63)),
        ("uint64", "fixed64"): (0, 7, 2**53 + 1, 2**63 - 1),
    }.items()
    for kind in kinds
    for number in numbers
]

FIELDS = {"id": "string", "ts": "int64", "x": "double", "y": "optional float", "color": ".p.Color"}
GOOD = {"id": "a", "ts": NOW, "x": 1.5, "y": 0.25, "color": 2}
NULLABLE_Y = {"name": "y", "nullable": True}
TIMESTAMP, DOUBLE_VALUE = ".google.protobuf.Timestamp", ".google.protobuf.DoubleValue"


def add_field(message: DescriptorProto, number: int, name: str, kind: str) -> None:
    *labels, kind = kind.split()
    field = message.field.add(name=name, number=number, label=F.LABEL_OPTIONAL)
    if kind.startswith("."):
        field.type, field.type_name = F.TYPE_ENUM if kind == ".p.Color" else F.TYPE_MESSAGE, kind
    else:
        field.type = SCALARS[kind]
    if labels == ["repeated"]:
        field.label = F.LABEL_REPEATED
    elif labels:
        message.oneof_decl.add(name=f"_{name}")
        field.oneof_index, field.proto3_optional = len(message.oneof_decl) - 1, labels == ["optional"]


def file(syntax: str = "proto3", numbers: dict[str, int] | None = None, **changes: Any) -> FileDescriptorProto:
    """A file with the usual message, some of whose fields are changed or added; `...` removes one."""
    found = FileDescriptorProto(name="flight.proto", package="p", syntax=syntax)
    found.dependency.extend(each.DESCRIPTOR.name for each in (timestamp_pb2, wrappers_pb2))
    found.enum_type.add(name="Color").value.add(name="NONE", number=0)
    found.enum_type[0].value.add(name="GREEN", number=2)
    message = found.message_type.add(name="Flight")
    for number, (name, kind) in enumerate((FIELDS | changes).items(), start=1):
        if kind is not ...:
            add_field(message, (numbers or {}).get(name, number), name, kind)
    return found


def written(writer: FileDescriptorProto, record: dict[str, Any], name: str = "p.Flight") -> bytes:
    """By protobuf itself, as whoever wrote the schema would."""
    pool = descriptor_pool.DescriptorPool()
    for each in (timestamp_pb2, wrappers_pb2):
        pool.AddSerializedFile(each.DESCRIPTOR.serialized_pb)
    pool.AddSerializedFile(writer.SerializeToString())
    value: bytes = message_factory.GetMessageClass(pool.FindMessageTypeByName(name))(**record).SerializeToString()
    return value


def features(**changes: Any) -> FeaturesConfig:
    usual = {"topic": "t", "format": "protobuf", "key": "id", "time": "ts", "numeric": ["x", NULLABLE_Y]}
    return FeaturesConfig.model_validate(usual | {"categorical": ["color"], "max_message_bytes": 4096} | changes)


@pytest.fixture
def plain(tmp_path: Path) -> Any:
    """Makes a codec for messages of this file."""

    def make(writer: FileDescriptorProto | None = None, message: str = "p.Flight", **changes: Any) -> ProtobufCodec:
        path = tmp_path / "writer.desc"
        path.write_bytes(FileDescriptorSet(file=[file() if writer is None else writer]).SerializeToString())
        return ProtobufCodec(features(schema_file=path, message=message, **changes), BINARY)

    return make


class TestValues:
    def test_a_message_becomes_a_row_of_raw_numbers_and_bucket_ids(self, plain: Any) -> None:
        events = event(plain(), written(file(), GOOD))
        assert events.features_NC.tolist() == [[1.5, 0.25, bucket(b"2", 1024)]]
        assert events.key_N2.tobytes() == key128(b"a")
        assert events.event_time_N.tolist() == [NOW]
        assert events.offset_N.tolist() == [100]
        assert events.kind_N.tolist() == [Kind.EVENT]

    def test_a_label_topic_has_a_key_a_time_and_a_label(self, tmp_path: Path) -> None:
        writer = file(late="bool")
        (tmp_path / "late.desc").write_bytes(FileDescriptorSet(file=[writer]).SerializeToString())
        usual = {"topic": "l", "format": "protobuf", "schema_file": tmp_path / "late.desc", "message": "p.Flight"}
        codec = ProtobufCodec(
            LabelsConfig.model_validate(usual | {"key": "id", "time": "ts", "column": "late"}), BINARY
        )
        for late in (True, False):
            labels = event(codec, written(writer, GOOD | {"late": late})).label_N
            assert labels is not None
            assert labels.tolist() == [late]

    @pytest.mark.parametrize(("kind", "number"), INTEGERS)
    def test_each_type_of_integer_is_exact(self, plain: Any, kind: str, number: int) -> None:
        writer = file(id=kind, x=kind)
        events = event(plain(writer), written(writer, GOOD | {"id": number, "x": number}))
        assert events.key_N2.tobytes() == key128(b"%d" % number)
        assert events.features_NC[0, 0] == np.float32(number)

    def test_the_largest_unsigned_integers_take_the_slow_way(self, plain: Any) -> None:
        for kind in ("uint64", "fixed64"):
            writer = file(id=kind)
            value = written(writer, GOOD | {"id": 2**64 - 1})
            assert taken_fast(plain(writer), value) == [False]
            assert decoded(plain(writer), value).events.key_N2.tobytes() == key128(b"18446744073709551615")

    @pytest.mark.parametrize("kind", ["float", "double"])
    def test_each_type_of_float_is_that_number(self, plain: Any, kind: str) -> None:
        writer = file(x=kind)
        for number in (0.1, -1e-40, 9.9e18):
            assert event(plain(writer), written(writer, GOOD | {"x": number})).features_NC[0, 0] == np.float32(number)

    @pytest.mark.parametrize(("kind", "item"), [("string", "1.5"), ("bytes", b"1.5"), ("bool", True)])
    def test_what_is_no_number_is_no_numeric_column(self, plain: Any, kind: str, item: Any) -> None:
        writer = file(x=kind)
        assert reason(plain(writer), written(writer, GOOD | {"x": item})).endswith("not a number")

    def test_a_timestamp_is_milliseconds(self, plain: Any) -> None:
        writer = file(ts=TIMESTAMP)
        for nanos in (0, 999_999):
            stamp = {"seconds": NOW // 1000, "nanos": NOW % 1000 * 10**6 + nanos}
            assert event(plain(writer), written(writer, GOOD | {"ts": stamp})).event_time_N.tolist() == [NOW]

    def test_a_timestamp_before_1970_is_rounded_down(self, plain: Any) -> None:
        writer = file(x=TIMESTAMP)
        stamp = {"seconds": -1, "nanos": 1}
        assert event(plain(writer), written(writer, GOOD | {"x": stamp})).features_NC[0, 0] == -1000

    @pytest.mark.parametrize("number", [0, 2.5])
    def test_a_wrapped_number_is_that_number(self, plain: Any, number: float) -> None:
        writer = file(y=DOUBLE_VALUE)
        assert event(plain(writer), written(writer, GOOD | {"y": {"value": number}})).features_NC[0, 1] == number

    def test_a_null_value_is_a_tombstone(self, plain: Any) -> None:
        assert decoded(plain(), None).events.kind_N.tolist() == [Kind.TOMBSTONE]

    def test_the_last_of_several_counts(self, plain: Any) -> None:
        value = written(file(), GOOD) + b"\x19" + pack("<d", 4.5)
        assert event(plain(), value).features_NC[0, 0] == 4.5


class TestWhatIsNotThere:
    EMPTY = {"id": "a", "ts": NOW}

    @pytest.mark.parametrize(("kind", "syntax"), [("float", "proto3"), ("sint32", "proto3"), ("fixed64", "proto3")])
    def test_a_number_of_proto3_is_0(self, plain: Any, kind: str, syntax: str) -> None:
        assert event(plain(file(syntax, y=kind)), written(file(), self.EMPTY)).features_NC[0, 1] == 0

    def test_an_enum_of_proto3_is_0_and_a_text_is_empty(self, plain: Any) -> None:
        codec = plain(file(), categorical=["color"])
        assert event(codec, written(file(), self.EMPTY)).features_NC[0, 2] == bucket(b"0", 1024)
        assert reason(codec, written(file(), {"ts": NOW})) == "key 'id': \"\", not a non-empty string or an integer"

    @pytest.mark.parametrize(
        ("syntax", "kind"),
        [("proto3", "optional float"), ("proto3", "oneof float"), ("proto3", DOUBLE_VALUE), ("proto2", "float")],
    )
    def test_where_the_schema_can_tell_it_is_missing(self, plain: Any, syntax: str, kind: str) -> None:
        codec = plain(file(syntax, y=kind), categorical=[])
        assert np.isnan(event(codec, written(file(), self.EMPTY | {"x": 1})).features_NC[0, 1])

    def test_editions_say_it_for_the_file_or_for_the_field(self, plain: Any) -> None:
        for of_file, of_field, missing in [(0, 0, True), (2, 0, False), (0, 2, False), (2, 1, True)]:
            writer = file("editions", y="float")
            writer.edition = Edition.EDITION_2023
            for presence, options in ((of_file, writer.options), (of_field, writer.message_type[0].field[3].options)):
                if presence:
                    options.features.field_presence = presence
            assert FeatureSet.IMPLICIT == 2
            codec = plain(writer, numeric=[NULLABLE_Y], categorical=[])
            assert np.isnan(event(codec, written(file(), self.EMPTY)).features_NC[0, 0]) == missing

    def test_a_timestamp_is_missing(self, plain: Any) -> None:
        codec = plain(file(ts=TIMESTAMP))
        assert reason(codec, written(file(ts=...), {"id": "a"})).startswith("time 'ts': missing")


class TestEvolution:
    def test_added_fields_are_skipped_whatever_they_hold(self, plain: Any) -> None:
        added = {"a": "bytes", "b": "fixed64", "c": "float", "d": "repeated int32", "e": TIMESTAMP, "f": "uint64"}
        items = {"a": b"\xff", "b": 1, "c": 1, "d": [1, 2], "e": {"seconds": 1}, "f": 2**64 - 1}
        for numbers in ({}, {name: 2000 + number for number, name in enumerate(added)}):
            writer = file(numbers=numbers, **added)
            assert event(plain(), written(writer, GOOD | items)).features_NC[0, :2].tolist() == [1.5, 0.25]

    def test_a_group_is_skipped_slowly(self, plain: Any) -> None:
        value = written(file(), GOOD) + b"\x63\x08\x01\x64"  # group 12 { 1: 1 }
        assert taken_fast(plain(), value) == [False]
        assert len(decoded(plain(), value).events) == 1

    def test_a_removed_field_is_missing(self, plain: Any) -> None:
        assert np.isnan(event(plain(file(y=...)), written(file(), GOOD)).features_NC[0, 1])

    @pytest.mark.parametrize("numbers", [{"id": 9, "x": 1}, {"x": 2**29 - 1, "y": 15, "ts": 16}])
    def test_fields_are_found_by_their_numbers_in_any_order(self, plain: Any, numbers: dict[str, int]) -> None:
        writer = file(numbers=numbers)
        parts = [written(writer, {name: item}) for name, item in GOOD.items()]
        for order in (parts, parts[::-1]):
            assert event(plain(writer), b"".join(order)).features_NC[0, :2].tolist() == [1.5, 0.25]

    def test_a_field_of_another_wire_type_counts_as_unknown(self, plain: Any) -> None:
        value = written(file(y="sint32"), GOOD | {"y": 3})
        assert taken_fast(plain(), value) == [False]
        assert np.isnan(decoded(plain(), value).events.features_NC[0, 1])


class TestWhatIsRefused:
    def test_a_message_that_is_cut_short_within_a_field(self, plain: Any) -> None:
        value = written(file(), {"x": 1.5})
        for length in range(1, len(value)):
            assert reason(plain(), value[:length]) == "not Protobuf, or text in it that is not UTF-8"

    @pytest.mark.parametrize(
        "value", [b"\x00\x00", b"\x0c", b"\x0e", b"\x0f", b"\xff" * 11, b"\x0a\xff\xff\xff\xff\x0f"]
    )
    def test_what_no_field_begins_with(self, plain: Any, value: bytes) -> None:
        assert reason(plain(), value) == "not Protobuf, or text in it that is not UTF-8"

    @pytest.mark.parametrize("number", [3, 9])
    @pytest.mark.parametrize("tail", ["tag", "size"])
    def test_a_tag_or_a_size_of_more_than_five_bytes(self, plain: Any, number: int, tail: str) -> None:
        codec = plain(file(x="bytes"), numeric=[NULLABLE_Y], key=None, time=None, categorical=[])
        tag, size = varint(number << 3 | 2), b"\x01"
        long_tag, long_size = bytes([tag[0] | 0x80, *b"\x80" * 4, 0]), b"\x81\x80\x80\x80\x80\x00"
        assert len(decoded(codec, tag + size + b"a").events) == 1
        value = long_tag + size if tail == "tag" else tag + long_size
        assert reason(codec, value + b"a") == "not Protobuf, or text in it that is not UTF-8"

    def test_text_that_is_not_utf8(self, plain: Any) -> None:
        value = written(file(id="bytes"), GOOD | {"id": b"\xff"})
        assert reason(plain(), value) == "not Protobuf, or text in it that is not UTF-8"

    def test_one_that_is_too_large(self, plain: Any) -> None:
        value = written(file(), GOOD | {"id": "a" * 5000})
        assert reason(plain(), value) == f"value is {len(value)} bytes, more than max_message_bytes = 4096"

    def test_one_bad_message_among_thousands_costs_one_slow_one(self, plain: Any) -> None:
        check_one_is_slow(plain(), written(file(), GOOD), written(file(), GOOD | {"x": float("inf")}))


class TestSchemas:
    @pytest.mark.parametrize(
        ("kind", "why"),
        [
            ("repeated double", "field 'x' of the Protobuf schema is repeated, which is no value"),
            (".p.Flight", "field 'x' of the Protobuf schema is a p.Flight, which is no value"),
        ],
    )
    def test_a_column_must_be_a_value(self, plain: Any, kind: str, why: str) -> None:
        with pytest.raises(ConfigError, match=f"^schema_file .*writer.desc of t: {why}$"):
            plain(file(x=kind))

    def test_one_that_contradicts_itself_is_an_error_of_the_job(self, plain: Any) -> None:
        with pytest.raises(ConfigError, match="the Protobuf schema contradicts itself: "):
            plain(file(numbers={"x": 1}))

    def test_a_message_may_be_within_another(self, plain: Any) -> None:
        writer = file()
        outer = FileDescriptorProto(name="outer.proto", package="p", syntax="proto3")
        outer.message_type.add(name="Outer").nested_type.add().CopyFrom(writer.message_type[0])
        outer.message_type[0].nested_type[0].field[4].type = F.TYPE_INT32
        outer.message_type[0].nested_type[0].field[4].ClearField("type_name")
        assert event(plain(outer, "p.Outer.Flight"), written(writer, GOOD)).features_NC[0, 0] == 1.5

    @pytest.mark.parametrize("name", ["Flight", "p.Color", "q.Flight"])
    def test_a_message_that_is_not_in_the_file_is_an_error_of_the_job(self, plain: Any, name: str) -> None:
        with pytest.raises(ConfigError, match=f"no message '{name}' in it"):
            plain(message=name)

    @pytest.mark.parametrize(
        ("data", "why"), [(b"\xff", "no serialised Protobuf schema"), (None, "No such file or directory")]
    )
    def test_a_file_that_is_none_is_an_error_of_the_job(self, tmp_path: Path, data: bytes | None, why: str) -> None:
        path = tmp_path / "writer.desc"
        if data is not None:
            path.write_bytes(data)
        with pytest.raises(ConfigError, match=why):
            ProtobufCodec(features(schema_file=path, message="p.Flight"), BINARY)


def framed(schema_id: int, indexes: bytes, body: bytes) -> bytes:
    return b"\0" + schema_id.to_bytes(4, "big") + indexes + body


def serialised(writer: FileDescriptorProto) -> str:
    return base64.b64encode(writer.SerializeToString()).decode()


class TestRegistry:
    @staticmethod
    def codec(registry: SchemaRegistry) -> ProtobufCodec:
        return ProtobufCodec(features(schema_registry={"url": registry.url}), BINARY)

    def test_each_message_is_read_by_the_schema_that_it_names(self, registry: SchemaRegistry) -> None:
        moved = file(numbers={"x": 40}, x="sint32")
        registry.add(1, serialised(file()), "PROTOBUF")
        registry.add(70_000, serialised(moved), "PROTOBUF")
        values = [framed(1, b"\0", written(file(), GOOD)), framed(70_000, b"\0", written(moved, GOOD | {"x": 2}))]
        codec = self.codec(registry)
        assert decoded(codec, *values * 2).events.features_NC[:, 0].tolist() == [1.5, 2, 1.5, 2]
        assert taken_fast(codec, *values * 2) == [True] * 4
        assert registry.asked == ["/schemas/ids/1?format=serialized", "/schemas/ids/70000?format=serialized"]

    def test_and_by_the_message_type_that_it_names(self, registry: SchemaRegistry) -> None:
        writer = file()
        second = writer.message_type.add(name="Second")
        second.nested_type.add(name="Nested")
        add_field(second.nested_type[0], 1, "id", "string")
        third = second.nested_type.add(name="Third")
        for number, (name, kind) in enumerate({**FIELDS, "x": "int32"}.items(), start=1):
            add_field(third, number, name, kind)
        registry.add(1, serialised(writer), "PROTOBUF")
        good = written(writer, GOOD)
        nested = written(writer, GOOD | {"x": 2}, "p.Second.Third")
        codec = self.codec(registry)
        values = [framed(1, b"\0", good), framed(1, b"\x02\0", good), framed(1, b"\x04\x02\x02", nested)]
        assert decoded(codec, *values).events.features_NC[:, 0].tolist() == [1.5, 1.5, 2]
        assert taken_fast(codec, *values) == [True] * 3
        for indexes in (b"\x02\x04", b"\x02\x01", b"\x06\x02\x02\x02"):
            assert reason(codec, framed(1, indexes, good)) == "schema id 1 has no such message"

    @pytest.mark.parametrize(
        "value", [b"", b"\0\0\0\0\x01", b"\0\0\0\0\x01\x01", b"\0\0\0\0\x01\x7e\x02", b"\0\0\0\0\x01\x04\0"]
    )
    def test_what_names_no_message_type_is_refused_without_asking(self, registry: SchemaRegistry, value: bytes) -> None:
        assert reason(self.codec(registry), value).startswith("not in Confluent's wire format: ")
        assert registry.asked == []

    def test_a_schema_with_what_is_no_value_is_refused(self, registry: SchemaRegistry) -> None:
        registry.add(1, serialised(file(x="repeated double")), "PROTOBUF")
        assert "is repeated" in reason(self.codec(registry), framed(1, b"\0", b""))

    @pytest.mark.parametrize(
        ("kind", "text", "why"), [("AVRO", '"int"', "is of type AVRO"), ("PROTOBUF", "/w==", "no serialised Protobuf")]
    )
    def test_a_schema_of_another_kind_is_refused(
        self, registry: SchemaRegistry, kind: str, text: str, why: str
    ) -> None:
        registry.add(1, text, kind)
        assert why in reason(self.codec(registry), framed(1, b"\0", b""))

    def test_a_registry_that_gives_only_text_is_no_fault_of_the_messages(self, registry: SchemaRegistry) -> None:
        registry.add(1, 'syntax = "proto3"; message Flight {}', "PROTOBUF")
        with pytest.raises(DependencyError, match=r"gives schema id 1 as \.proto text"):
            decoded(self.codec(registry), framed(1, b"\0", b""))


def varint(value: int) -> bytes:
    value, out = value % 2**64, bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def random_field(random: Random, number: int, kind: str) -> bytes:
    """Some occurrence of a field: mostly a value of its type that columns take."""
    integer = random.choice([0, 1, 1, 2, 7, -1, 300, NOW, 2**31, 2**63 - 1, -(2**63), 2**64 - 1])
    real = random.choice([0, 1, 1, -0.0, 1.5, 7, 1e20, float("nan")])
    text = random.choice(["", "a", "b", "größer als acht Bytes", "x" * 200]).encode()
    if kind in (TIMESTAMP, DOUBLE_VALUE):
        inner = [random_field(random, random.choice([1, 1, 1, 2]), "int64" if kind == TIMESTAMP else "double")]
        text, kind = b"".join(inner * random.choice([0, 1, 1, 1, 2])), "bytes"
    if not random.randrange(40):
        kind = random.choice(list(SCALARS))
    if kind in ("double", "fixed64", "sfixed64"):
        return varint(number << 3 | 1) + (pack("<d", real) if kind == "double" else pack("<Q", integer % 2**64))
    if kind in ("float", "fixed32", "sfixed32"):
        return varint(number << 3 | 5) + (pack("<f", real) if kind == "float" else pack("<I", integer % 2**32))
    if kind in ("string", "bytes"):
        return varint(number << 3 | 2) + varint(len(text)) + text
    return varint(number << 3) + varint(integer)


def mutated(random: Random, value: bytes) -> bytes:
    data = bytearray(value)
    for _ in range(random.choice([1, 1, 2, 5])):
        at = random.randrange(len(data) + 1)
        data[at : at + random.randrange(2)] = random.choice([b"", random.randbytes(1), b"\0", b"\x01", b"\xff"])
    return bytes(data[: random.randrange(len(data) + 1)] if not random.randrange(8) else data)


def random_use(random: Random, names: dict[str, str]) -> dict[str, Any]:
    texts = [name for name, kind in names.items() if kind.split()[-1] in ("string", "int32", "sint64", "fixed32")]
    numbers = [name for name, kind in names.items() if kind.split()[-1] not in ("string", "bytes", "bool")]
    return random_columns(random, list(names), numbers, texts)


def random_case(random: Random, path: Path, rule: Any) -> tuple[ProtobufCodec, list[bytes]]:
    """A random message type, a use of it, and messages."""
    kinds = [*SCALARS, TIMESTAMP, DOUBLE_VALUE]
    names = {f"f{number}": random.choice(["", "", "optional "]) + random.choice(kinds) for number in range(8)}
    names = {name: kind.split()[-1] if "." in kind else kind for name, kind in names.items()} | {"t": "int64"}
    ids = dict(zip(names, random.sample([*range(1, 40), 2047, 2048, 2**29 - 1], len(names)), strict=True))
    writer = FileDescriptorProto(name="r.proto", syntax=random.choice(["proto3", "proto3", "proto2"]))
    writer.message_type.add(name="R")
    for name, kind in names.items():
        add_field(writer.message_type[0], ids[name], name, kind)
    path.write_bytes(FileDescriptorSet(file=[writer]).SerializeToString())
    usual = {"topic": "t", "format": "protobuf", "schema_file": path, "message": "R"}
    config = FeaturesConfig.model_validate(usual | random_use(random, names))
    values = []
    for _ in range(30):
        order = random.sample(list(names), len(names)) if random.randrange(2) else sorted(names, key=ids.__getitem__)
        order = [name for name in order if random.randrange(8)] + random.choices(order, k=random.choice([0, 0, 0, 1]))
        values.append(b"".join(random_field(random, ids[name], names[name].split()[-1]) for name in order))
    return ProtobufCodec(config, LabelRule(kind=rule, classes=3)), values


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from(["binary", "class", "number"]))
def test_the_fast_way_takes_only_what_the_slow_way_takes_and_makes_the_same_of_it(
    tmp_path_factory: Any, seed: int, rule: Any
) -> None:
    random = Random(seed)
    codec, values = random_case(random, tmp_path_factory.getbasetemp() / "random.desc", rule)
    decoded(codec, *values, *[mutated(random, value) for value in values])
