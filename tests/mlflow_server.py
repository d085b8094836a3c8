"""A real MLflow server, for tests."""

import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request


class MLflowServer:
    """`mlflow server` on a port of its own, over a SQLite store. It may be started and stopped at will."""

    def __init__(self, path):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self._port = probe.getsockname()[1]
        self._path = path
        self._process = None
        self.uri = f"http://127.0.0.1:{self._port}"
        self.database = path / "mlflow.db"

    def start(self):
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self._port)]
        command += ["--backend-store-uri", f"sqlite:///{self.database}", "--workers", "1"]
        command += ["--artifacts-destination", f"{self._path}/artifacts"]
        with (self._path / "server.log").open("wb") as log:
            self._process = subprocess.Popen(
                command,
                cwd=self._path,
                stdout=log,
                stderr=log,
                start_new_session=True,
                env=os.environ | {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
            )
        while True:
            assert self._process.poll() is None, (self._path / "server.log").read_text()
            try:
                urllib.request.urlopen(f"{self.uri}/health", timeout=5).close()
                return self
            except (urllib.error.URLError, OSError):
                time.sleep(0.2)

    def stop(self):
        if self._process:
            os.killpg(self._process.pid, 9)
            self._process.wait()
            self._process = None

    def wipe(self):
        """Starts again with an empty database: everything it knew is gone."""
        self.stop()
        for path in self._path.glob("mlflow.db*"):
            path.unlink()
        self.start()
