"""How unlikely a deviation is."""

from __future__ import annotations

import math


def chance(deviations: float) -> float:
    """Probability of a normal number at least so many standard deviations from its mean, on either side."""
    return math.erfc(abs(deviations) / math.sqrt(2))
