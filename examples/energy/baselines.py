"""What a forecaster has to beat: repetitions of the past, and a linear autoregression."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from sklearn.linear_model import Ridge
from torch import Tensor

from .windows import Windows

ROWS = 120_000  # enough to determine some hundred weights for each hour ahead
PENALTY = 1.0
# Hours before the one to be forecast; rows of the file, where hours are missing.
REPETITIONS = {"the hour before": 1, "same hour yesterday": 24, "same hour last week": 168}


class Autoregression(NamedTuple):
    """Each hour ahead as a weighted sum of the `lookback` hours up to the origin."""

    weight: Tensor  # (horizon, lookback)
    bias: Tensor  # (horizon,)


def fit_autoregression(windows: Windows) -> Autoregression:
    """Least squares over origins spread evenly in the training part."""
    shape, loads = windows.shape, windows.hours[:, 0]
    starts = windows.train[:: max(1, len(windows.train) // ROWS)]
    past = loads.unfold(0, shape.lookback, 1)[starts]
    future = loads.unfold(0, shape.horizon, 1)[starts + shape.lookback]
    model = Ridge(PENALTY).fit(past.double().cpu().numpy(), future.double().cpu().numpy())
    # With one hour ahead scikit-learn leaves that dimension out.
    weight = torch.from_numpy(model.coef_).float().reshape(shape.horizon, shape.lookback)
    bias = torch.from_numpy(np.atleast_1d(model.intercept_)).float()
    return Autoregression(weight.to(loads.device), bias.to(loads.device))


def autoregress(windows: Windows, origins: Tensor, fitted: Autoregression) -> Tensor:
    """(n, horizon): scaled loads."""
    past = windows.hours[:, 0].unfold(0, windows.shape.lookback, 1)
    firsts = origins - windows.shape.lookback + 1
    return torch.cat([past[some] @ fitted.weight.T + fitted.bias for some in firsts.split(8192)])


def level_weights(windows: Windows, fitted: Autoregression) -> Tensor:
    """(horizon,): 1 / the autoregression's mean error that far ahead in training; mean 1."""
    starts = windows.train[:: max(1, len(windows.train) // ROWS)]
    origins = starts + windows.shape.lookback - 1
    future = windows.hours[:, 0].unfold(0, windows.shape.horizon, 1)[origins + 1]
    error = (autoregress(windows, origins, fitted) - future).abs().mean(0)
    return error.reciprocal() / error.reciprocal().mean()


def repeat(windows: Windows, origins: Tensor, hours: int) -> Tensor:
    """(n, horizon): the scaled loads `hours` before; beyond that, those before the origin again."""
    ahead = torch.arange(1, windows.shape.horizon + 1, device=origins.device)
    back = hours * torch.div(ahead + hours - 1, hours, rounding_mode="floor")
    sources = origins[:, None] + ahead - back
    return windows.hours[sources, 0]


def baselines(windows: Windows, origins: Tensor, fitted: Autoregression) -> dict[str, Tensor]:
    """(n, horizon, 1) scaled forecasts, by name."""
    forecasts = {name: repeat(windows, origins, hours) for name, hours in REPETITIONS.items()}
    forecasts["linear autoregression"] = autoregress(windows, origins, fitted)
    return {name: forecast.unsqueeze(-1) for name, forecast in forecasts.items()}
