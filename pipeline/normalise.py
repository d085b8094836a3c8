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

    def __init__(self, columns: int, *, nullable: bool) -> None:
        super().__init__()
        self.nullable = nullable  # without NaN the moments take half the time
        for name in ("count_F", "mean_F", "m2_F"):
            self.register_buffer(name, torch.zeros(columns, dtype=torch.float64))
        self.register_buffer("shift_F", torch.zeros(columns))
        self.register_buffer("scale_F", torch.ones(columns))

    @torch.no_grad()
    def update(self, numbers_NF: Tensor, weights_N: Tensor) -> None:
        """Merges the rows of weight > 0; NaN does not count."""
        values_NF = numbers_NF.double()
        known_N1 = (weights_N > 0).double().unsqueeze(1)
        if self.nullable:
            known_NF = known_N1 * ~values_NF.isnan()
            values_NF = values_NF.nan_to_num(nan=0.0)
        else:
            known_NF = known_N1
        batch_count_F = known_NF.sum(dim=0)
        batch_mean_F = (values_NF * known_NF).sum(dim=0) / batch_count_F.clamp_min(1)
        batch_m2_F = ((values_NF - batch_mean_F) * known_NF).square().sum(dim=0)

        total_F = self.count_F + batch_count_F
        share_F = batch_count_F / total_F.clamp_min(1)
        delta_F = batch_mean_F - self.mean_F
        self.m2_F += batch_m2_F + delta_F.square() * self.count_F * share_F
        self.mean_F += delta_F * share_F
        self.count_F += batch_count_F

        variance_F = self.m2_F / self.count_F.clamp_min(1)
        self.shift_F.copy_(self.mean_F)
        self.scale_F.copy_(torch.where(variance_F > 1e-24, variance_F.rsqrt(), 1.0))

    def forward(self, numbers_NF: Tensor) -> Tensor:
        standard_NF = (numbers_NF - self.shift_F) * self.scale_F
        return standard_NF.nan_to_num(nan=0.0) if self.nullable else standard_NF
