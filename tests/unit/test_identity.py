"""Which settings may change between two starts, and what becomes of a change."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest

from consumers.errors import ConfigError
from consumers.inmemory import InMemorySpans
from pipeline.config import JobConfig
from pipeline.identity import changes, check_identity, environment, recorded, with_recorded, with_settings
from pipeline.ledger import unseal
from pipeline.run import Start
from pipeline.verify import find_segment, rebuild
from tests.lives import Story, codecs
from tests.stream import job
from tests.tiny import TinyLearner

FREE, RECORDED, IDENTITY = "free", "recorded", "identity"

CLASSES = {
    "job": {"name": IDENTITY, "state_dir": FREE, "seed": IDENTITY},
    "kafka": {"bootstrap.servers": FREE},
    "features": {
        "topic": IDENTITY,
        "format": IDENTITY,
        "envelope": IDENTITY,
        "key": IDENTITY,
        "time": IDENTITY,
        "start": FREE,
        "max_skew": IDENTITY,
        "max_message_bytes": IDENTITY,
        "schema_file": IDENTITY,
        "message": IDENTITY,
        "schema_registry": FREE,
        "layout": IDENTITY,
        "numeric": IDENTITY,
        "categorical": IDENTITY,
        "label": IDENTITY,
        "weight": IDENTITY,
    },
    "labels": {
        "topic": IDENTITY,
        "format": IDENTITY,
        "envelope": IDENTITY,
        "key": IDENTITY,
        "time": IDENTITY,
        "start": FREE,
        "max_skew": IDENTITY,
        "max_message_bytes": IDENTITY,
        "schema_file": IDENTITY,
        "message": IDENTITY,
        "schema_registry": FREE,
        "layout": IDENTITY,
        "column": IDENTITY,
    },
    "join": {
        "window": IDENTITY,
        "on_expiry": IDENTITY,
        "negative_after": IDENTITY,
        "keep_negatives": IDENTITY,
        "memory": RECORDED,
        "disk": RECORDED,
        "slab_rows": IDENTITY,
    },
    "stream": {
        "span": IDENTITY,
        "slots": FREE,
        "readers": FREE,
        "reader_memory": FREE,
        "linger": FREE,
        "idle_after": FREE,
        "labels_may_idle": FREE,
    },
    "learner": {
        "kind": IDENTITY,
        "task": IDENTITY,
        "classes": IDENTITY,
        "batch_size": IDENTITY,
        "batch_wait": FREE,
        "hidden": IDENTITY,
        "embedding": IDENTITY,
        "learning_rate": IDENTITY,
        "device": FREE,
        "threads": FREE,
        "precision": IDENTITY,
        "compile": IDENTITY,
        "cuda_graphs": IDENTITY,
        "pretrained": IDENTITY,
        "freeze": IDENTITY,
        "average": IDENTITY,
        "epochs": IDENTITY,
        "gradient_norm_max": IDENTITY,
        "on_exceed": IDENTITY,
        "anchor": IDENTITY,
        "replay": IDENTITY,
    },
    "monitor": {
        "every": RECORDED,  # the course of the run has a point at each
        "window": IDENTITY,
        "frozen_after": RECORDED,
        "compare_after": RECORDED,
        "drift": IDENTITY,
        "reference_rows": IDENTITY,
        "psi_threshold": IDENTITY,
        "adwin_delta": IDENTITY,
        "drift_p": IDENTITY,
        "settle_rows": IDENTITY,
    },
    "on_drift": {
        "version": RECORDED,
        "hold_promotion": RECORDED,
        "hold_rows": RECORDED,
        "rewarm": RECORDED,
        "restart_metrics": RECORDED,
        "webhook": FREE,
    },
    "snapshot": {"every": FREE, "keep": FREE, "anchor_every": FREE, "owed_max": FREE, "mirror": FREE},
    "registry": {
        "tracking_uri": FREE,
        "register_every": RECORDED,
        "artifact_location": FREE,
        "release_timeout": FREE,
    },
    "dead_letters": {"topic": FREE, "hold_share": RECORDED, "hold_window": RECORDED},
}
"""Of every key: whoever adds one decides. Free: no bit of S depends on it. Recorded: S changes from there on."""

KEYS = [(table, key, kind) for table, keys in CLASSES.items() for key, kind in keys.items()]


@pytest.fixture
def config(tmp_path: Path) -> JobConfig:
    return job(tmp_path / "state")


def test_every_key_of_the_job_file_is_decided(config: JobConfig) -> None:
    document = config.model_dump(mode="json")
    assert {table: set(keys) for table, keys in document.items()} == {t: set(keys) for t, keys in CLASSES.items()}


@pytest.mark.parametrize(("table", "key", "kind"), KEYS, ids=lambda value: value)
def test_a_change_is_allowed_refused_or_recorded(config: JobConfig, table: str, key: str, kind: str) -> None:
    saved = config.model_dump(mode="json")
    saved[table][key] = "another"
    if kind is IDENTITY:
        with pytest.raises(ConfigError, match=rf"{table}\.{key} = .* made with 'another'; keep that value, or begin"):
            check_identity(config, saved)
    else:
        check_identity(config, saved)
    assert (f"{table}.{key}" in recorded(config)) == (kind is RECORDED)


def test_leaving_a_table_out_is_a_change_too(config: JobConfig) -> None:
    saved = config.model_dump(mode="json")
    saved["labels"] = None
    with pytest.raises(ConfigError, match=r"labels\."):
        check_identity(config, saved)


def test_with_the_recorded_settings_of_a_snapshot_the_rest_stays(config: JobConfig) -> None:
    other = with_settings(config, {"join.memory": 2**25, "registry.register_every": "1h", "learner.threads": 2})
    again = with_recorded(other, config.model_dump(mode="json"))
    assert recorded(again) == recorded(config)
    assert again.learner.threads == 2


@pytest.mark.parametrize(
    ("cores", "readers", "hidden", "threads"),
    [
        (2, 1, [256, 128], 1),
        (16, 2, [16], 1),
        (1, 4, [4096, 4096], 1),
        (16, 2, [256, 128], 2),
        (16, 2, [4096, 4096], 15),
        (16, 1, [4096, 4096], 15),
    ],
)
def test_torch_gets_all_cores_but_one_as_far_as_the_model_has_work_for_them_however_many_readers_there_are(
    config: JobConfig, monkeypatch: pytest.MonkeyPatch, cores: int, readers: int, hidden: list[int], threads: int
) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(cores)))
    settings = {"learner.hidden": hidden, "learner.batch_size": 1024, "stream.readers": readers}
    automatic = with_settings(config, settings | {"learner.threads": "auto"})
    assert environment(automatic)["threads"] == str(threads)
    assert environment(with_settings(automatic, {"learner.threads": 3}))["threads"] == "3"


def test_the_file_of_a_task_of_ones_own_is_part_of_the_environment(
    config: JobConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "task" not in environment(config)
    monkeypatch.syspath_prepend(tmp_path)
    source, own = tmp_path / "own_task.py", with_settings(config, {"learner.task": "own_task:Task"})
    source.write_text("class Task: loss = 1")
    before = environment(own)
    source.write_text("class Task: loss = 2")
    assert changes(environment(own), before).startswith("task ")


def test_what_changed_in_an_environment_is_named() -> None:
    assert changes({"torch": "2", "cpu": "x"}, {"torch": "1", "cpu": "x"}) == "torch 1 became 2"
    assert changes({"torch": "2"}, {"torch": "2", "mlflow": "3"}) == "mlflow 3 became None"
    assert changes({}, {}) == ""


@pytest.fixture
def story(tmp_path: Path) -> Story:
    story = Story(tmp_path)
    story.live(entries=6)
    return story


def lines_of_the_newest(story: Story) -> list[list[Any]]:
    return list(unseal(story.store.get(story.newest()["blobs"]["ledger"])))


def test_a_changed_identity_ends_the_start_before_anything_is_written(story: Story) -> None:
    before = story.newest()
    story.job = with_settings(story.job, {"stream.span": 64})
    with pytest.raises(ConfigError, match=r"stream\.span = 64, .* made with 128"):
        story.live()
    assert story.newest() == before


def test_a_recorded_change_is_a_line_of_the_ledger_and_a_rebuild_follows_it(
    story: Story, monkeypatch: pytest.MonkeyPatch
) -> None:
    changed = {"monitor.frozen_after": 700, "monitor.every": "100 rows", "dead_letters.hold_window": 500}
    story.job = with_settings(story.job, changed)
    story.live(entries=0)
    assert lines_of_the_newest(story)[0] == ["config", recorded(story.job)]
    newest = story.live()

    monkeypatch.setattr("pipeline.verify.Learner", TinyLearner)
    segment = find_segment(story.store, newest["sequence"])
    assert segment.anchor["sequence"] == 0
    starts = {partition: start for partition, (start, _) in segment.ranges().items()}
    spans = InMemorySpans(story.found, codecs(story.job), starts)
    assert rebuild(story.store, segment, segment.job(story.job.kafka), spans).differences == []
    line = next(line for line in segment.lines if line[0] == "config")
    line[1]["monitor.frozen_after"] = 900
    spans = InMemorySpans(story.found, codecs(story.job), starts)
    assert rebuild(story.store, segment, segment.job(story.job.kafka), spans).differences


def test_a_free_change_is_no_line_but_the_next_snapshot_knows_it(story: Story) -> None:
    before = story.newest()
    story.job = with_settings(story.job, {"dead_letters.topic": "elsewhere"})
    story.live(entries=0)
    assert story.newest()["config"]["dead_letters"]["topic"] == "elsewhere"  # the releaser goes by it
    assert [line[0] for line in lines_of_the_newest(story)] == ["snapshot"]
    assert story.newest()["state_sha256"] == before["state_sha256"]


def test_nothing_changed_nothing_is_committed(story: Story) -> None:
    before = story.newest()
    story.live(entries=0)
    assert story.newest() == before


def test_a_changed_environment_is_a_warning_and_a_line(story: Story, caplog: pytest.LogCaptureFixture) -> None:
    story.job = with_settings(story.job, {"learner.threads": 2})
    with caplog.at_level(logging.WARNING):
        story.live(entries=0)
    assert "the environment changed: threads 1 became 2" in caplog.text
    kind, environment = lines_of_the_newest(story)[0]
    assert (kind, environment["threads"]) == ("environment", "2")


def test_a_changed_environment_is_refused_if_the_user_is_strict(story: Story) -> None:
    before = story.newest()
    story.job = with_settings(story.job, {"learner.threads": 2})
    with pytest.raises(ConfigError, match=rf"since snapshot {before['snapshot_id']}: threads 1 became 2") as caught:
        story.live(Start(strict_environment=True))
    assert caught.value.exit_code == 2
    assert story.newest() == before
