"""Averages of weights over the end of a training."""

from __future__ import annotations

import torch
from torch import nn


class WeightAverage:
    """The running mean of a model's parameters over the steps since it was made (stochastic weight averaging,
    Izmailov et al. 2018, here over every step of a falling rate)."""

    def __init__(self, model: nn.Module) -> None:
        self.parameters = list(model.parameters())
        self.mean = [torch.zeros_like(p) for p in self.parameters]
        self.count = 0

    @torch.no_grad()
    def add(self) -> None:
        """Takes the parameters as they are into the mean."""
        self.count += 1
        for mean, p in zip(self.mean, self.parameters, strict=True):
            mean.lerp_(p, 1 / self.count)

    @torch.no_grad()
    def store(self) -> None:
        """Puts the mean into the model. Batch norm's statistics are to be estimated anew afterwards."""
        for mean, p in zip(self.mean, self.parameters, strict=True):
            p.copy_(mean)
