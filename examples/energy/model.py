"""The forecaster: recurrent layers, one linear map, and beside them a linear autoregression."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module

import torch
from torch import Tensor, nn

BACKENDS = {"gatedrnn": "gatedrnn", "torch": "torch.nn"}
CELLS = {"gru": "GRU", "lstm": "LSTM"}

State = Tensor | tuple[Tensor, Tensor]


@dataclass(frozen=True)
class ModelConfig:
    """Size of the network; the same for both cells."""

    features: int
    hidden_size: int
    layers: int
    dropout: float
    lookback: int
    horizon: int = 1
    quantiles: tuple[float, ...] = ()  # none: the mean is forecast, by squared error
    autoregression: bool = False
    relu: bool = False


class Forecaster(nn.Module):
    """(B, reads, F) scaled hours -> (B, told, horizon, quantiles or 1) scaled loads."""

    def __init__(self, cell: str, config: ModelConfig, backend: str) -> None:
        super().__init__()
        self.config = config
        layer = getattr(import_module(BACKENDS[backend]), CELLS[cell])
        self.rnn = layer(
            config.features,
            config.hidden_size,
            num_layers=config.layers,
            batch_first=True,
            # Dropout stands between layers: with one layer there is nothing to drop.
            dropout=config.dropout if config.layers > 1 else 0.0,
        )
        self.outputs = (config.horizon, max(1, len(config.quantiles)))
        self.head = nn.Linear(config.hidden_size, self.outputs[0] * self.outputs[1])
        if config.autoregression:
            self.linear = nn.Linear(config.lookback, config.horizon)

    def forward(self, x: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        y, state = self.rnn(x, state)
        y = y[:, self.config.lookback - 1 :]
        forecast = self.head(y.relu() if self.config.relu else y).unflatten(-1, self.outputs)
        if self.config.autoregression:
            recent = x[..., 0].unfold(1, self.config.lookback, 1)  # (B, told, lookback)
            forecast = forecast + self.linear(recent).unsqueeze(-1)
        return forecast, state

    @torch.no_grad()
    def start_from(self, weight: Tensor, bias: Tensor) -> None:
        """Begin as the linear autoregression alone: the layers then learn what it misses."""
        self.linear.weight.copy_(weight)
        self.linear.bias.copy_(bias)
        self.head.weight.zero_()
        self.head.bias.zero_()
