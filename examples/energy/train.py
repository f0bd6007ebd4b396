"""Training one model: the same loop for both protocols, one process or several."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from .distributed import World
from .metrics import Loss
from .model import Forecaster, State
from .protocols import Protocol
from .windows import Part, Windows

CLIP = 1.0  # of the gradient's norm: a step far off would undo many
WARM_UP = 0.05  # share of the steps
TESTED_HOURS = 65_536  # read in one batch without gradients


@dataclass(frozen=True)
class TrainConfig:
    """How to train; an epoch draws `windows` of them, or all if None."""

    epochs: int
    batch_size: int
    lr: float
    seed: int
    windows: int | None = None


@dataclass
class History:
    """What happened in each epoch that was completed."""

    losses: list[list[float]] = field(default_factory=list)  # of every batch
    validation: list[float] = field(default_factory=list)  # none without a validation part
    seconds: list[float] = field(default_factory=list)  # of training alone

    @property
    def epochs(self) -> int:
        return len(self.losses)

    @property
    def epoch_losses(self) -> list[float]:
        return [sum(batches) / len(batches) for batches in self.losses]

    @property
    def best(self) -> int:
        """The epoch, from 1, whose weights are kept: the best by validation, else the last."""
        return int(np.argmin(self.validation)) + 1 if self.validation else self.epochs


def windows_per_epoch(
    windows: Windows, protocol: Protocol, config: TrainConfig, processes: int = 1
) -> int:
    count = min(len(windows.train), config.windows or len(windows.train))
    rest = count % config.batch_size
    if rest < count and (protocol.drops_last or rest < processes):
        count -= rest
    return count


def random_stream(*place: int) -> int:
    """A seed of its own for each place, so that no state of a generator need be kept."""
    return int(np.random.SeedSequence(place).generate_state(1)[0])


@dataclass(frozen=True)
class Training:
    """One network and all that its epochs need."""

    network: Forecaster
    optimizer: torch.optim.Optimizer
    windows: Windows
    protocol: Protocol
    config: TrainConfig
    loss: Loss
    label: str
    world: World


def train(task: Training, history: History, completed: Callable[[History], None]) -> None:
    """The epochs that `history` lacks; `completed` is told after each."""
    parallel = task.world.wrap(task.network)
    for epoch in range(history.epochs, task.config.epochs):
        began = time.perf_counter()
        losses = run_epoch(task, parallel, epoch)
        seconds = time.perf_counter() - began
        if task.world.writes and len(task.windows.validation.starts):
            history.validation.append(validate(task.network, task.windows, task.loss))
        history.losses.append(losses)
        history.seconds.append(seconds)
        if task.world.writes:
            completed(history)


def run_epoch(task: Training, parallel: nn.Module, epoch: int) -> list[float]:
    """The loss of every batch, over all processes."""
    protocol, config, world = task.protocol, task.config, task.world
    count = windows_per_epoch(task.windows, protocol, config, world.size)
    steps = math.ceil(count / config.batch_size)
    torch.manual_seed(random_stream(config.seed, epoch, world.rank))  # dropout's masks
    state: State | None = None
    losses: list[Tensor] = []
    task.network.train()
    title = f"{task.label} epoch {epoch + 1}/{config.epochs}"
    with Progress(title, count, not world.writes) as progress:
        for batch in draw(task, epoch, count).split(config.batch_size):
            if protocol.cosine:
                done = (epoch * steps + len(losses)) / (config.epochs * steps)
                set_lr(task.optimizer, config.lr * step_factor(done))
            mine = world.share(batch)
            forecast, state = parallel(task.windows.inputs(mine), state)
            state = detached(state) if protocol.carries_state else None
            errors = task.loss(forecast, task.windows.targets(mine))
            # Gradients are averaged over processes, of which one may have a window more.
            share = errors.sum() * len(mine) / len(batch) / errors.numel()
            task.optimizer.zero_grad()
            (share * world.size).backward()
            if protocol.clips:
                nn.utils.clip_grad_norm_(task.network.parameters(), CLIP)
            task.optimizer.step()
            losses.append(share.detach())
            progress.update(len(batch), losses)
    return world.total(torch.stack(losses)).tolist()


def draw(task: Training, epoch: int, count: int) -> Tensor:
    """(count,): the windows of an epoch, the same for every model, backend and process."""
    shuffle = torch.Generator().manual_seed(random_stream(task.config.seed, epoch))
    every = task.windows.train
    return every[torch.randperm(len(every), generator=shuffle)[:count].to(every.device)]


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = lr


def step_factor(done: float) -> float:
    """Of the step size: up from nothing in the first twentieth, then down along a cosine."""
    return min(1.0, (done + 1e-3) / WARM_UP) * 0.5 * (1 + math.cos(math.pi * done))


def detached(state: State) -> State:
    if isinstance(state, Tensor):
        return state.detach()
    return state[0].detach(), state[1].detach()


class Progress:
    """A bar with the epoch's mean loss so far; the device is asked for it when the bar is drawn."""

    def __init__(self, title: str, total: int, silent: bool) -> None:
        self.bar = tqdm(total=total, desc=title, unit=" windows", mininterval=0.5, disable=silent)

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *exception: object) -> None:
        self.bar.close()

    def update(self, windows: int, losses: list[Tensor]) -> None:
        drawn = self.bar.update(windows)
        if drawn or (not self.bar.disable and self.bar.n == self.bar.total):
            self.bar.set_postfix(loss=f"{torch.stack(losses).mean().item():.6f}")


@torch.no_grad()
def forecast(network: Forecaster, windows: Windows, part: Part) -> Tensor:
    """(n, horizon, outputs): scaled forecasts after `part.origins`, in their order."""
    network.eval()
    size = max(1, TESTED_HOURS // windows.shape.reads)
    forecasts = [network(windows.inputs(starts))[0] for starts in part.starts.split(size)]
    return torch.cat(forecasts)[part.counts(windows.shape)]


@torch.no_grad()
def validate(network: Forecaster, windows: Windows, loss: Loss) -> float:
    part = windows.validation
    origins = part.origins(windows.shape)
    loads = windows.hours[:, 0].unfold(0, windows.shape.horizon, 1)
    return loss(forecast(network, windows, part), loads[origins + 1]).mean().item()
