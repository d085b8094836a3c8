"""What a run is: its code, its environment, and which settings are part of its identity."""

from __future__ import annotations

import hashlib
import platform
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from consumers.errors import ConfigError
from pipeline.config import JobConfig

_PACKAGES = ("torch", "numpy", "pyarrow", "confluent-kafka", "mlflow", "numba")

_FREE: dict[str, set[str]] = {
    "job": {"state_dir", "name"},
    "features": {"start"},
    "labels": {"start"},
    "join": {"memory"},
    "stream": {"slots", "reader_memory", "linger", "idle_after", "labels_may_idle"},
    "learner": {"device", "threads", "batch_wait"},
}
_IDENTITY = ("job", "features", "labels", "join", "stream", "learner")


@cache
def code_version() -> str:
    """The distribution's version and a hash of the source that really runs."""
    digest = hashlib.sha256()
    root = Path(__file__).parent.parent
    for package in ("consumers", "pipeline"):
        for path in sorted((root / package).rglob("*.py")):
            digest.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes())
    return f"{version('evertrain')}+{digest.hexdigest()[:12]}"


def environment() -> dict[str, str]:
    """Versions that can change a bit of the result."""
    packages = {name: version(name) for name in _PACKAGES}
    return {"python": platform.python_version(), "machine": platform.machine(), **packages}


def check_identity(job: JobConfig, saved: dict[str, Any]) -> None:
    """Raises ConfigError if a setting that the state depends on differs from the snapshot's."""
    document = job.model_dump(mode="json")
    for table in _IDENTITY:
        now, then = document[table] or {}, saved[table] or {}
        for key in now.keys() | then.keys():
            if key not in _FREE.get(table, ()) and now.get(key) != then.get(key):
                raise ConfigError(
                    f"{table}.{key} = {now.get(key)!r}, but the snapshots in {job.job.state_dir} were made with "
                    f"{then.get(key)!r}; keep that value, or begin a new lineage with another job.state_dir"
                )
