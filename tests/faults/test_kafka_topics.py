"""What can happen to a job's topics on a real Kafka: nothing is skipped without a word, nothing waits for ever."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson
import pytest
from confluent_kafka import Producer

from consumers.record import Added, Partition, Span
from tests.conftest import produce
from tests.live import ROWS, Live, Stream, placed, row
from tests.stream import Record

pytestmark = pytest.mark.slow

WILD_MS = 9_999_999_999_999


@pytest.fixture
def stream(fault_broker: Any, tmp_path: Path) -> Iterator[Stream]:
    found = Stream(fault_broker, tmp_path)
    yield found
    found.close()


def reads(live: Live, rows: int) -> Callable[[], bool]:
    return lambda: live.read() == 2 * rows


def test_partitions_added_while_the_job_runs_are_read_from_their_beginning(stream: Stream) -> None:
    stream.produce(0, 200)
    live = stream.live()
    live.run(until=reads(live, 200))
    stream.add_partitions()
    for topic, records in stream.records.items():
        late = [placed(r, 2) for r in records if 200 <= row(r) < ROWS]
        produce(stream.broker.bootstrap, topic, late)
    live.run(until=reads(live, ROWS))
    new = [Partition(stream.features, 2), Partition(stream.labels, 2)]
    assert [entry.partition for entry in live.applied if isinstance(entry, Added)] == new
    assert list(live.state.positions)[4:] == new
    assert live.commit()["counts"]["examples"]["trained"] + live.state.batcher.filled == ROWS


def test_partitions_added_while_the_job_is_stopped_are_read_from_their_beginning(stream: Stream) -> None:
    stream.produce(0, 200)
    first = stream.live(until_caught_up=True)
    first.run()
    first.commit()
    stream.add_partitions()
    for topic, records in stream.records.items():
        produce(stream.broker.bootstrap, topic, [placed(r, 2) for r in records if 200 <= row(r) < ROWS])
    second = stream.live(first.store, until_caught_up=True)
    assert [line[0] for line in second.state.ledger] == ["added", "added"]
    second.run()
    manifest = second.commit()
    assert manifest["counts"]["examples"]["trained"] == ROWS
    assert [line["next"] for line in manifest["cursor"]][4:] == [200, 200]
    third = stream.live(first.store, until_caught_up=True)
    assert list(third.state.positions) == list(second.state.positions)


def test_a_topic_recreated_while_the_job_runs_stops_it_and_none_of_the_new_records_is_learned(stream: Stream) -> None:
    stream.produce(0, 200)
    live = stream.live()
    live.run(until=reads(live, 200))
    stream.delete(stream.features)
    stream.create(stream.features)
    stream.produce(0, ROWS)  # the new topic goes past the old position: a live consumer would go on there
    error = live.fails()
    assert f"topic {stream.features!r} was deleted and created again" in error
    assert " became " in error
    assert "new lineage" in error
    spans = [e for e in live.applied if isinstance(e, Span) and e.partition.topic == stream.features]
    assert max(span.stop for span in spans) == 100


def test_a_topic_recreated_while_the_job_is_stopped_stops_the_next_start(stream: Stream) -> None:
    stream.produce(0, 200)
    live = stream.live(until_caught_up=True)
    live.run()
    live.commit()
    stream.delete(stream.labels)
    stream.create(stream.labels)
    with pytest.raises(Exception, match=f"topic '{stream.labels}' was deleted and created again"):
        stream.live(live.store)


def test_a_deleted_topic_holds_the_job_until_another_one_takes_its_name(stream: Stream) -> None:
    stream.produce(0, 200)
    live = stream.live()
    live.run(until=reads(live, 200))
    stream.delete(stream.features)
    live.run(until=lambda: "does not know topic" in live.wait.hold)
    assert stream.features in live.wait.hold
    stream.create(stream.features)
    assert "created again" in live.fails()


def test_records_that_retention_took_while_the_job_was_stopped_stop_it(stream: Stream) -> None:
    stream.produce(0, 200)
    live = stream.live(until_caught_up=True)
    live.run()
    live.commit()
    stream.produce(200, ROWS)
    stream.delete_before(stream.features, 150)
    error = stream.live(live.store).fails()
    assert f"{stream.features}[0]@100" in error
    assert "the log's start to 150" in error
    assert "retention" in error


def test_records_that_retention_takes_before_they_were_fetched_stop_a_running_job(stream: Stream) -> None:
    stream.produce(0, 200)
    live = stream.live()
    live.run(until=reads(live, 200))
    pids = live.source.reader_pids
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)  # they hold their positions, and see nothing of what comes
    stream.produce(200, ROWS)
    stream.delete_before(stream.features, 150)
    for pid in pids:
        os.kill(pid, signal.SIGCONT)
    error = live.fails()
    assert f"{stream.features}[0]@100" in error
    assert "the log's start to 150" in error


def test_aborted_transactions_are_gaps_and_ends_behind_markers_are_proven(stream: Stream) -> None:
    for number, fate in enumerate(["abort", "commit", "abort", "commit", "leave open"]):
        for topic, records in stream.records.items():
            producer = Producer(
                {"bootstrap.servers": stream.broker.bootstrap, "transactional.id": f"{topic}-{fate}-{number}"}
            )
            producer.init_transactions()
            producer.begin_transaction()
            for record in records[:100] if number < 2 else records[100:200]:
                if (row(record) < 100) == (number < 2):
                    producer.produce(topic, record.value, record.key, row(record) % 2, timestamp=record.timestamp)
            producer.flush()
            if fate == "commit":
                producer.commit_transaction()
            elif fate == "abort":
                producer.abort_transaction()
            elif topic == stream.labels:
                open_one = producer
            else:
                producer.abort_transaction()
    live = stream.live(until_caught_up=True)  # ends before the open transaction
    live.run()
    counts = live.commit()["counts"]
    open_one.abort_transaction()
    assert counts["totals"]["rejected"] == 0
    assert counts["totals"]["skipped_offsets"] > counts["totals"]["read"]
    again = stream.live(live.store, until_caught_up=True)  # nothing but markers and aborted records is left
    again.run()
    assert again.commit()["counts"]["totals"]["read"] == counts["totals"]["read"]


def test_a_compacted_topic_has_gaps_and_its_tombstones_withdraw(fault_broker: Any, tmp_path: Path) -> None:
    rolling = {"segment.ms": "50", "min.cleanable.dirty.ratio": "0.01", "cleanup.policy": "compact"}
    stream = Stream(fault_broker, tmp_path, **rolling)
    first, second, *_ = stream.records[stream.features]
    for number in range(30):  # by their timestamps, each begins a segment of its own
        records = [Record(first.timestamp + 1000 * number, first.key, first.value)]
        if number == 29:
            records += [replace(second, timestamp=records[0].timestamp), replace(records[0], value=None)]
        produce(fault_broker.bootstrap, stream.features, [placed(record, 0) for record in records])
    folder = fault_broker.data / "log" / f"{stream.features}-0"
    deadline = time.monotonic() + 40
    while not list(folder.glob("*.deleted")):
        assert time.monotonic() < deadline, "Kafka did not compact the topic"
        time.sleep(0.1)
    live = stream.live(until_caught_up=True)
    live.run()
    totals = live.commit()["counts"]["totals"]
    stream.close()
    assert totals["skipped_offsets"] > 20
    assert (totals["tombstone"], totals["withdrawn"], totals["waiting"]) == (1, 1, 1)
    assert totals["rejected"] == 0


def test_single_records_with_a_wild_clock_at_the_live_head_expire_nothing(stream: Stream) -> None:
    live = stream.live()
    sent = 0
    for start in range(0, 200, 50):
        stream.produce(start, start + 50)
        sent += 100
        live.run(until=lambda: live.read() == sent)  # noqa: B023
        for topic, records in stream.records.items():
            for number in (0, 1):
                record = records[200 + start + number]
                value = orjson.dumps({**orjson.loads(record.value or b""), "ts": WILD_MS, "id": f"w{start}-{number}"})
                wild = replace(placed(record, number), timestamp=WILD_MS, value=value)
                produce(stream.broker.bootstrap, topic, [wild])
                sent += 1
                live.run(until=lambda: live.read() == sent)  # noqa: B023
    totals = live.commit()["counts"]["totals"]
    assert (totals["expired"], totals["orphan"], totals["late"], totals["rejected"]) == (0, 0, 0, 0)
    assert live.state.watermark < WILD_MS
    assert totals["matched"] >= 400
