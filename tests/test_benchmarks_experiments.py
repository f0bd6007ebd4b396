"""What a new kind of GPU is asked first (benchmarks/experiments.cu, benchmarks/chaos.py): that its
exchanges are right and end, in the emulator, and that chaos.py sees what changes."""

import csv
import math
import shutil
import subprocess
import sys

import pytest
import torch
from test_cuda_emulator import CXX, NVCC, SANITIZERS, SOURCES, run

import gatedrnn
from benchmarks import chaos, gpu
from benchmarks.environment import ROOT

PROGRAM = ROOT / "benchmarks" / "experiments.cu"


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    folder = tmp_path_factory.mktemp("experiments")
    done = run([CXX, "-std=c++20", "-O1", "-g1", "-Wall", "-Wextra", "-Werror",
                "-Wno-unknown-pragmas", *SANITIZERS["address"], "-DGATEDRNN_EMULATE",
                f"-I{SOURCES}", "-x", "c++", PROGRAM, SOURCES / "cuda_emulator.cpp", "-o",
                folder / "experiments"])
    assert done.returncode == 0, done.stderr
    return folder / "experiments"


@pytest.mark.parametrize("schedule", [("fifo", 1), ("lifo", 1), ("random", 1), ("prio", 1)],
                         ids=lambda s: s[0])
def test_every_exchange_is_right(program, schedule, tmp_path):
    done = run([program, 3, tmp_path / "rows.csv"], schedule)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "rows.csv").read_text() == done.stdout
    rows = list(csv.DictReader(done.stdout.splitlines()))
    assert {row["experiment"] for row in rows} == {
        "products", "clusters at once", "exchange in a cluster", "exchange through L2"}
    assert len({(row["experiment"], row["case"].split(" at ")[0]) for row in rows}) == len(rows)
    assert not any(math.isnan(float(row["value"])) for row in rows)  # nothing was refused


def test_what_it_refuses(program, tmp_path):
    assert "usage: experiments STEPS" in run([program]).stderr
    assert run([program, 1, tmp_path / "no" / "folder"]).returncode == 255


@pytest.mark.skipif(not NVCC, reason="no nvcc")
def test_compiles_for_a_gpu(tmp_path):
    done = run([NVCC, "-std=c++20", "-arch=sm_90a", "-Werror", "all-warnings", "-Xptxas",
                "--warn-on-spills,--warning-as-error", PROGRAM, "-o", tmp_path / "experiments"])
    assert done.returncode == 0, done.stderr
    if not torch.cuda.is_available():
        assert "no device" in run([tmp_path / "experiments", 1]).stderr


# Kernels with delays


def test_results_that_change_are_seen():
    module, x = gatedrnn.GRU(3, 4), torch.randn(5, 2, 3, requires_grad=True)
    cotangents = [torch.randn(5, 2, 4), torch.randn(1, 2, 4)]
    assert chaos.changed(module, x, cotangents, 3) == ""
    calls = []

    def late(module, arguments, results):
        calls.append(0)
        if len(calls) == 3:
            results[0].register_hook(lambda gradient: gradient * 1.001)

    module.register_forward_hook(late)
    assert chaos.changed(module, x, cotangents, 3) == "result 2 of run 2 differs"


def test_every_case_is_checked(monkeypatch, capsys):
    monkeypatch.setattr(chaos, "CASES", [(2, 3, 4, 1), (120, 2, 3, 2)])
    monkeypatch.setenv("GATEDRNN_CUDA_KERNEL", "step")  # which each case changes
    assert chaos.check("cpu", 2) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 16 and all(line.endswith(": the same") for line in lines)
    monkeypatch.setattr(chaos, "changed", lambda *args: "all of it differs")
    assert chaos.check("cpu", 2) == 16


def test_needs_kernels_with_delays(monkeypatch, capsys):
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setenv("GATEDRNN_CUDA_KERNEL", "step")
    for is_there, words in ((False, "there is none"), (True, "has no delays: type `make chaos`")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda is_there=is_there: is_there)
        with pytest.raises(SystemExit):
            chaos.main([])
        assert words in capsys.readouterr().err
    assert str(gpu.CHAOS) in sys.path


@pytest.mark.skipif(not shutil.which("g++"), reason="no g++")
def test_kernels_with_delays_compile(tmp_path):
    source = tmp_path / "walk.cpp"
    source.write_text('#include "csrc/cuda/persistent.h"\n'
                      "void walk() {\n"
                      "  gatedrnn::cuda::walk<3>([] { return 2; }, 1, [](auto...) {},"
                      "                          [](auto...) {});\n"
                      "}\n")
    done = subprocess.run(["g++", "-std=c++20", "-Wall", "-Wextra", "-Werror", "-fsyntax-only",
                           "-Wno-unknown-pragmas", "-DGATEDRNN_EMULATE", "-DGATEDRNN_CHAOS",
                           f"-I{ROOT}", f"-I{SOURCES}", str(source)],
                          capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
