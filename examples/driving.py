"""Driving: from a car's sensors to how hard it accelerates or brakes; the radar now and then sees nothing.

The driver is the Intelligent Driver Model: Treiber, Hennecke & Helbing, "Congested traffic states in empirical
observations and microscopic simulations" (2000). Units: m, s.
"""

from collections.abc import Mapping

import numpy as np

from examples.stream import Example, Predict, main

WISHED_SPEED, HEADWAY, GAP_MIN, ACCELERATION, BRAKING = 33.0, 1.5, 2.0, 1.4, 2.0
BRAKING_MAX = -8.0


def driver(speed: float, gap: float, closing: float) -> float:
    """Acceleration in m/s² behind a car that is `gap` ahead and comes nearer at `closing`."""
    wished_gap = GAP_MIN + speed * HEADWAY + speed * closing / (2 * (ACCELERATION * BRAKING) ** 0.5)
    return max(ACCELERATION * (1 - (speed / WISHED_SPEED) ** 4 - (max(wished_gap, 0) / gap) ** 2), BRAKING_MAX)


def drive(rows: int, seed: int) -> list[dict[str, float | str | None]]:
    random, found = np.random.default_rng(seed), []
    for _ in range(rows):
        speed, gap, closing = random.uniform(5, 35), random.uniform(10, 120), random.normal(0, 3)
        blind, weather = random.random() < 0.05, str(random.choice(["dry", "wet"]))
        found.append(
            {
                "speed": speed + random.normal(0, 0.2),
                "gap": None if blind else gap + random.normal(0, 0.5),
                "closing": None if blind else closing + random.normal(0, 0.2),
                "weather": weather,
                "label": driver(speed, gap * (0.8 if weather == "wet" else 1), closing),  # more room on a wet road
            }
        )
    return found


LEARNED, NEW = drive(12_000, seed=0), drive(1000, seed=1)


def report(predict: Predict) -> Mapping[str, float]:
    labels_N = np.array([row["label"] for row in NEW])
    errors_N = predict(NEW) - labels_N
    return {"R² on new drives": float(1 - np.square(errors_N).mean() / labels_N.var())}


EXAMPLE = Example(
    name="driving",
    stages=[LEARNED],
    features={
        "numeric": ["speed", {"name": "gap", "nullable": True}, {"name": "closing", "nullable": True}],
        "categorical": [{"name": "weather", "buckets": 8}],
    },
    learner={
        "kind": "mlp",
        "task": "regression",
        "hidden": [64, 64],
        "learning_rate": 0.003,
        "batch_size": 64,
        "average": 0.99,
        "gradient_norm_max": 10.0,
    },
    report=report,
)

if __name__ == "__main__":
    main(EXAMPLE)
