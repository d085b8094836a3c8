"""A local Kafka in its own process, for the demo, the tests and the benchmarks.

`KafkaBroker` is a real single-node Apache Kafka (KRaft); `MockBroker` is the mock cluster inside librdkafka, for
machines without Java. Either dies with the process that started it.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self
from uuid import uuid4

from confluent_kafka import KafkaException, Producer
from confluent_kafka.admin import AdminClient, NewTopic

from consumers.errors import DependencyError, EvertrainError

DEPLOY = Path(__file__).resolve().parent.parent / "deploy"
START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 20.0
MOCK_PARTITIONS = 4
"""The mock cluster creates every topic when it is first asked about it, always with this many partitions."""

_PROPERTIES = """\
process.roles=broker,controller
node.id=1
controller.quorum.voters=1@127.0.0.1:{controller}
listeners=PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller}
controller.listener.names=CONTROLLER
log.dirs={logs}
auto.create.topics.enable=false
num.partitions=4
log.retention.ms=-1
log.message.timestamp.after.max.ms=9223372036854775807
message.max.bytes=20971520
replica.fetch.max.bytes=20971520
offsets.retention.minutes=2147483647
offsets.topic.replication.factor=1
offsets.topic.num.partitions=1
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
transaction.state.log.num.partitions=1
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
group.initial.rebalance.delay.ms=0
log.cleaner.dedupe.buffer.size=8388608
"""

# A wrapper, because preexec_fn may deadlock in a process with threads; prctl(1, ...) is PR_SET_PDEATHSIG.
_DIE_WITH_PARENT = """
import ctypes, os, sys
ctypes.CDLL(None).prctl(1, int(sys.argv[1]))
if os.getppid() != int(sys.argv[2]):
    sys.exit("the parent died first")
os.execvp(sys.argv[3], sys.argv[3:])
"""


def die_with_parent(command: list[str], signal_number: int = signal.SIGKILL) -> list[str]:
    """`command`, wrapped so that it receives the signal when the thread that starts it ends, however that ends."""
    wrapper = [sys.executable, "-I", "-S", "-c", _DIE_WITH_PARENT]
    return [*wrapper, str(int(signal_number)), str(os.getpid()), *command]


def lock_folder(folder: Path, file: str) -> int:
    """Creates and locks `folder`; the lock is held until the descriptor and all its inherited copies are closed.

    Raises EvertrainError if another process holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder / file, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise EvertrainError(f"{folder} is in use by another process: stop that one, or choose another") from None
    return descriptor


def create_topics(bootstrap: str, partitions: Mapping[str, int], config: Mapping[str, str]) -> None:
    """Creates topics with these numbers of partitions on a real Kafka. Raises DependencyError."""
    admin = AdminClient({"bootstrap.servers": bootstrap, "log_level": 3})
    topics = [NewTopic(name, count, 1, config=dict(config)) for name, count in partitions.items()]
    for name, future in admin.create_topics(topics, operation_timeout=30).items():
        try:
            future.result(timeout=60)
        except KafkaException as error:
            raise DependencyError(f"cannot create the topic {name} on {bootstrap}: {error.args[0].str()}") from None


class _Broker:
    """A child process that serves `bootstrap` from `start` to `stop`."""

    kind: str
    bootstrap: str

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """The process id of the broker. Raises EvertrainError before `start`."""
        if self._process is None:
            raise EvertrainError("the broker was not started")
        return self._process.pid

    @property
    def alive(self) -> bool:
        """Whether the broker's process is running."""
        return self._process is not None and self._process.poll() is None

    def start(self) -> Self:
        """Starts the broker and waits until it serves."""
        raise NotImplementedError

    def stop(self) -> None:
        """Ends the broker cleanly; kills it if that takes too long."""
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


class KafkaBroker(_Broker):
    """A real Apache Kafka over the folder `data`: formatted on first use, served again after that.

    Without a `port`, the folder's last one is taken again if it is free. `more` is appended to the broker's
    properties; `{port}` and `{controller}` stand for the ports of its two listeners.
    """

    def __init__(self, data: Path, port: int | None = None, more: str = "") -> None:
        super().__init__()
        self.data = data.absolute()
        self._wanted = port
        self._more = more
        self._log = self.data / "kafka.log"
        self.kind = "apache-kafka"

    def start(self) -> Self:
        """Starts Kafka; returns when it answers. Raises DependencyError, naming the log file, if it does not."""
        libs = kafka_libs()
        self.kind = f"apache-kafka {_version(libs)}"
        lock = lock_folder(self.data, "broker.lock")
        try:
            properties = self._write_properties()
            if not (self.data / "log" / "meta.properties").exists():
                self._format(libs, properties)
            with self._log.open("ab") as log:
                self._process = subprocess.Popen(
                    die_with_parent(_java(libs, "kafka.Kafka", str(properties))),
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,  # Ctrl-C is for the parent, which then stops the broker last
                    pass_fds=[lock],  # the folder stays locked as long as the broker lives
                )
        finally:
            os.close(lock)
        try:
            self._wait_until_ready()
        except BaseException:
            self.stop()
            raise
        return self

    def create_topics(self, partitions: Mapping[str, int], config: Mapping[str, str]) -> None:
        """See `create_topics`."""
        create_topics(self.bootstrap, partitions, config)

    def _write_properties(self) -> Path:
        path = self.data / "server.properties"
        last = re.search(r"listeners=PLAINTEXT://127.0.0.1:(\d+)", path.read_text()) if path.exists() else None
        if self._wanted is not None and not _is_free(self._wanted):
            raise DependencyError(f"port {self._wanted} is in use: choose another one with --port")
        port = self._wanted or (int(last[1]) if last and _is_free(int(last[1])) else _free_port())
        self.bootstrap = f"127.0.0.1:{port}"
        path.write_text(
            (_PROPERTIES + self._more).format(port=port, controller=_free_port(), logs=self.data / "log"),
            encoding="utf-8",
        )
        return path

    def _format(self, libs: Path, properties: Path) -> None:
        cluster = uuid4().hex[:22]  # a Kafka cluster id is 22 characters of URL-safe base64
        command = _java(libs, "kafka.tools.StorageTool", "format", "-t", cluster, "-c", str(properties))
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)
        with self._log.open("ab") as log:
            log.write(done.stdout)
        if done.returncode:
            raise DependencyError(f"Kafka cannot use {self.data} (see {self._log}): {_last_line(done.stdout)}")

    def _wait_until_ready(self) -> None:
        admin = AdminClient({"bootstrap.servers": self.bootstrap, "reconnect.backoff.max.ms": 100, "log_level": 0})
        deadline = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < deadline:
            if not self.alive:
                raise DependencyError(f"Kafka ended while it started: see {self._log}")
            try:
                if admin.list_topics(timeout=1).brokers:
                    return
            except KafkaException:
                pass
        raise DependencyError(f"Kafka did not answer within {START_TIMEOUT_S:.0f} s: see {self._log}")


class MockBroker(_Broker):
    """The mock cluster inside confluent-kafka, in its own process. Nothing is kept when it ends.

    A partition holds about 5 MB and drops its oldest messages without a word: produce no faster than the group commits.
    """

    kind = "embedded (confluent-kafka mock cluster)"

    def start(self) -> Self:
        """Starts the mock cluster. Raises DependencyError if it cannot."""
        self._process = subprocess.Popen(
            die_with_parent([sys.executable, "-m", "consumers.broker"]),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        assert self._process.stdout is not None
        with self._process.stdout as answer:
            self.bootstrap = answer.readline().decode().strip()
        if not self.bootstrap:
            self.stop()
            raise DependencyError("the mock cluster of confluent-kafka did not start")
        return self

    def create_topics(self, partitions: Mapping[str, int], config: Mapping[str, str]) -> None:
        """Creates topics, all with MOCK_PARTITIONS partitions; there is nothing to configure."""
        admin = AdminClient({"bootstrap.servers": self.bootstrap})
        for name in partitions:
            admin.list_topics(name, timeout=10)


def local_broker(data: Path) -> KafkaBroker | MockBroker:
    """Apache Kafka where there is Java and either Maven or the jars, else the mock cluster; to be started."""
    if shutil.which("java") and (shutil.which("mvn") or _libs_folder().exists()):
        return KafkaBroker(data)
    return MockBroker()


def kafka_libs() -> Path:
    """The folder with Kafka's jars; Maven fetches them on first use. Raises DependencyError."""
    for program in ("java", "mvn"):
        if not shutil.which(program) and not (program == "mvn" and _libs_folder().exists()):
            raise DependencyError(f"'{program}' is not on PATH: Apache Kafka needs Java 17 or newer and Maven")
    libs = _libs_folder()
    if libs.exists():
        return libs
    libs.parent.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".fetch-", dir=libs.parent, ignore_cleanup_errors=True) as temporary:
        jars = Path(temporary) / "jars"
        command = ["mvn", "-B", "-q", "-f", str(DEPLOY / "pom.xml"), "dependency:copy-dependencies"]
        command += ["-DincludeScope=runtime", f"-DoutputDirectory={jars}"]
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)
        if done.returncode:
            output = done.stdout.decode(errors="replace").strip()
            raise DependencyError(f"Maven could not fetch Apache Kafka from {DEPLOY / 'pom.xml'}:\n{output}")
        if not libs.exists():  # another process may have been faster, with the same jars
            jars.rename(libs)
    return libs


def _libs_folder() -> Path:
    pom = DEPLOY / "pom.xml"
    if not pom.exists():
        raise DependencyError(f"{pom} is missing: a local broker needs a checkout of the repository")
    return DEPLOY / "libs" / hashlib.sha256(pom.read_bytes()).hexdigest()[:12]


def _version(libs: Path) -> str:
    return next(libs.glob("kafka_*.jar")).stem.rpartition("-")[2]


def _java(libs: Path, main: str, *arguments: str) -> list[str]:
    options = ["-Xmx512m", "-XX:+UseSerialGC", "-Dlog4j2.level=INFO", "-Djava.awt.headless=true"]
    return ["java", *options, "-cp", f"{libs}/*", main, *arguments]


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def _last_line(output: bytes) -> str:
    return (output.decode(errors="replace").strip().splitlines() or ["no output"])[-1]


def _serve_mock() -> None:
    producer = Producer({"bootstrap.servers": "mock", "test.mock.num.brokers": 1, "log_level": 0})
    broker = next(iter(producer.list_topics(timeout=10).brokers.values()))
    print(f"{broker.host}:{broker.port}", flush=True)
    signal.pause()


if __name__ == "__main__":
    _serve_mock()
