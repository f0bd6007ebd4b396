"""The forecaster: a stack of recurrent layers and one linear map from its last output."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module

from torch import Tensor, nn

BACKENDS = {"gatedrnn": "gatedrnn", "torch": "torch.nn"}
CELLS = {"gru": "GRU", "lstm": "LSTM"}


@dataclass(frozen=True)
class ModelConfig:
    """Size of the network; the same for both cells."""

    hidden_size: int
    layers: int
    dropout: float
    backend: str = "gatedrnn"


class Forecaster(nn.Module):
    """(B, lookback, features) of scaled hours -> (B,) scaled load of the next hour."""

    def __init__(self, cell: str, config: ModelConfig, features: int) -> None:
        super().__init__()
        layer = getattr(import_module(BACKENDS[config.backend]), CELLS[cell])
        self.rnn = layer(
            features,
            config.hidden_size,
            num_layers=config.layers,
            batch_first=True,
            # Dropout stands between layers: with one layer there is nothing to drop.
            dropout=config.dropout if config.layers > 1 else 0.0,
        )
        self.head = nn.Linear(config.hidden_size, 1)

    def forward(self, x: Tensor) -> Tensor:
        # No initial state is passed, so that every window starts from zeros: the batches are
        # shuffled, and the state of another window would mean nothing here.
        outputs, _ = self.rnn(x)
        return self.head(outputs[:, -1]).squeeze(-1)
