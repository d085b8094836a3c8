"""The command line. Data goes to stdout, logs to stderr; exit codes are those of `consumers.errors`."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence

from consumers.errors import EvertrainError

INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code; wrong usage raises SystemExit(2), as argparse does."""
    args = _parser().parse_args(argv)
    logging.basicConfig(
        level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)-7s %(name)s: %(message)s"
    )
    try:
        code: int = args.run(args)
        return code
    except EvertrainError as error:
        for line in str(error).splitlines():
            print(f"evertrain: error: {line}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("evertrain: interrupted", file=sys.stderr)
        return INTERRUPTED


def _parser() -> argparse.ArgumentParser:
    # Inside the function: the commands' modules are no part of what `import pipeline.cli` costs or needs.
    from pipeline.cli import backtest, broker, config, demo, doctor, ledger, replay, run, status, verify

    parser = argparse.ArgumentParser(prog="evertrain", description="Trains PyTorch models without end on Kafka topics.")
    parser.add_argument("--version", action=_Version)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for command in (run, demo, broker, replay, backtest, verify, ledger, status, doctor, config):
        command.add_parser(commands)
    return parser


class _Version(argparse.Action):
    """Looks the version up only when it is asked for."""

    def __init__(self, option_strings: Sequence[str], dest: str) -> None:
        super().__init__(option_strings, dest, nargs=0, help="show the version and exit")

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from importlib.metadata import version

        print(f"evertrain {version('evertrain')}")
        parser.exit()
