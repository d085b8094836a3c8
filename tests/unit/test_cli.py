"""The command line, from the outside: what goes to stdout, what to stderr, and the exit code."""

from __future__ import annotations

import http.server
import json
import os
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from consumers.errors import StreamError
from pipeline.cli import config, doctor, main, status
from pipeline.cli.doctor import Verdict
from pipeline.config import JobConfig
from pipeline.jobfile import load
from pipeline.store import LocalStore
from tests.stream import job

NOW_MS = 1_700_000_000_000
DAY_MS = 86_400_000


@pytest.fixture
def job_file(tmp_path: Path) -> Path:
    path = tmp_path / "job.toml"
    path.write_text(f"""
        [job]
        name = "flights"
        state_dir = "{tmp_path}/state"
        [kafka]
        "bootstrap.servers" = "127.0.0.1:1"
        "sasl.password" = "hunter2"
        "socket.connection.setup.timeout.ms" = 1000
        [features]
        topic = "f"
        format = "avro"
        numeric = ["x", {{ name = "y", nullable = true }}]
        [features.schema_registry]
        url = "http://127.0.0.1:1"
        "basic.auth.user.info" = "hunter2"
        "bearer.auth.token" = "hunter2"
        [labels]
        topic = "l"
        column = "late"
        [join]
        memory = "1MiB"
        [registry]
        tracking_uri = "sqlite:///{tmp_path}/mlflow.db"
        [dead_letters]
        topic = "d"
    """)
    return path


@pytest.fixture
def state_dir(tmp_path: Path) -> Path:
    store = LocalStore(tmp_path / "state")
    for sequence in range(2):
        store.commit(sequence, manifest(sequence))
    return store.path


def manifest(sequence: int) -> dict[str, Any]:
    at = {"topic": "f", "topic_id": "t", "partition": 0, "next": 1200, "reached": NOW_MS, "idle": True}
    return {
        "format": 1,
        "sequence": sequence,
        "snapshot_id": f"abc-{sequence}",
        "lineage": "abc",
        "name": "flights",
        "cursor": [at, {**at, "partition": 1, "reached": None, "idle": False}],
        "watermark": None,
        "time_ms": NOW_MS,
        "rows_trained": 1000 * sequence,
        "counts": {"examples": {"trained": 1000 * sequence}},
        "weights_sha256": "f" * 64,
        "metrics": {"auc": 0.75},
        "alarms": 2,
    }


def write_live(state_dir: Path, **more: Any) -> None:
    live = {"pid": os.getpid(), "phase": "training", "updated_ms": NOW_MS, "hold": None, "lag": 7, **more}
    (state_dir / "status.json").write_text(json.dumps(live))


def run_raising(error: BaseException, monkeypatch: pytest.MonkeyPatch, job_file: Path) -> int:
    def load_job(_: object) -> JobConfig:
        raise error

    monkeypatch.setattr(config, "load_job", load_job)
    return main(["config", "validate", "-c", str(job_file)])


class TestMain:
    def test_a_known_error_is_one_line_and_its_exit_code(
        self, monkeypatch: pytest.MonkeyPatch, job_file: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert run_raising(StreamError("f[0]@7: gone"), monkeypatch, job_file) == 1
        assert capsys.readouterr() == ("", "evertrain: error: f[0]@7: gone\n")

    def test_an_interrupt_exits_with_130(self, monkeypatch: pytest.MonkeyPatch, job_file: Path) -> None:
        assert run_raising(KeyboardInterrupt(), monkeypatch, job_file) == 130

    @pytest.mark.parametrize("argv", [[], ["nonsense"], ["run"], ["status"]])
    def test_wrong_usage_exits_with_2(self, argv: list[str]) -> None:
        with pytest.raises(SystemExit) as caught:
            main(argv)
        assert caught.value.code == 2

    @pytest.mark.parametrize("number", ["-5", "1.5", "many"])
    def test_records_that_may_be_bad_are_a_whole_number(self, number: str, capsys: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(SystemExit, match="2"):
            main(["run", "-c", "job.toml", "--accept-bad", number])
        assert f"--accept-bad: {number} is no number of records: give 0 or more" in capsys.readouterr().err

    def test_the_version_is_shown(self, capsys: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(SystemExit) as caught:
            main(["--version"])
        assert caught.value.code == 0
        assert capsys.readouterr().out.startswith("evertrain ")


class TestConfig:
    def test_what_is_shown_can_be_loaded_again_and_means_the_same(
        self, job_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert main(["config", "show", "-c", str(job_file)]) == 0
        again = tmp_path / "again.toml"
        again.write_text(capsys.readouterr().out.replace("***", "hunter2"))
        assert load(again, environment={}) == load(job_file, environment={})

    @pytest.mark.parametrize("output", ["text", "json"])
    def test_secrets_are_not_shown(self, output: str, job_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["config", "show", "-c", str(job_file), "-o", output]) == 0
        shown = capsys.readouterr().out
        assert shown.count("***") == 3
        assert "hunter2" not in shown

    def test_a_valid_file_is_ok(self, job_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["config", "validate", "-c", str(job_file)]) == 0
        assert capsys.readouterr().out == f"{job_file}: ok\n"
        assert main(["config", "validate", "-c", str(job_file), "-o", "json"]) == 0
        assert json.loads(capsys.readouterr().out)["valid"] is True

    def test_a_wrong_file_is_one_line_a_problem_and_exit_code_2(
        self, job_file: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert main(["config", "validate", "-c", str(job_file), "--set", "learner.btch_size=8"]) == 2
        expected = "--set learner.btch_size: unknown key 'learner.btch_size'; did you mean 'learner.batch_size'?"
        assert capsys.readouterr() == ("", f"evertrain: error: {expected}\n")


class TestStatus:
    def test_json_tells_the_newest_snapshot(
        self, state_dir: Path, job_file: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert main(["status", "-c", str(job_file), "-o", "json"]) == 0
        told = json.loads(capsys.readouterr().out)
        assert (told["sequence"], told["snapshot_id"], told["rows_trained"]) == (1, "abc-1", 1000)
        assert (told["weights_sha256"], told["counts"]) == ("f" * 64, {"examples": {"trained": 1000}})
        assert (told["running"], told["live"], told["release"]) == (False, None, None)

    def test_a_fresh_status_of_a_living_process_means_running(self, state_dir: Path) -> None:
        write_live(state_dir)
        assert status.read_status(state_dir, NOW_MS + 1000)["running"]

    @pytest.mark.parametrize(("pid", "age_ms"), [(2**22 + 1, 0), (os.getpid(), status.STALE_MS)], ids=["dead", "old"])
    def test_a_dead_process_or_an_old_status_means_not_running(self, state_dir: Path, pid: int, age_ms: int) -> None:
        write_live(state_dir, pid=pid)
        assert not status.read_status(state_dir, NOW_MS + age_ms)["running"]

    def test_a_process_of_another_user_is_alive(self, monkeypatch: pytest.MonkeyPatch, state_dir: Path) -> None:
        def kill(pid: int, signal: int) -> None:
            raise PermissionError

        monkeypatch.setattr(os, "kill", kill)
        write_live(state_dir)
        assert status.read_status(state_dir, NOW_MS)["running"]

    def test_a_damaged_snapshot_is_passed_over(self, state_dir: Path) -> None:
        newest = max((state_dir / "snapshots").iterdir())
        newest.write_bytes(newest.read_bytes().replace(b"1000", b"9999"))
        assert status.read_status(state_dir, NOW_MS)["sequence"] == 0

    def test_the_page_shows_what_runs_and_what_was_released(
        self, state_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setattr("time.time", lambda: NOW_MS / 1000)
        write_live(state_dir, hold="too much bad input", rows_per_second=float("nan"))
        (state_dir / "release").mkdir()
        (state_dir / "release" / "status.json").write_text('{"registry": {"released": 3, "error": null}}')
        assert main(["status", "--state-dir", str(state_dir)]) == 0
        page = " ".join(capsys.readouterr().out.split())
        assert f"running as process {os.getpid()}, training, on hold: too much bad input" in page
        for words in ("rows trained 1,000", "lag 7", "registry.released 3", "registry.error -", "auc 0.75"):
            assert words in page
        assert "f[0] next 1,200 reached 2023-11-14 22:13:20 UTC idle f[1] next 1,200 reached -" in page

    def test_check_fails_unless_the_job_runs_and_does_not_hold(
        self, state_dir: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("time.time", lambda: NOW_MS / 1000)
        command = ["status", "--state-dir", str(state_dir), "--check"]
        assert main(command) == 4
        write_live(state_dir)
        assert main(command) == 0
        write_live(state_dir, hold="too much bad input")
        assert main(command) == 4

    def test_without_a_snapshot_it_says_so_and_makes_nothing(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert main(["status", "--state-dir", str(tmp_path / "none")]) == 1
        assert "no snapshot here" in capsys.readouterr().err
        assert not (tmp_path / "none").exists()
        LocalStore(tmp_path / "empty")
        assert main(["status", "--state-dir", str(tmp_path / "empty")]) == 1


class FakeAdmin:
    """Kafka's admin client, as far as the doctor asks it."""

    def __init__(self, newest_ms: int = NOW_MS, **settings: str) -> None:
        self.topics = {topic: topic_metadata() for topic in ("f", "l", "d")}
        self.newest_ms = newest_ms
        self.settings = {"retention.ms": "-1", "cleanup.policy": "delete"} | settings

    def list_topics(self, timeout: float) -> SimpleNamespace:
        return SimpleNamespace(brokers={1: None}, cluster_id="c", topics=self.topics)

    def describe_configs(self, resources: list[Any], request_timeout: float) -> dict[Any, Future[Any]]:
        entries = {key: SimpleNamespace(value=value) for key, value in self.settings.items()}
        return {resource: done(entries) for resource in resources}

    def list_offsets(self, request: dict[Any, Any], request_timeout: float) -> dict[Any, Future[Any]]:
        return {partition: done(SimpleNamespace(timestamp=self.newest_ms)) for partition in request}


def done(result: object) -> Future[Any]:
    future: Future[Any] = Future()
    future.set_result(result)
    return future


def topic_metadata() -> SimpleNamespace:
    return SimpleNamespace(partitions={0: None, 1: None}, error=None)


def kafka_report(admin: FakeAdmin, monkeypatch: pytest.MonkeyPatch, job_file: Path) -> dict[str, tuple[str, str]]:
    monkeypatch.setattr("confluent_kafka.admin.AdminClient", lambda _: admin)
    checks = doctor.check_kafka(load(job_file, environment={}), NOW_MS)
    return {check.name: (check.verdict.value, check.message) for check in checks}


class TestDoctor:
    def test_an_unreachable_broker_is_one_line_and_exit_code_3(
        self, job_file: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(doctor, "TIMEOUT_S", 0.5)
        assert main(["doctor", "-c", str(job_file), "-o", "json"]) == 3
        told = capsys.readouterr()
        verdicts = {check["name"]: check["verdict"] for check in json.loads(told.out)["checks"]}
        assert verdicts == {
            "python": "ok",
            "disk": "ok",
            "mlflow": "ok",
            "kafka": "unreachable",
            "torch": "ok",
            "learner": "ok",
        }
        assert told.err == ""

    def test_settings_that_librdkafka_refuses_are_one_line_too(self, job_file: Path) -> None:
        job = load(job_file, ["kafka.no.such.key=3"], environment={})
        (check,) = doctor.check_kafka(job, NOW_MS)
        assert check.verdict is Verdict.FAILED
        assert "no.such.key" in check.message

    def test_each_check_is_one_line_of_text(
        self, job_file: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        checks = [doctor.Check("disk", Verdict.FAILED, "full"), doctor.Check("torch", Verdict.OK, "2.0")]
        monkeypatch.setattr(doctor, "examine", lambda job, now_ms: iter(checks))
        assert main(["doctor", "-c", str(job_file)]) == 4
        assert [line.split() for line in capsys.readouterr().out.splitlines()] == [
            ["failed", "disk", "full"],
            ["ok", "torch", "2.0"],
        ]
        checks.pop(0)
        assert main(["doctor", "-c", str(job_file)]) == 0

    def test_topics_kept_for_ever_are_ok(self, monkeypatch: pytest.MonkeyPatch, job_file: Path) -> None:
        report = kafka_report(FakeAdmin(), monkeypatch, job_file)
        assert {verdict for verdict, _ in report.values()} == {"ok"}
        assert report["topic d"][1] == "2 partition(s)"
        assert report["retention f"][1].startswith("kept for ever")
        assert "retention d" not in report

    def test_a_missing_topic_is_unreachable(self, monkeypatch: pytest.MonkeyPatch, job_file: Path) -> None:
        admin = FakeAdmin()
        del admin.topics["l"]
        assert kafka_report(admin, monkeypatch, job_file)["topic l"][0] == "unreachable"

    @pytest.mark.parametrize(
        ("age_ms", "settings", "verdict", "words"),
        [
            (DAY_MS, {"retention.ms": str(7 * DAY_MS)}, "ok", "deleted 7 days after their timestamp"),
            (900 * DAY_MS, {"retention.ms": str(7 * DAY_MS)}, "failed", "set retention.ms=-1"),
            (DAY_MS, {"retention.ms": "60000"}, "failed", "deleted 60 seconds after"),
            (DAY_MS, {"cleanup.policy": "compact"}, "warning", "compacted"),
            (-DAY_MS, {}, "warning", "24 hours in the future"),
            (NOW_MS + 1, {}, "ok", "no records"),
        ],
    )
    def test_retention_is_held_against_the_newest_timestamp(
        self,
        age_ms: int,
        settings: dict[str, str],
        verdict: str,
        words: str,
        monkeypatch: pytest.MonkeyPatch,
        job_file: Path,
    ) -> None:
        report = kafka_report(FakeAdmin(NOW_MS - age_ms, **settings), monkeypatch, job_file)
        assert report["retention f"][0] == verdict
        assert words in report["retention f"][1]

    def test_a_broker_that_does_not_tell_is_a_warning(self, monkeypatch: pytest.MonkeyPatch, job_file: Path) -> None:
        from confluent_kafka import KafkaError, KafkaException

        def refuse(*_: object, **__: object) -> None:
            raise KafkaException(KafkaError(KafkaError.UNSUPPORTED_VERSION))

        admin = FakeAdmin()
        monkeypatch.setattr(admin, "list_offsets", refuse)
        assert kafka_report(admin, monkeypatch, job_file)["retention f"][0] == "warning"

    def test_a_missing_distribution_is_named(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("importlib.metadata.requires", lambda _: ["no-such-thing>=1", 'x; extra == "dev"'])
        assert doctor.check_python().message == "not installed: no-such-thing; run `make setup`"

    def test_a_full_disk_fails(self, tmp_path: Path) -> None:
        assert doctor.check_disk(tmp_path / "new" / "state", 2**20).verdict is Verdict.OK
        check = doctor.check_disk(tmp_path, 2**60)
        assert check.verdict is Verdict.FAILED
        assert "lower join.memory" in check.message

    def test_a_directory_that_cannot_be_written_fails(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(os, "access", lambda *_: False)
        assert doctor.check_disk(tmp_path, 1).verdict is Verdict.FAILED
        assert doctor.check_mlflow(f"sqlite:///{tmp_path}/mlflow.db").verdict is Verdict.FAILED

    def test_an_mlflow_server_is_asked_for_its_health(self, server: str) -> None:
        assert doctor.check_mlflow(server) == doctor.Check("mlflow", Verdict.OK, "127.0.0.1 answers: OK")
        assert doctor.check_mlflow(f"{server}/elsewhere").verdict is Verdict.UNREACHABLE

    def test_other_stores_are_not_checked(self) -> None:
        assert doctor.check_mlflow("databricks").verdict is Verdict.WARNING

    @pytest.mark.parametrize(
        ("learner", "verdict", "says"),
        [
            ({"kind": "mlp"}, Verdict.OK, "binary, "),
            ({"task": "tests.tasks:NoExport", "pretrained": "no.safetensors"}, Verdict.FAILED, "pretrained"),
            ({"task": "tests.nothing:X"}, Verdict.FAILED, "cannot be imported"),
            ({"task": "tests.tasks:NoExport"}, Verdict.FAILED, "torch.export cannot export learner.task"),
        ],
    )
    def test_the_model_is_built_and_one_of_your_own_exported(
        self, tmp_path: Path, learner: dict[str, Any], verdict: Verdict, says: str
    ) -> None:
        check = doctor.check_learner(job(tmp_path, learner=learner))
        assert (check.verdict, says in check.message) == (verdict, True), check.message

    def test_a_job_for_cuda_needs_a_device(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("torch.cuda.is_available", lambda: False)
        assert doctor.check_torch("cuda").verdict is Verdict.FAILED
        assert doctor.check_torch("auto").verdict is Verdict.OK
        monkeypatch.setattr("torch.cuda.is_available", lambda: True)
        monkeypatch.setattr("torch.cuda.get_device_name", lambda: "H200")
        assert doctor.check_torch("cuda").message.endswith("CUDA on H200")


@pytest.fixture
def server() -> Iterator[str]:
    class Health(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if self.path == "/health" else 404)
            self.end_headers()
            self.wfile.write(b"OK")

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Health) as http_server:
        threading.Thread(target=http_server.serve_forever).start()
        yield f"http://127.0.0.1:{http_server.server_port}"
        http_server.shutdown()
