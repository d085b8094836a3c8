"""Any snapshot can be rebuilt from an older anchor and the ledger, and a rebuild that differs says so."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from consumers.codecs import build_codec
from consumers.inmemory import InMemorySpans
from consumers.record import Command, Partition
from pipeline.config import JobConfig, label_rule
from pipeline.identity import with_settings
from pipeline.ledger import seal, unseal
from pipeline.registry import MLflowRegistry
from pipeline.store import MemoryStore, encode_manifest
from pipeline.verify import Segment, UnverifiableError, Verdict, find_segment, foreign, rebuild
from pipeline.version import candidate
from tests.records import Log, messages_of
from tests.stream import job
from tests.unit.test_train import Trainer, comparable, topics

ROWS = 2000


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> JobConfig:
    return job(
        tmp_path_factory.mktemp("unused") / "state",
        snapshot={"anchor_every": "500 rows"},
        registry={"register_every": "300 rows"},
    )


@pytest.fixture(scope="module")
def store(config: JobConfig) -> MemoryStore:
    """A lineage with a kill, a changed setting and a command in it."""
    store, found = MemoryStore(), topics(config, ROWS)
    first = Trainer(config, store, found)
    list(first.state.apply(Command("accept_bad", 7)))
    first.run(die_after=20, commit_every=3)
    changed = with_settings(config, {"monitor.frozen_after": 1200, "dead_letters.hold_window": 500})
    second = Trainer(changed, store, found)
    second.state.reconfigure(changed)
    second.run(commit_every=3)
    return store


def verify_segment(
    store: MemoryStore, segment: Segment, config: JobConfig, found: dict[Partition, Log] | None = None
) -> Verdict:
    codecs = {
        config.features.topic: build_codec(config.features, label_rule(config.learner)),
        config.labels.topic: build_codec(config.labels, label_rule(config.learner)),
    }
    starts = {partition: start for partition, (start, _) in segment.ranges().items()}
    spans = InMemorySpans(messages_of(found or topics(config, ROWS)), codecs, starts)
    return rebuild(store, segment, segment.job(config.kafka), spans)


def check_promises(learner: dict[str, Any], folder: Path) -> None:
    """Killed and resumed it is the same run, its snapshots are rebuilt, and what is published is what was scored."""
    tables = {"learner": learner, "snapshot": {"anchor_every": "200 rows"}}
    config = job(folder / "state", **tables)
    straight = Trainer(config, MemoryStore(), topics(config, 600)).run()
    store, found = MemoryStore(), topics(config, 600)
    Trainer(config, store, found).run(die_after=8)
    trainer = Trainer(config, store, found)
    assert comparable(trainer.run()) == comparable(straight)

    segment = find_segment(store, store.sequences()[-1])
    assert verify_segment(store, segment, config, found).differences == []

    list(trainer.state.apply(Command("register")))
    trainer.snapshots.commit(trainer.state)
    trainer.snapshots.wait()
    manifest = store.manifest(store.sequences()[-1])
    made = candidate(bytes(store.get(manifest["owed"]["version"])), manifest)
    assert made.tolerance == 0
    registry = MLflowRegistry(f"sqlite:///{folder}/mlflow.db", None, folder / "scratch")
    assert registry.register(made) == 1  # exports, loads back, compares bit for bit


def test_every_snapshot_is_rebuilt_to_the_bit_even_those_that_are_gone(store: MemoryStore, config: JobConfig) -> None:
    newest = store.sequences()[-1]
    anchors = [n for n in store.sequences() if store.manifest(n)["anchor"] is not None]
    assert len(anchors) > 3
    assert newest > len(store.sequences())  # some were collected
    for sequence in range(1, newest + 1):
        segment = find_segment(store, sequence)
        assert segment.anchor["sequence"] == max(anchor for anchor in anchors if anchor < sequence)
        verdict = verify_segment(store, segment, config)
    assert verdict.differences == [], sequence


def test_a_rebuild_names_what_differs(store: MemoryStore, config: JobConfig) -> None:
    segment = find_segment(store, 1)
    command = next(line for line in segment.lines if line[0] == "command")
    command[2] += 1
    verdict = verify_segment(store, segment, config)
    assert verdict.differences == [
        f"state {verdict.state_sha256}, not {segment.state_sha256} (the weights are the same)"
    ]


def test_other_input_gives_other_weights(store: MemoryStore, config: JobConfig) -> None:
    newest = find_segment(store, store.sequences()[-1])
    found = topics(config, ROWS)
    for partition, log in found.items():
        if partition.topic == config.features.topic:
            log.values[-5] = (log.values[-5] or b"").replace(b'"a":', b'"a":1')
    differences = verify_segment(store, newest, config, found).differences
    assert differences[0].startswith("weights ")
    assert any(name.startswith("learner.optimizer.") for name in differences)


def damaged(store: MemoryStore, change: Any) -> MemoryStore:
    copy = MemoryStore()
    copy._blobs, copy._manifests = dict(store._blobs), dict(store._manifests)
    change(copy)
    return copy


def test_without_an_older_anchor_nothing_can_be_rebuilt(store: MemoryStore) -> None:
    def drop_states(copy: MemoryStore) -> None:
        for sequence in copy.sequences()[:-1]:
            copy._blobs.pop(copy.manifest(sequence)["blobs"]["arrays"], None)

    with pytest.raises(UnverifiableError, match="no anchor before snapshot"):
        find_segment(damaged(store, drop_states), store.sequences()[-1])


def test_a_gap_in_the_ledger_is_not_rebuilt_across(store: MemoryStore) -> None:
    newest = store.sequences()[-1]
    manifest = store.manifest(newest)
    ledger = manifest["blobs"]["ledger"]

    def put_gap(copy: MemoryStore) -> None:
        manifest["blobs"]["ledger"] = copy.put([seal([["gap"], *unseal(copy.get(ledger))])])
        copy._manifests[newest] = encode_manifest(manifest)

    with pytest.raises(UnverifiableError, match="damaged"):
        find_segment(damaged(store, put_gap), newest)


def test_a_damaged_ledger_cannot_be_verified(store: MemoryStore) -> None:
    newest = store.sequences()[-1]
    ledger = store.manifest(newest)["blobs"]["ledger"]

    def flip(copy: MemoryStore) -> None:
        copy._blobs[ledger] = copy._blobs[ledger][:-1]

    with pytest.raises(UnverifiableError, match="damaged"):
        find_segment(damaged(store, flip), newest)


def test_a_snapshot_of_another_chain_is_not_found(store: MemoryStore) -> None:
    with pytest.raises(UnverifiableError, match="not in the chain"):
        find_segment(store, store.sequences()[-1] + 1)
    with pytest.raises(UnverifiableError, match="no readable snapshot"):
        find_segment(MemoryStore(), 1)


def test_another_environment_or_code_is_named(store: MemoryStore, config: JobConfig) -> None:
    segment = find_segment(store, store.sequences()[-1])
    assert foreign(segment, config) == ""
    segment.anchor["environment"]["torch"] = "1.0"
    segment.anchor["code_version"] = "0.0.1+old"
    assert "torch 1.0 became" in foreign(segment, config)
    assert "code 0.0.1+old is" in foreign(segment, config)


def test_state_dir_is_not_needed(config: JobConfig) -> None:
    assert not Path(config.job.state_dir).exists()
