"""The demo's job: its file, and its process, which the demo kills once."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from consumers.broker import die_with_parent
from consumers.errors import EvertrainError
from pipeline.demo.flights import CATEGORICAL, NULLABLE, NUMERIC
from pipeline.demo.panel import read_status
from pipeline.demo.producer import DEAD, FEATURES, LABELS

JOB = "flights"
END_S = 15.0

_JOB_FILE = """\
# Written by `evertrain demo`: will a flight from New York arrive 15 minutes late or more?

[job]
name = "{job}"  # lineage, and the registered model's name
state_dir = "{state}/{job}"

[kafka]
"bootstrap.servers" = "{bootstrap}"

[features]  # known at scheduled departure
topic = "{features}"
key = "id"
time = "ts"
numeric = [
{numeric}
]
categorical = [{categorical}]

[labels]  # known when the flight has arrived; a cancelled flight never gets one
topic = "{labels}"
key = "id"
time = "ts"
column = "late"

[join]
window = "48h"  # the latest label comes after 33 hours
on_expiry = "drop"

[stream]
span = 512  # small spans: rows are scored soon after they come
idle_after = "30d"  # a year passes in half a minute: a partition that pauses for a day is not idle

[learner]
task = "binary"
batch_size = 256

[monitor]
every = "5000 rows"
frozen_after = {frozen_after}  # 10 % of the rows: a copy that learns no more, to see what learning is worth
compare_after = {compare_after}  # live against frozen over the last half
reference_rows = 30000  # drift against the first month

[snapshot]
every = "{snapshot_every} rows"
anchor_every = "{register_every} rows"  # every version can be rebuilt from the one before

[registry]
tracking_uri = "sqlite:///{state}/mlflow.db"
register_every = "{register_every} rows"

[dead_letters]
topic = "{dead}"
"""


def job_toml(state: Path, bootstrap: str, rows: int, *, mock: bool) -> str:
    """The job file. `rows`: how many labels will come."""
    numeric = [f'    "{name}",' for name in NUMERIC]
    numeric += [f'    {{ name = "{name}", nullable = true }},' for name in NULLABLE]
    return _JOB_FILE.format(
        job=JOB,
        state=state.as_posix(),
        bootstrap=bootstrap,
        features=FEATURES,
        labels=LABELS,
        dead=DEAD,
        numeric="\n".join(numeric),
        categorical=", ".join(f'"{name}"' for name in CATEGORICAL),
        frozen_after=rows // 10,
        compare_after=rows // 2,
        # On the mock cluster the producer waits for the offsets that a snapshot commits.
        snapshot_every=4_000 if mock else 20_000,
        register_every=min(80_000, max(rows // 4, 1)),
    )


class Job:
    """`evertrain run` in a process of its own."""

    def __init__(self, file: Path, log: Path, lock: int) -> None:
        self.file = file
        self.log = log
        self._lock = lock
        self._process = self._start()

    @property
    def code(self) -> int | None:
        """Its exit code, or None while it runs."""
        return self._process.poll()

    @property
    def listens(self) -> bool:
        """Whether it has come so far that `finish` reaches it."""
        return read_status(self.file.parent / JOB).get("pid") == self._process.pid

    def kill_and_start_again(self) -> int:
        """SIGKILL, as a crash would; returns the process that died."""
        pid = self._process.pid
        self._process.kill()
        self._process.wait()
        self._process = self._start()
        return pid

    def finish(self) -> None:
        """Has it end at what the topics hold now."""
        self._process.send_signal(signal.SIGUSR1)

    def stop(self) -> None:
        """Ends it, whatever it does."""
        if self.code is None:
            self._process.terminate()
            try:
                self._process.wait(END_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()

    def verify(self, version: int) -> dict[str, Any]:
        """What `evertrain verify` says of a version. Raises EvertrainError if it cannot tell."""
        command = [*_COMMAND, "verify", str(version), "-c", str(self.file), "-o", "json"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if not done.stdout:
            raise EvertrainError(f"`evertrain verify {version} -c {self.file}` failed: {done.stderr.strip()[-400:]}")
        found: dict[str, Any] = json.loads(done.stdout)
        return found

    def _start(self) -> subprocess.Popen[bytes]:
        command = [*_COMMAND, "run", "-c", str(self.file)]
        with self.log.open("ab") as output:
            return subprocess.Popen(
                die_with_parent(command, signal.SIGTERM),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
                pass_fds=[self._lock],  # the folder is in use as long as the job lives, whatever becomes of the demo
            )


_COMMAND = [sys.executable, "-m", "pipeline.cli"]
