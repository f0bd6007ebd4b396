"""A user's own hourly series: any CSV file with a column of times and one of values."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from .clock import HOUR, localize, refuse_repetitions
from .data import Region, numbers, parse, read_table
from .errors import DataError

OFFSET = r"(?:Z|[+-]\d\d:?\d\d)$"
FILLED = 3  # hours in a row that a straight line replaces


@dataclass(frozen=True)
class Source:
    """Where the series is: a file, and what the file itself does not say."""

    path: Path
    time: str | None = None
    value: str | None = None
    zone: str | None = None


def read_series(source: Source) -> Region:
    """The series in time order, every hour of it present but for gaps of more than `FILLED`."""
    table = read_table(source.path)
    time, value = _columns(table, source)
    absent = table[value].str.strip() == ""
    table = table[~absent].reset_index(drop=True)
    if len(table) < 2:
        raise DataError(f"{source.path} has {len(table)} rows with a value: a series needs more")
    load = parse(table[value], numbers, f"{source.path}, column {value}: expected a number")
    times = _times(table[time], source)
    order = times.argsort(kind="stable")
    series = pd.Series(load.to_numpy(np.float64)[order], index=times[order], name=value)
    series.index = _points(pd.DatetimeIndex(series.index), source)
    _require_hourly(pd.DatetimeIndex(series.index), source.path)
    whole, filled, missing = _fill(series)
    notes = [f"{filled} hours filled", f"{missing} hours missing"]
    if absent.any():
        notes.insert(0, f"{int(absent.sum())} rows without a value left out")
    if (np.diff(order) != 1).any():
        notes.insert(0, "rows sorted by time")
    return Region(source.path.stem, whole, ", ".join(notes))


def _columns(table: pd.DataFrame, source: Source) -> tuple[str, str]:
    names = list(table.columns)
    for name in (source.time, source.value):
        if name is not None and name not in names:
            raise DataError(f"{source.path} has no column {name!r}: it has {', '.join(names)}")
    if source.time is not None and source.value is not None:
        return source.time, source.value
    if len(names) != 2:
        raise DataError(
            f"{source.path} has the columns {', '.join(names)}: say which with --time and --value"
        )
    time = source.time or next(name for name in names if name != source.value)
    return time, source.value or next(name for name in names if name != time)


def _times(text: pd.Series, source: Source) -> pd.DatetimeIndex:
    """As written: with its zone where offsets are given, without where they are not."""
    offsets = text.str.strip().str.contains(OFFSET)
    if offsets.any() and not offsets.all():
        row = int((offsets != offsets.iloc[0]).to_numpy().argmax())
        raise DataError(
            f"{source.path}: some times tell their offset from UTC and some do not, "
            f"such as data row {row + 1}, {text.iloc[row]!r}"
        )
    values = parse(
        text.str.strip(),
        lambda text: pd.to_datetime(
            text.where(text.str.match(r"\d{4}-\d\d-\d\d")),
            format="ISO8601",
            errors="coerce",
            utc=bool(offsets.all()),
        ),
        f"{source.path}, column {text.name}: expected a time such as 2024-03-31 14:00",
    )
    return pd.DatetimeIndex(values)


def _points(clock: pd.DatetimeIndex, source: Source) -> pd.DatetimeIndex:
    """Sorted times as points in time; without a zone the clock is taken never to be changed."""
    if clock.tz is not None:
        refuse_repetitions(clock, str(source.path))
        try:
            return clock if source.zone is None else clock.tz_convert(source.zone)
        except KeyError:
            raise DataError(f"{source.zone!r} is no time zone") from None
    if source.zone is not None:
        return localize(clock, source.zone, str(source.path))
    if clock.has_duplicates:
        raise DataError(
            f"{source.path}: the time {clock[clock.duplicated()][0]} occurs twice; "
            "if summer time ended there, name the clock's zone with --timezone"
        )
    return clock


def _require_hourly(times: pd.DatetimeIndex, path: Path) -> None:
    steps = times[1:] - times[:-1]
    usual = steps.to_series().mode().iloc[0]
    if usual != HOUR:
        raise DataError(f"{path}: most rows are {usual} apart; one value an hour is expected")
    off = (times - times[0]) % HOUR != pd.Timedelta(0)
    if off.any():
        raise DataError(
            f"{path}: {times[off][0]} is not whole hours after the first row, {times[0]}"
        )


def _fill(series: pd.Series) -> tuple[pd.Series, int, int]:
    """Short holes on a straight line; how many hours that were, and how many stay missing."""
    index = pd.DatetimeIndex(series.index)
    hours = ((index - index[0]) / HOUR).to_numpy().round().astype(np.int64)
    holes = np.diff(hours) - 1
    short = np.flatnonzero((holes > 0) & (holes <= FILLED))
    added = np.concatenate(
        [np.arange(hours[i] + 1, hours[i + 1]) for i in short] or [np.empty(0, np.int64)]
    )
    every = np.sort(np.concatenate((hours, added)))
    values = np.interp(every, hours, series.to_numpy())
    whole = pd.Series(values, index=index[0] + every * HOUR, name=series.name)
    return whole, len(added), int(holes.sum()) - len(added)
