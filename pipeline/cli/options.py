"""Arguments that several commands share. Imports nothing heavy: `--help` builds every parser."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline.config import JobConfig


def add_job_options(
    parser: argparse.ArgumentParser, config_group: argparse._MutuallyExclusiveGroup | None = None
) -> None:
    """`-c/--config FILE`, required unless it is one choice of `config_group`, and `--set KEY=VALUE`."""
    (config_group or parser).add_argument(
        "-c", "--config", type=Path, required=not config_group, metavar="FILE", help="the job file (TOML)"
    )
    parser.add_argument(
        "--set",
        dest="overrides",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="overrides one key of the job file, for example learner.batch_size=512; may be repeated",
    )


def add_output_option(parser: argparse.ArgumentParser) -> None:
    """`-o/--output`, read as `args.output == "json"`."""
    parser.add_argument(
        "-o", "--output", choices=("text", "json"), default="text", help="what goes to stdout (default: text)"
    )


def add_accept_bad_option(parser: argparse.ArgumentParser) -> None:
    """`--accept-bad N`."""
    parser.add_argument(
        "--accept-bad",
        type=_records,
        default=0,
        metavar="N",
        help="let the next N bad records pass to the dead letters without holding the job",
    )


def _records(text: str) -> int:
    """Raises ArgumentTypeError unless it says how many records."""
    try:
        number = int(text)
    except ValueError:
        number = -1
    if number < 0:
        raise argparse.ArgumentTypeError(f"{text} is no number of records: give 0 or more")
    return number


def load_job(args: argparse.Namespace) -> JobConfig:
    """The job that the arguments of `add_job_options` name. Raises ConfigError."""
    from pipeline.jobfile import load

    return load(args.config, args.overrides)


def print_json(document: Any) -> None:
    """One JSON document on stdout."""
    print(json.dumps(document, indent=2, allow_nan=False))
