"""Pictures of a run, as PNG files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
from torch import Tensor

matplotlib.use("Agg")
from matplotlib import dates
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .data import Region
from .evaluate import Measured, Scores
from .files import whole_file

ACTUAL, COLOURS = "#222222", ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
STYLE = {
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e6e6e6",
    "axes.axisbelow": True,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "font.size": 10,
    "legend.frameon": False,
    "lines.linewidth": 1.6,
}
PANELS = 4
STEEP = 5  # falls of a loss by more are drawn on a logarithmic scale
SHOWN = 100  # hours of each panel, as in the article


def panels(path: Path, truth: Measured, forecast: Tensor, label: str) -> None:
    """The article's figure: the first 100 test hours of four regions, told one hour ahead."""
    loads = truth.megawatts(forecast)[:, 0]
    regions = truth.region.unique().tolist()[:PANELS]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(10, 6), layout="constrained")
        for axes, number in zip(_grid(figure, len(regions)), regions, strict=False):
            rows = (truth.region == number).nonzero()[:SHOWN, 0]
            region = truth.windows.regions[number]
            places = (truth.origins[rows] + 1 - truth.windows.begins[number]).tolist()
            times = _clock(region.load.index[places])
            middle, actual = loads.shape[-1] // 2, truth.actual[rows, 0]
            if loads.shape[-1] > 1:
                axes.fill_between(
                    times, loads[rows, 0], loads[rows, -1], color=COLOURS[0], alpha=0.2, lw=0
                )
            axes.plot(times, actual, color=ACTUAL, label="actual")
            axes.plot(times, loads[rows, middle], color=COLOURS[0], ls="--", label=label)
            axes.set_title(region.name)
            _time_axis(axes)
        figure.axes[0].legend(ncols=2, loc="upper left")
        _headroom(figure.axes[0])
        figure.supylabel("load in the next hour")
        _save(figure, path)


def losses(
    path: Path,
    curves: Mapping[str, Sequence[float]],
    validation: Mapping[str, Sequence[float]],
) -> None:
    """Training (lines) and validation (dashes) after each epoch."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(6.5, 4), layout="constrained")
        axes = figure.subplots()
        for colour, (label, curve) in zip(COLOURS, curves.items(), strict=False):
            epochs = range(1, len(curve) + 1)
            axes.plot(epochs, curve, color=colour, marker="o", ms=4, label=f"{label}, training")
            if validation[label]:
                axes.plot(
                    epochs, validation[label], color=colour, ls="--", label=f"{label}, validation"
                )
        axes.set(xlabel="epoch", ylabel="loss")
        if max(map(max, curves.values())) > STEEP * min(map(min, curves.values())):
            axes.set_yscale("log")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.legend()
        _save(figure, path)


def errors(path: Path, scores: Mapping[str, Scores]) -> None:
    """Where forecasts err: by region, by hour of the day, and by hours ahead."""
    first = next(iter(scores.values()))
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(10, 6.5), layout="constrained")
        top, bottom = figure.subfigures(2, 1)
        axes = top.subplots()
        width = 0.8 / len(scores)
        for place, (label, score) in enumerate(scores.items()):
            x = np.arange(len(first.by_region)) + (place - (len(scores) - 1) / 2) * width
            axes.bar(x, score.by_region.values(), width, color=COLOURS[place], label=label)
        axes.set_xticks(range(len(first.by_region)), first.by_region)
        axes.set(title="Next hour, by region", ylabel="sMAPE, %")
        axes.grid(axis="x", visible=False)
        axes.legend(ncols=len(scores))
        _headroom(axes)
        horizon = len(first.by_horizon)
        left, *right = np.atleast_1d(bottom.subplots(1, 2 if horizon > 1 else 1))
        for colour, (label, score) in zip(COLOURS, scores.items(), strict=False):
            left.plot(range(24), _gaps(score.by_hour), color=colour, marker="o", ms=3, label=label)
            for axes in right:
                axes.plot(range(1, horizon + 1), score.by_horizon, color=colour, marker="o", ms=3)
        left.set(title="Next hour, by its hour of the day", ylabel="sMAPE, %", xlabel="hour")
        left.set_xticks(range(0, 24, 3))
        for axes in right:
            axes.set(title="By hours ahead", ylabel="sMAPE, %", xlabel="hours ahead")
            axes.set_xticks([1, *range(6, horizon + 1, 6)])
        for axes in (left, *right):
            axes.set_ylim(bottom=0)
        _save(figure, path)


def future(path: Path, region: Region, table: pd.DataFrame, days: int = 7) -> None:
    """The last days of a series and what is to follow, with its band."""
    recent = region.load.iloc[-24 * days :]
    joined = pd.concat([recent.iloc[-1:], table["forecast"]])
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(10, 4), layout="constrained")
        axes = figure.subplots()
        axes.plot(_clock(recent.index), recent, color=ACTUAL, label="measured")
        if "low" in table:
            axes.fill_between(
                _clock(table.index), table["low"], table["high"], color=COLOURS[0], alpha=0.25,
                lw=0, label="80 % band",
            )  # fmt: skip
        axes.plot(_clock(joined.index), joined, color=COLOURS[0], label="forecast")
        axes.axvline(_clock(recent.index)[-1], color="#999999", lw=1, ls=":")
        axes.set(title=f"{region.name}: the next {len(table)} hours", ylabel=str(recent.name or ""))
        axes.legend(ncols=3, loc="upper left")
        _headroom(axes)
        _time_axis(axes)
        _save(figure, path)


def _clock(times: pd.Index) -> np.ndarray:
    """The wall clock's readings: matplotlib would show a zone's times as UTC."""
    return pd.DatetimeIndex(times).tz_localize(None).to_numpy()


def _grid(figure: Figure, count: int) -> list[Axes]:
    columns = 1 if count == 1 else 2
    return list(np.atleast_1d(figure.subplots(-(-count // columns), columns)).flat)


def _gaps(values: Sequence[float | None]) -> list[float]:
    return [float("nan") if value is None else value for value in values]


def _headroom(axes: Axes) -> None:
    """Space for the legend above what is drawn."""
    low, high = axes.get_ylim()
    axes.set_ylim(low, high + 0.15 * (high - low))


def _time_axis(axes: Axes) -> None:
    locator = dates.AutoDateLocator(minticks=3, maxticks=7)
    axes.xaxis.set_major_locator(locator)
    axes.xaxis.set_major_formatter(dates.ConciseDateFormatter(locator))


def _save(figure: Figure, path: Path) -> None:
    with whole_file(path) as temporary:
        figure.savefig(temporary, dpi=100)
