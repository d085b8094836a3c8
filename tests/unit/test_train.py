"""The whole of S over a source in memory: killed and resumed is the same run, and the counts balance."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from threading import Event
from typing import Any

import orjson
import pyarrow as pa
import pytest

from consumers.codecs import build_codec
from consumers.errors import BalanceError, ConfigError, TooMuchBadInput
from consumers.inmemory import InMemorySource
from consumers.record import NEVER, Added, Command, Float32s, Lost, Partition, Side, Span, Wait
from pipeline.config import JobConfig, label_rule
from pipeline.learner import Learner
from pipeline.ledger import unseal
from pipeline.snapshot import Lineage, Snapshots
from pipeline.state import State, fresh_positions
from pipeline.store import Manifest, MemoryStore
from tests.records import Log, messages_of
from tests.stream import START_MS, Record, events, job

ROWS = 2000

TABLES: tuple[dict[str, Any], ...] = (
    {"learner": {"batch_size": 64}},
    {"join": {"slab_rows": 32}},
    {"join": {"on_expiry": "negative", "negative_after": "50ms"}},
)
"""Whose rows wait for their scores, what begins new slabs in a span, and what makes examples of rows that wait."""


def topics(config: JobConfig, rows: int = ROWS) -> dict[Partition, Log]:
    """Both topics with two partitions each, keys spread by row."""
    found = {
        Partition(topic, number): Log() for topic in (config.features.topic, config.labels.topic) for number in (0, 1)
    }
    for topic, records in zip((config.features.topic, config.labels.topic), events(rows), strict=True):
        for record in records:
            number = int(record.key[1:]) % 2
            append(found[Partition(topic, number)], record)
    return found


def append(log: Log, record: Record) -> None:
    log.append(record, len(log) + len(log) // 9)  # every tenth offset holds no message


class Trainer:
    """One life of a trainer over a store that outlives it."""

    def __init__(self, config: JobConfig, store: MemoryStore, found: dict[Partition, Log]) -> None:
        self.config = config
        self.store = store
        self.found = found
        self.snapshots = Snapshots(store, config, on_durable=lambda _: None, released=lambda: 10**9)
        manifest = self.snapshots.newest()
        learner = Learner(config)
        if manifest:
            self.state = self.snapshots.restore(manifest, learner)
        else:
            self.state = State(config, fresh_positions(dict.fromkeys(found, 0)), learner)
            topic_ids = {partition.topic: "id" for partition in found}
            self.snapshots.begin(Lineage.begin("cluster", topic_ids, dict.fromkeys(found, 0)), self.state)

    def entries(self) -> Iterator[Any]:
        codecs = {
            self.config.features.topic: build_codec(self.config.features, label_rule(self.config.learner)),
            self.config.labels.topic: build_codec(self.config.labels, label_rule(self.config.learner)),
        }
        sides = {self.config.features.topic: Side.FEATURES, self.config.labels.topic: Side.LABELS}
        source = InMemorySource(messages_of(self.found), codecs, sides, self.config.stream)
        return source.entries(self.state.positions)

    def run(self, *, die_after: int | None = None, commit_every: int = 7) -> dict[str, Any]:
        for count, entry in enumerate(self.entries(), 1):
            assert not isinstance(entry, Wait)
            for batch in self.state.apply(entry):
                self.state.observe(batch, self.state.learner.step(batch))
            if count == die_after:
                self.snapshots.wait()
                return {}
            if count % commit_every == 0:
                self.snapshots.commit(self.state)
        self.snapshots.commit(self.state)
        self.snapshots.wait()
        return self.store.manifest(self.store.sequences()[-1])


def comparable(manifest: dict[str, Any]) -> dict[str, Any]:
    names = ("weights_sha256", "state_sha256", "counts", "metrics", "rows_trained", "cursor", "watermark", "alarms")
    return {name: manifest[name] for name in names}


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> JobConfig:
    return job(tmp_path_factory.mktemp("unused") / "state")


@pytest.fixture(scope="module")
def straight(config: JobConfig) -> dict[str, Any]:
    return Trainer(config, MemoryStore(), topics(config)).run()


def test_every_label_is_learned(straight: dict[str, Any]) -> None:
    counts = straight["counts"]
    assert counts["totals"]["read"] == 2 * ROWS
    assert counts["totals"]["matched"] == 2 * ROWS
    assert straight["rows_trained"] == ROWS
    assert counts["examples"] == {"trained": ROWS, "refused": 0, "open": 0, "filled_in": 0}
    assert counts["totals"]["skipped_offsets"] == 4 * ((ROWS // 2 - 1) // 9)
    assert all(line["places"] and line["recent"] for line in straight["cursor"])
    assert straight["metrics"]["live/auc_recent"] > 0.7


@pytest.mark.parametrize("die_after", [1, 6, 7, 8, 20, 33])
def test_killed_and_resumed_is_the_same_run(config: JobConfig, straight: dict[str, Any], die_after: int) -> None:
    store, found = MemoryStore(), topics(config)
    Trainer(config, store, found).run(die_after=die_after)
    resumed = Trainer(config, store, found).run()
    assert comparable(resumed) == comparable(straight)


def test_killed_after_every_entry_is_still_the_same_run(config: JobConfig, straight: dict[str, Any]) -> None:
    store, found = MemoryStore(), topics(config)
    for _ in range(200):
        trainer = Trainer(config, store, found)
        manifest = trainer.run(die_after=4, commit_every=3)
        if manifest:
            break
    assert comparable(manifest) == comparable(straight)


def test_snapshots_move_no_row_to_another_place_of_its_block(config: JobConfig) -> None:
    """There it may have other bits: where several rows are computed at a time, another loop has the last of 50."""
    learner = {"kind": "bank", "hidden": [256, 128], "batch_size": 50}
    config = job(config.job.state_dir, stream={"span": 8}, learner=learner)
    found = topics(config, 700)
    seldom = Trainer(config, MemoryStore(), found).run(commit_every=10_000)
    store = MemoryStore()
    Trainer(config, store, found).run(die_after=31, commit_every=3)
    assert comparable(Trainer(config, store, found).run(commit_every=3)) == comparable(seldom)


@pytest.mark.parametrize("tables", TABLES, ids="-".join)
def test_rows_scored_together_when_they_must_have_the_scores_of_when_they_came(
    config: JobConfig, tables: dict[str, Any]
) -> None:
    config = job(config.job.state_dir, stream={"span": 8}, **tables)
    at_once, waiting = (Trainer(config, MemoryStore(), topics(config, 700)) for _ in range(2))
    calls = counted_scoring(at_once), counted_scoring(waiting)
    for entry in at_once.entries():
        for batch in at_once.state.apply(entry):
            at_once.state.observe(batch, at_once.state.learner.step(batch))
        at_once.state.fill_scores()
    waiting.run(commit_every=40)
    manifests = []
    for trainer in (at_once, waiting):
        trainer.state.fill_scores()
        trainer.snapshots.commit(trainer.state)
        trainer.snapshots.wait()
        manifests.append(comparable(trainer.store.manifest(trainer.store.sequences()[-1])))
    assert manifests[0] == manifests[1]
    assert len(calls[1]) < 0.7 * len(calls[0])
    assert sum(calls[1]) == sum(calls[0])


def counted_scoring(trainer: Trainer) -> list[int]:
    """How many rows each call has scored from here on."""
    learner, calls = trainer.state.learner, list[int]()
    score = learner.score

    def counted(features_NC: Float32s) -> Float32s:
        calls.append(len(features_NC))
        return score(features_NC)

    learner.score = counted  # type: ignore[method-assign]
    return calls


def test_rows_without_scores_are_scored_once_they_fill_a_block_and_wait_through_a_snapshot(config: JobConfig) -> None:
    trainer = Trainer(config, MemoryStore(), topics(config))
    trainer.state.join._tables[Side.FEATURES].columns["scores"][: config.join.slab_rows] = 7  # of rows that were there
    calls = counted_scoring(trainer)
    for span in islice(trainer.entries(), 2):  # of features; the first one begins a slab, and is scored alone
        list(trainer.state.apply(span))
    first, second = calls
    assert second == 64 < first
    trainer.snapshots.commit(trainer.state)
    trainer.snapshots.wait()
    restored = Trainer(config, trainer.store, trainer.found)
    for each in (trainer, restored):
        features_NC, scores_NS = each.state.join.unscored()
        assert len(features_NC) == trainer.state.read_P.sum() - first - second > 0
        assert not scores_NS.any()
        each.state.fill_scores()
        assert scores_NS.all()
    ours, theirs = (each.state.join.slabs()[-1].columns["scores"] for each in (trainer, restored))
    assert ours.tobytes() == theirs.tobytes()


def test_a_full_slab_has_all_its_scores(config: JobConfig) -> None:
    config = job(config.job.state_dir, stream={"span": 8}, join={"slab_rows": 16}, learner={"batch_size": 64})
    trainer = Trainer(config, MemoryStore(), topics(config, 700))
    filled = 0
    for entry in trainer.entries():
        for batch in trainer.state.apply(entry):
            trainer.state.observe(batch, trainer.state.learner.step(batch))
        join = trainer.state.join
        newest = [slab for slab in join.slabs() if slab.side is Side.FEATURES][-1:]
        if newest and newest[0].full:
            assert not join.unscored_rows
            filled += 1
    assert filled


def test_all_rows_have_their_scores_when_an_alarm_may_change_the_learner(config: JobConfig) -> None:
    config = job(config.job.state_dir, stream={"span": 8}, join={"on_expiry": "negative", "negative_after": "50ms"})
    state = (trainer := Trainer(config, MemoryStore(), topics(config, 700))).state
    observe, waiting = state.monitor.observe, list[int]()

    def watched(*arguments: Any) -> Any:
        waiting.append(len(state.join.unscored()[0]))
        return observe(*arguments)

    state.monitor.observe = watched  # type: ignore[method-assign]
    trainer.run()
    assert len(waiting) > 8
    assert not any(waiting)


def test_the_ledger_names_every_offset_once(config: JobConfig) -> None:
    store, found = MemoryStore(), topics(config)
    Trainer(config, store, found).run()
    reached = dict.fromkeys(range(len(found)), 0)
    for sequence in store.sequences()[-3:]:
        for line in unseal(store.get(store.manifest(sequence)["blobs"]["ledger"])):
            if line[0] == "span":
                _, index, start, stop = line
                assert reached[index] in (0, start)
                reached[index] = stop
    assert list(reached.values()) == [log.end for log in found.values()]


def test_a_partition_added_later_is_counted_and_survives_a_restart_in_its_place(config: JobConfig) -> None:
    store, found = MemoryStore(), topics(config, 400)
    late = Partition(config.features.topic, 1)
    records = found.pop(late)
    Trainer(config, store, found).run()
    trainer = Trainer(config, store, found | {late: records})
    list(trainer.state.apply(Added(late, 0)))
    assert trainer.state.ledger == [["added", late.topic, 1, 0]]
    manifest = trainer.run()
    cursor = [(line["topic"], line["partition"]) for line in manifest["cursor"]]
    assert cursor == [(p.topic, p.number) for p in [*found, late]]
    assert manifest["counts"]["examples"]["trained"] == 400
    resumed = Trainer(config, store, found | {late: records}).state
    assert list(resumed.positions) == [*found, late]
    assert resumed.counts() == manifest["counts"]


@pytest.mark.parametrize("side", ["features", "labels"])
def test_a_lost_batch_is_one_reject_and_the_counts_balance(config: JobConfig, side: str) -> None:
    found = topics(config, 400)
    poisoned = Partition(f"t.{side}", 0)
    stop = found[poisoned].offsets[20]
    found[poisoned].drop(20)
    trainer = Trainer(config, MemoryStore(), found)
    list(trainer.state.apply(Lost(poisoned, 0, stop, NEVER, "no reader survives it")))
    assert trainer.state.ledger == [["lost", list(found).index(poisoned), 0, stop, NEVER, "no reader survives it"]]
    manifest = trainer.run()
    counts = manifest["counts"]["events"][str(poisoned)]
    assert (counts["read"], counts["rejected"]) == (181, 1)
    assert counts["skipped_offsets"] == stop - 1 + (199 // 9 - 20 // 9)
    letters = pa.ipc.open_stream(trainer.store.get(letters_of(trainer.store))).read_all().to_pylist()
    assert [(letter["offset"], letter["value"], letter["value_bytes"]) for letter in letters] == [(0, None, 0)]


def letters_of(store: MemoryStore) -> str:
    """The blob of the only snapshot that owes dead letters."""
    (owed,) = (o for s in store.sequences() if (o := store.manifest(s)["owed"]["dead_letters"]))
    return owed


def test_wild_records_in_every_partition_expire_nothing_and_reject_nothing(config: JobConfig) -> None:
    one_by_one = job(config.job.state_dir, stream={"span": 1})
    found = topics(config, 400)
    wild = 9_999_999_999_999
    for log in found.values():
        for at in (0, 1 + len(log) // 2, len(log) - 1):
            value = orjson.loads(log.values[at] or b"")
            log.timestamps[at], log.values[at] = wild, orjson.dumps({**value, "ts": wild})
    trainer = Trainer(one_by_one, MemoryStore(), found)
    manifest = trainer.run(commit_every=1000)
    totals = manifest["counts"]["totals"]
    assert (totals["rejected"], totals["expired"], totals["orphan"], totals["evicted"]) == (0, 0, 0, 0)
    assert manifest["watermark"] < wild
    assert START_MS < manifest["time_ms"] < wild


def test_too_much_bad_input_holds_before_anything_changes(config: JobConfig) -> None:
    limits = {"dead_letters": {"hold_share": 0.5, "hold_window": 100}}
    config = job(config.job.state_dir, **limits)
    found = topics(config, 200)
    bad = Partition(config.features.topic, 0)
    found[bad].values[:] = [b"garbage"] * len(found[bad])
    trainer = Trainer(config, MemoryStore(), found)
    with pytest.raises(TooMuchBadInput, match="--accept-bad") as caught:
        trainer.run()
    assert "t.features[0]@0" in str(caught.value)
    assert trainer.state.positions[bad].next == 0
    assert not trainer.state.owed.letters
    list(trainer.state.apply(Command("accept_bad", 1000)))
    for entry in trainer.entries():
        list(trainer.state.apply(entry))
    assert trainer.state.rejected_P.tolist() == [100, 0, 0, 0]


def test_good_records_pass_even_when_a_lower_limit_was_configured_since(config: JobConfig) -> None:
    found = topics(config, 200)
    found[Partition(config.features.topic, 0)].values[:40] = [b"garbage"] * 40
    store = MemoryStore()
    Trainer(config, store, found).run(die_after=2, commit_every=1)
    strict = job(config.job.state_dir, dead_letters={"hold_share": 0.01, "hold_window": 1000})
    assert Trainer(strict, store, found).run()["counts"]["totals"]["rejected"] == 40


def test_a_tombstone_of_a_feature_event_withdraws_it_and_nothing_else(config: JobConfig) -> None:
    found = topics(config, 200)
    gone = Partition(config.features.topic, 0)
    append(found[gone], Record(found[gone].timestamps[-1], b"k198", None))
    counts = Trainer(config, MemoryStore(), found).run()["counts"]
    assert counts["totals"]["tombstone"] == 1
    assert counts["examples"]["trained"] + counts["totals"]["withdrawn"] == 200


def test_a_count_that_does_not_add_up_stops_the_job(config: JobConfig) -> None:
    trainer = Trainer(config, MemoryStore(), topics(config))
    entry = next(iter(trainer.entries()))
    assert isinstance(entry, Span)
    list(trainer.state.apply(entry))
    trainer.state.check_balance()
    trainer.state.join.counts_PO[0, 0] += 1
    with pytest.raises(BalanceError, match=r"t\.features\[0\]"):
        trainer.state.check_balance()


def test_a_changed_identity_is_refused(config: JobConfig, straight: dict[str, Any]) -> None:
    store, found = MemoryStore(), topics(config)
    Trainer(config, store, found).run(die_after=8)
    changed = job(config.job.state_dir, learner={"hidden": [32], "batch_size": 64})
    with pytest.raises(ConfigError, match=r"learner\.hidden"):
        Trainer(changed, store, found)
    free = job(config.job.state_dir, learner={"hidden": [16], "batch_size": 64, "batch_wait": "7s"})
    assert comparable(Trainer(free, store, found).run()) == comparable(straight)


def test_a_register_command_owes_one_version(config: JobConfig, tmp_path: Path) -> None:
    store = MemoryStore()
    trainer = Trainer(config, store, topics(config))
    trainer.run()
    for _ in range(2):
        list(trainer.state.apply(Command("register")))
        trainer.snapshots.commit(trainer.state)
    trainer.snapshots.wait()
    owed = [bool(store.manifest(sequence)["owed"]["version"]) for sequence in store.sequences()[-2:]]
    assert owed == [True, False]


def test_a_version_that_fell_due_before_a_kill_does_not_fall_due_again(config: JobConfig) -> None:
    store, found = MemoryStore(), topics(config)
    trainer = Trainer(config, store, found)
    trainer.run()
    list(trainer.state.apply(Command("register")))
    trainer.snapshots.commit(trainer.state)
    trainer.snapshots.wait()
    resumed = Trainer(config, store, found).state
    list(resumed.apply(Command("register")))
    assert not resumed.owed.version_due


def test_closing_waits_for_the_commit_that_is_being_written(config: JobConfig) -> None:
    written = Event()

    class SlowStore(MemoryStore):
        def commit(self, sequence: int, manifest: Manifest, check: Callable[[], None] = lambda: None) -> str:
            written.wait(0.1)
            checksum = super().commit(sequence, manifest, check)
            if sequence:
                written.set()
            return checksum

    trainer = Trainer(config, SlowStore(), topics(config))
    list(trainer.state.apply(next(iter(trainer.entries()))))
    trainer.snapshots.commit(trainer.state)
    trainer.snapshots.close()
    assert written.is_set()
