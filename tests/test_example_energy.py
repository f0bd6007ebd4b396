"""The energy example's data: series, splits, windows, scales, baselines and the error measure."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.preprocessing import MinMaxScaler

from examples.energy.baselines import REPETITIONS, autoregress, fit_autoregression, repeat
from examples.energy.data import Region, load_region, load_regions
from examples.energy.errors import DataError
from examples.energy.evaluate import measured, score
from examples.energy.metrics import Loss, article_reading, smape
from examples.energy.protocols import ARTICLE, CLEAN, features
from examples.energy.synthetic import REGIONS, synthetic_regions
from examples.energy.windows import Shape, Windows, make_windows

ROOT = Path(__file__).resolve().parent.parent
ARTICLE_SHAPE = Shape(lookback=30, told=1, horizon=1)
CLEAN_SHAPE = Shape(lookback=30, told=20, horizon=4)
HOUR = pd.Timedelta(hours=1)


@pytest.fixture(scope="module")
def regions() -> list[Region]:
    return synthetic_regions(["NORTH", "CITY"], hours=1200)


@pytest.fixture(scope="module")
def clean(regions: list[Region]) -> Windows:
    return make_windows(regions, CLEAN, CLEAN_SHAPE)


@pytest.fixture(scope="module")
def article(regions: list[Region]) -> Windows:
    return make_windows(regions, ARTICLE, ARTICLE_SHAPE)


# --- the synthetic series


def test_synthetic_series_is_repeatable_and_does_not_depend_on_the_choice():
    everything = {region.name: region.load for region in synthetic_regions()}
    assert list(everything) == list(REGIONS)
    (city,) = synthetic_regions(["CITY"])
    pd.testing.assert_series_equal(city.load, everything["CITY"])
    assert all((load > 0).all() for load in everything.values())


def test_synthetic_series_has_a_day_and_a_week():
    for region in synthetic_regions():
        load = region.load
        night, evening = (load[load.index.hour == hour].mean() for hour in (3, 18))
        weekday = load[load.index.day_of_week < 5].mean()
        weekend = load[load.index.day_of_week >= 5].mean()
        assert evening > 1.15 * night
        assert weekday > 1.05 * weekend


# --- windows


def test_windows_equal_naive_slices(clean):
    shape = clean.shape
    for start in clean.train[[0, 7, -1]].tolist():
        inputs = clean.inputs(torch.tensor([start]))[0]
        targets = clean.targets(torch.tensor([start]))[0]
        assert torch.equal(inputs, clean.hours[start : start + shape.reads])
        for step in range(shape.told):
            origin = start + shape.lookback - 1 + step
            expected = clean.hours[origin + 1 : origin + 1 + shape.horizon, 0]
            assert torch.equal(targets[step], expected)


def test_the_articles_windows_are_all_there_and_split_at_the_last_tenth(regions, article):
    """Each region's first nine tenths train; no window reads or tells another region's hour."""
    train, test, offset = [], [], 0
    for region in regions:
        count = len(region.load) - 30
        held_out = int(0.1 * (len(region.load) - 90))
        train += range(offset, offset + count - held_out)
        test += range(offset + count - held_out, offset + count)
        offset += len(region.load)
    assert article.train.tolist() == train
    assert article.test.starts.tolist() == test
    assert not len(article.validation.starts)


def test_every_hour_is_stored_once_and_windows_only_by_their_first_hour(regions, clean):
    hours = sum(len(region.load) for region in regions)
    rows = hours + clean.shape.reads
    assert clean.hours.untyped_storage().nbytes() == 4 * rows * clean.hours.shape[1]
    assert clean.inputs(clean.train[:1]).shape == (1, clean.shape.reads, clean.hours.shape[1])
    assert clean.train.dim() == clean.test.starts.dim() == 1


def test_each_forecast_of_validation_and_test_counts_once(regions, clean):
    """From the first target of the part to the last that the horizon allows, region by region."""
    validation, test, offset = [], [], 0
    for region in regions:
        hours = len(region.load)
        held_out = int(0.1 * (hours - 90))
        first, second = hours - 2 * held_out, hours - held_out
        validation += range(offset + first - 1, offset + second - 4)
        test += range(offset + second - 1, offset + hours - 4)
        offset += hours
    assert clean.validation.origins(clean.shape).tolist() == validation
    assert clean.test.origins(clean.shape).tolist() == test
    assert len(clean.test.starts) < len(test) / 10


def test_no_clean_window_crosses_a_gap_and_every_article_window_may(regions):
    load = regions[0].load
    lost = [400, 401, 1150]  # in training and in the test part
    broken = Region("X", load.drop(load.index[lost]))
    windows = make_windows([broken], CLEAN, CLEAN_SHAPE)
    times = broken.load.index
    reaches = CLEAN_SHAPE.reads + CLEAN_SHAPE.horizon - 1
    for start in windows.train.tolist():
        assert times[start + reaches] - times[start] == reaches * HOUR
    for origin in windows.test.origins(CLEAN_SHAPE).tolist():
        first, last = origin - CLEAN_SHAPE.lookback + 1, origin + CLEAN_SHAPE.horizon
        assert times[last] - times[first] == (last - first) * HOUR
    assert len(make_windows([broken], ARTICLE, ARTICLE_SHAPE).train) == len(load) - 3 - 30 - 110


@pytest.mark.parametrize(("protocol", "spoiled"), [(CLEAN, False), (ARTICLE, True)])
def test_clean_scales_do_not_see_the_hours_to_be_forecast(regions, protocol, spoiled):
    shape = CLEAN_SHAPE if protocol is CLEAN else ARTICLE_SHAPE
    before = make_windows(regions, protocol, shape)
    changed = []
    for region in regions:
        load = region.load.copy()
        load.iloc[-(int(0.1 * (len(load) - 90))) :] *= 5
        changed.append(Region(region.name, load))
    after = make_windows(changed, protocol, shape)
    assert (before.scales != after.scales) == spoiled
    same = torch.equal(before.inputs(before.train), after.inputs(after.train))
    assert same == (not spoiled)


def test_scaled_loads_become_megawatts_again(regions, clean):
    truth = measured(clean, clean.test.origins(clean.shape))
    origins = clean.test.origins(clean.shape)
    scaled = clean.hours[:, 0].unfold(0, 4, 1)[origins + 1]
    torch.testing.assert_close(
        truth.megawatts(scaled.unsqueeze(-1))[..., 0], truth.actual, rtol=1e-6, atol=0
    )
    joined = np.concatenate([region.load.to_numpy() for region in regions])
    assert truth.actual[:, 0].tolist() == joined[origins.numpy() + 1].tolist()


def test_the_articles_features_are_scaled_as_its_scaler_does():
    """Over years with a 366th day, and every hour, weekday and month."""
    (region,) = synthetic_regions(["CITY"], hours=4 * 8766)
    windows = make_windows([region], ARTICLE, ARTICLE_SHAPE)
    expected = MinMaxScaler().fit_transform(features(region.load, cyclic=False))
    np.testing.assert_allclose(windows.hours[: len(expected)], expected, atol=1e-6)


def test_features_are_load_and_calendar():
    load = pd.Series([10.0, 11.0], index=pd.to_datetime(["2024-03-01 23:00", "2024-03-02 00:00"]))
    assert features(load, cyclic=False).tolist() == [[10, 23, 4, 3, 61], [11, 0, 5, 3, 62]]
    circles = features(load, cyclic=True)
    assert circles[:, 0].tolist() == [10, 11]
    np.testing.assert_allclose(np.hypot(circles[:, 1::2], circles[:, 2::2]), 1)
    # From 23 to 0 o'clock the day goes on: no step is larger than an hour's.
    np.testing.assert_allclose(np.linalg.norm(circles[1, 1:3] - circles[0, 1:3]), 0.261, atol=1e-3)


def test_too_short_and_constant_regions_are_refused(regions):
    short = Region("SHORT", regions[0].load[:60])
    with pytest.raises(DataError, match=r"region SHORT has 60 hours, .* windows of 49 hours"):
        make_windows([short], CLEAN, CLEAN_SHAPE)
    with pytest.raises(DataError, match="never changes"):
        make_windows([Region("FLAT", regions[0].load * 0)], CLEAN, CLEAN_SHAPE)


# --- baselines and scores


def test_repetitions_are_hours_of_the_past(regions, clean):
    origins = clean.test.origins(clean.shape)
    loads = clean.hours[:, 0]
    for hours in REPETITIONS.values():
        told = repeat(clean, origins, hours)
        for ahead in range(4):
            back = hours if ahead < hours else hours * (ahead + 1)
            assert torch.equal(told[:, ahead], loads[origins + 1 + ahead - back])


@pytest.mark.parametrize("horizon", [1, 4])
def test_the_autoregression_is_the_least_squares_solution(regions, horizon):
    windows = make_windows(regions, CLEAN, replace(CLEAN_SHAPE, horizon=horizon))
    fitted = fit_autoregression(windows)
    origins = windows.train + windows.shape.lookback - 1
    loads = windows.hours[:, 0].double()
    past = loads.unfold(0, 30, 1)[origins - 29]
    past = torch.cat((past, torch.ones(len(past), 1)), 1)
    future = loads.unfold(0, horizon, 1)[origins + 1]
    best = past @ torch.linalg.lstsq(past, future).solution
    told = autoregress(windows, origins, fitted)
    assert told.shape == future.shape
    error, least = ((x - future).square().mean() for x in (told, best))
    assert least <= error < 1.01 * least + 1e-9


def test_smape_of_known_values_in_both_readings():
    actual = torch.tensor([100.0, 200.0], dtype=torch.float64)
    assert smape(actual, actual).tolist() == [0, 0]
    assert smape(actual * 3, actual).tolist() == [100, 100]  # |2A| / ((3A + A) / 2)
    assert smape(actual * 0, actual).tolist() == [200, 200]
    assert smape(torch.zeros(2), torch.zeros(2)).tolist() == [0, 0]
    forecasts = torch.tensor([110.0, 200.0], dtype=torch.float64)
    percent = smape(forecasts, actual).mean().item()
    assert percent == pytest.approx(100 * (10 / 105) / 2)
    as_printed = (forecasts - actual).abs() / (actual + forecasts) / 2
    assert article_reading(percent) == pytest.approx(100 * as_printed.mean().item())


def test_scores_give_each_region_an_equal_say_and_count_the_band(regions):
    """The second region has a third of the first's hours."""
    windows = make_windows([regions[0], Region("SHORT", regions[1].load[:400])], CLEAN, CLEAN_SHAPE)
    truth = measured(windows, windows.test.origins(windows.shape))
    loads = torch.where((truth.region == 0)[:, None], truth.actual * 1.1, truth.actual)
    scaled = ((loads - truth.low) / truth.span).unsqueeze(-1)
    scores = score(truth, scaled)
    off = 100 * 0.1 / 1.05
    assert scores.by_region == {"NORTH": pytest.approx(off), "SHORT": pytest.approx(0, abs=1e-6)}
    assert scores.next_hour == pytest.approx(off / 2)
    assert scores.by_horizon == [pytest.approx(off / 2)] * 4 and scores.band is None
    wide = torch.cat((scaled - 1e-4, scaled, scaled + 1e-4), -1)
    assert score(truth, wide).band == pytest.approx((truth.region == 1).double().mean().item())


def test_the_pinball_loss_is_least_at_the_quantile_and_weighs_the_hours():
    draws = torch.rand(4000, 1)
    loss = Loss([0.1, 0.5, 0.9], None, torch.device("cpu"))
    grid = torch.linspace(0, 1, 101)
    losses = torch.stack([loss(torch.full((4000, 1, 3), x.item()), draws).mean(0)[0] for x in grid])
    np.testing.assert_allclose(grid[losses.argmin(0)], [0.1, 0.5, 0.9], atol=0.03)
    weighed = Loss([], torch.tensor([2.0, 0.5]), torch.device("cpu"))
    errors = weighed(torch.zeros(1, 2, 1), torch.tensor([[1.0, 2.0]]))
    assert errors.flatten().tolist() == [2, 2]


# --- PJM's files


def write_csv(folder: Path, name: str, rows: str) -> Path:
    path = folder / f"{name}_hourly.csv"
    path.write_text(f"Datetime,{name}_MW\n{rows}")
    return path


AUTUMN = (
    "2017-11-05 03:00:00,15\n"
    "2017-11-05 05:00:00,17\n"  # 04:00 is missing
    "2017-11-05 01:00:00,11\n"
    "2017-11-05 02:00:00,12\n"  # the hour from 1 to 2, in summer time
    "2017-11-05 02:00:00,13\n"  # and in standard time
)
SPRING = "2018-03-11 02:00:00,20\n2018-03-11 04:00:00,21\n2018-03-11 05:00:00,22\n"


def test_hours_at_clock_changes_get_their_points_in_time(tmp_path):
    region = load_region("X", write_csv(tmp_path, "X", AUTUMN))
    assert region.load.tolist() == [11, 12, 13, 15, 17]
    assert region.load.index.tz_convert("UTC").hour.tolist() == [5, 6, 7, 8, 10]
    assert region.note == "1 readings that came twice told apart, 1 hours missing"
    region = load_region("X", write_csv(tmp_path, "X", SPRING))
    assert region.load.index.tz_convert("UTC").hour.tolist() == [7, 8, 9]
    assert region.load.index.hour.tolist() == [3, 4, 5]  # the first hour ends as the clock jumps
    assert region.note.endswith("0 hours missing")


def test_raw_rows_are_only_sorted(tmp_path):
    region = load_region("X", write_csv(tmp_path, "X", AUTUMN), raw=True)
    assert region.load.tolist() == [11, 12, 13, 15, 17]
    assert region.load.index.hour.tolist() == [1, 2, 2, 3, 5]


def test_a_third_reading_and_a_skipped_hour_are_refused(tmp_path):
    with pytest.raises(DataError, match=r"2017-11-05 01:00:00.* occurs twice"):
        load_region("X", write_csv(tmp_path, "X", AUTUMN + "2017-11-05 02:00:00,13\n"))
    with pytest.raises(DataError, match="2018-03-11 02:00:00 does not exist in America/New_York"):
        load_region("X", write_csv(tmp_path, "X", SPRING + "2018-03-11 03:00:00,20\n"))


GOOD_ROW = "2017-11-05 00:00:00,10\n"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"X_hourly\.csv is empty"),
        (b"Datetime,X_MW\n", "has a header and no rows"),
        (b"Datetime,Y_MW\n" + GOOD_ROW.encode(), "columns Datetime,X_MW, not Datetime,Y_MW"),
        (b"time;load\n1;2\n", "columns Datetime,X_MW, not time;load"),
        (b"Datetime,X_MW\n2017-11-05 00:00:00,ten\n", "number of megawatts, but .* 1 says 'ten'"),
        (b"Datetime,X_MW\n2017-11-05 00:00:00,\n", "number of megawatts, but data row 1 says ''"),
        (b"Datetime,X_MW\n2017-11-05 00:00:00,inf\n", "number of megawatts, .* says 'inf'"),
        (b"Datetime,X_MW\n05/11/2017,10\n", "YYYY-MM-DD HH:MM:SS, but .* says '05/11/2017'"),
        (b"Datetime,X_MW\n2017-11-05 00:30:00,10\n", "must tell the demand at whole hours"),
        (b"Datetime,X_MW\n" + GOOD_ROW.encode() + b"1,2,3\n", "not a CSV file in UTF-8"),
        ("Datetime,X_MW\n".encode("utf-16"), "not a CSV file in UTF-8"),
        (b"Datetime,X_MW\n" + 3 * GOOD_ROW.encode(), "occurs twice"),
    ],
)
def test_bad_files_are_refused_in_a_sentence(tmp_path, content, message):
    (tmp_path / "X_hourly.csv").write_bytes(content)
    with pytest.raises(DataError, match=message):
        load_regions(tmp_path)


def test_missing_folders_empty_folders_and_unknown_regions(tmp_path):
    with pytest.raises(DataError, match="there is no folder"):
        load_regions(tmp_path / "none")
    with pytest.raises(DataError, match=r"holds no <REGION>_hourly\.csv"):
        load_regions(tmp_path)
    write_csv(tmp_path, "X", GOOD_ROW)
    with pytest.raises(DataError, match="unknown region 'Y': choose from X"):
        load_regions(tmp_path, ["Y"])
    with pytest.raises(DataError, match="unknown region 'MARS': choose from NORTH, COAST"):
        synthetic_regions(["CITY", "MARS"])


# --- PJM's own files, where they are at hand


@pytest.fixture(scope="module")
def pjm() -> Path:
    folder = Path(os.environ.get("GATEDRNN_PJM_DATA") or ROOT.parent / "shared/data/pjm")
    if len(list(folder.glob("*_hourly.csv"))) != 12:
        pytest.skip("PJM's twelve files are not here: set GATEDRNN_PJM_DATA to their folder")
    return folder


def test_pjm_raw_rows_give_the_articles_number_of_windows(pjm):
    windows = make_windows(load_regions(pjm, raw=True), ARTICLE, Shape(90, 1, 1))
    assert len(windows.train) == 980_185
    assert len(windows.test.starts) == 108_902


def test_pjm_hours_are_in_order_and_few_are_missing(pjm):
    """Where the clock is put forward no hour is missing; where it is put back, two before 2014."""
    (region,) = load_regions(pjm, ["DUQ"])
    index = region.load.index
    assert len(index) == 119_068 and index.is_monotonic_increasing and index.is_unique
    assert region.note == "4 readings that came twice told apart, 19 hours missing"
    gaps = index[1:][np.diff(index) > HOUR]
    assert sorted({(time.month, time.year < 2014) for time in gaps}) == [
        (10, True),
        (11, True),
        (12, True),
    ]


def test_pjm_the_autoregression_beats_last_week_by_far(pjm):
    windows = make_windows(load_regions(pjm, ["DUQ"]), CLEAN, Shape(168, 168, 24))
    origins = windows.test.origins(windows.shape)
    truth = measured(windows, origins)
    linear = score(truth, autoregress(windows, origins, fit_autoregression(windows))[..., None])
    week = score(truth, repeat(windows, origins, 168)[..., None])
    assert linear.next_hour < 0.15 * week.next_hour
    assert linear.all_hours < 0.7 * week.all_hours
