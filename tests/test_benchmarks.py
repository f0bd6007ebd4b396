"""The benchmarks: what they check, how they count, and what the command lines say."""

import csv
import itertools
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from matplotlib import image

import gatedrnn
from benchmarks import cases, kernels, limits, plot, run, timing
from benchmarks.check import EPS, judge, near

TINY = {"layers": "3,4,5,6,2", "ragged": "3,4,5,6,2", "cells": "3,5,6", "kernels": "3,4,5,20,1"}
FAST = ["--quick", "--seconds", "0.001", "--threads", "1", "--no-peers"]


@pytest.fixture(autouse=True)
def _short(monkeypatch):
    monkeypatch.setattr(timing, "WARM_UP", 1e-3)
    monkeypatch.setattr(limits, "REPEATS", 1)


def read(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


# The command line


@pytest.mark.parametrize("main", [run.main, plot.main])
def test_help(main, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    assert stop.value.code == 0
    assert "usage: python -m benchmarks." in capsys.readouterr().out


def test_list_names_every_case_of_the_issue(capsys):
    assert run.main(["--list"]) == 0
    names = capsys.readouterr().out.splitlines()
    shapes = ["1024,90,5,256,2", "64,90,5,256,2", "8,90,5,256,2", "1,90,5,256,2",
              "32,100,128,128,1", "64,256,512,512,1", "1,256,512,512,1", "16,50,1024,1024,1"]
    assert names == [f"{cell} {shape}" for shape in shapes for cell in ("GRU", "LSTM")]
    assert run.main(["--list", "--suite", "cells"]) == 0
    expected = {f"{cell} {B},{H},{H}" for cell, B, H in
                itertools.product(["GRUCell", "LSTMCell"], [1, 8, 64], [64, 128, 256])}
    frames = ["1,64,64,1", "1,256,256,2", "8,256,256,2", "64,256,256,2"]
    expected |= {f"{cell} stream {shape}" for cell in ("GRU", "LSTM") for shape in frames}
    assert set(capsys.readouterr().out.splitlines()) == expected


def test_cases_are_chosen_by_name(capsys):
    run.main(["--list", "--cases", "gru 1,", "LSTM .*1024$", "LSTM 16,"])
    assert capsys.readouterr().out.split("\n")[:-1] == [
        "GRU 1,90,5,256,2", "GRU 1,256,512,512,1", "LSTM 16,50,1024,1024,1"
    ]
    names = ["GRU 8,90,5,.* baseline", "tanh.*baseline"]
    run.main(["--list", "--suite", "kernels", "--cases", *names])
    assert capsys.readouterr().out.split("\n")[:-1] == [
        *(f"GRU 8,90,5,256,1 baseline {p}" for p in kernels.PARTITIONS), "tanh 4096 baseline"
    ]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--shape", "3,4"], "a shape of suite layers is B,T,I,H,L, all positive, not '3,4'"),
        (["--suite", "cells", "--shape", "3,0,4"], "is B,I,H, all positive"),
        (["--cases", "nothing"], "no case has such a name"),
        (["--cases", "("], "is no regular expression"),
        (["--threads", "0"], "expected a positive number, not '0'"),
        (["--device", "abacus"], "invalid choice: 'abacus'"),
        (["--suite", "kernels", "--dtype", "bfloat16"], "float32 or float64"),
        (["--csv", "no/such/folder/x.csv"], "No such file or directory"),
    ],
)
def test_refuses(arguments, words, capsys):
    with pytest.raises(SystemExit) as stop:
        run.main(arguments)
    assert stop.value.code == 2
    assert words in capsys.readouterr().err


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
@pytest.mark.parametrize("suite", ["layers", "ragged", "cells"])
def test_modules_end_to_end(suite, dtype, tmp_path, capsys):
    path, threads = tmp_path / "rows.csv", torch.get_num_threads()
    arguments = ["--suite", suite, "--shape", TINY[suite], "--dtype", dtype, "--csv", str(path)]
    assert run.main(FAST + arguments) == 0
    assert torch.get_num_threads() == threads
    rows = read(path)
    own = cases.of_suite(suite, [cases.parse_shape(TINY[suite], suite)])
    assert [(row["case"], row["pass"]) for row in rows] == [
        (str(case), pass_) for case in own for pass_ in ("inference", "training")
    ]
    out = capsys.readouterr().out
    for row in rows:
        assert row["case"] in out
        assert row["status"] == "ok" and row["dtype"] == dtype and row["threads"] == "1"
        assert float(row["ours_p20_ms"]) <= float(row["ours_ms"]) <= float(row["ours_p80_ms"])
        compared = ("torch_ms", "ratio", "gflops", "share")[: 3 if suite == "ragged" else 4]
        assert min(float(row[k]) for k in compared) > 0
        assert int(row["rounds"]) >= run.QUICK.rounds
        assert row["torch"] == torch.__version__ and row["gatedrnn"] == gatedrnn.__version__
        assert row["device"] and row["date"] and row["isa"] == gatedrnn.raw.instruction_set()
        assert row["checked"] == "float64" and row["kernel"].startswith(row["isa"])
        assert row["kernel"] in out


def test_streams_end_to_end(tmp_path):
    path = tmp_path / "rows.csv"
    chosen = ["--suite", "cells", "--cases", "stream 1,64,"]
    assert run.main([*FAST, *chosen, "--csv", str(path)]) == 0
    rows = read(path)
    assert [row["case"] for row in rows] == [f"{c} stream 1,64,64,1" for c in ("GRU", "LSTM")]
    assert all(row["status"] == "ok" and row["kernel"].endswith(" stream") for row in rows)
    assert all(float(row["ratio"]) > 0 and row["pass"] == "inference" for row in rows)


def test_ragged_lengths_are_those_of_the_seed_and_both_ends():
    for shape in cases.RAGGED_SHAPES:
        case = cases.Ragged("GRU", *shape)
        assert case.lengths == cases.Ragged("LSTM", *shape).lengths
        assert len(case.lengths) == case.B
        assert min(case.lengths) == 1 and max(case.lengths) == case.T
        assert case.share == pytest.approx(0.5, abs=0.15)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_kernels_end_to_end(dtype, tmp_path):
    path = tmp_path / "rows.csv"
    arguments = ["--suite", "kernels", "--shape", TINY["kernels"], "--dtype", dtype]
    assert run.main([*FAST, *arguments, "--csv", str(path)]) == 0
    isas = limits.kernel_module().instruction_sets()
    found = [(r["cell"], r["isa"], r["partition"], r["pass"]) for r in read(path)]
    assert sorted(found) == sorted(itertools.product(
        ["GRU", "LSTM"], isas, kernels.PARTITIONS, ["inference", "training", "backward"]))
    assert all(float(row["ns_per_step"]) > 0 for row in read(path))


def test_kernels_of_cells_and_gates_end_to_end(tmp_path):
    path = tmp_path / "rows.csv"
    names = ["Cell 8,64,64 baseline", "sigmoid.* baseline", "tanh.* baseline"]
    arguments = ["--suite", "kernels", "--cases", *names, "--csv", str(path)]
    assert run.main(FAST + arguments) == 0
    assert [row["cell"] for row in read(path)] == ["GRUCell", "LSTMCell", "sigmoid", "tanh"]


def test_without_the_kernel_module(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(limits, "FOLDER", tmp_path)
    monkeypatch.setitem(limits.sys.modules, "gatedrnn_kernels", None)
    with pytest.raises(SystemExit):
        run.main(["--suite", "kernels"])
    assert "`python setup.py -q build_kernels`" in capsys.readouterr().err
    path = tmp_path / "rows.csv"
    assert run.main([*FAST, "--shape", TINY["layers"], "--csv", str(path)]) == 0
    assert "no limits" in capsys.readouterr().err
    assert all(row["share"] == "" and float(row["ratio"]) > 0 for row in read(path))


# The check


class WrongOutput(gatedrnn.GRU):
    def forward(self, *args):
        y, hn = super().forward(*args)
        return y + 1e-4, hn


class WrongGradient(gatedrnn.GRU):
    def forward(self, *args):
        y, hn = super().forward(*args)
        return y.detach() + 1.001 * (y - y.detach()), hn


class MissingGradient(gatedrnn.GRU):
    def forward(self, x, hx):
        return super().forward(x.detach(), hx)


@pytest.mark.parametrize(
    ("wrong", "failing", "words"),
    [
        (WrongOutput, ["inference", "training"], "output 0 is off by 0.0001"),
        (WrongGradient, ["training"], "weight_hh_l0 gradient is off by"),
        (MissingGradient, ["training"], "input gradient 0 has shape"),
    ],
)
def test_a_wrong_module_is_refused_and_not_timed(wrong, failing, words, monkeypatch, tmp_path,
                                                 capsys):
    monkeypatch.setattr(gatedrnn, "GRU", wrong)
    path = tmp_path / "rows.csv"
    arguments = ["--shape", TINY["layers"], "--cases", "GRU", "--csv", str(path)]
    assert run.main(FAST + arguments) == 1
    captured = capsys.readouterr()
    assert f"{len(failing)} failed the check" in captured.err
    assert captured.out.count("CHECK FAILED, not timed") == len(failing)
    for row in read(path):
        assert (row["status"] == "ok") == (row["pass"] not in failing)
        if row["pass"] in failing:
            assert words in row["status"]
            assert row["ours_ms"] == row["torch_ms"] == row["ratio"] == ""


def test_a_wrong_kernel_is_refused_and_not_timed(monkeypatch, capsys):
    module = limits.kernel_module()

    def off(x, isa):
        return module.tanh(x, isa) + np.float32(1e-6)

    names = {k: getattr(module, k) for k in dir(module)}
    monkeypatch.setattr(run, "kernel_module", lambda: SimpleNamespace(**names | {"tanh": off}))
    arguments = ["--suite", "kernels", "--cases", "(sigmoid|tanh).* baseline"]
    assert run.main(FAST + arguments) == 1
    out = capsys.readouterr().out
    assert "tanh 4096 baseline inference: CHECK FAILED, not timed: value is off" in out
    assert "sigmoid 4096 baseline inference: CHECK" not in out


def test_the_rule():
    def failure(ours, peer, ref, dtype="float32"):
        as_arrays = ({"y": np.array(v, np.float64)} for v in (ours, peer, ref))
        return judge(*as_arrays, dtype).failure

    eps = EPS["float32"]
    assert not failure([1 + 4 * eps], [1.0], [1.0])
    assert not failure([1 + 24 * eps], [1 + 10 * eps], [1.0])
    assert not failure([100.0, 300 * eps], [100.0, 0.0], [100.0, 0.0])
    assert "y is off" in failure([1 + 5 * eps], [1.0], [1.0])
    assert "y is off" in failure([1 + 26 * eps], [1 + 10 * eps], [1.0])
    assert "y is off" in failure([np.nan], [1.0], [1.0])
    assert "shape" in failure([1.0, 1.0], [1.0], [1.0])
    assert "expected ['z']" in judge({"y": np.ones(1)}, {}, {"z": np.ones(1)}, "float32").failure
    # In float64 the peer ran in float32: its 10 eps count as 10 of float64's, and three times.
    small = EPS["float64"]
    assert not failure([1 + 34 * small], [1 + 10 * eps], [1.0], "float64")
    assert "y is off" in failure([1 + 36 * small], [1 + 10 * eps], [1.0], "float64")


def test_near_enough():
    def failure(found, expected):
        return near({"y": np.array(found)}, {"y": np.array(expected)})

    assert not failure([1.00009, 0.0], [1.0, 0.00009])
    assert not failure([100.0, 0.009], [100.0, 0.0])
    assert "y is off by 0.0002, bound 0.0001" in failure([0.0002], [0.0])
    assert "y is off" in failure([np.nan], [1.0])
    assert "y has shape (2,), expected (1,)" in failure([1.0, 1.0], [1.0])
    assert "expected ['z']" in near({"y": np.ones(1)}, {"z": np.ones(1)})


# Counting


def test_spread_and_paired_ratio():
    found = timing.spread(np.arange(11.0))
    assert (found.low, found.median, found.high) == (2, 5, 8)
    theirs, ours = np.array([2.0, 20.0, 3.0]), np.array([1.0, 10.0, 1.0])
    assert timing.paired_ratio(theirs, ours).median == 2  # the slow round counts like the others


def test_contestants_take_turns_and_reset_is_not_timed(monkeypatch):
    now, log = [0.0], []

    def contestant(name, seconds):
        def call():
            log.append(name)
            now[0] += seconds

        def reset():
            now[0] += 100

        return timing.Contestant(call, reset)

    monkeypatch.setattr(timing, "perf_counter", lambda: now[0])
    monkeypatch.setattr(timing, "SAMPLE", 4.0)
    monkeypatch.setattr(timing, "WARM_UP", 0.0)
    both = {"a": contestant("a", 2.0), "b": contestant("b", 5.0)}
    times = timing.in_turn(both, timing.Budget(rounds=3, seconds=0.0))
    assert times["a"].tolist() == [2, 2, 2] and times["b"].tolist() == [5, 5, 5]
    assert "".join(log) == "ab" + "aab" + "baa" + "aab"  # warm-up; two calls of a fill a sample
    times = timing.in_turn(both, timing.Budget(rounds=1, seconds=1000.0))
    assert len(times["a"]) > 3


def test_a_first_call_after_a_pause_counts_only_if_it_is_long(monkeypatch):
    now, log = [0.0], []

    def sleep(seconds):
        log.append("pause")
        now[0] += seconds

    def lasting(seconds):
        def call():
            log.append("call")
            now[0] += seconds if log.count("call") > 1 else 2 * seconds

        return timing.Contestant(call)

    monkeypatch.setattr(timing, "perf_counter", lambda: now[0])
    monkeypatch.setattr(timing, "sleep", sleep)
    assert timing.after_pause(lasting(0.01), 3) == pytest.approx(0.01)
    assert log == ["pause"] + ["call"] * 4
    log.clear()
    assert timing.after_pause(lasting(1.0), 1) == pytest.approx(2.0)
    assert log == ["pause", "call"]


def test_useful_work():
    gru = cases.Layer("GRU", B=8, T=90, I=5, H=256, L=2)
    once = 2 * 8 * 90 * 3 * 256 * ((5 + 256) + (256 + 256))
    assert limits.flops(limits.forward_products(gru)) == once
    assert limits.flops(limits.training_products(gru)) == 3 * once
    cell = cases.Step("LSTMCell", B=8, I=5, H=64)
    assert limits.flops(limits.forward_products(cell)) == 2 * 8 * 4 * 64 * (5 + 64)


def test_the_bound_is_the_slower_of_computing_and_reading():
    module = SimpleNamespace(
        peak_flops32=lambda isa, threads, repeats: 100e9 * threads,
        read_bandwidth=lambda size, isa, threads, repeats: (
            threads * (40e9 if size <= 1 << 20 else 5e9)
        ),
    )
    machine = limits.Limits(module, "any", 2, "float32")
    large = machine.bound([limits.Product(10**6, 10**5, times=3)])
    assert large.by == "multiply-adds" and large.seconds == pytest.approx(3 * 2e6 / 200e9)
    small = machine.bound([limits.Product(10**5, 10**5, times=3)])  # 200 KB a thread
    assert small.by == "reading" and small.seconds == pytest.approx(3 * 4e5 / 80e9)
    beyond = machine.bound([limits.Product(10**6, 10**6)])  # 2 MB a thread
    assert beyond.by == "reading" and beyond.seconds == pytest.approx(4e6 / 10e9)
    assert "WARNING" not in machine.describe()
    module.peak_flops32 = lambda isa, threads, repeats: 100e9
    words = limits.Limits(module, "any", 2, "float32").describe()
    assert "2 threads reach only 1.00 times" in words


# The picture


@pytest.mark.parametrize("suite", ["cells", "kernels"])
def test_plot_makes_a_picture(suite, tmp_path, capsys):
    path = tmp_path / "rows.csv"
    arguments = ["--suite", suite, "--shape", TINY[suite], "--cases", "GRU", "--csv", str(path)]
    assert run.main(FAST + arguments) == 0
    capsys.readouterr()
    assert plot.main([str(path)]) == 0
    picture = tmp_path / "rows.png"
    assert capsys.readouterr().out.strip() == str(picture)
    pixels = image.imread(picture)
    assert pixels.shape[0] > 100 and pixels.shape[1] > 300 and pixels.std() > 0


def test_plot_refuses_another_file(tmp_path, capsys):
    path = tmp_path / "rows.csv"
    path.write_text("a,b\n1,2\n")
    with pytest.raises(SystemExit) as stop:
        plot.main([str(path)])
    assert stop.value.code == 2
    assert "is no CSV of benchmarks.run" in capsys.readouterr().err
