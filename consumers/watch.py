"""Watches the topics: the same ones as ever, and all their partitions."""

from __future__ import annotations

from collections.abc import Mapping

from consumers.errors import DependencyError, StreamError
from consumers.kafka import Cluster, Inquiry
from consumers.record import Partition

ASK_EVERY_S = 1.0
ASK_WHILE_HELD_S = 0.03
"""How often to ask while records wait for the answer: what each of them waits at most, beside the broker's time."""


class TopicWatch:
    """Asks, without waiting for the answer, whether the topics are still those that the positions belong to.

    A topic that was deleted and created again has other records at the same offsets, and a live consumer goes on with
    them without an error. So what was fetched counts only once a later question was answered with the known ids.
    """

    def __init__(self, cluster: Cluster, ids: Mapping[str, str], known: set[Partition]) -> None:
        self.missing = ""  # what Kafka does not know at present
        self.outage = ""  # why the newest question was not answered
        self.new: set[Partition] = set()  # partitions beside the known ones
        self._cluster = cluster
        self._ids = {name: topic_id for name, topic_id in ids.items() if topic_id}  # a mock cluster has none
        # When the newest question that was answered well was asked.
        self.confirmed_at = float("-inf") if self._ids else float("inf")
        self._known = known
        self._inquiry: Inquiry | None = None
        self._asked_at = float("-inf")

    def poll(self, now: float, *, held: bool) -> None:
        """Takes an answer that is there, and asks anew when it is time. Raises StreamError."""
        if self._inquiry is not None and self._inquiry.done:
            inquiry, self._inquiry = self._inquiry, None
            self._take(inquiry)
        if self._ids and self._inquiry is None and now - self._asked_at >= (ASK_WHILE_HELD_S if held else ASK_EVERY_S):
            self._asked_at = now
            self._inquiry = self._cluster.inquire(list(self._ids))

    def check(self) -> None:
        """Asks and waits for the answer. Raises StreamError or DependencyError."""
        if self._ids:
            self._learn(self._cluster.inquire(list(self._ids)))

    def _take(self, inquiry: Inquiry) -> None:
        try:
            self._learn(inquiry)
        except DependencyError as error:
            self.outage = str(error)
            return  # that says nothing about the topics
        self.outage = ""
        if not self.missing:
            self.confirmed_at = self._asked_at

    def _learn(self, inquiry: Inquiry) -> None:
        missing = []
        for name, topic in inquiry.topics().items():
            if topic is None:
                missing.append(f"Kafka does not know topic {name!r} (id {self._ids[name]}): deleted?")
                continue
            if topic.id != self._ids[name]:
                raise recreated(name, self._ids[name], topic.id)
            self.new |= set(topic.partitions) - self._known
        self.missing = "; ".join(missing)


def recreated(name: str, then: str, now: str) -> StreamError:
    """The error for a topic that is another one than the positions belong to."""
    return StreamError(
        f"topic {name!r} was deleted and created again (id {then} became {now}): its offsets mean other records now; "
        "start a new lineage under another job.name and job.state_dir"
    )
