"""The benchmarks measure what they say: every format holds the same stream, and the report shows what was measured."""

from __future__ import annotations

import json
import re
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from benchmarks import delayed, drift, quality, report, scaling, spread
from benchmarks.formats import ENCODERS, FORMATS, settings
from benchmarks.naive import DECODERS
from benchmarks.stream import COLUMNS, FIRST_TIME_MS, LOT_ROWS, PARTITIONS, chunks, joined, lots
from benchmarks.topics import Topics
from consumers.record import Events, Side, Span
from pipeline.drift import Alarm
from pipeline.jobfile import load

ROWS = 20_000


@pytest.mark.parametrize("count", [1, PARTITIONS, 16])
def test_the_topics_hold_every_row_once_and_each_partition_in_the_order_of_event_time(count: int) -> None:
    parts = {(side, number): [] for side in Side for number in range(count)}
    for side, partition, events in lots(ROWS, count):
        parts[side, partition].append(events)
    for side in Side:
        here = [joined(parts[side, number]) for number in range(count)]
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
    sections = report.PAGES["performance.md"]
    page = "\n".join(f"<!-- begin {name} -->\nold {name}\n<!-- end -->\n" for name in sections)
    memory = {"json": {"learner_mib": 1234, "readers_mib": 5, "torch_mib": 6, "join_mib": 7, "rest_mib": 8}}
    rendered = report.render("performance.md", page, {"memory": memory})
    assert "| json | 1,234 | 5 | 6 | 7 | 8 |" in rendered
    assert [name for name in sections if f"old {name}\n" not in rendered] == ["memory"]
    with pytest.raises(ValueError, match="no place for 'memory'"):
        report.render("performance.md", "", {"memory": memory})


@pytest.mark.parametrize("name", report.PAGES)
def test_a_page_has_a_place_for_every_table(name: str) -> None:
    page = (report.DOCS / name).read_text()
    begins = re.findall(r"<!-- begin (.*) -->\n(?:(?!<!-- begin)[\s\S])*?<!-- end -->\n", page)
    assert sorted(begins) == sorted(report.PAGES[name])


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with two small streams, one of which must reach something, and digits that one pixel tells apart."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, 3000))
    digit = rng.integers(0, 2, 40)
    tables = {
        "elec2": ("binary classification", {"x": x, "day": rng.integers(1, 8, 3000), "label": (x > 0).astype(int)}),
        "bike": ("regression", {"ts": np.arange(3000), "x": x, "label": x + 0.1 * y}),
        "digits": (
            "multiclass classification",
            {**{f"p{n}": rng.random(40) for n in range(3)}, "p3": digit, "label": digit},
        ),
    }
    manifest = []
    for name, (task, columns) in tables.items():
        pq.write_table(pa.table(columns), tmp_path / f"{name}.parquet")
        categorical = ["day"] if name == "elec2" else []
        entry = {"name": name, "file": f"{name}.parquet", "task": task, "label": "label", "categorical": categorical}
        manifest.append(entry | {"classes": 2})
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    monkeypatch.setattr(quality, "DATA", tmp_path)
    return tmp_path


def measured(*arguments: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr("sys.argv", ["quality", *arguments, "--learner", "mlp"])
    quality.main()
    return capsys.readouterr().out


def test_quality_is_measured_on_the_streams_there_are_and_says_what_it_skipped(
    data: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ["--streams", "elec2", "bike", "sea_50k", "plasticity", "--latency", "32", "--seeds", "2"]
    arguments += ["--rows", "2000", "--tasks", "20"]
    out = measured(*arguments, "-o", "json", capsys=capsys, monkeypatch=monkeypatch)
    results = json.loads(out)
    elec2, bike = results["streams"]
    assert (elec2["stream"], elec2["rows"], elec2["metric"], elec2["floor"]) == ("elec2", 2000, "accuracy", 0.82)
    assert elec2["reached"] == (elec2["metrics"]["accuracy"] >= 0.82)
    assert elec2["metrics"]["accuracy"] > 0.7
    assert "floor" not in bike
    assert 0 < bike["metrics"]["r2"] < 1
    assert quality.find_streams(data, ["bike"])["bike"].options["drop"] == ("ts",)
    assert results["rows_per_s"]["median"] == elec2["rows_per_s"]
    first, last = results["plasticity"]["by_ten_tasks"]
    assert results["plasticity"]["lost"] == first - last
    assert 0 < first <= 1
    assert results["skipped"] == [f"sea_50k: not in {data}", "rivals: name their interpreter with --python"]
    tables = report.quality(results)
    assert "| elec2 | 32 | accuracy | 0.8200 | " in tables
    assert "| tasks 1 to 10 | tasks 11 to 20 |" in tables


def test_quality_without_any_data_skips_everything(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quality, "DATA", tmp_path)
    out = measured(capsys=capsys, monkeypatch=monkeypatch)
    assert out.count("skipped: ") == len(quality.GATES) + 2


def test_accuracy_of_tens_of_tasks_comes_from_their_own_rows(
    data: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = [{"step": step, "values": {"live/accuracy": share}} for step, share in ((400, 0.5), (800, 0.7))]
    monkeypatch.setattr(quality, "backtest_table", lambda *_: SimpleNamespace(points=steps))
    arguments = ["--streams", "plasticity", "--tasks", "20", "--seeds", "1", "-o", "json"]
    found = json.loads(measured(*arguments, capsys=capsys, monkeypatch=monkeypatch))["plasticity"]
    assert found["by_ten_tasks"] == pytest.approx([0.5, 0.9])
    assert found["reached"], "it got better"


def test_the_report_puts_rivals_beside_the_learner() -> None:
    ours = {"stream": "elec2", "latency": 32, "metrics": {"accuracy": 0.84}, "rows_per_s": 20_000.0}
    theirs = {**ours, "metrics": {"accuracy": 0.79}, "rows_per_s": 300.0, "rival": "river_forest"}
    written = report.quality_rivals({"streams": [ours], "rivals": [theirs]})
    assert written.splitlines()[0].endswith("| Evertrain | river: adaptive random forest |")
    assert written.splitlines()[-1] == "| elec2 | 32 | accuracy | 0.8400 (20,000/s) | 0.7900 (300/s) |"


GENERATOR = """
import numpy as np

KINDS = ["none", "abrupt_concept"]


def make(kind, seed):
    rng = np.random.default_rng(seed)
    rows, point = 8000, 6000
    x, c = rng.normal(size=(rows, 2)).astype(np.float32), rng.integers(0, 5, rows).astype(np.int32)
    y = x[:, 0] + 0.3 * rng.normal(size=rows) > 0
    changed = kind != "none"
    if changed:
        y[point:] = ~y[point:]
    what = ["concept"] if changed else ["none"]
    return {"X": x, "c": c, "y": y.astype(np.int32), "points": [point] if changed else [], "what": what}
"""


def test_drift_is_found_where_it_is_and_nowhere_else(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "gen_drift.py").write_text(GENERATOR)
    monkeypatch.setattr(drift, "DATA", tmp_path)
    monkeypatch.setattr("sys.argv", ["drift", "--seeds", "0", "2", "--learner", "mlp", "-o", "json"])
    drift.main()
    results = json.loads(capsys.readouterr().out)
    steady, abrupt = results["kinds"]
    assert (steady["changes"], steady["found"], steady["families"]) == (0, None, {})
    assert (abrupt["changes"], abrupt["found"], abrupt["named"]) == (2, 1, 1)
    assert 0 < abrupt["median_rows"] < 200
    assert (abrupt["floor"], abrupt["within_rows"]) == (0.95, 1000)
    assert results["false_per_100k"]["reached"]
    assert results["named"]["reached"]
    assert results["skipped"] == [f"{name}: not in {tmp_path}" for name in drift.FILES]
    assert "| abrupt_concept | 2 | 100.0 % | 95.0 % | 1,000 | " in report.drift(results)


def test_an_alarm_counts_for_the_change_before_it_until_the_next_and_else_it_is_false() -> None:
    alarms = [Alarm("concept", None, row, 0, row, 0, 0.1, 1e-9, "") for row in (500, 1020, 1030, 1300, 4000)]
    tally = drift.Tally()
    tally.add(alarms, [1000, 1200, 2000], 200, {"concept"}, 10_000)
    line = tally.line()
    assert (line["changes"], line["median_rows"], line["named"]) == (3, 60, 1)
    assert line["found"] == pytest.approx(2 / 3)
    assert line["false_per_100k"] == 20
    assert line["families"] == {"concept": 2, "false concept": 2}


def test_drift_without_any_data_skips_everything(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(drift, "DATA", tmp_path)
    monkeypatch.setattr("sys.argv", ["drift"])
    drift.main()
    assert capsys.readouterr().out.count("skipped: ") == 1 + len(drift.FILES)


def test_late_labels_are_measured_between_an_oracle_and_one_that_never_learns_better(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    rng, rows = np.random.default_rng(0), 6000
    x = rng.normal(size=rows)
    columns = {"x": x, "ts": np.arange(rows) * 400, "label": (x > 1).astype(int)}  # 28 days
    pq.write_table(pa.table(columns), tmp_path / "fraud.parquet")
    entry = {"name": delayed.FRAUD, "file": "fraud.parquet", "task": "binary", "label": "label", "categorical": []}
    (tmp_path / "manifest.json").write_text(json.dumps([entry | {"classes": 2}]))
    monkeypatch.setattr(delayed, "DATA", tmp_path)
    arguments = ["delayed", "--streams", delayed.FRAUD, "elec2", "--seeds", "1", "--learner", "mlp"]
    monkeypatch.setattr("sys.argv", [*arguments, "-o", "json"])
    delayed.main()
    results = json.loads(capsys.readouterr().out)
    found = results["streams"][delayed.FRAUD]
    assert found["oracle"] > 0.9 > found["naive"]
    assert list(found["policies"]) == list(delayed.POLICIES)
    for policy, auc in found["policies"].items():
        assert found["recovered"][policy] == pytest.approx((auc - found["naive"]) / found["gap"])
    assert found["reached"] == (found["recovered"]["wait"] >= 0.35)
    assert results["skipped"] == [f"elec2: not in {tmp_path}"]
    assert f"| {delayed.FRAUD} | 6,000 | {found['oracle']:.4f} | " in report.delayed(results)


def test_a_label_comes_with_the_span_in_which_it_is_due_and_those_after_the_window_never() -> None:
    times, delays = np.arange(600) * 10, np.where(np.arange(600) % 3, 1000, 10**6)
    key_N2 = np.stack([np.arange(600)] * 2, axis=1).astype(np.uint64)
    columns = {"offset_N": times, "row_N": times.astype(np.int32), "kind_N": np.zeros(600, np.uint8)}
    ones_N, labels_N = np.ones(600, np.float32), (np.arange(600) % 2).astype(np.float32)
    events = Events(key_N2, times, features_NC=ones_N[:, None], weight_N=ones_N, label_N=labels_N, **columns)
    job = SimpleNamespace(features=SimpleNamespace(topic="f"))
    fed = delayed.Feed(job, events, delays, window_ms=5000)
    reached, told = -1, []
    for entry in fed.entries(labels_N, delays):
        if isinstance(entry, Span) and entry.partition == delayed.LABELS:
            told += entry.events.key_N2[:, 0].tolist()
            assert (entry.events.event_time_N <= reached).all()
            assert (entry.events.label_N == labels_N[entry.events.key_N2[:, 0].astype(int)]).all()
        elif isinstance(entry, Span):
            reached = int(entry.events.event_time_N[-1])
    assert told == [row for row in range(500) if row % 3]


def scaled(*arguments: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.setattr("sys.argv", ["scaling", *arguments, "--rows", "2000", "--repeat", "3", "-o", "json"])
    scaling.main()
    return json.loads(capsys.readouterr().out)


def test_more_columns_are_all_joined_and_learned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scaling, "FEATURES_WAITING", 2000)
    few, many = (scaling.MEASURES["features"](columns, 10_000) for columns in (8, 128))
    assert 0 < few["join"] < few["all"]
    assert many["join_mib"] > 2 * few["join_mib"]


def test_partitions_and_readers_take_turns_and_each_is_measured_on_topics_of_its_own(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    turns: list[tuple[int, int, int]] = []

    def way_in(topics: Topics, rows: int, readers: int) -> float:
        turns.append((topics.partitions, readers, rows))
        return 1000.0 * topics.partitions * readers + (len(turns) - 2) // 3

    made: list[str] = []

    def make_topics(_kafka: object, name: str, rows: int, *, prefix: str, partitions: int = PARTITIONS) -> Topics:
        made.append(prefix)
        return Topics("nowhere", name, prefix, partitions)

    monkeypatch.setattr(spread, "broker", nullcontext)
    monkeypatch.setattr(spread, "make_topics", make_topics)
    monkeypatch.setattr(spread, "way_in", way_in)
    sizes = ["--waiting", "--spans", "--features", "--partitions", "1", "4", "--readers", "1", "2"]
    results = scaled(*sizes, capsys=capsys, monkeypatch=monkeypatch)
    assert len(set(made)) == len(made) == 3, "warm-up, and one for each number of partitions"
    assert turns[1:] == [(1, 1, 2000), (4, 1, 2000), (4, 2, 2000)] * 3
    assert list(results) == ["partitions", "readers"], "no sizes, no table"
    (partitions,), (readers,) = (results[name].values() for name in results)
    assert [(line["partitions"], line["times_the_first"]) for line in partitions] == [(1, 1), (4, 4)]
    assert [(line["readers"], line["rows_a_second"]) for line in readers] == [(1, 4001), (2, 8001)]
    assert [readers[0][key] for key in ("slowest", "fastest")] == [4000, 4002]


def test_a_job_file_asks_for_its_readers(tmp_path: Path) -> None:
    for readers in (1, 2):
        job = load(Topics("nowhere:9092", "json", "benchmark").write_job(tmp_path, readers=readers))
        assert job.stream.readers == readers
