"""A synthetic demand series, so that the example runs without a download.

No number here was measured anywhere. Each region is a product of what real demand is made of: the
day (two peaks), the week (quiet weekends), the year (heating and cooling), weather that comes and
stays for days, and small change from hour to hour. It uses a plain clock: no hour is missing or
repeated.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from .data import Region, choose

HOURS = 2 * 8760  # two years
START = "2021-01-01"


class Climate(NamedTuple):
    """What makes one region differ from another."""

    base: float  # mean demand, MW
    day: float  # relative height of the daily cycle
    weekend: float  # relative drop on Saturday and Sunday
    heating: float  # relative winter rise
    cooling: float  # relative summer rise
    weather: float  # relative standard deviation of the weather's effect


REGIONS = {
    "NORTH": Climate(14_000, 0.16, 0.09, 0.22, 0.07, 0.060),
    "COAST": Climate(6_500, 0.20, 0.06, 0.08, 0.20, 0.050),
    "VALLEY": Climate(2_000, 0.24, 0.13, 0.15, 0.18, 0.070),
    "CITY": Climate(1_600, 0.28, 0.16, 0.10, 0.26, 0.055),
}


def synthetic_regions(names: Sequence[str] | None = None, hours: int = HOURS) -> list[Region]:
    """The regions named (all if None), always the same: a region's seed is its place."""
    places = {name: place for place, name in enumerate(REGIONS)}
    return [
        Region(name, demand(name, REGIONS[name], hours, seed=places[name]), "SYNTHETIC")
        for name in choose(names, list(REGIONS))
    ]


def demand(name: str, climate: Climate, hours: int, seed: int) -> pd.Series:
    """`hours` hours of demand in megawatts, rounded to whole ones as PJM's are."""
    rng = np.random.default_rng(seed)
    index = pd.date_range(START, periods=hours, freq="h")
    hour, weekday = index.hour.to_numpy(), index.day_of_week.to_numpy()
    year = 2 * np.pi * (index.day_of_year.to_numpy() - 15) / 365.25  # 0 in mid-January

    # Towns do not change their ways at midnight, but over some hours around it.
    weekend = pd.Series(weekday >= 5, dtype=float).rolling(9, 1, center=True).mean().to_numpy()
    day = (1 - 0.3 * weekend) * _daily_shape(hour, winter=(1 + np.cos(year)) / 2)
    season = climate.heating * np.cos(year).clip(0) + climate.cooling * (-np.cos(year)).clip(0)
    weather = climate.weather * _smooth(_red_noise(rng, hours, halflife=36), halflife=4)
    flicker = 0.008 * _red_noise(rng, hours, halflife=2) + 0.003 * rng.standard_normal(hours)

    relative = 1 + climate.day * day + season - climate.weekend * weekend
    # Air conditioning and heating follow the weather most while people are awake.
    relative += weather * (1 + 0.4 * day) + flicker
    return pd.Series(np.round(climate.base * relative), index=index, name=name)


def _daily_shape(hour: np.ndarray, winter: np.ndarray) -> np.ndarray:
    """About -1 at night to about 1: peaks at 8 and 19 in winter, one broad peak in summer."""

    def bump(centre: float, width: float) -> np.ndarray:
        distance = (hour - centre + 12) % 24 - 12
        return np.exp(-0.5 * (distance / width) ** 2)

    cold = 1.4 * bump(8, 2.5) + 1.6 * bump(19, 3.0)
    hot = 2.0 * bump(16, 5.0)
    return winter * cold + (1 - winter) * hot - 0.8


def _red_noise(rng: np.random.Generator, hours: int, halflife: float) -> np.ndarray:
    """AR(1) noise of unit standard deviation that forgets half of itself in `halflife` hours."""
    phi = 0.5 ** (1 / halflife)
    shocks = np.sqrt(1 - phi**2) * rng.standard_normal(hours) / (1 - phi)
    shocks[0] = rng.standard_normal()  # starts in its stationary distribution
    return _smooth(shocks, halflife)


def _smooth(noise: np.ndarray, halflife: float) -> np.ndarray:
    """Exponential moving average: weather turns within hours, not from one to the next."""
    return pd.Series(noise).ewm(halflife=halflife, adjust=False).mean().to_numpy()
