"""Scores of forecasts on the windows that measure, in megawatts."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from .metrics import article_reading, smape
from .windows import Windows


@dataclass(frozen=True)
class Scores:
    """sMAPE in percent, of which each region has an equal say, as in the article."""

    next_hour: float
    all_hours: float  # the mean over the horizon
    by_region: dict[str, float]  # of the next hour
    by_horizon: list[float]
    by_hour: list[float | None]  # of the next hour, by its hour of the day
    band: float | None  # share of loads between the outer quantiles

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"next_hour_article_reading": article_reading(self.next_hour)}


@dataclass(frozen=True)
class Measured:
    """What forecasts are held against: every target of a set of origins."""

    windows: Windows
    origins: Tensor  # (n,)
    region: Tensor  # (n,): which region
    low: Tensor  # (n, 1)
    span: Tensor  # (n, 1)
    actual: Tensor  # (n, horizon) float64: megawatts
    hour: Tensor  # (n,): of the day, of the first target

    def megawatts(self, scaled: Tensor) -> Tensor:
        """(n, horizon, outputs) float64, on the CPU"""
        return self.low.unsqueeze(-1) + self.span.unsqueeze(-1) * scaled.cpu().double()


def measured(windows: Windows, origins: Tensor) -> Measured:
    origins = origins.cpu()
    begins = torch.tensor(windows.begins)
    region = torch.searchsorted(begins, origins, right=True) - 1
    scales = [windows.scales[r.name] for r in windows.regions]
    loads = np.concatenate([r.load.to_numpy(np.float64) for r in windows.regions])
    hours = np.concatenate([pd.DatetimeIndex(r.load.index).hour for r in windows.regions])
    ahead = torch.arange(1, windows.shape.horizon + 1)
    return Measured(
        windows,
        origins,
        region,
        torch.tensor([scale.low for scale in scales], dtype=torch.float64)[region, None],
        torch.tensor([scale.span for scale in scales], dtype=torch.float64)[region, None],
        torch.from_numpy(loads)[origins[:, None] + ahead],
        torch.from_numpy(hours.astype(np.int64))[origins + 1],
    )


def score(truth: Measured, scaled: Tensor) -> Scores:
    """Scores of (n, horizon, outputs) scaled forecasts; the middle output is the forecast."""
    loads = truth.megawatts(scaled)
    middle = loads[..., loads.shape[-1] // 2]
    errors = smape(middle, truth.actual)
    numbers = range(len(truth.windows.regions))
    by_region = torch.stack([errors[truth.region == i].mean(0) for i in numbers])
    names = [region.name for region in truth.windows.regions]
    band = None
    if loads.shape[-1] > 1:
        inside = (loads[..., 0] <= truth.actual) & (truth.actual <= loads[..., -1])
        band = inside.double().mean().item()
    return Scores(
        next_hour=by_region[:, 0].mean().item(),
        all_hours=by_region.mean().item(),
        by_region=dict(zip(names, by_region[:, 0].tolist(), strict=True)),
        by_horizon=by_region.mean(0).tolist(),
        by_hour=[_mean(errors[truth.hour == hour, 0]) for hour in range(24)],
        band=band,
    )


def _mean(values: Tensor) -> float | None:
    return values.mean().item() if len(values) else None
