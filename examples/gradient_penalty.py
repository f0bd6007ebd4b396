"""A critic of sequences whose slope is held at 1: the gradient penalty of WGAN-GP through an LSTM.

The critic scores noisy sine waves high and random walks low. Its loss contains the gradient of its
own score with respect to the input, so that training takes second derivatives of the recurrent
layer, which cuDNN's lack. Wasserstein GANs with gradient penalty: Gulrajani et al. 2017,
arXiv:1704.00028.

    python -m examples.gradient_penalty --steps 200
"""

import argparse

import torch
from torch import Tensor, nn

import gatedrnn

LENGTH, PENALTY = 32, 10.0


class Critic(nn.Module):
    """Sequences (B, T, 1) -> scores (B,)."""

    def __init__(self, hidden: int = 32) -> None:
        super().__init__()
        self.rnn = gatedrnn.LSTM(1, hidden, batch_first=True)
        self.head = nn.Linear(hidden, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(x)[0].mean(1)).squeeze(-1)


def waves(batch: int) -> Tensor:
    """Sine waves of random phase and frequency, with noise: (B, T, 1)."""
    time = torch.arange(LENGTH) * (0.3 + 0.4 * torch.rand(batch, 1))
    return (torch.sin(time + 6.28 * torch.rand(batch, 1)) + 0.1 * torch.randn(batch, LENGTH))[
        ..., None
    ]


def walks(batch: int) -> Tensor:
    """Random walks of about the same size: (B, T, 1)."""
    return 0.2 * torch.randn(batch, LENGTH, 1).cumsum(1)


def slopes(critic: nn.Module, x: Tensor) -> Tensor:
    """The norm of the score's gradient at each sequence (B,), itself differentiable."""
    x = x.detach().requires_grad_()
    (gradient,) = torch.autograd.grad(critic(x).sum(), x, create_graph=True)
    return gradient.flatten(1).norm(dim=1)


def train(steps: int, batch: int = 64, report: int = 25) -> tuple[float, float]:
    """Trains a critic; returns how far apart its scores are and the mean slope, at the end."""
    critic = Critic()
    optimizer = torch.optim.Adam(critic.parameters(), lr=5e-3)
    for step in range(1, steps + 1):
        real, fake = waves(batch), walks(batch)
        mix = torch.rand(batch, 1, 1)
        slope = slopes(critic, mix * real + (1 - mix) * fake)
        distance = critic(real).mean() - critic(fake).mean()
        loss = -distance + PENALTY * (slope - 1).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % report == 0:
            print(f"step {step:4}: distance {distance:6.3f}, slope {slope.mean():.3f}")
    return distance.item(), slope.mean().item()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=200)
    torch.manual_seed(0)
    train(parser.parse_args().steps)
