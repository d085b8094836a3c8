"""JSON codec: which messages are good, what becomes of them, and in which words the others are refused."""

import dataclasses
import itertools
import json
from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from consumers.codecs import Decoded, fields
from consumers.codecs.json import JsonCodec
from consumers.codecs.keys import LEARNED_MAX, NAME_BYTES_MAX
from consumers.codecs.strict import NESTING_MAX
from consumers.codecs.table import allocate
from consumers.config import FeaturesConfig, LabelRule, LabelsConfig
from consumers.hashing import bucket, key128
from consumers.record import REJECT_RAW_BYTES_MAX, REJECTS, Blobs, Events, Kind, Messages
from tests.codec_ways import NOW, FastJson, SlowJson, messages
from tests.guarded import GuardedMemory

BINARY = LabelRule(kind="binary")
MEMORY = GuardedMemory()
GOOD = {"id": "a", "ts": NOW, "x": 1.5, "y": -2, "z": 0.25, "color": "red", "size": "L"}


def flights(**changes: Any) -> FeaturesConfig:
    """Two plain numbers and a nullable one, a plain category and a nullable one."""
    numeric = ["x", "y", {"name": "z", "nullable": True}]
    categorical = ["color", {"name": "size", "nullable": True, "buckets": 16}]
    usual = {"key": "id", "time": "ts", "numeric": numeric, "categorical": categorical}
    return features(**usual | {"max_message_bytes": 4096} | changes)


def features(**fields: Any) -> FeaturesConfig:
    return FeaturesConfig.model_validate({"topic": "t", **fields})


def late(**changes: Any) -> LabelsConfig:
    return LabelsConfig(**{"topic": "l", "key": "id", "time": "ts", "column": "late", **changes})


def decode(codec: JsonCodec, batch: Messages) -> Decoded:
    return codec.decode(batch, allocate(int(codec.rows_N(batch).sum()), codec.columns))


def dumps(document: Any) -> bytes:
    return json.dumps(document).encode()


def but(**changes: Any) -> bytes:
    """The good message with some fields changed; `...` removes one."""
    return dumps({name: item for name, item in (GOOD | changes).items() if item is not ...})


def among_others(batch: Messages) -> Messages:
    """The same messages in a buffer that goes on behind each of them with what could be more of it."""
    data, start_N = bytearray(), []
    for index in range(len(batch)):
        start_N.append(len(data))
        data += (batch.values.at(index) or b"") + b'0"}]}' * 8
    values = Blobs(np.frombuffer(bytes(data), np.uint8), np.array(start_N, np.int64), batch.values.length_N)
    return dataclasses.replace(batch, values=values)


def one(
    value: bytes | None, config: FeaturesConfig | LabelsConfig | None = None, rule: LabelRule = BINARY, **how: Any
) -> Events:
    decoded = decode(JsonCodec(config or flights(), rule), messages(value, **how))
    assert decoded.rejects.num_rows == 0, decoded.rejects["reason"][0]
    return decoded.events


def reason(
    value: bytes | None, config: FeaturesConfig | LabelsConfig | None = None, rule: LabelRule = BINARY, **how: Any
) -> str:
    decoded = decode(JsonCodec(config or flights(), rule), messages(value, **how))
    assert len(decoded.events) == 0
    return str(decoded.rejects["reason"][0])


def same_bits(left: Decoded, right: Decoded) -> bool:
    """A NaN is equal to itself here, and -0.0 is not 0.0."""
    return left.rejects.equals(right.rejects) and bits(left.events) == bits(right.events)


def bits(events: Events) -> list[bytes | None]:
    columns = [getattr(events, field.name) for field in dataclasses.fields(events)]
    return [None if column is None else column.tobytes() for column in columns]


class TestGoodMessages:
    def test_a_message_becomes_a_row_of_raw_numbers_and_bucket_ids(self) -> None:
        events = one(but())
        expected = [1.5, -2, 0.25, bucket(b"red", 1024), bucket(b"L", 16)]
        assert events.features_NC.tolist() == [expected]
        assert events.key_N2.tobytes() == key128(b"a")
        assert events.event_time_N.tolist() == [NOW]
        assert events.offset_N.tolist() == [100]
        assert events.row_N.tolist() == [0]
        assert events.kind_N.tolist() == [Kind.EVENT]
        assert events.weight_N.tolist() == [1.0]
        assert events.label_N is None

    @pytest.mark.parametrize(
        ("config", "columns", "labelled"),
        [
            (flights(), 5, False),
            (flights(label="late"), 5, True),
            (features(numeric=["x"]), 1, False),
            (features(categorical=["x"]), 1, False),
            (late(), 0, True),
        ],
    )
    @pytest.mark.parametrize("values", [(), (b"{}",), (but(late=1), but(late=0), but(), b"no")])
    def test_events_and_rejects_have_exactly_the_agreed_types(
        self,
        config: FeaturesConfig | LabelsConfig,
        columns: int,
        labelled: bool,
        values: tuple[bytes, ...],
    ) -> None:
        events, rejects = decode(JsonCodec(config, BINARY), messages(*values))
        usual = Events.none(columns, labelled=labelled)
        for field in dataclasses.fields(events):
            column, like = getattr(events, field.name), getattr(usual, field.name)
            assert (column is None) == (like is None)
            if column is not None:
                assert (column.dtype, column.shape[1:]) == (like.dtype, like.shape[1:])
                assert len(column) == (0 if field.name == "weight_N" and not columns else len(events))
        rejects.validate(full=True)
        assert rejects.schema.equals(REJECTS)

    def test_good_and_bad_keep_the_order_of_the_messages(self) -> None:
        batch = messages(but(x=1), b"bad", but(x=2, u={"n": 1}), None, b"", but(x=3), but(x=None))
        decoded = decode(JsonCodec(flights(), BINARY), batch)
        assert decoded.events.offset_N.tolist() == [100, 102, 103, 105]
        assert decoded.events.features_NC[:, 0].tolist() == [1, 2, 0, 3]
        assert decoded.rejects["offset"].to_pylist() == [101, 104, 106]

    def test_an_integer_key_is_its_decimal_text(self) -> None:
        for number in (7, -7, 2**64 + 1, 10**40):
            assert one(but(id=number)).key_N2.tobytes() == key128(str(number).encode())

    def test_without_a_key_field_the_message_key_counts(self) -> None:
        assert one(but(), flights(key=None), key="é".encode()).key_N2.tobytes() == key128("é".encode())

    def test_without_a_time_field_the_timestamp_of_the_record_counts(self) -> None:
        assert one(but(ts=-1), flights(time=None), timestamp=5).event_time_N.tolist() == [5]

    def test_an_event_time_may_be_just_so_far_ahead(self) -> None:
        assert one(but(ts=NOW + 300_000)).event_time_N.tolist() == [NOW + 300_000]

    @pytest.mark.parametrize("value", [None, ..., float("nan")])
    def test_nothing_null_and_nan_in_a_nullable_column_are_imputed(self, value: Any) -> None:
        assert np.isnan(one(but(z=value)).features_NC[0, 2])

    @pytest.mark.parametrize("value", [None, ...])
    def test_nothing_and_null_in_a_nullable_category_are_bucket_0(self, value: Any) -> None:
        assert one(but(size=value)).features_NC[0, 4] == 0

    def test_an_integer_category_is_its_decimal_text_and_no_other_type_slips_in_after_it(self) -> None:
        codec = JsonCodec(flights(), BINARY)
        decoded = decode(codec, messages(but(color=1), but(color="1"), but(color=1.0), but(color=True)))
        assert set(decoded.events.features_NC[:, 3].tolist()) == {bucket(b"1", 1024)}
        assert decoded.rejects["offset"].to_pylist() == [102, 103]

    def test_the_memo_of_a_category_is_bounded_and_forgetting_changes_nothing(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(fields, "_MEMO_SIZE_MAX", 3)
        buckets = fields.Buckets("size", nullable=True, buckets=16)
        for text in ["a", "b", "c", "d", "a", "x" * 1000]:
            assert buckets[text] == bucket(text.encode(), 16)
            assert buckets[None] == 0
            assert len(buckets) <= 3
        assert "x" * 1000 not in buckets

    def test_integers_beyond_64_bits_are_numbers(self) -> None:
        assert one(but(x=2**63, y=-(2**63) - 1)).features_NC[0, :2].tolist() == [2.0**63, -(2.0**63)]
        assert one(but(w=2**70), flights(weight="w")).weight_N.tolist() == [2.0**70]

    def test_a_number_that_float32_cannot_square_is_rejected(self) -> None:
        assert reason(but(x=2e19)) == "column 'x': 2e+19 is beyond ±1e+19: its square is no float32"

    def test_weight_and_label_within_the_feature_event(self) -> None:
        events = one(but(w=0.5, late=True), flights(weight="w", label="late"))
        assert events.weight_N.tolist() == [0.5]
        assert events.label_N is not None
        assert events.label_N.tolist() == [1.0]

    def test_colons_and_brackets_within_text_and_unused_fields_do_no_harm(self) -> None:
        one(but(at="2013-01-01T05:00", url="http://a:1/[[", on=True, no=None, list=[[1], [2]], sub={"x": [1]}))


class TestTombstones:
    @pytest.mark.parametrize("config", [flights(label="late"), late()])
    def test_a_null_value_is_a_tombstone_of_the_message_key(self, config: FeaturesConfig | LabelsConfig) -> None:
        events = one(None, config, key=b"gone", timestamp=7)
        assert events.kind_N.tolist() == [Kind.TOMBSTONE]
        assert events.key_N2.tobytes() == key128(b"gone")
        assert events.event_time_N.tolist() == [7]
        assert not events.features_NC.any()
        assert events.weight_N.tolist() == [0.0] * len(events.weight_N)
        assert events.label_N is not None
        assert np.isnan(events.label_N).all()

    def test_a_tombstone_without_a_good_key_or_time_is_rejected(self) -> None:
        assert reason(None, key=None) == "key: the message has no key"
        assert reason(None, key=b"\xff") == "key: the message key is not UTF-8"
        assert reason(None, timestamp=-1) == "time: the Kafka record has no timestamp"


class TestLabels:
    @pytest.mark.parametrize(("text", "value"), [("true", 1), ("false", 0), ("0", 0), ("1", 1), ("0.0", 0), ("1.0", 1)])
    def test_binary_labels(self, text: str, value: float) -> None:
        labels = one(b'{"id":1,"ts":5,"late":%s}' % text.encode(), late()).label_N
        assert labels is not None
        assert labels.tolist() == [value]

    @pytest.mark.parametrize(
        ("rule", "bad", "words"),
        [
            (BINARY, [2, -1, 0.5, "1", None, [1]], "not true, false, 0 or 1"),
            (LabelRule(kind="class", classes=3), [3, -1, 1.0, True, "1", None], "not a class in 0..2"),
            (LabelRule(kind="number"), [True, "1", None, {}], "not a number"),
            (LabelRule(kind="number"), [1e39, 10**39, 10**400], "is not finite as float32"),
        ],
    )
    def test_labels_that_the_task_does_not_accept(self, rule: LabelRule, bad: list[Any], words: str) -> None:
        for value in bad:
            text = reason(dumps({"id": 1, "ts": 5, "late": value}), late(), rule)
            assert text.startswith("label 'late': ")
            assert text.endswith(words)

    def test_classes_and_numbers(self) -> None:
        for rule, value in [(LabelRule(kind="class", classes=3), 2), (LabelRule(kind="number"), -1.5)]:
            labels = one(dumps({"id": 1, "ts": 5, "late": value}), late(), rule).label_N
            assert labels is not None
            assert labels.tolist() == [value]

    def test_a_missing_label(self) -> None:
        assert reason(b'{"id":1,"ts":5}', late()) == "label 'late': missing, not true, false, 0 or 1"


class TestRejects:
    @pytest.mark.parametrize(
        ("value", "expected"),
        [
            (b"", "not JSON: Expecting value: line 1 column 1 (char 0)"),
            (b"\xff\xfe{}", "not JSON: byte 0 is not UTF-8"),
            (but()[:-1], "not JSON: Expecting ',' delimiter"),
            (but() + but(), "not JSON: Extra data"),
            ("\ufeff{}".encode(), "not JSON: Unexpected UTF-8 BOM"),
            (json.dumps(GOOD).encode("utf-16"), "not JSON: byte 0 is not UTF-8"),
            (b"[1]", "not an object: [1]"),
            (b'":"', 'not an object: ":"'),
            (b"NaN", "not an object: NaN"),
            (b"9" * 4000, "not an object: 9999"),
            (b"[" + b"9" * 4095, "not JSON: "),
            (b"[" * 4096, "nested more than 32 levels deep"),
            (but(u=0)[:-2] + b"[" * 40 + b"]" * 40 + b"}", "nested more than 32 levels deep"),
            (but(pad="x" * 5000), "value is 5102 bytes, more than max_message_bytes = 4096"),
            (but()[:-1] + b', "id": "b"}', "duplicate key 'id'"),
            (but()[:-1] + b',"x" :1}', "duplicate key 'x'"),
            (but()[:-1] + b',"u":{"n":1,"n":2}}', "duplicate key 'n'"),
            (b'{"\\ud800":1,"\\ud800":2}', "duplicate key '\\ud800'"),
            (but(id="\ud800"), 'not JSON: a lone surrogate in "\\ud800"'),
            (but(u=["\udc00"]), 'not JSON: a lone surrogate in "\\udc00"'),
            (but(**{"\ud800": 1}), 'not JSON: a lone surrogate in "\\ud800"'),
            (but(id=...), "key 'id': missing, not a non-empty string or an integer"),
            (but(id=None), "key 'id': null, not"),
            (but(id=""), "key 'id': \"\", not"),
            (but(id=1.0), "key 'id': 1.0, not"),
            (but(id=True), "key 'id': true, not"),
            (but(id=["a" * 99]), "key 'id': [\"" + "a" * 58 + "…, not"),
            (but(ts=...), "time 'ts': missing, not an integer (ms since the epoch)"),
            (but(ts=None), "time 'ts': null, not"),
            (but(ts=1e3), "time 'ts': 1000.0, not"),
            (but(ts=True), "time 'ts': true, not"),
            (but(ts="1"), "time 'ts': \"1\", not"),
            (but(ts=-1), "time 'ts': -1 is negative"),
            (but(ts=2**63), "time 'ts': 9223372036854775808 is too large"),
            (but(ts=NOW + 300_001), f"time 'ts': {NOW + 300_001} is more than max_skew = 300000 ms ahead"),
            (but(x=...), "column 'x': missing, but the column is not nullable"),
            (but(x=None), "column 'x': null, but the column is not nullable"),
            (but(x=float("nan")), "column 'x': NaN, but the column is not nullable"),
            (but(x=True), "column 'x': true, not a number"),
            (but(x="1"), "column 'x': \"1\", not a number"),
            (but(x=[1]), "column 'x': [1], not a number"),
            (but(x=1e39), "column 'x': 1e+39 is not finite as float32"),
            (but(x=10**39), f"column 'x': {10**39} is not finite as float32"),
            (but(x=10**400), "column 'x': 1000"),
            (but(x=1).replace(b'"x": 1', b'"x": 1e999'), "column 'x': Infinity is not finite as float32"),
            (but(z=1).replace(b'"z": 1', b'"z": 1e999'), "column 'z': Infinity is not finite as float32"),
            (but(z=float("inf")), "not JSON: Infinity"),
            (but(z=float("-inf")), "not JSON: -Infinity"),
            (but(z=False), "column 'z': false, not a number"),
            (but(z=[float("nan")]), "not JSON: NaN within an object or array"),
            (but(u=float("nan")), 'field "u": NaN, but it is not a numeric column'),
            (but(size=float("nan")), 'field "size": NaN, but it is not a numeric column'),
            (but(color=...), "column 'color': missing, but the column is not nullable"),
            (but(color=None), "column 'color': null, but the column is not nullable"),
            (but(color=1.5), "column 'color': 1.5, not a non-empty string or an integer"),
            (but(color={}), "column 'color': {}, not"),
            (but(size=""), "column 'size': \"\", not"),
        ],
        ids=lambda item: item if isinstance(item, str) else "",
    )
    def test_every_rejection_says_precisely_why(self, value: bytes, expected: str) -> None:
        assert reason(value).startswith(expected)

    @pytest.mark.parametrize(
        ("value", "expected"),
        [(-0.5, "-0.5 is negative"), (None, "null, not a number"), (True, "true, not a number")],
    )
    def test_a_bad_weight(self, value: Any, expected: str) -> None:
        assert reason(but(w=value), flights(weight="w")) == f"weight 'w': {expected}"

    def test_a_nan_weight_or_label_is_bad_even_where_the_column_of_that_name_is_nullable(self) -> None:
        assert "weight 'z'" in reason(but(z=float("nan")), flights(weight="z"))
        assert "label 'z'" in reason(but(z=float("nan")), flights(label="z"), LabelRule(kind="number"))

    def test_a_message_key_that_is_missing_or_no_text(self) -> None:
        assert reason(but(), flights(key=None), key=None) == "key: the message has no key"
        assert reason(but(), flights(key=None), key=b"") == "key: the message has no key"
        assert reason(but(), flights(key=None), key=b"\xed\xa0\x80") == "key: the message key is not UTF-8"

    def test_a_record_without_timestamp_is_bad_where_the_timestamp_is_the_event_time(self) -> None:
        assert reason(but(), flights(time=None), timestamp=-1) == "time: the Kafka record has no timestamp"

    def test_nesting_up_to_the_limit_is_fine(self) -> None:
        for depth, bad in [(NESTING_MAX - 1, False), (NESTING_MAX, True)]:
            lists = but(u=0).replace(b'"u": 0', b'"u": ' + b"[" * depth + b"]" * depth)
            objects = but(u=0).replace(b'"u": 0', b'"u": ' + b'{"n":' * (depth - 1) + b"{}" + b"}" * (depth - 1))
            decoded = decode(JsonCodec(flights(), BINARY), messages(lists, objects))
            assert decoded.rejects.num_rows == 2 * bad

    def test_a_reject_carries_the_start_of_the_value_and_its_whole_length(self) -> None:
        huge = b"x" * (REJECT_RAW_BYTES_MAX + 1)
        batch = Messages.of([1, 2], [10, 20], [b"\xff", None], [huge, None])
        rejects = decode(JsonCodec(flights(), BINARY), batch).rejects.to_pylist()
        assert [row.pop("reason")[:5] for row in rejects] == ["value", "key: "]
        assert rejects[0] == {
            "offset": 1,
            "row": 0,
            "timestamp": 10,
            "key": b"\xff",
            "value": huge[:REJECT_RAW_BYTES_MAX],
            "value_bytes": len(huge),
        }
        assert rejects[1] == {
            "offset": 2,
            "row": 0,
            "timestamp": 20,
            "key": None,
            "value": None,
            "value_bytes": 0,
        }


COMPANY = (
    *(but(), but(id=3), but(x=1e39), but(x=True), but(x=1, flag=True), but(z=None), but(z=...), but(x=...)),
    *(but(color=True), but(color=1), but(color=...), but(size=None), but(size=""), but(id=""), but(id=None)),
    *(but(ts=True), but(ts=2**63), but(ts=NOW + 300_001), but(ts=1.0), but(meta={"x": 1}), but(at="a:1")),
    *(but(w=1, late=1), but(w=-1e-300, late=1), but(w=True, late=0), but(w=2, late=True), but(w=0, late=2)),
    *(but(w=1, late=1.0), but(w=1, late=-0.0), but(w=1, late=1e39), but(w=1, late=[]), but(w="1", late=1)),
    *(
        but(w=1e39, late=1),
        *[but(at="a:1")[:-1] + b', "x"' + space + b":1}" for space in (b"", b" ", b"\t", b"\n", b"\r")],
    ),
    *(but()[:-1] + b', "id": "b"}', b'{"id": "a", "ts": 5, "late": 1, "id": "b"}', b'{"id": 1, "ts": 5, "late": 1}'),
    *(but(u=0).replace(b'"u": 0', b'"u": ' + b"[" * depth + b"]" * depth) for depth in (16, 17, 31, 32)),
    *(but(u=0).replace(b'"u": 0', b'"u": ' + b'{"n":' * depth + b"0" + b"}" * depth) for depth in (31, 32)),
    *(but(pad="x" * 5000), but(at='{":'), b"{}", b"[]", b"{", b"null", None),
)
"""Messages, good and bad, of which each must be told apart from the others beside it."""


AROUND_A_BYTE = (
    *(b'{"a":"@"}', b'{"a":"@12345678"}', b'{"a":"12345678@"}', b'{"a":"\\@"}', b'{"a":"\\u00@0"}', b'{"@":1}'),
    *(b'{"z":@}', b'{"z":1@}', b'{"z":1.@}', b'{"z":1e@}', b'{"z":-@}', b'{"z":[@]}', b'{@"z":1}', b'{"z":1,@}'),
)


class TestTwoWaysOneAnswer:
    """The fast way may decline whatever it likes, but what it takes it decodes like the slow one."""

    CONFIGS = (
        flights(),
        flights(key=None, time=None, weight="w", label="late"),
        features(key="id", time="ts", numeric=["x", "y"]),
        features(numeric=["x"]),
        features(numeric=[{"name": "z", "nullable": True}]),
        features(categorical=[{"name": "size", "nullable": True}]),
        late(key="id"),
        late(key=None, time=None),
    )
    RULES = (BINARY, LabelRule(kind="class", classes=3), LabelRule(kind="number"))

    SCALARS = (
        st.none()
        | st.booleans()
        | st.integers()
        | st.integers(-3, 3)
        | st.floats()
        | st.floats(width=32)
        | st.sampled_from([0.0, -0.0, 1.0, 3.4028235677973366e38, 3.4028236e38, -(2**63), 2**64, NOW, 10**39, 10**400])
        | st.text()
        | st.sampled_from(["", "a:b", '":', " :", "true", "\ud800", "red", "1"])
    )
    ITEMS = st.recursive(
        SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=2), inner, max_size=3)
    )
    NAMES = st.sampled_from([*GOOD, "w", "late", "other"]) | st.text(max_size=3)

    SCRAPS = (
        *(b'"', b":", b",", b"{", b"}", b"[", b"]", b"\\", b" ", b"-", b"0", b"e9", b"-0", b"1e999"),
        *(b"NaN", b"Infinity", b"true", b"null", b'"x":1,', b'"x" :1,', b"\\ud800"),
        *(b"\xff", b"\x00", b"\xef\xbb\xbf"),
    )

    def check(self, *values: bytes | None, key: bytes | None = b"k") -> None:
        for config in self.CONFIGS:
            labelled = isinstance(config, LabelsConfig) or config.label is not None
            for rule in self.RULES if labelled else self.RULES[:1]:
                batch, codec = messages(*values, key=key), JsonCodec(config, rule)
                slow = decode(SlowJson(config, rule), batch)
                guarded = dataclasses.replace(batch, values=MEMORY.blobs(batch.values, last=len(values) // 2))
                assert same_bits(decode(codec, guarded), slow), "at the end of memory"
                assert same_bits(decode(codec, among_others(batch)), slow), "as expected, and not at the end"
                assert len(slow.events) + slow.rejects.num_rows == len(values)

    @settings(max_examples=150, deadline=None)
    @given(st.binary(max_size=60), st.none() | st.binary(max_size=3))
    def test_for_any_bytes(self, value: bytes, key: bytes | None) -> None:
        self.check(value, key=key)

    @settings(max_examples=200, deadline=None)
    @given(st.dictionaries(NAMES, ITEMS), st.booleans(), st.booleans())
    def test_for_any_object(self, changes: dict[str, Any], ascii_only: bool, compact: bool) -> None:
        text = json.dumps(
            GOOD | {"w": 1.0, "late": 1} | changes,
            ensure_ascii=ascii_only,
            separators=(",", ":") if compact else None,
        )
        self.check(text.encode("utf-8", "surrogatepass"))

    @settings(max_examples=200, deadline=None)
    @given(st.data())
    def test_for_any_damage_to_good_messages(self, data: st.DataObject) -> None:
        value = bytearray(but(w=0.5, late=1, u=[{"n": "a:b"}]) if data.draw(st.booleans()) else but())
        scraps = st.sampled_from(self.SCRAPS)
        for _ in range(data.draw(st.integers(1, 3))):
            start = data.draw(st.integers(0, len(value)))
            stop = start + data.draw(st.integers(0, 3))
            value[start:stop] = data.draw(scraps)
        self.check(bytes(value), but(), None)

    @settings(max_examples=100, deadline=None)
    @given(st.lists(st.tuples(NAMES, SCALARS), max_size=6), st.sampled_from([b":", b" :", b"\t: ", b"\r\n:"]))
    def test_for_any_repeated_keys(self, pairs: list[tuple[str, Any]], colon: bytes) -> None:
        pairs = [*GOOD.items(), ("w", 1), ("late", 0), *pairs]
        self.check(b"{" + b",".join(dumps(name) + colon + dumps(item) for name, item in pairs) + b"}")

    def test_for_documents_that_are_no_objects(self) -> None:
        self.check(b"[]", b'""', b'":"', b'[{"id":1}]', b"0", b"null", b"true", b"{}")

    def test_a_message_decodes_the_same_in_any_company(self) -> None:
        values = [but(x=1), but(x=True), but(color=1), but(color=True), but(z=None), None, b"{"] * 2
        codec = JsonCodec(flights(), BINARY)
        together = decode(codec, messages(*values)).events
        alone = [decode(JsonCodec(flights(), BINARY), messages(value)).events for value in values]
        assert bits(decode(codec, messages(*values)).events) == bits(together)
        for name in ("key_N2", "kind_N", "features_NC"):
            rows = np.concatenate([getattr(events, name) for events in alone])
            np.testing.assert_array_equal(getattr(together, name), rows)

    def test_for_each_in_usual_company(self) -> None:
        for each in COMPANY:
            self.check(but(w=1, late=1), each, but(w=1, late=0))

    @settings(max_examples=60, deadline=None)
    @given(st.lists(st.sampled_from(range(len(COMPANY))), min_size=2, max_size=12))
    def test_for_any_company(self, chosen: list[int]) -> None:
        """Nothing that one message holds may excuse what another one lacks."""
        self.check(*[COMPANY[each] for each in chosen])

    def test_for_one_unusual_message_among_usual_ones(self) -> None:
        usual = [but(id=f"k{number}", x=number, w=0.5, late=number % 2, z=None) for number in range(5)]
        for unusual in (None, b"{", but(x=True), but(id=4), but(ts=-1), but(late=2, w=-1), but(color=None)):
            for at in range(6):
                self.check(*usual[:at], unusual, *usual[at:])

    def test_for_messages_whose_values_and_keys_lie_anywhere_in_a_buffer(self) -> None:
        values = [but(), but(id="b"), b"{", but(id="c" * 300)]
        batch = messages(*values)
        order = np.array([3, 1, 0, 2])
        blobs = Blobs.of([values[index] for index in order])
        place = np.argsort(order)
        moved = dataclasses.replace(batch, values=Blobs(blobs.data, blobs.start_N[place], blobs.length_N[place]))
        codec = JsonCodec(flights(), BINARY)
        assert same_bits(decode(codec, moved), decode(codec, batch))

    @pytest.mark.parametrize("space", [" ", "\t", "\n", "\r", "\x0b", "\x0c", "\xa0", "\0"])
    def test_for_spaces_wherever_they_may_stand(self, space: str) -> None:
        text = json.dumps(GOOD | {"u": [1, {"n": []}, {}]}, indent=2).replace("  ", space)
        self.check(f"{space}{text}{space}".encode())

    @pytest.mark.parametrize("start", [*range(0, 0x900, 7), 0xD7FF, 0xD800, 0xDBFF, 0xDC00, 0xDFFF, 0xE000, 0x10FFFF])
    def test_for_each_character_as_it_is_and_escaped(self, start: int) -> None:
        text = "".join(map(chr, range(start, min(start + 7, 0x110000))))
        for ascii_only in (True, False):
            value = json.dumps(GOOD | {"id": text, "color": text, text: 1}, ensure_ascii=ascii_only)
            self.check(value.encode("utf-8", "surrogatepass"))

    @pytest.mark.parametrize("around", AROUND_A_BYTE)
    def test_for_each_byte_in_any_place_near_the_end_of_memory(self, around: bytes) -> None:
        config = features(numeric=[{"name": "z", "nullable": True}])
        both, slow = JsonCodec(config, BINARY), SlowJson(config, BINARY)
        for byte in range(256):
            batch = messages(around.replace(b"@", bytes([byte])))
            guarded = dataclasses.replace(batch, values=MEMORY.blobs(batch.values, last=0))
            assert same_bits(decode(both, guarded), decode(slow, batch)), batch.values.at(0)

    @settings(max_examples=200, deadline=None)
    @given(st.from_regex(rb"-?[0-9]{0,25}(\.[0-9]{0,25})?([eE][-+]?[0-9]{0,3})?", fullmatch=True))
    def test_for_any_number(self, text: bytes) -> None:
        self.check(but(x=0).replace(b'"x": 0', b'"x": ' + text), but(u=[0]).replace(b"[0]", b"[%s]" % text))

    @settings(max_examples=200, deadline=None)
    @given(st.floats(allow_nan=False, allow_infinity=False), st.sampled_from(["%r", "%.17e", "%.25f", "%.3g"]))
    def test_for_any_number_as_it_is_written(self, number: float, form: str) -> None:
        self.check(but(x=0, late=0).replace(b"0", (form % number).encode()))


class TestKeys:
    """What is remembered of keys saves work and changes no result."""

    def test_keys_that_are_always_new_are_forgotten_in_time(self) -> None:
        values = [but(**{f"key {number}": {"a": number}}) for number in range(3 * LEARNED_MAX)]
        codec = JsonCodec(flights(), BINARY)
        assert len(decode(codec, messages(*values)).events) == len(values)
        fast = decode(FastJson(flights(), BINARY), messages(*values))
        assert 0 < fast.rejects.num_rows < 10

    def test_more_fields_than_there_are_other_keys(self) -> None:
        names = [f"column {number}" for number in range(2 * LEARNED_MAX)]
        row = dict(zip(names, range(len(names)), strict=True))
        events = decode(FastJson(features(numeric=names), BINARY), messages(dumps(row), but(**row))).events
        assert events.features_NC.tolist() == [list(row.values())] * 2

    @pytest.mark.parametrize("name", ["é", "a b", 'a"b', "a\\b", "a\nb", "", "x" * NAME_BYTES_MAX, "x" * 300, "a\x7fb"])
    def test_a_name_in_any_spelling_is_the_same_field(self, name: str) -> None:
        config = features(key="id", numeric=[{"name": name, "nullable": True}])
        codec = JsonCodec(config, BINARY)
        escaped = "".join(f"\\u{ord(char):04x}" for char in name)
        plain, other = json.dumps({"id": 1, name: 2.5}, ensure_ascii=False), f'{{"id":1,"{escaped}":2.5}}'
        twice = f'{{"id":1,"{escaped}":2.5,{plain[10:]}'
        assert json.loads(twice) == json.loads(plain)
        for _ in range(2):
            decoded = decode(codec, messages(plain.encode(), other.encode(), twice.encode(), b'{"id": 1}'))
            assert decoded.events.features_NC[:2].tolist() == [[2.5], [2.5]]
            assert np.isnan(decoded.events.features_NC[2, 0])
            assert decoded.rejects["reason"].to_pylist() == [f"duplicate key {name[:60]!a}"]

    def test_the_same_key_in_objects_beside_and_within_each_other_is_no_duplicate(self) -> None:
        value = but(u=[{"x": 1, "y": [{"x": 1}, {"x": 2}]}, {"x": {"x": {"x": 1}}}], v={"x": 1})
        assert len(decode(FastJson(flights(), BINARY), messages(value, value)).events) == 2

    @pytest.mark.parametrize("bad", ['{"n":1,"n":2}', '[{"n":1,"m":{"n":1},"n":2}]', '{"n":1,"\\u006e":2}'])
    def test_a_duplicate_within_is_found_however_often_it_comes(self, bad: str) -> None:
        value = but(u=0).replace(b'"u": 0', b'"u": ' + bad.encode())
        decoded = decode(JsonCodec(flights(), BINARY), messages(*[value] * 3))
        assert decoded.rejects["reason"].to_pylist() == ["duplicate key 'n'"] * 3


class TestTheFastWay:
    """Takes what producers usually write, so that the slow way is for what is rare."""

    @pytest.mark.parametrize(
        "value",
        [
            orjson.dumps(GOOD),
            but(),
            but(id=7),
            but(z=None),
            but(z=...),
            but(z=..., flag=False),
            but(size=None),
            but(size=...),
            but(color=3),
            but(color="gr\u00fcn", id="na\u00efve \U0001f600"),
            but(x=0.1234567890123456, y=-1.2345e-30, z=1234567890123456789.0),
            but(at="2013-01-01T05:00", url="http://a:1/", flag=True, tags=["a"]),
            but(meta={"source": {"host": "a:1"}, "hops": [{"n": 1}, {"n": 2}], "empty": [{}, []]}),
            but(big=2**70, small=1e-300, text='two\nlines, "quoted", in a \u00dc'),
            but(text="much text, with a line\n" * 100),
            json.dumps(GOOD, indent=4).encode(),
            json.dumps(GOOD | {"größe": 1}).encode(),
        ],
    )
    def test_takes_usual_messages(self, value: bytes) -> None:
        assert len(decode(FastJson(flights(), BINARY), messages(value, value, value)).events) == 3

    def test_takes_fields_in_any_order(self) -> None:
        values = [dumps(dict(each)) for each in itertools.permutations(GOOD.items())]
        events = decode(FastJson(flights(), BINARY), messages(*values)).events
        assert len(events) == len(values)
        assert len(np.unique(events.features_NC, axis=0)) == 1

    @pytest.mark.parametrize("late_by_rule", [(BINARY, [True, False, 0, 1.0]), (LabelRule(kind="number"), [1, 0.5])])
    def test_takes_usual_labels(self, late_by_rule: tuple[LabelRule, list[Any]]) -> None:
        rule, labels = late_by_rule
        batch = messages(*[dumps({"id": "a", "ts": 5, "late": label}) for label in labels])
        assert len(decode(FastJson(late(), rule), batch).events) == len(labels)

    def test_one_bad_message_costs_itself_and_no_other(self) -> None:
        decoded = decode(FastJson(flights(), BINARY), messages(*[but()] * 37, but(x=True), *[but()] * 100))
        assert decoded.rejects["offset"].to_pylist() == [137]
