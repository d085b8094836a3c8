"""The bank's module: what every member answers, and their mixture. All that scoring needs is parameters and buffers."""

from __future__ import annotations

from itertools import combinations
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from consumers.config import FeaturesConfig
from pipeline.bank.experts import EXPERTS, HIDDEN, LINEAR, MIXERS, RECALLING
from pipeline.config import JobConfig
from pipeline.normalise import Standardiser

CLIP = 5.0  # standard deviations: what lies farther off is as far
EMBEDDING = 4
CODE = 4  # signs that stand for a category where rows are compared
MEMORY = 1024  # rows that neighbours are looked for among
HISTORY = (0.0, 0.7, 0.95)  # what is kept of what was known when a label comes: the last one, some 3, some 20
FREQUENCIES = (0.9, 0.99)  # the same, for the members that answer so whatever the row
HISTORY_OUTPUTS_MAX = 16  # with more classes the newest labels are no inputs
WIDE_BITS, WIDE_NUMBERS_MAX = 16, 2**22  # rows of the hashed table, and its size over all classes
BINS_PER_DEVIATION = 2
FLOOR = 0.01  # no probability counts as less, where members are mixed
CROSSED_COLUMNS_MAX, CROSSES_MAX = 12, 66  # of more columns only categories are crossed

_DOUBT = 0.3  # votes of the class frequencies, beside those of the neighbours, of which the nearest has one
_NEAR, _FAR = 1e-3, 1e9  # squared distances: below which rows are the same, and of a place that is empty yet
_MIX = (-7046029254386353131, -4417276706812531889)  # odd: the golden ratio and another, in 64 bits


class Encoded(NamedTuple):
    """Rows as the members take them: dense inputs [N, D'], embedding rows [N, G], tokens [N, T], memory keys [N, Q]."""

    dense_ND: Tensor
    rows_NG: Tensor
    tokens_NT: Tensor
    keys_NQ: Tensor


class Bank(nn.Module):
    """Features float32 [N, C] (numeric raw, then category buckets) to the mixture's answer.

    With `join.negative_after` rows are learned in an order of their own, early negatives in one burst and corrections
    in another: labels told last foretell the next ones there, but not those of rows that come. So there are then no
    members and no inputs that say what they were. With `join.keep_negatives` it learns the rows that are kept as they
    are, and what it says is put right.

    Axes: D inputs; E experts with a hidden layer of H units; J columns of the first layer: the outputs of L linear
    experts, then E * H; M members; S logistic mixtures, Z = S + 1; K outputs: classes, or 1 value; W rows in memory,
    Q columns of their keys; G categories with embeddings of A numbers; T hashed tokens of a row; R rows of a table.
    """

    def __init__(self, job: JobConfig) -> None:
        super().__init__()
        features, kind = job.features, job.learner.task
        self.regression = kind == "regression"
        self.outputs = {"regression": 1, "binary": 2}.get(kind, job.learner.classes)
        self.recalls = job.join.negative_after is None
        self.kept = job.join.keep_negatives
        self.numeric, self.categories = len(features.numeric), len(features.categorical)
        nullable = [index for index, column in enumerate(features.numeric) if column.nullable]
        self.nullable_U = self._constant("nullable_U", torch.tensor(nullable, dtype=torch.long))
        self.standardise = Standardiser(self.numeric, nullable=True)  # what is not finite counts as null, too
        self.heavy_F = self._state("heavy_F", torch.zeros(self.numeric, dtype=torch.bool))  # see `pipeline.bank.tails`
        self.dense = self.numeric + len(nullable)
        self.plain = self.dense + EMBEDDING * self.categories + 1  # with the constant 1
        has_history = self.recalls and self.outputs <= HISTORY_OUTPUTS_MAX
        self.history = len(HISTORY) * self.outputs if has_history else 0
        self._add_experts()
        self._add_tables(features)
        self._add_memory()
        tables = 1 + self.has_narrow
        members = len(LINEAR) + len(EXPERTS) + tables + RECALLING * self.recalls
        self.floor = min(FLOOR, 0.1 / self.outputs)
        self.mixture_M = self._state("mixture_M", torch.full((members,), 1 / members))
        self.mixers_SM = self._state("mixers_SM", torch.full((len(MIXERS), members), 1 / members))
        self.top_Z = self._state("top_Z", torch.full((1 + len(MIXERS),), 1 / (1 + len(MIXERS))))
        self.label_2 = self._state("label_2", torch.tensor([0.0, 1.0]))  # of values: mean and standard deviation

    def _constant(self, name: str, value: Tensor) -> Tensor:
        self.register_buffer(name, value, persistent=False)
        return value

    def _state(self, name: str, value: Tensor) -> Tensor:
        self.register_buffer(name, value)
        return value

    def _add_experts(self) -> None:
        """Hidden layers begin as He et al. (2015) have it, heads at zero: what has learned nothing is neutral.

        The first unit of each begins as the constant 1, so that its head has a bias.
        """
        experts, inputs, heads = len(EXPERTS), self.plain + self.history, len(LINEAR) * self.outputs
        first_DEH = torch.randn(inputs, experts, HIDDEN) * (2 / self.plain) ** 0.5
        first_DEH[self.plain - 1 :] = 0
        first_DEH[:, :, 0] = 0
        first_DEH[self.plain - 1, :, 0] = 1
        for index, expert in enumerate(EXPERTS):
            if expert.rule == "ema":
                first_DEH[:, index] = first_DEH[:, expert.source]
        first_DJ = torch.cat([torch.zeros(inputs, heads), first_DEH.flatten(1)], dim=1)
        self.first_DJ = self._state("first_DJ", first_DJ)
        self.second_EKH = self._state("second_EKH", torch.zeros(experts, self.outputs, HIDDEN))

    def _add_tables(self, features: FeaturesConfig) -> None:
        """Embeddings of categories, and tables of tokens: categories, bins of numbers, and crosses of two.

        The wide table has all of them. Among many bins what two categories say together is drowned, so a narrow one has
        categories and their crosses alone, where there are two: their tokens come last.
        """
        starts = torch.tensor([0, *(column.buckets for column in features.categorical)]).cumsum(0)
        self.starts_G = self._constant("starts_G", starts[:-1].clone())
        self.embedding_RA = self._state("embedding_RA", torch.randn(int(starts[-1]), EMBEDDING) * 0.5)
        columns = self.numeric + self.categories
        crossed = range(0 if columns <= CROSSED_COLUMNS_MAX else self.numeric, columns)
        pairs = sorted(list(combinations(crossed, 2))[:CROSSES_MAX], key=lambda pair: pair[0] >= self.numeric)
        crosses = torch.tensor(pairs, dtype=torch.long).reshape(-1, 2)
        self.left_P = self._constant("left_P", crosses[:, 0].contiguous())
        self.right_P = self._constant("right_P", crosses[:, 1].contiguous())
        self.mixed = sum(left < self.numeric for left, _ in pairs)  # crosses with a number
        self.begin_narrow = self.numeric + self.mixed  # of the tokens
        self.has_narrow = self.categories > 1 and self.numeric > 0
        self.columns_C = self._constant("columns_C", torch.arange(columns) << 32)
        bits = WIDE_BITS
        while self.outputs << bits > WIDE_NUMBERS_MAX:
            bits -= 1
        self.wide_RK = self._state("wide_RK", torch.zeros(2**bits, self.outputs))
        self.narrow_RK = self._state("narrow_RK", torch.zeros(2**bits * self.has_narrow, self.outputs))

    def _add_memory(self) -> None:
        """Keys end with two columns more: the square of a key, and 1, so that one product gives all distances."""
        start = 0.0 if self.regression else 1 / self.outputs
        self.keys = self.dense + CODE * self.categories
        self.shifts_A = self._constant("shifts_A", torch.arange(CODE) * 7 + 11)
        keys_WQ = torch.zeros(MEMORY, self.keys + 2)
        keys_WQ[:, -1] = _FAR
        self.keys_WQ = self._state("keys_WQ", keys_WQ)
        self.votes_KW = self._state("votes_KW", torch.zeros(self.outputs + 1, MEMORY))  # the last row counts
        self.recency_W1 = self._state("recency_W1", torch.zeros(MEMORY, 1))
        self.history_HK = self._state("history_HK", torch.zeros(len(HISTORY), self.outputs))
        frequencies_FK = torch.full((len(FREQUENCIES), self.outputs), start)
        self.frequencies_FK = self._state("frequencies_FK", frequencies_FK)

    def encode(self, features_NC: Tensor) -> Encoded:
        """Numbers standardised, heavy tails bent, and clipped; categories as rows and signs; all of it hashed."""
        numbers_NF, categories_NG = features_NC[:, : self.numeric], features_NC[:, self.numeric :].long()
        standard_NF = self.standardise(numbers_NF)
        dense_ND = standard_NF = torch.where(self.heavy_F, standard_NF.asinh(), standard_NF).clamp_(-CLIP, CLIP)
        if len(self.nullable_U):
            dense_ND = torch.cat([standard_NF, numbers_NF[:, self.nullable_U].isnan().float()], dim=1)
        bins_NF = (standard_NF * BINS_PER_DEVIATION).floor().long()
        ids_NC = (torch.cat([bins_NF, categories_NG], dim=1) + self.columns_C) * _MIX[0]
        crosses_NP = ids_NC[:, self.left_P] + (ids_NC * _MIX[1])[:, self.right_P]
        with_numbers = [ids_NC[:, : self.numeric], crosses_NP[:, : self.mixed]]
        ids_NT = torch.cat([*with_numbers, ids_NC[:, self.numeric :], crosses_NP[:, self.mixed :]], dim=1)
        tokens_NT = (ids_NT >> 29) & (len(self.wide_RK) - 1)
        keys = [dense_ND]
        if self.categories:
            signs_NGA = (ids_NC[:, self.numeric :, None] >> self.shifts_A) & 1
            keys.append(signs_NGA.flatten(1).float() - 0.5)
        keys_NQ = torch.cat([*keys, torch.ones_like(features_NC[:, :1])], dim=1)
        return Encoded(dense_ND, categories_NG + self.starts_G, tokens_NT, keys_NQ)

    def answers(self, encoded: Encoded) -> Tensor:
        """What each member says: probabilities [N, K, M], or values [N, 1, M]."""
        dense_ND, rows_NG, tokens_NT, keys_NQ = encoded
        size, heads = dense_ND.shape[0], len(LINEAR) * self.outputs
        inputs = [dense_ND, torch.ones_like(keys_NQ[:, :1])]  # there may be no dense column
        if self.categories:
            inputs.insert(1, self.embedding_RA[rows_NG].flatten(1))
        if self.history:
            inputs.append(self.history_inputs().expand(size, self.history))
        columns_NJ = torch.cat(inputs, dim=1) @ self.first_DJ
        hidden_ENH = columns_NJ[:, heads:].relu().view(size, len(EXPERTS), HIDDEN).transpose(0, 1)
        deep_NKE = torch.bmm(hidden_ENH, self.second_EKH.transpose(1, 2)).permute(1, 2, 0)
        linear_NKL = columns_NJ[:, :heads].view(size, len(LINEAR), self.outputs).transpose(1, 2)
        tables_NKT = [functional.embedding_bag(tokens_NT, self.wide_RK, mode="sum").unsqueeze(2)]
        if self.has_narrow:
            narrow_NT = tokens_NT[:, self.begin_narrow :]
            tables_NKT.append(functional.embedding_bag(narrow_NT, self.narrow_RK, mode="sum").unsqueeze(2))
        learned_NKM = torch.cat([linear_NKL, deep_NKE, *tables_NKT], dim=2)
        learned_NKM = self._scaled(learned_NKM) if self.regression else learned_NKM.softmax(dim=1)
        if not self.recalls:
            return learned_NKM
        frequencies_NKF = self.frequencies_FK.T.expand(size, self.outputs, len(FREQUENCIES))
        return torch.cat([learned_NKM, *self._neighbours(keys_NQ), frequencies_NKF], dim=2)

    def _scaled(self, values: Tensor) -> Tensor:
        return values * self.label_2[1] + self.label_2[0]

    def _standard(self, values: Tensor) -> Tensor:
        return ((values - self.label_2[0]) / self.label_2[1]).clamp(-CLIP, CLIP)

    def history_inputs(self) -> Tensor:
        """The newest labels as inputs [Q]; none where there are many classes."""
        labels_HK = self.history_HK
        if self.regression:
            labels_HK = self._standard(labels_HK)
        return labels_HK.flatten()[: self.history]

    def _neighbours(self, keys_NQ: Tensor) -> list[Tensor]:
        """Votes of the rows in memory: Shepard, "A two-dimensional interpolation function" (1968).

        A vote weighs a power of its squared distance, relative to that of the nearest: no scale has to be known. One
        member goes by the second power, one by the fourth, one by that and the age of the rows.
        """
        square_N1 = (keys_NQ * keys_NQ).sum(dim=1, keepdim=True) - 1
        keys_NQ = torch.cat([keys_NQ[:, :-1], square_N1, keys_NQ[:, -1:]], dim=1)
        distance_WN = (self.keys_WQ @ keys_NQ.T).clamp_min_(_NEAR)  # rows in memory first: twice as fast
        closeness_WN = torch.div(distance_WN.amin(dim=0, keepdim=True), distance_WN, out=distance_WN)
        near_KN = self.votes_KW @ closeness_WN.square_()  # in place: this is the largest array by far
        newer_KW = self.votes_KW * self.recency_W1.T
        nearer_KN, newer_KN = (torch.cat([self.votes_KW, newer_KW]) @ closeness_WN.square_()).chunk(2)
        prior_K1 = self.frequencies_FK[-1, :, None] * _DOUBT
        return [
            ((votes_KN[:-1] + prior_K1) / (votes_KN[-1:] + _DOUBT)).T.unsqueeze(2)
            for votes_KN in (near_KN, nearer_KN, newer_KN)
        ]

    def tell(self, answers_NKM: Tensor) -> Tensor:
        """The answers as they are mixed by weights: logarithms, or standardised values."""
        return self._standard(answers_NKM) if self.regression else answers_NKM.clamp_min(self.floor).log()

    def mix(self, answers_NKM: Tensor, told_NKM: Tensor) -> Tensor:
        """What the mixtures make of it [N, K]: see `pipeline.bank.mixture`."""
        mixed_NKS = (told_NKM.unsqueeze(2) * self.mixers_SM).sum(dim=3)  # a product rounds differently by place
        mixed_NKS = self._scaled(mixed_NKS) if self.regression else mixed_NKS.softmax(dim=1)
        hedged_NK = (answers_NKM * self.mixture_M).sum(dim=2)
        mixed_NK = (torch.cat([hedged_NK.unsqueeze(2), mixed_NKS], dim=2) * self.top_Z).sum(dim=2)
        return mixed_NK if self.kept == 1 else self._of_all_negatives(mixed_NK)

    def _of_all_negatives(self, kept_NK: Tensor) -> Tensor:
        """Probabilities among all rows, of those among the rows that are kept: p -> p / (p + (1 - p) / kept).

        He et al., "Practical Lessons from Predicting Clicks on Ads at Facebook" (2014).
        """
        negative_N1, positive_N1 = kept_NK[:, :1], kept_NK[:, 1:] * self.kept
        return torch.cat([negative_N1, positive_N1], dim=1) / (negative_N1 + positive_N1)

    def forward(self, features_NC: Tensor) -> Tensor:
        """What each class is worth [N, K], or the value [N, 1]."""
        answers_NKM = self.answers(self.encode(features_NC))
        return self.mix(answers_NKM, self.tell(answers_NKM))
