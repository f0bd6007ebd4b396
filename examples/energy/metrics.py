"""How wrong a forecast is, and what training lowers."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def smape(forecast: Tensor, actual: Tensor) -> Tensor:
    """Symmetric mean absolute percentage error of each element, in percent, from 0 to 200:

    100 |F - A| / ((|A| + |F|) / 2), where 0 / 0 counts as no error.
    """
    error = (forecast - actual).abs()
    size = (forecast.abs() + actual.abs()) / 2
    return 100 * torch.where(error > 0, error / size, 0.0)


def article_reading(percent: float) -> float:
    """What the article's code prints: it computes |F - A| / (A + F) / 2, a quarter of sMAPE."""
    return percent / 4


class Loss:
    """Squared error without quantiles; with them the pinball loss, whose minimum they are.

    `weights` (horizon,) level the hours ahead, of which the later err more; None: all count alike.
    """

    def __init__(self, quantiles: Sequence[float], weights: Tensor | None, device: torch.device):
        self.quantiles = torch.tensor(quantiles, device=device)
        self.weights = torch.ones(1, device=device) if weights is None else weights.to(device)

    def __call__(self, forecast: Tensor, target: Tensor) -> Tensor:
        """(..., horizon, outputs), (..., horizon) -> (..., horizon, outputs)"""
        error = target.unsqueeze(-1) - forecast
        if len(self.quantiles):
            error = torch.maximum(self.quantiles * error, (self.quantiles - 1) * error)
        else:
            error = error.square()
        return error * self.weights.unsqueeze(-1)
