"""`evertrain verify`: whether a version is what its ledger says."""

from __future__ import annotations

import argparse
import sys
import time
from typing import TYPE_CHECKING

from pipeline.cli.options import add_job_options, add_output_option, load_job, print_json

if TYPE_CHECKING:
    from pipeline.verify import Verdict


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the command."""
    parser = commands.add_parser(
        "verify",
        help="rebuild a version from the ledger, and compare it to the bit",
        description="Trains again from the nearest older anchor snapshot with the records that the ledger names, and "
        "compares hashes: of the weights and of the whole state. Exit codes: 0 identical; 4 it differs; 3 it cannot be "
        "rebuilt (records or anchors are gone, or it was made in another environment).",
    )
    parser.add_argument("version", help="a version's number, @alias, or snapshot:SEQUENCE")
    add_job_options(parser)
    add_output_option(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Rebuilds and compares."""
    job = load_job(args)
    from consumers.errors import CheckError
    from pipeline.audit import find, verify

    version = find(job, args.version)
    began = time.monotonic()
    verdict = verify(job, version, tell=lambda line: print(line, file=sys.stderr))
    if args.output == "json":
        print_json(
            {
                "version": version.number,
                "snapshot": verdict.sequence,
                "anchor": verdict.anchor,
                "identical": not verdict.differences,
                "differences": verdict.differences,
                "weights_sha256": verdict.weights_sha256,
                "state_sha256": verdict.state_sha256,
                "rows": verdict.rows,
                "seconds": round(time.monotonic() - began, 1),
            }
        )
    else:
        print(_sentence(args.version, verdict))
    if verdict.differences:
        raise CheckError(f"{args.version} differs from what its ledger gives: {', '.join(verdict.differences)}")
    return 0


def _sentence(name: str, verdict: Verdict) -> str:
    how = f"snapshot {verdict.sequence}, rebuilt from anchor {verdict.anchor} with {verdict.rows:,} rows"
    result = "differs" if verdict.differences else "identical"
    return f"{name}: {result} ({how}; weights {verdict.weights_sha256[:16]}, state {verdict.state_sha256[:16]})"
