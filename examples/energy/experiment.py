"""One experiment: windows by a protocol, a network trained on them, and what is kept of it."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from .baselines import Autoregression, fit_autoregression, level_weights
from .checkpoint import BEST, LAST, Checkpoint, load_checkpoint
from .data import Region
from .distributed import World
from .errors import DataError
from .metrics import Loss
from .model import BACKENDS, Forecaster, ModelConfig
from .protocols import Protocol, Sizes
from .train import History, TrainConfig, Training, train, windows_per_epoch
from .windows import Scale, Shape, Windows, make_windows


@dataclass(frozen=True)
class Experiment:
    """What all models of a comparison have in common."""

    protocol: Protocol
    windows: Windows  # on the device
    linear: Autoregression  # a baseline, and where the clean protocol's networks start
    model: ModelConfig
    sizes: Sizes

    def config(self, seed: int) -> TrainConfig:
        sizes = self.sizes
        return TrainConfig(sizes.epochs, sizes.batch_size, sizes.lr, seed, sizes.windows)


@dataclass(frozen=True)
class Trained:
    """A network with the weights of its best epoch."""

    cell: str
    backend: str
    seed: int
    network: Forecaster
    history: History
    windows: int  # trained on in each epoch
    interrupted: bool

    @property
    def label(self) -> str:
        return self.cell.upper()

    @property
    def name(self) -> str:
        return f"{self.label} ({BACKENDS[self.backend]})"

    @property
    def losses(self) -> list[float]:
        """Of every batch, all epochs."""
        return [loss for epoch in self.history.losses for loss in epoch]

    @property
    def parameters(self) -> int:
        return sum(p.numel() for p in self.network.parameters())


def prepare(
    regions: Sequence[Region],
    protocol: Protocol,
    sizes: Sizes,
    device: torch.device,
    scales: Mapping[str, Scale] | None = None,
) -> Experiment:
    shape = Shape(sizes.lookback, sizes.told, sizes.horizon)
    windows = make_windows(regions, protocol, shape, scales)
    model = ModelConfig(
        windows.hours.shape[1],
        sizes.hidden_size,
        sizes.layers,
        sizes.dropout,
        sizes.lookback,
        sizes.horizon,
        protocol.quantiles,
        protocol.autoregression,
        protocol.relu,
    )
    windows = windows.to(device)
    return Experiment(protocol, windows, fit_autoregression(windows), model, sizes)


def fit(
    experiment: Experiment,
    cell: str,
    backend: str,
    seed: int,
    world: World,
    folder: Path | None = None,
    resume: bool = False,
) -> Trained:
    """Train one network; the best epoch and the last are kept in `folder`, where one is named."""
    protocol, windows, config = experiment.protocol, experiment.windows, experiment.config(seed)
    device = windows.hours.device
    torch.manual_seed(seed)
    network = Forecaster(cell, experiment.model, backend).to(device)
    if protocol.autoregression:
        network.start_from(*experiment.linear)
    weights = level_weights(windows, experiment.linear) if protocol.quantiles else None
    loss = Loss(protocol.quantiles, weights, device)
    optimizer = torch.optim.Adam(network.parameters(), lr=config.lr)
    history = History()
    best = network.state_dict()
    if resume and folder is not None:
        last = load_checkpoint(folder / LAST)
        require_same(last, experiment, cell, config, folder / LAST)
        network.load_state_dict(last.weights)
        optimizer.load_state_dict(last.optimizer)
        history = last.history
        best = load_checkpoint(folder / BEST).weights

    def completed(history: History) -> None:
        nonlocal best
        checkpoint = Checkpoint(
            cell,
            protocol,
            experiment.model,
            windows.shape,
            config,
            windows.scales,
            history,
            network.state_dict(),
            optimizer.state_dict(),
        )
        if history.best == history.epochs:
            best = copy.deepcopy(network.state_dict())
            if folder is not None:
                checkpoint.save(folder / BEST)
        if folder is not None:
            checkpoint.save(folder / LAST)

    task = Training(network, optimizer, windows, protocol, config, loss, cell.upper(), world)
    interrupted = False
    try:
        train(task, history, completed)
    except KeyboardInterrupt:
        if world.size > 1 or not history.epochs:
            raise
        interrupted = True
    network.load_state_dict(best)
    count = windows_per_epoch(windows, protocol, config, world.size)
    return Trained(cell, backend, seed, network, history, count, interrupted)


def require_same(
    last: Checkpoint, experiment: Experiment, cell: str, config: TrainConfig, path: Path
) -> None:
    """Going on with other settings would be neither the old run nor a new one."""
    before = {"cell": last.cell} | asdict(last.protocol)
    before |= asdict(last.model) | asdict(last.shape) | asdict(last.config)
    now = {"cell": cell} | asdict(experiment.protocol)
    now |= asdict(experiment.model) | asdict(experiment.windows.shape) | asdict(config)
    for name, value in before.items():
        if now[name] != value:
            raise DataError(f"{path} was trained with {name} {value}, not {now[name]}")
    if set(last.scales) != set(experiment.windows.scales):
        raise DataError(f"{path} was trained on the regions {', '.join(sorted(last.scales))}")
