"""Hourly demand, one series a region: read from PJM's CSV files and brought into order.

PJM writes local wall-clock time. When summer time ends, one hour comes twice; when it starts, one
is missing; and the files are not in time order. `read_csv` gives what the file says, sorted;
`one_value_per_hour` makes it a function of the clock and says what it had to do.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

SUFFIX = "_hourly.csv"
TIME_FORMAT = "%Y-%m-%d %H:%M:%S"


class DataError(ValueError):
    """What the user gave cannot be used; the message is one sentence that says why."""


@dataclass(frozen=True)
class Region:
    """One region's demand: megawatts (float64) by strictly increasing hour, and its history."""

    name: str
    load: pd.Series
    note: str = ""


def load_regions(folder: Path, names: Sequence[str] | None = None) -> list[Region]:
    """Read `<REGION>_hourly.csv` for each of `names`, or for all that `folder` holds."""
    if not folder.is_dir():
        raise DataError(f"there is no folder {folder}")
    files = {path.name.removesuffix(SUFFIX): path for path in sorted(folder.glob(f"*{SUFFIX}"))}
    if not files:
        raise DataError(f"the folder {folder} holds no <REGION>{SUFFIX}")
    return [load_region(name, files[name]) for name in choose(names, list(files))]


def load_region(name: str, path: Path) -> Region:
    load, note = one_value_per_hour(read_csv(name, path))
    return Region(name, load, note)


def choose(names: Sequence[str] | None, known: Sequence[str]) -> list[str]:
    """`names` without repetitions, or all of `known` if None; DataError names any stranger."""
    chosen = list(dict.fromkeys(known if names is None else names))
    for name in chosen:
        if name not in known:
            raise DataError(f"unknown region {name!r}: choose from {', '.join(known)}")
    return chosen


def read_csv(name: str, path: Path) -> pd.Series:
    """The file's demand in megawatts, sorted by time; hours that occur twice are kept."""
    expected = ["Datetime", f"{name}_MW"]
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False)
    except pd.errors.EmptyDataError:
        raise DataError(f"{path} is empty") from None
    except (pd.errors.ParserError, UnicodeDecodeError) as error:
        reason = str(error).strip().replace("\n", " ")
        raise DataError(f"{path} is not a CSV file in UTF-8: {reason}") from None
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from None
    if list(table.columns) != expected:
        raise DataError(
            f"{path} must have the columns {','.join(expected)}, not {','.join(table.columns)}"
        )
    if table.empty:
        raise DataError(f"{path} has a header and no rows")
    times = _parsed(
        table[expected[0]],
        lambda text: pd.to_datetime(text, format=TIME_FORMAT, errors="coerce"),
        f"{path}, column Datetime: expected YYYY-MM-DD HH:MM:SS",
    )
    load = _parsed(
        table[expected[1]],
        lambda text: pd.to_numeric(text, errors="coerce").replace([np.inf, -np.inf], np.nan),
        f"{path}, column {expected[1]}: expected a number of megawatts",
    )
    index = pd.DatetimeIndex(times)
    if (index != index.floor("h")).any():
        raise DataError(f"{path} must tell the demand at whole hours")
    series = pd.Series(load.to_numpy(np.float64), index=index, name=name)
    return series.sort_index(kind="stable")


def _parsed(text: pd.Series, parse: Callable[[pd.Series], pd.Series], expected: str) -> pd.Series:
    values = parse(text)
    bad = values.isna().to_numpy()
    if bad.any():
        row = int(bad.argmax())
        raise DataError(f"{expected}, but data row {row + 1} says {text.iloc[row]!r}")
    return values


def one_value_per_hour(load: pd.Series) -> tuple[pd.Series, str]:
    """Average the hours that occur twice; leave gaps as they are; say how many of each."""
    hours = load.groupby(level=0).mean()  # sorts
    repeated = len(load) - len(hours)
    missing = int((hours.index[-1] - hours.index[0]) / pd.Timedelta(hours=1)) + 1 - len(hours)
    return hours, f"{repeated} repeated hours averaged, {missing} missing hours left out"
