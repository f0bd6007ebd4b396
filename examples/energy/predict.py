"""A forecast of the hours after a series' end."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import torch

from .clock import HOUR
from .data import Region
from .errors import DataError
from .files import whole_file
from .model import Forecaster
from .protocols import Protocol, features
from .windows import Scale, Shape, fit_scale, scaled


@torch.no_grad()
def predict(
    network: Forecaster,
    region: Region,
    protocol: Protocol,
    shape: Shape,
    scale: Scale | None = None,
) -> pd.DataFrame:
    """One row an hour ahead: `forecast`, and with quantiles `low` and `high` around it.

    A series that the network was not trained on is scaled by its own past, all of which is known.
    """
    load = region.load
    gaps = np.flatnonzero(load.index[1:] - load.index[:-1] != HOUR)
    since = load.iloc[gaps[-1] + 1 :] if len(gaps) else load
    if len(since) < shape.lookback:
        after = f" since the gap that ends at {since.index[0]}" if len(gaps) else ""
        raise DataError(
            f"{region.name} has {len(since)} hours{after}; a forecast needs {shape.lookback}"
        )
    table = features(load, protocol.cyclic)
    scale = scale or fit_scale(region, table, protocol)
    device = next(network.parameters()).device
    recent = scaled(table, scale, protocol)[-min(len(since), shape.reads) :]
    network.eval()
    outputs, _ = network(torch.from_numpy(recent).unsqueeze(0).to(device))
    loads = scale.low + scale.span * outputs[0, -1].double().cpu().numpy()
    times = pd.date_range(load.index[-1] + HOUR, periods=shape.horizon, freq=HOUR, name="time")
    names = ["low", "forecast", "high"] if loads.shape[1] == 3 else ["forecast"]
    return pd.DataFrame(np.sort(loads, axis=1), index=times, columns=names)


def write_forecast(table: pd.DataFrame, path: Path) -> None:
    with whole_file(path) as temporary:
        table.round(3).to_csv(temporary)
