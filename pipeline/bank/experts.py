"""Which experts there are. One table for all streams: which of them is right is for the mixture to find out."""

from __future__ import annotations

from typing import NamedTuple

HIDDEN = 32


class Expert(NamedTuple):
    """A small network, or a linear model, and how it learns."""

    rule: str  # "sgd", "adam", "ema": the average of another one
    step: float
    l2_init: float = 0.0  # towards what it began with: Kumar et al., "Maintaining Plasticity ... " (2023)
    replay: bool = False  # it also learns again from older rows
    history: bool = False  # it sees the newest labels


EXPERTS = (
    Expert("sgd", 0.003),
    Expert("sgd", 0.01),
    Expert("sgd", 0.03),
    Expert("sgd", 0.1),
    Expert("adam", 1e-3),
    Expert("adam", 3e-3),
    Expert("adam", 1e-2),
    Expert("adam", 3e-3, l2_init=1e-3),
    Expert("adam", 3e-3, history=True),
    Expert("adam", 3e-3, replay=True),
    Expert("ema", 0.02),
    Expert("ema", 0.02),
)
SGD, TRAINED = 4, 10  # the first so many learn by plain steps; the first so many learn at all
HISTORY_EXPERT, REPLAY_EXPERT, L2_EXPERT = 8, 9, 7
EMA_OF = {10: 5, 11: 6}

LINEAR = (0.01, 0.1, 1e-3, 1e-2)  # two plain steps, two of Adam
LINEAR_SGD = 2

NEAREST = ((1, False, 0.3), (2, False, 0.3), (3, False, 0.3), (3, True, 0.3))
"""Of each: squarings of a vote's closeness, whether newer rows weigh more, votes of the prior."""

MEMBERS_BESIDE = 1 + len(NEAREST) + 2  # the hashed table, neighbours, frequencies
