"""A recommender: who likes what, as the product of an embedding of the user and one of the item."""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn

from examples.stream import Example, Predict, main
from pipeline.task import Binary

USERS, ITEMS, TASTES, BUCKETS = 40, 60, 3, 4096


class Factors(nn.Module):
    """Koren, Bell & Volinsky, "Matrix Factorization Techniques for Recommender Systems" (2009)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.users, self.items = nn.Embedding(BUCKETS, width), nn.Embedding(BUCKETS, width)
        self.user_bias, self.item_bias = nn.Embedding(BUCKETS, 1), nn.Embedding(BUCKETS, 1)
        for embedding in (self.users, self.items):
            nn.init.normal_(embedding.weight, std=0.3)
        for bias in (self.user_bias, self.item_bias):
            nn.init.zeros_(bias.weight)

    def forward(self, features_N2: Tensor) -> Tensor:
        users_N, items_N = features_N2[:, 0].long(), features_N2[:, 1].long()
        match_N1 = (self.users(users_N) * self.items(items_N)).sum(dim=1, keepdim=True)
        return match_N1 + self.user_bias(users_N) + self.item_bias(items_N)


class RecommenderTask(Binary):
    def module(self) -> nn.Module:
        return Factors(self.learner.embedding)

    def optimizer(self, module: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.Adam(module.parameters(), lr=self.learner.learning_rate, fused=True)


random = np.random.default_rng(0)
tastes_UT, traits_IT = random.normal(size=(USERS, TASTES)), random.normal(size=(ITEMS, TASTES))
pairs = random.permutation([(user, item) for user in range(USERS) for item in range(ITEMS)] * 4)
ROWS = [
    {"user": f"u{u}", "item": f"i{i}", "label": int(tastes_UT[u] @ traits_IT[i] + 0.5 * random.normal() > 0)}
    for u, i in pairs.tolist()
]


def is_held_back(row: Mapping[str, str | int]) -> bool:
    """A tenth of the pairs never comes."""
    return (int(str(row["user"])[1:]) + int(str(row["item"])[1:])) % 10 == 0


HELD_BACK = [row for row in ROWS if is_held_back(row)]


def report(predict: Predict) -> Mapping[str, float]:
    liked_N = predict(HELD_BACK) > 0.5
    return {"accuracy on pairs that never came": float((liked_N == [row["label"] for row in HELD_BACK]).mean())}


EXAMPLE = Example(
    name="recommender",
    stages=[[row for row in ROWS if not is_held_back(row)]],
    features={"categorical": [{"name": name, "buckets": BUCKETS} for name in ("user", "item")]},
    learner={
        "task": "examples.recommender:RecommenderTask",
        "embedding": 8,
        "learning_rate": 0.02,
        "batch_size": 32,
        "replay": 4000,
    },
    report=report,
)

if __name__ == "__main__":
    main(EXAMPLE)
