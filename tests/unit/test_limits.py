"""What a reader's limit of memory leaves for reading."""

from __future__ import annotations

import subprocess
import sys

STARTED = """
import sys
from confluent_kafka import Consumer
from consumers.limits import limit_stacks

def mapped():
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith("VmData"))

if len(sys.argv) > 1:
    limit_stacks()
before = mapped()
brokers = ",".join(f"127.0.0.1:{port}" for port in range(1, 41))
consumer = Consumer({"bootstrap.servers": brokers, "group.id": "g", "log_level": 0})
print(mapped() - before)
"""


def test_a_large_cluster_does_not_fill_a_readers_memory_with_stacks() -> None:
    """librdkafka starts a thread for each of 40 brokers."""
    default, small = (
        int(subprocess.run([sys.executable, "-c", STARTED, *size], capture_output=True, check=True).stdout)
        for size in ([], ["small"])
    )
    assert small < 100 * 2**20 < default, (small, default)
