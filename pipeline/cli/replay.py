"""`evertrain replay`: the same code over a bounded stretch of the topics, into a lineage of its own."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from pipeline.cli.options import add_accept_bad_option, add_job_options, add_output_option, load_job, print_json

if TYPE_CHECKING:
    from pipeline.config import JobConfig
    from pipeline.replay import Stretch
    from pipeline.store import LocalStore


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the command."""
    parser = commands.add_parser(
        "replay",
        help="train a new lineage on a stretch of the topics",
        description="Times are ISO 8601 (UTC if they name no zone) and mean record timestamps; offsets are written "
        "0:1200,1:980 (partition:offset). The stretch is of feature events, from FROM up to but without TO; labels are "
        "read to the end of the join window after it.",
    )
    add_job_options(parser)
    add_output_option(parser)
    add_accept_bad_option(parser)
    parser.add_argument("--from", dest="start", required=True, metavar="FROM", help="a time, or offsets")
    parser.add_argument("--to", dest="stop", required=True, metavar="TO", help="a time, or offsets")
    parser.add_argument("--name", help="of the new lineage (default: the job's name with -replay)")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Replays, and prints the resolved offsets and the result."""
    job = load_job(args)
    from pipeline.replay import replay_job, resolve

    name = args.name or f"{job.job.name}-replay"
    stretch = resolve(job, args.start, args.stop)
    _announce(stretch)
    from pipeline.cli import INTERRUPTED
    from pipeline.execute import execute
    from pipeline.run import Start
    from pipeline.store import LocalStore

    replay = replay_job(job, name, stretch)
    if not execute(replay, Start(accept_bad=args.accept_bad, new_lineage=True), stretch.bounds):
        print("stopped before the end; the same command goes on from here", file=sys.stderr)
        return INTERRUPTED
    _report(replay, stretch, LocalStore(replay.job.state_dir), json=args.output == "json")
    return 0


def _announce(stretch: Stretch) -> None:
    for line in stretch.lines():
        print(f"{line['topic']}[{line['partition']}]: offsets {line['start']} to {line['stop']}", file=sys.stderr)


def _report(job: JobConfig, stretch: Stretch, store: LocalStore, *, json: bool) -> None:
    manifest = store.manifest(store.sequences()[-1])
    result = {
        "name": job.job.name,
        "state_dir": str(job.job.state_dir),
        "offsets": stretch.lines(),
        "rows_trained": manifest["rows_trained"],
        "weights_sha256": manifest["weights_sha256"],
        "snapshot_id": manifest["snapshot_id"],
        "counts": manifest["counts"],
    }
    if json:
        print_json(result)
    else:
        print(
            f"{job.job.name}: {manifest['rows_trained']} rows trained, weights {manifest['weights_sha256'][:16]}, "
            f"state in {job.job.state_dir}"
        )
