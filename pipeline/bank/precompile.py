"""Compiles the loops of the default learner, so that no job waits for it: `make setup` runs this."""

from __future__ import annotations

import numpy as np

from consumers.batch import Batch
from pipeline.config import BUILT_IN_TASKS, JobConfig
from pipeline.learner import Learner

ROWS = 2


def main() -> None:
    """Learns one batch of each task."""
    for task in BUILT_IN_TASKS:
        job = JobConfig.model_validate(
            {
                "job": {"name": "precompile", "state_dir": "none"},
                "kafka": {"bootstrap.servers": "none"},
                "features": {"topic": "f", "label": "y", "numeric": ["a"], "categorical": ["b"]},
                "learner": {"kind": "bank", "task": task, "batch_size": ROWS},
                "dead_letters": {"topic": "d"},
            }
        )
        zeros_N = np.zeros(ROWS, np.float32)
        features_N2, scores_N1 = np.zeros((ROWS, 2), np.float32), np.zeros((ROWS, 1), np.float32)
        batch = Batch(features_N2, zeros_N, zeros_N + 1, scores_N1, np.zeros(ROWS, np.int64), ROWS)
        Learner(job).step(batch)


if __name__ == "__main__":
    main()
