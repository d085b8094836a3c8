"""The join against a naive oracle: one dict per row, every rule written out, no index, no compiled code."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from consumers import slabs
from consumers.batch import Examples
from consumers.config import JoinConfig
from consumers.errors import ConfigError
from consumers.join import Join, Outcome
from consumers.record import NEVER, Events, Kind, Side

SLAB_ROWS = 16
SLAB_BYTES = (SLAB_ROWS * (16 + 8 + 4 + 8 + 4 + 4 + 1), SLAB_ROWS * (16 + 8 + 4 + 4 + 1))
LEAST_MEMORY = 3 * sum(SLAB_BYTES)
PARTITION = {Side.FEATURES: (0, 1), Side.LABELS: (2, 3)}


@dataclass(frozen=True)
class Event:
    key: int
    time: int
    label: float = 0.0
    tombstone: bool = False


@dataclass(frozen=True)
class Apply:
    side: Side
    partition: int
    events: tuple[Event, ...]


@dataclass(frozen=True)
class Advance:
    watermark: int


def to_events(step: Apply, first_id: int, labelled: bool) -> Events:
    """Feature columns are the event's id and minus it, so that an example tells where it came from."""
    count = len(step.events)
    id_N = np.arange(first_id, first_id + count)
    features_N2 = np.stack([id_N, -id_N], axis=1).astype(np.float32)
    is_features = step.side is Side.FEATURES
    return Events(
        # the low half, which the index hashes, has few values: long chains
        key_N2=np.array([(event.key % 3, event.key) for event in step.events], np.uint64).reshape(-1, 2),
        event_time_N=np.array([event.time for event in step.events], np.int64),
        offset_N=id_N.astype(np.int64),
        row_N=np.zeros(count, np.int32),
        kind_N=np.array([Kind.TOMBSTONE if event.tombstone else Kind.EVENT for event in step.events], np.uint8),
        features_NC=features_N2 if is_features else np.empty((count, 0), np.float32),
        weight_N=id_N.astype(np.float32) + 0.5 if is_features else np.empty(0, np.float32),
        label_N=np.array([event.label for event in step.events], np.float32) if labelled or not is_features else None,
    )


Example: TypeAlias = tuple[int, float, int, bool, bool]
"""Id, label, how late that came, whether it was assumed to be a negative before, and whether it is final."""

WAITS = ("waiting", "assumed")


@dataclass
class Oracle:
    window: int
    negative: bool
    labelled: bool
    memory: int
    negative_after: int | None = None
    counts: dict[tuple[int, Outcome], int] = field(default_factory=dict)
    slabs: dict[Side, list[list[dict[str, Any]]]] = field(default_factory=lambda: {s: [] for s in Side})
    watermark: int = NEVER
    examples: list[Example] = field(default_factory=list)

    def count(self, partition: int, outcome: Outcome) -> None:
        self.counts[partition, outcome] = self.counts.get((partition, outcome), 0) + 1

    def find(self, side: Side, key: int) -> dict[str, Any] | None:
        rows = [row for slab in self.slabs[side] for row in slab if row["key"] == key and row["status"] != "withdrawn"]
        assert len(rows) <= 1
        return rows[0] if rows else None

    def store(self, side: Side, **row: Any) -> dict[str, Any]:
        self.slabs[side][-1].append(row)
        return row

    def has_room(self, side: Side) -> bool:
        return bool(self.slabs[side]) and len(self.slabs[side][-1]) < SLAB_ROWS

    def open_slab(self, side: Side) -> None:
        while sum(len(self.slabs[s]) * SLAB_BYTES[s] for s in Side) + SLAB_BYTES[side] > self.memory:
            victim = side if len(self.slabs[side]) >= 3 else Side(1 - side)
            for row in self.slabs[victim].pop(0):
                if row["status"] in WAITS:
                    self.count(row["partition"], Outcome.EVICTED)
        self.slabs[side].append([])

    def apply(self, step: Apply, first_id: int) -> None:
        rule = self.feature if step.side is Side.FEATURES else self.label
        for number, event in enumerate(step.events, first_id):
            if event.tombstone:
                self.tombstone(step, event)
            elif not rule(step.partition, event, number):
                self.open_slab(step.side)  # which may have evicted the row that it would have met
                assert rule(step.partition, event, number)

    def tombstone(self, step: Apply, event: Event) -> None:
        self.count(step.partition, Outcome.TOMBSTONE)
        row = self.find(step.side, event.key)
        if row and row["status"] in WAITS:
            row["status"] = "withdrawn"
            self.count(row["partition"], Outcome.WITHDRAWN)

    def feature(self, partition: int, event: Event, number: int) -> bool:
        if event.time + self.window < self.watermark:
            self.count(partition, Outcome.LATE)
            return True
        if self.find(Side.FEATURES, event.key):
            self.count(partition, Outcome.DUPLICATE)
            return True
        if not self.has_room(Side.FEATURES):
            return False
        row = self.store(
            Side.FEATURES, key=event.key, time=event.time, partition=partition, id=number, status="waiting"
        )
        label = self.find(Side.LABELS, event.key)
        if self.labelled:
            row["status"] = "matched"
            self.count(partition, Outcome.MATCHED)
            self.examples.append((number, event.label, 0, False, True))
        elif label and label["status"] == "waiting":
            if label["time"] <= event.time + self.window:
                self.match(row, label)
            else:
                label["status"] = "late"
                self.count(label["partition"], Outcome.LATE)
        return True

    def label(self, partition: int, event: Event, number: int) -> bool:
        known = self.find(Side.LABELS, event.key)
        if known:
            same = known["label"] == event.label
            self.count(partition, Outcome.DUPLICATE if same else Outcome.CONTRADICTION)
            return True
        feature = self.find(Side.FEATURES, event.key)
        if feature is None and event.time + self.window < self.watermark:
            self.count(partition, Outcome.ORPHAN)
            return True
        if feature and feature["status"] == "matched":
            self.count(partition, Outcome.DUPLICATE)
            return True
        if feature and (feature["status"] == "expired" or event.time > feature["time"] + self.window):
            self.count(partition, Outcome.LATE)
            return True
        if not self.has_room(Side.LABELS):
            return False
        row = self.store(
            Side.LABELS,
            key=event.key,
            time=event.time,
            partition=partition,
            label=event.label,
            status="waiting",
        )
        if feature:
            self.match(feature, row)
        return True

    def match(self, feature: dict[str, Any], label: dict[str, Any]) -> None:
        late, assumed = max(label["time"] - feature["time"], 0), feature["status"] == "assumed"
        for row in (feature, label):
            row["status"] = "matched"
            self.count(row["partition"], Outcome.MATCHED)
        self.examples.append((feature["id"], label["label"], late, assumed, True))

    def advance(self, watermark: int) -> None:
        self.watermark = max(self.watermark, watermark)
        for side, outcome in ((Side.FEATURES, Outcome.EXPIRED), (Side.LABELS, Outcome.ORPHAN)):
            for slab in self.slabs[side]:
                for row in slab:
                    if row["status"] in WAITS and row["time"] + self.window < self.watermark:
                        if side is Side.FEATURES and self.negative:
                            self.examples.append((row["id"], 0.0, self.window, row["status"] == "assumed", True))
                        row["status"] = "expired"
                        self.count(row["partition"], outcome)
            while len(self.slabs[side]) > 1:
                newest = max((row["time"] for row in self.slabs[side][0]), default=NEVER)
                if newest + self.window >= self.watermark:
                    break
                self.slabs[side].pop(0)
        if self.negative_after is not None:
            for row in (row for slab in self.slabs[Side.FEATURES] for row in slab):
                if row["status"] == "waiting" and row["time"] + self.negative_after < self.watermark:
                    row["status"] = "assumed"
                    self.examples.append((row["id"], 0.0, self.negative_after, False, False))

    def restore(self, memory: int) -> None:
        """Takes the slabs up again, features first and the oldest first, as far as another budget has room."""
        self.memory = memory
        before, self.slabs = self.slabs, {side: [] for side in Side}
        for side in Side:
            for slab in before[side]:
                self.open_slab(side)
                self.slabs[side][-1] = slab

    def waiting(self, partition: int) -> int:
        rows = [row for slabs in self.slabs.values() for slab in slabs for row in slab]
        return sum(row["status"] in WAITS and row["partition"] == partition for row in rows)


def copied_out(examples: Examples) -> Examples:
    """As the batcher does, before the join goes on."""
    names = ("features", "weight", "scores", "event_time")
    columns = {name: examples.take(name) for name in names}
    copies = (examples.labels_N.copy(), examples.age_N.copy(), examples.assumed_N.copy())
    return Examples(np.arange(len(examples)), *copies, columns, examples.final)


def run(join: Join, steps: list[Apply | Advance], first_id: int, labelled: bool) -> list[Examples]:
    outputs = []
    for step in steps:
        if isinstance(step, Advance):
            outputs += map(copied_out, join.advance(step.watermark))
            continue
        events = to_events(step, first_id, labelled)
        scores_N1 = events.weight_N[:, None] * 2 if step.side is Side.FEATURES else None
        outputs += map(copied_out, join.apply(step.side, step.partition, events, scores_N1))
        first_id += len(step.events)
    return outputs


def ids_and_labels(outputs: list[Examples]) -> list[tuple[int, float]]:
    for examples in outputs:
        id_N = examples.take("features")[:, 0]
        np.testing.assert_array_equal(examples.take("features")[:, 1], -id_N)
        np.testing.assert_array_equal(examples.take("weight"), id_N + 0.5)
        np.testing.assert_array_equal(examples.take("scores"), examples.take("weight")[:, None] * 2)
    return [
        (int(number), float(label))
        for examples in outputs
        for number, label in zip(examples.take("features")[:, 0], examples.labels_N, strict=True)
    ]


def described(outputs: list[Examples]) -> list[Example]:
    found = iter(ids_and_labels(outputs))
    return [
        (*next(found), int(age), bool(assumed), examples.final)
        for examples in outputs
        for age, assumed in zip(examples.age_N, examples.assumed_N, strict=True)
    ]


def new_join(config: JoinConfig, labelled: bool = False) -> Join:
    return Join(config, columns=2, score_width=1, partitions=4, labelled_features=labelled)


def as_bytes(outputs: list[Examples]) -> list[bytes]:
    return [array.tobytes() for examples in outputs for array in (examples.labels_N, *examples.columns.values())]


def snapshot_bytes(join: Join) -> list[Any]:
    views = [
        (
            (view.side, view.number, view.full, view.status.tobytes()),
            [(name, column.tobytes()) for name, column in view.columns.items()],
        )
        for view in join.slabs()
    ]
    rest = (join.counts_PO.tobytes(), join.watermark, join.filled_in, join.assumed, join.waiting_P().tobytes())
    return [*views, *rest]


def copied(views: Sequence[slabs.SlabView]) -> list[slabs.SlabView]:
    return [
        slabs.SlabView(
            view.side,
            view.number,
            view.full,
            {name: column.copy() for name, column in view.columns.items()},
            view.status.copy(),
        )
        for view in views
    ]


def restored(join: Join, config: JoinConfig, labelled: bool) -> Join:
    again = new_join(config, labelled)
    again.restore(copied(join.slabs()), join.counts_PO, join.watermark, join.filled_in, join.assumed, 0)
    return again


SPARE = st.sampled_from([0, SLAB_BYTES[1], 40 * sum(SLAB_BYTES)])
CONFIGS = st.builds(
    lambda window, on_expiry, negative_after, spare: JoinConfig(
        window=window,
        on_expiry=on_expiry,
        negative_after=None if negative_after is None or negative_after >= window else negative_after,
        memory=LEAST_MEMORY + spare,
        slab_rows=SLAB_ROWS,
    ),
    st.sampled_from([0, 3, 10, 1000]),
    st.sampled_from(["drop", "negative"]),
    st.sampled_from([None, 0, 4]),
    SPARE,
)


def random_events(seed: int, count: int, keys: int, now: int) -> tuple[Event, ...]:
    random = np.random.default_rng(seed)
    return tuple(
        Event(int(key), max(0, int(time)), float(label), bool(tombstone))
        for key, time, label, tombstone in zip(
            random.integers(0, keys, count),
            random.integers(now - 12, now + 5, count),
            random.integers(0, 2, count),
            random.random(count) < 0.05,
            strict=True,
        )
    )


@st.composite
def _steps(draw: st.DrawFn) -> list[Apply | Advance]:
    keys = draw(st.sampled_from([5, 40, 400]))
    steps: list[Apply | Advance] = []
    now = 0
    for _ in range(draw(st.integers(1, 30))):
        now += draw(st.integers(0, 4))
        if draw(st.integers(0, 4)) == 0:
            steps.append(Advance(now - draw(st.integers(-3, 6))))
            continue
        side = draw(st.sampled_from(Side))
        seed, count = draw(st.integers(0, 2**32)), draw(st.integers(0, 50))
        partition = draw(st.sampled_from(PARTITION[side]))
        steps.append(Apply(side, partition, random_events(seed, count, keys, now)))
    return steps


class JoinMachine(RuleBasedStateMachine):
    """A join and the oracle through any calls; now and then a new join takes over from a snapshot.

    Event times drift upward with the watermark close behind, so that every rule is met often.
    """

    @initialize(config=CONFIGS, labelled=st.booleans(), keys=st.sampled_from([5, 40, 400]))
    def begin(self, config: JoinConfig, labelled: bool, keys: int) -> None:
        self.config, self.labelled, self.keys = config, labelled, keys
        self.join = new_join(config, labelled)
        negative = config.on_expiry == "negative"
        self.oracle = Oracle(config.window, negative, labelled, config.memory, config.negative_after)
        self.applied_P = np.zeros(4, np.int64)
        self.number = self.filled_in = self.assumed = self.now = 0
        self.snapshot = self.copy_of_all()

    def copy_of_all(self) -> dict[str, Any]:
        join = self.join
        state = (copied(join.slabs()), join.counts_PO.copy(), join.watermark, join.filled_in, join.assumed)
        names = ("oracle", "applied_P", "number", "filled_in", "assumed", "now")
        beside = {name: deepcopy(vars(self)[name]) for name in names}
        return {"state": state, "beside": beside}

    @rule(side=st.sampled_from(Side), seed=st.integers(0, 2**32), count=st.integers(0, 50), data=st.data())
    def apply(self, side: Side, seed: int, count: int, data: st.DataObject) -> None:
        partition = data.draw(st.sampled_from(PARTITION[side]))
        step = Apply(side, partition, random_events(seed, count, self.keys, self.now))
        self.oracle.examples = []
        outputs = run(self.join, [step], self.number, self.labelled)
        self.oracle.apply(step, self.number)
        self.applied_P[partition] += count
        self.number += count
        assert described(outputs) == self.oracle.examples

    @rule(passed=st.integers(0, 8), behind=st.integers(-3, 6))
    def advance(self, passed: int, behind: int) -> None:
        self.now += passed
        self.oracle.examples = []
        outputs = run(self.join, [Advance(self.now - behind)], self.number, self.labelled)
        self.oracle.advance(self.now - behind)
        finals = sum(final for *_, final in self.oracle.examples)
        self.filled_in, self.assumed = self.filled_in + finals, self.assumed + len(self.oracle.examples) - finals
        assert described(outputs) == self.oracle.examples

    @rule()
    def take_a_snapshot(self) -> None:
        self.snapshot = self.copy_of_all()

    @rule(spare=SPARE)
    def go_back_to_the_snapshot(self, spare: int) -> None:
        """As after a crash, perhaps with another budget."""
        self.config = self.config.model_copy(update={"memory": LEAST_MEMORY + spare})
        before = new_join(self.config, self.labelled)
        vars(self).update(deepcopy(self.snapshot["beside"]))
        self.oracle.restore(self.config.memory)
        slabs_then, *rest = self.snapshot["state"]
        before.restore(copied(slabs_then), *rest, unscored=0)
        self.join = before

    @rule()
    def go_on_in_a_new_object(self) -> None:
        again = restored(self.join, self.config, self.labelled)
        assert snapshot_bytes(again) == snapshot_bytes(self.join)
        self.join = again

    @invariant()
    def the_counts_are_the_oracles_and_balance(self) -> None:
        join, oracle = self.join, self.oracle
        expected = [[oracle.counts.get((p, outcome), 0) for outcome in Outcome] for p in range(4)]
        assert join.counts_PO.tolist() == expected
        assert join.waiting_P().tolist() == [oracle.waiting(p) for p in range(4)]
        np.testing.assert_array_equal(join.counts_PO.sum(axis=1) + join.waiting_P(), self.applied_P)
        assert (join.filled_in, join.assumed) == (self.filled_in, self.assumed)
        assert join.watermark == oracle.watermark
        slabs_in_use = sum(len(oracle.slabs[side]) * SLAB_BYTES[side] for side in Side)
        assert join.nbytes == slabs_in_use <= self.config.memory


TestJoinMachine = JoinMachine.TestCase
TestJoinMachine.settings = settings(max_examples=200, stateful_step_count=40, deadline=None)


@settings(deadline=None, max_examples=50)
@given(CONFIGS, _steps())
def test_the_size_of_the_index_never_shows(config: JoinConfig, steps: list[Apply | Advance]) -> None:
    wide = new_join(config)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(slabs, "INDEX_MIN", 2)
        tight = new_join(config)

    assert as_bytes(run(tight, steps, 0, False)) == as_bytes(run(wide, steps, 0, False))
    assert snapshot_bytes(tight) == snapshot_bytes(wide)


WINDOW_10 = JoinConfig(window=10, memory=LEAST_MEMORY, slab_rows=SLAB_ROWS)


def features(*events: Event) -> Apply:
    return Apply(Side.FEATURES, 0, events)


def labels(*events: Event) -> Apply:
    return Apply(Side.LABELS, 2, events)


def test_a_label_at_the_very_end_of_the_window_still_counts_and_one_after_it_is_late() -> None:
    join = new_join(WINDOW_10)
    steps = [features(Event(1, 5), Event(2, 5)), labels(Event(1, 15, 1.0), Event(2, 16, 1.0))]

    assert ids_and_labels(run(join, [*steps, Advance(15)], 0, False)) == [(0, 1.0)]
    assert join.counts_PO[2, Outcome.LATE] == 1
    assert join.waiting_P().tolist() == [1, 0, 0, 0]
    run(join, [Advance(16)], 4, False)
    assert join.counts_PO[0, Outcome.EXPIRED] == 1


def test_event_times_at_the_ends_of_what_64_bits_hold_do_not_overflow() -> None:
    config = JoinConfig(window=2**63 - 1, memory=LEAST_MEMORY, slab_rows=SLAB_ROWS)
    join = new_join(config)
    last = 2**63 - 1
    steps = [
        Advance(NEVER),
        features(Event(1, last), Event(2, 0)),
        labels(Event(1, last, 1.0)),
        Advance(2**60),
    ]

    assert ids_and_labels(run(join, steps, 0, False)) == [(0, 1.0)]
    assert join.waiting_P().tolist() == [1, 0, 0, 0]


def test_the_watermark_never_goes_back() -> None:
    join = new_join(WINDOW_10)
    run(join, [Advance(100), Advance(3), features(Event(1, 89))], 0, False)
    assert join.watermark == 100
    assert join.counts_PO[0, Outcome.LATE] == 1


def test_the_oldest_features_are_evicted_when_the_budget_is_full() -> None:
    join = new_join(WINDOW_10)
    room = 5 * SLAB_ROWS  # the least budget holds five slabs of features and no labels
    run(join, [features(*(Event(key, 5) for key in range(room)))], 0, False)
    assert join.counts_PO[0, Outcome.EVICTED] == 0

    run(join, [features(Event(1000, 5))], room, False)

    assert join.counts_PO[0, Outcome.EVICTED] == SLAB_ROWS
    assert join.waiting_P().tolist() == [room - SLAB_ROWS + 1, 0, 0, 0]


def test_an_example_that_was_matched_before_its_slab_is_evicted_keeps_its_features() -> None:
    join = new_join(WINDOW_10)
    run(join, [features(*(Event(key, 5) for key in range(80)))], 0, False)
    # the first slab of labels evicts features 0 to 15; it matches 16 to 31; the second evicts those
    matching = [Event(key, 5, 1.0) for key in range(16, 32)]
    outputs = run(join, [labels(*matching, Event(2000, 5, 1.0))], 80, False)

    assert ids_and_labels(outputs) == [(key, 1.0) for key in range(16, 32)]
    assert sum(view.side is Side.FEATURES for view in join.slabs()) == 3


def test_a_restore_into_a_smaller_budget_evicts_the_oldest_and_balances() -> None:
    join = new_join(JoinConfig(window=10, memory=10 * LEAST_MEMORY, slab_rows=SLAB_ROWS))
    run(join, [features(*(Event(key, 5) for key in range(160)))], 0, False)

    small = restored(join, WINDOW_10, labelled=False)

    assert small.nbytes <= LEAST_MEMORY
    assert small.counts_PO[0, Outcome.EVICTED] == 160 - small.waiting_P()[0] == 5 * SLAB_ROWS


def test_a_budget_without_room_for_three_slabs_of_each_side_is_refused_with_the_least_that_works() -> None:
    config = JoinConfig(memory=LEAST_MEMORY - 1, slab_rows=SLAB_ROWS)
    with pytest.raises(ConfigError, match=f"at least {LEAST_MEMORY:,} B"):
        new_join(config)


def test_nothing_that_was_passed_in_is_kept() -> None:
    join = new_join(WINDOW_10)
    step = features(Event(1, 5), Event(2, 5))
    events = to_events(step, 0, False)
    scores_N1 = events.weight_N[:, None] * 2
    list(join.apply(Side.FEATURES, 0, events, scores_N1))
    for array in (events.key_N2, events.event_time_N, events.features_NC, events.weight_N, scores_N1):
        array.fill(77)  # the slot of a reader, given back

    outputs = run(join, [labels(Event(1, 6, 1.0), Event(2, 6, 0.0))], 2, False)

    assert ids_and_labels(outputs) == [(0, 1.0), (1, 0.0)]


EARLY = JoinConfig(window=10, on_expiry="negative", negative_after=3, memory=LEAST_MEMORY, slab_rows=SLAB_ROWS)


def test_without_a_label_for_some_time_it_is_a_negative_until_the_label_comes_or_the_window_ends() -> None:
    join = new_join(EARLY)
    steps = [features(Event(1, 5), Event(2, 5), Event(3, 5)), labels(Event(1, 7, 1.0)), Advance(8)]
    assert described(run(join, steps, 0, False)) == [(0, 1.0, 2, False, True)], "at the very end it may still come"
    assert described(run(join, [Advance(9), Advance(10)], 4, False)) == [
        (1, 0.0, 3, False, False),
        (2, 0.0, 3, False, False),
    ]
    assert join.waiting_P().tolist() == [2, 0, 0, 0], "both still wait"

    corrected = run(join, [labels(Event(2, 12, 1.0)), Advance(16)], 4, False)

    assert described(corrected) == [(1, 1.0, 7, True, True), (2, 0.0, 10, True, True)]
    assert (join.assumed, join.filled_in) == (2, 1)


def test_a_label_that_came_before_its_features_is_not_negatively_old() -> None:
    join = new_join(EARLY)
    assert described(run(join, [labels(Event(1, 3, 1.0)), features(Event(1, 5))], 0, False)) == [
        (1, 1.0, 0, False, True)
    ]
