"""A trained model in a file: numbers, names and tensors only, so that loading runs no code."""

from __future__ import annotations

import pickle
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from .errors import DataError
from .files import whole_file
from .model import Forecaster, ModelConfig
from .protocols import Protocol
from .train import History, TrainConfig
from .windows import Scale, Shape

FORMAT = 1
BEST, LAST = "best.pt", "last.pt"


@dataclass
class Checkpoint:
    """All that evaluating, forecasting and going on with the training need, but the data."""

    cell: str
    protocol: Protocol
    model: ModelConfig
    shape: Shape
    config: TrainConfig
    scales: dict[str, Scale]
    history: History
    weights: dict[str, Any]
    optimizer: dict[str, Any]

    def network(self, backend: str) -> Forecaster:
        network = Forecaster(self.cell, self.model, backend)
        network.load_state_dict(self.weights)
        return network

    def save(self, path: Path) -> None:
        fields = {
            "format": FORMAT,
            "cell": self.cell,
            "protocol": asdict(self.protocol),
            "model": asdict(self.model),
            "shape": asdict(self.shape),
            "config": asdict(self.config),
            "scales": {name: asdict(scale) for name, scale in self.scales.items()},
            "history": asdict(self.history),
            "weights": self.weights,
            "optimizer": self.optimizer,
        }
        with whole_file(path) as temporary:
            torch.save(fields, temporary)


def load_checkpoint(path: Path) -> Checkpoint:
    """On the CPU, where Adam wants its counts of steps; weights move with their network."""
    try:
        fields = torch.load(path, map_location="cpu", weights_only=True)
        if fields.pop("format") != FORMAT:
            raise DataError(f"{path} is a checkpoint of another version: train it again")
        return Checkpoint(
            cell=fields["cell"],
            protocol=Protocol(**fields["protocol"]),
            model=ModelConfig(**fields["model"]),
            shape=Shape(**fields["shape"]),
            config=TrainConfig(**fields["config"]),
            scales={name: Scale(**scale) for name, scale in fields["scales"].items()},
            history=History(**fields["history"]),
            weights=fields["weights"],
            optimizer=fields["optimizer"],
        )
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from None
    except (pickle.UnpicklingError, RuntimeError, EOFError, KeyError, TypeError, AttributeError):
        raise DataError(f"{path} is not a checkpoint of this example") from None
