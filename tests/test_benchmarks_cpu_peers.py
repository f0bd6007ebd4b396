"""ONNX Runtime and OpenVINO in the benchmark: stand-ins for the rules, and themselves if they are
installed."""

import csv
import importlib.util
from importlib import metadata

import numpy as np
import pytest
import torch
from torch import nn

from benchmarks import cpu_peers, limits, run, timing

TINY = ["--quick", "--seconds", "0.001", "--threads", "1", "--shape", "3,4,5,6,2"]


@pytest.fixture(autouse=True)
def _short(monkeypatch):
    monkeypatch.setattr(timing, "WARM_UP", 1e-3)
    monkeypatch.setattr(timing, "PAUSE", 1e-4)
    monkeypatch.setattr(limits, "REPEATS", 1)


class Right:
    """What a peer has to be, by torch itself."""

    def __init__(self, model, x, threads):
        assert threads == 1
        self.model, self.x, self.found = model, torch.from_numpy(x), []

    def __call__(self):
        with torch.no_grad():
            y, state = self.model(self.x)
        states = state if isinstance(state, tuple) else (state,)
        self.found = [t.numpy() for t in (y, *states)]

    def outputs(self):
        return self.found


class Off(Right):
    def outputs(self):
        return [array + np.float32(1e-3) for array in super().outputs()]


class Unfinished(Right):
    def outputs(self):
        y, *states = super().outputs()
        y[1:] = np.nan
        return [y, *states]


class WithoutState(Right):
    def outputs(self):
        return super().outputs()[:1]


class Broken(Right):
    def __init__(self, model, x, threads):
        raise RuntimeError("no such\noperator")


@pytest.fixture
def bench(monkeypatch, tmp_path):
    """Runs the suite layers beside these peers; gives the exit code and the CSV's rows."""
    def call(ort, ov, *arguments):
        monkeypatch.setattr(cpu_peers, "PEERS", {"onnxruntime": ort, "openvino": ov})
        monkeypatch.setattr(cpu_peers, "importable", lambda: ["onnxruntime", "openvino"])
        monkeypatch.setattr(cpu_peers, "versions", lambda names: {name: "1.2" for name in names})
        monkeypatch.setattr(cpu_peers, "onnx_model", lambda theirs, batch, steps: theirs)
        path = tmp_path / "rows.csv"
        code = run.main([*TINY, "--csv", str(path), *arguments])
        with path.open(newline="") as file:
            return code, list(csv.DictReader(file))

    return call


COLUMNS = ("onnxruntime_ms", "onnxruntime_ratio", "openvino_ms", "openvino_ratio")


def test_peers_are_checked_and_timed_in_inference(bench, capsys):
    code, rows = bench(Right, Right)
    assert code == 0
    for row in rows:
        assert row["status"] == "ok" and row["peers"] == ""
        assert row["onnxruntime"] == row["openvino"] == "1.2"
        found = [row[name] for name in COLUMNS]
        if row["pass"] == "inference":
            assert all(float(value) > 0 for value in found)
        else:
            assert found == [""] * 4
    out = capsys.readouterr().out
    assert "ORT x" in out and "OV x" in out and "openvino 1.2" in out


@pytest.mark.parametrize(("wrong", "words"), [
    (Off, "openvino: output 0 is off by 0.001"),
    (Unfinished, "openvino: output 0 is off by nan"),
    (WithoutState, "openvino: tensors are ['output 0'], expected ['output 0', 'output 1'"),
    (Broken, "openvino: RuntimeError: no such operator"),
])
def test_a_wrong_peer_is_named_and_left_out(wrong, words, bench, capsys):
    code, rows = bench(Right, wrong)
    assert code == 0
    for row in rows:
        assert row["status"] == "ok" and float(row["ratio"]) > 0
        assert row["openvino_ms"] == row["openvino_ratio"] == ""
        if row["pass"] == "inference":
            assert float(row["onnxruntime_ratio"]) > 0 and words in row["peers"]
    assert f"GRU 3,4,5,6,2: left out: {words}" in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [
    ["--no-peers"], ["--dtype", "float64"], ["--suite", "cells", "--shape", "3,5,6"],
])
def test_runs_without_peers(arguments, bench, capsys):
    code, rows = bench(Broken, Broken, *arguments)
    assert code == 0 and rows
    assert all(row["peers"] == row["onnxruntime"] == row["onnxruntime_ms"] == "" for row in rows)
    assert "ORT x" not in capsys.readouterr().out


def test_none_without_the_package_of_models(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name != "onnx" or None)
    assert cpu_peers.importable() == []
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name != "openvino" or None)
    assert cpu_peers.importable() == ["onnxruntime"]


@pytest.mark.filterwarnings("default")  # theirs
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize("cell", ["GRU", "LSTM"])
@pytest.mark.parametrize("name", list(cpu_peers.PEERS))
def test_the_library_itself_computes_what_torch_does(name, cell, layers, threads):
    if name not in cpu_peers.importable():
        pytest.skip(f"onnx and {name} are not both installed")
    torch.manual_seed(1)
    theirs = getattr(nn, cell)(5, 6, layers, batch_first=True)
    x = torch.randn(3, 7, 5)
    peer = cpu_peers.PEERS[name](cpu_peers.onnx_model(theirs, 3, 7), x.numpy(), threads)
    for _ in range(2):  # the second after a change of the input, in place
        peer()
        with torch.no_grad():
            y, state = theirs(x)
        expected = [y, *(state if isinstance(state, tuple) else (state,))]
        for found, value in zip(peer.outputs(), expected, strict=True):
            np.testing.assert_allclose(found, value.numpy(), rtol=0, atol=1e-6)
        x += 1
    assert cpu_peers.versions([name]) == {name: metadata.version(name)}
