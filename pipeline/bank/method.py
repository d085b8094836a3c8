"""How the bank learns: a `Method`. What each member says of a batch is judged before any of them learns it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from consumers.batch import Batch
from consumers.record import Float32s, Int64s
from pipeline.bank import memory, mixture, tails
from pipeline.bank.arrays import ROWS, SUB_BATCHES, Rows, Scratch, Slots, Weights
from pipeline.bank.deep import LANES
from pipeline.bank.experts import EXPERTS, HIDDEN, L2_EXPERT, LINEAR, PLAIN_STEPS, TRAINED
from pipeline.bank.kernels import REPLAYED, SUB_BATCH, learn
from pipeline.bank.module import EMBEDDING, Bank, Encoded
from pipeline.config import JobConfig
from pipeline.device import flushed_denormals
from pipeline.executor import Done, Outcome, fill_block
from pipeline.task import Scorer

_GOLDEN = np.uint32(0x9E3779B9)  # of 2**32
LABEL_MAX = 1e18  # its square is still a float32


class Said(NamedTuple):
    """What the members say of rows."""

    encoded: Encoded
    answers_NKM: Tensor
    told_NKM: Tensor  # the answers as they are mixed: see `Bank.tell`


class BankMethod:
    """Learns by sub-batches of `SUB_BATCH` rows, in the memory of the module's own tensors.

    Inputs and slopes are clipped, so no weight can leave the finite numbers: a step is refused for its labels and
    weights alone, before anything has changed.
    """

    def __init__(self, module: Bank, job: JobConfig) -> None:
        self._module = module.eval()
        self._block_BC = torch.zeros(job.learner.batch_size, job.features.columns)
        self._said: Said | None = None  # of the rows in the block, unless something was learned since
        self._other_BC = torch.zeros_like(self._block_BC)  # for the frozen copy
        self._weights = Weights(*(_view(getattr(module, name)) for name in Weights._fields))
        self._memory = memory.Memory(*(_view(getattr(module, name)) for name in memory.Memory._fields))
        self._moments = memory.Moments(*(_view(getattr(module.standardise, n)) for n in memory.Moments._fields))
        self._newest, self._heavy_F = tails.Newest.of(module.numeric), _view(module.heavy_F)
        self._mixtures = _mixtures(module)
        self._values = memory.Values(np.zeros(4), _view(module.label_2))
        self._slots = _slots(self._weights)
        self._past = _past(module)
        self._scratch = _scratch(module, self._weights)

    @torch.no_grad()
    def score(self, scorer: Scorer, features_NC: Float32s, width: int) -> Float32s:
        rows, size = len(features_NC), len(self._block_BC)
        scores_NS = np.empty((rows, width), np.float32)
        for start in range(0, rows, size):
            stop = min(start + size, rows)
            if scorer.module is self._module:  # operation by operation what the scorer does, and remembered
                said = self._ask(features_NC[start:stop])
                scores_B = self._module.mix(said.answers_NKM, said.told_NKM)[:, -width:]
            else:
                fill_block(self._other_BC, features_NC[start:stop])
                scores_B = scorer(self._other_BC)
            scores_NS[start:stop] = scores_B.reshape(size, -1)[: stop - start].numpy()
        return scores_NS

    def step(self, batch: Batch) -> Outcome:
        labels_N, weights_N = batch.labels_B[: batch.rows], batch.weights_B[: batch.rows]
        known = bool((np.abs(labels_N) <= LABEL_MAX).all()) and bool((weights_N >= 0).all())
        if not known or not np.isfinite(weights_N.sum()):
            return Done(float("nan"), True)
        begins = self._slots.step_3[SUB_BATCHES] == 0
        if begins:
            self._standardise(batch.features_BC, weights_N)
        with torch.no_grad():
            said = self._ask(batch.features_BC)  # with denormals, as rows are scored: what is known has the same bits
            with flushed_denormals():
                loss = self._learn(said, labels_N, weights_N)
        if not begins:  # last, so that all above saw rows as they were scored
            self._standardise(batch.features_BC, weights_N)
        self._said = None
        return Done(loss, False)

    def _standardise(self, features_BC: Float32s, weights_N: Float32s) -> None:
        with flushed_denormals():
            memory.standardise(features_BC, weights_N, self._moments)
            numbers_NF = features_BC[: len(weights_N), : self._module.numeric][weights_N > 0]
            tails.rescale(numbers_NF, self._newest, self._moments, self._heavy_F)
        self._said = None

    def _learn(self, said: Said, labels_N: Float32s, weights_N: Float32s) -> float:
        """Rows are judged and learned in a mixed order, but remembered as they came: the newest label stays it."""
        regression, seen = self._module.regression, int(self._slots.step_3[ROWS])
        mixed_N = mixed_order(len(labels_N))
        answers_NKM, told_NKM = (_view(tensor)[mixed_N] for tensor in (said.answers_NKM, said.told_NKM))
        loss, targets_N = self._judge(answers_NKM, told_NKM, labels_N[mixed_N], weights_N[mixed_N])
        history_Q = _view(self._module.history_inputs()).copy()
        *encoded, keys_NQ = said.encoded
        dense_ND, rows_NG, tokens_NT = (_view(tensor)[mixed_N] for tensor in encoded)
        narrow_NT = np.ascontiguousarray(tokens_NT[:, self._module.begin_narrow :])
        new = Rows(dense_ND, rows_NG, tokens_NT, narrow_NT, targets_N, weights_N[mixed_N])
        learn(self._weights, self._slots, self._scratch, new, self._past, history_Q, regression)
        _keep_newest(self._past, new, mixed_N, int(self._slots.step_3[ROWS]))
        if self._module.recalls:
            memory.remember(self._memory, _view(keys_NQ), labels_N, weights_N, seen, regression)
        return loss

    def _judge(
        self, answers_NKM: Float32s, told_NKM: Float32s, labels_N: Float32s, weights_N: Float32s
    ) -> tuple[float, Float32s]:
        """Moves the mixtures. Returns the loss, and the labels as experts learn them."""
        if not self._module.regression:
            loss = mixture.judge_classes(answers_NKM, told_NKM, labels_N, weights_N, self._mixtures, self._module.floor)
            return float(loss), labels_N
        loss = mixture.judge_values(answers_NKM, told_NKM, labels_N, weights_N, self._mixtures, self._values)
        memory.measure(labels_N, weights_N, self._values)
        mean, deviation = self._values.unit_2
        return float(loss), (labels_N - mean) / deviation

    def _ask(self, features_NC: Float32s) -> Said:
        """What the members say of rows. If these were just scored, it is known: a label may come at once."""
        block_BC, rows = self._block_BC.numpy(), len(features_NC)
        bits_NC = features_NC.view(np.int32)
        known = np.array_equal(block_BC[:rows].view(np.int32), bits_NC) and not block_BC[rows:].any()
        if self._said is None or not known:
            fill_block(self._block_BC, features_NC)
            encoded = self._module.encode(self._block_BC)
            answers_NKM = self._module.answers(encoded)
            self._said = Said(encoded, answers_NKM, self._module.tell(answers_NKM))
        return self._said

    def _arrays(self) -> Iterator[tuple[str, np.ndarray]]:
        for prefix, group in (("slots", self._slots), ("past", self._past), ("newest", self._newest)):
            kept = {name: array for name, array in group._asdict().items() if array.size}
            yield from ((f"bank.{prefix}.{name}", array) for name, array in kept.items())
        if self._module.regression:
            yield "bank.labels", self._values.sums_4

    def rewarm(self) -> None:
        """Gives each member half of an even share, and large steps to those of Adam and Adagrad, without moments."""
        mixture_M = self._mixtures.mixture_M
        mixture_M[:] = (mixture_M + np.float32(1 / len(mixture_M))) / 2
        slots = self._slots
        for array in (slots.first_2DJ, slots.second_2EKH, slots.embedding_R, slots.wide_R, slots.narrow_R):
            array[:] = 0

    def state(self) -> dict[str, np.ndarray]:
        return dict(self._arrays())

    def document(self) -> dict[str, Any]:
        return {}

    def restore(self, arrays: Mapping[str, np.ndarray], document: Mapping[str, Any]) -> None:
        self._said = None
        for name, array in self._arrays():
            array[...] = arrays[name]


def mixed_order(rows: int) -> Int64s:
    """An order in which rows that came together are far apart: multiples of the golden ratio (Knuth, TAOCP 6.4).

    Labels may come sorted: positives when they are told, negatives when their window is over. A run of either would
    pull all that learns fast after it.
    """
    return np.argsort(np.arange(rows, dtype=np.uint32) * _GOLDEN)


def _keep_newest(past: Rows, new: Rows, mixed_N: Int64s, learned: int) -> None:
    """Of a batch larger than the ring, has the ring hold the newest rows; the oldest are those that go next.

    While a batch is learned the ring follows its mixed order, so the last of that would stay. `learned`: rows by now.
    """
    real = np.flatnonzero(new.weight_N > 0)
    if len(real) <= REPLAYED:
        return
    newest = real[np.argsort(mixed_N[real])[-REPLAYED:]]
    places = np.arange(learned - REPLAYED, learned) % REPLAYED
    past.dense_ND[places], past.rows_NG[places] = new.dense_ND[newest], new.rows_NG[newest]
    past.target_N[places] = new.target_N[newest]


def _view(tensor: Tensor) -> np.ndarray:
    return tensor.detach().numpy()


def _slots(weights: Weights) -> Slots:
    inputs, outputs = len(weights.first_DJ), weights.second_EKH.shape[1]
    adam = TRAINED - PLAIN_STEPS
    return Slots(
        first_2DJ=np.zeros((2, inputs, adam * HIDDEN), np.float32),
        second_2EKH=np.zeros((2, adam, outputs, HIDDEN), np.float32),
        embedding_R=np.zeros(len(weights.embedding_RA), np.float32),
        wide_R=np.zeros(len(weights.wide_RK), np.float32),
        narrow_R=np.zeros(len(weights.narrow_RK), np.float32),
        step_3=np.array([0, 0, 1]),
    )


def _mixtures(module: Bank) -> mixture.Mixtures:
    mixers, members = module.mixers_SM.shape
    return mixture.Mixtures(
        mixture_M=_view(module.mixture_M),
        mixers_SM=_view(module.mixers_SM),
        top_Z=_view(module.top_Z),
        right_M=np.zeros(members, np.float32),
        right_Z=np.zeros(mixers + 1, np.float32),
        said_SK=np.zeros((mixers, module.outputs), np.float32),
    )


def _past(module: Bank) -> Rows:
    return Rows(
        dense_ND=np.zeros((REPLAYED, module.dense), np.float32),
        rows_NG=np.zeros((REPLAYED, module.categories), np.int64),
        tokens_NT=np.zeros((0, 0), np.int64),
        narrow_NT=np.zeros((0, 0), np.int64),
        target_N=np.zeros(REPLAYED, np.float32),
        weight_N=np.zeros(0, np.float32),
    )


def _scratch(module: Bank, weights: Weights) -> Scratch:
    inputs, columns = weights.first_DJ.shape
    shapes = {
        "inputs_BD": (SUB_BATCH, inputs),
        "hidden_BJ": (SUB_BATCH, columns),
        "slope_BJ": (SUB_BATCH, columns),
        "output_BEK": (SUB_BATCH, len(EXPERTS), module.outputs),
        "wide_BK": (SUB_BATCH, module.outputs),
        "gradient_J": (columns,),
        "gradient_H": (HIDDEN,),
        "rate_H": (HIDDEN,),
        "share_B": (SUB_BATCH,),
        "target_B": (SUB_BATCH,),
        "rate_J": (columns,),
        "rate_E": (len(EXPERTS),),
        "lanes_U": (LANES,),
        "slope_A": (EMBEDDING,),
    }
    at = len(LINEAR) * module.outputs + L2_EXPERT * HIDDEN
    zeros = {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}
    return Scratch(**zeros, begun_DH=weights.first_DJ[:, at : at + HIDDEN].copy())
