"""The energy example's commands, a user's own CSV files, and what is written."""

from __future__ import annotations

import json
import re
from pathlib import Path

import matplotlib.image
import numpy as np
import pandas as pd
import pytest
import torch

from examples.energy import commands
from examples.energy.checkpoint import load_checkpoint
from examples.energy.cli import main
from examples.energy.csv_input import Source, read_series
from examples.energy.data import Region
from examples.energy.errors import DataError
from examples.energy.predict import predict
from examples.energy.synthetic import synthetic_regions
from examples.energy.train import Progress, forecast

TINY = (
    "--regions CITY --lookback 24 --told 24 --horizon 3 --hidden-size 6 --epochs 2 --windows 64 "
    "--batch-size 16"
).split()
HOUR = pd.Timedelta(hours=1)


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    assert main(["train", *TINY, "--out", str(folder)]) == 0
    return folder


# --- compare


def test_without_a_command_models_are_compared_on_synthetic_demand(capsys):
    assert main([*TINY, "--backend", "both", "--seeds", "0,1"]) == 0
    output = capsys.readouterr()
    assert "SYNTHETIC demand, not measured anywhere" in output.out
    table = output.out[output.out.index("forecast by") :]
    for name in ("GRU (gatedrnn)", "GRU (torch.nn)", "LSTM (gatedrnn)", "LSTM (torch.nn)"):
        spread = r"\d+\.\d{3} \+- \d+\.\d{3} %"
        pattern = rf"{re.escape(name)} +[\d,]+ +0\.\d{{6}} +{spread} +{spread} +\d+\.\d %"
        assert re.search(pattern, table)
    for name in ("the hour before", "same hour last week", "linear autoregression"):
        assert re.search(rf"{name} +- +- +\d+\.\d{{3}} % +\d+\.\d{{3}} %", table)
    apart = re.findall(
        r"(?:GRU|LSTM), seed [01]: .* up to (\S+) .* by (\S+) in the last", output.out
    )
    assert len(apart) == 4 and all(0 <= float(x) < 1e-3 for pair in apart for x in pair)
    assert "LSTM epoch 2/2" in output.err and "loss=" in output.err


def test_the_article_protocol_prints_the_articles_figures_beside_ours(capsys):
    arguments = "--protocol article --regions CITY --lookback 12 --hidden-size 6 --windows 256"
    assert main(["compare", *arguments.split(), "--batch-size", "64", "--epochs", "2"]) == 0
    output = capsys.readouterr().out
    assert re.search(
        r"GRU \(gatedrnn\) +0\.\d{6} +0\.\d{6} +\d+\.\d +\d+\.\d\d % +\d+\.\d{3} %", output
    )
    assert re.search(r"GRU, the article +0\.001845 +0\.000206 +390\.5 +1\.12 % +0\.281 %", output)
    assert re.search(r"LSTM, the article +0\.003436 +0\.000263 +462\.7 +1\.08 % +0\.270 %", output)


def test_results_and_pictures_are_written(tmp_path, capsys):
    command = ["compare", *TINY, "--model", "lstm", "--out", str(tmp_path / "out")]
    assert main(command) == 0
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"results.json", "losses.png", "errors.png", "panels.png", "lstm-gatedrnn-0"}
    assert (tmp_path / "out" / "lstm-gatedrnn-0" / "best.pt").is_file()
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["command"] == "python -m examples.energy " + " ".join(command)
    (model,) = results["models"]
    assert model["cell"] == "lstm" and len(model["epoch_losses"]) == 2
    assert len(model["test"]["by_horizon"]) == 3 and list(model["test"]["by_region"]) == ["CITY"]
    assert f"{model['test']['next_hour']:.3f} %" in capsys.readouterr().out
    assert model["test"]["next_hour_article_reading"] == model["test"]["next_hour"] / 4
    for name in ("losses.png", "errors.png", "panels.png"):
        picture = matplotlib.image.imread(tmp_path / "out" / name)
        assert min(picture.shape[:2]) > 300 and picture.std() > 0.05


# --- train and evaluate


def test_training_twice_gives_the_same_and_says_where_it_is(trained, tmp_path, capsys):
    assert main(["train", *TINY, "--out", str(tmp_path)]) == 0
    assert f"are in {tmp_path / 'best.pt'}" in capsys.readouterr().out
    one, two = (
        json.loads((folder / "results.json").read_text())["models"][0]
        for folder in (trained, tmp_path)
    )
    assert one["epoch_losses"] == two["epoch_losses"] and one["test"] == two["test"]


def test_ctrl_c_keeps_the_best_epoch_and_tells_how_to_go_on(tmp_path, capsys, monkeypatch):
    update, steps = Progress.update, iter(range(100))

    def interrupting(*arguments):
        if next(steps) == 5:  # each epoch has four
            raise KeyboardInterrupt
        update(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Progress, "update", interrupting)
        assert main(["train", *TINY, "--out", str(tmp_path)]) == 0
    output = capsys.readouterr().out
    assert "weights of epoch 1" in output and "with --resume goes on" in output
    assert main(["train", *TINY, "--out", str(tmp_path), "--resume"]) == 0
    assert json.loads((tmp_path / "results.json").read_text())["models"][0]["interrupted"] is False


def test_evaluating_repeats_what_training_measured(trained, capsys):
    assert main(["evaluate", str(trained / "best.pt"), "--regions", "CITY"]) == 0
    output = capsys.readouterr().out
    score = json.loads((trained / "results.json").read_text())["models"][0]["test"]["next_hour"]
    assert re.search(rf"GRU +{score:.3f} % +{score / 4:.3f} %", output)
    assert re.search(r"CITY +\d+\.\d\d %", output)


def test_evaluating_on_the_articles_hours_takes_every_row_of_the_last_tenth(trained, capsys):
    assert main(["evaluate", str(trained / "best.pt"), "--regions", "CITY", "--on", "article"]) == 0
    hours = len(synthetic_regions(["CITY"])[0].load)
    assert f"{int(0.1 * (hours - 90)):,} forecasts" in capsys.readouterr().out


# --- a user's own series


def series(hours: int = 500) -> pd.Series:
    return synthetic_regions(["CITY"], hours=hours)[0].load


def write(path: Path, rows: pd.Series | str, header: str = "time,load") -> Path:
    if isinstance(rows, pd.Series):
        rows = "".join(f"{time},{load}\n" for time, load in rows.items())
    path.write_text(f"{header}\n{rows}", encoding="utf-8")
    return path


def read(path: Path, **options: str) -> Region:
    return read_series(Source(path, **options))


def test_any_two_columns_are_read_and_sorted(tmp_path):
    load = series(100)
    region = read(write(tmp_path / "mine.csv", load.sample(frac=1, random_state=0), "when,kW"))
    assert region.name == "mine" and region.load.name == "kW"
    assert region.load.tolist() == load.tolist() and (region.load.index == load.index).all()
    assert region.note == "rows sorted by time, 0 hours filled, 0 hours missing"
    table = pd.DataFrame({"id": 1, "load": load, "time": load.index})
    table.to_csv(tmp_path / "three.csv", index=False)
    region = read(tmp_path / "three.csv", time="time", value="load")
    assert region.load.tolist() == load.tolist()


def test_short_holes_are_filled_and_long_ones_stay(tmp_path):
    load = series(100)
    holes = [*range(10, 13), *range(40, 44)]
    region = read(write(tmp_path / "x.csv", load.drop(load.index[holes])))
    assert region.note == "3 hours filled, 4 hours missing"
    assert len(region.load) == 96
    filled = region.load.iloc[10:13].to_numpy()
    np.testing.assert_allclose(filled, np.linspace(load.iloc[9], load.iloc[13], 5)[1:-1])
    rows = "".join(f"{t},{'' if i == 5 else v}\n" for i, (t, v) in enumerate(load.items()))
    region = read(write(tmp_path / "x.csv", rows))
    assert region.note == "1 rows without a value left out, 1 hours filled, 0 hours missing"


def test_clocks_with_a_zone_lose_no_hour_at_changes(tmp_path):
    truth = pd.date_range("2024-10-26", periods=60, freq="h", tz="Europe/Berlin")
    local = write(tmp_path / "x.csv", pd.Series(range(60), index=truth.tz_localize(None)))
    region = read(local, zone="Europe/Berlin")
    assert (region.load.index == truth).all() and region.load.tolist() == list(range(60))
    with pytest.raises(DataError, match=r"2024-10-27 02:00:00 occurs twice; .* --timezone"):
        read(local)
    offsets = write(tmp_path / "y.csv", pd.Series(range(60), index=truth))
    assert (read(offsets).load.index == truth).all()
    assert str(read(offsets, zone="Europe/Berlin").load.index.tz) == "Europe/Berlin"


GOOD = "2024-01-01 00:00,1\n2024-01-01 01:00,2\n"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"time,load\n", "has a header and no rows"),
        (b"load\n1\n", "has the columns load: say which with --time and --value"),
        (b"a,b,c\n1,2,3\n", "has the columns a, b, c: say which"),
        (f"time,load\n{GOOD}2024-01-01 02:00,many\n".encode(), "a number, but data row 3 says"),
        (f"time,load\n{GOOD}yesterday,3\n".encode(), "a time such as .*, but data row 3 says"),
        (f"time,load\n{GOOD}05/01/2024 02:00,3\n".encode(), "but data row 3 says '05/01/2024"),
        (f"time,load\n{GOOD}2024-01-01 01:00,3\n".encode(), "2024-01-01 01:00:00 occurs twice"),
        (f"time,load\n{GOOD}2024-01-01 02:00Z,3\n".encode(), "some do not, such as data row 3"),
        (f"time,load\n{GOOD}2024-01-01 02:20,3\n".encode(), "02:20:00 is not whole hours after"),
        (b"time,load\n2024-01-01 00:00,1,2\n", "more values than its header has names"),
        (b"time,load\n2024-01-01 00:00,1\n", "has 1 rows with a value"),
        (b"time,load\n2024-01-01,1\n2024-01-02,2\n", "1 days 00:00:00 apart; one value an hour"),
        (f"time,load\n{GOOD}".encode("utf-16"), "not a CSV file in UTF-8"),
        ("time,Größe\n".encode("latin-1") + GOOD.encode(), "not a CSV file in UTF-8"),
        (f"time,load\n{GOOD}".encode(), "has 2 hours, 2 of them without a gap: too few"),
        (f"time,load\n{GOOD}2034-01-01 01:00,3\n".encode(), "2 of them without a gap: too few"),
    ],
)
def test_bad_files_get_one_sentence_and_leave_nothing(tmp_path, capsys, content, message):
    path = tmp_path / "x.csv"
    path.write_bytes(content)
    assert main(["forecast", str(path), "--out", str(tmp_path / "out")]) == 2
    output = capsys.readouterr()
    assert re.search(message, output.err)
    assert output.err.count("\n") == 1 and "Traceback" not in output.err
    assert [found.name for found in tmp_path.iterdir()] == ["x.csv"]


def test_zones_and_columns_that_are_not_there(tmp_path):
    path = write(tmp_path / "x.csv", GOOD)
    with pytest.raises(DataError, match="no column 'kW': it has time, load"):
        read(path, value="kW")
    with pytest.raises(DataError, match="'Mars/Olympus' is no time zone"):
        read(path, zone="Mars/Olympus")
    aware = write(tmp_path / "y.csv", GOOD.replace(":00,", ":00Z,"))
    with pytest.raises(DataError, match="'Mars/Olympus' is no time zone"):
        read(aware, zone="Mars/Olympus")
    with pytest.raises(DataError, match=r"none\.csv cannot be read: No such file"):
        read(tmp_path / "none.csv")


# --- forecast


def test_a_forecast_of_ones_own_series_is_written_as_csv_and_picture(trained, tmp_path, capsys):
    load = series()
    path = write(tmp_path / "mine.csv", load)
    arguments = ["--checkpoint", str(trained / "best.pt"), "--out", str(tmp_path / "next")]
    assert main(["forecast", str(path), *arguments]) == 0
    assert f"Written: {tmp_path / 'next.csv'}" in capsys.readouterr().out
    table = pd.read_csv(tmp_path / "next.csv", index_col="time", parse_dates=True)
    assert list(table.columns) == ["low", "forecast", "high"]
    assert (table.index == load.index[-1] + HOUR * np.arange(1, 4)).all()
    assert (table["low"] <= table["forecast"]).all() and (table["forecast"] <= table["high"]).all()
    assert table["forecast"].between(load.min(), load.max()).all()
    assert matplotlib.image.imread(tmp_path / "next.png").std() > 0.05


def test_a_forecast_trains_on_the_series_where_no_checkpoint_is_named(
    tmp_path, capsys, monkeypatch
):
    monkeypatch.setitem(
        commands.SIZES, "clean", commands.Sizes(24, 24, 3, 6, 1, 0.0, 1, 16, 0.01, 32)
    )
    path = write(tmp_path / "mine.csv", series(900))
    assert main(["forecast", str(path), "--out", str(tmp_path / "next")]) == 0
    output = capsys.readouterr().out
    assert re.search(r"On the last tenth of it:\n.*\n +GRU +\d+\.\d{3} %", output)
    assert len(pd.read_csv(tmp_path / "next.csv")) == 3


def test_a_forecast_needs_the_hours_before_it(trained, tmp_path, capsys):
    load = series()
    path = write(tmp_path / "x.csv", load.drop(load.index[480:490]))
    arguments = ["--checkpoint", str(trained / "best.pt"), "--out", str(tmp_path / "next")]
    assert main(["forecast", str(path), *arguments]) == 2
    error = capsys.readouterr().err
    assert (
        f"has 10 hours since the gap that ends at {load.index[490]}; a forecast needs 24" in error
    )
    assert not (tmp_path / "next.csv").exists()


def test_a_forecast_is_what_the_test_part_would_get(trained):
    """The last forecast of a test window, made from the same hours, with the trained scale."""
    cpu = torch.device("cpu")
    checkpoint = load_checkpoint(trained / "best.pt")
    (region,) = synthetic_regions(["CITY"])
    network = checkpoint.network("gatedrnn")
    experiment = commands.prepare(
        [region], checkpoint.protocol, commands.sizes_of(checkpoint), cpu, checkpoint.scales
    )
    windows, shape = experiment.windows, checkpoint.shape
    told = forecast(network, windows, windows.test)[shape.told - 1]
    scale = checkpoint.scales["CITY"]
    end = int(windows.test.origins(shape)[shape.told - 1]) + 1
    past = Region("CITY", region.load.iloc[:end])
    table = predict(network, past, checkpoint.protocol, shape, scale)
    expected = scale.low + scale.span * told.double().numpy()
    np.testing.assert_allclose(table.to_numpy(), np.sort(expected, 1), rtol=1e-5)


# --- options


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--epochs", "0"], "expected a whole number from 1, not '0'"),
        (["--batch-size", "2.5"], "expected a whole number from 1, not '2.5'"),
        (["--dropout", "1"], "expected a probability from 0 to below 1, not '1'"),
        (["--lr", "nan"], "expected a positive number, not 'nan'"),
        (["--seeds", "0,-1"], "expected a whole number from 0, not '-1'"),
        (["--model", "rnn"], "invalid choice: 'rnn'"),
        (["bake"], "invalid choice: 'bake'"),
    ],
)
def test_bad_options_exit_with_code_2(capsys, arguments, message):
    with pytest.raises(SystemExit) as exit_info:
        main(arguments)
    assert exit_info.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--csv", "x.csv", "--regions", "A"], "it goes with neither --data nor --regions"),
        (["forecast", "--data", "pjm"], "say which with --region"),
        (["evaluate", "none.pt"], "none.pt cannot be read: No such file"),
        (["--regions", "CITY,MARS"], "unknown region 'MARS'"),
        (["--lookback", "20000"], "too few to train on windows of 20167 hours"),
    ],
)
def test_options_that_do_not_go_together_get_one_sentence(capsys, arguments, message):
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


@pytest.mark.parametrize("command", [[], ["compare"], ["train"], ["evaluate"], ["forecast"]])
def test_help_teaches(capsys, command):
    with pytest.raises(SystemExit) as exit_info:
        main([*command, "--help"])
    assert exit_info.value.code == 0
    text = capsys.readouterr().out
    named = {
        "compare": ["--data", "--csv", "--protocol", "--backend", "--seeds", "--out", "--horizon"],
        "train": ["--resume", "--protocol", "--seed", "--out", "--without"],
        "evaluate": ["checkpoint", "--on", "--regions"],
        "forecast": ["CSV", "--checkpoint", "--timezone", "--time", "--value"],
        "": ["compare", "train", "evaluate", "forecast", "torchrun", "SYNTHETIC", "article"],
    }["".join(command)]
    assert all(word in text for word in named)
