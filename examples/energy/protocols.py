"""Two ways to run the experiment on the same code: as the article did, and right."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

TEST = 0.1  # share of each region's hours that measures
CALENDAR = ((0, 23), (0, 6), (1, 12), (1, 366))  # hour, day of week, month, day of year
DAY, WEEK, YEAR = 24.0, 168.0, 365.2425 * 24


@dataclass(frozen=True)
class Protocol:
    """What is done to the data and in the loop, apart from sizes."""

    name: str
    raw_rows: bool  # readings that come twice stay, and the clock's jumps are not undone
    cyclic: bool  # the calendar as points on circles, instead of as numbers that jump
    standardizes: bool  # loads to mean 0 and standard deviation 1, instead of to 0 .. 1
    fits_on_test: bool  # the scaler sees every hour, also those to be forecast
    crosses_gaps: bool  # a window may span hours that are missing
    validation: float  # share of each region's hours that chooses the epoch
    carries_state: bool  # each batch starts from the last state of the one before
    drops_last: bool  # an epoch's last, smaller batch is not trained on
    quantiles: tuple[float, ...]  # that are forecast; none: the mean
    autoregression: bool  # a linear autoregression runs beside the recurrent layers
    relu: bool  # between the recurrent layers and the last linear map
    cosine: bool  # the step size warms up and falls to zero, instead of staying the same
    clips: bool  # gradients of too large a norm


ARTICLE = Protocol(
    name="article",
    raw_rows=True,
    cyclic=False,
    standardizes=False,
    fits_on_test=True,
    crosses_gaps=True,
    validation=0.0,
    carries_state=True,
    drops_last=True,
    quantiles=(),
    autoregression=False,
    relu=True,
    cosine=False,
    clips=False,
)
CLEAN = Protocol(
    name="clean",
    raw_rows=False,
    cyclic=True,
    standardizes=True,
    fits_on_test=False,
    crosses_gaps=False,
    validation=0.1,
    carries_state=False,
    drops_last=False,
    quantiles=(0.1, 0.5, 0.9),
    autoregression=True,
    relu=False,
    cosine=True,
    clips=True,
)
PROTOCOLS = {protocol.name: protocol for protocol in (ARTICLE, CLEAN)}


@dataclass(frozen=True)
class Sizes:
    """What the command line may change."""

    lookback: int  # hours read before the first forecast
    told: int  # forecasts that a window makes
    horizon: int  # hours of each forecast
    hidden_size: int
    layers: int
    dropout: float
    epochs: int
    batch_size: int
    lr: float
    windows: int | None  # drawn for each epoch; all if None


SIZES = {
    "article": Sizes(90, 1, 1, 256, 2, 0.2, 5, 1024, 0.001, None),
    # 5824 windows make 978,432 forecasts, an epoch of the article.
    "clean": Sizes(168, 168, 24, 64, 2, 0.0, 5, 32, 0.02, 5824),
}
FEW_WINDOWS = 2912  # where the data are a few series, or one


def features(load: pd.Series, cyclic: bool) -> np.ndarray:
    """(hours, F) float64, the load first, then the calendar."""
    time = pd.DatetimeIndex(load.index)
    hour, weekday, day = (
        x.to_numpy(np.float64) for x in (time.hour, time.day_of_week, time.day_of_year)
    )
    if not cyclic:
        return np.column_stack((load, hour, weekday, time.month, day)).astype(np.float64)
    turns = (hour / DAY, (24 * weekday + hour) / WEEK, (24 * day + hour) / YEAR)
    circles = [wave(2 * np.pi * turn) for turn in turns for wave in (np.sin, np.cos)]
    return np.column_stack((load, *circles))
