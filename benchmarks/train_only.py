"""The ceiling: the same learner on tensors that are ready in memory, with the order that late labels dictate.

A span of rows is scored when it comes, and learned later, batch by batch: so no row is learned by the very weights that
scored it. A learner that could reuse what it computed for the score would be measured on what no stream allows it.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from itertools import cycle, islice
from pathlib import Path

import numpy as np

from benchmarks.stream import FIRST_TIME_MS, chunks
from consumers.batch import Batch
from consumers.record import Float32s
from pipeline.jobfile import load
from pipeline.learner import Learner

MEMORY_ROWS = 204_800
SPAN_ROWS = 2_048  # as readers cut, unless the job says otherwise


def batches(rows: int, size: int) -> list[Batch]:
    """The stream's first rows as full batches: views of arrays, as the batcher hands them out."""
    stream = list(chunks(rows))
    features_NC = np.concatenate([chunk.features_NC for chunk in stream]).astype(np.float32)
    labels_N = np.concatenate([chunk.labels_N for chunk in stream]).astype(np.float32)
    weights_N = np.ones(rows, np.float32)
    scores_NS = np.zeros((rows, 1), np.float32)
    event_time_N = FIRST_TIME_MS + np.arange(rows)
    return [
        Batch(
            features_NC[start : start + size],
            labels_N[start : start + size],
            weights_N[start : start + size],
            scores_NS[start : start + size],
            event_time_N[start : start + size],
            size,
        )
        for start in range(0, rows - size + 1, size)
    ]


def spans(size: int) -> Iterator[tuple[Float32s, list[Batch]]]:
    """Features of a span [N, C], and the same rows as batches; N is SPAN_ROWS in whole batches, or one batch."""
    ready = batches(MEMORY_ROWS, size)
    each = max(1, SPAN_ROWS // size)
    for start in range(0, len(ready) - each + 1, each):
        learned = ready[start : start + each]
        yield np.concatenate([batch.features_BC for batch in learned]), learned


def train(job_file: Path, rows: int) -> tuple[int, float]:
    """Scores and learns at least `rows` rows; returns how many, and the seconds it took."""
    job = load(job_file)
    learner = Learner(job)
    ready = list(spans(job.learner.batch_size))
    count = -(-rows // len(ready[0][0]))
    started = time.perf_counter()
    for features_NC, learned in islice(cycle(ready), count):
        learner.score(features_NC)
        for batch in learned:
            learner.step(batch)
    return count * len(ready[0][0]), time.perf_counter() - started


def main() -> None:
    """Prints {"rows", "seconds", "rows_per_s"}."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.train_only", description=__doc__)
    parser.add_argument("-c", "--config", type=Path, required=True, help="the job file")
    parser.add_argument("--rows", type=int, required=True)
    args = parser.parse_args()
    rows, seconds = train(args.config, args.rows)
    print(json.dumps({"rows": rows, "seconds": seconds, "rows_per_s": rows / seconds}))


if __name__ == "__main__":
    main()
