"""Joined examples, and fixed-shape micro-batches of them. The part-filled batch is part of S."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from consumers.record import Float32s, Int64s


@dataclass(frozen=True, slots=True)
class Examples:
    """N joined rows as they lie in the join table: valid until the join goes on. S is the width of a score.

    Those that are not `final` still wait for their label, and are learned as negatives meanwhile.
    """

    row_N: Int64s
    labels_N: Float32s
    age_N: Int64s  # ms from the features' event time to the label's, or to when it was given up
    assumed_N: npt.NDArray[np.bool_]  # whether they came before, not final
    columns: Mapping[str, npt.NDArray[Any]]  # by row: features [C] and weight; event_time and scores [S] of the feature
    final: bool = True
    factor_N: Float32s | None = None  # of their weights; None: 1
    sent: bool = True  # else nobody has sent these labels

    def __len__(self) -> int:
        return len(self.labels_N)

    def part(self, chosen_N: npt.NDArray[np.bool_], factor_N: Float32s) -> Examples:
        """The chosen ones, with factors of their weights."""
        return Examples(
            self.row_N[chosen_N],
            self.labels_N[chosen_N],
            self.age_N[chosen_N],
            self.assumed_N[chosen_N],
            self.columns,
            self.final,
            factor_N[chosen_N],
            self.sent,
        )

    def take(self, name: str, rows: slice = slice(None), out: npt.NDArray[Any] | None = None) -> npt.NDArray[Any]:
        """Copies a column of these rows, to `out` if given."""
        return self.columns[name].take(self.row_N[rows], axis=0, out=out, mode="clip")  # "raise" would copy twice


@dataclass(frozen=True, slots=True)
class Batch:
    """Views of the batcher's buffers, valid until the next example is added.

    The shape is always full: rows at `rows` and after are padding, all zero, with weight 0.
    """

    features_BC: Float32s
    labels_B: Float32s
    weights_B: Float32s
    scores_BS: Float32s
    event_time_B: Int64s
    rows: int
    age_B: Int64s | None = None  # as in `Examples`; None where nobody knows
    sent_B: npt.NDArray[np.bool_] | None = None  # likewise; None: all


class Batcher:
    """Collects examples into batches of exactly `size` rows."""

    def __init__(self, size: int, columns: int, score_width: int) -> None:
        self._features_BC = np.zeros((size, columns), np.float32)
        self._labels_B = np.zeros(size, np.float32)
        self._weights_B = np.zeros(size, np.float32)
        self._scores_BS = np.zeros((size, score_width), np.float32)
        self._event_time_B, self._age_B = np.zeros(size, np.int64), np.zeros(size, np.int64)
        self._sent_B = np.zeros(size, np.bool_)
        self.size = size
        self.filled = 0

    def add(self, examples: Examples) -> Iterator[Batch]:
        """Adds examples in order and yields each batch that they fill."""
        taken = 0
        while taken < len(examples):
            count = min(self.size - self.filled, len(examples) - taken)
            source, target = slice(taken, taken + count), slice(self.filled, self.filled + count)
            self._labels_B[target] = examples.labels_N[source]
            examples.take("features", source, self._features_BC[target])
            self._age_B[target], self._sent_B[target] = examples.age_N[source], examples.sent
            examples.take("weight", source, self._weights_B[target])
            if examples.factor_N is not None:
                with np.errstate(over="ignore"):  # the step refuses what is not finite
                    self._weights_B[target] *= examples.factor_N[source]
            examples.take("scores", source, self._scores_BS[target])
            examples.take("event_time", source, self._event_time_B[target])
            self.filled += count
            taken += count
            if self.filled == self.size:
                yield from self.close()

    def close(self) -> Iterator[Batch]:
        """Yields the open batch, padded, unless it is empty."""
        if self.filled:
            rows, self.filled = self.filled, 0
            for array in self._arrays().values():
                array[rows:] = 0
            yield Batch(
                self._features_BC,
                self._labels_B,
                self._weights_B,
                self._scores_BS,
                self._event_time_B,
                rows,
                self._age_B,
                self._sent_B,
            )

    @property
    def newest_BC(self) -> Float32s:
        """A full block of features: the open batch, and behind it what is left of the batch before."""
        return self._features_BC

    def state(self) -> dict[str, np.ndarray]:
        """The buffers, for the snapshot."""
        return {**self._arrays(), "filled": np.array(self.filled)}

    def restore(self, state: dict[str, np.ndarray]) -> None:
        """Takes the buffers from a snapshot."""
        self.filled = int(state["filled"])
        for name, array in self._arrays().items():
            array[:] = state[name]

    def _arrays(self) -> dict[str, np.ndarray]:
        return {
            "features": self._features_BC,
            "labels": self._labels_B,
            "weights": self._weights_B,
            "scores": self._scores_BS,
            "event_time": self._event_time_B,
            "age": self._age_B,
            "sent": self._sent_B,
        }
