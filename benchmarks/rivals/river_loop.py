"""River: a scaled logistic regression that scores and learns row by row, on rows joined with two dicts."""

from __future__ import annotations

from joined import Joined, options
from river import linear_model, optim, preprocessing


def main() -> None:
    """Scores each row, and then learns it."""
    joined = Joined(options(__doc__))
    model = preprocessing.StandardScaler() | linear_model.LogisticRegression(optimizer=optim.Adam())
    for features, label in joined:
        model.predict_proba_one(features)
        model.learn_one(features, label)
    joined.report()


if __name__ == "__main__":
    main()
