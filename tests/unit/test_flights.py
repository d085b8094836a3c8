"""The demo's data: the traps of the flights data set, and garbage that is garbage."""

from collections import Counter
from datetime import UTC, datetime

import numpy as np
import orjson
import pytest

from consumers.codecs import build_codec
from pipeline.config import label_rule
from pipeline.demo.demo import job_toml
from pipeline.demo.flights import load_flights
from pipeline.demo.garbage import KINDS
from pipeline.demo.producer import FEATURES, LABELS, PARTITIONS, Backlog, Stream
from pipeline.jobfile import load
from tests.records import Log, decoded
from tests.stream import Record

HOUR_MS = 3_600_000


@pytest.fixture(scope="module")
def flights():
    return load_flights()


@pytest.fixture(scope="module")
def stream(flights):
    return Stream(flights)


@pytest.fixture(scope="module")
def records():
    return list(Stream(load_flights(4000), garbage=100))


def utc(*moment):
    return int(datetime(*moment, tzinfo=UTC).timestamp() * 1000)


def test_every_flight_has_a_key_of_its_own(flights):
    assert len(flights) == len(set(flights.keys)) == 336_776


def test_cancelled_and_diverted_flights_never_get_a_label(flights):
    assert (flights.arrival_N < 0).sum() == 336_776 - 327_346


def test_the_first_flight_leaves_at_a_quarter_past_five_in_new_york(flights):
    assert flights.keys[0] == "2013-01-01-UA-1545-EWR"
    assert flights.departure_N[0] == utc(2013, 1, 1, 10, 15)
    # Scheduled for 08:19 in Houston, 11 minutes late: 08:30 CST.
    assert flights.arrival_N[0] == utc(2013, 1, 1, 14, 30)
    assert flights.late[0] == 0


def test_a_red_eye_arrives_the_next_day(flights):
    number = flights.keys.index("2013-01-01-B6-739-JFK")  # 23:59 to Ponce; scheduled 04:45 local time
    assert flights.departure_N[number] == utc(2013, 1, 2, 4, 59)
    feature = orjson.loads(next(flights.feature_values(number, number + 1)))
    assert feature["dest"] == "PSE"  # not in airports.csv
    assert feature["minutes"] == 226  # 04:45 in Puerto Rico is 08:45 UTC


def test_in_summer_the_clocks_of_new_york_and_honolulu_are_six_hours_apart(flights):
    number = flights.keys.index("2013-07-01-HA-51-JFK")
    feature = orjson.loads(next(flights.feature_values(number, number + 1)))
    assert feature["dest"] == "HNL"
    assert 620 <= feature["minutes"] <= 700


def test_labels_come_after_departure_and_within_the_window(flights):
    arrived = flights.arrival_N >= 0
    delays = (flights.arrival_N - flights.departure_N)[arrived]
    assert delays.min() > 0
    assert 32 * HOUR_MS < delays.max() < 48 * HOUR_MS
    # No flight takes a day: what looks like it would be a clock read in the wrong zone.
    minutes = flights.features["minutes"].to_numpy()
    assert minutes.min() >= 30
    assert minutes.max() <= 720


def test_a_feature_event_tells_nothing_that_is_known_only_later(flights):
    known = {
        "id", "ts", "distance", "minutes", "dep_hour", "temp", "humid", "wind_speed", "precip", "pressure",
        "visib", "plane_year", "carrier", "origin", "dest", "weekday",
    }  # fmt: skip
    assert set(flights.features.column_names) == known


def test_the_stream_is_in_true_time_order_and_complete(records):
    times = [record.time_ms for record in records]
    assert times == sorted(times)
    flights = load_flights(4000)
    arrived = int((flights.arrival_N >= 0).sum())
    assert len(records) == len(flights) + arrived + 100


def test_the_whole_stream_carries_200_bad_records(stream):
    assert stream.garbage == 200
    assert len(stream) == 336_776 + 327_346 + 200


def test_garbage_is_exactly_what_the_job_refuses(records, tmp_path):
    path = tmp_path / "job.toml"
    path.write_text(job_toml(tmp_path, "127.0.0.1:1", 4000, mock=False))
    job = load(path, environment={})
    rejected = {}
    for topic, config in ((FEATURES, job.features), (LABELS, job.labels)):
        log = Log()
        for record in records:
            if record.topic == topic:
                log.append(Record(record.time_ms, record.key.encode(), record.value))
        codec = build_codec(config, label_rule(job.learner))
        rejected[topic] = decoded(codec, log.messages()).rejects.num_rows
    expected = Counter(LABELS if KINDS[n % len(KINDS)].to_labels else FEATURES for n in range(100))
    assert rejected == expected


def test_garbage_is_spread_over_the_year(stream):
    garbage = np.flatnonzero(stream._source == 2)
    assert np.diff(garbage).max() < 10 * len(stream) / 200


class Group:
    """A consumer that only knows what its group committed."""

    def __init__(self):
        self.offset = -1001  # librdkafka: nothing yet

    def committed(self, partitions, timeout):
        for partition in partitions:
            partition.offset = self.offset if partition.partition == PARTITIONS - 1 else 0
        return partitions


def test_the_producer_holds_back_when_a_partition_is_a_megabyte_past_the_group():
    backlog = Backlog("127.0.0.1:1", "nobody")
    backlog.close()
    backlog._consumer = group = Group()
    for _ in range(11):
        backlog.sent(FEATURES, PARTITIONS - 1, 90_000)
    assert not backlog.is_full()
    backlog.sent(FEATURES, PARTITIONS - 1, 90_000)
    assert backlog.is_full()
    group.offset, backlog._checked_at = 6, float("-inf")
    assert not backlog.is_full()
