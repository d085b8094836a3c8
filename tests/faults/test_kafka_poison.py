"""A record batch that no reader survives is given up, with its coordinates; everything around it is learned."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from confluent_kafka import Producer

from consumers.errors import StreamError
from consumers.record import Lost, Partition
from tests.live import ROWS, Live, Stream, row
from tests.segments import batches, spoil

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]

POISONED = range(100, 300)  # rows whose features of partition 0 lie in the batch that is spoiled
BOMB_BYTES, BOMB_RECORDS = 400 * 2**20, 40


def stream_around(broker: Any, folder: Path, settings: dict[str, Any] | None = None) -> Stream:
    return Stream(broker, folder, settings, **{"max.message.bytes": str(20 * 2**20)})


@pytest.fixture
def stream(fault_broker: Any, tmp_path: Path) -> Iterator[Stream]:
    found = stream_around(fault_broker, tmp_path)
    yield found
    found.close()


def produce_batch(stream: Stream, values: list[tuple[bytes | None, bytes | None, int]], codec: str, size: int) -> None:
    """All in one record batch of partition 0 of the features."""
    producer = Producer(
        {
            "bootstrap.servers": stream.broker.bootstrap,
            "compression.type": codec,
            "batch.size": size,
            "message.max.bytes": min(size, 10**9),
            "queue.buffering.max.kbytes": 2**21 - 1,
            "linger.ms": 3000,
        }
    )
    for key, value, timestamp in values:
        producer.produce(stream.features, value, key, 0, timestamp=timestamp)
    assert producer.flush(60) == 0


def only_lost(live: Live) -> Lost:
    (lost,) = (entry for entry in live.applied if isinstance(entry, Lost))
    return lost


def letter(live: Live) -> dict[str, Any]:
    """The dead letter of the newest snapshot that owes any."""
    blobs = [live.store.manifest(sequence)["owed"]["dead_letters"] for sequence in live.store.sequences()]
    (found,) = pa.ipc.open_stream(live.store.get(next(filter(None, blobs)))).read_all().to_pylist()
    return found


@pytest.mark.parametrize("mend_checksum", [True, False], ids=["cannot be decompressed", "checksum is wrong"])
def test_a_spoiled_batch_is_lost_by_name_and_all_around_it_is_learned(stream: Stream, mend_checksum: bool) -> None:
    stream.produce(0, 100)
    records = [r for r in stream.records[stream.features] if row(r) in POISONED and row(r) % 2 == 0]
    produce_batch(stream, [(r.key, r.value, r.timestamp) for r in records], "lz4", 10**6)
    stream.produce_rows(stream.labels, POISONED)
    stream.produce_rows(stream.features, POISONED[1::2])
    stream.produce(300, ROWS)
    segment = stream.broker.data / "log" / f"{stream.features}-0" / f"{0:020}.log"
    (batch,) = (b for b in batches(segment) if b.stop - b.start == 100)
    spoil(segment, batch, mend_checksum=mend_checksum)

    live = stream.live(until_caught_up=True)
    live.run(seconds=200)
    manifest = live.commit()
    lost = only_lost(live)
    assert (lost.partition, lost.start, lost.stop) == (Partition(stream.features, 0), 50, 150)
    assert ("Decompression" if mend_checksum else "CRC32C") in lost.reason
    totals = manifest["counts"]["totals"]
    assert manifest["counts"]["examples"]["trained"] == ROWS - 100
    assert (totals["rejected"], totals["skipped_offsets"], totals["waiting"]) == (1, 99, 100)
    found = letter(live)
    assert (found["topic"], found["partition"], found["offset"]) == (stream.features, 0, 50)
    assert (found["value"], found["value_bytes"], found["reason"]) == (None, 0, lost.reason)


def test_a_decompression_bomb_kills_only_readers_and_the_job_goes_past_it(fault_broker: Any, tmp_path: Path) -> None:
    stream = stream_around(fault_broker, tmp_path, {"stream.reader_memory": "128MiB"})
    stream.produce(0, 200)
    size = BOMB_BYTES // BOMB_RECORDS
    produce_batch(stream, [(None, bytes(size), 1_700_000_000_200)] * BOMB_RECORDS, "lz4", 2**31 - 1)
    stream.produce(200, ROWS)
    live = stream.live(until_caught_up=True)
    live.run(seconds=200)
    manifest = live.commit()
    stream.close()
    lost = only_lost(live)
    assert (lost.start, lost.stop) == (100, 100 + BOMB_RECORDS)
    assert "killed by SIGABRT" in lost.reason
    assert manifest["counts"]["examples"]["trained"] == ROWS
    assert manifest["counts"]["totals"]["rejected"] == 1


def test_a_large_batch_within_the_readers_memory_is_read_like_any_other(stream: Stream) -> None:
    size = BOMB_BYTES // BOMB_RECORDS
    produce_batch(stream, [(None, bytes(size), 1_700_000_000_000)] * BOMB_RECORDS, "gzip", 2**31 - 1)
    stream.produce(0, 100)
    live = stream.live(until_caught_up=True)
    live.run(seconds=200)
    totals = live.commit()["counts"]["totals"]
    assert (totals["rejected"], totals["skipped_offsets"]) == (BOMB_RECORDS, 0)
    assert not [entry for entry in live.applied if isinstance(entry, Lost)]


def test_readers_that_die_wherever_they_start_stop_the_job(stream: Stream, monkeypatch: pytest.MonkeyPatch) -> None:
    stream.produce(0, 100)
    monkeypatch.setenv("PYTHONPATH", str(broken_reader(stream)))
    monkeypatch.setattr(time, "sleep", lambda _: None)
    with pytest.raises(StreamError, match="No single record batch is to blame") as caught:
        stream.live(until_caught_up=True).run(seconds=200)
    assert f"{stream.features}[0]@0" in str(caught.value)
    assert "stream.reader_memory" in str(caught.value)


def broken_reader(stream: Stream) -> Path:
    """A folder whose sitecustomize ends every reader as it starts: the machine's fault, not the records'."""
    folder = Path(stream.config.job.state_dir).parent / "broken"
    folder.mkdir(parents=True)
    (folder / "sitecustomize.py").write_text("import os, signal; os.kill(os.getpid(), signal.SIGKILL)")
    return folder
