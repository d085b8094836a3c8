"""What trainers, their releasers and the faults may do, one atomic step each.

A step makes another state. `tests.model.protocol` has the rules: `on` asks by their names whether one is kept.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import TypeAlias

from tests.model.world import DOWN, KEEP, SEQ, Scope, Snap, State, Trainer, added, damaged, once, put, snap, subsets

Step: TypeAlias = tuple[str, State]
Steps: TypeAlias = Iterator[Step]


class Trainers:
    """What trainers do, one atomic step each. A method's name is the step; `then` has the order."""

    def __init__(self, scope: Scope, broken: frozenset[str] = frozenset()) -> None:
        self.scope = scope
        self.off = scope.without | broken
        start = ["down", "bump", "sweep"] if self.on("bump_first") else ["down", "sweep", "bump"]
        fence = ["check_generation", "check_newest"]
        fence = ["write_temp", *fence] if self.on("temp_before_fence") else [*fence, "write_temp"]
        self.then = dict(pairwise([*start, "recover"])) | dict(pairwise(["sync_blobs", *fence, "link"]))

    def on(self, rule: str) -> bool:
        return rule not in self.off

    def down(self, s: State, i: int, t: Trainer) -> Steps:
        alone = all(other.at in ("down", "gone") for other in s.trainers)
        if alone or (s.intruders and not self.on("lock")):
            own = 1 if self.on("lock") else s.starts + 1  # behind a lock that works nobody looks at it
            s = s._replace(starts=own, intruders=s.intruders - (not alone))
            if not self.on("own_generation"):
                yield f"reads generation {s.generation}", put(s, i, Trainer("bump", s.generation + 1))
            elif self.on("bump_first"):  # at once: nobody can tell the difference
                yield from self.bump(s, i, Trainer(generation=own))
            else:
                yield "starts", put(s, i, Trainer("sweep", own))

    def gone(self, s: State, i: int, t: Trainer) -> Steps:
        return iter(())  # only its releaser lives

    def bump(self, s: State, i: int, t: Trainer) -> Steps:
        listed = s.blobs if self.on("orphans_listed") else frozenset()
        after = {"generation": t.generation}
        yield f"starts as generation {t.generation}", put(s, i, t, self.then["bump"], after, listed=listed)

    def sweep(self, s: State, i: int, t: Trainer) -> Steps:
        if self.on("sweep"):
            s = s._replace(trainers=tuple(other._replace(temp=False) for other in s.trainers))
        yield "unlinks temporary manifests", put(s, i, t, self.then["sweep"])

    def recover(self, s: State, i: int, t: Trainer) -> Steps:
        good = [m for m in s.manifests if not damaged(s, m, m.state, m.owed)]
        if good:
            base = max(good, key=SEQ)
            kept = frozenset(m for m in s.manifests if m.seq <= base.seq)  # bad ones are set aside
            listed = t.listed if self.on("orphans_listed") else s.blobs
            orphans = listed.difference(*(m.blobs for m in kept))
            cursor = base.cursor if self.on("recover_cursor") else s.group
            found = t._replace(base=base, cursor=cursor, listed=orphans)
            yield f"recovers {base.seq}", put(s, i, found, "sync_again", {"manifests": kept})

    def sync_again(self, s: State, i: int, t: Trainer) -> Steps:
        synced = {"manifests_durable": s.manifests, "blobs_durable": s.blobs, "unsynced": s.unsynced - {t.base}}
        s = s._replace(**(synced if self.on("refsync") and s.power_losses else {}))
        if self.on("tell_recovered"):
            yield from self.open(s, i, t)
        else:
            yield "fsyncs both directories", put(s, i, t, "open")

    def open(self, s: State, i: int, t: Trainer) -> Steps:
        told = t.base.seq if self.on("tell_recovered") else max(map(SEQ, s.manifests))
        if self.on("reconcile"):
            s = s._replace(versions=once(s.versions))
        ready = self.restarted(s, t._replace(told=told, listed=frozenset()))
        after = {"blobs": s.blobs - t.listed} if self.scope.orphans else {}
        yield f"has fsynced, deletes orphans, tells its releaser of {told}", put(s, i, ready, "train", after)

    def restarted(self, s: State, t: Trainer) -> Trainer:
        released = s.marker or (0 if self.on("marker_hint") else t.told)
        return t._replace(doing=("idle",), released=released)

    def train(self, s: State, i: int, t: Trainer) -> Steps:
        longest = self.scope.records - t.cursor if self.scope.any_size else min(1, self.scope.records - t.cursor)
        for stop in range(t.cursor + 1, t.cursor + longest + 1):
            records = t.base.records + tuple(range(t.cursor, stop))
            mark = t.generation if self.on("blob_names") else 0
            new = snap(t.base, records, stop, t.generation, mark)
            after = {"blobs": s.blobs.union(new.blobs)} if self.on("blobs_first") else {}
            after["unsynced"] = s.unsynced.union(() if self.on("blob_fsync") else new.blobs)
            at = "sync_blobs" if s.power_losses else self.then["sync_blobs"]  # a step that nobody would see
            yield f"applies up to {stop}, writes blobs of {new.seq}", put(s, i, t, at, after, next=new)

    def sync_blobs(self, s: State, i: int, t: Trainer) -> Steps:
        after = {"blobs_durable": s.blobs} if self.on("blob_dir_fsync") else {}
        yield "fsyncs the blobs' directory", put(s, i, t, self.then["sync_blobs"], after)

    def write_temp(self, s: State, i: int, t: Trainer) -> Steps:
        after = {} if self.on("manifest_fsync") else {"unsynced": s.unsynced | {t.next}}
        yield "writes a manifest", put(s, i, t, self.then["write_temp"], after, temp=True)

    def check_generation(self, s: State, i: int, t: Trainer) -> Steps:
        if s.generation != t.generation and self.on("check_generation"):
            yield "stops: another generation", put(s, i, DOWN)
        else:
            yield "finds its generation", put(s, i, t, self.then["check_generation"])

    def check_newest(self, s: State, i: int, t: Trainer) -> Steps:
        if max(s.manifests, key=SEQ) is not t.base and self.on("check_newest"):
            yield "stops: another manifest", put(s, i, DOWN)
        elif self.scope.prompt:
            yield from self.link(s, i, t)
        else:
            yield "finds its manifest the newest", put(s, i, t, self.then["check_newest"])

    def link(self, s: State, i: int, t: Trainer) -> Steps:
        there = {m for m in s.manifests if m.seq == t.next.seq}
        if not t.temp:
            yield "stops: its temporary manifest is gone", put(s, i, DOWN)
        elif there and self.on("no_replace"):
            yield f"stops: another wrote {t.next.seq}", put(s, i, DOWN)
        else:
            after = {"manifests": s.manifests - there | {t.next}}
            told = t.told if self.on("tell_durable") else t.next.seq
            yield f"links {t.next.seq}", put(s, i, t, "sync_manifest", after, temp=False, told=told)

    def sync_manifest(self, s: State, i: int, t: Trainer) -> Steps:
        after = {"manifests_durable": s.manifests} if self.on("manifest_dir_fsync") else {}
        if not self.on("blobs_first"):
            after["blobs"] = s.blobs.union(t.next.blobs)
        done = t._replace(base=t.next, cursor=t.next.cursor, next=None, told=t.next.seq)
        yield "fsyncs the manifests' directory", put(s, i, done, "collect", after)

    def collect(self, s: State, i: int, t: Trainer) -> Steps:
        gone = {m for m in s.manifests if not self.kept(s, t, m)}
        keep = {blob for m in s.manifests - gone for blob in self.blobs_kept(t, m)}
        garbage = s.blobs.intersection(blob for m in s.manifests for blob in m.blobs) - keep
        if not gone and not garbage and self.on("collect_own"):
            yield "has nothing to collect", put(s, i, t, "train")
        elif self.on("manifests_first"):
            # The rule broken: all that is not in `keep` by the time of the deletion.
            listed = garbage if self.on("collect_own") else frozenset(keep)
            after = {"manifests": s.manifests - gone}
            at = "sync_deleted" if s.power_losses else "delete_blobs"  # likewise
            yield f"deletes manifests {sorted(map(SEQ, gone))}", put(s, i, t, at, after, listed=listed)
        else:
            yield "deletes blobs", put(s, i, t, "delete_manifests", {"blobs": s.blobs - garbage})

    def kept(self, s: State, t: Trainer, m: Snap) -> bool:
        anchor = m.seq == self.scope.anchor and self.on("collect_anchors")
        owes = m.seq > s.marker and self.on("collect_released")
        return m.seq > t.base.seq - KEEP or anchor or owes

    def blobs_kept(self, t: Trainer, m: Snap) -> tuple[str, ...]:
        if m.seq > t.base.seq - KEEP:
            return m.blobs
        if m.seq == self.scope.anchor:
            return m.blobs if self.on("anchor_owed") else (m.state,)
        return (m.owed,)

    def sync_deleted(self, s: State, i: int, t: Trainer) -> Steps:
        after = {"manifests_durable": s.manifests} if self.on("collect_fsync") else {}
        yield "fsyncs the manifests' directory", put(s, i, t, "delete_blobs", after)

    def delete_blobs(self, s: State, i: int, t: Trainer) -> Steps:
        left = s.blobs - t.listed if self.on("collect_own") else s.blobs & t.listed
        yield "deletes blobs", put(s, i, t, "train", {"blobs": left}, listed=frozenset())

    def delete_manifests(self, s: State, i: int, t: Trainer) -> Steps:
        left = frozenset(m for m in s.manifests if self.kept(s, t, m))
        yield "deletes manifests", put(s, i, t, "train", {"manifests": left})


class Releasers(Trainers):
    """What releasers do. They read the disk as processes see it: page cache and all."""

    def idle(self, s: State, i: int, t: Trainer) -> Steps:
        due = [m for m in s.manifests if t.released < m.seq <= t.told]
        if not due:
            return
        m = min(due, key=SEQ) if self.on("oldest_first") else max(due, key=SEQ)
        if damaged(s, m, m.owed):
            return  # it tries again for ever
        first = {"letters": "send", "metrics": "read_step", "versions": "find" if self.on("find_first") else "create"}
        step = first[self.scope.sink]
        if self.on("marker_after"):
            yield from getattr(self, step)(s, i, t, m)
        else:
            yield f"marks {m.seq} as released", put(s, i, t, None, {"marker": m.seq}, doing=(step, m))

    def send(self, s: State, i: int, t: Trainer, m: Snap) -> Steps:
        after = {"seen": s.seen.union(m.new), "group": m.cursor, "released": s.released | {m}}
        yield f"sends the dead letters of {m.seq}", put(s, i, t, None, after, doing=("mark", m))

    def read_step(self, s: State, i: int, t: Trainer, m: Snap) -> Steps:
        after = {} if self.on("step_after") else {"step": m.cursor}
        yield f"reads the last step, {s.step}", put(s, i, t, None, after, doing=("log", m, s.step))

    def log(self, s: State, i: int, t: Trainer, m: Snap, step: int) -> Steps:
        points = s.seen.union(record for record in m.new if record >= step)
        after = {"seen": points, "released": s.released | {m}}
        yield f"logs the points of {m.seq}", put(s, i, t, None, after, doing=("tag", m))

    def tag(self, s: State, i: int, t: Trainer, m: Snap) -> Steps:
        yield f"sets the last step, {m.cursor}", put(s, i, t, None, {"step": m.cursor}, doing=("mark", m))

    def find(self, s: State, i: int, t: Trainer, m: Snap) -> Steps:
        found = any(version.seq == m.seq for version in s.versions)
        step = "mark" if found else "create"
        yield f"{'finds' if found else 'does not find'} version {m.seq}", put(s, i, t, None, doing=(step, m))

    def create(self, s: State, i: int, t: Trainer, m: Snap) -> Steps:
        created = {"versions": added(s.versions, m), "released": s.released | {m}}
        yield f"creates version {m.seq}", put(s, i, t, None, created, doing=("mark", m))
        if s.unknown:
            s = s._replace(unknown=s.unknown - 1)
            retry = ("find" if self.on("find_again") else "create", m)
            yield f"creates version {m.seq}, the answer is lost", put(s, i, t, None, created, doing=retry)
            yield f"creates version {m.seq} in vain", put(s, i, t, None, doing=retry)
            if self.scope.late:
                late = {"late": added(s.late, m), "released": s.released | {m}}
                yield f"gives up to create version {m.seq}", put(s, i, t, None, late, doing=retry)

    def mark(self, s: State, i: int, t: Trainer, m: Snap) -> Steps:
        yield f"marks {m.seq} as released", put(s, i, t, None, {"marker": m.seq}, doing=("idle",), released=m.seq)


class Model(Releasers):
    """Everything that may happen in a scope."""

    def initial(self) -> State:
        scope = self.scope
        return State(scope.crashes, scope.power_losses, scope.unknown, scope.intruders, (DOWN,) * scope.trainers)

    def steps(self, s: State) -> Steps:
        """What happens by itself."""
        for i, t in enumerate(s.trainers):
            if t in s.trainers[:i]:
                continue  # another that is down
            for label, after in getattr(self, t.at)(s, i, t):
                yield f"{f'trainer {t.generation}' if t.generation else 'a trainer'}: {label}", after
            for label, after in getattr(self, t.doing[0])(s, i, t, *t.doing[1:]) if t.doing else ():
                yield f"releaser {t.generation}: {label}", after
        for m in set(s.late):
            after = {"versions": added(s.versions, m), "late": tuple(v for v in s.late if v is not m)}
            yield f"server: creates version {m.seq} after all", s._replace(**after)

    def faults(self, s: State) -> Steps:
        """What is done to it: a trainer killed, a releaser killed, the power lost."""
        for i, t in enumerate(s.trainers if s.crashes else ()):
            if t.at not in ("down", "gone"):
                less = s._replace(crashes=s.crashes - 1)
                survives = t.doing and not self.on("releaser_dies") and DOWN in s.trainers  # one more can start
                gone = t._replace(at="gone") if survives else DOWN
                yield f"trainer {t.generation}: is killed", put(less, i, gone)
                if t.doing and t.doing != ("idle",):
                    yield f"releaser {t.generation}: is killed", put(less, i, self.restarted(s, t))
        if s.power_losses and any(t.at != "down" for t in s.trainers):
            for after in self.left_by_power_loss(s):
                yield "power loss", after

    def left_by_power_loss(self, s: State) -> Iterator[State]:
        """Names made or deleted since the fsync are there or not, each for itself; contents not fsynced may be torn."""
        named = {blob for m in s.manifests | s.manifests_durable for blob in m.blobs}
        blobs = s.blobs & s.blobs_durable  # of blobs without a manifest, those in doubt are lost: nobody misses them
        trainers = (DOWN,) * len(s.trainers)
        for manifests in subsets(s.manifests & s.manifests_durable, s.manifests ^ s.manifests_durable):
            if len(set(map(SEQ, manifests))) < len(manifests):
                continue  # one name, one file
            for there in subsets(blobs, (s.blobs ^ s.blobs_durable) & named):
                for torn in subsets(s.torn, s.unsynced & (manifests | there)):
                    for marker in {s.marker, 0}:
                        after = s._replace(trainers=trainers, power_losses=s.power_losses - 1, marker=marker)
                        after = after._replace(manifests=manifests, blobs=there, torn=torn, unsynced=frozenset())
                        durable = (manifests, there) if after.power_losses else (frozenset(), frozenset())
                        yield after._replace(manifests_durable=durable[0], blobs_durable=durable[1])
