"""What a run is: its code, its environment, and which settings are part of its identity."""

from __future__ import annotations

import hashlib
import os
import platform
from collections.abc import Iterator
from functools import cache
from importlib.metadata import version
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any

from consumers.errors import ConfigError
from pipeline.config import JobConfig

_PACKAGES = ("torch", "numpy", "pyarrow", "confluent-kafka", "mlflow", "numba")

_FREE = {
    "job": {"state_dir"},
    "kafka": {"*"},
    "features": {"start", "schema_registry"},
    "labels": {"start", "schema_registry"},
    # The ledger has what these decide.
    "stream": {"slots", "readers", "reader_memory", "linger", "idle_after", "labels_may_idle"},
    "learner": {"device", "threads", "batch_wait"},  # the first two belong to the environment
    "snapshot": {"*"},
    "on_drift": {"webhook"},
    "registry": {"tracking_uri", "artifact_location", "release_timeout"},
    "dead_letters": {"topic"},
}
"""May differ at any start: no bit of S depends on them."""

RECORDED = {
    "join": {"memory", "disk"},
    "monitor": {"every", "frozen_after", "compare_after"},
    "on_drift": {"version", "hold_promotion", "hold_rows", "rewarm", "restart_metrics"},
    "registry": {"register_every"},
    "dead_letters": {"hold_share", "hold_window"},
}
"""May differ at any start too, and change S from there on: a line of the ledger says so. All else is identity."""


PRODUCTS_PER_THREAD = 2**24
"""Multiplications in the layers of a step for which another thread is worth its wake-up: some 0.2 ms of one core."""


@cache
def code_version() -> str:
    """The distribution's version and a hash of the source that really runs."""
    digest = hashlib.sha256()
    root = Path(__file__).parent.parent
    for package in ("consumers", "pipeline"):
        for path in sorted((root / package).rglob("*.py")):
            digest.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes())
    return f"{version('evertrain')}+{digest.hexdigest()[:12]}"


def environment(job: JobConfig) -> dict[str, str]:
    """All beside our code, settings and input that can change a bit of the result."""
    found = {**_machine(), "threads": str(torch_threads(job)), "device": job.learner.device}
    return found if job.learner.is_built_in else {**found, "task": _source_hash(job.learner.task)}


def _source_hash(task: str) -> str:
    """Of the file that a task of one's own is in; what that imports is not looked at."""
    spec = find_spec(task.partition(":")[0])
    if spec is None or spec.origin is None or not Path(spec.origin).is_file():
        return "unknown"
    return hashlib.sha256(Path(spec.origin).read_bytes()).hexdigest()[:12]


def torch_threads(job: JobConfig) -> int:
    """Threads of one tensor operation. "auto": all cores but one, as far as a step gives them work.

    One is left to the readers, however many there are, as their number must change no bit. Threads that share a core
    with a reader wait for each other, spinning: two on two cores halve the speed.
    """
    if job.learner.threads != "auto":
        return job.learner.threads
    if job.learner.is_bank:
        return 1
    widths = [job.features.columns, *job.learner.hidden]
    products = job.learner.batch_size * sum(before * after for before, after in pairwise(widths))
    return max(1, min(len(os.sched_getaffinity(0)) - 1, products // PRODUCTS_PER_THREAD))


@cache
def _machine() -> dict[str, str]:
    packages = {name: version(name) for name in _PACKAGES}
    return {"python": platform.python_version(), "machine": platform.machine(), "cpu": _cpu(), **packages}


def _cpu() -> str:
    """The processor's name and a hash of its features: libraries choose their kernels by these."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    found = dict(line.replace("\t", "").split(":", 1) for line in reversed(lines) if ":" in line)
    flags = hashlib.sha256(" ".join(sorted(found.get("flags", "").split())).encode()).hexdigest()
    return f"{found.get('model name', '').strip()} {flags[:8]}"


def changes(now: dict[str, str], then: dict[str, str]) -> str:
    """What differs between two environments, for a person; empty if nothing does."""
    names = sorted(name for name in now.keys() | then.keys() if now.get(name) != then.get(name))
    return ", ".join(f"{name} {then.get(name)} became {now.get(name)}" for name in names)


def check_identity(job: JobConfig, saved: dict[str, Any]) -> None:
    """Raises ConfigError if a setting that the state depends on differs from the snapshot's."""
    for table, key, now, then in _differences(job.model_dump(mode="json"), saved):
        if key not in RECORDED.get(table, ()):
            raise ConfigError(
                f"{table}.{key} = {now!r}, but the snapshots in {job.job.state_dir} were made with "
                f"{then!r}; keep that value, or begin a new lineage with another job.name and job.state_dir"
            )


def recorded(job: JobConfig) -> dict[str, Any]:
    """The recorded settings by dotted key (JSON)."""
    document = job.model_dump(mode="json")
    return {f"{table}.{key}": document[table][key] for table, keys in RECORDED.items() for key in sorted(keys)}


def with_recorded(job: JobConfig, saved: dict[str, Any]) -> JobConfig:
    """The job with the recorded settings of a snapshot's `config`."""
    return with_settings(job, {f"{table}.{key}": saved[table][key] for table, keys in RECORDED.items() for key in keys})


def with_settings(job: JobConfig, values: dict[str, Any]) -> JobConfig:
    """The job with other values for dotted keys."""
    document = job.model_dump()
    for dotted, value in values.items():
        table, _, key = dotted.partition(".")
        document[table][key] = value
    return JobConfig.model_validate(document)


def _differences(now: dict[str, Any], then: dict[str, Any]) -> Iterator[tuple[str, str, Any, Any]]:
    """Table, key and both values of every setting that differs and is not free."""
    for table in now.keys() | then.keys():
        ours, theirs, free = now.get(table) or {}, then.get(table) or {}, _FREE.get(table, set())
        for key in ours.keys() | theirs.keys():
            if "*" not in free and key not in free and ours.get(key) != theirs.get(key):
                yield table, key, ours.get(key), theirs.get(key)
