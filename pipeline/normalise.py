"""Online standardisation of numeric columns."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Standardiser(nn.Module):
    """(x - mean) / std with running moments in float64; NaN becomes 0, the mean.

    Moments are merged batch by batch: Chan, Golub & LeVeque, "Updating Formulae and a Pairwise Algorithm for
    Computing Sample Variances" (1979). The learner calls `update` before each training step.
    """

    count_F: Tensor
    mean_F: Tensor
    m2_F: Tensor
    shift_F: Tensor
    scale_F: Tensor

    def __init__(self, columns: int) -> None:
        super().__init__()
        for name in ("count_F", "mean_F", "m2_F"):
            self.register_buffer(name, torch.zeros(columns, dtype=torch.float64))
        self.register_buffer("shift_F", torch.zeros(columns))
        self.register_buffer("scale_F", torch.ones(columns))

    @torch.no_grad()
    def update(self, numbers_NF: Tensor, weights_N: Tensor) -> None:
        """Merges the rows of weight > 0; NaN does not count."""
        known_NF = (~numbers_NF.isnan()) & (weights_N > 0).unsqueeze(1)
        values_NF = torch.where(known_NF, numbers_NF, 0).double()
        batch_count_F = known_NF.sum(dim=0).double()
        batch_mean_F = values_NF.sum(dim=0) / batch_count_F.clamp_min(1)
        centred_NF = torch.where(known_NF, values_NF - batch_mean_F, 0)
        batch_m2_F = centred_NF.square().sum(dim=0)

        total_F = self.count_F + batch_count_F
        share_F = batch_count_F / total_F.clamp_min(1)
        delta_F = batch_mean_F - self.mean_F
        self.m2_F += batch_m2_F + delta_F.square() * self.count_F * share_F
        self.mean_F += delta_F * share_F
        self.count_F.copy_(total_F)

        variance_F = self.m2_F / self.count_F.clamp_min(1)
        self.shift_F.copy_(self.mean_F)
        self.scale_F.copy_(torch.where(variance_F > 1e-24, variance_F.rsqrt(), 1.0))

    def forward(self, numbers_NF: Tensor) -> Tensor:
        return ((numbers_NF - self.shift_F) * self.scale_F).nan_to_num(nan=0.0)
