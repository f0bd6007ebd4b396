"""The energy example's training: both protocols, both backends, kept epochs, several processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from examples.energy import train as training
from examples.energy.baselines import autoregress
from examples.energy.checkpoint import BEST, LAST, load_checkpoint
from examples.energy.cli import main
from examples.energy.distributed import World
from examples.energy.errors import DataError
from examples.energy.experiment import Experiment, fit, prepare
from examples.energy.model import CELLS, Forecaster
from examples.energy.protocols import ARTICLE, CLEAN, Sizes
from examples.energy.synthetic import synthetic_regions
from examples.energy.train import TrainConfig, forecast, windows_per_epoch
from examples.energy.windows import Windows

ROOT = Path(__file__).resolve().parent.parent
CPU = torch.device("cpu")
ARTICLE_SIZES = Sizes(24, 1, 1, 8, 2, 0.2, 2, 64, 0.005, 640)
CLEAN_SIZES = Sizes(30, 20, 4, 8, 2, 0.0, 3, 16, 0.01, 96)


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def clean() -> Experiment:
    return prepare(synthetic_regions(["NORTH", "CITY"], hours=1200), CLEAN, CLEAN_SIZES, CPU)


@pytest.fixture(scope="module")
def article() -> Experiment:
    return prepare(synthetic_regions(["NORTH", "CITY"], hours=1200), ARTICLE, ARTICLE_SIZES, CPU)


# --- the loop


@pytest.mark.parametrize("cell", CELLS)
def test_training_lowers_the_loss(cell, clean, article):
    for experiment in (
        replace(article, sizes=replace(ARTICLE_SIZES, epochs=4)),
        # From random weights: the autoregression would leave little to learn.
        replace(
            clean,
            protocol=replace(CLEAN, autoregression=False),
            model=replace(clean.model, autoregression=False),
        ),
    ):
        history = fit(experiment, cell, "gatedrnn", 0, World()).history
        assert history.epoch_losses[-1] < 0.85 * history.epoch_losses[0]


@pytest.mark.parametrize("cell", CELLS)
def test_both_backends_follow_the_same_path(cell, clean, article):
    """Same seed: same weights, batches and dropout masks, hence the same 100 losses."""
    for experiment in (clean, article):
        sizes = replace(experiment.sizes, epochs=5, windows=20 * experiment.sizes.batch_size)
        experiment = replace(experiment, sizes=sizes)
        ours, theirs = (
            fit(experiment, cell, backend, 3, World()) for backend in ("gatedrnn", "torch")
        )
        assert len(ours.losses) == 100
        np.testing.assert_allclose(ours.losses, theirs.losses, rtol=1e-5)
        assert ours.parameters == theirs.parameters


class Recorder(Windows):
    """Windows that remember which batches were told."""

    def targets(self, starts):
        drawn.append(starts)
        return super().targets(starts)


drawn: list[torch.Tensor] = []


@pytest.mark.parametrize("cell", CELLS)
def test_the_article_protocol_is_the_articles_loop(cell, article):
    """Written out with torch.nn: the state goes from batch to batch, from zeros in each epoch."""
    drawn.clear()
    sizes = replace(ARTICLE_SIZES, dropout=0.0)
    experiment = replace(
        article,
        windows=Recorder(**vars(article.windows)),
        model=replace(article.model, dropout=0.0),
        sizes=sizes,
    )
    losses = fit(experiment, cell, "torch", 5, World()).history.losses
    torch.manual_seed(5)
    layers = getattr(nn, CELLS[cell])(5, 8, 2, batch_first=True)
    head = nn.Linear(8, 1)
    optimizer = torch.optim.Adam([*layers.parameters(), *head.parameters()], lr=sizes.lr)
    hours = article.windows.hours
    for epoch in range(2):
        state = None
        for number, starts in enumerate(drawn[epoch * 10 : epoch * 10 + 10]):
            x = torch.stack([hours[s : s + 24] for s in starts.tolist()])
            y, state = layers(x, state)
            state = state.detach() if cell == "gru" else tuple(s.detach() for s in state)
            loss = (head(torch.relu(y[:, -1]))[:, 0] - hours[starts + 24, 0]).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            assert losses[epoch][number] == pytest.approx(loss.item(), rel=1e-5)


def test_an_epoch_draws_every_training_window_once(article):
    drawn.clear()
    sizes = replace(ARTICLE_SIZES, epochs=1, windows=None, batch_size=500)
    recorded = Recorder(**vars(article.windows))
    fit(replace(article, windows=recorded, sizes=sizes), "gru", "torch", 0, World())
    told = torch.cat(drawn)
    assert len(article.windows.train) == 2130  # of which the last 130 are dropped
    assert len(told) == len(told.unique()) == 2000
    assert drawn[0].tolist() != article.windows.train[:500].tolist()


def test_the_last_batch_is_dropped_where_the_article_does_or_processes_are_more(article, clean):
    config = TrainConfig(1, 100, 0.1, 0, 203)
    assert windows_per_epoch(article.windows, ARTICLE, config) == 200
    assert windows_per_epoch(clean.windows, CLEAN, config) == 203
    assert windows_per_epoch(clean.windows, CLEAN, config, processes=3) == 203
    assert windows_per_epoch(clean.windows, CLEAN, config, processes=4) == 200
    assert windows_per_epoch(article.windows, ARTICLE, replace(config, windows=7)) == 7


# --- forecasts


def test_before_training_the_clean_network_is_the_autoregression(clean):
    network = Forecaster("gru", clean.model, "gatedrnn")
    network.start_from(*clean.linear)
    part = clean.windows.test
    told = forecast(network, clean.windows, part)
    expected = autoregress(clean.windows, part.origins(clean.windows.shape), clean.linear)
    for quantile in range(3):
        torch.testing.assert_close(told[..., quantile], expected)


def test_forecasts_know_neither_their_neighbours_nor_later_hours(clean):
    torch.manual_seed(0)
    network = Forecaster("lstm", clean.model, "gatedrnn").eval()
    windows, part = clean.windows, clean.windows.test
    told = forecast(network, windows, part)
    later = windows.hours.clone()
    # The first window's tenth forecast is made after the hour with this number.
    last = int(part.starts[0]) + windows.shape.lookback - 1 + 9
    later[last + 1 :] += 1
    changed = forecast(network, replace(windows, hours=later), part)
    assert torch.equal(changed[:10], told[:10])
    assert not torch.isclose(changed[10], told[10]).any()
    start = part.starts[1:2]
    alone, _ = network(windows.inputs(start))
    torch.testing.assert_close(told[windows.shape.told], alone[0, 0])


# --- what is kept


def test_the_best_epoch_by_validation_is_kept(clean, tmp_path, monkeypatch):
    validations = iter([3.0, 1.0, 2.0])
    monkeypatch.setattr(training, "validate", lambda *_: next(validations))
    trained = fit(clean, "gru", "gatedrnn", 0, World(), tmp_path)
    best, last = (load_checkpoint(tmp_path / name) for name in (BEST, LAST))
    assert trained.history.best == best.history.epochs == 2 and last.history.epochs == 3
    for name, weight in trained.network.state_dict().items():
        assert torch.equal(weight, best.weights[name])
    assert not torch.equal(last.weights["head.weight"], best.weights["head.weight"])


def interrupt_after(steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C in the middle of an epoch."""
    update, count = training.Progress.update, iter(range(10**6))

    def interrupting(*arguments):
        if next(count) == steps:
            raise KeyboardInterrupt
        update(*arguments)

    monkeypatch.setattr(training.Progress, "update", interrupting)


@pytest.mark.parametrize("protocol", ["clean", "article"])
def test_an_interrupted_training_goes_on_as_if_nothing_had_been(
    protocol, clean, article, tmp_path, monkeypatch
):
    experiment = clean if protocol == "clean" else article
    whole = fit(experiment, "lstm", "gatedrnn", 1, World())
    with monkeypatch.context() as patch:
        interrupt_after(len(whole.history.losses[0]) + 3, patch)
        stopped = fit(experiment, "lstm", "gatedrnn", 1, World(), tmp_path)
    assert stopped.interrupted and stopped.history.epochs == 1
    resumed = fit(experiment, "lstm", "gatedrnn", 1, World(), tmp_path, resume=True)
    assert not resumed.interrupted
    assert resumed.history.losses == whole.history.losses
    assert resumed.history.validation == whole.history.validation
    for name, weight in whole.network.state_dict().items():
        assert torch.equal(weight, resumed.network.state_dict()[name])


def test_an_interruption_in_the_first_epoch_leaves_nothing(clean, tmp_path, monkeypatch):
    interrupt_after(2, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        fit(clean, "gru", "gatedrnn", 0, World(), tmp_path)
    assert not list(tmp_path.iterdir())


def test_resuming_asks_for_the_same_settings_and_for_a_checkpoint(clean, tmp_path):
    with pytest.raises(DataError, match=r"last\.pt cannot be read"):
        fit(clean, "gru", "gatedrnn", 0, World(), tmp_path, resume=True)
    short = replace(clean, sizes=replace(CLEAN_SIZES, epochs=1))
    fit(short, "gru", "gatedrnn", 0, World(), tmp_path)
    for cell, seed, message in (("lstm", 0, "cell gru, not lstm"), ("gru", 1, "seed 0, not 1")):
        with pytest.raises(DataError, match=message):
            fit(short, cell, "gatedrnn", seed, World(), tmp_path, resume=True)
    with pytest.raises(DataError, match="epochs 1, not 3"):
        fit(clean, "gru", "gatedrnn", 0, World(), tmp_path, resume=True)


def test_a_file_that_is_no_checkpoint_is_refused(tmp_path):
    path = tmp_path / "x.pt"
    for content in (b"", b"nothing", b"PK\x03\x04 cut off"):
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"x\.pt is not a checkpoint"):
            load_checkpoint(path)
    torch.save({"weights": {}}, path)
    with pytest.raises(DataError, match=r"x\.pt is not a checkpoint"):
        load_checkpoint(path)


def test_a_failing_write_leaves_the_file_before_it(clean, tmp_path, monkeypatch):
    short = replace(clean, sizes=replace(CLEAN_SIZES, epochs=1))
    fit(short, "gru", "gatedrnn", 0, World(), tmp_path)
    before = (tmp_path / BEST).read_bytes()

    def fail(fields, path):
        path.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(OSError, match="disk full"):
        fit(short, "gru", "gatedrnn", 1, World(), tmp_path)
    assert (tmp_path / BEST).read_bytes() == before
    assert {path.name for path in tmp_path.iterdir()} == {BEST, LAST}


# --- several processes


def test_two_processes_lose_what_one_loses_and_one_of_them_writes(tmp_path):
    """The same command under torchrun, with an odd number of windows in the last batch."""
    command = (
        "train --regions CITY --lookback 24 --told 24 --horizon 3 --hidden-size 6 --epochs 2 "
        "--windows 75 --batch-size 16 --device cpu --threads 1 --out"
    ).split()
    assert main([*command, str(tmp_path / "one")]) == 0
    launcher = "-m torch.distributed.run --standalone --nproc-per-node=2 -m examples.energy".split()
    done = subprocess.run(
        [sys.executable, *launcher, *command, str(tmp_path / "two")],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("same hour last week") == 1
    assert "GRU epoch 2/2: 100%" in done.stderr
    results = {
        name: json.loads((tmp_path / name / "results.json").read_text()) for name in ("one", "two")
    }
    one, two = (results[name]["models"][0] for name in ("one", "two"))
    np.testing.assert_allclose(two["epoch_losses"], one["epoch_losses"], rtol=1e-5)
    np.testing.assert_allclose(two["validation"], one["validation"], rtol=1e-5)
    assert two["test"]["next_hour"] == pytest.approx(one["test"]["next_hour"], rel=1e-4)
    for name in ("one", "two"):
        names = {path.name for path in (tmp_path / name).iterdir()}
        pictures = {"panels.png", "losses.png", "errors.png"}
        assert names == {BEST, LAST, "results.json", *pictures}


def test_a_share_of_a_batch_keeps_its_positions():
    batch = torch.arange(7)
    assert [World(rank, 3).share(batch).tolist() for rank in range(3)] == [
        [0, 3, 6],
        [1, 4],
        [2, 5],
    ]
