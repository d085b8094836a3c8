"""Rebuilds a snapshot from an older anchor and the ledger, and says whether it is the same to the bit."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from safetensors.numpy import load

from consumers.errors import DependencyError, SnapshotError
from consumers.mapping import PAGE
from consumers.record import Added, Command, Entry, Lost, Membership, Partition, Span, Tick
from pipeline.config import JobConfig
from pipeline.frozen import safetensors
from pipeline.identity import changes, code_version, environment, with_settings
from pipeline.image import Image, positions_of, weights_sha256
from pipeline.learner import Learner
from pipeline.ledger import Line, between, unseal
from pipeline.recovery import chain
from pipeline.retention import Kept
from pipeline.snapshot import load_state
from pipeline.state import State
from pipeline.store import Manifest, Store
from pipeline.train import learn


class UnverifiableError(DependencyError):
    """What a rebuild needs is not there any more, or not here."""


class Spans(Protocol):
    """Where the events of a ledger come from."""

    def span(self, partition: Partition, start: int, stop: int) -> Span: ...

    def skip(self, partition: Partition, stop: int) -> None: ...


@dataclass(frozen=True, slots=True)
class Segment:
    """What leads from an anchor to the snapshot to rebuild."""

    anchor: Manifest
    lines: list[Line]
    sequence: int
    weights_sha256: str
    state_sha256: str

    def job(self, kafka: Mapping[str, Any]) -> JobConfig:
        """The job as the anchor knew it, with today's way to Kafka."""
        return JobConfig.model_validate({**self.anchor["config"], "kafka": dict(kafka)})

    def ranges(self) -> dict[Partition, tuple[int, int]]:
        """First offset and end of what is read again, by partition."""
        partitions = list(positions_of(self.anchor["cursor"]))
        found: dict[Partition, tuple[int, int]] = {}
        for kind, *rest in self.lines:
            if kind == "added":
                partitions.append(Partition(rest[0], rest[1]))
            elif kind in ("span", "lost"):
                index, start, stop, *_ = rest
                found[partitions[index]] = found.get(partitions[index], (start, stop))[0], stop
        return found


@dataclass(frozen=True, slots=True)
class Verdict:
    """What came of a rebuild."""

    sequence: int
    anchor: int
    weights_sha256: str
    state_sha256: str
    rows: int  # learned again
    differences: list[str] = field(default_factory=list)  # empty: identical


def find_segment(store: Store, sequence: int) -> Segment:
    """The way from the nearest older anchor to a snapshot. Raises UnverifiableError."""
    links = _links(store)
    target = next((link for link in links if link["ledger_since"] < sequence <= link["sequence"]), None)
    if target is None:
        raise UnverifiableError(
            f"snapshot {sequence} is not in the chain of {links[0]['snapshot_id']}: it was rolled back, is older than "
            "the oldest ledger, or belongs to another state directory"
        )
    anchor = next((link for link in links if link["sequence"] < sequence and _has_state(store, link)), None)
    if anchor is None:
        raise UnverifiableError(f"no anchor before snapshot {sequence} is left to rebuild it from")
    lines: list[Line] = []
    with suppress(SnapshotError):  # a damaged ledger is as good as none
        for link in reversed(links):
            if anchor["sequence"] < link["sequence"] and link["ledger_since"] < sequence:
                lines += unseal(store.get(link["blobs"]["ledger"]))
    lines = list(between(lines, anchor["sequence"], sequence))
    if ["gap"] in lines or not lines or lines[-1][:2] != ["snapshot", sequence]:
        raise UnverifiableError(f"the ledger between snapshots {anchor['sequence']} and {sequence} is damaged")
    return Segment(anchor, lines, *lines[-1][1:])


def rebuild(store: Store, segment: Segment, job: JobConfig, spans: Spans) -> Verdict:
    """Goes from the anchor to the snapshot again, and compares. Raises UnverifiableError, StreamError."""
    limits = [with_settings(job, line[1]).join.limit for line in segment.lines if line[0] == "config"]
    state = load_state(store, segment.anchor, job, Learner(job), room=max([job.join.limit, *limits]))
    began = state.trained
    for entry in _entries(segment.lines[:-1], state, spans):
        learn(state, entry)
    state.seal()
    topic_ids = {line["topic"]: line["topic_id"] for line in segment.anchor["cursor"]}
    image = Image.of(state, topic_ids)
    slabs = {(int(s.side), s.number): _sha256(s.columns, PAGE) for s in image.slabs if s.full}
    weights = {n.removeprefix("learner.module."): a for n, a in image.arrays.items() if n.startswith("learner.module.")}
    verdict = Verdict(
        segment.sequence,
        segment.anchor["sequence"],
        weights_sha256({name: np.ascontiguousarray(array).data for name, array in weights.items()}),
        image.state_sha256(_sha256(image.arrays), slabs),
        state.trained - began,
    )
    if (verdict.weights_sha256, verdict.state_sha256) != (segment.weights_sha256, segment.state_sha256):
        verdict.differences.extend(_differences(store, segment, verdict, image))
    return verdict


def foreign(segment: Segment, job: JobConfig) -> str:
    """How this environment and code differ from those that made the snapshot; empty if they do not."""
    then = [segment.anchor["environment"], *(line[1] for line in segment.lines if line[0] == "environment")]
    found = dict.fromkeys(changes(environment(job), made) for made in then)
    code = segment.anchor["code_version"]
    return "; ".join([f for f in found if f] + ([] if code == code_version() else [f"code {code} is {code_version()}"]))


def _entries(lines: Iterable[Line], state: State, spans: Spans) -> Iterator[Entry]:
    """The entries of a ledger; what is no entry is done to the state in between."""
    for kind, *rest in lines:
        partitions = list(state.positions)
        if kind == "span":
            yield spans.span(partitions[rest[0]], *rest[1:])
        elif kind == "lost":
            spans.skip(partitions[rest[0]], rest[2])
            yield Lost(partitions[rest[0]], *rest[1:])
        elif kind == "added":
            topic, number, start = rest
            yield Added(Partition(topic, number), start)
        elif kind == "tick":
            yield Tick()
        elif kind == "membership":
            yield Membership(partitions[rest[0]], rest[1])
        elif kind == "command":
            yield Command(*rest)
        elif kind == "config":
            state.reconfigure(with_settings(state.job, rest[0]))
        elif kind == "snapshot":
            state.seal()


def _links(store: Store) -> list[Manifest]:
    """The newest readable snapshot and those before it whose ledgers join on, newest first."""
    for sequence in reversed(store.sequences()):
        links: list[Manifest] = []
        with suppress(SnapshotError):
            for link in chain(store, store.manifest(sequence)):
                links.append(link)
        if links:
            return links
    raise UnverifiableError("there is no readable snapshot here")


def _has_state(store: Store, manifest: Manifest) -> bool:
    try:
        for sha256 in Kept.of(manifest).state:
            store.verify(sha256)
    except SnapshotError:
        return False
    return manifest["anchor"] is not None


def _differences(store: Store, segment: Segment, verdict: Verdict, image: Image) -> list[str]:
    """What differs, by name as far as the snapshot's own arrays are still there."""
    found = []
    if verdict.weights_sha256 != segment.weights_sha256:
        found.append(f"weights {verdict.weights_sha256}, not {segment.weights_sha256}")
    try:
        made = load(store.get(store.manifest(segment.sequence)["blobs"]["arrays"]))
    except SnapshotError:
        return found or [f"state {verdict.state_sha256}, not {segment.state_sha256} (the weights are the same)"]
    for name in sorted(made.keys() | image.arrays.keys()):
        then, now = made.get(name), image.arrays.get(name)
        if then is None or now is None or then.shape != now.shape or then.tobytes() != now.tobytes():
            found.append(name)
    return found or ["the document or the cursor (all arrays are the same)"]


def _sha256(arrays: Mapping[str, np.ndarray], alignment: int = 8) -> str:
    digest = hashlib.sha256()
    for part in safetensors(arrays, alignment):
        digest.update(part)
    return digest.hexdigest()
