"""The suite that times our kernels beside each other on a GPU, run here on a CPU that plays one,
and the table that is made of it."""

import os
import subprocess
from functools import partial

import fake_gpu
import pytest
import torch
from fake_gpu import bench, read

import gatedrnn
from benchmarks import cases, modules, plan, plan_table
from benchmarks.environment import ROOT
from benchmarks.report import PLAN_NAMES

LAYER, STACK = "3,4,5,6,1", "3,4,5,6,2"


@pytest.fixture(autouse=True)
def file(monkeypatch, tmp_path):
    path = fake_gpu.install(monkeypatch, tmp_path)
    monkeypatch.setattr(plan, "different", lambda run, pass_: ["step", "persistent"])
    return path.with_name("fake-gpu-9000-plan.csv")


def suite(*arguments, shape=LAYER):
    return bench("--suite", "plan", *arguments, shape=shape)


def test_rows_of_every_kernel(file, capsys):
    assert suite("--dtype", "tf32", "bfloat16") == 0
    rows = read(file)
    assert list(rows[0]) == PLAN_NAMES
    assert [(r["cell"], r["dtype"], r["pass"], r["kernel"]) for r in rows] == [
        (cell, dtype, pass_, kernel) for cell in ("GRU", "LSTM") for dtype in ("tf32", "bfloat16")
        for pass_ in ("forward", "backward") for kernel in ("step", "persistent")]
    for row in rows:
        assert row["status"] == "ok" and row["case"].endswith(LAYER)
        assert (row["architecture"], row["multiprocessors"]) == ("90", "132")
        assert (row["B"], row["T"], row["H"]) == ("3", "4", "6")
        assert float(row["ours_ms"]) > 0
    assert "persistent" in capsys.readouterr().out
    before = file.read_text()
    assert suite("--dtype", "tf32", "bfloat16") == 0
    assert file.read_text() == before  # nothing is measured twice
    assert suite("--dtype", "tf32", "float32") == 0
    assert [r["dtype"] for r in read(file)[16:]] == ["float32"] * 8


def test_stacks_are_timed_forward(file, monkeypatch):
    monkeypatch.setattr(plan, "different", lambda run, pass_: ["persistent", "wavefront"])
    assert suite("--dtype", "tf32", shape=STACK) == 0
    rows = read(file)
    assert [(r["cell"], r["pass"], r["kernel"], r["L"]) for r in rows] == [
        (cell, "forward", kernel, "2") for cell in ("GRU", "LSTM")
        for kernel in ("persistent", "wavefront")]
    text = plan_table.text(rows)
    assert text.count("true, false, 2, 6, 3, 4, KernelChoice::wavefront") == 2


def test_each_pass_is_run_by_the_kernel_that_is_asked_for(monkeypatch):
    monkeypatch.delenv(plan.VARIABLE, raising=False)
    case = cases.Layer("GRU", 2, 3, 4, 5, 1)
    run = modules.build(case, "float32")["ours"]()
    asked = []
    call = run.call
    run.call = lambda: (asked.append(os.environ[plan.VARIABLE]), call())[1]
    plan.contestant(run, "forward", "persistent").call()
    backward = plan.contestant(run, "backward", "step")
    monkeypatch.setattr(torch.autograd, "backward",
                        lambda *args, **kwargs: asked.append(os.environ[plan.VARIABLE]))
    backward.call()
    assert asked == ["persistent", "step", "step"] and plan.VARIABLE not in os.environ


def test_backward_again_and_again():
    run = modules.build(cases.Layer("LSTM", 2, 3, 4, 5, 1), "float32")["ours"]()
    backward = plan.contestant(run, "backward", "step")
    found = []
    for _ in range(2):
        backward.call()
        found.append(run.inputs[0].grad.clone())
        backward.reset()
    assert torch.equal(*found) and run.inputs[0].grad is None


def test_kernels_that_are_not_there_are_not_timed(monkeypatch):
    monkeypatch.undo()
    monkeypatch.setattr(gatedrnn, "explain",
                        partial(gatedrnn.explain, architecture=90, multiprocessors=132))

    def different(H, dtype, pass_="forward", L=1):
        run = modules.build(cases.Layer("GRU", 16, 30, 5, H, L), dtype)["ours"]()
        return plan.different(run, pass_)

    layer = ["step", "persistent", "grid"]
    assert different(64, "bfloat16") == different(64, "bfloat16", "backward") == layer
    assert different(64, "bfloat16", L=2) == [*layer, "wavefront"]
    assert different(512, "bfloat16", L=2) == layer
    assert different(64, "float64", L=2) == different(4000, "bfloat16") == ["step"]


def test_a_wrong_kernel_is_not_timed(file, monkeypatch):
    class Wrong(gatedrnn.GRU):
        def forward(self, *args):
            y, hn = super().forward(*args)
            return y + (0.02 if os.environ.get(plan.VARIABLE) == "persistent" else 0), hn

    monkeypatch.setattr(gatedrnn, "GRU", Wrong)
    assert suite("--dtype", "tf32", "--cases", "GRU") == 1
    rows = read(file)
    assert [(r["kernel"], r["status"] == "ok", bool(r["ours_ms"])) for r in rows] == [
        ("step", True, True), ("persistent", False, False)] * 2
    assert plan_table.text(rows).count("KernelChoice") == 0  # one kernel is no comparison


def test_what_does_not_fit_is_told(file, monkeypatch):
    def large(*args):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 TiB")

    monkeypatch.setattr(gatedrnn.LSTM, "forward", large)
    assert suite("--dtype", "tf32") == 0
    assert [r["status"] for r in read(file)] == ["ok"] * 4 + [
        "skipped: it does not fit in the GPU's memory"]


def row(kernel, ms, **other):
    return dict.fromkeys(PLAN_NAMES, "") | {
        "status": "ok", "architecture": "90", "multiprocessors": "132", "cell": "LSTM",
        "dtype": "tf32", "pass": "backward", "L": "1", "H": "256", "B": "16", "T": "32",
        "device": "Invented", "commit": "abc", "date": "2026-01-02T03:04:05", "kernel": kernel,
        "ours_ms": ms} | other


def test_the_table():
    rows = [row("step", "9"), row("step", "0.5"), row("persistent", "0.1234567"),
            row("step", "1", dtype="bfloat16"), row("persistent", "1", status="off by 1")]
    text = plan_table.text(rows)
    lines = [line.strip() for line in text.splitlines() if "KernelChoice" in line]
    assert lines == [  # the last ones of their kind, where two kernels ran
        "{90, 132, 4, Type::float32, true, true, 1, 256, 16, 32, KernelChoice::step, 500},",
        "{90, 132, 4, Type::float32, true, true, 1, 256, 16, 32, KernelChoice::persistent, 123.5},"]
    assert "std::array<Measurement, 2>" in text
    assert "; of Invented, commit abc, 2026-01-02.\n" in text


def test_the_committed_table_is_what_no_measurement_makes(tmp_path, file, capsys):
    assert plan_table.TABLE.read_text() == plan_table.text([])
    file.parent.mkdir()
    file.write_text(",".join(PLAN_NAMES) + "\n")
    assert plan_table.main([str(file), "--out", str(tmp_path / "table.h")]) == 0
    assert (tmp_path / "table.h").read_text() == plan_table.text([])
    with pytest.raises(SystemExit):
        plan_table.main([str(tmp_path / "table.h")])
    assert "has other columns than this version writes" in capsys.readouterr().err


def test_the_table_compiles(tmp_path):
    (tmp_path / "measured_table.h").write_text(plan_table.text([row("step", "1"),
                                                                row("persistent", "2")]))
    (tmp_path / "measured.h").write_text((ROOT / "csrc" / "measured.h").read_text())
    (tmp_path / "plan.h").write_text((ROOT / "csrc" / "plan.h").read_text())
    source = tmp_path / "check.cpp"
    source.write_text('#include "measured_table.h"\n'
                      "static_assert(gatedrnn::kMeasured[1].microseconds == 2000);\n"
                      "static_assert(gatedrnn::kMeasured.size() == 2);\n")
    done = subprocess.run(["g++", "-std=c++20", "-Wall", "-Werror", "-fsyntax-only", str(source)],
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
