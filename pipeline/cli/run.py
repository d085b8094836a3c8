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
    parser.add_argument(
        "--strict-environment", action="store_true", help="refuse to go on if torch, numpy, the CPU or the like changed"
    )
    parser.add_argument(
        "--new-lineage",
        action="store_true",
        help="train on although MLflow has versions of this name from another lineage, whose state is lost",
    )
    parser.add_argument(
        "--rollback-to",
        type=int,
        metavar="SEQUENCE",
        help="set aside every snapshot after this one, and go on from it in a new lineage",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Runs the job."""
    job = load_job(args)
    from pipeline.execute import execute
    from pipeline.run import Start

    names = ("accept_bad", "until_caught_up", "strict_environment", "new_lineage", "rollback_to")
    execute(job, Start(**{name: getattr(args, name) for name in names}))
    return 0
