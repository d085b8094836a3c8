"""A table goes through the pipeline in its order: scored before its labels are known, learned after, and measured."""

from __future__ import annotations

import json
import logging
import math
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from consumers.config import LabelRule
from consumers.errors import ConfigError
from consumers.hashing import bucket
from consumers.record import Position, Span, Tick
from consumers.tabular import DECODED_ROWS, TableSource
from pipeline import backtest
from pipeline.backtest import backtest_file, backtest_table
from pipeline.cli import main
from pipeline.config import JobConfig
from pipeline.tables import TableOptions, prepare, read_table
from tests.tiny import TinyLearner

BINARY = LabelRule(kind="binary")


def stream(rows: int, seed: int = 0) -> pa.Table:
    """A label that depends on a number and a category, both now and then missing."""
    rng = np.random.default_rng(seed)
    a, c = rng.normal(size=rows), rng.choice(["x", "y", "z"], rows)
    label = (a + (c == "x") + rng.normal(size=rows) * 0.3 > 0.3).astype(np.int32)
    return pa.table(
        {
            "a": pa.array(np.where(rng.random(rows) < 0.05, np.nan, a), from_pandas=True),
            "c": pa.array(np.where(rng.random(rows) < 0.05, None, c)),
            "label": label,
        }
    )


def options(**changed: Any) -> TableOptions:
    return TableOptions(**{"label": "label", "task": "binary", **changed})


def source(table: pa.Table, span_rows: int) -> TableSource:
    prepared, job = prepare(table, options())
    return TableSource(prepared, job.features, BINARY, span_rows)


def taken(made: TableSource, start: int = 0) -> list[Any]:
    return list(made.entries({made.partition: Position(start)}))


class Recorder(TinyLearner):
    """A learner that says what happens, in turn, to rows by their first column."""

    def __init__(self, job: JobConfig, pretrained: None = None) -> None:
        super().__init__(job)
        self.said: list[tuple[str, list[int]]] = []

    def score(self, features_NC: Any) -> Any:
        self.said.append(("scored", features_NC[:, 0].astype(int).tolist()))
        return super().score(features_NC)

    arrive = score

    def step(self, batch: Any) -> Any:
        self.said.append(("learned", batch.features_BC[: batch.rows, 0].astype(int).tolist()))
        return super().step(batch)


@pytest.mark.parametrize("latency", [1, 4])
def test_rows_are_scored_as_of_their_label_latency_and_then_learned(
    latency: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Recorder] = []
    monkeypatch.setattr(backtest, "Learner", lambda job, **_: made.append(Recorder(job)) or made[0])
    table = pa.table({"n": np.arange(10.0), "label": np.arange(10) % 2})
    result = backtest_table(*prepare(table, options(label_latency=latency)), latency)
    blocks = [list(range(start, min(start + latency, 10))) for start in range(0, 10, latency)]
    assert made[0].said == [step for block in blocks for step in (("scored", block), ("learned", block))]
    assert result.rows == 10


@pytest.mark.parametrize("span_rows", [1, 7, DECODED_ROWS, 3 * DECODED_ROWS])
def test_a_table_is_cut_into_spans_that_hold_each_row_once(span_rows: int) -> None:
    rows = 2 * DECODED_ROWS + 5 if span_rows > 1 else 100
    entries = taken(source(stream(rows), span_rows))
    spans, ticks = entries[::2], entries[1::2]
    assert all(isinstance(tick, Tick) for tick in ticks)
    assert [span.stop for span in spans] == [*range(span_rows, rows, span_rows), rows]
    assert np.concatenate([span.events.event_time_N for span in spans]).tolist() == list(range(rows))
    assert len({key for span in spans for key in map(bytes, span.events.key_N2)}) == rows


def test_a_table_goes_on_where_a_position_is() -> None:
    made = source(stream(100), 8)
    whole, rest = taken(made), taken(made, start=16)
    assert [entry.start for entry in rest if isinstance(entry, Span)] == list(range(16, 100, 8))
    for ours, theirs in zip(rest[::2], whole[4::2], strict=True):
        np.testing.assert_array_equal(ours.events.features_NC, theirs.events.features_NC)


def test_a_bad_row_is_missing_in_its_own_span() -> None:
    table = pa.table({"a": [0.0, 1.0, 2.0, 3.0, 4.0], "label": pa.array([0, None, 1, None, 0])})
    spans = taken(source(table, 2))[::2]
    assert [span.events.event_time_N.tolist() for span in spans] == [[0], [2], [4]]
    assert [span.rejects.column("row").to_pylist() for span in spans] == [[1], [3], []]


def test_columns_are_what_their_types_say() -> None:
    table = pa.table(
        {
            "flag": [True, False, True],
            "whole": pa.array([1, 2, 3], pa.int8()),
            "money": pa.array([Decimal("1.50"), None, Decimal("2.50")]),
            "hole": [1.0, math.nan, 3.0],
            "empty": pa.nulls(3),
            "text": ["x", "", "z"],
            "coded": pa.array(["x", "x", "y"]).dictionary_encode(),
            "day": [1.0, 2.0, 1.0],
            "delay": [9, 9, 9],
            "label": [0, 1, 0],
        }
    )
    prepared, job = prepare(table, options(drop=("delay",), categorical=("day",)))
    nullable = {column.name: column.nullable for column in job.features.numeric}
    assert nullable == {"flag": False, "whole": False, "money": True, "hole": True, "empty": True}
    nullable = {column.name: column.nullable for column in job.features.categorical}
    assert nullable == {"text": True, "coded": False, "day": False}
    (span, _) = taken(TableSource(prepared, job.features, BINARY, 3))
    buckets = job.features.categorical[0].buckets
    np.testing.assert_array_equal(
        span.events.features_NC[:2],
        np.float32(
            [
                [1, 1, 1.5, 1, np.nan, *(bucket(text, buckets) for text in (b"x", b"x", b"1"))],
                [0, 2, np.nan, np.nan, np.nan, 0, *(bucket(text, buckets) for text in (b"x", b"2"))],
            ]
        ),
    )


def test_a_column_may_be_called_as_the_row_number_is() -> None:
    table = pa.table({"row": [5.0, 6.0], "a.b": ["x", "y"], "label": [0, 1]})
    (span, _) = taken(source(table, 2))
    assert span.events.features_NC[:, 0].tolist() == [5, 6]
    assert (span.events.features_NC[:, 1] > 0).all()


@pytest.mark.parametrize(
    ("labels", "task", "classes"),
    [([0, 1, 4], "multiclass", 5), ([0.0, 1.0, 2.0], "multiclass", 3), ([True, False, None], "binary", 2)],
)
def test_labels_are_classes(labels: list[Any], task: str, classes: int) -> None:
    _, job = prepare(pa.table({"a": [1.0, 2.0, 3.0], "label": labels}), options(task=task))
    assert job.learner.classes == classes


@pytest.mark.parametrize(
    ("table", "changed", "message"),
    [
        ({"a": [1.0], "label": [1]}, {"label": "y"}, "--label y: there is no such column, but a, label"),
        ({"a": [1.0], "label": [1]}, {"drop": ("b",)}, "--drop b: there is no such column"),
        ({"a": [1.0], "label": [1]}, {"drop": ("label",)}, "--drop label: this is the --label"),
        ({"a": [1.0], "label": [1]}, {"categorical": ("b",)}, "--categorical b: there is no such column"),
        ({"a": [1.0], "label": [1]}, {"categorical": ("label",)}, "--categorical label: this is the --label"),
        ({"a": [1.0], "label": ["no"]}, {"task": "regression"}, "--label label is text; the task regression takes num"),
        ({"a": [1.0], "label": [b"no"]}, {}, "--label label is binary; the task binary takes text or numbers"),
        (
            {"a": [1.0] * 3, "label": [0, 1, 2]},
            {},
            "label has 3 distinct values; the task binary takes 2; take --task multiclass or regression",
        ),
        ({"a": [1.0] * 3, "label": ["x", "y", "z"]}, {}, "the task binary takes 2; take --task multiclass$"),
        (
            {"a": [1.0] * 4097, "label": np.arange(4097)},
            {"task": "multiclass"},
            "4097 distinct values; the task multiclass takes 4096; take --task regression",
        ),
        ({"a": [1.0], "label": [math.nan]}, {}, "no row has a label"),
        ({"a": [1.0], "label": [""]}, {}, "no row has a label"),
        ({"a": [], "label": []}, {}, "the table has no rows"),
        ({"a": [[1.0]], "label": [1]}, {}, "column 'a' is list<item: double>, neither text nor a number"),
        ({"a": [b"x"], "label": [1]}, {}, "column 'a' is binary, neither text nor a number"),
        ({"a": [0.5], "label": [1]}, {"categorical": ("a",)}, "but it holds fractions"),
        ({"a": [0.5], "label": [1]}, {"drop": ("a",)}, "no column beside --label label and --drop"),
    ],
)
def test_a_table_that_does_not_fit_is_refused(table: dict[str, Any], changed: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message.replace("[", r"\[")):
        prepare(pa.table(table), options(**changed))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"task": "ranking"}, "--task ranking: a task is binary, multiclass, regression"),
        ({"learner": "forest"}, "--learner forest: a learner is "),
        ({"label_latency": 0}, "--label-latency 0"),
        ({"label_latency": 10**6}, "--label-latency 1000000"),
        ({"rows": 0}, "--rows 0"),
    ],
)
def test_options_that_mean_nothing_are_refused(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        options(**changed)


NOON = datetime(2024, 2, 28, 12)


@pytest.mark.parametrize(
    ("labels", "task", "codes", "said"),
    [
        (["yes", None, "no"], "binary", [1, None, 0], "'no' is 0, 'yes' is 1"),
        (["1", "", "0"], "binary", [1, None, 0], "'0' is 0, '1' is 1"),
        ([1, -1, None], "binary", [1, 0, None], "-1 is 0, 1 is 1"),
        ([2.0, 1.0, math.nan], "binary", [1, 0, None], "1.0 is 0, 2.0 is 1"),
        ([Decimal("-0.5"), None, Decimal("1.5")], "binary", [0, None, 1], "-0.5 is 0, 1.5 is 1"),
        ([0.5, -0.0, 0.0, math.inf], "multiclass", [1, 0, 0, None], "0.0 is 0, 0.5 is 1"),
        ([0, 1, 2**63], "multiclass", [0, 1, 2], "0 is 0, 1 is 1, 9223372036854775808 is 2"),
        (list("fedcba"), "multiclass", [5, 4, 3, 2, 1, 0], "'e' is 4, and so on: 6 classes"),
    ],
)
def test_other_labels_are_coded_in_their_order_and_it_is_said(
    labels: list[Any], task: str, codes: list[int | None], said: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    column = pa.array(labels, pa.uint64()) if labels[-1] == 2**63 else pa.array(labels)
    for given in (column, column.dictionary_encode()):
        prepared, job = prepare(pa.table({"a": np.zeros(len(labels)), "label": given}), options(task=task))
        assert prepared["label"].to_pylist() == codes
        assert job.learner.classes == max(code for code in codes if code is not None) + 1
        assert said in caplog.messages[-1]


def test_labels_that_are_classes_already_stay_what_they_are(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    for labels, task in (([1, 7, 300], "multiclass"), ([False, True, None], "binary"), ([1.0, 1.0, 1.0], "binary")):
        prepared, _ = prepare(pa.table({"a": np.zeros(3), "label": labels}), options(task=task))
        assert prepared["label"].to_pylist() == labels
    assert not caplog.messages


@pytest.mark.parametrize(
    ("column", "seconds"),
    [
        (pa.array([None, NOON, NOON + timedelta(milliseconds=1500)]), [None, 0, 1.5]),
        (pa.array([NOON, NOON - timedelta(days=1), None], pa.timestamp("ns", "UTC")), [0, -86400, None]),
        (pa.array([date(2024, 2, 28), date(2024, 3, 1), None]), [0, 2 * 86400, None]),
        (pa.array([date(2024, 2, 28), date(2024, 3, 1), None], pa.date64()), [0, 2 * 86400, None]),
        (pa.array([time(12), time(13), None], pa.time32("ms")), [0, 3600, None]),
        (pa.array([time(12), time(11), None]), [0, -3600, None]),
        (pa.array([timedelta(1), timedelta(seconds=1), None]), [0, -86399, None]),
        (pa.nulls(3, pa.timestamp("us")), [None] * 3),
    ],
)
def test_times_are_seconds_since_the_first(column: pa.Array, seconds: list[float | None]) -> None:
    table = pa.table({"when": column, "label": [0, 1, 0]})
    prepared, job = prepare(table, options())
    assert prepared["when"].to_pylist() == seconds
    assert job.features.numeric[0].nullable
    assert prepare(table, options(categorical=("when",)))[1].features.categorical[0].nullable


def test_what_a_numeric_column_cannot_hold_is_missing_or_the_nearest_and_it_is_said(
    caplog: pytest.LogCaptureFixture,
) -> None:
    table = pa.table(
        {
            "far": [1e300, -1e300, 2.0, None],
            "wild": [math.inf, -math.inf, math.nan, 1.0],
            "hash": pa.array([2**64 - 1, 1, 2, 3], pa.uint64()),
            "label": [0, 1, 0, 1],
        }
    )
    prepared, job = prepare(table, options())
    assert prepared["far"].to_pylist() == [1e19, -1e19, 2.0, None]
    assert prepared["wild"].to_pylist() == [None, None, None, 1.0]
    assert prepared["hash"].to_pylist() == [1e19, 1.0, 2.0, 3.0]
    (span, _) = taken(TableSource(prepared, job.features, BINARY, 4))
    assert len(span.events) == 4
    assert caplog.messages == [
        "column 'far': 2 values are beyond ±1e+19, taken as that",
        "column 'wild': 2 values are infinite, taken as missing",
        "column 'hash': 1 values are beyond ±1e+19, taken as that",
    ]


def test_a_category_may_be_any_integer_of_64_bits() -> None:
    table = pa.table({"u": pa.array([2**64 - 1, 7, None], pa.uint64()), "label": [0, 1, 0]})
    prepared, job = prepare(table, options(categorical=("u",)))
    (span, _) = taken(TableSource(prepared, job.features, BINARY, 3))
    buckets = job.features.categorical[0].buckets
    assert span.events.features_NC[:, 0].tolist() == [
        bucket(b"18446744073709551615", buckets),
        bucket(b"7", buckets),
        0,
    ]


def test_what_differs_among_large_numbers_is_kept(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    small = np.random.default_rng(0).normal(size=100)
    plain = {"small": small, "wide": 1e9 + 1e6 * small, "constant": np.full(100, 3.3), "rounded": 3.3 + 1e-15 * small}
    table = pa.table({**plain, "offset": 1e12 + small, "label": 1e9 + small})
    prepared, _ = prepare(table, options(task="regression"))
    for name, values in plain.items():
        assert prepared[name].to_pylist() == values.tolist()
    for name in ("offset", "label"):
        np.testing.assert_allclose(prepared[name].to_numpy(), small - small[0], atol=1e-3)
    assert [message.partition(":")[0] for message in caplog.messages] == ["--label label", "column 'offset'"]


def test_large_offsets_change_no_metric_of_a_regression(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    a = rng.integers(-9, 9, 2000).astype(np.float64)
    label = 2 * a + rng.integers(-1, 2, 2000)
    a[0] = label[0] = 0.0
    metrics = []
    for offset in (0.0, 1e9):
        pq.write_table(pa.table({"a": a + offset, "label": label + offset}), tmp_path / "line.parquet")
        result = backtest_file(tmp_path / "line.parquet", options(task="regression", label_latency=32))
        metrics.append(result.metrics)
    assert metrics[0] == metrics[1]
    assert metrics[0]["r2"] > 0.8


def test_labels_beyond_what_is_learned_cost_their_own_rows_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    arguments = [str(tmp_path / "far.parquet"), "--label", "label", "--task", "regression", "--label-latency", "20"]
    for labels, rows in (([1e20, *range(39)], 39), ([1e20] * 40, 0)):
        pq.write_table(pa.table({"a": np.arange(40.0), "label": np.array(labels, float)}), tmp_path / "far.parquet")
        assert main(["backtest", *arguments, "-o", "json"]) == (0 if rows else 1)
        out, err = capsys.readouterr()
        document = json.loads(out)
        assert (document["rows"], document["rejected"], document["refused"]) == (rows, 40 - rows, 0)
        assert ("error: no row was learned" in err) == (rows == 0)
        assert f"--label label: {40 - rows} labels are infinite or beyond ±1e+18" in caplog.messages[-1]


def test_a_file_that_is_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text.parquet").write_text("a,label\n1,0\n")
    for path in (tmp_path / "text.parquet", tmp_path / "absent.parquet", tmp_path):
        with pytest.raises(ConfigError, match="cannot be read as Parquet"):
            read_table(path)


def test_only_the_first_rows_of_a_file_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.tables._READ_ROWS", 70)
    pq.write_table(stream(500), tmp_path / "s.parquet", row_group_size=100)
    assert read_table(tmp_path / "s.parquet", 230).equals(stream(500).slice(0, 230))
    assert read_table(tmp_path / "s.parquet").num_rows == read_table(tmp_path / "s.parquet", 1000).num_rows == 500


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "stream.parquet"
    pq.write_table(stream(3000), path)
    return path


def test_what_can_be_learned_is_learned_and_a_seed_gives_the_same_bits(file: Path) -> None:
    first, again, other = (backtest_file(file, options(label_latency=8, learner="mlp", seed=s)) for s in (3, 3, 4))
    assert first.rows == 3000
    assert first.metrics.keys() == {"accuracy", "kappa", "kappa_temporal", "auc", "logloss", "calibration_error"}
    assert first.metrics["auc"] > 0.85
    assert first.metrics == again.metrics != other.metrics


@pytest.mark.parametrize("latency", [1, 8])
def test_a_label_that_nobody_can_know_is_not_known(tmp_path: Path, latency: int) -> None:
    rng = np.random.default_rng(0)
    pq.write_table(pa.table({"a": rng.normal(size=2000), "label": rng.integers(0, 2, 2000)}), tmp_path / "coin.parquet")
    metrics = backtest_file(tmp_path / "coin.parquet", options(label_latency=latency)).metrics
    assert abs(metrics["accuracy"] - 0.5) < 0.045, "four standard deviations"
    assert abs(metrics["auc"] - 0.5) < 0.055


def test_a_regression_has_its_own_metrics(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    a = rng.normal(size=4000)
    pq.write_table(pa.table({"a": a, "label": 2 * a}), tmp_path / "line.parquet")
    result = backtest_file(tmp_path / "line.parquet", options(task="regression", label_latency=8, learner="mlp"))
    assert result.metrics.keys() == {"mae", "rmse", "r2"}
    assert result.metrics["r2"] > 0.8


def test_bad_rows_are_left_out_and_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    labels = [1, None] * 20
    pq.write_table(pa.table({"a": np.arange(40.0), "label": pa.array(labels)}), tmp_path / "holes.parquet")
    assert main(["backtest", str(tmp_path / "holes.parquet"), "--label", "label", "--task", "binary"]) == 0
    out, err = capsys.readouterr()
    assert out.startswith("20 rows, ")
    assert "20 rows are bad and were left out: label 'label': null, not true, false, 0 or 1" in err


def test_bad_rows_may_be_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backtest, "Learner", Recorder)
    labels = pa.array([1] * 10 + [None] * 12_000)  # a job would hold
    result = backtest_table(*prepare(pa.table({"a": np.zeros(len(labels)), "label": labels}), options()), 1000)
    assert (result.rows, result.rejected, len(result.reasons)) == (10, 12_000, 1)


def test_rows_that_are_good_are_learned_beside_many_that_are_bad(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backtest, "Learner", Recorder)
    rows = DECODED_ROWS + 1000
    labels = pa.array([1 if row % 2 else None for row in range(rows)])
    wide = pa.table({**{f"column {n}": np.arange(rows) / 7 for n in range(30)}, "label": labels})
    prepared, job = prepare(wide, options())
    result = backtest_table(prepared, job, 1000)
    assert (result.rows, result.rejected) == (rows // 2, rows // 2)
    spans = taken(TableSource(prepared, job.features, BINARY, 1000))[::2]
    assert all(len(span.events) == span.rejects.num_rows == span.messages // 2 for span in spans)
    assert len(result.reasons) == 1


def test_a_stretch_without_a_label_fails(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("pipeline.cli.backtest._of_topics", lambda _: backtest.Result())
    assert main(["backtest", "-c", "job.toml", "--from", "0:0", "--to", "0:0"]) == 1
    assert "error: no row was learned: the stretch has none with a label" in capsys.readouterr().err


def test_names_may_have_spaces_between_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pq.write_table(pa.table({"a": [1.0], "b": [1.0], "c": [1.0], "label": [1]}), tmp_path / "one.parquet")
    arguments = [str(tmp_path / "one.parquet"), "--label", "label", "--task", "binary", "--drop", "a, b,, c "]
    assert main(["backtest", *arguments]) == 2
    assert "no column beside --label label and --drop" in capsys.readouterr().err


def test_a_custom_task_is_measured_as_what_it_is(file: Path) -> None:
    learner = "examples.custom_task:GatedTask"
    assert backtest_file(file, options(label_latency=16, rows=500, learner=learner)).rows == 500
    with pytest.raises(ConfigError, match="is for the task binary, not regression"):
        backtest_file(file, options(task="regression", learner=learner))


def test_options_go_with_a_file_or_with_a_job(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    job = ["-c", "job.toml", "--from", "0:0", "--to", "0:9"]
    for arguments, message in (
        ([str(file), "--label", "label"], "a file needs --label and --task"),
        ([str(file), "--from", "0:0"], "--from goes with -c job.toml"),
        ([str(file), "--set", "job.seed=1"], "--set goes with -c job.toml"),
        (["-c", "job.toml", "--from", "0:0"], "-c needs --from and --to"),
        ([*job, "--rows", "10"], "--rows goes with a file"),
        ([*job, "--label-latency", "10"], "--label-latency goes with a file"),
    ):
        assert main(["backtest", *arguments]) == 2
        assert message in capsys.readouterr().err
    for arguments in ([], [str(file), *job]):
        with pytest.raises(SystemExit, match="2"):
            main(["backtest", *arguments])


def test_alarms_are_all_there_though_a_monitor_forgets_the_oldest(
    file: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    rng = np.random.default_rng(0)
    shift = np.repeat([0.0, 9.0, 0.0, 9.0], 10_000)
    pq.write_table(pa.table({"a": rng.normal(size=40_000) + shift, "label": rng.integers(0, 2, 40_000)}), file)
    monkeypatch.setattr("pipeline.monitor.ALARMS_MAX", 1)
    document = backtest_file(file, options(label_latency=1000, learner="mlp")).document()
    features = [alarm for alarm in document["alarms"] if alarm["family"] == "feature"]
    assert [(alarm["row"], alarm["feature"]) for alarm in features] == [(10_112, "a"), (20_096, "a"), (30_080, "a")]
    assert all(alarm.keys() == {"row", "since_row", "family", "feature", "effect", "p"} for alarm in document["alarms"])
