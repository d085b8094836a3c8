"""Iris: 120 flowers pass once, each batch in several passes with replay; 30 flowers that never came are told apart."""

from collections.abc import Mapping

import numpy as np
from sklearn.datasets import load_iris

from examples.stream import Example, Predict, accuracy, main

COLUMNS = ["sepal_length", "sepal_width", "petal_length", "petal_width"]

values_NC, labels_N = load_iris(return_X_y=True)
order_N = np.random.default_rng(0).permutation(len(labels_N))
ROWS = [{**dict(zip(COLUMNS, values_NC[n].tolist(), strict=True)), "label": int(labels_N[n])} for n in order_N]
LEARNED, NEW = ROWS[:120], ROWS[120:]


def report(predict: Predict) -> Mapping[str, float]:
    return {"accuracy on new flowers": accuracy(predict(NEW), NEW)}


EXAMPLE = Example(
    name="iris",
    stages=[LEARNED],
    features={"numeric": COLUMNS},
    learner={
        "kind": "mlp",
        "task": "multiclass",
        "classes": 3,
        "hidden": [16],
        "learning_rate": 0.01,
        "batch_size": 8,
        "epochs": 20,
        "replay": 120,
    },
    report=report,
)

if __name__ == "__main__":
    main(EXAMPLE)
