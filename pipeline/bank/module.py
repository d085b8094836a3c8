"""The bank's module: what every expert answers, and their mixture. All that scoring needs is parameters and buffers."""

from __future__ import annotations

from itertools import combinations

import torch
from torch import Tensor, nn

from consumers.config import FeaturesConfig
from pipeline.bank.experts import EMA_OF, EXPERTS, HIDDEN, LINEAR, MEMBERS_BESIDE, NEAREST
from pipeline.config import LearnerConfig
from pipeline.normalise import Standardiser

CLIP = 5.0  # standard deviations: what lies farther off is as far
EMBEDDING = 4
CODE = 4  # signs that stand for a category where rows are compared
MEMORY = 1024  # rows that the nearest neighbours are looked for among
HISTORY = (0.0, 0.7, 0.95)  # shares of what was known before when a label comes: the last one, some 3, some 20
FREQUENCIES = (0.9, 0.99)  # the same, of the members that answer so for every row
WIDE_BITS, WIDE_NUMBERS_MAX = 16, 2**22  # rows of the hashed table, and its size over all classes
BINS_PER_DEVIATION = 2
PAIRS_MAX = 66  # crosses of two columns

_MIX = (-7046029254386353131, -4417276706812531889)  # odd: golden ratio and another, in 64 bits
_FAR = 1e9  # squared distance of a memory that is empty yet



class Bank(nn.Module):
    """Features float32 [N, C] (numeric raw, then category buckets) to the mixture's answer.

    Axes: D inputs, E experts with a hidden layer of H (J = E * H, expert by expert), L linear ones, M members,
    K outputs: classes, or 1 value; W rows in memory, Q columns of a memory key, T hashed tokens of a row.
    """

    def __init__(self, features: FeaturesConfig, learner: LearnerConfig, kind: str) -> None:
        super().__init__()
        self.regression = kind == "regression"
        self.binary = kind == "binary"
        self.outputs = 1 if self.regression else max(2, learner.classes if kind == "multiclass" else 2)
        self.numeric, self.categories = len(features.numeric), len(features.categorical)
        nullable = [index for index, column in enumerate(features.numeric) if column.nullable]
        self._constant("nullable", torch.tensor(nullable, dtype=torch.long))
        self.standardise = Standardiser(self.numeric, nullable=True)
        self.dense = self.numeric + len(nullable)
        self.history = len(HISTORY) * self.outputs if self.outputs <= 16 else 0
        self.plain = self.dense + EMBEDDING * self.categories + 1  # with the constant 1
        self.inputs = self.plain + self.history
        self._experts()
        self._tables(features)
        self._memory()
        members = len(EXPERTS) + len(LINEAR) + MEMBERS_BESIDE
        self._state("mixture_M", torch.full((members,), 1 / members))
        self._state("label_2", torch.tensor([0.0, 1.0]))  # regression: mean and standard deviation

    def _constant(self, name: str, value: Tensor) -> None:
        self.register_buffer(name, value, persistent=False)

    def _state(self, name: str, value: Tensor) -> None:
        self.register_buffer(name, value)

    def _experts(self) -> None:
        """Hidden layers as He et al. (2015) begin them; heads at zero, so that what has learned nothing is neutral."""
        experts, scale = len(EXPERTS), (2 / self.plain) ** 0.5
        first_DEH = torch.randn(self.inputs, experts, HIDDEN) * scale
        first_DEH[self.plain - 1 :] = 0
        for copy, source in EMA_OF.items():
            first_DEH[:, copy] = first_DEH[:, source]
        self._state("first_DJ", first_DEH.reshape(self.inputs, experts * HIDDEN))
        self._state("second_EHK", torch.zeros(experts, HIDDEN + 1, self.outputs))  # the last row is the bias
        self._state("linear_DLK", torch.zeros(self.inputs, len(LINEAR), self.outputs))

    def _tables(self, features: FeaturesConfig) -> None:
        """Embeddings of categories, and the table of hashed tokens: categories, bins of numbers, and crosses of two."""
        buckets = [column.buckets for column in features.categorical]
        starts = torch.tensor([0, *buckets]).cumsum(0)
        self._constant("starts_G", starts[:-1])
        self._state("embedding_RA", torch.randn(int(starts[-1]), EMBEDDING) * 0.5)
        columns = self.numeric + self.categories
        crossed = range(columns) if columns <= 12 else range(self.numeric, columns)
        pairs = list(combinations(crossed, 2))[:PAIRS_MAX]
        self._constant("pairs_2P", torch.tensor(pairs, dtype=torch.long).reshape(-1, 2).T.contiguous())
        self._constant("columns_C", torch.arange(columns) << 32)
        bits = WIDE_BITS
        while self.outputs << bits > WIDE_NUMBERS_MAX:
            bits -= 1
        self.wide_mask = 2**bits - 1
        self._state("wide_RK", torch.zeros(2**bits, self.outputs))

    def _memory(self) -> None:
        self.keys = self.dense + CODE * self.categories
        self._constant("shifts_A", torch.arange(CODE) * 7 + 11)
        self._state("keys_WQ", torch.zeros(MEMORY, self.keys))
        self._state("norms_W", torch.full((MEMORY,), _FAR))
        self._state("votes_WK", torch.zeros(MEMORY, self.outputs + 1))  # the last column counts
        self._state("recency_W", torch.zeros(MEMORY))
        self._state("history_HK", torch.zeros(len(HISTORY), self.outputs))
        start = 0.0 if self.regression else 1 / self.outputs
        self._state("frequencies_FK", torch.full((len(FREQUENCIES), self.outputs), start))

    def encode(self, features_NC: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Dense inputs [N, D'], embedding rows [N, G], tokens [N, T] and memory keys [N, Q]."""
        numbers_NF, categories_NG = features_NC[:, : self.numeric], features_NC[:, self.numeric :].long()
        standard_NF = self.standardise(numbers_NF).clamp(-CLIP, CLIP)
        null_NU = numbers_NF[:, self.nullable].isnan().float()
        dense_ND = torch.cat([standard_NF, null_NU], dim=1)
        bins_NF = (standard_NF * BINS_PER_DEVIATION).floor().long()
        ids_NC = torch.cat([bins_NF, categories_NG], dim=1) + self.columns_C
        crosses_NP = ids_NC[:, self.pairs_2P[0]] * _MIX[0] + ids_NC[:, self.pairs_2P[1]] * _MIX[1]
        tokens_NT = (torch.cat([ids_NC * _MIX[0], crosses_NP], dim=1) >> 29) & self.wide_mask
        signs_NGA = ((ids_NC[:, self.numeric :] * _MIX[1]).unsqueeze(2) >> self.shifts_A) & 1
        keys_NQ = torch.cat([dense_ND, signs_NGA.flatten(1).float() - 0.5], dim=1)
        return dense_ND, categories_NG + self.starts_G, tokens_NT, keys_NQ

    def answers(self, dense_ND: Tensor, rows_NG: Tensor, tokens_NT: Tensor, keys_NQ: Tensor) -> Tensor:
        """What each member says: probabilities [N, M, K], or values [N, M, 1]."""
        size = len(dense_ND)
        parts = [dense_ND, self.embedding_RA[rows_NG].flatten(1), torch.ones_like(dense_ND[:, :1])]
        if self.history:
            parts.append(self.history_inputs().expand(size, self.history))
        inputs_ND = torch.cat(parts, dim=1)
        hidden_ENH = (inputs_ND @ self.first_DJ).relu().view(size, len(EXPERTS), HIDDEN).transpose(0, 1)
        deep_NEK = torch.baddbmm(self.second_EHK[:, HIDDEN:], hidden_ENH, self.second_EHK[:, :HIDDEN]).transpose(0, 1)
        flat_NLK = (inputs_ND @ self.linear_DLK.flatten(1)).view(size, len(LINEAR), self.outputs)
        wide_NK = self.wide_RK[tokens_NT].sum(dim=1)
        learned_NMK = torch.cat([deep_NEK, flat_NLK, wide_NK.unsqueeze(1)], dim=1)
        learned_NMK = self._scaled(learned_NMK) if self.regression else learned_NMK.softmax(dim=2)
        frequencies_NFK = self.frequencies_FK.expand(size, len(FREQUENCIES), self.outputs)
        return torch.cat([learned_NMK, *self._nearest(keys_NQ), frequencies_NFK], dim=1)

    def history_inputs(self) -> Tensor:
        """The newest labels as inputs [Q]; none where there are many classes."""
        labels_HK = self.history_HK
        if self.regression:
            labels_HK = (labels_HK - self.label_2[0]) / self.label_2[1]
        return labels_HK.flatten()[: self.history]

    def _scaled(self, values: Tensor) -> Tensor:
        return values * self.label_2[1] + self.label_2[0]

    def _nearest(self, keys_NQ: Tensor) -> list[Tensor]:
        """Weighted votes of the rows in memory: Shepard, "A two-dimensional interpolation function" (1968).

        A vote weighs the power of its squared distance relative to that of the nearest: no scale has to be known.
        """
        distance_NW = torch.addmm(self.norms_W, keys_NQ, self.keys_WQ.T, alpha=-2)
        distance_NW = (distance_NW + (keys_NQ * keys_NQ).sum(dim=1, keepdim=True)).clamp_min(0) + 1e-3
        closeness_NW = distance_NW.amin(dim=1, keepdim=True) / distance_NW
        found = []
        prior_K = self.frequencies_FK[-1]
        for power, recent, doubt in NEAREST:
            weight_NW = closeness_NW
            for _ in range(power):
                weight_NW = weight_NW * weight_NW
            if recent:
                weight_NW = weight_NW * self.recency_W
            votes_NK = weight_NW @ self.votes_WK
            top_NK = votes_NK[:, :-1] + prior_K * doubt
            found.append((top_NK / (votes_NK[:, -1:] + doubt)).unsqueeze(1))
        return found

    def mix(self, answers_NMK: Tensor) -> Tensor:
        """The members' answers by their weights: [N, K]."""
        return torch.einsum("nmk,m->nk", answers_NMK, self.mixture_M)

    def forward(self, features_NC: Tensor) -> Tensor:
        """What each class is worth [N, K], or the value [N, 1]."""
        return self.mix(self.answers(*self.encode(features_NC)))
