"""The plain model: standardised numbers and embedded categories into an MLP."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn

from consumers.config import FeaturesConfig
from pipeline.config import LearnerConfig
from pipeline.normalise import Standardiser


class Encoder(nn.Module):
    """One float32 matrix [N, C] (numeric columns raw, then category buckets) to dense inputs [N, D].

    Nullable numeric columns hold NaN for null: replaced by the mean, with an indicator column each.
    """

    def __init__(self, features: FeaturesConfig, embedding: int) -> None:
        super().__init__()
        self.numeric = len(features.numeric)
        nullable = [index for index, column in enumerate(features.numeric) if column.nullable]
        self.nullable: Tensor
        self.register_buffer("nullable", torch.tensor(nullable, dtype=torch.long), persistent=False)
        self.has_nullable = bool(nullable)
        self.standardise = Standardiser(self.numeric, nullable=self.has_nullable)
        self.embeddings = nn.ModuleList(nn.Embedding(column.buckets, embedding) for column in features.categorical)
        self.width = self.numeric + len(nullable) + embedding * len(features.categorical)

    def forward(self, features_NC: Tensor) -> Tensor:
        numbers_NF = features_NC[:, : self.numeric]
        parts = [self.standardise(numbers_NF)]
        if self.has_nullable:
            parts.append(numbers_NF[:, self.nullable].isnan().float())
        for index, embed in enumerate(self.embeddings):
            parts.append(embed(features_NC[:, self.numeric + index].long()))
        return torch.cat(parts, dim=1) if len(parts) > 1 else parts[0]


def mlp(features: FeaturesConfig, learner: LearnerConfig, outputs: int) -> nn.Sequential:
    """Encoder, hidden layers with ReLU, and a linear head that starts at zero.

    The zero head makes the untrained model answer with the neutral score instead of noise.
    """
    encoder = Encoder(features, learner.embedding)
    widths = [encoder.width, *learner.hidden]
    layers: list[nn.Module] = [encoder]
    for before, after in pairwise(widths):
        layers += [nn.Linear(before, after), nn.ReLU(inplace=True)]
    head = nn.Linear(widths[-1], outputs)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    return nn.Sequential(*layers, head)
