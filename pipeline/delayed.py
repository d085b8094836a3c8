"""Labels that come late: rows learned as negatives before their label, and corrected when it says otherwise.

With `join.negative_after` = e a row whose label has not come e after its features (in event time, by the watermark) is
learned as a negative. If its label is 0 in the end, nothing more is learned; if it is 1, the row is learned again, as a
positive. So a positive comes as a negative first with the probability d that its label takes longer than e. Let p be
the probability of 1 given x: of the rows at x, a share p is learned as positives, and 1 - p + p d as negatives, but
only 1 - p are. The weights

    positive: 1        negative learned early: (1 - p) / (1 - p + p d)

make the expected gradient at x again p times that of a positive plus 1 - p times that of a negative. p is the row's
prequential score, d a share counted on the stream itself. This is the elapsed-time sampling of Yang et al., "Capturing
Delayed Feedback in Conversion Rate Prediction via Elapsed-Time Sampling" (ES-DFM, AAAI 2021), and with e = 0, where
d = 1, the fake-negative weighting of Ktena et al., "Addressing Delayed Feedback for Continuous Training with Neural
Networks in CTR Prediction" (FNW, RecSys 2019). Both divide by the share of a *label* at x and so weigh positives with
1 + p d and negatives with (1 + p d) (1 - p) / (1 - p + p d); the common factor 1 + p d depends on x alone, moves no
optimum, and is left out here, where each event shall weigh as much as any other.

With `join.keep_negatives` = r a negative is learned with probability r, by its key, and then weighs 1 / r: expected
gradients, and with them the scores' calibration, stay what they were. Not so for the bank, whose members count and
remember rows: it learns those that are kept as they are, and puts each score p right to p / (p + (1 - p) / r), as in
He et al., "Practical Lessons from Predicting Clicks on Ads at Facebook" (2014).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from consumers.batch import Batch, Batcher, Examples
from consumers.config import JoinConfig

POSITIVES_REMEMBERED = 10_000
"""The share of positives that come late is that of so many recent ones, or up to twice as many."""

COUNTS = ("corrected", "confirmed", "left_out")


class Delayed:
    """Decides what is learned of each example, and collects the final ones, each once, to be booked. Part of S."""

    def __init__(self, config: JoinConfig, finals: Batcher, *, weighs: bool = True) -> None:
        """`weighs`: negatives that are kept weigh more; else what the learner says has to be put right."""
        self._keep = config.keep_negatives
        self._weight = 1 / config.keep_negatives if weighs else 1.0
        self.finals = finals
        self.booked = 0  # final examples, those that wait in `finals` included
        self._counts_3 = np.zeros(len(COUNTS), np.int64)
        self._positives_2 = np.zeros(2, np.int64)  # recent ones: all, and those that had been learned as negatives

    @property
    def late_share(self) -> float:
        """The probability that a positive was learned as a negative before; 1 until some have come."""
        positives, late = self._positives_2.tolist()
        return float((late + 1) / (positives + 1))

    def book(self, examples: Examples) -> Iterator[Batch]:
        """Adds final examples and yields each batch that they fill."""
        self.booked += len(examples)
        yield from self.finals.add(examples)

    def to_learn(self, examples: Examples) -> Examples:
        """Those that are to be learned, with the factors of their weights."""
        positive_N = examples.labels_N == 1
        confirmed_N = examples.assumed_N & ~positive_N
        left_out_N = ~(positive_N | confirmed_N | self._kept(examples))
        corrected = int((examples.assumed_N & positive_N).sum())
        self._counts_3 += corrected, int(confirmed_N.sum()), int(left_out_N.sum())
        self._count_positives(int(positive_N.sum()), corrected)
        factor_N = np.where(positive_N, 1, self._weight)
        if not examples.final:
            factor_N *= early_factor(examples.take("scores")[:, 0].astype(np.float64), self.late_share)
        return examples.part(~(confirmed_N | left_out_N), factor_N.astype(np.float32))

    def counts(self) -> dict[str, int]:
        """What became of examples beside being learned as they are."""
        return dict(zip(COUNTS, self._counts_3.tolist(), strict=True))

    def state(self) -> dict[str, npt.NDArray[Any]]:
        """Everything, for the snapshot."""
        finals = {f"finals.{name}": array for name, array in self.finals.state().items()}
        return {**finals, "counts": self._counts_3, "positives": self._positives_2, "booked": np.array(self.booked)}

    def restore(self, state: Mapping[str, npt.NDArray[Any]]) -> None:
        """Takes over a `state`."""
        prefix = "finals."
        self.finals.restore({n.removeprefix(prefix): array for n, array in state.items() if n.startswith(prefix)})
        self._counts_3[:], self._positives_2[:] = state["counts"], state["positives"]
        self.booked = int(state["booked"])

    def _kept(self, examples: Examples) -> npt.NDArray[np.bool_]:
        """Which negatives are learned, by bits of the key's hash that nothing else goes by."""
        if self._keep == 1:
            return np.ones(len(examples), np.bool_)
        return examples.take("key")[:, 1] < np.uint64(self._keep * 2**64)

    def _count_positives(self, found: int, late: int) -> None:
        self._positives_2 += found, late
        if self._positives_2[0] >= 2 * POSITIVES_REMEMBERED:
            self._positives_2 //= 2


def early_factor(scores_N: npt.NDArray[np.float64], late_share: float) -> npt.NDArray[np.float64]:
    """(1 - p) / (1 - p + p d), and 1 where a score is not finite."""
    positive_N = np.where(np.isfinite(scores_N), scores_N, 0.0)
    return (1 - positive_N) / (1 - positive_N + positive_N * late_share)
