"""`evertrain demo`: the whole thing on New York's flights of 2013, in about a minute."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds `demo`."""
    parser = subparsers.add_parser(
        "demo", help="train on a real stream with a local Kafka, in about a minute", description=__doc__
    )
    parser.add_argument(
        "--state", type=Path, default=Path("state/demo"), help="its folder, emptied first (default: %(default)s)"
    )
    parser.add_argument(
        "--rows-per-second", type=float, default=9000.0, metavar="N", help="flights a second (default: %(default)g)"
    )
    parser.add_argument("--limit", type=int, metavar="N", help="only the first N flights")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Runs the demo."""
    from consumers.errors import ConfigError
    from pipeline.demo.demo import demo

    if args.rows_per_second <= 0 or (args.limit is not None and args.limit <= 0):
        raise ConfigError("--rows-per-second and --limit must be greater than 0")
    return demo(args.state, args.rows_per_second, args.limit)
