"""How the bank learns: a `Method`. What each member says of a batch is judged before any of them learns it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from consumers.batch import Batch
from consumers.record import Float32s
from pipeline.bank import mixture
from pipeline.bank.experts import EXPERTS, HIDDEN, L2_EXPERT, LINEAR
from pipeline.bank.kernels import REPLAYED, SUB_BATCH, Rows, Scratch, Slots, Weights, learn
from pipeline.bank.module import EMBEDDING, Bank
from pipeline.config import JobConfig
from pipeline.device import flushed_denormals
from pipeline.executor import Done, Outcome
from pipeline.task import Scorer

LABEL_MAX = 1e18  # its square is still a float32


class BankMethod:
    """Learns by sub-batches of `SUB_BATCH` rows, in the memory of the module's own tensors.

    Inputs and slopes are clipped, so no weight can leave the finite numbers: a step is refused for its labels and
    weights alone, before anything has changed.
    """

    def __init__(self, module: Bank, job: JobConfig) -> None:
        self._module = module.eval()
        self._block_BC = torch.zeros(job.learner.batch_size, job.features.columns)
        self._weights = Weights(*(_view(getattr(module, name)) for name in Weights._fields))
        self._memory = mixture.Memory(*(_view(getattr(module, name)) for name in mixture.Memory._fields))
        self._slots = _slots(self._weights)
        self._past = _past(module)
        self._scratch = _scratch(module)
        self._moments_4 = np.zeros(4)  # of labels: weight, mean, squares around it; and the mixture's squared error

    @torch.no_grad()
    def score(self, scorer: Scorer, features_NC: Float32s, width: int) -> Float32s:
        rows, size = len(features_NC), len(self._block_BC)
        scores_NS = np.empty((rows, width), np.float32)
        for start in range(0, rows, size):
            stop = min(start + size, rows)
            scores_B = scorer(self._block(features_NC[start:stop]))
            scores_NS[start:stop] = scores_B.reshape(size, -1)[: stop - start].numpy()
        return scores_NS

    def step(self, batch: Batch) -> Outcome:
        labels_N, weights_N = batch.labels_B[: batch.rows], batch.weights_B[: batch.rows]
        known = bool((np.abs(labels_N) <= LABEL_MAX).all()) and bool((weights_N >= 0).all())
        if not known or not np.isfinite(weights_N.sum()):
            return Done(float("nan"), True)
        with flushed_denormals(), torch.no_grad():
            return Done(self._learn(batch.features_BC, labels_N, weights_N), False)

    def _learn(self, features_BC: Float32s, labels_N: Float32s, weights_N: Float32s) -> float:
        module, slots, rows = self._module, self._slots, len(labels_N)
        begins = slots.step_3[0] == 0
        if begins:
            self._standardise(features_BC, weights_N)
        encoded = module.encode(self._block(features_BC))
        dense_ND, rows_NG, tokens_NT, keys_NQ = (_view(tensor)[:rows] for tensor in encoded)
        answers_NMK = _view(module.answers(*encoded))[:rows]
        history_Q = _view(module.history_inputs()).copy()
        mixture_M = _view(module.mixture_M)
        if module.regression:
            loss = mixture.judge_values(answers_NMK, labels_N, weights_N, mixture_M, self._moments_4)
            mixture.measure(labels_N, weights_N, self._moments_4, _view(module.label_2))
            mean, deviation = _view(module.label_2)
            targets_N = (labels_N - mean) / deviation
        else:
            loss = mixture.judge_classes(answers_NMK, labels_N, weights_N, mixture_M)
            targets_N = labels_N
        seen, new = int(slots.step_3[1]), Rows(dense_ND, rows_NG, tokens_NT, targets_N, weights_N)
        learn(self._weights, slots, self._scratch, new, self._past, history_Q, module.regression)
        mixture.remember(self._memory, keys_NQ, labels_N, weights_N, seen, module.regression)
        if not begins:  # last, so that all above saw rows as they were scored
            self._standardise(features_BC, weights_N)
        return float(loss)

    def _standardise(self, features_BC: Float32s, weights_N: Float32s) -> None:
        numbers_NF = torch.from_numpy(features_BC[: len(weights_N), : self._module.numeric])
        known_NF = torch.where(numbers_NF.isinf(), torch.nan, numbers_NF)
        self._module.standardise.update(known_NF, torch.from_numpy(weights_N))

    def _block(self, features_NC: Float32s) -> Tensor:
        """Rows as the block that every forward uses, so that memory alignment cannot change a bit."""
        rows, block_BC = len(features_NC), self._block_BC.numpy()
        block_BC[:rows] = features_NC
        block_BC[rows:] = 0
        return self._block_BC

    def _arrays(self) -> Iterator[tuple[str, np.ndarray]]:
        for prefix, group in (("slots", self._slots), ("past", self._past)):
            yield from ((f"bank.{prefix}.{name}", array) for name, array in group._asdict().items())
        yield "bank.moments", self._moments_4

    def state(self) -> dict[str, np.ndarray]:
        return dict(self._arrays())

    def document(self) -> dict[str, Any]:
        return {}

    def restore(self, arrays: Mapping[str, np.ndarray], document: Mapping[str, Any]) -> None:
        for name, array in self._arrays():
            array[...] = arrays[name]


def _view(tensor: Tensor) -> np.ndarray:
    return tensor.detach().numpy()


def _slots(weights: Weights) -> Slots:
    begun_DH = weights.first_DJ[:, L2_EXPERT * HIDDEN : (L2_EXPERT + 1) * HIDDEN].copy()
    moments = (np.zeros((2, *array.shape), np.float32) for array in weights[:3])
    sums = (np.zeros(len(array), np.float32) for array in weights[3:])
    return Slots(*moments, *sums, begun_DH, np.array([0, 0, 1]))


def _past(module: Bank) -> Rows:
    return Rows(
        np.zeros((REPLAYED, module.dense), np.float32),
        np.zeros((REPLAYED, module.categories), np.int64),
        np.zeros((0, 0), np.int64),
        np.zeros(REPLAYED, np.float32),
        np.zeros(0, np.float32),
    )


def _scratch(module: Bank) -> Scratch:
    experts, linear, outputs, units = len(EXPERTS), len(LINEAR), module.outputs, len(EXPERTS) * HIDDEN
    shapes = {
        "inputs_BD": (SUB_BATCH, module.inputs),
        "hidden_BJ": (SUB_BATCH, units),
        "slope_BJ": (SUB_BATCH, units),
        "output_BEK": (SUB_BATCH, experts, outputs),
        "linear_BLK": (SUB_BATCH, linear, outputs),
        "wide_BK": (SUB_BATCH, outputs),
        "gradient_J": (units,),
        "gradient_HK": (HIDDEN + 1, outputs),
        "gradient_LK": (linear, outputs),
        "share_B": (SUB_BATCH,),
        "target_B": (SUB_BATCH,),
        "rate_E": (experts,),
        "rate_L": (linear,),
        "embedding_A": (EMBEDDING,),
    }
    return Scratch(**{name: np.zeros(shape, np.float32) for name, shape in shapes.items()})
