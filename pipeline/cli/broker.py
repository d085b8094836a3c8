"""`evertrain broker`: a local Apache Kafka."""

from __future__ import annotations

import argparse
import signal
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    Subparsers = argparse._SubParsersAction[argparse.ArgumentParser]


def add_parser(subparsers: Subparsers) -> None:
    """Adds `broker` to the command line."""
    parser = subparsers.add_parser(
        "broker", help="serve a local single-node Apache Kafka until Ctrl-C", description=__doc__
    )
    parser.add_argument("--data", type=Path, default=Path("state/kafka"), help="its folder (default: %(default)s)")
    parser.add_argument("--port", type=int, help="default: the folder's last one, else any free one")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Serves until SIGINT or SIGTERM, then exits 0; 1 if Kafka ends by itself. Prints the address on stdout."""
    from consumers.broker import KafkaBroker

    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    with KafkaBroker(args.data, args.port) as broker:
        print(broker.bootstrap, flush=True)
        print(f"{broker.kind} serves {args.data} (process {broker.pid}); Ctrl-C ends it", file=sys.stderr)
        while broker.alive and not stop.wait(0.5):
            pass
    if not stop.is_set():
        print(f"error: Kafka ended by itself: see {args.data / 'kafka.log'}", file=sys.stderr)
        return 1
    return 0
