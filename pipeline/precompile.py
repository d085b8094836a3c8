"""Compiles what every job needs, so that no job waits for it: `make setup` runs `python -m pipeline.precompile`."""

from __future__ import annotations

import numpy as np

from consumers.batch import Batch
from pipeline.config import BUILT_IN_TASKS, JobConfig
from pipeline.learner import Learner
from pipeline.monitor import Monitor

ROWS = 4096
"""Long enough for drift to be looked for."""


def main() -> None:
    """Learns and observes one batch of each task."""
    for task in BUILT_IN_TASKS:
        job = JobConfig.model_validate(
            {
                "job": {"name": "precompile", "state_dir": "none"},
                "kafka": {"bootstrap.servers": "none"},
                "features": {"topic": "f", "numeric": ["a"], "categorical": ["b"]},
                "labels": {"topic": "l", "column": "y"},
                "learner": {"task": task, "batch_size": ROWS},
                "dead_letters": {"topic": "d"},
            }
        )
        learner = Learner(job)
        zeros_B, times_B = np.zeros(ROWS, np.float32), np.arange(ROWS)
        scores_BS = np.full((ROWS, learner.score_width), 0.5, np.float32)
        features_BC = np.zeros((ROWS, job.features.columns), np.float32)
        batch = Batch(features_BC, zeros_B, zeros_B + 1, scores_BS, times_B, ROWS, times_B)
        learner.step(batch)
        monitor = Monitor(job.monitor, kind=learner.task.kind, classes=job.learner.classes, features=job.features)
        monitor.observe(batch, None, ROWS)


if __name__ == "__main__":
    main()
