"""Other libraries in the benchmark, by stand-ins of the same interface: weights and check."""

import importlib.machinery
import sys
from types import ModuleType

import fake_gpu
import pytest
import torch
from fake_gpu import bench, read
from torch import nn

from benchmarks import peers
from gatedrnn import reference


@pytest.fixture(autouse=True)
def file(monkeypatch, tmp_path):
    """The CSV of the GPU that is not there."""
    return fake_gpu.install(monkeypatch, tmp_path)


def install(monkeypatch, name, **members):
    parts = name.split(".")
    for k in range(len(parts)):
        path = ".".join(parts[: k + 1])
        module = ModuleType(path)
        module.__spec__ = importlib.machinery.ModuleSpec(path, None)
        monkeypatch.setitem(sys.modules, path, module)
    for member, value in members.items():
        setattr(module, member, value)


def haste_layer(kind):
    class Layer(nn.Module):
        def __init__(self, inputs, hidden, batch_first):
            super().__init__()
            self.rnn = kind(inputs, hidden, batch_first=batch_first)

        def from_native_weights(self, *weights):
            for own, given in zip(self.rnn.parameters(), weights, strict=True):
                own.data = given.detach().clone()

        def forward(self, x):
            return self.rnn(x)

    return Layer


def flash(Wx, R, b, function, backend, dtype):
    """FlashRNN's cells, as its vanilla backend defines them: R (G, heads, D, P), b (G, heads, D)"""
    assert backend == {"lstm": "cuda_fused", "gru": "cuda"}[function] and dtype == "float32"
    batch, steps, _, _, hidden = Wx.shape
    h, c = torch.zeros(2, batch, hidden)
    R, b, Wx = R[:, 0], b[:, 0], Wx[:, :, :, 0]
    states = []
    for t in range(steps):
        Ry = torch.einsum("gdp,bp->gbd", R, h)
        x = Wx[:, t].transpose(0, 1)
        if function == "gru":
            g = Ry[0] + b[0]
            r, z = torch.sigmoid(x[0] + Ry[1] + b[1]), torch.sigmoid(x[1] + Ry[2] + b[2])
            h = z * h + (1 - z) * torch.tanh(x[2] + b[3] + r * g)
            states.append(torch.stack([h]))
        else:
            i, f, g, o = x + Ry + b[:, None]
            c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
            h = torch.sigmoid(o) * torch.tanh(c)
            states.append(torch.stack([h, c]))
    states = torch.stack(states, 2)[:, :, :, None]  # S, B, T, heads, D
    return states, states[:, :, -1:]


def gru_triton(x, hidden, *rest):
    *weights, is_init = rest
    assert is_init.dtype == torch.bool and not is_init.any() and hidden.shape[1] == x.shape[1]
    y, h = reference.gru_layer(x.transpose(0, 1), hidden[None, :, 0], weights)
    return y.transpose(0, 1), h[0]


def lstm_triton(x, hidden, cell, *rest):
    *weights, _ = rest
    y, h, c = reference.lstm_layer(x.transpose(0, 1), hidden[None, :, 0], cell[None, :, 0],
                                   [*weights, None])
    return y.transpose(0, 1), y.transpose(0, 1), h[0], c[0]


@pytest.fixture
def _peers(monkeypatch):
    install(monkeypatch, "haste_pytorch", GRU=haste_layer(nn.GRU), LSTM=haste_layer(nn.LSTM))
    install(monkeypatch, "flashrnn.flashrnn", flashrnn=flash)
    install(monkeypatch, "torchrl.modules.tensordict_module._rnn_triton", gru_triton=gru_triton,
            lstm_triton=lstm_triton)


@pytest.mark.usefixtures("_peers")
def test_peers_are_checked_and_timed_where_they_can_run(file):
    assert peers.importable() == ["haste", "flashrnn", "torchrl"]
    assert bench("--dtype", "tf32", "float32") == 0
    for row in read(file):
        times = [row[f"{name}_ms"] for name in peers.PEERS]
        if row["dtype"] == "tf32":
            assert row["peers"] == "" and all(float(time) > 0 for time in times)
        else:
            assert times == ["", "", ""]
            assert "haste: no" in row["peers"] and "torchrl: no kernels in float32" in row["peers"]
    page = file.with_suffix(".md").read_text()
    assert "haste ms" in page and "## Peers that did not run" in page


@pytest.mark.usefixtures("_peers")
def test_a_wrong_peer_is_named_and_not_timed(file, monkeypatch):
    def off(*arguments):
        y, h = gru_triton(*arguments)
        return y + 0.02, h

    install(monkeypatch, "torchrl.modules.tensordict_module._rnn_triton", gru_triton=off)
    assert bench("--dtype", "tf32", "--cases", "GRU") == 0
    for row in read(file):
        assert row["status"] == "ok" and row["torchrl_ms"] == "" and float(row["haste_ms"]) > 0
        assert "torchrl: output 0 is off by" in row["peers"]


def test_without_peers(file):
    assert peers.importable() == []
    assert bench("--dtype", "tf32", "--cases", "GRU") == 0
    assert all(row["peers"] == row["haste_ms"] == "" for row in read(file))
