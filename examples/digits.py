"""Handwritten digits: 200 images of 0 to 7, then 20 images of 8 and 9, and the first eight are not forgotten.

`replay` keeps 200 images of the stream and mixes them into each step; set it to None to see what is lost without it.
"""

from collections.abc import Mapping

from sklearn.datasets import load_digits

from examples.stream import Example, Predict, accuracy, main

COLUMNS = [f"pixel_{number}" for number in range(64)]

values_NC, labels_N = load_digits(return_X_y=True)
ROWS = [
    {**dict(zip(COLUMNS, pixels, strict=True)), "label": label}
    for pixels, label in zip(values_NC.tolist(), labels_N.tolist(), strict=True)
]
BASE = [row for row in ROWS if row["label"] < 8][:200]
NEW = [row for row in ROWS if row["label"] >= 8][:20]
UNSEEN = ROWS[-500:]


def report(predict: Predict) -> Mapping[str, float]:
    return {
        "accuracy on the 200 base images": accuracy(predict(BASE), BASE),
        "accuracy on the 20 new images": accuracy(predict(NEW), NEW),
        "accuracy on 500 images that never came": accuracy(predict(UNSEEN), UNSEEN),
    }


EXAMPLE = Example(
    name="digits",
    stages=[BASE, NEW],
    features={"numeric": COLUMNS},
    learner={
        "kind": "mlp",
        "task": "multiclass",
        "classes": 10,
        "hidden": [64],
        "learning_rate": 0.003,
        "batch_size": 20,
        "epochs": 60,
        "replay": 200,
    },
    report=report,
)

if __name__ == "__main__":
    main(EXAMPLE)
