"""How well a job would have learned a table, or a stretch of its topics: the same pipeline, and nothing is written."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from consumers.errors import ConfigError
from consumers.kafka import Cluster
from consumers.record import Command, Partition, Position, Wait
from consumers.source import Source
from consumers.tabular import TableSource
from pipeline.config import JobConfig
from pipeline.drift import Alarm
from pipeline.learner import Learner
from pipeline.options.pretrained import read_weights
from pipeline.replay import Stretch
from pipeline.run import kafka_source
from pipeline.state import State, fresh_positions
from pipeline.tables import TableOptions, prepare, read_table
from pipeline.task import build_scoring, label_rule_of
from pipeline.train import learn

METRICS = ("accuracy", "kappa", "kappa_temporal", "auc", "logloss", "calibration_error", "mae", "rmse", "r2")

REASONS_MAX = 3

_LEDGER_LINES = 4096
_ALL = 2**62

log = logging.getLogger("evertrain")


@dataclass(slots=True)
class Result:
    """What came of a backtest."""

    rows: int = 0  # learned
    metrics: dict[str, float] = field(default_factory=dict)  # prequential: of scores as of before the label was known
    rows_per_s: float = 0.0  # after the first step, which loads and compiles what all need
    alarms: list[Alarm] = field(default_factory=list)
    points: list[dict[str, Any]] = field(default_factory=list)  # a job's metric points, every `monitor.every`
    rejected: int = 0  # rows that were bad
    reasons: list[str] = field(default_factory=list)  # why, each once; REASONS_MAX of them
    refused: int = 0  # rows of steps that were not finite

    def document(self) -> dict[str, Any]:
        """What `evertrain backtest -o json` prints."""
        return {
            "rows": self.rows,
            "metrics": self.metrics,
            "rows_per_s": round(self.rows_per_s, 1),
            "rejected": self.rejected,
            "refused": self.refused,
            "alarms": [_alarm_document(alarm) for alarm in self.alarms],
        }


def backtest_file(path: Path, options: TableOptions) -> Result:
    """Learns the rows of a Parquet file in their order. Raises ConfigError."""
    table = read_table(path, options.rows)
    if options.rows is not None and table.num_rows < options.rows:
        log.warning("%s has only %d rows, not %d", path, table.num_rows, options.rows)
    prepared, job = prepare(table, options)
    kind = build_scoring(job).kind
    if kind != options.task:
        raise ConfigError(f"--learner {options.learner} is for the task {kind}, not {options.task}")
    return backtest_table(prepared, job, options.label_latency)


def backtest_table(table: pa.Table, job: JobConfig, label_latency: int) -> Result:
    """Learns a table that `prepare` made: `label_latency` rows are scored, then learned, and so on."""
    source = TableSource(table, job.features, label_rule_of(job), label_latency)
    return _learn(job, source, fresh_positions({source.partition: 0}))


def backtest_stretch(job: JobConfig, stretch: Stretch) -> Result:
    """Learns a stretch of the job's topics. Raises DependencyError and StreamError."""
    cluster = Cluster(job.kafka)
    topics = [cluster.topic(config.topic) for config in (job.features, job.labels) if config]
    source = kafka_source(job, cluster, topics, stretch.bounds.stops)
    try:
        return _learn(job, source, fresh_positions(stretch.bounds.starts))
    finally:
        source.close()


def _learn(job: JobConfig, source: Source, positions: dict[Partition, Position]) -> Result:
    """The training page, without snapshots."""
    state, result = State(job, positions, Learner(job, pretrained=read_weights(job))), Result()
    began, warm_rows, hold = time.perf_counter(), 0, ""
    learn(state, Command("accept_bad", _ALL))  # there is nothing that bad input could spoil
    for entry in source.entries(state.positions):
        if isinstance(entry, Wait):
            if entry.hold not in ("", hold):
                hold = entry.hold
                log.error("holding: %s", hold)
            continue
        learn(state, entry)
        _collect(state, result)
        if not warm_rows and state.trained:
            began, warm_rows = time.perf_counter(), state.trained
    seconds = time.perf_counter() - began
    state.check_balance()
    result.rows, result.refused, result.rejected = state.trained, state.refused, int(state.rejected_P.sum())
    result.rows_per_s = (state.trained - warm_rows) / seconds
    live = {name.removeprefix("live/"): value for name, value in state.monitor.point().items()}
    result.metrics = {name: live[name] for name in METRICS if name in live}
    return result


def _collect(state: State, result: Result) -> None:
    """Takes what a snapshot would seal and release."""
    if new := state.monitor.alarm_count - len(result.alarms):
        result.alarms += state.monitor.alarms[-new:]
    if state.owed.points or state.owed.letters or len(state.ledger) >= _LEDGER_LINES:
        _, owed = state.seal()
        result.points += owed.points
        found = [reason for letters in owed.letters for reason in letters.rejects.column("reason").to_pylist()]
        result.reasons = list(dict.fromkeys(result.reasons + found))[:REASONS_MAX]


def _alarm_document(alarm: Alarm) -> dict[str, Any]:
    return {
        "row": alarm.row,
        "since_row": alarm.since_row,
        "family": alarm.family,
        "feature": alarm.feature,
        "effect": alarm.effect,
        "p": alarm.p,
    }
