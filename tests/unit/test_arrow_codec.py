"""Arrow codec: rows out of the columns of IPC streams, the bad ones singled out, and nothing in a stream believed."""

import json
import random
import struct
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from consumers.codecs import Decoded, ipc
from consumers.codecs.arrow import ArrowCodec
from consumers.codecs.definition import Definition
from consumers.codecs.fields import Reject, field_key
from consumers.codecs.table import Rejects, allocate
from consumers.config import FeaturesConfig, LabelRule, LabelsConfig
from consumers.hashing import bucket, key128
from consumers.record import MESSAGE_ROWS_MAX, REJECT_BYTES_MAX, REJECT_RAW_BYTES_MAX, Blobs, Events, Kind, Messages

BINARY = LabelRule(kind="binary")
NOW = 1_700_000_000_000

TEXTS = (pa.utf8(), pa.large_utf8(), pa.string_view(), pa.dictionary(pa.int8(), pa.utf8()))
INTEGERS = tuple(pa.type_for_alias(f"{sign}int{bits}") for sign in ("", "u") for bits in (8, 16, 32, 64))
FLOATS = (pa.float16(), pa.float32(), pa.float64())


def flights(**changes: Any) -> FeaturesConfig:
    """Two plain numbers and a nullable one, a plain category and a nullable one."""
    numeric = ["x", "y", {"name": "z", "nullable": True}]
    categorical = ["color", {"name": "size", "nullable": True, "buckets": 16}]
    usual = {"key": "id", "time": "ts", "numeric": numeric, "categorical": categorical}
    return FeaturesConfig.model_validate({"topic": "t", "format": "arrow", **usual, **changes})


def late(**changes: Any) -> LabelsConfig:
    return LabelsConfig(**{"topic": "l", "format": "arrow", "key": "id", "time": "ts", "column": "late", **changes})


def good(rows: int = 3, **changes: Any) -> pa.RecordBatch:
    """So many good rows with some columns changed; `...` leaves one out."""
    columns = {
        "id": [f"key {row}" for row in range(rows)],
        "ts": [NOW + row for row in range(rows)],
        "x": pa.array([row / 2 for row in range(rows)], pa.float32()),
        "y": [-row for row in range(rows)],
        "z": [None, *[0.25] * (rows - 1)][:rows],
        "color": ["red"] * rows,
        "size": ["L"] * rows,
    } | changes
    return pa.record_batch({name: column for name, column in columns.items() if column is not ...})


def stream(*batches: pa.RecordBatch, **options: Any) -> bytes:
    """One message with these batches."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batches[0].schema, options=pa.ipc.IpcWriteOptions(**options)) as writer:
        for batch in batches:
            writer.write_batch(batch)
    data: bytes = sink.getvalue().to_pybytes()
    return data


def messages(*values: bytes | None, key: bytes | None = b"k", timestamp: int = NOW) -> Messages:
    count = len(values)
    return Messages.of(range(100, 100 + count), [timestamp] * count, [key] * count, values)


def decode(
    *values: bytes | None, config: FeaturesConfig | LabelsConfig | None = None, rule: LabelRule = BINARY, **how: Any
) -> Decoded:
    """What becomes of these messages; for each row of theirs there is exactly one event or reject."""
    codec, queue = ArrowCodec(config or flights(), rule), messages(*values, **how)
    room = int(codec.rows_N(queue).sum())
    decoded = codec.decode(queue, allocate(room, codec.columns))
    assert len(decoded.events) + decoded.rejects.num_rows <= room
    return decoded


def events(*values: bytes | None, **how: Any) -> Events:
    decoded = decode(*values, **how)
    assert decoded.rejects.num_rows == 0, decoded.rejects["reason"][0]
    return decoded.events


def reasons(*values: bytes | None, **how: Any) -> list[tuple[int, int, str]]:
    """Offset, row and reason of each reject."""
    rejects = decode(*values, **how).rejects
    return list(zip(*(rejects[name].to_pylist() for name in ("offset", "row", "reason")), strict=True))


def reason(value: bytes, **how: Any) -> str:
    """Why a message is rejected as a whole."""
    decoded = decode(value, **how)
    assert len(decoded.events) == 0
    assert decoded.rejects["row"].to_pylist() == [0]
    assert decoded.rejects["value"].to_pylist() == [value[:REJECT_RAW_BYTES_MAX]]
    return str(decoded.rejects["reason"][0])


class TestGoodRows:
    def test_each_row_is_an_event_of_raw_numbers_and_bucket_ids(self) -> None:
        rows = events(stream(good()))
        red, large = bucket(b"red", 1024), bucket(b"L", 16)
        assert np.array_equal(
            rows.features_NC,
            [[0, 0, np.nan, red, large], [0.5, -1, 0.25, red, large], [1, -2, 0.25, red, large]],
            equal_nan=True,
        )
        assert rows.key_N2.tobytes() == key128(b"key 0") + key128(b"key 1") + key128(b"key 2")
        assert rows.event_time_N.tolist() == [NOW, NOW + 1, NOW + 2]
        assert rows.offset_N.tolist() == [100, 100, 100]
        assert rows.row_N.tolist() == [0, 1, 2]
        assert rows.kind_N.tolist() == [Kind.EVENT] * 3
        assert rows.weight_N.tolist() == [1, 1, 1]
        assert rows.label_N is None

    def test_rows_are_numbered_through_all_batches_of_a_message_and_anew_in_the_next(self) -> None:
        rows = events(stream(good(2), good(3)), stream(good(1)), stream(good(0)), stream(good(2)))
        assert rows.offset_N.tolist() == [100] * 5 + [101] + [103] * 2
        assert rows.row_N.tolist() == [0, 1, 2, 3, 4, 0, 0, 1]

    def test_labels_come_in_batches_too(self) -> None:
        labels = pa.record_batch({"id": ["a", "b"], "ts": [NOW, NOW], "late": [True, False]})
        rows = events(stream(labels), config=late())
        assert rows.label_N is not None
        assert rows.label_N.tolist() == [1, 0]
        assert rows.features_NC.shape == (2, 0)

    def test_weight_and_label_within_the_feature_event(self) -> None:
        value = stream(good(w=[0.5, 2, 0], late=pa.array([0, 1, 1], pa.int8())))
        rows = events(value, config=flights(weight="w", label="late"))
        assert rows.weight_N.tolist() == [0.5, 2, 0]
        assert rows.label_N is not None
        assert rows.label_N.tolist() == [0, 1, 1]

    def test_without_a_key_or_time_field_the_rows_have_those_of_the_message(self) -> None:
        rows = events(stream(good(2, id=..., ts=...)), config=flights(key=None, time=None), key=b"all", timestamp=7)
        assert rows.key_N2.tobytes() == 2 * key128(b"all")
        assert rows.event_time_N.tolist() == [7, 7]

    @pytest.mark.parametrize(
        ("unit", "count"), [("s", NOW // 1000), ("ms", NOW), ("us", NOW * 1000), ("ns", NOW * 10**6)]
    )
    @pytest.mark.parametrize("zone", [None, "Europe/Berlin"])
    def test_a_timestamp_is_its_milliseconds_whatever_the_unit_and_zone(
        self, unit: str, count: int, zone: str | None
    ) -> None:
        times = pa.array([count, count + 1, count + 999], pa.timestamp(unit, zone))
        factor = {"s": 1000, "ms": 1, "us": 1 / 1000, "ns": 1 / 10**6}[unit]
        expected = [NOW + int(factor * late) for late in (0, 1, 999)]
        assert events(stream(good(ts=times)), config=flights(max_skew="1h")).event_time_N.tolist() == expected

    def test_a_timestamp_that_wraps_around_is_none(self) -> None:
        times = pa.array([NOW // 1000, NOW // 1000 + 2**61, NOW // 1000], pa.timestamp("s"))
        assert reasons(stream(good(ts=times))) == [(100, 1, "time 'ts': 2305843010913693952000 is too large")]

    def test_numbers_of_float32_alone_are_held_to_the_same_rules(self) -> None:
        config = flights(numeric=["x", {"name": "z", "nullable": True}], categorical=[])
        x = pa.array([1, np.inf, np.nan, 2e19, -9e18, 6], pa.float32())
        z = pa.array([np.nan, 2, 3, 4, 5, 1e30], pa.float32())
        decoded = decode(stream(good(6, x=x, z=z)), config=config)
        assert np.array_equal(
            decoded.events.features_NC, np.array([[1, np.nan], [-9e18, 5]], np.float32), equal_nan=True
        )
        assert decoded.events.features_NC[0, 1].tobytes() == np.float32(np.nan).tobytes()
        assert decoded.rejects["row"].to_pylist() == [1, 2, 3, 5]

    def test_a_null_value_is_a_tombstone_of_the_message_key(self) -> None:
        rows = events(stream(good(1)), None, stream(good(1)), key=b"gone")
        assert rows.kind_N.tolist() == [Kind.EVENT, Kind.TOMBSTONE, Kind.EVENT]
        assert rows.key_N2[1].tobytes() == key128(b"gone")
        assert rows.row_N.tolist() == [0, 0, 0]


PLAIN_OR_NOT: dict[str, Callable[[pa.RecordBatch], bytes]] = {
    "plain": stream,
    "lz4": lambda batch: stream(batch, compression="lz4"),
    "zstd": lambda batch: stream(batch, compression="zstd"),
    "dictionary": lambda batch: stream(_with_dictionaries(batch)),
    "dictionary, lz4": lambda batch: stream(_with_dictionaries(batch), compression="lz4"),
    "string views": lambda batch: stream(_with_views(batch)),
    "a list beside": lambda batch: stream(batch.append_column("more", pa.array([[1]] * len(batch)))),
}


def _with_dictionaries(batch: pa.RecordBatch) -> pa.RecordBatch:
    return pa.record_batch({name: batch[name].dictionary_encode() for name in batch.schema.names})


def _with_views(batch: pa.RecordBatch) -> pa.RecordBatch:
    views = {name: batch[name].cast(pa.string_view()) for name in ("id", "color", "size")}
    return pa.record_batch({name: views.get(name, batch[name]) for name in batch.schema.names})


@pytest.mark.parametrize("encode", PLAIN_OR_NOT.values(), ids=PLAIN_OR_NOT)
class TestEncodings:
    def test_all_give_the_same_rows(self, encode: Callable[[pa.RecordBatch], bytes]) -> None:
        batch = good(40, size=[None, "L", "é"] * 13 + ["S"])
        assert _same(decode(encode(batch), stream(batch)).events, decode(stream(batch), stream(batch)).events)

    def test_good_rows_go_the_fast_way_as_long_as_the_message_may_be(
        self, encode: Callable[[pa.RecordBatch], bytes], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.delattr(Definition, "event")
        value = encode(good(9000, ts=pa.array([NOW] * 9000, pa.timestamp("ms"))))
        limit = max(len(value), int(ipc.measured(Blobs.of([value])).bytes_N[0]))
        assert len(events(value, config=flights(max_message_bytes=limit))) == 9000

    def test_a_bad_row_is_one_reject_and_the_others_stay_good(self, encode: Callable[[pa.RecordBatch], bytes]) -> None:
        batch = good(4, x=[1.0, 2.0, None, 4.0])
        decoded = decode(stream(good(1)), encode(batch), stream(good(1)), key=b"k")
        assert decoded.events.offset_N.tolist() == [100, 101, 101, 101, 102]
        assert decoded.events.row_N.tolist() == [0, 0, 1, 3, 0]
        assert decoded.events.features_NC[:, 0].tolist() == [0, 1, 2, 4, 0]
        (reject,) = decoded.rejects.to_pylist()
        shown = {"x": None, "y": -2, "z": 0.25, "color": "red", "size": "L", "id": "key 2", "ts": NOW + 2}
        assert json.loads(reject.pop("value")) == shown
        assert reject.pop("value_bytes") > 0
        assert reject == {
            "offset": 101,
            "row": 2,
            "timestamp": NOW,
            "reason": "column 'x': null, but the column is not nullable",
            "key": b"k",
        }

    def test_text_that_is_not_utf8_spoils_its_row_alone(self, encode: Callable[[pa.RecordBatch], bytes]) -> None:
        value = encode(good(id=["key 0", "key !", "key 2"])).replace(b"key !", b"key \xff")
        assert reasons(value) == [(100, 1, "key 'id': \"b'key \\\\xff'\", not a non-empty string or an integer")]


def _same(left: Events, right: Events) -> bool:
    pairs = [(getattr(left, name), getattr(right, name)) for name in Events.__slots__]
    return all(a is b is None or a.tobytes() == b.tobytes() for a, b in pairs)


class TestEvolution:
    def test_columns_go_by_name_in_any_order_and_new_ones_are_ignored(self) -> None:
        batch = good().append_column("new", pa.array([b"\0", None, b""]))
        reordered = batch.select(batch.schema.names[::-1])
        assert _same(events(stream(reordered)), events(stream(good())))

    @pytest.mark.parametrize("absent", ["z", "size"])
    def test_a_nullable_column_that_is_absent_is_null_in_each_row(self, absent: str) -> None:
        kind = pa.float64() if absent == "z" else pa.utf8()
        assert _same(events(stream(good(**{absent: ...}))), events(stream(good(**{absent: pa.nulls(3, kind)}))))

    def test_all_columns_may_be_absent_or_null_if_rows_can_be_made_all_the_same(self) -> None:
        config = flights(key=None, time=None, numeric=[{"name": "z", "nullable": True}], categorical=[])
        for batch in (pa.record_batch({"other": [1, 2]}), pa.record_batch({"z": pa.nulls(2)})):
            for options in ({}, {"compression": "lz4"}):
                assert np.isnan(events(stream(batch, **options), config=config).features_NC).tolist() == [
                    [True],
                    [True],
                ]

    @pytest.mark.parametrize("absent", ["id", "ts", "x", "color"])
    def test_a_message_without_a_column_that_rows_need_is_one_reject(self, absent: str) -> None:
        assert reason(stream(good(**{absent: ...}))) == f"column {absent!r}: missing in the schema"

    def test_a_message_that_has_a_column_twice_is_one_reject(self) -> None:
        batch = pa.RecordBatch.from_arrays([*good().columns, pa.array([1.0, 2.0, 3.0])], [*good().schema.names, "x"])
        assert reason(stream(batch)) == "column 'x': 2 times in the schema"
        unused = [*good().columns, *good(u=[1, 2, 3], v=[1, 2, 3]).columns[-2:]]
        assert len(events(stream(pa.RecordBatch.from_arrays(unused, [*good().schema.names, "u", "u"])))) == 3

    @pytest.mark.parametrize(
        ("column", "words"),
        [
            (pa.array([1, 2, 3], pa.decimal128(5, 2)), "decimal128(5, 2)"),
            (pa.array([b"1", b"2", b"3"]), "binary"),
            (pa.array([[1], [2], [3]]), "list<item: int64>"),
            (pa.array([1, 2, 3], pa.date32()), "date32[day]"),
            (pa.array([b"1", b"2", b"3"]).dictionary_encode(), "dictionary<values=binary, indices=int32, ordered=0>"),
            (pa.array([b"0" * 16] * 3, pa.uuid()), "extension<arrow.uuid>"),
        ],
    )
    def test_a_message_with_a_column_of_no_usable_type_is_one_reject(self, column: pa.Array, words: str) -> None:
        assert reason(stream(good(x=column))) == f"column 'x': {words}, not numbers, text, booleans or timestamps"

    def test_another_type_that_says_the_same_makes_the_same_rows(self) -> None:
        retyped = good(
            ts=pa.array([NOW, NOW + 1, NOW + 2], pa.timestamp("ms")), x=[0.0, 0.5, 1.0], y=pa.array([0.0, -1, -2])
        )
        assert _same(events(stream(retyped)), events(stream(good())))

    def test_a_column_of_another_type_is_bad_in_each_row(self) -> None:
        assert reasons(stream(good(x=["a", "b", "c"]))) == [
            (100, row, f"column 'x': \"{text}\", not a number") for row, text in enumerate("abc")
        ]


class TestBadMessages:
    @pytest.mark.parametrize("value", [b"", b"ARROW1\0\0", b"{}", b"\xff" * 8, stream(good())[:-200]])
    def test_what_is_no_stream_is_one_reject(self, value: bytes) -> None:
        assert "not an Arrow IPC stream" in reason(value)

    @pytest.mark.parametrize(
        ("true", "false"),
        [
            (struct.pack("<qq", 3, 1), struct.pack("<qq", 3, 2)),  # rows and nulls of z
            (struct.pack("<qq", 3, 1), struct.pack("<qq", 2, 1)),
            (
                struct.pack("<iiii", 0, 5, 10, 15),
                struct.pack("<iiii", 0, 5, 4, 15),
            ),  # where the texts of id begin and end
            (struct.pack("<iiii", 0, 5, 10, 15), struct.pack("<iiii", -5, 5, 10, 15)),
            (struct.pack("<iiii", 0, 5, 10, 15), struct.pack("<iiii", 0, 5, 10, 2**20)),
        ],
    )
    def test_a_batch_that_contradicts_itself_is_one_reject_with_all_batches_of_its_message(
        self, true: bytes, false: bytes
    ) -> None:
        value = stream(good(), good())
        first, second = value.index(true), value.rindex(true)
        assert second > first
        assert "not an Arrow IPC stream" in reason(value[:second] + false + value[second + len(false) :])

    def test_a_stream_may_end_without_its_end_mark(self) -> None:
        assert len(events(stream(good())[:-8])) == 3

    def test_a_message_without_rows_takes_none(self) -> None:
        values = stream(good(0)), stream(good(0), good(0)), pa.ipc.open_stream(stream(good())).schema.serialize()
        decoded = decode(*values)
        assert (len(decoded.events), decoded.rejects.num_rows) == (0, 0)

    def test_what_is_wrong_with_the_record_is_not_wrong_with_each_row(self) -> None:
        assert reasons(stream(good(id=...)), config=flights(key=None), key=None) == [
            (100, 0, "key: the message has no key")
        ]
        assert reasons(stream(good(ts=...)), config=flights(time=None), timestamp=-1) == [
            (100, 0, "time: the Kafka record has no timestamp")
        ]

    def test_a_message_whose_rejects_would_not_fit_a_span_is_one_reject(self) -> None:
        count = 2 * REJECT_BYTES_MAX // 2**10
        batch = good(count, x=[1.0] * count, color=["c" * 2**10] * count, y=[0, *[None] * (count - 1)])
        words = reason(stream(batch), config=flights(max_message_bytes="64MiB"))
        assert words.endswith(
            f" or more of its {count} rows are bad; row 1: column 'y': null, but the column is not nullable"
        )

    def test_what_lies_under_a_null_is_not_looked_at(self) -> None:
        views = pa.array(["L", "", "L"], pa.string_view()).buffers()[1].to_pybytes()
        nowhere = struct.pack("<iiii", 1000, 0, 7, 2**30)  # the length of a text, its first bytes, and where it is
        size = pa.Array.from_buffers(
            pa.string_view(), 3, [pa.py_buffer(b"\5"), pa.py_buffer(views[:16] + nowhere + views[32:])]
        )
        large = bucket(b"L", 16)
        assert events(stream(good(size=size))).features_NC[:, 4].tolist() == [large, 0, large]


class TestLimits:
    def test_a_message_that_is_too_long_is_not_read(self) -> None:
        value = stream(good())
        assert reason(value, config=flights(max_message_bytes=len(value) - 1)) == (
            f"value is {len(value)} bytes, more than max_message_bytes = {len(value) - 1}"
        )

    @pytest.mark.parametrize("compression", ["lz4", "zstd"])
    def test_a_decompression_bomb_is_not_decompressed(self, compression: str) -> None:
        many = 40_000
        value = stream(
            good(many, id=["k"] * many, ts=[NOW] * many, x=[0.0] * many, y=[0] * many), compression=compression
        )
        config = flights(max_message_bytes="512KiB")
        assert len(value) < config.max_message_bytes
        assert reason(value, config=config).startswith("decodes to ")

    def test_a_length_that_no_memory_has_is_not_believed(self) -> None:
        value = stream(good(1000, x=[0.0] * 1000), compression="lz4")
        length = struct.pack("<q", 8000)
        assert length in value
        assert reason(value.replace(length, struct.pack("<q", 2**62))).startswith(f"decodes to {2**40} bytes, more")

    def test_texts_that_dictionaries_or_views_repeat_count_each_time(self) -> None:
        for text in (pa.array(["c" * 1000]), pa.array(["c" * 1000], pa.string_view())):
            color = pa.DictionaryArray.from_arrays(pa.array([0] * 2000, pa.int32()), text)
            assert (
                reason(stream(good(2000, color=color))) == "its text decodes to more than max_message_bytes = 1048576"
            )
        one = pa.array(["c" * 1000], pa.string_view()).buffers()
        views = pa.Array.from_buffers(pa.string_view(), 2000, [None, pa.py_buffer(one[1].to_pybytes() * 2000), one[2]])
        assert reason(stream(good(2000, color=views))) == "its text decodes to more than max_message_bytes = 1048576"

    def test_rows_that_take_no_bytes_are_limited_too(self) -> None:
        config = flights(key=None, time=None, numeric=[{"name": "z", "nullable": True}], categorical=[])
        most = stream(pa.record_batch({"z": pa.nulls(MESSAGE_ROWS_MAX)}))
        more = stream(pa.record_batch({"z": pa.nulls(MESSAGE_ROWS_MAX)}), pa.record_batch({"z": pa.nulls(1)}))
        assert len(events(most, config=config)) == MESSAGE_ROWS_MAX
        assert reason(more, config=config) == f"holds {MESSAGE_ROWS_MAX + 1} rows, more than {MESSAGE_ROWS_MAX}"

    def test_the_rows_of_messages_are_known_before_they_are_decoded(self) -> None:
        values = stream(good(5), good(2)), None, b"no", stream(good(0)), stream(good(9), compression="lz4")
        codec = ArrowCodec(flights(max_message_bytes="1MiB"), BINARY)
        assert codec.rows_N(messages(*values, b"\0" * 2**21)).tolist() == [7, 1, 1, 0, 9, 1]


def _good_values(kind: pa.DataType) -> st.SearchStrategy[Any]:
    """Values that are good in whatever column may be of this type."""
    if kind in TIMES:
        return st.integers(0, NOW) if kind.unit != "s" else st.integers(0, NOW // 1000)
    if pa.types.is_integer(kind):
        return st.integers(0, 1)
    if pa.types.is_floating(kind):
        return st.sampled_from([0.0, 1.0, -0.0])
    return st.sampled_from(["a", "é", "red", "x" * 300])


def _values(kind: pa.DataType) -> st.SearchStrategy[Any]:
    """All values."""
    if pa.types.is_integer(kind):
        low = 0 if pa.types.is_unsigned_integer(kind) else -(2 ** (kind.bit_width - 1))
        return st.integers(low, low + 2**kind.bit_width - 1)
    if kind in TIMES:
        return st.integers(-(2**63), 2**63 - 1)
    if pa.types.is_floating(kind):
        return st.floats(width=kind.bit_width)
    return st.text() if kind in TEXTS else st.booleans()


TIMES = tuple(pa.timestamp(unit) for unit in ("s", "ms", "us", "ns"))
TYPES = (*TEXTS, *INTEGERS, *FLOATS, *TIMES, pa.bool_(), pa.null(), pa.dictionary(pa.uint16(), pa.float32()))


@st.composite
def _columns(draw: st.DrawFn, rows: int, *right: pa.DataType) -> pa.Array:
    """A column that most often is of a right type, with values most of which are good."""
    kind = draw(st.sampled_from([*right * 8, *TYPES] if draw(st.booleans()) else right))
    item = kind.value_type if pa.types.is_dictionary(kind) else kind
    if kind == pa.null():
        return pa.nulls(rows)
    wild = st.none() | _values(item)
    plain = wild if kind == pa.bool_() else _good_values(item)
    values = [draw(wild if draw(st.integers(0, 15)) == 0 else plain) for _ in range(rows)]
    if kind == pa.float16():
        return pa.array([value if value is None else np.float16(value) for value in values], kind)
    if pa.types.is_dictionary(kind):
        return pa.array(values, item).dictionary_encode().cast(kind)
    return pa.array(values, pa.int64()).cast(kind) if kind in TIMES else pa.array(values, kind)


@st.composite
def _streams(draw: st.DrawFn) -> bytes:
    """A message in which rows may be good or bad, of any types and in any encoding."""
    rows = draw(st.integers(1, 5))
    columns = {
        "id": draw(_columns(rows, *TEXTS, *INTEGERS)),
        "ts": draw(_columns(rows, *TIMES, *INTEGERS)),
        "x": draw(_columns(rows, *INTEGERS, *FLOATS, pa.float32())),
        "y": draw(_columns(rows, *INTEGERS, *FLOATS, pa.float32())),
        "z": draw(_columns(rows, *INTEGERS, *FLOATS, pa.float32(), pa.null())),
        "color": draw(_columns(rows, *TEXTS, *INTEGERS)),
        "size": draw(_columns(rows, *TEXTS, *INTEGERS, pa.null())),
        "w": draw(_columns(rows, *INTEGERS, *FLOATS)),
        "late": draw(_columns(rows, pa.bool_(), *INTEGERS, *FLOATS)),
    }
    names = draw(st.permutations(list(columns)))
    batch = pa.record_batch({name: columns[name] for name in names if name != "z" or draw(st.booleans())})
    half = rows // 2
    batches = draw(st.sampled_from([[batch], [batch.slice(0, half), batch.slice(half)]]))
    return stream(*batches, compression=draw(st.sampled_from([None, None, "lz4", "zstd"])))


def by_definition(value: bytes, config: FeaturesConfig, rule: LabelRule) -> Decoded:
    """What the rules for single fields make of each row, as pyarrow reads it."""
    table, definition = pa.ipc.open_stream(value).read_all(), Definition(config, rule)
    columns = {name: _values_of(table[name].combine_chunks()) for name in table.column_names}
    rows, rejects, count = allocate(table.num_rows, config.columns), Rejects(), 0
    for number in range(table.num_rows):
        record = {name: values[number] for name, values in columns.items()}
        try:
            definition.event(record, field_key("id", record), NOW).put(rows, count, 100, number)
            count += 1
        except Reject as reject:
            rejects.add(100, number, NOW, str(reject), b"k", None)
    return Decoded(rows.events(count, labelled=True), rejects.batch())


def _values_of(column: pa.Array) -> list[Any]:
    if not pa.types.is_timestamp(column.type):
        return [float(item) if isinstance(item, np.floating) else item for item in column.to_pylist()]
    up, down = {"s": (1000, 1), "ms": (1, 1), "us": (1, 1000), "ns": (1, 10**6)}[column.type.unit]
    return [count if count is None else count * up // down for count in column.cast(pa.int64()).to_pylist()]


@given(_streams(), st.sampled_from(["binary", "class", "number"]))
@settings(max_examples=400, deadline=None)
def test_each_row_is_what_the_rules_say_to_the_bit(value: bytes, kind: Any) -> None:
    config, rule = flights(weight="w", label="late"), LabelRule(kind=kind, classes=100)
    decoded, expected = decode(value, config=config, rule=rule), by_definition(value, config, rule)
    assert decoded.rejects.select(["row", "reason"]).equals(expected.rejects.select(["row", "reason"]))
    assert _same(decoded.events, expected.events)


def _mutated(value: bytes, chance: random.Random) -> bytes:
    """A stream with some of its bytes changed, above all of its metadata."""
    data = bytearray(value)
    for _ in range(chance.choice([1, 1, 2, 8])):
        size = chance.choice([1, 2, 4, 8])
        at = chance.randrange(min(len(data), chance.choice([2000, len(data)])))
        odd = chance.choice([0, 1, 2**7, 2**15, 2**31 - 1, 2**31, 2**62, 2**63, -1, chance.getrandbits(64)])
        data[at - at % size : at - at % size + size] = (odd % 2 ** (8 * size)).to_bytes(size, "little")
    return bytes(data)


@pytest.mark.parametrize("encode", PLAIN_OR_NOT.values(), ids=PLAIN_OR_NOT)
def test_no_bytes_can_do_harm(encode: Callable[[pa.RecordBatch], bytes]) -> None:
    chance, value = random.Random(5), encode(good(20, size=[None, "L"] * 10))
    outcomes = set()
    for _ in range(500):
        decoded = decode(_mutated(value, chance), value)
        assert np.count_nonzero(decoded.events.offset_N == 101) == 20
        outcomes.add((len(decoded.events) > 20, decoded.rejects.num_rows))
    assert {(False, 1), (True, 0), (True, 1)} <= outcomes
