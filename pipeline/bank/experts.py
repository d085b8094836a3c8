"""Which experts there are: one table for all streams. Which of them is right is for the mixture to find out."""

from __future__ import annotations

from typing import NamedTuple

HIDDEN = 32


class Expert(NamedTuple):
    """A network with one hidden layer, and how it learns."""

    rule: str  # "sgd"; "adam"; "ema": it is an average of another one
    step: float  # or the share in which an average moves
    source: int = -1  # the expert that it averages
    history: bool = False  # it sees the newest labels
    l2_init: float = 0.0  # share in which it goes back to what it began with, every step
    replay: bool = False  # it learns older rows again


LINEAR = (0.01, 0.1)
"""Step sizes of the linear experts, which see the newest labels too."""

EXPERTS = (
    Expert("sgd", 0.03, history=True),
    Expert("sgd", 0.1, history=True),
    Expert("sgd", 0.003),
    Expert("sgd", 0.01),
    Expert("sgd", 0.03),
    Expert("sgd", 0.1),
    Expert("adam", 1e-3),
    Expert("adam", 3e-3),
    Expert("adam", 1e-2),
    Expert("adam", 3e-3, l2_init=1e-3),
    Expert("adam", 3e-3, replay=True),
    Expert("ema", 0.02, source=7),
    Expert("ema", 0.02, source=8),
)
"""In this order: what sees the newest labels, plain steps, Adam, averages. The compiled loops rely on it.

L2-init: Kumar et al., "Maintaining Plasticity in Continual Learning via Regenerative Regularization" (2023).
"""

HISTORIC = sum(expert.history for expert in EXPERTS)
PLAIN_STEPS = sum(expert.rule == "sgd" for expert in EXPERTS)
TRAINED = sum(expert.rule != "ema" for expert in EXPERTS)
L2_EXPERT = next(index for index, expert in enumerate(EXPERTS) if expert.l2_init)
REPLAY_EXPERT = next(index for index, expert in enumerate(EXPERTS) if expert.replay)

MIXERS = (0.0004, 0.00125, 0.004)
"""Step sizes of the logistic mixtures, a row."""

RECALLING = 3 + 2
"""Members that say what labels were told last: neighbours, frequencies."""
