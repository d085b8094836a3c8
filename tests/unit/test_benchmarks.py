"""The benchmarks measure what they say: every format holds the same stream, and the report shows what was measured."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from benchmarks import report
from benchmarks.formats import ENCODERS, FORMATS, settings
from benchmarks.naive import DECODERS
from benchmarks.stream import COLUMNS, FIRST_TIME_MS, LOT_ROWS, PARTITIONS, chunks, joined, lots
from consumers.record import Side

ROWS = 20_000


def test_the_topics_hold_every_row_once_and_each_partition_in_the_order_of_event_time() -> None:
    parts = {(side, number): [] for side in Side for number in range(PARTITIONS)}
    for side, partition, events in lots(ROWS):
        parts[side, partition].append(events)
    for side in Side:
        here = [joined(parts[side, number]) for number in range(PARTITIONS)]
        assert sorted(np.concatenate([events["id"] for events in here])) == list(range(ROWS))
        assert all((np.diff(events["ts"]) >= 0).all() for events in here)
    sizes = [[len(events["id"]) for events in some] for some in parts.values()]
    assert all(set(of_one[:-1]) == {LOT_ROWS} and 0 < of_one[-1] <= LOT_ROWS for of_one in sizes)


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_holds_the_stream(name: str) -> None:
    truth = list(chunks(ROWS))
    features_NC = np.concatenate([chunk.features_NC for chunk in truth])
    labels_N = np.concatenate([chunk.labels_N for chunk in truth])
    decoders = DECODERS[name]()
    for side, _, events in lots(ROWS):
        values = ENCODERS[name](events)
        assert len(values) == (1 if name == "arrow" else len(events["id"]))
        rows = [row for value in values for row in decoders[side](value)]
        ids = [key for key, _ in rows]
        assert ids == events["id"].tolist()
        found = np.array([columns for _, columns in rows])
        wanted = features_NC[ids] if side is Side.FEATURES else labels_N[ids]
        assert np.array_equal(found.astype(np.float32), wanted.astype(np.float32))


def test_the_avro_schema_the_descriptor_and_the_layout_name_every_field(tmp_path: Path) -> None:
    from google.protobuf.descriptor_pb2 import FileDescriptorSet

    names = ["id", "ts", *COLUMNS]
    avro = settings("avro", Side.FEATURES, tmp_path)["schema_file"]
    assert [field["name"] for field in json.loads(Path(avro).read_text())["fields"]] == names
    protobuf = settings("protobuf", Side.FEATURES, tmp_path)
    (file,) = FileDescriptorSet.FromString(Path(protobuf["schema_file"]).read_bytes()).file
    message = next(found for found in file.message_type if f"{file.package}.{found.name}" == protobuf["message"])
    assert [field.name for field in message.field] == names
    assert settings("packed", Side.LABELS, tmp_path) == {"layout": ["id:i64", "ts:i64", "y:i64"]}


def test_an_event_is_a_millisecond_after_the_one_before() -> None:
    events = joined([lot.events for lot in lots(3000) if lot.side is Side.FEATURES])
    assert np.array_equal(events["ts"] - FIRST_TIME_MS, events["id"])


def test_the_report_fills_the_tables_that_were_measured_and_leaves_the_others() -> None:
    page = "\n".join(f"<!-- begin {name} -->\nold {name}\n<!-- end -->\n" for name in report.SECTIONS)
    memory = {"json": {"learner_mib": 1234, "readers_mib": 5, "torch_mib": 6, "join_mib": 7, "rest_mib": 8}}
    rendered = report.render(page, {"memory": memory})
    assert "| json | 1,234 | 5 | 6 | 7 | 8 |" in rendered
    assert [name for name in report.SECTIONS if f"old {name}\n" not in rendered] == ["memory"]
    with pytest.raises(ValueError, match="no place for 'memory'"):
        report.render("", {"memory": memory})


def test_the_page_has_a_place_for_every_table() -> None:
    begins = re.findall(r"<!-- begin (.*) -->\n(?:(?!<!-- begin)[\s\S])*?<!-- end -->\n", report.PAGE.read_text())
    assert sorted(begins) == sorted(report.SECTIONS)
