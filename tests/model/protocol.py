"""The commit and release protocol, searched whole in small worlds, and each of its rules broken once.

`python -m tests.model.protocol` visits every state that trainers and their releasers, crashes, power losses, lost
answers and a second trainer can reach in each of `SCOPES`: no promise may be broken. Then it breaks the `RULES` one at
a time: each must be missed, and -v prints the shortest story of what happens without it.

Not in the model: disks that rot, fill up or fail an fsync (`tests/faults` has them).
Two things that one might expect are no rules, because nothing misses them: the bump of a generation need not be durable
(a power loss ends all who would ask), and a manifest found at a start needs no fsync of its content, only of its name.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
import time
from collections.abc import Iterator
from functools import partial
from itertools import pairwise

from tests.model.checker import Result, search
from tests.model.steps import Model
from tests.model.world import FIRST, KEEP, SEQ, Scope, State, damaged, once

NO_LOCK = frozenset({"lock"})  # a network file system on which every flock succeeds, or a lock file that was deleted
NO_FENCE = NO_LOCK | {"check_generation"}
ONE_BY_ONE = {"records": 3, "trainers": 2, "intruders": 1, "any_size": False}  # three commits free a sequence number

SCOPES = {
    # One trainer at a time: the lock sees to it.
    "disk": Scope("letters", 3, crashes=2, power_losses=2, anchor=1),
    "long": Scope("letters", 4, crashes=1, power_losses=2, anchor=1),
    "metrics": Scope("metrics", 3, crashes=2, power_losses=1),
    "versions": Scope("versions", 3, trainers=2, crashes=2, power_losses=1, unknown=2),
    "late versions": Scope("versions", 3, crashes=1, unknown=2, late=True),
    # Two at once, and no lock.
    "two": Scope("letters", 3, trainers=2, intruders=1, without=NO_LOCK),
    "two, killed": Scope("letters", **ONE_BY_ONE, crashes=1, without=NO_LOCK),
    "two, no power": Scope("letters", 2, trainers=2, intruders=1, crashes=1, power_losses=1, without=NO_LOCK),
    "two, again": Scope("letters", 2, trainers=2, intruders=2, without=NO_LOCK),
    "three": Scope("letters", 2, trainers=3, intruders=2, any_size=False, without=NO_LOCK),
    "two, metrics": Scope("metrics", 2, trainers=2, intruders=1, without=NO_LOCK),
    "two, versions": Scope("versions", 2, trainers=2, intruders=1, crashes=1, without=NO_LOCK),
    # Where one rule backs another up, the other one is missing: what is left is enough for as much as this.
    "lock alone": Scope("letters", **ONE_BY_ONE, without=frozenset({"check_generation"})),
    "link alone": Scope("letters", 2, trainers=2, intruders=1, orphans=False, without=NO_FENCE),
    "newest alone": Scope("letters", **ONE_BY_ONE, orphans=False, prompt=True, without=NO_FENCE),
}

RULES = {
    # name: (the scope in which it is missed, what it says)
    "lock": ("lock alone", "a trainer starts only while no other has the lock"),
    "own_generation": ("two", "the generation that a start draws is no other start's"),
    "bump_first": ("two", "a start bumps the generation before it unlinks temporary manifests"),
    "sweep": ("two", "and does unlink them: a commit that has passed its fence cannot link any more"),
    "refsync": ("disk", "a start fsyncs the directories before anything is done with what it found"),
    "recover_cursor": ("disk", "the place in the topics is the snapshot's: the group's offsets are never read"),
    "tell_recovered": (
        "two, no power",
        "a start tells its releaser of what it recovered, not of what is listed by then",
    ),
    "blob_fsync": ("disk", "a blob is fsynced before it gets its name"),
    "blob_dir_fsync": ("disk", "the directory of blobs is fsynced before a manifest names them"),
    "blobs_first": ("disk", "blobs come before the manifest that names them"),
    "blob_names": ("two, again", "a blob's name tells the start that wrote it, not only the content"),
    "manifest_fsync": ("disk", "a manifest is fsynced before it gets its name"),
    "temp_before_fence": ("two", "the temporary manifest is written before the fence is checked"),
    "check_generation": ("two", "a commit goes on only while the generation is its own"),
    "check_newest": ("newest alone", "a commit goes on only while the newest manifest is the one it extends"),
    "no_replace": ("link alone", "a manifest gets its name by a link, which replaces nothing"),
    "manifest_dir_fsync": ("disk", "the directory of manifests is fsynced after the link"),
    "tell_durable": ("disk", "and only then the releaser hears of the snapshot"),
    "collect_released": ("late versions", "an old snapshot stays until all that it owes is released"),
    "collect_anchors": ("late versions", "an anchor stays"),
    "anchor_owed": ("late versions", "with what it owed: a releaser that lost its marker asks for it again"),
    "manifests_first": ("disk", "collection deletes manifests before blobs"),
    "collect_fsync": ("disk", "and fsyncs their directory in between"),
    "collect_own": ("two", "it deletes only blobs of the snapshots that it collects"),
    "orphans_listed": ("two", "a start lists the orphans that it deletes before it bumps the generation"),
    "releaser_dies": ("versions", "a releaser dies with its trainer"),
    "oldest_first": ("disk", "snapshots are released oldest first"),
    "marker_after": ("disk", "a marker is written after the effects"),
    "marker_hint": ("disk", "without a marker everything may have to be released again"),
    "step_after": ("metrics", "the run's last step is written after the points up to it"),
    "find_first": ("versions", "a version is searched for before it is created"),
    "find_again": ("versions", "and again after a create whose outcome is unknown"),
    "reconcile": ("late versions", "a start deletes versions of its lineage that are there twice"),
}
"""`check_newest` and `no_replace` only back up the fence: a temporary manifest that is written before the generation is
checked, and unlinked after it is bumped, leaves a second writer no instant. They are shown where nobody checks the
generation or deletes orphans: the link while no sequence number is free again, the other while nobody is stalled just
before his link."""


def broken(model: Model, s: State) -> str | None:
    """The promise that a state breaks."""
    visible = sorted((m for m in s.manifests if m not in s.torn), key=SEQ)
    newest = visible[-1] if visible else FIRST
    if any(m.records != tuple(range(m.cursor)) for m in visible):
        return "each record is applied exactly once"
    if not all(a in b.line for a, b in pairwise(visible)):
        return "snapshots are one line"
    if not all(m in newest.line for m in s.released):
        return "what was released is never rolled back, and nothing else was"
    for m in visible:
        whole = m.seq > newest.seq - KEEP or m.seq == model.scope.anchor
        if damaged(s, m, m.owed, *([m.state] if whole else [])):
            return "a snapshot that is there has its blobs"
    if not visible or (model.scope.anchor <= newest.seq and model.scope.anchor not in map(SEQ, visible)):
        return "anchors stay"
    if model.on("lock") and not model.scope.late and len(once(s.versions)) < len(s.versions):
        return "a version is registered once"
    return None


def unfinished(model: Model, s: State) -> str | None:
    """The promise that a state breaks in which nothing happens any more. No step leads back: all else leads here."""
    newest = max(s.manifests, key=SEQ)
    versions = once(s.versions) if model.on("reconcile") else s.versions  # as the next start does
    done = {
        "letters": s.seen == frozenset(range(model.scope.records)),
        "metrics": s.seen == frozenset(range(model.scope.records)),
        "versions": versions == tuple(sorted(newest.line - {FIRST}, key=SEQ)),
    }
    if newest.cursor < model.scope.records:
        return "everything is learned in the end"
    return None if done[model.scope.sink] else "everything owed is released in the end, once"


def check(scope: Scope, rule: str | None = None) -> Result:
    """Searches a scope, with one of its rules broken if told so."""
    model = Model(scope, frozenset({rule} if rule else ()))
    gc.disable()  # states are tuples without cycles: it would look through all of them for nothing
    try:
        return search(model.initial(), model.steps, model.faults, partial(broken, model), partial(unfinished, model))
    finally:
        gc.enable()


def searches() -> Iterator[tuple[str, str | None, Result]]:
    """Every scope as it is, then every rule broken: (scope, rule or None, what was found)."""
    for name, scope in SCOPES.items():
        yield name, None, check(scope)
    for rule, (name, _) in RULES.items():
        yield name, rule, check(SCOPES[name], rule)


def line(name: str, rule: str | None, result: Result) -> str:
    """One search, for a person."""
    if rule is None:
        return (
            f"{name:20}{result.states:>10,} states{result.transitions:>12,} transitions  {result.violation or 'holds'}"
        )
    found = f"{len(result.trace):>4} steps to break: {result.violation}" if result.violation else "NOT CAUGHT"
    return f"without {rule:20}{found}"


def story(result: Result) -> str:
    """The steps of a trace."""
    return "".join(f"\n      {number:>2} {step}" for number, step in enumerate(result.trace, 1))


def main(arguments: list[str] | None = None) -> int:
    """Prints what was found. Returns 0 if no promise is broken and every broken rule is missed, else 4."""
    parser = argparse.ArgumentParser(prog="python -m tests.model.protocol", description=__doc__)
    parser.add_argument("-o", "--output", choices=("text", "json"), default="text")
    parser.add_argument("-v", "--verbose", action="store_true", help="print the shortest trace to each broken promise")
    args = parser.parse_args(arguments)
    started = time.monotonic()
    found = []
    for name, rule, result in searches():
        found.append((name, rule, result))
        if args.output == "text":
            details = f"  ({RULES[rule][1]})" if args.verbose and rule else ""
            trace = story(result) if args.verbose or (rule is None and result.violation) else ""
            print(f"{line(name, rule, result)}{details}{trace}", flush=True)
    whole = [result for _, rule, result in found if rule is None]
    mutations = {
        f"no_{rule}": {
            "caught": result.violation is not None,
            "trace_length": len(result.trace),
            "invariant": result.violation,
            "scope": name,
        }
        for name, rule, result in found
        if rule
    }
    summary = {
        "states": sum(result.states for result in whole),
        "transitions": sum(result.transitions for result in whole),
        "seconds": round(time.monotonic() - started, 1),
        "violations": sum(result.violation is not None for result in whole),
        "mutations": mutations,
        "caught": sum(mutation["caught"] is True for mutation in mutations.values()),
        "of": len(mutations),
    }
    if args.output == "json":
        print(json.dumps(summary))
    else:
        print(
            "{states:,} states, {transitions:,} transitions, {violations} violations, "
            "{caught} of {of} broken rules caught, {seconds} s".format(**summary)
        )
    return 0 if not summary["violations"] and summary["caught"] == summary["of"] else 4


if __name__ == "__main__":
    sys.exit(main())
