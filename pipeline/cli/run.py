"""`evertrain run`: the main job."""

from __future__ import annotations

import argparse

from pipeline.cli.options import add_accept_bad_option, add_job_options, load_job


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the command."""
    parser = commands.add_parser("run", help="train on the topics of a job file, for ever or until caught up")
    add_job_options(parser)
    parser.add_argument(
        "--until-caught-up",
        action="store_true",
        help="end at what the topics hold when the run starts, once everything is released",
    )
    add_accept_bad_option(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Runs the job."""
    job = load_job(args)
    from pipeline.execute import execute

    execute(job, until_caught_up=args.until_caught_up, accept_bad=args.accept_bad)
    return 0
