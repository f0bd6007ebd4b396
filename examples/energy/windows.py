"""Regions become windows: features of every hour, scaled, split by time, gathered by index.

All hours of all regions lie end to end in one tensor on the device. A window is named by its first
hour and makes a forecast after each of its last `told` hours, so that every forecast is made from
at least `lookback` hours and one pass through the recurrent layers serves `told` of them:

    hours    s ................ s + lookback - 1 ........ s + reads - 1
    origin                      the first forecast  ...   the last
    target                      `horizon` hours after each origin

With told = 1 a window is the article's: 90 hours, one forecast. Windows overlap; they are strided
views of that tensor, and only a batch of them is ever copied.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from .clock import HOUR
from .data import Region
from .errors import DataError
from .protocols import CALENDAR, TEST, Protocol, features

SPLIT_LOOKBACK = 90  # the article's: whatever a window reads, the same hours are tested
WEEK = 168  # hours; what is repeated a week later must lie before the test part

Stretch = tuple[int, int]  # the first and the last of hours in a row


@dataclass(frozen=True)
class Shape:
    """Hours that a window reads before its first forecast, forecasts it makes, hours of each."""

    lookback: int
    told: int
    horizon: int

    @property
    def reads(self) -> int:
        return self.lookback + self.told - 1


@dataclass(frozen=True)
class Scale:
    """megawatts = low + span * scaled"""

    low: float
    span: float


@dataclass(frozen=True)
class Part:
    """Windows in which every forecast counts once: those of origins up to `last`."""

    starts: Tensor  # (m,) int64: first hours
    last: Tensor  # (m,) int64: the last origin that counts

    def to(self, device: torch.device) -> Part:
        return Part(self.starts.to(device), self.last.to(device))

    def origins(self, shape: Shape) -> Tensor:
        """(n,): the hours after which a forecast counts, window by window."""
        return self.all_origins(shape)[self.counts(shape)]

    def counts(self, shape: Shape) -> Tensor:
        """(m, told) bool"""
        return self.all_origins(shape) <= self.last[:, None]

    def all_origins(self, shape: Shape) -> Tensor:
        steps = torch.arange(shape.told, device=self.starts.device)
        return self.starts[:, None] + shape.lookback - 1 + steps


@dataclass(frozen=True)
class Windows:
    """Every hour once, and which windows train, choose and measure."""

    regions: Sequence[Region]
    begins: list[int]  # a region's first hour; the last entry is the number of all hours
    scales: dict[str, Scale]
    shape: Shape
    hours: Tensor  # (N + reads, F) float32, scaled; padded so that every window can be read
    train: Tensor  # (n,) int64: first hours; every forecast of these counts
    validation: Part
    test: Part

    def to(self, device: torch.device) -> Windows:
        return replace(
            self,
            hours=self.hours.to(device),
            train=self.train.to(device),
            validation=self.validation.to(device),
            test=self.test.to(device),
        )

    def inputs(self, starts: Tensor) -> Tensor:
        """(B, reads, F): the hours that the windows `starts` (B,) read."""
        return self.hours.unfold(0, self.shape.reads, 1).transpose(1, 2)[starts]

    def targets(self, starts: Tensor) -> Tensor:
        """(B, told, horizon): the scaled load in the hours after each origin."""
        span = self.shape.told + self.shape.horizon - 1
        loads = self.hours[:, 0].unfold(0, span, 1)[starts + self.shape.lookback]
        return loads.unfold(1, self.shape.horizon, 1)


def make_windows(
    regions: Sequence[Region],
    protocol: Protocol,
    shape: Shape,
    scales: Mapping[str, Scale] | None = None,
) -> Windows:
    """Features, scales and split of every region; `scales` are those of an earlier training."""
    tables: list[np.ndarray] = []
    used: dict[str, Scale] = {}
    begins = [0]
    parts: list[list[Stretch]] = [[], [], []]  # training, validation, test
    for region in regions:
        borders = split(len(region.load), protocol)
        for part, found in zip(parts, _parts(region, borders, protocol, shape), strict=True):
            part += [(begins[-1] + first, begins[-1] + last) for first, last in found]
        table = features(region.load, protocol.cyclic)
        seen = table if protocol.fits_on_test else table[: borders[0]]
        scale = (scales or {}).get(region.name) or fit_scale(region, seen, protocol)
        used[region.name] = scale
        tables.append(scaled(table, scale, protocol))
        begins.append(begins[-1] + len(table))
    train, validation, test = parts
    padding = np.zeros((shape.reads, tables[0].shape[1]), np.float32)
    return Windows(
        regions,
        begins,
        used,
        shape,
        torch.from_numpy(np.concatenate([*tables, padding])),
        _overlapping(train, shape),
        _side_by_side(validation, shape),
        _side_by_side(test, shape),
    )


def split(hours: int, protocol: Protocol) -> tuple[int, int]:
    """The first hours of the validation part and of the test part, as targets of forecasts."""
    count = max(0, hours - SPLIT_LOOKBACK)
    test = hours - int(TEST * count)
    return test - int(protocol.validation * count), test


def fit_scale(region: Region, seen: np.ndarray, protocol: Protocol) -> Scale:
    """The scale of the loads that are seen."""
    load = seen[:, 0]
    if not len(load) or load.min() == load.max():
        raise DataError(f"region {region.name}: the load to learn from never changes")
    if protocol.standardizes:
        return Scale(float(load.mean()), float(load.std()))
    return Scale(float(load.min()), float(load.max() - load.min()))


def scaled(table: np.ndarray, scale: Scale, protocol: Protocol) -> np.ndarray:
    """The load by its scale; a calendar in numbers to 0 .. 1, as the article's scaler does."""
    result = table.copy()
    result[:, 0] = (table[:, 0] - scale.low) / scale.span
    if not protocol.cyclic:
        first, last = np.array(CALENDAR).T
        result[:, 1:] = (table[:, 1:] - first) / (last - first)
    return result.astype(np.float32)


def _parts(
    region: Region, borders: tuple[int, int], protocol: Protocol, shape: Shape
) -> list[list[Stretch]]:
    """Origins to train on, to choose by and to test; no forecast looks into the next part."""
    validation, test = borders
    hours, stretches = len(region.load), _stretches(region.load, protocol)
    targets = [(0, validation - 1), (validation, test - 1), (test, hours - 1)]
    train, chosen, tested = (_origins(stretches, low, high, shape) for low, high in targets)
    if test < WEEK or _longest(train) < shape.told or not tested:
        raise DataError(
            f"region {region.name} has {hours} hours, {_longest(stretches)} of them without a "
            f"gap: too few to train on windows of {shape.reads} hours, forecast {shape.horizon}, "
            "and test on the last tenth"
        )
    return [train, chosen, tested]


def _stretches(load: pd.Series, protocol: Protocol) -> list[Stretch]:
    """The stretches in which no hour is missing."""
    breaks = np.empty(0, np.int64)
    if not protocol.crosses_gaps:
        breaks = np.flatnonzero(load.index[1:] - load.index[:-1] != HOUR)
    firsts, lasts = [0, *(breaks + 1)], [*breaks, len(load) - 1]
    return [(int(first), int(last)) for first, last in zip(firsts, lasts, strict=True)]


def _longest(stretches: Sequence[Stretch]) -> int:
    return max((last - first + 1 for first, last in stretches), default=0)


def _origins(stretches: Sequence[Stretch], low: int, high: int, shape: Shape) -> list[Stretch]:
    """The origins in each stretch whose targets lie in low .. high."""
    found = []
    for first, last in stretches:
        earliest = max(first + shape.lookback - 1, low - 1)
        latest = min(last, high) - shape.horizon
        if earliest <= latest:
            found.append((earliest, latest))
    return found


def _overlapping(origins: Sequence[Stretch], shape: Shape) -> Tensor:
    """All windows whose forecasts are all within one of the stretches of origins."""
    ranges = [
        torch.arange(first - shape.lookback + 1, last - shape.reads + 2)
        for first, last in origins
        if last - first + 1 >= shape.told
    ]
    return torch.cat(ranges) if ranges else torch.empty(0, dtype=torch.int64)


def _side_by_side(origins: Sequence[Stretch], shape: Shape) -> Part:
    """Windows that make each forecast once; what the last of a stretch reads too far is not told.

    The layers read forward, so that hours after an origin do not reach its forecast.
    """
    starts: list[int] = []
    lasts: list[int] = []
    for first, last in origins:
        here = range(first - shape.lookback + 1, last - shape.lookback + 2, shape.told)
        starts += here
        lasts += [last] * len(here)
    return Part(torch.tensor(starts, dtype=torch.int64), torch.tensor(lasts, dtype=torch.int64))
