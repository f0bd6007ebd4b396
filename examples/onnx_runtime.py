"""From PyTorch to ONNX Runtime: a model with gatedrnn layers, exported and served.

The file holds ONNX's own GRU and LSTM operators, takes any batch and any length, and needs neither
PyTorch nor gatedrnn to run. It takes `pip install onnx onnxscript onnxruntime`.

    python -m examples.onnx_runtime --file model.onnx
"""

import argparse
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from torch import Tensor, nn
from torch.export import Dim

import gatedrnn


class Tagger(nn.Module):
    """Sequences (B, T, 8) -> scores of 5 labels at every step (B, T, 5)."""

    def __init__(self) -> None:
        super().__init__()
        self.context = gatedrnn.LSTM(8, 32, batch_first=True, bidirectional=True)
        self.order = gatedrnn.GRU(64, 32, num_layers=2, batch_first=True, dropout=0.1)
        self.head = nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.order(self.context(x)[0])[0])


def export(model: nn.Module, file: Path) -> None:
    """Writes the model for input of any batch and any length."""
    torch.onnx.export(
        model.eval(),
        (torch.randn(2, 10, 8),),
        file,
        dynamo=True,
        input_names=["x"],
        output_names=["scores"],
        dynamic_shapes=({0: Dim("batch"), 1: Dim("length")},),
        external_data=False,
        verbose=False,
    )


def serve(file: Path, x: np.ndarray) -> np.ndarray:
    """What ONNX Runtime makes of the input."""
    session = onnxruntime.InferenceSession(file)
    return session.run(["scores"], {"x": x})[0]


def compare(model: nn.Module, file: Path) -> float:
    """The largest difference between PyTorch and ONNX Runtime over some shapes."""
    worst = 0.0
    for shape in ((1, 1, 8), (2, 10, 8), (7, 33, 8)):
        x = torch.randn(shape)
        with torch.no_grad():
            expected = model(x).numpy()
        difference = np.abs(serve(file, x.numpy()) - expected).max().item()
        print(f"input {shape}: largest difference {difference:.1e}")
        worst = max(worst, difference)
    return worst


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--file", type=Path, default=Path("model.onnx"))
    file = parser.parse_args().file
    torch.manual_seed(0)
    model = Tagger()
    export(model, file)
    compare(model, file)
