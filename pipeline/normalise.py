"""Online standardisation of numeric columns."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Standardiser(nn.Module):
    """(x - mean) / std with running moments in float64; NaN becomes 0, the mean.

    Moments are merged batch by batch: Chan, Golub & LeVeque, "Updating Formulae and a Pairwise Algorithm for
    Computing Sample Variances" (1979). The learner calls `update` with the first F columns of its rows before each
    training step: a module that uses one has to take the same columns.
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
        values_NF, counted_N = numbers_NF.to(torch.float64, copy=True), (weights_N > 0).double()
        if self.nullable:
            known_NF = (~values_NF.isnan()).double()
            values_NF.nan_to_num_(nan=0.0)
            batch_count_F = counted_N @ known_NF
        else:
            known_NF = None
            batch_count_F = counted_N.sum()
        batch_mean_F = (counted_N @ values_NF).div_(batch_count_F.clamp_min(1))  # sums, as products with a vector
        distance_NF = values_NF.sub_(batch_mean_F)
        if known_NF is not None:
            distance_NF.mul_(known_NF)
        batch_m2_F = counted_N @ distance_NF.square_()

        count_F, mean_F, m2_F = self.count_F, self.mean_F, self.m2_F
        before_F = count_F.clone()
        count_F += batch_count_F
        some_F = count_F.clamp_min(1)
        share_F = batch_count_F / some_F
        delta_F = batch_mean_F.sub_(mean_F)
        mean_F.addcmul_(delta_F, share_F)
        m2_F += batch_m2_F.addcmul_(delta_F.square_(), before_F.mul_(share_F))
        variance_F = m2_F / some_F
        self.shift_F.copy_(mean_F)
        self.scale_F.copy_(torch.where(variance_F > 1e-24, variance_F.rsqrt(), 1.0))

    def forward(self, numbers_NF: Tensor) -> Tensor:
        standard_NF = (numbers_NF - self.shift_F).mul_(self.scale_F)
        return standard_NF.nan_to_num(nan=0.0) if self.nullable else standard_NF
