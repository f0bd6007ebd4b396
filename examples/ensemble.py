"""An ensemble of GRUs, trained at once by torch.func.vmap over their stacked parameters.

Every member forecasts the next value of a noisy wave from its own initial weights and its own
batches. Their mean forecasts better than they do one by one, and their spread says how sure they
are.

    python -m examples.ensemble --members 8 --steps 150
"""

import argparse

import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap

import gatedrnn

LENGTH, NOISE = 24, 0.3


class Forecaster(nn.Module):
    """Sequences (B, T, 1) -> the next value (B,)."""

    def __init__(self, hidden: int = 16) -> None:
        super().__init__()
        self.rnn = gatedrnn.GRU(1, hidden, batch_first=True)
        self.head = nn.Linear(hidden, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(x)[1][-1]).squeeze(-1)


def data(*shape: int) -> tuple[Tensor, Tensor]:
    """Noisy waves (*shape, T, 1) and the value that follows each, without noise (*shape)."""
    phase, speed = 6.28 * torch.rand(*shape, 1), 0.2 + 0.4 * torch.rand(*shape, 1)
    wave = torch.sin(phase + speed * torch.arange(LENGTH + 1))
    noisy = wave[..., :-1] + NOISE * torch.randn(*shape, LENGTH)
    return noisy[..., None], wave[..., -1]


def train(members: int, steps: int, batch: int = 32) -> tuple[float, float]:
    """Trains the ensemble; returns the squared error of its mean and of a member, on average."""
    models = [Forecaster() for _ in range(members)]
    parameters, buffers = stack_module_state(models)
    skeleton = Forecaster().to("meta")

    def forecast(parameters: dict[str, Tensor], buffers: dict[str, Tensor], x: Tensor) -> Tensor:
        return functional_call(skeleton, (parameters, buffers), (x,))

    optimizer = torch.optim.Adam(parameters.values(), lr=1e-2)
    for _ in range(steps):
        x, target = data(members, batch)  # a batch for each member
        # Each member's parameters meet its own loss alone: the sum's gradients are theirs.
        error = vmap(forecast)(parameters, buffers, x) - target
        loss = error.square().mean(1).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        x, target = data(500)  # one set for all
        forecasts = vmap(forecast, (0, 0, None))(parameters, buffers, x)
    together = (forecasts.mean(0) - target).square().mean().item()
    single = (forecasts - target).square().mean().item()
    print(f"squared error of a member {single:.4f}, of the mean of {members} {together:.4f}")
    print(f"spread of the members {forecasts.std(0).mean():.4f}")
    return together, single


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--members", type=int, default=8)
    parser.add_argument("--steps", type=int, default=150)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    train(arguments.members, arguments.steps)
