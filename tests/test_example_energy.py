"""The energy example: data, windows, training, and what the command line says."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from examples.energy import __main__ as cli
from examples.energy.data import DataError, Region, load_regions, one_value_per_hour, read_csv
from examples.energy.model import CELLS, Forecaster, ModelConfig
from examples.energy.synthetic import REGIONS, synthetic_regions
from examples.energy.train import TrainConfig, forecast, smape, train, train_and_test
from examples.energy.windows import FEATURES, WEEK, Windows, features, make_windows

ROOT = Path(__file__).resolve().parent.parent
TINY = ModelConfig(hidden_size=8, layers=2, dropout=0.1)
TINY_ARGUMENTS = (
    "--regions CITY --lookback 12 --hidden-size 6 --epochs 2 --max-windows 256 --batch-size 64 "
    "--dropout 0.1"
).split()


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Networks this small gain nothing from a second thread and lose much where cores are busy."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def regions() -> list[Region]:
    return synthetic_regions(["NORTH", "CITY"], hours=900)


@pytest.fixture(scope="module")
def windows(regions: list[Region]) -> Windows:
    return make_windows(regions, lookback=30)


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


def test_windows_equal_naive_slices(regions, windows):
    for start in [*windows.train[[0, 1, -1]].tolist(), *windows.test[[0, -1]].tolist()]:
        rows = windows.hours[start : start + windows.lookback + 1]
        starts = torch.tensor([start])
        assert torch.equal(windows.inputs(starts)[0], rows[:-1])
        assert torch.equal(windows.targets(starts)[0], rows[-1, 0])


def test_every_window_occurs_once_and_none_crosses_from_region_to_region(regions, windows):
    expected, offset = [], 0
    for region in regions:
        expected += range(offset, offset + len(region.load) - windows.lookback)
        offset += len(region.load)
    assert sorted(torch.cat([windows.train, windows.test]).tolist()) == expected


def test_hours_are_stored_once_and_windows_only_by_their_first_hour(regions, windows):
    hours = sum(len(region.load) for region in regions)
    assert windows.hours.shape == (hours, len(FEATURES))
    assert windows.hours.untyped_storage().nbytes() == 4 * hours * len(FEATURES)
    others = [value for name, value in vars(windows).items() if name not in ("hours", "lookback")]
    assert len(others) == 6 and all(tensor.dim() == 1 for tensor in others)


def test_features_are_load_and_calendar():
    load = pd.Series([10.0, 11.0], index=pd.to_datetime(["2024-03-01 23:00", "2024-03-02 00:00"]))
    assert features(load).tolist() == [[10, 23, 4, 3, 61], [11, 0, 5, 3, 62]]


def test_scaled_targets_become_the_megawatts_again(regions, windows):
    actual = np.concatenate([r.load.to_numpy()[-((len(r.load) - 30) // 10) :] for r in regions])
    assert windows.actual.tolist() == actual.tolist()
    back = windows.megawatts(windows.targets(windows.test))
    torch.testing.assert_close(back, windows.actual, rtol=1e-6, atol=0)


def test_each_region_is_scaled_by_its_training_part_alone(regions):
    """Hours that only test windows see may change without moving anything before them."""
    before = make_windows(regions, lookback=30)
    changed = []
    for region in regions:
        load = region.load.copy()
        load.iloc[-((len(load) - 30) // 10) :] *= 5
        changed.append(Region(region.name, load))
    after = make_windows(changed, lookback=30)
    assert torch.equal(before.inputs(before.train), after.inputs(after.train))
    assert torch.equal(before.targets(before.train), after.targets(after.train))
    assert torch.equal(before.low, after.low) and torch.equal(before.span, after.span)
    assert after.hours.max() > 2
    seen = before.inputs(before.train)
    assert seen.min() == 0 and seen.max() == 1


def test_the_last_tenth_is_held_out(regions):
    for region in regions:
        data = make_windows([region], lookback=30)
        count = len(region.load) - 30
        assert data.train.tolist() == list(range(count - count // 10))
        assert data.test.tolist() == list(range(count - count // 10, count))


def test_last_week_is_the_same_hour_seven_days_before(regions, windows):
    expected = [
        load.loc[time - pd.Timedelta(days=7)]
        for load in (region.load for region in regions)
        for time in load.index[-((len(load) - 30) // 10) :]
    ]
    assert windows.last_week.tolist() == expected


def test_last_week_takes_the_hour_before_a_missing_one(regions):
    load = regions[0].load
    lost = load.index[-WEEK - 5]  # a week before the fifth hour from the end
    data = make_windows([Region("X", load.drop(lost))], lookback=30)
    assert data.last_week[-5].item() == load.loc[lost - pd.Timedelta(hours=1)]
    assert data.last_week[-4].item() == load.loc[lost + pd.Timedelta(hours=1)]


def test_too_short_a_region_is_refused(regions):
    short = Region("SHORT", regions[0].load[:300])
    with pytest.raises(DataError, match=r"region SHORT has 300 hours; .* needs at least 426"):
        make_windows([short], lookback=90)


# --- PJM's files


def write_csv(folder: Path, name: str, rows: str) -> Path:
    path = folder / f"{name}_hourly.csv"
    path.write_text(f"Datetime,{name}_MW\n{rows}")
    return path


def test_clock_changes_and_disorder_are_mended(tmp_path):
    path = write_csv(
        tmp_path,
        "X",
        "2017-11-05 02:00:00,14\n"
        "2017-11-05 03:00:00,15\n"
        "2017-11-05 05:00:00,17\n"  # 04:00 is missing
        "2017-11-05 00:00:00,10\n"
        "2017-11-05 01:00:00,11\n"
        "2017-11-05 01:00:00,13\n",  # summer time ends
    )
    raw = read_csv("X", path)
    assert raw.tolist() == [10, 11, 13, 14, 15, 17]
    load, note = one_value_per_hour(raw)
    assert load.index.hour.tolist() == [0, 1, 2, 3, 5]
    assert load.tolist() == [10, 12, 14, 15, 17]
    assert note == "1 repeated hours averaged, 1 missing hours left out"


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
        (b"Datetime,X_MW\n" + 300 * GOOD_ROW.encode(), "region X has 1 hours"),
    ],
)
def test_bad_files_get_one_sentence_and_exit_code_2(tmp_path, capsys, content, message):
    (tmp_path / "X_hourly.csv").write_bytes(content)
    assert cli.main(["--data", str(tmp_path)]) == 2
    output = capsys.readouterr()
    assert re.search(message, output.err)
    assert output.err.count("\n") == 1 and output.out == ""


def test_missing_folder_empty_folder_and_unknown_regions(tmp_path, capsys):
    for arguments, message in [
        (["--data", str(tmp_path / "none")], "there is no folder"),
        (["--data", str(tmp_path)], "holds no <REGION>_hourly.csv"),
        (["--regions", "CITY,MARS"], "unknown region 'MARS': choose from NORTH, COAST"),
        (["--lookback", "20000"], "needs at least 20336"),
    ]:
        assert cli.main(arguments) == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1
    write_csv(tmp_path, "X", GOOD_ROW)
    assert cli.main(["--data", str(tmp_path), "--regions", "Y"]) == 2
    assert "unknown region 'Y': choose from X" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--epochs", "0"], "expected a whole number from 1, not '0'"),
        (["--batch-size", "2.5"], "expected a whole number from 1, not '2.5'"),
        (["--dropout", "1"], "expected a probability from 0 to below 1, not '1'"),
        (["--lr", "nan"], "expected a positive number, not 'nan'"),
        (["--seed", "-1"], "expected a whole number from 0, not '-1'"),
        (["--model", "rnn"], "invalid choice: 'rnn'"),
    ],
)
def test_bad_options_exit_with_code_2(capsys, arguments, message):
    with pytest.raises(SystemExit) as exit_info:
        cli.main(arguments)
    assert exit_info.value.code == 2
    assert message in capsys.readouterr().err


# --- the error measure


def test_smape_of_known_values():
    actual = torch.tensor([100.0, 200.0], dtype=torch.float64)
    assert smape(actual, actual) == 0
    assert smape(actual * 3, actual) == pytest.approx(100)  # |2A| / ((3A + A) / 2)
    assert smape(actual * 0, actual) == pytest.approx(200)
    forecasts = torch.tensor([110.0, 200.0], dtype=torch.float64)
    assert smape(forecasts, actual) == pytest.approx(100 * (10 / 105) / 2)
    assert smape(actual, forecasts) == pytest.approx(smape(forecasts, actual))
    assert smape(torch.zeros(2), torch.zeros(2)) == 0


# --- training


@pytest.mark.parametrize("cell", CELLS)
def test_training_lowers_the_loss(cell, windows):
    config = TrainConfig(epochs=4, batch_size=16, lr=0.01, seed=0, max_windows=640)
    result = train_and_test(cell, windows, TINY, config)
    assert [len(batches) for batches in result.losses] == [40] * 4
    assert result.epoch_losses[-1] < result.epoch_losses[0] / 2
    assert result.windows == 4 * 640
    assert 0 < result.smape < 200


@pytest.mark.parametrize("cell", CELLS)
def test_both_backends_follow_the_same_path(cell, windows):
    """Same seed: same weights, batches and dropout masks, hence the same losses."""
    config = TrainConfig(epochs=2, batch_size=32, lr=0.005, seed=3, max_windows=320)
    ours, theirs = (
        train_and_test(cell, windows, ModelConfig(8, 2, 0.2, backend), config)
        for backend in ("gatedrnn", "torch")
    )
    np.testing.assert_allclose(ours.losses, theirs.losses, rtol=1e-3)
    assert ours.smape == pytest.approx(theirs.smape, rel=1e-3)
    assert ours.parameters == theirs.parameters


def test_an_epoch_draws_every_training_window_once(windows):
    drawn: list[torch.Tensor] = []

    class Recorder(Windows):
        def targets(self, starts):
            drawn.append(starts)
            return super().targets(starts)

    data = Recorder(**vars(windows))
    torch.manual_seed(0)
    network = Forecaster("gru", ModelConfig(2, 1, 0.5), len(FEATURES))
    train(network, data, TrainConfig(epochs=1, batch_size=500, lr=0.001, seed=0), "GRU")
    assert sorted(torch.cat(drawn).tolist()) == windows.train.tolist()
    assert drawn[0].tolist() != windows.train[:500].tolist()


def test_forecasts_do_not_depend_on_their_neighbours(windows):
    """Fresh state for every window: one at a time gives what the batch gives."""
    torch.manual_seed(0)
    network = Forecaster("lstm", TINY, len(FEATURES))
    batch = forecast(network, windows, "LSTM")
    for place in (0, 7, len(windows.test) - 1):
        alone = network(windows.inputs(windows.test[place : place + 1])).double()
        expected = windows.low[place] + windows.span[place] * alone
        torch.testing.assert_close(batch[place : place + 1], expected, rtol=1e-5, atol=0)


# --- the command line


def test_command_prints_the_comparison_and_says_that_it_is_synthetic(capsys):
    assert cli.main(TINY_ARGUMENTS) == 0
    output = capsys.readouterr()
    assert output.out.count("SYNTHETIC") == 3  # the source, the region, the table's title
    table = output.out[output.out.index("forecast by") :]
    assert re.search(r"GRU +\d+ +0\.\d{6} +\d+\.\d\d % +\d+\.\d +[\d,]+\n", table)
    assert re.search(r"LSTM +\d+ +0\.\d{6} +\d+\.\d\d % +\d+\.\d +[\d,]+\n", table)
    assert re.search(r"same hour last week +- +- +\d+\.\d\d % +- +-\n", table)
    assert "GRU epoch 2/2" in output.err and "loss=" in output.err


def test_command_reads_a_folder_with_the_backend_and_model_named(tmp_path, capsys):
    (region,) = synthetic_regions(["CITY"], hours=700)
    rows = "".join(f"{time:%Y-%m-%d %H:%M:%S},{load}\n" for time, load in region.load.items())
    write_csv(tmp_path, "CITY", rows)
    chosen = ["--data", str(tmp_path), "--backend", "torch", "--model", "gru"]
    assert cli.main([*TINY_ARGUMENTS, *chosen]) == 0
    output = capsys.readouterr().out
    assert "SYNTHETIC" not in output and "torch.nn" in output
    assert "0 repeated hours averaged, 0 missing hours left out" in output
    assert "\n  GRU" in output and "\n  LSTM" not in output


def test_help_names_every_option(capsys):
    with pytest.raises(SystemExit) as exit_info:
        cli.main(["--help"])
    assert exit_info.value.code == 0
    text = capsys.readouterr().out
    for option in "data regions lookback max-windows model backend epochs seed threads".split():
        assert f"--{option}" in text


# --- PJM's own files, where they are at hand


@pytest.fixture(scope="module")
def pjm() -> Path:
    folder = Path(os.environ.get("GATEDRNN_PJM_DATA") or ROOT.parent / "shared/data/pjm")
    if not (folder / "DUQ_hourly.csv").is_file():
        pytest.skip("PJM's files are not here: set GATEDRNN_PJM_DATA to their folder")
    return folder


def test_pjm_regions_load_in_order_without_repeated_hours(pjm):
    (region,) = load_regions(pjm, ["DUQ"])
    assert len(region.load) == 119_068 - 4
    assert region.load.index.is_monotonic_increasing and region.load.index.is_unique
    assert region.note.startswith("4 repeated hours averaged, ")
    assert 500 < region.load.min() < region.load.max() < 4_000


def test_pjm_all_regions_give_the_articles_number_of_windows(pjm):
    """The article keeps repeated hours: 980,185 training windows, of raw rows."""
    names = [path.name.removesuffix("_hourly.csv") for path in pjm.glob("*_hourly.csv")]
    if len(names) != 12:
        pytest.skip(f"the folder holds {len(names)} of the twelve regions")
    raw = [Region(name, read_csv(name, pjm / f"{name}_hourly.csv")) for name in names]
    counts = [len(region.load) - 90 for region in raw]
    assert sum(count - count // 10 for count in counts) == 980_185
    data = make_windows(load_regions(pjm), lookback=90)
    assert 980_185 - 4 * 12 < len(data.train) < 980_185


def test_pjm_a_short_training_beats_last_week(pjm):
    data = make_windows(load_regions(pjm, ["DUQ"]), lookback=24)
    config = TrainConfig(epochs=1, batch_size=32, lr=0.005, seed=0, max_windows=6_000)
    result = train_and_test("gru", data, ModelConfig(16, 1, 0.0), config)
    assert result.smape < 0.75 * smape(data.last_week, data.actual)
