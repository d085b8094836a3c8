"""Packed codec: structs without padding, in the layout that the job file gives."""

import struct
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from consumers.codecs import Decoded
from consumers.codecs.packed import PackedCodec
from consumers.codecs.scan import MessageArrays
from consumers.codecs.table import allocate
from consumers.config import FeaturesConfig, LabelRule, LabelsConfig
from consumers.hashing import bucket, key128
from consumers.record import Events, Kind
from tests.codec_ways import NOW, messages

BINARY = LabelRule(kind="binary")
LAYOUT = ("id:i64", "ts:i64", "x:f32", "y:i16", "unused:bool", "color:text6", "late:bool", "z:f64", "size:u8")
CODE = struct.Struct("<qqfhB6sBdB")
GOOD = {"id": 7, "ts": NOW, "x": 1.5, "y": -2, "unused": 0, "color": b"red", "late": 1, "z": 0.25, "size": 3}


def flights(**changes: Any) -> FeaturesConfig:
    """Two plain numbers and a nullable one, a plain category and a nullable one."""
    usual = {
        "format": "packed",
        "layout": LAYOUT,
        "key": "id",
        "time": "ts",
        "numeric": ["x", "y", {"name": "z", "nullable": True}],
        "categorical": ["color", {"name": "size", "nullable": True, "buckets": 16}],
    }
    return FeaturesConfig.model_validate({"topic": "t", **usual, **changes})


def late(**changes: Any) -> LabelsConfig:
    usual = {"topic": "l", "format": "packed", "layout": LAYOUT, "key": "id", "time": "ts", "column": "late"}
    return LabelsConfig(**{**usual, **changes})


def packed(**changes: Any) -> bytes:
    """The good message with some fields changed."""
    return CODE.pack(*(GOOD | changes).values())


class SlowOnly(PackedCodec):
    """The definition of correctness by itself."""

    def decode_fast(self, *_: object) -> None:
        """Takes nothing."""


def decode(*values: bytes | None, config: FeaturesConfig | LabelsConfig | None = None, slow: bool = False) -> Decoded:
    codec = (SlowOnly if slow else PackedCodec)(config or flights(), BINARY)
    return codec.decode(messages(*values), allocate(len(values), codec.columns))


def one(value: bytes | None, config: FeaturesConfig | LabelsConfig | None = None) -> Events:
    decoded = decode(value, config=config)
    assert decoded.rejects.num_rows == 0, decoded.rejects["reason"][0]
    return decoded.events


def reason(value: bytes, config: FeaturesConfig | LabelsConfig | None = None) -> str:
    decoded = decode(value, config=config)
    assert len(decoded.events) == 0
    return str(decoded.rejects["reason"][0])


def same(left: Decoded, right: Decoded) -> bool:
    pairs = [(getattr(left.events, name), getattr(right.events, name)) for name in Events.__slots__]
    return left.rejects.equals(right.rejects) and all(a is b is None or a.tobytes() == b.tobytes() for a, b in pairs)


class TestGoodMessages:
    def test_a_message_becomes_a_row_of_raw_numbers_and_bucket_ids(self) -> None:
        events = one(packed())
        assert events.features_NC.tolist() == [[1.5, -2, 0.25, bucket(b"red", 1024), bucket(b"3", 16)]]
        assert events.key_N2.tobytes() == key128(b"7")
        assert events.event_time_N.tolist() == [NOW]
        assert (events.offset_N.tolist(), events.row_N.tolist(), events.kind_N.tolist()) == ([100], [0], [Kind.EVENT])

    def test_a_boolean_is_a_label(self) -> None:
        labels = one(packed(), late()).label_N
        assert labels is not None
        assert labels.tolist() == [1]

    def test_text_ends_before_the_zero_bytes_that_fill_it_up(self) -> None:
        for raw, text in ((b"red", b"red"), (b"purple", b"purple"), (b"a\0b", b"a\0b"), ("né".encode(), "né".encode())):
            assert one(packed(color=raw)).features_NC[0, 3] == bucket(text, 1024)

    def test_text_that_is_all_zero_bytes_is_null(self) -> None:
        config = flights(categorical=[{"name": "color", "nullable": True}])
        assert one(packed(color=b""), config).features_NC[0, 3] == 0
        assert reason(packed(color=b"")) == "column 'color': null, but the column is not nullable"

    def test_nan_in_a_nullable_column_is_imputed(self) -> None:
        assert np.isnan(one(packed(z=float("nan"))).features_NC[0, 2])
        assert reason(packed(x=float("nan"))) == "column 'x': NaN, but the column is not nullable"

    def test_the_largest_integers_are_numbers_too(self) -> None:
        config = flights(layout=("id:u64", "ts:i64", "x:u64"), numeric=["x"], categorical=[])
        events = one(struct.pack("<QqQ", 2**64 - 1, NOW, 2**63), config)
        assert events.key_N2.tobytes() == key128(b"%d" % (2**64 - 1))
        assert events.features_NC.tolist() == [[2.0**63]]

    def test_a_null_value_is_a_tombstone_of_the_message_key(self) -> None:
        events = one(None)
        assert (events.kind_N.tolist(), events.key_N2.tobytes()) == ([Kind.TOMBSTONE], key128(b"k"))


class TestEvolution:
    def test_what_comes_after_the_layout_is_ignored(self) -> None:
        assert same(decode(packed() + b"\xff" * 5), decode(packed()))

    def test_fields_that_the_message_does_not_have_yet_are_missing(self) -> None:
        older = packed()[:-9]  # without z and size
        assert np.array_equal(one(older).features_NC, [[1.5, -2, np.nan, bucket(b"red", 1024), 0]], equal_nan=True)
        assert reason(older[:-7]) == "column 'color': missing, but the column is not nullable"
        assert reason(b"") == "key 'id': missing, not a non-empty string or an integer"

    @pytest.mark.parametrize(("length", "field"), [(3, "id"), (18, "x"), (24, "color"), (len(packed()) - 3, "z")])
    def test_a_message_that_ends_within_a_field_is_bad(self, length: int, field: str) -> None:
        assert reason(packed()[:length]) == f'cut short: the message ends within field "{field}" of the layout'


class TestBadMessages:
    def test_a_bad_message_is_one_reject_and_the_others_stay_good(self) -> None:
        decoded = decode(packed(), packed(x=2e19), None, packed()[:5], packed(id=-7))
        assert decoded.events.offset_N.tolist() == [100, 102, 104]
        assert decoded.rejects["offset"].to_pylist() == [101, 103]

    def test_a_boolean_is_0_or_1_but_only_if_it_counts(self) -> None:
        assert reason(packed(late=2), late()) == "field 'late': 2 is no boolean: a byte 0 or 1"
        one(packed(late=2))

    def test_text_is_utf8(self) -> None:
        assert reason(packed(color=b"a\xff")) == "field 'color': byte 1 of the text is not UTF-8"

    def test_a_message_that_is_too_long_is_bad(self) -> None:
        assert reason(packed(), flights(max_message_bytes=5)) == "value is 39 bytes, more than max_message_bytes = 5"


class TestConfig:
    @pytest.mark.parametrize(
        ("changes", "words"),
        [
            ({"layout": ("id:i65",)}, "is no 'name:type'"),
            ({"layout": ("id:text0",)}, "is no 'name:type'"),
            ({"layout": (":i8",)}, "is no 'name:type'"),
            ({"layout": ("id:i8", "id:u8")}, "names a field twice"),
            ({"layout": LAYOUT[1:]}, "layout has no field 'id'"),
            ({"layout": LAYOUT[:-1]}, "layout has no field 'size'"),
            ({"layout": ()}, "layout says what packed messages hold"),
            ({"format": "json"}, "layout says what packed messages hold"),
            ({"envelope": "debezium"}, "have no envelope"),
        ],
    )
    def test_a_layout_that_cannot_be_meant_is_refused(self, changes: dict[str, Any], words: str) -> None:
        with pytest.raises(ValidationError, match=words):
            flights(**changes)

    def test_a_name_may_have_colons(self) -> None:
        config = flights(layout=("a:id:i64", *LAYOUT[1:]), key="a:id")
        assert one(packed(), config).key_N2.tobytes() == key128(b"7")


_TYPES = {"i8": "b", "i16": "h", "i32": "i", "i64": "q", "u8": "B", "u16": "H", "u32": "I", "u64": "Q"}
_TYPES |= {"f32": "f", "f64": "d", "bool": "?", "text3": "3s", "text9": "9s"}


def _good_fields(*kinds: str) -> st.SearchStrategy[tuple[str, bytes]]:
    """Type and bytes of a field that is good wherever these types are."""
    text = st.sampled_from([b"a", "é".encode(), b"a\0b"])
    return st.sampled_from(kinds).flatmap(
        lambda kind: (text if kind.startswith("text") else st.integers(0, 1)).map(
            lambda value: (kind, struct.pack("<" + _TYPES[kind], value))
        )
    )


def _any_fields() -> st.SearchStrategy[tuple[str, bytes]]:
    def sized(kind: str) -> st.SearchStrategy[tuple[str, bytes]]:
        size = struct.calcsize("<" + _TYPES[kind])
        return st.binary(min_size=size, max_size=size).map(lambda raw: (kind, raw))

    return st.sampled_from(list(_TYPES)).flatmap(sized)


@given(st.data())
@settings(max_examples=400, deadline=None)
def test_both_ways_say_the_same_of_messages_of_any_layout(data: st.DataObject) -> None:
    roles: dict[str, tuple[str, ...]] = dict.fromkeys(("id", "color", "size"), ("i64", "text9", "u64"))
    roles |= dict.fromkeys(("x", "y", "z", "w"), ("f32", "f64", "i8", "u32"))
    roles |= {"ts": ("i64", "u32"), "late": ("bool", "u8"), "unused": ("text3",)}
    names = data.draw(st.permutations(list(roles)))
    wild = data.draw(st.sets(st.sampled_from(names), max_size=2))
    drawn = [data.draw(_any_fields() if name in wild else _good_fields(*roles[name])) for name in names]
    whole = b"".join(raw for _, raw in drawn)
    values = [whole, whole + b"\xff", whole[: data.draw(st.integers(0, len(whole)))], None, whole]
    layout = tuple(f"{name}:{kind}" for name, (kind, _) in zip(names, drawn, strict=True))
    config = flights(layout=layout, weight="w", label="late")
    assert same(decode(*values, config=config), decode(*values, config=config, slow=True))


def test_the_plainly_good_goes_the_fast_way() -> None:
    codec, queue = PackedCodec(flights(), BINARY), messages(packed(), packed() + b"new", packed(z=float("nan")))
    good_N: npt.NDArray[np.bool_] = np.zeros(3, np.bool_)
    codec.decode_fast(MessageArrays.of(queue), allocate(3, codec.columns), good_N)
    assert good_N.all()
