"""What a state of the model is made of: snapshots, trainers with their releasers, the disk, the world outside."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from itertools import product
from operator import attrgetter
from typing import Any, NamedTuple

KEEP = 2  # newest snapshots that collection leaves whole
SEQ = attrgetter("seq")
GENERATION = attrgetter("generation")
DURABLE = ("manifests_durable", "blobs_durable", "unsynced")


class Snap:
    """A snapshot: what it extends, the records applied, the next one to read, and its writer's mark."""

    def __init__(self, parent: Snap | None, records: tuple[int, ...], cursor: int, writer: int, mark: int) -> None:
        self.parent, self.records, self.cursor, self.writer = parent, records, cursor, writer
        self.seq: int = parent.seq + 1 if parent else 0
        self.line: frozenset[Snap] = (parent.line if parent else frozenset()) | {self}
        self.new = records[len(parent.records) :] if parent else ()
        self.blobs = self.state, self.owed = f"state {records} {mark}", f"owed {self.new} {mark}"


snap = cache(Snap)  # equal snapshots are one object: states compare by identity
FIRST = snap(None, (), 0, 0, 0)


class Trainer(NamedTuple):
    """A trainer process, at the step `at`, and its releaser process, at the step `doing` (none yet: empty)."""

    at: str = "down"
    generation: int = 0
    base: Snap = FIRST  # the newest snapshot it knows of
    cursor: int = 0
    next: Snap | None = None  # the snapshot it commits
    temp: bool = False  # its temporary manifest is there
    listed: frozenset[str] = frozenset()  # blobs that it will delete: orphans at its start, then garbage
    doing: tuple[Any, ...] = ()
    told: int = 0  # the newest sequence that the releaser may release
    released: int = 0  # the newest that it has released


DOWN = Trainer()


class State(NamedTuple):
    """Faults still to come; the trainers; the disk, as processes see it and as far as it is durable; the world."""

    crashes: int
    power_losses: int
    unknown: int  # outcomes of a create
    intruders: int  # starts beside a trainer that lives
    trainers: tuple[Trainer, ...]
    manifests: frozenset[Snap] = frozenset({FIRST})
    manifests_durable: frozenset[Snap] = frozenset({FIRST})
    blobs: frozenset[str] = frozenset(FIRST.blobs)
    blobs_durable: frozenset[str] = frozenset(FIRST.blobs)
    unsynced: frozenset[Snap | str] = frozenset()  # files whose content a power loss may tear
    torn: frozenset[Snap | str] = frozenset()
    generation: int = 0
    starts: int = 0
    marker: int = 0  # of the newest released snapshot; 0: lost
    seen: frozenset[int] = frozenset()  # ids of dead letters, or metric points by step
    step: int = 0  # the tag that says up to which step there are points
    group: int = 0  # the group's committed offset
    versions: tuple[Snap, ...] = ()
    late: tuple[Snap, ...] = ()  # creates that the client gave up and the server will still do
    released: frozenset[Snap] = frozenset()  # snapshots of which the world has seen something


@dataclass(frozen=True)
class Scope:
    """How large a world is searched. Sinks share nothing but the least of their markers: one at a time will do."""

    sink: str  # letters, metrics or versions
    records: int
    crashes: int = 0
    power_losses: int = 0
    unknown: int = 0
    intruders: int = 0
    trainers: int = 1
    anchor: int = 0
    late: bool = False  # a create may come through after the client has given it up
    any_size: bool = True  # a commit holds any number of records, not one
    orphans: bool = True  # a start deletes them
    prompt: bool = False  # nobody is stalled between the last look of a commit and its link
    without: frozenset[str] = frozenset()  # rules that it does without


def put(
    s: State, i: int, t: Trainer, at: str | None = None, after: dict[str, Any] | None = None, **changes: Any
) -> State:
    """`s` with the trainer `i` changed and at another step, and with what the step leaves behind."""
    changed = t._replace(at=at or t.at, **changes)
    trainers = sorted((*s.trainers[:i], changed, *s.trainers[i + 1 :]), key=GENERATION)  # their order says nothing
    if after and not s.power_losses:
        after = {name: value for name, value in after.items() if name not in DURABLE}  # nobody will ever ask
    return s._replace(trainers=tuple(trainers), **(after or {}))


def damaged(s: State, m: Snap, *blobs: str) -> bool:
    return m in s.torn or any(blob not in s.blobs or blob in s.torn for blob in blobs)


def added(versions: tuple[Snap, ...], m: Snap) -> tuple[Snap, ...]:
    return tuple(sorted((*versions, m), key=SEQ))


def once(versions: tuple[Snap, ...]) -> tuple[Snap, ...]:
    """The first of each sequence number: the canonical one."""
    return tuple({m.seq: m for m in reversed(versions)}[seq] for seq in sorted(set(map(SEQ, versions))))


def subsets(certain: frozenset[Any], possible: Iterable[Any]) -> Iterator[frozenset[Any]]:
    items = list(possible)
    for chosen in product((True, False), repeat=len(items)):
        yield certain | {item for item, there in zip(items, chosen, strict=True) if there}
