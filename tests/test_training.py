"""Training with our modules follows training with torch.nn, step by step, from the same seed."""

import pytest
import torch
from equivalence import torch_threads
from torch import nn

import gatedrnn

STEPS = 30
# Rounding differs, and each step carries it on. torch.nn against torch.nn with every initial weight
# moved by at most one rounding drifts apart by up to 2e-6 of the loss over these steps; ten times
# that still shows one wrong mask or gradient. A step of Adam has the size of its learning rate even
# where the gradient is little but rounding, so weights get 2 % of one such step.
LOSS, WEIGHT = 2e-5, 2e-4


class Forecaster(nn.Module):
    """Recurrent modules one after another, then one number from the last step."""

    def __init__(self, recurrent, width):
        super().__init__()
        self.recurrent = nn.ModuleList(recurrent)
        self.head = nn.Linear(width, 1)

    def forward(self, x):
        for module in self.recurrent:
            x, _ = module(x)
        return self.head(x[:, -1])


def gru(source):
    return Forecaster([source.GRU(3, 24, batch_first=True)], 24)


def lstm(source):
    return Forecaster([source.LSTM(3, 24, batch_first=True)], 24)


def both_with_dropout(source):
    options = {"num_layers": 2, "batch_first": True, "bidirectional": True, "dropout": 0.2}
    return Forecaster([source.GRU(3, 16, **options), source.LSTM(32, 12, **options)], 24)


def sgd(model):
    return torch.optim.SGD(model.parameters(), lr=0.2, momentum=0.9)


def adam(model):
    return torch.optim.Adam(model.parameters(), lr=0.01)


def task():
    """Noisy waves of several periods; the target is the next value."""
    t = torch.arange(20.0) + 40 * torch.rand(64, 1)
    waves = torch.stack([torch.sin(t / period) for period in (2.0, 3.0, 5.0)], dim=2)
    return waves[:, :-1] + 0.05 * torch.randn(64, 19, 3), waves[:, -1].sum(dim=1, keepdim=True)


def train(build, optimise, source):
    torch.manual_seed(5)
    inputs, targets = task()
    model = build(source)
    optimiser = optimise(model)
    losses = []
    for step in range(STEPS):
        batch = slice(32 * (step % 2), 32 * (step % 2) + 32)
        optimiser.zero_grad()
        loss = nn.functional.mse_loss(model(inputs[batch]), targets[batch])
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    return torch.tensor(losses), model


@pytest.mark.parametrize(
    ("build", "optimise"),
    [(gru, sgd), (lstm, adam), (both_with_dropout, sgd), (both_with_dropout, adam)],
    ids=["gru-sgd", "lstm-adam", "both-bidirectional-dropout-sgd",
         "both-bidirectional-dropout-adam"],
)
def test_follows_torch(build, optimise):
    with torch_threads(1):
        theirs, their_model = train(build, optimise, nn)
        ours, our_model = train(build, optimise, gatedrnn)
    assert theirs[-4:].mean() < 0.5 * theirs[:4].mean(), "the task is not being learnt"
    torch.testing.assert_close(ours, theirs, rtol=LOSS, atol=0)
    weights = our_model.state_dict(), their_model.state_dict()
    torch.testing.assert_close(*weights, rtol=0, atol=WEIGHT)
