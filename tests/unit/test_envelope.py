"""Envelopes: the event within, what a deletion becomes, and the words for what is missing."""

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from consumers.codecs import Decoded
from consumers.codecs.json import JsonCodec
from consumers.codecs.table import allocate
from consumers.config import FeaturesConfig, LabelRule
from consumers.hashing import key128
from consumers.record import Kind
from tests.codec_ways import NOW, FastJson, SlowJson, messages

BINARY = LabelRule(kind="binary")
ROW = {"id": 7, "ts": NOW, "x": 1.5}


def topic(envelope: str, **changes: Any) -> FeaturesConfig:
    usual = {
        "topic": "t",
        "envelope": envelope,
        "key": "id",
        "time": "ts",
        "numeric": [{"name": "x", "nullable": True}],
    }
    return FeaturesConfig.model_validate(usual | changes)


def decode(codec: JsonCodec, *documents: Any) -> Decoded:
    batch = messages(*(json.dumps(document).encode() for document in documents))
    return codec.decode(batch, allocate(len(batch), codec.columns))


def reason(config: FeaturesConfig, document: Any) -> str:
    decoded = decode(JsonCodec(config, BINARY), document)
    assert len(decoded.events) == 0
    return str(decoded.rejects["reason"][0])


def cloud_event(data: Any, **changes: Any) -> dict[str, Any]:
    return {"specversion": "1.0", "id": "1", "source": "/s", "type": "t", "x": -1, "data": data} | changes


def change(op: Any, *, before: Any = None, after: Any = None, **more: Any) -> dict[str, Any]:
    return {"before": before, "after": after, "source": {"id": -1, "op": "s"}, "op": op, "ts_ms": NOW, **more}


def with_schema(payload: Any) -> dict[str, Any]:
    return {"schema": {"type": "struct", "fields": [{"field": "op"}]}, "payload": payload}


class TestCloudEvents:
    CONFIG = topic("cloudevents")

    def test_the_event_is_the_data(self) -> None:
        events = decode(FastJson(self.CONFIG, BINARY), cloud_event(ROW), cloud_event(ROW | {"x": 2})).events
        assert events.key_N2.tobytes() == key128(b"7") * 2
        assert events.features_NC.tolist() == [[1.5], [2]]

    @pytest.mark.parametrize(
        ("document", "words"),
        [
            (ROW, "envelope: 'specversion': missing, not a string"),
            (cloud_event(ROW, specversion=1), "envelope: 'specversion': 1, not a string"),
            (cloud_event([ROW]), "envelope: 'data': [{"),
            (cloud_event(None), "envelope: 'data': null, not an object"),
            ({"specversion": "1.0", **ROW}, "envelope: 'data': missing, not an object"),
            (cloud_event(ROW | {"x": "1"}), "column 'x': \"1\", not a number"),
        ],
    )
    def test_what_is_missing_is_said(self, document: Any, words: str) -> None:
        assert reason(self.CONFIG, document).startswith(words)


class TestDebezium:
    CONFIG = topic("debezium")

    @pytest.mark.parametrize("op", ["c", "u", "r"])
    @pytest.mark.parametrize("around", [dict, with_schema])
    def test_what_a_row_became_is_the_event(self, op: str, around: Any) -> None:
        documents = [around(change(op, before=ROW | {"x": -1}, after=ROW | {"x": x})) for x in (1.5, 2)]
        events = decode(FastJson(self.CONFIG, BINARY), *documents).events
        assert events.kind_N.tolist() == [Kind.EVENT] * 2
        assert events.key_N2.tobytes() == key128(b"7") * 2
        assert events.features_NC.tolist() == [[1.5], [2]]

    @pytest.mark.parametrize("around", [dict, with_schema])
    @pytest.mark.parametrize(("key", "text"), [("id", b"7"), (None, b"k")])
    def test_a_deletion_is_a_tombstone_of_the_row_that_was(self, around: Any, key: str | None, text: bytes) -> None:
        events = decode(JsonCodec(topic("debezium", key=key), BINARY), around(change("d", before={"id": 7}))).events
        assert events.kind_N.tolist() == [Kind.TOMBSTONE]
        assert events.key_N2.tobytes() == key128(text)
        assert events.event_time_N.tolist() == [NOW]
        assert events.weight_N.tolist() == [0]

    @pytest.mark.parametrize(
        ("document", "words"),
        [
            (ROW, "envelope: 'op': missing, not a string"),
            (change(None, after=ROW), "envelope: 'op': null, not a string"),
            (change("t"), 'envelope: op "t" is no change of a row (c, u, r or d)'),
            (change("m", after=ROW), 'envelope: op "m" is no change of a row (c, u, r or d)'),
            (change("u", before=ROW), "envelope: 'after': null, not an object"),
            (change("d", after=ROW), "envelope: 'before': null, not an object"),
            (change("d", before={"x": 1}), "key 'id': missing, not a non-empty string or an integer"),
            (with_schema(None), "envelope: 'payload': null, not an object"),
            (with_schema([]), "envelope: 'payload': [], not an object"),
            (with_schema({}), "envelope: 'op': missing, not a string"),
        ],
    )
    def test_what_is_missing_is_said(self, document: Any, words: str) -> None:
        assert reason(self.CONFIG, document).startswith(words)


PARTS = st.sampled_from([None, ROW, ROW | {"x": None}, {"id": 7, "op": "c", "data": ROW, "after": ROW}, [ROW], "c", {}])
MEMBERS = st.dictionaries(
    st.sampled_from(["op", "before", "after", "payload", "specversion", "data", "schema", "id", "ts", "x"]),
    st.sampled_from(["c", "d", "u", "t", "", "1.0", 7, "\n"]) | PARTS,
)


@settings(max_examples=500, deadline=None)
@given(st.sampled_from(["cloudevents", "debezium"]), st.sampled_from(["id", None]), MEMBERS, MEMBERS)
def test_both_ways_give_the_same(envelope: str, key: str | None, outer: dict[str, Any], inner: dict[str, Any]) -> None:
    config = topic(envelope, key=key)
    usual = change("c", after=ROW) if envelope == "debezium" else cloud_event(ROW)
    documents = [outer, usual | outer, with_schema(usual | inner), with_schema(usual | inner) | outer]
    codec = JsonCodec(config, BINARY)
    for _ in range(2):
        fast, slow = decode(codec, *documents), decode(SlowJson(config, BINARY), *documents)
        assert fast.rejects.equals(slow.rejects)
        for name in ("key_N2", "event_time_N", "offset_N", "kind_N", "features_NC", "weight_N"):
            np.testing.assert_array_equal(getattr(fast.events, name), getattr(slow.events, name))
