"""`evertrain ledger`: what one version has learned and another not, and which version first saw a record."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from pipeline.cli.options import add_job_options, add_output_option, load_job, print_json

if TYPE_CHECKING:
    from consumers.record import Partition
    from pipeline.audit import Target
    from pipeline.config import JobConfig


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the command."""
    parser = commands.add_parser(
        "ledger",
        help="compare what two versions have learned, or find the first that saw a record",
        description="The offset ranges that VERSION_A has learned and VERSION_B has not, and the other way round; or, "
        "with --offset, the first version that saw one record. Exit code 4 if no version has seen it.",
    )
    parser.add_argument("versions", nargs="*", metavar="VERSION", help="two versions, by number or @alias")
    parser.add_argument("--offset", metavar="TOPIC:PARTITION:OFFSET", help="a record")
    add_job_options(parser)
    add_output_option(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Answers on stdout."""
    from consumers.errors import ConfigError

    job = load_job(args)
    if args.offset is not None and not args.versions:
        return _first(job, args.offset, as_json=args.output == "json")
    if args.offset is None and len(args.versions) == 2:
        return _compare(job, *args.versions, as_json=args.output == "json")
    raise ConfigError("name two versions to compare, or one record with --offset topic:partition:offset")


def _compare(job: JobConfig, first: str, second: str, *, as_json: bool) -> int:
    from pipeline.audit import find, only_in

    a, b = find(job, first), find(job, second)
    ranges_a, ranges_b = _ranges(a), _ranges(b)
    only = {first: only_in(ranges_a, ranges_b), second: only_in(ranges_b, ranges_a)}
    if as_json:
        print_json({"a": first, "b": second, "only_a": _lines(only[first]), "only_b": _lines(only[second])})
        return 0
    for name, found in only.items():
        offsets = sum(stop - start for parts in found.values() for start, stop in parts)
        print(f"only in {name}: {offsets:,} offsets")
        for line in _lines(found):
            print(f"  {line['topic']}[{line['partition']}]  {line['from']:,} up to, without, {line['to']:,}")
    return 0


def _first(job: JobConfig, record: str, *, as_json: bool) -> int:
    from consumers.errors import CheckError
    from consumers.record import Partition
    from pipeline.audit import versions

    partition, offset = _parse(record)
    for target in versions(job):
        start, stop = _ranges(target).get(Partition(*partition), (0, 0))
        if start <= offset < stop:
            if as_json:
                print_json({"record": record, "version": target.number, "snapshot_id": target.snapshot_id})
            else:
                print(f"{record}: version {target.number} was the first to see it (snapshot {target.snapshot_id})")
            return 0
    raise CheckError(f"{record}: no version of {job.job.name} has seen it")


def _ranges(target: Target) -> dict[Partition, tuple[int, int]]:
    from consumers.errors import CheckError

    if target.offsets is None:
        raise CheckError(f"version {target.name} has too many partitions for its tags to name the offsets of each")
    return dict(target.offsets)


def _lines(found: dict[Partition, list[tuple[int, int]]]) -> list[dict[str, Any]]:
    return [
        {"topic": partition.topic, "partition": partition.number, "from": start, "to": stop}
        for partition, parts in sorted(found.items())
        for start, stop in parts
    ]


def _parse(record: str) -> tuple[tuple[str, int], int]:
    from consumers.errors import ConfigError

    topic, _, rest = record.partition(":")
    number, _, offset = rest.partition(":")
    if not (topic and number.isdigit() and offset.isdigit()):
        raise ConfigError(f"--offset {record}: a record is written topic:partition:offset, for example flights:0:1200")
    return (topic, int(number)), int(offset)
