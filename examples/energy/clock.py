"""Wall-clock time becomes true time, so that an hour's neighbours are one hour away."""

from __future__ import annotations

import pandas as pd

from .errors import DataError

HOUR = pd.Timedelta(hours=1)


def localize(clock: pd.DatetimeIndex, zone: str, source: str) -> pd.DatetimeIndex:
    """Sorted readings of a clock in `zone`, as points in time.

    When summer time ends an hour comes twice: the first is summer time's, as is one that comes
    alone. An hour that the clock skips, or a reading too many, is an error that names `source`.
    """
    try:
        times = clock.tz_localize(zone, ambiguous=~clock.duplicated(), nonexistent="NaT")
    except (KeyError, ValueError):  # zoneinfo's own errors are among them
        raise DataError(f"{zone!r} is no time zone, such as Europe/Berlin") from None
    if times.hasnans:
        skipped = clock[times.isna()][0]
        raise DataError(f"{source}: {skipped} does not exist in {zone}, whose clock skips it")
    refuse_repetitions(times, source)
    return times


def refuse_repetitions(times: pd.DatetimeIndex, source: str) -> None:
    if times.has_duplicates:
        raise DataError(f"{source}: the time {times[times.duplicated()][0]} occurs twice")


def missing_hours(times: pd.DatetimeIndex) -> int:
    """How many hours lie between the first and the last that `times` lacks."""
    return int((times[-1] - times[0]) / HOUR) + 1 - len(times)
