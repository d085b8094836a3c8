"""`evertrain doctor`: is everything there that a job needs? One line each: ok, or what to do."""

from __future__ import annotations

import argparse
import os
import re
import shutil
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING

from consumers.errors import CheckError, ConfigError, DependencyError
from pipeline.cli.options import add_job_options, add_output_option, load_job, print_json

if TYPE_CHECKING:
    from confluent_kafka.admin import AdminClient

    from pipeline.config import JobConfig
    from pipeline.learner import Learner

TIMEOUT_S = 5.0
DISK_MARGIN_BYTES = 2**30
FUTURE_MS = 3_600_000


class Verdict(StrEnum):
    """What a check found."""

    OK = "ok"
    WARNING = "warning"  # works, but look at it
    FAILED = "failed"
    UNREACHABLE = "unreachable"


@dataclass(frozen=True, slots=True)
class Check:
    """One line of the report."""

    name: str
    verdict: Verdict
    message: str  # what was found and, unless all is well, what to do


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds `doctor`."""
    parser = subparsers.add_parser("doctor", help="checks Kafka, topics, MLflow, disk, torch, CUDA and model of a job")
    add_job_options(parser)
    add_output_option(parser)
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    job = load_job(args)
    checks = []
    for check in examine(job, int(time.time() * 1000)):
        checks.append(check)
        if args.output == "text":
            print(f"{check.verdict.value:<11}  {check.name:<28}  {check.message}", flush=True)
    if args.output == "json":
        print_json({"checks": [asdict(check) for check in checks]})
    verdicts = {check.verdict for check in checks}
    if Verdict.UNREACHABLE in verdicts:
        return DependencyError.exit_code
    return CheckError.exit_code if Verdict.FAILED in verdicts else 0


def examine(job: JobConfig, now_ms: int) -> Iterator[Check]:
    """Makes every check of a job, the quick ones first."""
    yield check_python()
    yield check_disk(job.job.state_dir, job.join.memory)
    yield check_mlflow(job.registry.tracking_uri)
    yield from check_kafka(job, now_ms)
    yield check_torch(job.learner.device)
    yield check_learner(job)


def check_python() -> Check:
    """Whether every distribution that evertrain requires is installed."""
    from importlib.metadata import PackageNotFoundError, requires, version

    missing = []
    names = [re.split(r"[^\w.-]", line)[0] for line in requires("evertrain") or () if "extra ==" not in line]
    for name in names:
        try:
            version(name)
        except PackageNotFoundError:
            missing.append(name)
    if missing:
        return Check("python", Verdict.FAILED, f"not installed: {', '.join(missing)}; run `make setup`")
    return Check("python", Verdict.OK, f"{len(names)} packages installed")


def check_disk(state_dir: Path, memory_bytes: int) -> Check:
    """Whether the state directory can be written and has room: two copies of the join table and some more."""
    place = _nearest(state_dir)
    if not os.access(place, os.W_OK | os.X_OK):
        return Check("disk", Verdict.FAILED, f"{place} cannot be written; choose another job.state_dir")
    free, needed = shutil.disk_usage(place).free, 2 * memory_bytes + DISK_MARGIN_BYTES
    found = f"{free / 2**30:.1f} GiB free for {state_dir}"
    if free < needed:
        advice = f"{needed / 2**30:.1f} GiB are advised (2 x join.memory + 1 GiB)"
        return Check("disk", Verdict.FAILED, f"{found}; {advice}: free some, or lower join.memory")
    return Check("disk", Verdict.OK, found)


def check_mlflow(uri: str) -> Check:
    """Whether the tracking server answers, or the SQLite file can be written. Does not import mlflow."""
    scheme, _, rest = uri.partition("://")
    if scheme in ("http", "https"):
        return _check_mlflow_server(uri)
    if scheme != "sqlite":
        return Check("mlflow", Verdict.WARNING, f"a store of kind {scheme or uri!r} is not checked from here")
    path = Path(rest.removeprefix("/").partition("?")[0])
    place = path if path.exists() else _nearest(path.parent)
    if not os.access(place, os.W_OK):
        return Check("mlflow", Verdict.FAILED, f"{place} cannot be written; choose another registry.tracking_uri")
    return Check("mlflow", Verdict.OK, f"SQLite store at {path}")


def _check_mlflow_server(uri: str) -> Check:
    from urllib.error import URLError
    from urllib.parse import urlsplit
    from urllib.request import urlopen

    host = urlsplit(uri).hostname or uri  # without any password
    try:
        with urlopen(f"{uri.rstrip('/')}/health", timeout=TIMEOUT_S) as response:
            return Check("mlflow", Verdict.OK, f"{host} answers: {response.read(80).decode(errors='replace')}")
    except (URLError, OSError, ValueError) as error:
        advice = "training works without it; versions appear once it is back"
        return Check("mlflow", Verdict.UNREACHABLE, f"{host}: {error}; {advice}")


def check_torch(device: str) -> Check:
    """Torch's version, and CUDA if the job wants it."""
    import torch

    found = f"torch {torch.__version__}"
    if torch.cuda.is_available():
        return Check("torch", Verdict.OK, f"{found}, CUDA on {torch.cuda.get_device_name()}")
    if device == "cuda":
        return Check("torch", Verdict.FAILED, f'{found} sees no CUDA device; set learner.device = "auto" or "cpu"')
    return Check("torch", Verdict.OK, f"{found}, on the CPU (no CUDA device)")


def check_learner(job: JobConfig) -> Check:
    """Whether the model can be built, and one of your own be exported, as every version is."""
    from pipeline.learner import Learner
    from pipeline.options.pretrained import read_weights

    try:
        learner = Learner(job, pretrained=read_weights(job))
    except DependencyError as error:
        return Check("learner", Verdict.UNREACHABLE, str(error))
    except ConfigError as error:
        return Check("learner", Verdict.FAILED, str(error))
    if not job.learner.is_built_in and (reason := _why_not_exported(job, learner)):
        advice = "no version of it could be registered; write it so that torch.export takes it"
        return Check("learner", Verdict.FAILED, f"torch.export cannot export learner.task ({reason}): {advice}")
    numbers = sum(array.size for array in learner.weights().values())
    return Check("learner", Verdict.OK, f"{job.learner.task}, {numbers:,} numbers in a version")


def _why_not_exported(job: JobConfig, learner: Learner) -> str:
    """What torch.export says of the scorer; empty if it takes it."""
    import torch

    rows_NC = torch.zeros(3, job.features.columns, device=learner.device)
    try:
        torch.export.export(learner.scorer.copy().eval(), (rows_NC,), dynamic_shapes=[{0: torch.export.Dim.AUTO}])
    except Exception as error:  # of any kind: torch's own, and those of the module
        return f"{type(error).__name__}: {str(error).strip().splitlines()[0]}"
    return ""


def check_kafka(job: JobConfig, now_ms: int) -> Iterator[Check]:
    """Whether the brokers answer, and what each topic of the job looks like."""
    from confluent_kafka import KafkaException
    from confluent_kafka.admin import AdminClient

    servers = job.kafka["bootstrap.servers"]
    try:
        admin = AdminClient({"log_level": 2, **job.kafka})  # what it would log is in the report
    except KafkaException as error:
        yield Check("kafka", Verdict.FAILED, f"librdkafka refuses [kafka]: {error.args[0].str()}; correct the job file")
        return
    try:
        metadata = admin.list_topics(timeout=TIMEOUT_S)
    except KafkaException as error:
        advice = "is the broker running, and bootstrap.servers right?"
        yield Check("kafka", Verdict.UNREACHABLE, f"{servers}: {error.args[0].str()}; {advice}")
        return
    yield Check("kafka", Verdict.OK, f"{servers}: {len(metadata.brokers)} broker(s), cluster {metadata.cluster_id}")
    sources = [job.features.topic] + ([job.labels.topic] if job.labels else [])
    for topic in (*sources, job.dead_letters.topic):
        found = metadata.topics.get(topic)
        if found is None or found.error is not None:
            yield Check(f"topic {topic}", Verdict.UNREACHABLE, "does not exist; create it, or correct the job file")
            continue
        partitions = len(found.partitions)
        yield Check(f"topic {topic}", Verdict.OK, f"{partitions} partition(s)")
        if topic in sources:
            yield _check_retention(admin, topic, partitions, now_ms)


def _check_retention(admin: AdminClient, topic: str, partitions: int, now_ms: int) -> Check:
    """Time-based retention goes by the records' timestamps: old event times are deleted at once."""
    from confluent_kafka import KafkaException

    name = f"retention {topic}"
    try:
        settings = _settings(admin, topic)
        newest_ms = _newest_timestamp_ms(admin, topic, partitions)
    except KafkaException as error:
        return Check(name, Verdict.WARNING, f"the broker does not tell: {error.args[0].str()}")
    newest = f"newest record stamped {_ago(now_ms - newest_ms)}" if newest_ms >= 0 else "no records"
    if newest_ms > now_ms + FUTURE_MS:
        advice = "its partition waits until the others get there; correct the producer's clock"
        return Check(name, Verdict.WARNING, f"{newest}: {advice}")
    retention_ms = int(settings["retention.ms"])
    if "compact" in settings["cleanup.policy"]:
        return Check(name, Verdict.WARNING, f"compacted: events that share a message key vanish; {newest}")
    if retention_ms < 0:
        return Check(name, Verdict.OK, f"kept for ever; {newest}")
    kept = f"records are deleted {_span(retention_ms)} after their timestamp; {newest}"
    if 0 <= newest_ms < now_ms - retention_ms:
        return Check(name, Verdict.FAILED, f"{kept}: all of them are about to be deleted; set retention.ms=-1")
    return Check(name, Verdict.OK, f"{kept}; set retention.ms=-1 to replay old event times")


def _settings(admin: AdminClient, topic: str) -> dict[str, str]:
    from confluent_kafka.admin import ConfigResource

    resource = ConfigResource(ConfigResource.Type.TOPIC, topic)
    entries = admin.describe_configs([resource], request_timeout=TIMEOUT_S)[resource].result()
    return {key: entry.value for key, entry in entries.items()}


def _newest_timestamp_ms(admin: AdminClient, topic: str, partitions: int) -> int:
    """The newest timestamp that the broker knows of, over all partitions; -1 if there is no record."""
    from confluent_kafka import TopicPartition
    from confluent_kafka.admin import OffsetSpec

    request = {TopicPartition(topic, number): OffsetSpec.max_timestamp() for number in range(partitions)}
    futures = admin.list_offsets(request, request_timeout=TIMEOUT_S).values()
    return max(int(future.result().timestamp) for future in futures)


def _nearest(path: Path) -> Path:
    """The path itself or its nearest parent that exists."""
    return next(place for place in (path.absolute(), *path.absolute().parents) if place.exists())


def _span(ms: int) -> str:
    for unit, length_ms in (("days", 86_400_000), ("hours", 3_600_000), ("minutes", 60_000)):
        if ms >= 2 * length_ms:
            return f"{ms / length_ms:.0f} {unit}"
    return f"{ms / 1000:.0f} seconds"


def _ago(ms: int) -> str:
    return f"{_span(ms)} ago" if ms >= 0 else f"{_span(-ms)} in the future"
