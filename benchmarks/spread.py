"""Rows/s of the way in when topics have more partitions, and when more readers share them: JSON on real Kafka."""

from __future__ import annotations

import tempfile
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from benchmarks.processes import say
from benchmarks.stream import PARTITIONS
from benchmarks.throughput import WARM_UP_ROWS, ingest_unscored
from benchmarks.topics import Topics, broker, make_topics

FORMAT = "json"
PARTITION_COUNTS = (1, 4, 16, 64)
READERS = (1, 2)


class Case(NamedTuple):
    """What a rate is measured of."""

    partitions: int
    """Of each topic."""

    readers: int


def tables(partitions: list[int], readers: list[int], rows: int, repeat: int) -> dict[str, Any]:
    """A table by partitions, read by one reader, and one by readers, which share PARTITIONS; none without sizes."""
    found = rates(
        [*(Case(size, 1) for size in partitions), *(Case(PARTITIONS, size) for size in readers)], rows, repeat
    )
    results: dict[str, Any] = {}
    how = f"rows/s of the way in, unscored; {FORMAT}, {rows:,} rows, medians of {repeat}"
    if partitions:
        by_size = {size: found[size, 1] for size in partitions}
        results["partitions"] = {f"Partitions of each topic, one reader: {how}": records("partitions", by_size)}
    if readers:
        by_size = {size: found[PARTITIONS, size] for size in readers}
        results["readers"] = {f"Readers of {PARTITIONS} partitions a topic: {how}": records("readers", by_size)}
    return results


def records(name: str, by_size: dict[int, list[float]]) -> list[dict[str, Any]]:
    """Of the rates of each size the median, the extremes, and how it stands to the first size."""
    first = median(next(iter(by_size.values())))
    return [
        {
            name: size,
            "rows_a_second": round(median(rates)),
            "slowest": round(min(rates)),
            "fastest": round(max(rates)),
            "times_the_first": round(median(rates) / first, 2),
        }
        for size, rates in by_size.items()
    ]


def rates(cases: list[Case], rows: int, repeat: int) -> dict[tuple[int, int], list[float]]:
    """Rows/s of each case, as they take turns; a case that both tables have is measured once a turn.

    Each partition count has topics of its own on one broker, and one job runs on a few rows first, untimed.
    """
    found: dict[tuple[int, int], list[float]] = {case: [] for case in dict.fromkeys(cases)}
    with broker() as kafka:
        way_in(make_topics(kafka, FORMAT, WARM_UP_ROWS, prefix="warm-up"), WARM_UP_ROWS, readers=1)
        filled = {
            count: make_topics(kafka, FORMAT, rows, prefix=f"benchmark-{count}", partitions=count)
            for count in dict.fromkeys(case.partitions for case in cases)
        }
        for turn in range(repeat):
            for (count, readers), of_case in found.items():
                of_case.append(way_in(filled[count], rows, readers))
                say(f"{turn + 1}/{repeat} partitions {count}, readers {readers}: {of_case[-1]:,.0f} rows/s")
    return found


def way_in(topics: Topics, rows: int, readers: int) -> float:
    """Rows/s of one job without learning and scoring, with a state of its own."""
    with tempfile.TemporaryDirectory(prefix="evertrain-bench-") as directory:
        job_file = topics.write_job(Path(directory), readers=readers)
        return float(ingest_unscored(topics, job_file, rows)["rows_per_s"])
