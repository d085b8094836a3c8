"""The floor of the way in: the readers' own fetcher takes every message and does nothing with it."""

from __future__ import annotations

import argparse
import json
import time

from consumers.kafka import Cluster, Fetcher

FETCH_S = 0.01  # as the readers have it


def pull(bootstrap: str, topics: list[str]) -> tuple[int, float]:
    """Takes all messages of the topics twice; returns how many there are, and the seconds the second time took.

    The first time loads what is compiled, and the pages of the broker's files. The clock starts with the first fetch
    that brings messages.
    """
    settings = {"bootstrap.servers": bootstrap}
    cluster = Cluster(settings)
    partitions = [partition for name in topics for partition in cluster.topic(name).partitions]
    total = sum(cluster.ends(partitions).values())
    for _pass in range(2):
        fetcher = Fetcher(settings, "pull-only", dict.fromkeys(partitions, 0))
        left, started = total, 0.0
        while left:
            began = time.perf_counter()
            fetched, _ = fetcher.fetch(FETCH_S)
            left -= sum(map(len, fetched.values()))
            started = started or (began if fetched else 0.0)
        seconds = time.perf_counter() - started
        fetcher.close()
    return total, seconds


def main() -> None:
    """Prints {"rows", "messages", "seconds", "messages_per_s", "rows_per_s"}."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.pull_only", description=__doc__)
    parser.add_argument("--bootstrap", required=True)
    parser.add_argument("--features", required=True, help="the topic of feature events")
    parser.add_argument("--labels", required=True, help="the topic of label events")
    parser.add_argument("--rows", type=int, required=True, help="how many rows the topics hold")
    args = parser.parse_args()
    messages, seconds = pull(args.bootstrap, [args.features, args.labels])
    rates = {"messages_per_s": messages / seconds, "rows_per_s": args.rows / seconds}
    print(json.dumps({"rows": args.rows, "messages": messages, "seconds": seconds, **rates}))


if __name__ == "__main__":
    main()
