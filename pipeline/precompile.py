"""Compiles what every monitor needs, so that no job waits for it: `make setup` runs `python -m pipeline.precompile`."""

from __future__ import annotations

import numpy as np

from consumers.batch import Batch
from consumers.config import FeaturesConfig
from pipeline.config import MonitorConfig
from pipeline.monitor import Monitor

ROWS = 4096


def main() -> None:
    """Observes a batch of each task that scores in its own way, long enough for drift to be looked for."""
    features = FeaturesConfig.model_validate({"topic": "f", "numeric": ["number"], "categorical": ["category"]})
    ones_B = np.ones(ROWS, np.float32)
    for kind, width in (("binary", 1), ("multiclass", 2)):
        monitor = Monitor(MonitorConfig(), kind=kind, classes=2, features=features)
        scores_BS, times_B = np.full((ROWS, width), 0.5, np.float32), np.arange(ROWS)
        features_BC = np.ones((ROWS, features.columns), np.float32)
        monitor.observe(Batch(features_BC, ones_B, ones_B, scores_BS, times_B, ROWS), None, ROWS, ROWS)


if __name__ == "__main__":
    main()
