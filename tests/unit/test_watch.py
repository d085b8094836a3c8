"""Records count only once the topics were seen, after they were fetched, to be the same ones as ever."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from consumers.errors import DependencyError, StreamError
from consumers.kafka import Topic
from consumers.record import Partition
from consumers.watch import TopicWatch

NAME = "t"


class FakeCluster:
    """Answers with `topics`, or not at all while that is None."""

    def __init__(self) -> None:
        self.topics: dict[str, Topic | None] | None = {NAME: topic("one")}
        self.asked = 0

    def inquire(self, _: Sequence[str]) -> Any:
        self.asked += 1
        return FakeInquiry(self)


class FakeInquiry:
    def __init__(self, cluster: FakeCluster) -> None:
        self._cluster = cluster
        self.done = True

    def topics(self) -> dict[str, Topic | None]:
        if self._cluster.topics is None:
            raise DependencyError("Kafka is not reachable")
        return self._cluster.topics


def topic(topic_id: str, partitions: int = 1) -> Topic:
    return Topic(NAME, topic_id, tuple(Partition(NAME, number) for number in range(partitions)))


def watch(cluster: FakeCluster, topic_id: str = "one") -> TopicWatch:
    return TopicWatch(cluster, {NAME: topic_id}, {Partition(NAME, 0)})  # type: ignore[arg-type]


def test_an_answer_confirms_what_was_fetched_before_it_was_asked_for() -> None:
    watched = watch(FakeCluster())
    watched.poll(10.0, held=True)
    assert watched.confirmed_at < 10.0
    watched.poll(10.2, held=True)
    assert watched.confirmed_at == 10.0


def test_it_asks_often_only_while_records_wait_for_the_answer() -> None:
    asked = []
    for held in (True, False):
        cluster = FakeCluster()
        watched = watch(cluster)
        for tick in range(100):
            watched.poll(tick / 100, held=held)
        asked.append(cluster.asked)
    assert asked[0] > 20
    assert asked[1] == 1


def test_a_topic_with_another_id_is_an_error_that_names_both() -> None:
    cluster = FakeCluster()
    watched = watch(cluster)
    cluster.topics = {NAME: topic("two")}
    watched.poll(10.0, held=False)
    with pytest.raises(StreamError, match="id one became two"):
        watched.poll(10.1, held=False)


def test_a_topic_that_is_unknown_for_a_moment_confirms_nothing_and_comes_back() -> None:
    cluster = FakeCluster()
    watched = watch(cluster)
    cluster.topics = {NAME: None}
    for now in (10.0, 10.1, 12.0):
        watched.poll(now, held=True)
    assert "does not know topic 't' (id one)" in watched.missing
    assert watched.confirmed_at < 10.0
    cluster.topics = {NAME: topic("one")}
    for now in (13.0, 13.1):
        watched.poll(now, held=True)
    assert watched.missing == ""
    assert watched.confirmed_at == 13.0


def test_an_outage_says_nothing_of_the_topics() -> None:
    cluster = FakeCluster()
    watched = watch(cluster)
    cluster.topics = None
    for now in (10.0, 10.1):
        watched.poll(now, held=True)
    assert watched.missing == ""
    assert watched.outage == "Kafka is not reachable"
    assert watched.confirmed_at < 10.0
    with pytest.raises(DependencyError):
        watched.check()


def test_partitions_that_a_topic_got_are_told_of() -> None:
    cluster = FakeCluster()
    watched = watch(cluster)
    cluster.topics = {NAME: topic("one", partitions=3)}
    watched.check()
    assert watched.new == {Partition(NAME, 1), Partition(NAME, 2)}


def test_a_cluster_without_topic_ids_is_not_asked() -> None:
    cluster = FakeCluster()
    watched = watch(cluster, topic_id="")
    watched.poll(10.0, held=True)
    assert watched.confirmed_at > 10.0
    assert not cluster.asked
