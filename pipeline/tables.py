"""A Parquet file as a job: which of its columns are features, of what kind, and which labels it has."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import ValidationError

from consumers.errors import ConfigError
from consumers.record import MESSAGE_ROWS_MAX
from pipeline.columns import classes, feature, targets
from pipeline.config import BUILT_IN_TASKS, JobConfig

LEARNERS = ("bank", "mlp")

BATCH_SIZE_MIN = 2
SLAB_ROWS = 4096  # of the join, which holds one or two slabs: a row is done with once it was learned

_READ_ROWS = 65_536


@dataclass(frozen=True, slots=True)
class TableOptions:
    """What a backtest has to know of a table, beside the table."""

    label: str
    task: str  # "binary", "multiclass" or "regression"
    label_latency: int = 1  # so many rows after its features a label is known
    rows: int | None = None  # the first so many; None: all
    drop: tuple[str, ...] = ()
    categorical: tuple[str, ...] = ()  # beside those that hold text
    learner: str = LEARNERS[0]  # or "package.module:Task"
    seed: int = 0

    def __post_init__(self) -> None:
        """Raises ConfigError."""
        if self.task not in BUILT_IN_TASKS:
            raise ConfigError(f"--task {self.task}: a task is {', '.join(BUILT_IN_TASKS)}")
        if self.learner not in LEARNERS and ":" not in self.learner:
            raise ConfigError(f"--learner {self.learner}: a learner is {', '.join(LEARNERS)} or package.module:Task")
        if not 1 <= self.label_latency <= MESSAGE_ROWS_MAX:
            raise ConfigError(f"--label-latency {self.label_latency}: it is 1 to {MESSAGE_ROWS_MAX} rows")
        if self.rows is not None and self.rows < 1:
            raise ConfigError(f"--rows {self.rows}: it is 1 or more")


def read_table(path: Path, rows: int | None = None) -> pa.Table:
    """The first `rows` rows of a Parquet file, or all that there are. Raises ConfigError."""
    batches, found = [], 0
    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(_READ_ROWS):
                batches.append(batch)
                found += len(batch)
                if rows is not None and found >= rows:
                    break
            table = pa.Table.from_batches(batches, file.schema_arrow)
    except (OSError, pa.ArrowException) as error:
        raise ConfigError(f"{path}: cannot be read as Parquet: {error}") from error
    return table.slice(0, rows)


def prepare(table: pa.Table, options: TableOptions) -> tuple[pa.Table, JobConfig]:
    """The table with columns as the codec takes them, and the job over it. Raises ConfigError.

    Text is categorical, empty text as good as none; booleans, numbers and times are numeric; columns where something is
    missing are nullable. A job's defaults decide everything else.
    """
    _check_names(table.column_names, options)
    if not table.num_rows:
        raise ConfigError("the table has no rows")
    label, count = _labels(table[options.label], options)
    columns: dict[str, pa.ChunkedArray] = {}
    kinds: dict[str, list[dict[str, Any]]] = {"numeric": [], "categorical": []}
    for name in table.column_names:
        if name not in (options.label, *options.drop):
            kind, columns[name] = feature(name, table[name], categorical=name in options.categorical)
            kinds[kind].append({"name": name, "nullable": bool(columns[name].null_count)})
    if not columns:
        raise ConfigError(f"there is no column beside --label {options.label} and --drop: nothing to learn from")
    columns[options.label] = label
    row_number = "row" + "_" * max(map(len, columns))  # longer than any of them
    return pa.table(columns), _job(options, count, kinds, row_number)


def _job(options: TableOptions, classes: int, kinds: dict[str, list[dict[str, Any]]], row_number: str) -> JobConfig:
    features = {"topic": "table", "format": "arrow", "key": row_number, "time": row_number, "label": options.label}
    size = {"classes": classes, "batch_size": max(options.label_latency, BATCH_SIZE_MIN)}
    try:
        return JobConfig.model_validate(
            {
                "job": {"name": "backtest", "state_dir": "none", "seed": options.seed},
                "kafka": {"bootstrap.servers": "none"},
                "features": {**features, **kinds, "max_message_bytes": 2**40},
                "join": {"window": 0, "slab_rows": SLAB_ROWS},  # no row number comes again
                "stream": {"span": 1},
                "learner": {"task": options.task, **_learner(options.learner), **size},
                "dead_letters": {"topic": "none"},
            }
        )
    except ValidationError as error:
        found = error.errors()[0]
        raise ConfigError(f"{'.'.join(map(str, found['loc']))}: {found['msg']}") from error


def _learner(name: str) -> dict[str, str]:
    return {"kind": name} if name in LEARNERS else {"task": name}


def _check_names(names: Sequence[str], options: TableOptions) -> None:
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise ConfigError(f"two columns are named {twice[0]!r}")
    wanted = {"--label": (options.label,), "--drop": options.drop, "--categorical": options.categorical}
    for option, chosen in wanted.items():
        for name in chosen:
            if name not in names:
                raise ConfigError(f"{option} {name}: there is no such column, but {', '.join(names)}")
            if name == options.label and option != "--label":
                raise ConfigError(f"{option} {name}: this is the --label, which is no feature anyhow")


def _labels(column: pa.ChunkedArray, options: TableOptions) -> tuple[pa.ChunkedArray, int]:
    """The labels, and how many classes there are (2 but for a multiclass task)."""
    if options.task == "regression":
        return targets(options.label, column), 2
    return classes(options.label, column, options.task)
