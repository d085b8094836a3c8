"""deep-river: the MLP 32-256-128 in batches of 1024, scored and learned, on rows joined with two dicts."""

from __future__ import annotations

import pandas as pd
import torch
from deep_river.classification import Classifier
from joined import Joined, options
from torch import nn

BATCH_ROWS = 1024


def main() -> None:
    """Scores each batch, and then learns it."""
    torch.set_num_threads(1)
    joined = Joined(options(__doc__))
    module = nn.Sequential(nn.Linear(32, 256), nn.ReLU(), nn.Linear(256, 128), nn.ReLU(), nn.Linear(128, 2))
    model = Classifier(module, loss_fn="cross_entropy", optimizer_fn="adam", lr=1e-3)
    batch: list[tuple[dict[str, float], int]] = []
    for row in joined:
        batch.append(row)
        if len(batch) == BATCH_ROWS:
            features = pd.DataFrame([features for features, _ in batch])
            model.predict_proba_many(features)
            model.learn_many(features, pd.Series([label for _, label in batch]))
            batch = []
    joined.report()


if __name__ == "__main__":
    main()
