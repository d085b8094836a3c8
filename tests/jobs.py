"""Runs `evertrain` as a user would: in a process of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipeline.store import LocalStore, Manifest
from tests.stream import toml

ROOT = Path(__file__).resolve().parent.parent
QUIET = {**os.environ, "PYTHONWARNINGS": "default"}


class Job:
    """A job file in a folder, and the processes that run it."""

    def __init__(self, folder: Path, document: dict[str, Any]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / "job.toml"
        self.path.write_text(toml(document))
        self.state_dir = Path(document["job"]["state_dir"])
        self.log = folder / "job.log"

    def start(self, *args: str) -> subprocess.Popen[bytes]:
        """`evertrain run` in the background."""
        with self.log.open("ab") as log:
            command = [sys.executable, "-m", "pipeline.cli", "run", "-c", str(self.path), *args]
            return subprocess.Popen(command, cwd=ROOT, env=QUIET, stdout=log, stderr=log)

    def run(self, *args: str, expect: int = 0) -> None:
        """`evertrain run` to its end."""
        process = self.start(*args)
        try:
            code = process.wait(300)
        finally:
            process.kill()
        assert code == expect, self.log.read_text()[-4000:]

    def learn_all(self) -> Manifest:
        """Runs until caught up and returns the last manifest."""
        self.run("--until-caught-up")
        return self.manifest()

    def manifest(self) -> Manifest:
        """The newest one."""
        store = LocalStore(self.state_dir)
        return store.manifest(store.sequences()[-1])

    def arrays(self) -> dict[str, Any]:
        """The arrays of the newest snapshot."""
        from safetensors.numpy import load

        return load(LocalStore(self.state_dir).get(self.manifest()["blobs"]["arrays"]))

    def status(self) -> dict[str, Any]:
        """`status.json`, or nothing yet."""
        try:
            document: dict[str, Any] = json.loads((self.state_dir / "status.json").read_text())
        except FileNotFoundError:
            return {}
        return document

    def wait_for(self, what: Callable[[], Any], process: subprocess.Popen[bytes], seconds: float = 90) -> Any:
        """Waits until `what()` is true while the process lives."""
        deadline = time.monotonic() + seconds
        while not (found := what()):
            assert process.poll() is None, self.log.read_text()[-4000:]
            assert time.monotonic() < deadline, f"waited {seconds} s; {self.log.read_text()[-4000:]}"
            time.sleep(0.02)
        return found

    def interrupt_after(self, sequence: int, number: signal.Signals, *args: str) -> int:
        """Runs until a snapshot is there, then sends a signal; returns the exit code."""
        process = self.start(*args)
        snapshots = self.state_dir / "snapshots"
        self.wait_for((snapshots / f"{sequence:012d}.json").exists, process)
        process.send_signal(number)
        return process.wait(30)


def evertrain(*args: str, expect: int = 0) -> subprocess.CompletedProcess[str]:
    """Any other command, to its end."""
    done = subprocess.run(  # noqa: PLW1510 (the code is checked below)
        [sys.executable, "-m", "pipeline.cli", *args], cwd=ROOT, env=QUIET, capture_output=True, text=True, timeout=150
    )
    assert done.returncode == expect, done.stderr[-4000:]
    return done
