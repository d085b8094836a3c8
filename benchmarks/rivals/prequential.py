"""What one would take instead, on a file: N rows are scored, then learned, row by row or as a batch.

Takes one JSON argument (`model`, `file`, `label`, `task`, `drop`, `categorical`, `latency`, `rows`) and prints
{"rows", "metrics", "rows_per_s"}. The models are as their makers ship them; only inputs are scaled and encoded.
"""

from __future__ import annotations

import json
import numbers
import sys
import time
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
from river import compose, forest, linear_model, multiclass, preprocessing, tree
from sklearn import metrics as reference

Row = dict[str, Any]
HASHED_CATEGORIES = 64  # columns of deep-river's input for all categories together


class RowByRow:
    """A model of river's."""

    def __init__(self, model: Any, classes: int) -> None:
        self._model = model
        self._classes = classes

    def score(self, rows: list[Row]) -> np.ndarray:
        scores_NK = np.full((len(rows), self._classes), 1e-9)
        for number, row in enumerate(rows):
            for label, probability in self._model.predict_proba_one(row).items():
                scores_NK[number, int(label)] = probability
        return scores_NK

    def learn(self, rows: list[Row], labels: list[int]) -> None:
        for row, label in zip(rows, labels, strict=True):
            self._model.learn_one(row, label)


class Network:
    """deep-river's classifier over an MLP, a block as a batch; numbers are scaled by river, categories hashed."""

    def __init__(self, columns: int, texts: int, classes: int) -> None:
        import torch
        from deep_river.classification import Classifier
        from torch import nn

        torch.set_num_threads(1)
        torch.manual_seed(0)
        self._hashed = dict.fromkeys((f"hash{place}" for place in range(HASHED_CATEGORIES if texts else 0)), 0.0)
        width = columns - texts + len(self._hashed)
        layers = nn.Linear(width, 256), nn.ReLU(), nn.Linear(256, 128), nn.ReLU(), nn.Linear(128, classes)
        self._model = Classifier(nn.Sequential(*layers), loss_fn="cross_entropy", optimizer_fn="adam", lr=1e-3)
        self._scaler = preprocessing.StandardScaler()
        self._classes = classes
        self._has_learned = False

    def score(self, rows: list[Row]) -> np.ndarray:
        scores_NK = np.full((len(rows), self._classes), 1 / self._classes)
        if self._has_learned:
            encoded = [self._encoded(row) for row in rows]
            if len(rows) == 1:
                found = self._model.predict_proba_one(encoded[0])
            else:
                found = self._model.predict_proba_many(pd.DataFrame(encoded))
            for label, probability in found.items():
                if not isinstance(label, str) and int(label) < self._classes:  # text: a class not seen yet
                    scores_NK[:, int(label)] = probability
        return scores_NK

    def learn(self, rows: list[Row], labels: list[int]) -> None:
        for row in rows:
            self._scaler.learn_one(_numbers(row))
        encoded = [self._encoded(row) for row in rows]
        if len(rows) == 1:
            self._model.learn_one(encoded[0], labels[0])
        else:
            self._model.learn_many(pd.DataFrame(encoded), pd.Series(labels))
        self._has_learned = True

    def _encoded(self, row: Row) -> Row:
        hashed = dict(self._hashed)
        for name, value in row.items():
            if isinstance(value, str):
                hashed[f"hash{zlib.crc32(f'{name}={value}'.encode()) % HASHED_CATEGORIES}"] = 1.0
        return self._scaler.transform_one(_numbers(row)) | hashed


def _numbers(row: Row) -> Row:
    return {name: value for name, value in row.items() if not isinstance(value, str)}


def logistic(classes: int) -> Any:
    """Scaled numbers and one-hot categories."""
    encoded = compose.SelectType(numbers.Number) | preprocessing.StandardScaler()
    encoded += compose.SelectType(str) | preprocessing.OneHotEncoder()
    model = linear_model.LogisticRegression()
    return encoded | (model if classes == 2 else multiclass.OneVsRestClassifier(model))


MODELS: dict[str, Callable[[int, int, int], Any]] = {  # of columns, of which texts, and classes
    "river_forest": lambda _columns, _texts, classes: RowByRow(forest.ARFClassifier(seed=0), classes),
    "river_tree": lambda _columns, _texts, classes: RowByRow(tree.HoeffdingAdaptiveTreeClassifier(seed=0), classes),
    "river_logistic": lambda _columns, _texts, classes: RowByRow(logistic(classes), classes),
    "deep_river_mlp": Network,
}


def main() -> None:
    """Learns the file and prints the result."""
    given = json.loads(sys.argv[1])
    frame = pq.ParquetFile(given["file"]).iter_batches(given["rows"])
    frame = next(frame).to_pandas().drop(columns=given["drop"])
    labels = frame.pop(given["label"]).astype(int).tolist()
    texts = [name for name in frame if name in given["categorical"] or frame[name].dtype == object]
    frame[texts] = frame[texts].astype(str)
    rows, classes = frame.to_dict("records"), max(labels) + 1
    model = MODELS[given["model"]](len(frame.columns), len(texts), classes)
    scores, latency, began = [], given["latency"], time.perf_counter()
    for start in range(0, len(rows), latency):
        block = slice(start, start + latency)
        scores.append(model.score(rows[block]))
        model.learn(rows[block], labels[block])
    seconds = time.perf_counter() - began
    scores_NK = np.concatenate(scores)
    found = {"accuracy": float((scores_NK.argmax(axis=1) == labels).mean())}
    if classes == 2:
        found["auc"] = float(reference.roc_auc_score(labels, scores_NK[:, 1]))
    print(json.dumps({"rows": len(rows), "metrics": found, "rows_per_s": len(rows) / seconds}))


if __name__ == "__main__":
    main()
