"""Regions become windows: five features an hour, scaled, split by time, gathered batch by batch.

All hours of all regions lie end to end in one tensor (N, 5). A window is named by its first hour:
window s reads hours s .. s + lookback - 1 and is to tell the load of hour s + lookback. The windows
overlap in all but one hour; they are strided views of that tensor, and only a batch of them is
ever copied.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from sklearn.preprocessing import MinMaxScaler
from torch import Tensor

from .data import DataError, Region

FEATURES = ("load", "hour", "day of week", "month", "day of year")
WEEK = 7 * 24


@dataclass(frozen=True)
class Windows:
    """Windows of several regions; `train` and `test` hold their first hours."""

    hours: Tensor  # (N, 5) float32, scaled by region
    lookback: int
    train: Tensor  # (n,) int64
    test: Tensor  # (m,) int64
    actual: Tensor  # (m,) float64: MW in the hour that each test window is to tell
    last_week: Tensor  # (m,) float64: MW in the same hour a week before
    low: Tensor  # (m,) float64: MW that the region's scaler maps to 0
    span: Tensor  # (m,) float64: MW between its 0 and its 1

    def inputs(self, starts: Tensor) -> Tensor:
        """(b, lookback, 5): the hours that the windows `starts` (b,) read."""
        return self.hours.unfold(0, self.lookback, 1).transpose(1, 2)[starts]

    def targets(self, starts: Tensor) -> Tensor:
        """(b,): the scaled load in the hour after each window."""
        return self.hours[starts + self.lookback, 0]

    def megawatts(self, scaled: Tensor) -> Tensor:
        """Scaled forecasts for all test windows (m,) as float64 megawatts."""
        return self.low + self.span * scaled.double()


def features(load: pd.Series) -> np.ndarray:
    """(hours, 5) float64: the load and four readings of the calendar, as in `FEATURES`."""
    time = load.index
    return np.column_stack(
        (load, time.hour, time.day_of_week, time.month, time.day_of_year)
    ).astype(np.float64)


def make_windows(regions: Sequence[Region], lookback: int) -> Windows:
    """Scale every region by its own training part and hold out its last tenth of windows."""
    parts = []
    offset = 0
    for region in regions:
        parts.append(_region_windows(region, lookback, offset))
        offset += len(region.load)
    joined = {
        name: torch.cat([getattr(part, name) for part in parts])
        for name in ("hours", "train", "test", "actual", "last_week", "low", "span")
    }
    return Windows(lookback=lookback, **joined)


def _region_windows(region: Region, lookback: int, offset: int) -> Windows:
    load = region.load
    shortest = lookback + 2 * WEEK  # a week before the first test hour, and a few to train on
    if len(load) < shortest:
        raise DataError(
            f"region {region.name} has {len(load)} hours; a look-back of {lookback} hours "
            f"needs at least {shortest}"
        )
    count = len(load) - lookback
    held_out = count // 10
    split = count - held_out
    table = features(load)
    # Training windows see hours 0 .. split + lookback - 1, targets included; no later one may
    # shape the scale.
    scaler = MinMaxScaler().fit(table[: split + lookback])
    starts = torch.arange(offset, offset + count)
    told = load.index[split + lookback :]
    # Where that very hour is missing (the spring's clock change), the one before it.
    last_week = load.reindex(told - pd.Timedelta(weeks=1), method="ffill")
    return Windows(
        hours=torch.from_numpy(scaler.transform(table).astype(np.float32)),
        lookback=lookback,
        train=starts[:split],
        test=starts[split:],
        actual=torch.from_numpy(load.to_numpy(np.float64, copy=True)[split + lookback :]),
        last_week=torch.from_numpy(last_week.to_numpy(np.float64, copy=True)),
        low=torch.full((held_out,), scaler.data_min_[0], dtype=torch.float64),
        span=torch.full((held_out,), 1 / scaler.scale_[0], dtype=torch.float64),
    )
