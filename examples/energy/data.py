"""Hourly demand, one series a region, read from PJM's CSV files.

PJM writes the wall clock's reading at the end of each hour. When summer time ends one reading comes
twice (from 2014 on; before, the files lack it); when it starts one is skipped; and the files are
not in time order. `raw=True` gives the rows as they are, sorted. Otherwise each row gets its point
in time: where the clock is put forward no hour is missing, where it is put back none is repeated,
and what is still missing is a gap.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from .clock import HOUR, localize, missing_hours
from .errors import DataError

SUFFIX = "_hourly.csv"
TIME_FORMAT = "%Y-%m-%d %H:%M:%S"
ZONE = "America/New_York"


@dataclass(frozen=True)
class Region:
    """One region's demand (float64), in time order, and what was done to it.

    The index strictly increases and knows its zone, unless the rows are raw.
    """

    name: str
    load: pd.Series
    note: str = ""


def load_regions(
    folder: Path, names: Sequence[str] | None = None, raw: bool = False
) -> list[Region]:
    """Read `<REGION>_hourly.csv` for each of `names`, or for all that `folder` holds."""
    if not folder.is_dir():
        raise DataError(f"there is no folder {folder}")
    files = {path.name.removesuffix(SUFFIX): path for path in sorted(folder.glob(f"*{SUFFIX}"))}
    if not files:
        raise DataError(f"the folder {folder} holds no <REGION>{SUFFIX}")
    return [load_region(name, files[name], raw) for name in choose(names, list(files))]


def load_region(name: str, path: Path, raw: bool = False) -> Region:
    load = read_pjm(name, path)
    if raw:
        return Region(name, load, "rows as they are")
    # A clock put forward at 2 has no hour that ends at 3: times are told by the hour's beginning.
    clock = pd.DatetimeIndex(load.index)
    load.index = localize(clock - HOUR, ZONE, str(path)) + HOUR
    repeated, missing = int(clock.duplicated().sum()), missing_hours(load.index)
    return Region(
        name, load, f"{repeated} readings that came twice told apart, {missing} hours missing"
    )


def choose(names: Sequence[str] | None, known: Sequence[str]) -> list[str]:
    """`names` without repetitions, or all of `known` if None; DataError names any stranger."""
    chosen = list(dict.fromkeys(known if names is None else names))
    for name in chosen:
        if name not in known:
            raise DataError(f"unknown region {name!r}: choose from {', '.join(known)}")
    return chosen


def read_pjm(name: str, path: Path) -> pd.Series:
    """The file's demand in megawatts, sorted by the clock; readings that come twice are kept."""
    expected = ["Datetime", f"{name}_MW"]
    table = read_table(path)
    if list(table.columns) != expected:
        raise DataError(
            f"{path} must have the columns {','.join(expected)}, not {','.join(table.columns)}"
        )
    times = parse(
        table[expected[0]],
        lambda text: pd.to_datetime(text, format=TIME_FORMAT, errors="coerce"),
        f"{path}, column Datetime: expected YYYY-MM-DD HH:MM:SS",
    )
    load = parse(
        table[expected[1]], numbers, f"{path}, column {expected[1]}: expected a number of megawatts"
    )
    index = pd.DatetimeIndex(times)
    if (index != index.floor("h")).any():
        raise DataError(f"{path} must tell the demand at whole hours")
    series = pd.Series(load.to_numpy(np.float64), index=index, name=name)
    return series.sort_index(kind="stable")


def read_table(path: Path) -> pd.DataFrame:
    """A CSV file with a header and rows, as text."""
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False, encoding="utf-8-sig")
    except pd.errors.EmptyDataError:
        raise DataError(f"{path} is empty") from None
    except (pd.errors.ParserError, UnicodeDecodeError) as error:
        reason = str(error).strip().replace("\n", " ")
        raise DataError(f"{path} is not a CSV file in UTF-8: {reason}") from None
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from None
    if not isinstance(table.index, pd.RangeIndex):  # pandas' answer to a column without a name
        raise DataError(f"{path} has rows with more values than its header has names")
    if table.empty:
        raise DataError(f"{path} has a header and no rows")
    return table


def numbers(text: pd.Series) -> pd.Series:
    """Finite numbers; NaN for everything else."""
    return pd.to_numeric(text, errors="coerce").replace([np.inf, -np.inf], np.nan)


def parse(text: pd.Series, parser: Callable[[pd.Series], pd.Series], expected: str) -> pd.Series:
    values = parser(text)
    bad = values.isna().to_numpy()
    if bad.any():
        row = int(bad.argmax())
        raise DataError(f"{expected}, but data row {row + 1} says {text.iloc[row]!r}")
    return values
