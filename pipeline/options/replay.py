"""`learner.replay`: older rows that are learned again beside the new ones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from consumers.batch import Batch
from consumers.record import Float32s
from pipeline.options.config import ReplayConfig


class Replay:
    """A `Part` that remembers rows of the stream: a uniform sample of all, or the newest.

    The sample is a reservoir: row number n takes the place of a random one with probability rows / n. Vitter, "Random
    Sampling with a Reservoir" (1985), algorithm R. Of either kind as many rows are drawn for a step as it has new ones,
    with replacement, and they weigh as much: Chaudhry et al., "On Tiny Episodic Memories in Continual Learning" (2019).
    """

    def __init__(self, config: ReplayConfig, columns: int, seed: int) -> None:
        self._keep = config.keep
        self._features_RC = np.zeros((config.rows, columns), np.float32)
        self._labels_R = np.zeros(config.rows, np.float32)
        self._weights_R = np.zeros(config.rows, np.float32)
        self._seen = 0
        self._random = np.random.Generator(np.random.PCG64(seed))

    def draw(self, batch: Batch) -> Batch:
        """A batch [2 B, C]: the one given, and as many remembered rows below it; none while nothing is remembered."""
        size, rows = len(batch.labels_B), batch.rows
        features = np.zeros((2 * size, batch.features_BC.shape[1]), np.float32)
        labels, weights = np.zeros(2 * size, np.float32), np.zeros(2 * size, np.float32)
        features[:size], labels[:size], weights[:size] = batch.features_BC, batch.labels_B, batch.weights_B
        remembered = min(self._seen, len(self._labels_R))
        if remembered:
            drawn, below = self._random.integers(0, remembered, rows), slice(size, size + rows)
            features[below] = self._features_RC[drawn]
            labels[below], weights[below] = self._labels_R[drawn], self._weights_R[drawn]
        return Batch(features, labels, weights, batch.scores_BS, batch.event_time_B, batch.rows)

    def learned(self, batch: Batch) -> None:
        size, numbers_N = len(self._labels_R), np.arange(self._seen, self._seen + batch.rows)
        if self._keep == "recent":
            places_N = numbers_N % size
        else:
            places_N = np.where(numbers_N < size, numbers_N, self._random.integers(0, numbers_N + 1))
        for row, place in enumerate(places_N.tolist()):  # one by one: a later row may take an earlier one's place
            if place < size:
                self._features_RC[place] = batch.features_BC[row]
                self._labels_R[place], self._weights_R[place] = batch.labels_B[row], batch.weights_B[row]
        self._seen += batch.rows

    def state(self) -> dict[str, np.ndarray]:
        return {"features": self._features_RC, "labels": self._labels_R, "weights": self._weights_R}

    def document(self) -> dict[str, Any]:
        return {"seen": self._seen, "random": self._random.bit_generator.state}

    def restore(self, arrays: Mapping[str, Float32s], document: Mapping[str, Any]) -> None:
        self._features_RC[:] = arrays["features"]
        self._labels_R[:], self._weights_R[:] = arrays["labels"], arrays["weights"]
        self._seen, self._random.bit_generator.state = document["seen"], document["random"]

    @property
    def random_state(self) -> Any:
        """Of the generator: a step that is refused gives back what it drew."""
        return self._random.bit_generator.state

    @random_state.setter
    def random_state(self, state: Any) -> None:
        self._random.bit_generator.state = state
