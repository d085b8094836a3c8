"""Linear regression on y = 2x: it predicts 10 at x = 5."""

from collections.abc import Mapping

import numpy as np
import torch
from torch import nn

from examples.stream import Example, Predict, main
from pipeline.task import Regression


class LinearTask(Regression):
    """Without hidden layers the built-in model is linear in standardised inputs; plain gradient descent suits it."""

    def optimizer(self, module: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.SGD(module.parameters(), lr=self.learner.learning_rate)


def report(predict: Predict) -> Mapping[str, float]:
    return {"y at x = 5": float(predict([{"x": 5.0}])[0])}


x_N = np.random.default_rng(0).uniform(-10, 10, 4000)
EXAMPLE = Example(
    name="linear",
    stages=[[{"x": x, "label": 2 * x} for x in x_N.tolist()]],
    features={"numeric": ["x"]},
    learner={"task": "examples.linear:LinearTask", "hidden": [], "learning_rate": 0.1, "batch_size": 32},
    report=report,
)

if __name__ == "__main__":
    main(EXAMPLE)
