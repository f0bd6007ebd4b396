"""Training, forecasting and measuring one model."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from tqdm import tqdm

from .model import Forecaster, ModelConfig
from .windows import FEATURES, Windows

TEST_BATCH = 1024  # no gradients are kept: large batches are only faster


@dataclass(frozen=True)
class TrainConfig:
    """How to train; `max_windows` bounds the windows drawn in each epoch."""

    epochs: int
    batch_size: int
    lr: float
    seed: int
    max_windows: int | None = None


@dataclass(frozen=True)
class Result:
    """A trained model's numbers: mean squared error of scaled load for every epoch and batch."""

    label: str
    parameters: int
    losses: list[list[float]]
    seconds: float  # of training, all epochs
    windows: int  # trained on, all epochs
    smape: float  # on the test windows, %

    @property
    def epoch_losses(self) -> list[float]:
        return [sum(batches) / len(batches) for batches in self.losses]


def smape(forecast: Tensor, actual: Tensor) -> float:
    """Symmetric mean absolute percentage error, in percent, from 0 to 200:

    100 / n * sum of |F - A| / ((|A| + |F|) / 2), where 0 / 0 counts as no error.
    """
    error = (forecast - actual).abs()
    size = (forecast.abs() + actual.abs()) / 2
    return 100 * torch.where(error > 0, error / size, 0.0).mean().item()


def train_and_test(cell: str, data: Windows, model: ModelConfig, config: TrainConfig) -> Result:
    """Train a `cell` network ("gru" or "lstm") from `config.seed` and measure it once."""
    label = cell.upper()
    torch.manual_seed(config.seed)  # initial weights and dropout
    network = Forecaster(cell, model, len(FEATURES))
    began = time.perf_counter()
    losses = train(network, data, config, label)
    seconds = time.perf_counter() - began
    return Result(
        label=label,
        parameters=sum(p.numel() for p in network.parameters()),
        losses=losses,
        seconds=seconds,
        windows=config.epochs * windows_per_epoch(data, config),
        smape=smape(forecast(network, data, label), data.actual),
    )


def windows_per_epoch(data: Windows, config: TrainConfig) -> int:
    return min(len(data.train), config.max_windows or len(data.train))


def train(network: nn.Module, data: Windows, config: TrainConfig, label: str) -> list[list[float]]:
    """Adam on the mean squared error; the loss of every batch, epoch by epoch."""
    optimizer = torch.optim.Adam(network.parameters(), lr=config.lr)
    # A generator of its own: every model and backend meets the same batches in the same order.
    shuffle = torch.Generator().manual_seed(config.seed)
    count = windows_per_epoch(data, config)
    losses: list[list[float]] = []
    network.train()
    for epoch in range(1, config.epochs + 1):
        drawn = data.train[torch.randperm(len(data.train), generator=shuffle)[:count]]
        epoch_losses: list[float] = []
        title = f"{label} epoch {epoch}/{config.epochs}"
        with tqdm(total=count, desc=title, unit=" windows", mininterval=0.5) as bar:
            for starts in drawn.split(config.batch_size):
                loss = nn.functional.mse_loss(network(data.inputs(starts)), data.targets(starts))
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                epoch_losses.append(loss.item())
                bar.set_postfix(loss=f"{sum(epoch_losses) / len(epoch_losses):.6f}", refresh=False)
                bar.update(len(starts))
        losses.append(epoch_losses)
    return losses


@torch.no_grad()
def forecast(network: nn.Module, data: Windows, label: str) -> Tensor:
    """(m,) megawatts for every test window."""
    network.eval()
    batches = tqdm(data.test.split(TEST_BATCH), desc=f"{label} test", unit=" batches", leave=False)
    return data.megawatts(torch.cat([network(data.inputs(starts)) for starts in batches]))
