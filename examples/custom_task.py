"""A model of your own: one cross layer (DCN V2, Wang et al. 2021) over standardised numbers and embeddings."""

from torch import Tensor, nn

from pipeline.models.mlp import Encoder
from pipeline.task import Binary


class Cross(nn.Module):
    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.encoder = encoder
        self.cross, self.head = nn.Linear(encoder.width, encoder.width), nn.Linear(encoder.width, 1)

    def forward(self, features_NC: Tensor) -> Tensor:
        inputs_ND = self.encoder(features_NC)
        return self.head(inputs_ND * self.cross(inputs_ND) + inputs_ND)


class CrossTask(Binary):  # its loss, its score, and Adam
    def module(self) -> nn.Module:
        return Cross(Encoder(self.features, self.learner.embedding))
