"""`evertrain backtest`: how well the pipeline would have learned a file, or a stretch of the topics."""

from __future__ import annotations

import argparse
import sys
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING

from consumers.errors import EvertrainError
from pipeline.cli.options import add_job_options, add_output_option, load_job, print_json

if TYPE_CHECKING:
    from pipeline.backtest import Result

_ALARMS_SHOWN = 20


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the command."""
    parser = commands.add_parser(
        "backtest",
        help="score and learn a Parquet file, or a stretch of the topics, and say how good the scores were",
        description="Every row is scored with what was known before its label, and then learned, by the pipeline that "
        "`evertrain run` drives. Nothing is written. Of a file the columns of text are categorical, all others "
        "numeric; labels that are no classes yet are coded in their order. A stretch is one as `evertrain replay` "
        "takes it.",
    )
    stream = parser.add_mutually_exclusive_group(required=True)
    stream.add_argument("file", nargs="?", type=Path, metavar="FILE.parquet", help="rows in the order of the stream")
    add_job_options(parser, config_group=stream)
    add_output_option(parser)
    file = parser.add_argument_group("of a file")
    file.add_argument("--label", metavar="COLUMN", help="the column to predict (required)")
    file.add_argument("--task", help="binary, multiclass or regression (required)")
    file.add_argument(
        "--label-latency",
        type=int,
        metavar="N",
        help="a label is known N rows after its features: N rows are scored, then learned (default: 1)",
    )
    file.add_argument("--rows", type=int, metavar="N", help="only the first N rows")
    file.add_argument("--drop", type=_names, metavar="COLUMN,…", help="columns that are no features")
    file.add_argument("--categorical", type=_names, metavar="COLUMN,…", help="categorical columns beside those of text")
    file.add_argument("--learner", help="bank (default), mlp or package.module:Task")
    file.add_argument("--seed", type=int, help="of the learner's random numbers (default: 0)")
    topics = parser.add_argument_group("of the topics of a job file")
    topics.add_argument("--from", dest="start", metavar="FROM", help="a time, or offsets (required)")
    topics.add_argument("--to", dest="stop", metavar="TO", help="a time, or offsets (required)")
    parser.set_defaults(run=run)


def _names(text: str) -> tuple[str, ...]:
    return tuple(name for each in text.split(",") if (name := each.strip()))


def run(args: argparse.Namespace) -> int:
    """Learns, and prints the result."""
    result = _of_topics(args) if args.file is None else _of_file(args)
    for line in _trouble(result):
        print(line, file=sys.stderr)
    if args.output == "json":
        print_json(result.document())
    else:
        print("\n".join(_page(result)))
    return 0 if result.rows else EvertrainError.exit_code


def _of_file(args: argparse.Namespace) -> Result:
    from consumers.errors import ConfigError
    from pipeline.backtest import backtest_file
    from pipeline.tables import TableOptions

    _refuse(args, {"start": "--from", "stop": "--to", "overrides": "--set"}, "-c job.toml, not with a file")
    if args.label is None or args.task is None:
        raise ConfigError("a file needs --label and --task")
    given = {each.name: getattr(args, each.name) for each in fields(TableOptions)}
    return backtest_file(args.file, TableOptions(**{name: value for name, value in given.items() if value is not None}))


def _of_topics(args: argparse.Namespace) -> Result:
    from consumers.errors import ConfigError
    from pipeline.tables import TableOptions

    options = {each.name: f"--{each.name.replace('_', '-')}" for each in fields(TableOptions)}
    _refuse(args, options, "a file; with -c, the job file says it, or --set")
    if args.start is None or args.stop is None:
        raise ConfigError("-c needs --from and --to")
    job = load_job(args)
    from pipeline.backtest import backtest_stretch
    from pipeline.replay import resolve

    return backtest_stretch(job, resolve(job, args.start, args.stop))


def _refuse(args: argparse.Namespace, options: dict[str, str], place: str) -> None:
    from consumers.errors import ConfigError

    for name, option in options.items():
        if getattr(args, name) not in (None, []):
            raise ConfigError(f"{option} goes with {place}")


def _trouble(result: Result) -> list[str]:
    found = [f"{result.rejected:,} rows are bad and were left out: {'; '.join(result.reasons)}"] * bool(result.rejected)
    found += [f"{result.refused:,} rows were not learned: their step was not finite"] * bool(result.refused)
    if not result.rows:
        found.append(f"evertrain: error: no row was learned{'' if found else ': the stretch has none with a label'}")
    return found


def _page(result: Result) -> list[str]:
    lines = [f"{result.rows:,} rows, {result.rows_per_s:,.0f} rows/s"]
    lines += [f"{name.replace('_', ' '):18}{value:10.4f}" for name, value in result.metrics.items()]
    lines.append(f"{'drift alarms':18}{len(result.alarms):10,}")
    for alarm in result.alarms[:_ALARMS_SHOWN]:
        lines.append(
            f"  row {alarm.row:,}: {alarm.family}{f' {alarm.feature}' if alarm.feature else ''}, {alarm.detail}"
        )
    if len(result.alarms) > _ALARMS_SHOWN:
        lines.append(f"  and {len(result.alarms) - _ALARMS_SHOWN:,} more: -o json has them all")
    return lines
