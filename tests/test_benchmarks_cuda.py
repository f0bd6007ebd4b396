"""The benchmark on a GPU, run here on a CPU that plays one: what it checks, keeps and skips."""

import itertools
from types import SimpleNamespace

import fake_gpu
import pytest
import torch
from fake_gpu import ABOUT, TINY, FakeGpu, bench, read
from matplotlib import image

import gatedrnn
from benchmarks import cases, cuda, cuda_device, environment, limits, plot, run, summary, timing
from benchmarks.report import GPU_NAMES, read_csv


@pytest.fixture(autouse=True)
def file(monkeypatch, tmp_path):
    """The CSV of the GPU that is not there."""
    return fake_gpu.install(monkeypatch, tmp_path)


# The command line


def listed(capsys, *arguments):
    assert run.main(["--device", "cuda", "--list", *arguments]) == 0
    return capsys.readouterr().out.splitlines()


def test_ten_layers_and_a_grid(capsys):
    names = listed(capsys)
    assert len(names) == len(set(names)) == 10
    assert names[0] == "GRU 1024,90,5,256,2"  # the article's
    assert {name.split()[0] for name in names} == {"GRU", "LSTM"}
    sizes = itertools.product((1, 16, 64, 256, 1024), (90, 256, 1024),
                              (64, 128, 256, 512, 1024, 2048))
    expected = {f"{cell} {B},{T},{H},{H},1" for B, T, H in sizes for cell in ("GRU", "LSTM")}
    assert set(listed(capsys, "--suite", "grid")) == expected
    special = listed(capsys, "--suite", "special")
    assert len(special) == len(set(special)) == 15
    assert {name.rsplit(" ", 1)[0] for name in special} < expected
    assert names == listed(capsys, "--suite", "baseline")[:10]
    assert listed(capsys, "--suite", "cells", "--cases", "LSTMCell 64,64") == ["LSTMCell 64,64,64"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--suite", "grid"], "on cpu the suites are layers, ragged, cells, kernels"),
        (["--device", "cuda", "--suite", "kernels"],
         "on cuda the suites are layers, cells, grid, special"),
        (["--dtype", "float16"], "on the CPU --dtype is one of float32, float64, bfloat16"),
        (["--dtype", "float32", "float64"], "on the CPU --dtype is one of"),
        (["--device", "cuda", "--cases", "nothing"], "no case has such a name"),
        (["--device", "cuda", "--shape", "1,2"], "a shape of suite layers is B,T,I,H,L"),
        (["--device", "cuda", "--l2", "lukewarm"], "invalid choice: 'lukewarm'"),
    ],
)
def test_refuses(arguments, words, capsys):
    with pytest.raises(SystemExit) as stop:
        run.main(arguments)
    assert stop.value.code == 2
    assert words in capsys.readouterr().err


def test_without_a_gpu(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit):
        bench()
    assert "needs a CUDA GPU that torch can use" in capsys.readouterr().err


# Rows


def test_end_to_end(file, capsys):
    assert bench() == 0
    rows = read(file)
    assert list(rows[0]) == GPU_NAMES
    assert [(r["cell"], r["dtype"], r["pass"]) for r in rows] == list(itertools.product(
        ["GRU", "LSTM"], cuda.DTYPES, ["inference", "training"]))
    for row in rows:
        assert row["status"] == "ok" and row["case"].endswith(TINY) and row["suite"] == "layers"
        assert {name: row[name] for name in ABOUT} == ABOUT and row["l2"] == "cold"
        assert float(row["ours_p20_ms"]) <= float(row["ours_ms"]) <= float(row["ours_p80_ms"])
        names = ("torch_ms", "ratio", "gflops", "gb_per_s", "share", "ours_error", "peer_error")
        assert min(float(row[name]) for name in names) > 0
        # Four steps of two layers, forward at the same time but in strict float32, and backward.
        assert row["floor_by"] == "latency"
        walks = (2 if row["dtype"] == "float32" else 1) + 2 * (row["pass"] == "training")
        assert float(row["floor_ms"]) == pytest.approx(walks * 4 * 0.35e-3, rel=0.01)
        assert float(row["floor_share"]) == pytest.approx(
            float(row["floor_ms"]) / float(row["ours_ms"]), rel=1e-4)
        assert row["ours_mib"] == row["torch_mib"] == "7.5" and row["of_torch"] == "1"
        assert int(row["rounds"]) >= run.GPU_QUICK.rounds
    out = capsys.readouterr().out
    assert "SM at 1980 MHz" in out and "L2 cold" in out and "driver 1.2" in out
    assert "132 SM" in out and "% latency" in out and "7.5 - 7.5, 100 %" in out
    page = file.with_suffix(".md").read_text()
    assert "# Times on Fake GPU 9000" in page and "- L2: cold" in page and "- commit: abc" in page
    assert f"| GRU {TINY} | {float(rows[0]['ratio']):.2f} | {float(rows[1]['ratio']):.2f} |" in page
    assert "## Not timed" not in page


def test_cells_and_every_dtype_in_a_file_of_choice(tmp_path):
    path = tmp_path / "own" / "cells.csv"
    arguments = ["--suite", "cells", "--dtype", "float64", "tf32", "--csv", str(path)]
    assert bench(*arguments, "--l2", "warm", shape="3,5,6") == 0
    assert [(r["cell"], r["dtype"], r["l2"]) for r in read(path)[::2]] == [
        (cell, dtype, "warm") for cell in ("GRUCell", "LSTMCell") for dtype in ("float64", "tf32")
    ]
    assert path.with_suffix(".md").exists()


def test_special_layers(file):
    """Both take the same packed batch; operations and bytes are those of the steps there are."""
    assert bench("--suite", "special", "--dtype", "float32", shape="5,4,6,8,2") == 0
    rows = read(file)
    assert [(r["case"], r["pass"]) for r in rows] == [
        (f"{cell} 5,4,6,8,2 {feature}", pass_)
        for feature, cells in (("bidirectional", ("GRU", "LSTM")), ("packed", ("GRU", "LSTM")),
                               ("projected", ("LSTM",)))
        for cell in cells for pass_ in ("inference", "training")]
    assert {row["status"] for row in rows} == {"ok"}
    assert min(float(row["floor_share"]) for row in rows) > 0


def test_what_special_layers_multiply_and_move():
    plain = cases.Layer("LSTM", B=5, T=4, I=6, H=8, L=2)
    two, packed, projected = (cases.Special("LSTM", 5, 4, 6, 8, 2, feature)
                              for feature in ("bidirectional", "packed", "projected"))
    steps = sum(packed.lengths)
    assert 4 < steps < 20 and packed.lengths[-2:] == [1, 4] and packed.share == steps / 20
    assert (plain.rows, packed.rows, two.inputs, projected.inputs) == (
        20, steps, [6, 16], [6, 4])

    def multiply_adds(case):
        return limits.flops(limits.forward_products(case)) // 2 // 20

    assert multiply_adds(plain) == multiply_adds(packed) == 32 * (6 + 8 + 8 + 8)
    assert multiply_adds(two) == 2 * 32 * (6 + 8 + 16 + 8)
    assert multiply_adds(projected) == 32 * (6 + 4 + 4 + 4) + 2 * 4 * 8
    assert limits.moved(packed, False, 4) == 4 * (steps * (6 + 3 * 8) + 32 * (6 + 3 * 8))
    assert limits.moved(projected, False, 4) == 4 * (20 * (6 + 3 * 4) + 32 * 18 + 2 * 32)


def test_rows_that_are_there_are_not_measured_again(file, capsys, monkeypatch):
    few = ["--cases", "GRU", "--dtype", "tf32"]
    assert bench(*few) == 0
    before = file.read_text()
    assert bench(*few) == 0
    assert file.read_text() == before
    assert "2 of this commit are there already" in capsys.readouterr().out
    assert bench("--cases", "GRU", "--dtype", "tf32", "float32") == 0
    assert [r["dtype"] for r in read(file)] == ["tf32", "tf32", "float32", "float32"]
    monkeypatch.setitem(ABOUT, "commit", "def")
    assert bench(*few) == 0
    assert [r["commit"] for r in read(file)] == ["abc"] * 4 + ["def"] * 2
    assert bench(*few, "--l2", "warm") == 0
    assert [r["l2"] for r in read(file)] == ["cold"] * 6 + ["warm"] * 2


def test_a_line_that_was_not_finished_is_measured_again(file):
    few = ["--cases", "GRU", "--dtype", "tf32"]
    assert bench(*few) == 0
    text = file.read_text()
    file.write_text(text[:-40])
    assert bench(*few) == 0
    rows = read(file)
    assert [(r["pass"], r["status"]) for r in rows] == [("inference", "ok"), ("training", "ok")]
    assert all(None not in row and None not in row.values() for row in rows)


def test_a_file_of_other_columns_is_not_touched(file, capsys):
    file.parent.mkdir()
    file.write_text("a,b\n1,2\n")
    with pytest.raises(SystemExit) as stop:
        bench()
    assert stop.value.code == 2
    assert "has other columns than this version writes" in capsys.readouterr().err
    assert file.read_text() == "a,b\n1,2\n"


class Large(gatedrnn.GRU):
    def forward(self, *args):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 TiB")


class Broken(gatedrnn.GRU):
    def forward(self, *args):
        raise RuntimeError("CUDA error: an illegal memory access was encountered")


class Wrong(gatedrnn.GRU):
    def forward(self, *args):
        y, hn = super().forward(*args)
        return y + 0.02, hn


@pytest.mark.parametrize(
    ("kind", "code", "words"),
    [
        (Large, 0, "skipped: it does not fit in the GPU's memory"),
        (Broken, 1, "RuntimeError: CUDA error: an illegal memory access"),
        (Wrong, 1, "output 0 is off by 0.02"),
    ],
)
def test_what_fails_is_told_and_the_rest_runs(kind, code, words, file, monkeypatch, capsys):
    monkeypatch.setattr(gatedrnn, "GRU", kind)
    assert bench("--dtype", "tf32") == code
    bad, good = read(file)[:2], read(file)[2:]
    for row in bad:
        assert row["cell"] == "GRU" and words in row["status"]
        assert row["ours_ms"] == row["torch_ms"] == row["ratio"] == ""
    assert [(r["cell"], r["status"]) for r in good] == [("LSTM", "ok")] * 2
    assert words in capsys.readouterr().out
    page = file.with_suffix(".md").read_text()
    assert "## Not timed" in page and words in page


def test_failed_rows_are_measured_again_and_skipped_ones_are_not(file, monkeypatch):
    few = ["--cases", "GRU", "--dtype", "tf32"]
    for kind, code in ((Wrong, 1), (Large, 0), (Broken, 0)):
        with monkeypatch.context() as patch:
            patch.setattr(gatedrnn, "GRU", kind)
            assert bench(*few) == code
    assert [r["status"].split()[0] for r in read(file)] == ["output", "output"] + ["skipped:"] * 2
    file.unlink()
    with monkeypatch.context() as patch:
        patch.setattr(gatedrnn, "GRU", Wrong)
        assert bench(*few) == 1
    assert bench(*few) == 0
    assert [r["status"] == "ok" for r in read(file)] == [False, False, True, True]
    assert "## Not timed" not in file.with_suffix(".md").read_text()


def test_an_interrupted_run_has_its_page(file, monkeypatch):
    measure, calls = cuda.measure, []

    def interrupted(*args):
        calls.append(args)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return measure(*args)

    monkeypatch.setattr(cuda, "measure", interrupted)
    assert bench("--dtype", "tf32") == 130
    assert len(read(file)) == 2 and file.with_suffix(".md").exists()


# The machine


def test_samples_lie_between_events_and_l2_is_evicted_before(monkeypatch):
    now, log = [0.0], []

    class Event:
        def record(self):
            self.at = now[0]

        def elapsed_time(self, end):
            return end.at - self.at

    def spend(name, milliseconds):
        log.append(name)
        now[0] += milliseconds

    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    for l2, expected in (("cold", "ecrecr"), ("warm", "crcr")):
        log.clear()
        gpu = FakeGpu(l2)
        gpu._evict = SimpleNamespace(zero_=lambda: spend("e", 1000))
        gpu._event = Event
        contestant = timing.Contestant(lambda: spend("c", 5), lambda: spend("r", 100))
        assert cuda_device.Gpu.sample(gpu, contestant, 2) == pytest.approx(0.005)
        assert "".join(log) == expected


@pytest.mark.parametrize("dtype", ["tf32", "float32", "bfloat16"])
def test_precision_is_set_and_put_back(dtype):
    switches = [torch.backends.cudnn.rnn, torch.backends.cuda.matmul]
    before = [switch.fp32_precision for switch in switches]
    with pytest.raises(KeyError), cuda_device.precision(dtype):
        expected = "tf32" if dtype == "tf32" else "ieee"
        assert [switch.fp32_precision for switch in switches] == [expected] * 2
        raise KeyError
    assert [switch.fp32_precision for switch in switches] == before


def test_every_call_of_a_case_runs_in_its_precision(monkeypatch, file):
    seen = set()

    class Watching(gatedrnn.GRU):
        def forward(self, *args):
            seen.add(torch.backends.cudnn.rnn.fp32_precision)
            return super().forward(*args)

    monkeypatch.setattr(gatedrnn, "GRU", Watching)
    for dtype, expected in (("tf32", "tf32"), ("float32", "ieee")):
        seen.clear()
        assert bench("--cases", "GRU", "--dtype", dtype) == 0
        assert seen == {expected}


def test_the_bound_is_the_longer_of_products_and_memory():
    gpu = FakeGpu("cold")
    bound = gpu.bound(10**12, 10**9, "tf32")
    assert bound.by == "products" and bound.seconds == pytest.approx(0.01)
    bound = gpu.bound(10**10, 10**9, "tf32")
    assert bound.by == "memory" and bound.seconds == pytest.approx(0.25e-3)


def test_bytes_that_must_move():
    layer = cases.Layer("GRU", B=8, T=90, I=5, H=256, L=2)
    rows, weights = 8 * 90 * (5 + 3 * 256), 3 * 256 * (5 + 3 * 256)
    assert limits.moved(layer, False, 4) == 4 * (rows + weights)
    assert limits.moved(layer, True, 2) == 3 * 2 * (rows + weights)


SMI = "GPU-aaaa, 570.1, 345, 1593\nGPU-bbbb-cc, 570.1, 1980, 3201\n"


def test_driver_and_clocks_are_those_of_the_gpu_in_use(monkeypatch):
    done = SimpleNamespace(stdout=SMI)
    monkeypatch.setattr(environment.subprocess, "run", lambda *args, **kwargs: done)
    state = environment.gpu_state("bbbb-cc")
    assert state == {"driver": "570.1", "sm_mhz": "1980", "memory_mhz": "3201"}
    assert environment.gpu_state("")["sm_mhz"] == "345"
    done.stdout = "No devices were found\n"
    assert environment.gpu_state("bbbb-cc") == {}

    def missing(*args, **kwargs):
        raise FileNotFoundError

    monkeypatch.setattr(environment.subprocess, "run", missing)
    assert environment.gpu_state("bbbb-cc") == {}


def test_the_commit_of_files_without_a_repository(monkeypatch, tmp_path):
    monkeypatch.setattr(environment, "ROOT", tmp_path)
    monkeypatch.delenv("GATEDRNN_COMMIT", raising=False)
    assert environment.commit() == ""
    monkeypatch.setenv("GATEDRNN_COMMIT", "1234abc")
    assert environment.commit() == "1234abc"


# The page


def test_the_page_tells_the_latest_row_of_each_kind(file, capsys):
    assert bench("--cases", "GRU", "--dtype", "tf32") == 0
    rows = read_csv(file, GPU_NAMES)
    later = [row | {"ratio": "9.87", "commit": "def"} for row in rows]
    page = summary.page(rows + later)
    assert f"| GRU {TINY} | 9.87 | 9.87 |" in page and "- commit: def" in page
    assert page.count(f"| GRU {TINY} | tf32 |") == 2
    file.with_suffix(".md").unlink()
    assert summary.main([str(file)]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == str(file.with_suffix(".md"))
    assert file.with_suffix(".md").exists()


def test_a_picture_of_every_dtype(file):
    assert bench() == 0
    assert {row["pass"] for row in plot.read(file)} == {
        f"{pass_} {dtype}" for pass_ in ("inference", "training") for dtype in cuda.DTYPES}
    assert plot.main([str(file)]) == 0
    pixels = image.imread(file.with_suffix(".png"))
    assert pixels.shape[0] > 100 and pixels.shape[1] > 300 and pixels.std() > 0


@pytest.mark.parametrize("text", [None, "a,b\n1,2\n", ",".join(GPU_NAMES) + "\n"])
def test_no_page_without_rows(text, tmp_path):
    path = tmp_path / "rows.csv"
    if text is not None:
        path.write_text(text)
    with pytest.raises(SystemExit) as stop:
        summary.main([str(path)])
    assert stop.value.code == 2
