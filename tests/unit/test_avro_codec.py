"""Avro codec: how columns are found in what a writer's schema describes, and what is refused."""

from __future__ import annotations

import io
import json
from pathlib import Path
from random import Random
from struct import pack
from typing import Any

import fastavro
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from consumers.codecs.avro import AvroCodec
from consumers.config import FeaturesConfig, LabelRule
from consumers.errors import ConfigError, DependencyError
from consumers.hashing import bucket, key128
from consumers.record import Kind
from tests.codec_ways import NOW, check_one_is_slow, decoded, event, random_columns, reason, taken_fast
from tests.schema_registry import SchemaRegistry

BINARY = LabelRule(kind="binary")
COLOR = {"type": "enum", "name": "Color", "symbols": ["red", "green"]}
FIELDS = {
    "id": "string",
    "ts": {"type": "long", "logicalType": "timestamp-millis"},
    "x": "double",
    "y": ["null", "float"],
    "color": COLOR,
}
GOOD = {"id": "a", "ts": NOW, "x": 1.5, "y": 0.25, "color": "green"}
NULLABLE_Y = {"name": "y", "nullable": True}


def schema(**changes: Any) -> dict[str, Any]:
    """The usual record with some fields changed or added; `...` removes one."""
    fields = {name: kind for name, kind in (FIELDS | changes).items() if kind is not ...}
    return {"type": "record", "name": "Flight", "fields": [{"name": n, "type": kind} for n, kind in fields.items()]}


def features(**changes: Any) -> FeaturesConfig:
    usual = {"topic": "t", "format": "avro", "key": "id", "time": "ts", "numeric": ["x", NULLABLE_Y]}
    return FeaturesConfig.model_validate(usual | {"categorical": ["color"], "max_message_bytes": 4096} | changes)


def written(writer: Any, record: dict[str, Any]) -> bytes:
    out = io.BytesIO()
    fastavro.schemaless_writer(out, fastavro.parse_schema(writer), record)
    return out.getvalue()


@pytest.fixture
def plain(tmp_path: Path) -> Any:
    """Makes a codec for messages by this schema."""

    def make(writer: Any = None, rule: LabelRule = BINARY, **changes: Any) -> AvroCodec:
        path = tmp_path / "writer.avsc"
        path.write_text(json.dumps(writer or schema()))
        return AvroCodec(features(schema_file=path, **changes), rule)

    return make


def framed(schema_id: int, body: bytes) -> bytes:
    return b"\0" + schema_id.to_bytes(4, "big") + body


class TestValues:
    def test_a_message_becomes_a_row_of_raw_numbers_and_bucket_ids(self, plain: Any) -> None:
        events = event(plain(), written(schema(), GOOD))
        assert events.features_NC.tolist() == [[1.5, 0.25, bucket(b"green", 1024)]]
        assert events.key_N2.tobytes() == key128(b"a")
        assert events.event_time_N.tolist() == [NOW]
        assert events.offset_N.tolist() == [100]
        assert events.kind_N.tolist() == [Kind.EVENT]

    def test_a_label_topic_has_a_key_a_time_and_a_label(self, tmp_path: Path) -> None:
        from consumers.config import LabelsConfig

        writer = schema(x=..., y=..., color=..., late="boolean")
        (tmp_path / "late.avsc").write_text(json.dumps(writer))
        usual = {"topic": "l", "format": "avro", "schema_file": tmp_path / "late.avsc", "key": "id", "time": "ts"}
        codec = AvroCodec(LabelsConfig.model_validate(usual | {"column": "late"}), BINARY)
        events = event(codec, written(writer, {"id": "a", "ts": NOW, "late": True}))
        assert events.label_N is not None
        assert events.label_N.tolist() == [1.0]

    @pytest.mark.parametrize("branches", [["null", "double"], ["double", "null"], ["string", "null", "double"]])
    def test_a_union_is_what_was_written(self, plain: Any, branches: list[str]) -> None:
        writer = schema(y=branches)
        assert event(plain(writer), written(writer, GOOD)).features_NC[0, 1] == 0.25
        assert np.isnan(event(plain(writer), written(writer, GOOD | {"y": None})).features_NC[0, 1])

    @pytest.mark.parametrize(
        ("logical", "number"),
        [
            ("timestamp-millis", NOW),
            ("local-timestamp-millis", NOW),
            ("timestamp-micros", NOW * 1000 + 999),
            ("local-timestamp-micros", NOW * 1000),
            ("timestamp-nanos", NOW * 10**6 + 999_999),
        ],
    )
    def test_timestamps_are_milliseconds(self, plain: Any, logical: str, number: int) -> None:
        value = written(schema(ts="long"), GOOD | {"ts": number})
        assert event(plain(schema(ts={"type": "long", "logicalType": logical})), value).event_time_N.tolist() == [NOW]

    def test_a_time_before_1970_is_rounded_down(self, plain: Any) -> None:
        writer = schema(x={"type": "long", "logicalType": "timestamp-micros"})
        assert event(plain(writer), written(schema(x="long"), GOOD | {"x": -1})).features_NC[0, 0] == -1

    @pytest.mark.parametrize("logical", ["decimal", "date", "time-millis", "made-up"])
    def test_other_logical_types_are_the_numbers_that_were_written(self, plain: Any, logical: str) -> None:
        writer = schema(x={"type": "int", "logicalType": logical})
        assert event(plain(writer), written(schema(x="int"), GOOD | {"x": 7})).features_NC[0, 0] == 7

    @pytest.mark.parametrize(
        ("kind", "item"),
        [
            ("bytes", b"1.5"),
            ({"type": "fixed", "name": "F", "size": 3}, b"1.5"),
            ({"type": "array", "items": "double"}, [1.5]),
            ({"type": "map", "values": "double"}, {"x": 1.5}),
            ({"type": "record", "name": "R", "fields": [{"name": "x", "type": "double"}]}, {"x": 1.5}),
            ("boolean", True),
            ("string", "1.5"),
        ],
    )
    def test_what_is_no_number_is_no_numeric_column(self, plain: Any, kind: Any, item: Any) -> None:
        writer = schema(x=kind)
        assert reason(plain(writer), written(writer, GOOD | {"x": item})).endswith("not a number")

    def test_the_message_key_serves_as_key(self, plain: Any) -> None:
        events = event(plain(key=None), written(schema(), GOOD), key=b"message key")
        assert events.key_N2.tobytes() == key128(b"message key")

    def test_a_null_value_is_a_tombstone(self, plain: Any) -> None:
        assert decoded(plain(), None).events.kind_N.tolist() == [Kind.TOMBSTONE]

    def test_an_integer_key_beside_an_enum(self, plain: Any) -> None:
        """Both need room in `Found.scratch`."""
        writer = schema(id="long")
        events = event(plain(writer), written(writer, GOOD | {"id": -(2**63)}))
        assert events.key_N2.tobytes() == key128(b"%d" % -(2**63))
        assert events.features_NC[0, 2] == bucket(b"green", 1024)


class TestEvolution:
    @pytest.mark.parametrize(
        "added",
        [
            "null",
            "boolean",
            "int",
            "float",
            "string",
            "bytes",
            {"type": "fixed", "name": "F", "size": 3},
            {"type": "enum", "name": "E", "symbols": ["A"]},
            {"type": "array", "items": "string"},
            {"type": "map", "values": {"type": "array", "items": ["null", "double"]}},
            ["null", {"type": "record", "name": "R", "fields": [{"name": "x", "type": "double"}]}],
        ],
    )
    def test_an_added_field_is_skipped(self, plain: Any, added: Any) -> None:
        writer = {**schema(), "fields": [{"name": "added", "type": added}, *schema()["fields"]]}
        for seed in range(20):
            value = encoded(added, Random(seed)) + written(schema(), GOOD)
            assert event(plain(writer), value).features_NC.tolist() == [[1.5, 0.25, bucket(b"green", 1024)]]

    def test_a_removed_field_is_null(self, plain: Any) -> None:
        writer = schema(y=...)
        assert np.isnan(event(plain(writer), written(writer, GOOD)).features_NC[0, 1])

    def test_a_removed_field_that_must_be_there_is_refused(self, plain: Any) -> None:
        writer = schema(x=...)
        assert reason(plain(writer), written(writer, GOOD)) == "column 'x': missing, but the column is not nullable"

    def test_the_order_of_fields_does_not_matter(self, plain: Any) -> None:
        writer = schema()
        writer["fields"].reverse()
        assert event(plain(writer), written(writer, GOOD)).features_NC[0, 0] == 1.5

    @pytest.mark.parametrize("kind", ["int", "long", "float", "double", ["null", "int"]])
    def test_a_number_of_another_type_is_a_number(self, plain: Any, kind: Any) -> None:
        writer = schema(x=kind)
        assert event(plain(writer), written(writer, GOOD | {"x": 3})).features_NC[0, 0] == 3

    def test_an_enum_that_became_a_string_is_the_same_category(self, plain: Any) -> None:
        writer = schema(color="string")
        assert event(plain(writer), written(writer, GOOD)).features_NC[0, 2] == bucket(b"green", 1024)

    def test_types_are_found_by_their_names_and_namespaces(self, plain: Any) -> None:
        inner = {"type": "record", "name": "In", "namespace": "b", "fields": [{"name": "c", "type": COLOR}]}
        writer = schema(color="b.Color")
        writer["fields"].insert(0, {"name": "first", "type": inner})
        assert event(plain(writer), written(writer, GOOD | {"first": {"c": "red"}})).features_NC[0, 2] == bucket(
            b"green", 1024
        )


class TestWhatIsRefused:
    def test_bytes_behind_the_end(self, plain: Any) -> None:
        assert reason(plain(), written(schema(), GOOD) + b"\0\0") == "2 bytes behind the end of the Avro record"

    def test_a_message_that_is_cut_short_anywhere(self, plain: Any) -> None:
        value, codec = written(schema(), GOOD), plain()
        for length in range(len(value)):
            assert reason(codec, value[:length]).startswith("not as the writer's Avro schema says: ")

    def test_text_that_is_not_utf8_even_if_nobody_asked_for_it(self, plain: Any) -> None:
        writer = schema(added="string")
        value = written(schema(added="bytes"), GOOD | {"added": b"\xff"})
        assert reason(plain(writer), value).startswith("not as the writer's Avro schema says: text that is")

    def test_a_branch_or_symbol_that_does_not_exist(self, plain: Any) -> None:
        for kind in (["null", "float"], COLOR):
            writer = schema(id=..., ts=..., x=..., y=..., color=..., only=kind)
            codec = plain(writer, key=None, time=None, numeric=["only"], categorical=[])
            assert reason(codec, b"\x04").endswith("there is no such symbol or branch")

    def test_one_that_is_too_large(self, plain: Any) -> None:
        value = written(schema(), GOOD | {"id": "a" * 5000})
        assert reason(plain(), value) == f"value is {len(value)} bytes, more than max_message_bytes = 4096"

    def test_one_bad_message_among_thousands_costs_one_slow_one(self, plain: Any) -> None:
        check_one_is_slow(plain(), written(schema(), GOOD), written(schema(), GOOD | {"x": float("inf")}))


class TestSchemas:
    @pytest.mark.parametrize(
        ("text", "why"),
        [
            ("{", "is no Avro schema: JSONDecodeError"),
            ("\xff", "is no Avro schema: UnicodeDecodeError"),
            ('{"type": "record"}', "is no Avro schema: SchemaParseException"),
            (
                '{"type": "record", "name": "R", "fields": [{"name": "x", "type": "no"}]}',
                "is no Avro schema: UnknownType",
            ),
            ("[" * 100_000, "is no Avro schema: RecursionError"),
            ('"string"', "is no record"),
            ('["null"]', "is no record"),
            (json.dumps(schema(next=["null", "Flight"])), "Flight contains itself"),
            (json.dumps(schema(a={"type": "array", "items": "null"})), "an array whose items take no bytes"),
        ],
    )
    def test_one_that_cannot_be_read_by_is_an_error_of_the_job(self, tmp_path: Path, text: str, why: str) -> None:
        path = tmp_path / "writer.avsc"
        path.write_text(text, encoding="latin-1")
        with pytest.raises(ConfigError, match=f"^schema_file {path} of t: .*{why}"):
            AvroCodec(features(schema_file=path), BINARY)

    def test_an_array_of_records_that_take_no_bytes_is_refused_too(self, plain: Any) -> None:
        fixed = {"type": "fixed", "name": "F", "size": 0}
        empty = {"type": "record", "name": "E", "fields": [{"name": "n", "type": "null"}, {"name": "f", "type": fixed}]}
        with pytest.raises(ConfigError, match="an array whose items take no bytes"):
            plain(schema(a={"type": "array", "items": empty}))

    def test_one_that_grows_beyond_all_bounds_is_refused(self, plain: Any) -> None:
        kind: Any = {"type": "record", "name": "R0", "fields": [{"name": "x", "type": "int"}]}
        for level in range(1, 20):
            fields = [{"name": "a", "type": kind}, {"name": "b", "type": f"R{level - 1}"}]
            kind = {"type": "record", "name": f"R{level}", "fields": fields}
        with pytest.raises(ConfigError, match="more than 65,536 values in one message"):
            plain(kind)

    def test_one_with_too_many_symbols_is_refused(self, plain: Any) -> None:
        symbols = [f"{'symbol' * 10}{number}" for number in range(1100)]
        with pytest.raises(ConfigError, match="enums with more than 65,536 bytes of symbols"):
            plain(schema(many={"type": "enum", "name": "E", "symbols": symbols}))

    def test_a_file_that_is_not_there_is_an_error_of_the_job(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match="No such file or directory"):
            AvroCodec(features(schema_file=tmp_path / "none.avsc"), BINARY)


CHANGE = {
    "type": "record",
    "name": "Envelope",
    "fields": [
        {"name": "before", "type": ["null", schema()]},
        {"name": "after", "type": ["null", "Flight"]},
        {"name": "source", "type": {"type": "map", "values": "string"}},
        {"name": "op", "type": "string"},
    ],
}


class TestEnvelopes:
    @pytest.mark.parametrize("op", ["c", "u", "r"])
    def test_what_a_row_became_is_an_event(self, plain: Any, op: str) -> None:
        change = {"before": None, "after": GOOD, "source": {"db": "flights"}, "op": op}
        events = event(plain(CHANGE, envelope="debezium"), written(CHANGE, change))
        assert events.features_NC.tolist() == [[1.5, 0.25, bucket(b"green", 1024)]]

    def test_a_deletion_is_a_tombstone_of_what_the_row_was(self, plain: Any) -> None:
        value = written(CHANGE, {"before": GOOD, "after": None, "source": {}, "op": "d"})
        events = decoded(plain(CHANGE, envelope="debezium"), value).events
        assert events.kind_N.tolist() == [Kind.TOMBSTONE]
        assert events.key_N2.tobytes() == key128(b"a")

    @pytest.mark.parametrize(("op", "after"), [("c", None), ("t", GOOD), ("cc", GOOD), ("", GOOD)])
    def test_what_is_no_change_of_a_row_is_refused(self, plain: Any, op: str, after: Any) -> None:
        codec = plain(CHANGE, envelope="debezium", key=None, time=None, numeric=[NULLABLE_Y], categorical=[])
        value = written(CHANGE, {"before": None, "after": after, "source": {}, "op": op})
        assert reason(codec, value).startswith("envelope: ")

    def test_nothing_is_left_of_the_message_before(self, plain: Any) -> None:
        """Data of one record type or of another, of which only the first has a field `y`."""
        without_y = {**schema(y=..., color="string"), "name": "Other"}
        fields = [{"name": "specversion", "type": "string"}, {"name": "data", "type": [schema(), without_y]}]
        writer = {"type": "record", "name": "CloudEvent", "fields": fields}
        datas = [("Flight", GOOD), ("Other", {name: GOOD[name] for name in ("id", "ts", "x", "color")})]
        values = [written(writer, {"specversion": "1.0", "data": data}) for data in datas]
        codec = plain(writer, envelope="cloudevents")
        assert taken_fast(codec, *values) == [True, True]
        assert np.isnan(decoded(codec, *values).events.features_NC[:, 1]).tolist() == [False, True]

    @pytest.mark.parametrize("kind", [schema(), ["null", schema()]])
    def test_the_data_of_a_cloudevent_is_an_event(self, plain: Any, kind: Any) -> None:
        fields = [{"name": "specversion", "type": "string"}, {"name": "data", "type": kind}]
        writer = {"type": "record", "name": "CloudEvent", "fields": fields}
        value = written(writer, {"specversion": "1.0", "data": GOOD})
        assert event(plain(writer, envelope="cloudevents"), value).features_NC[0, 0] == 1.5

    def test_data_in_a_map_is_an_event_too(self, plain: Any) -> None:
        data = {"type": "map", "values": ["double", "string", "long"]}
        fields = [{"name": "specversion", "type": "string"}, {"name": "data", "type": data}]
        writer = {"type": "record", "name": "CloudEvent", "fields": fields}
        codec = plain(writer, envelope="cloudevents", key=None, time=None, numeric=["x"], categorical=[])
        assert decoded(codec, written(writer, {"specversion": "1.0", "data": {"x": 2.5}})).events.features_NC == [[2.5]]


class TestRegistry:
    @staticmethod
    def codec(registry: SchemaRegistry, **changes: Any) -> AvroCodec:
        return AvroCodec(features(schema_registry={"url": registry.url}, **changes), BINARY)

    def test_each_message_is_read_by_the_schema_that_it_names(self, registry: SchemaRegistry) -> None:
        narrow = schema(y=..., x="int")
        registry.add(1, json.dumps(schema()))
        registry.add(70_000, json.dumps(narrow))
        values = [framed(1, written(schema(), GOOD)), framed(70_000, written(narrow, GOOD | {"x": 2}))]
        codec = self.codec(registry)
        assert decoded(codec, *values * 2).events.features_NC[:, 0].tolist() == [1.5, 2, 1.5, 2]
        assert taken_fast(codec, *values * 2) == [True] * 4
        assert registry.asked == ["/schemas/ids/1", "/schemas/ids/70000"]

    def test_a_schema_may_refer_to_others(self, registry: SchemaRegistry) -> None:
        colors = {"type": "record", "name": "Colors", "fields": [{"name": "color", "type": "Color"}]}
        registry.add_version("color", 3, json.dumps(COLOR))
        registry.add_version("colors", 1, json.dumps(colors), (("color", 3),))
        registry.add(1, json.dumps(schema(color="Color", other="Colors")), references=(("colors", 1), ("color", 3)))
        writer = schema(other={**colors, "fields": [{"name": "color", "type": "Color"}]})
        value = framed(1, written(writer, GOOD | {"other": {"color": "red"}}))
        assert event(self.codec(registry), value).features_NC[0, 2] == bucket(b"green", 1024)

    def test_an_id_that_the_registry_does_not_know_is_refused_and_asked_for_once(
        self, registry: SchemaRegistry
    ) -> None:
        codec = self.codec(registry)
        for _ in range(2):
            assert reason(codec, framed(7, b"")) == "the Schema Registry knows no schema id 7"
        assert registry.asked == ["/schemas/ids/7"]

    @pytest.mark.parametrize("value", [b"", b"\0\0\0\0", b'{"id": 1}'])
    def test_what_names_no_schema_is_refused_without_asking(self, registry: SchemaRegistry, value: bytes) -> None:
        assert reason(self.codec(registry), value).startswith("not in Confluent's wire format: ")
        assert registry.asked == []

    def test_any_number_of_bad_headers_is_survived(self, registry: SchemaRegistry, monkeypatch: Any) -> None:
        monkeypatch.setattr("consumers.codecs.schemas.READERS_MAX", 3)
        registry.add(1, json.dumps(schema()))
        good = framed(1, written(schema(), GOOD))
        codec = self.codec(registry)
        result = decoded(codec, *[framed(10 + number, b"") for number in range(8)], b"x", good)
        assert (len(result.events), result.rejects.num_rows) == (1, 9)
        assert len(codec._readers) <= 3

    @pytest.mark.parametrize(("kind", "text"), [("JSON", "{}"), ("AVRO", '"string"')])
    def test_a_schema_of_another_kind_is_refused(self, registry: SchemaRegistry, kind: str, text: str) -> None:
        registry.add(1, text, kind)
        expected = {"JSON": "schema id 1 is of type JSON, not AVRO", "AVRO": "the writer's schema is no record"}
        assert reason(self.codec(registry), framed(1, b"")) == expected[kind]

    def test_while_it_cannot_be_reached_no_message_is_judged(self, registry: SchemaRegistry) -> None:
        registry.add(1, json.dumps(schema()))
        codec, value = self.codec(registry), framed(1, written(schema(), GOOD))
        registry.stop()
        with pytest.raises(
            DependencyError, match=r"Schema Registry http://.* of t: asked for schema id 1, it cannot be"
        ):
            decoded(codec, b"bad", value)
        registry.start()
        assert len(decoded(codec, value).events) == 1
        registry.stop()
        assert len(decoded(codec, value).events) == 1  # what it said is known

    @pytest.mark.parametrize(
        "answer",
        [
            (404, {"error_code": 404, "message": "HTTP 404 Not Found"}),  # of a proxy, or of a wrong path
            (401, {"error_code": 401, "message": "Unauthorized"}),
            (500, {"error_code": 50001, "message": "Error in the backend"}),
            (200, []),
        ],
    )
    def test_nor_while_it_gives_no_answer(self, registry: SchemaRegistry, answer: tuple[int, Any]) -> None:
        registry.refuses = answer
        with pytest.raises(DependencyError, match="asked for schema id 1, it "):
            decoded(self.codec(registry), framed(1, b""))

    def test_a_setting_that_the_client_does_not_take_is_an_error_of_the_job(self, registry: SchemaRegistry) -> None:
        with pytest.raises(ConfigError, match=r"Unrecognized properties: basic\.auth"):
            AvroCodec(features(schema_registry={"url": registry.url, "basic.auth": "me:secret"}), BINARY)


NULLABLE = ["null", "double"]
PRIMITIVES = ["null", "boolean", "int", "long", "float", "double", "string", "bytes"]


def random_type(random: Random, level: int = 0) -> Any:
    """Any type. Types with names get one that nothing else has."""
    name = f"N{random.getrandbits(60)}"
    choice = random.randrange(16 if level < 3 else 11)
    if choice < 8:
        return PRIMITIVES[choice]
    if choice == 8:
        return {
            "type": "long",
            "logicalType": random.choice(["timestamp-millis", "timestamp-micros", "timestamp-nanos"]),
        }
    if choice == 9:
        return {"type": "enum", "name": name, "symbols": [f"S{number}" for number in range(random.randint(1, 3))]}
    if choice == 10:
        return {"type": "fixed", "name": name, "size": random.randint(0, 3)}
    if choice == 11:
        return {"type": "map", "values": random_type(random, level + 1)}
    if choice == 12:
        items = random.choice([random_type(random, level + 1), "int"])
        solid = items not in ("null",) and not (isinstance(items, dict) and items["type"] in ("fixed", "record"))
        return {"type": "array", "items": items if solid else "string"}
    if choice == 13:
        fields = [
            {"name": f"f{number}", "type": random_type(random, level + 1)} for number in range(random.randint(0, 3))
        ]
        return {"type": "record", "name": name, "fields": fields}
    branches = [random.choice(PRIMITIVES[1:]), random_type(random, 3)]
    if choice == 14 or isinstance(branches[1], str) or branches[1]["type"] in PRIMITIVES:
        branches = random.sample(["null", branches[0]], 2)
    return branches


def number(value: int) -> bytes:
    raw, out = (value << 1) ^ (value >> 63), bytearray()
    while raw > 0x7F:
        out.append(raw & 0x7F | 0x80)
        raw >>= 7
    return bytes([*out, raw])


def encoded(kind: Any, random: Random) -> bytes:
    """A random value of a type; mostly values that columns take."""
    name = kind["type"] if isinstance(kind, dict) else "union" if isinstance(kind, list) else kind
    if name == "null":
        return b""
    if name == "boolean":
        return bytes([random.randrange(2)])
    if name in ("int", "long"):
        return number(random.choice([0, 0, 1, 1, 1, 2, -1, 300, NOW, 2**63 - 1, -(2**63)]))
    if name == "float":
        return pack("<f", random.choice([0, 1, 1, -0.0, 1.5, 7, 1e20, float("nan"), float("inf")]))
    if name == "double":
        return pack("<d", random.choice([0, 1, 1, -0.0, 1.5, 7, 1e-300, 1e20, 1e300, float("nan")]))
    if name in ("string", "bytes"):
        text = random.choice(["", "a", "b", "größer als acht Bytes", "x" * 200]).encode()
        return number(len(text)) + text
    if name == "fixed":
        return random.randbytes(kind["size"])
    if name == "enum":
        return number(random.randrange(len(kind["symbols"])))
    if name == "union":
        branch = random.randrange(len(kind))
        return number(branch) + encoded(kind[branch], random)
    if name == "record":
        return b"".join(encoded(field["type"], random) for field in kind["fields"])
    blocks = b""
    for _ in range(random.randrange(3)):
        count = random.randint(1, 3)
        key = b"\x02k" if name == "map" else b""
        items = b"".join(key + encoded(kind["items" if name == "array" else "values"], random) for _ in range(count))
        blocks += (number(count) if random.randrange(2) else number(-count) + number(len(items))) + items
    return blocks + b"\0"


def random_use(random: Random, fields: list[dict[str, Any]]) -> dict[str, Any]:
    numbers = [field["name"] for field in fields if field["type"] in ("int", "long", "float", "double", NULLABLE)]
    texts = [field["name"] for field in fields if field["type"] in ("int", "long", "string")]
    texts += [field["name"] for field in fields if "enum" in field["type"]]
    return random_columns(random, [field["name"] for field in fields], numbers, texts)


def mutated(random: Random, value: bytes) -> bytes:
    data = bytearray(value)
    for _ in range(random.choice([0, 0, 1, 1, 2, 5])):
        at = random.randrange(len(data) + 1)
        change = random.randrange(3)
        if change == 0:
            data[at:at] = random.randbytes(1)
        elif change == 1:
            data[at : at + 1] = random.choice([b"", random.randbytes(1), b"\0", b"\x01", b"\xff"])
        else:
            del data[at:]
    return bytes(data)


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from(["binary", "class", "number"]))
def test_the_fast_way_takes_only_what_the_slow_way_takes_and_makes_the_same_of_it(
    tmp_path_factory: Any, seed: int, rule: Any
) -> None:
    random = Random(seed)
    kinds = [random_type(random) for _ in range(5)] + random.choices(PRIMITIVES[2:7], k=3) + [NULLABLE, "long"]
    random.shuffle(kinds)
    fields = [{"name": f"f{number}", "type": kind} for number, kind in enumerate(kinds)]
    writer = {"type": "record", "name": "R", "fields": [*fields, {"name": "t", "type": "long"}]}
    path = tmp_path_factory.getbasetemp() / "random.avsc"
    path.write_text(json.dumps(writer))
    columns = random_use(random, fields)
    usual = {"topic": "t", "format": "avro", "schema_file": path}
    codec = AvroCodec(FeaturesConfig.model_validate(usual | columns), LabelRule(kind=rule, classes=3))
    values = [encoded(writer, random) for _ in range(30)]
    good = set(decoded(codec, *values).events.offset_N.tolist())
    assert taken_fast(codec, *values) == [offset in good for offset in range(100, 130)]
    decoded(codec, *[mutated(random, value) for value in values])
