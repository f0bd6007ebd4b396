"""The benchmark's sweep and memory suite on the CPU, and the page of all suites."""

import csv
import math
import subprocess

import pytest
import torch
from matplotlib import image

import gatedrnn
from benchmarks import cases, cpu_summary, environment, limits, memory, modules, run, sweep, timing
from benchmarks.report import (
    MEMORY_NAMES,
    MODULE_NAMES,
    CsvFile,
    MemoryRow,
    ModuleRow,
    record,
)

TINY = "3,4,5,6,1"


@pytest.fixture(autouse=True)
def _short(monkeypatch):
    monkeypatch.setattr(timing, "WARM_UP", 1e-3)
    monkeypatch.setattr(limits, "REPEATS", 1)


@pytest.fixture
def _threads():
    """Puts torch's number of threads back."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def bench(path, *arguments, shapes=(TINY,)):
    own = ["--suite", "sweep", "--seconds", "0.001", "--csv", str(path)]
    return run.main([*own, "--shape", *shapes, *arguments])


def read(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


# The sweep


def test_the_grid(capsys):
    assert run.main(["--suite", "sweep", "--list"]) == 0
    names = capsys.readouterr().out.splitlines()
    assert len(set(names)) == len(names) == 6 * 3 * 3 * 5 * 2
    assert {"GRU 1,1,1,8,1", "LSTM 512,100,128,512,1"} <= {*names}


def test_every_shape_with_every_number_of_threads(tmp_path, capsys):
    path, before = tmp_path / "rows.csv", torch.get_num_threads()
    assert bench(path) == 0
    assert torch.get_num_threads() == before
    rows = read(path)
    assert [(row["case"], row["threads"], row["pass"]) for row in rows] == [
        (f"{cell} {TINY}", threads, pass_) for cell in ("GRU", "LSTM") for threads in "12"
        for pass_ in ("inference", "training")
    ]
    for row in rows:
        assert row["status"] == "ok" and row["checked"] == "float64" and int(row["rounds"]) >= 3
        assert min(float(row[name]) for name in ("ratio", "gflops", "share")) > 0
    assert "together: 8 cases" in capsys.readouterr().out


def test_an_interrupted_sweep_goes_on(tmp_path, monkeypatch, capsys):
    path, measure, calls = tmp_path / "rows.csv", sweep.timed, []

    def interrupted(*args):
        calls.append(args)
        if len(calls) == 4:
            raise KeyboardInterrupt
        measure(*args)

    monkeypatch.setattr(sweep, "LOW", 0.0)  # nothing is measured again
    monkeypatch.setattr(sweep, "timed", interrupted)
    assert bench(path) == 130
    assert len(read(path)) == 3
    assert bench(path) == 0
    assert len(calls) == 4 + 5 and len(read(path)) == 8
    assert "3 are in the CSV already" in capsys.readouterr().out
    assert bench(path) == 0
    assert len(calls) == 9 and len(read(path)) == 8
    assert "together: 8 cases" in capsys.readouterr().out
    monkeypatch.setattr(environment, "commit", lambda: "another")
    assert bench(path, "--threads", "1") == 0
    assert len(calls) == 9 + 4 and len(read(path)) == 12
    assert "together: 4 cases" in capsys.readouterr().out


def test_another_file_is_not_appended_to(tmp_path, capsys):
    path = tmp_path / "rows.csv"
    path.write_text("a,b\n1,2\n")
    with pytest.raises(SystemExit):
        bench(path)
    assert "has other columns" in capsys.readouterr().err and path.read_text() == "a,b\n1,2\n"


@pytest.mark.parametrize(("given", "calls", "slower"), [
    ([1.2], 1, False), ([0.98], 1, False), ([0.9, 0.8, 1.1], 3, False),
    ([0.9, 1.1, 0.8], 3, False), ([0.9, 0.95, 0.96], 3, True),
])
@pytest.mark.usefixtures("_threads")
def test_slower_is_what_was_so_three_times(given, calls, slower, monkeypatch):
    budgets, left = [], list(given)

    def timed(row, case, runs, budget, limits):
        row.ratio, row.ours_ms = left.pop(0), 1.0
        budgets.append(budget)

    monkeypatch.setattr(sweep, "timed", timed)
    case = cases.Layer("GRU", 3, 4, 5, 6, 1)
    row, = sweep.rows(case, [(1, "inference")], "float32", "any", {}, sweep.QUICK)
    assert budgets == [sweep.QUICK, sweep.AGAIN, sweep.AGAIN][:calls] and not left
    found = record(row, {})
    assert sweep.ratios(found) == pytest.approx(given) and sweep.is_slower(found) == slower
    lines = "\n".join(sweep.told([found]))
    assert ("below 1: " in lines) == (given[0] < 1) and ("  slower" in lines) == slower
    assert f"{int(slower)} below 0.97 three times" in lines


@pytest.mark.usefixtures("_threads")
def test_what_takes_long_is_measured_again_in_few_rounds(monkeypatch):
    budgets = []

    def timed(row, case, runs, budget, limits):
        row.ratio, row.ours_ms = 0.5, 1500.0
        budgets.append(budget)

    monkeypatch.setattr(sweep, "timed", timed)
    case = cases.Layer("GRU", 3, 4, 5, 6, 1)
    list(sweep.rows(case, [(1, "training")], "float32", "any", {}, sweep.FULL))
    assert budgets[1:] == [sweep.ONCE_LONG] * 2 and sweep.ONCE_LONG.rounds == 3


class Wrong(gatedrnn.GRU):
    def forward(self, *args):
        y, hn = super().forward(*args)
        return y + 0.01, hn


@pytest.mark.parametrize("most", [0, sweep.MOST_CHECKED])
def test_every_case_is_checked_large_ones_against_torch(most, tmp_path, monkeypatch):
    monkeypatch.setattr(sweep, "MOST_CHECKED", most)
    path, by = tmp_path / "rows.csv", "float64" if most else "torch"
    with monkeypatch.context() as patch:
        patch.setattr(gatedrnn, "GRU", Wrong)
        assert bench(path, "--threads", "1") == 1
    for row in read(path):
        assert row["checked"] == by and (row["status"] == "ok") == (row["cell"] == "LSTM")
        assert bool(row["ratio"]) == (row["cell"] == "LSTM")
        if row["cell"] == "GRU":
            assert "output 0 is off by 0.01" in row["status"]
    assert bench(path, "--threads", "1") == 0  # what failed is not done
    assert [row["cell"] for row in read(path)[4:]] == ["GRU", "GRU"]


def swept(cell, pass_, ratio, *again, case="1,2,3,4,1"):
    second, third = again or (None, None)
    return ModuleRow("sweep", f"{cell} {case}", cell, case, pass_, "float32", "avx512",
                     ratio=ratio, ratio_second=second, ratio_third=third, ours_ms=1.0, rounds=3,
                     threads=2, kernel="avx512 rows")


ABOUT = {"device": "Abacus", "torch": "2", "gatedrnn": "0", "commit": "abc",
         "date": "2026-11-23T00:00:00"}


def test_the_totals():
    rows = [swept("GRU", "inference", 4.0), swept("GRU", "inference", 0.25, 0.5, 0.96),
            swept("LSTM", "training", 0.99), swept("LSTM", "training", 0.9, 1.2, 0.8)]
    found = [record(row, ABOUT) for row in rows]
    gru, lstm = sweep.totals(found).values()
    assert gru == sweep.Total(2, 1, 1, pytest.approx(1.0), 0.96)
    assert lstm == sweep.Total(2, 2, 0, pytest.approx(math.sqrt(0.891)), 0.99)
    lines = list(sweep.told(found))
    assert [line.split()[2] for line in lines if "below 1:" in line] == ["0.250", "0.900", "0.990"]
    assert "together: 4 cases, 3 below 1, 1 below 0.97 three times" in lines[-1]
    assert list(sweep.told([])) == []


# What ran


@pytest.mark.parametrize(("case", "threads", "name"), [
    (cases.Layer("GRU", 64, 90, 5, 256, 2), 2, "rows"),
    (cases.Layer("GRU", 1, 90, 5, 256, 2), 2, "units"),
    (cases.Layer("LSTM", 1, 90, 5, 256, 2), 1, "alone"),
    (cases.Step("GRUCell", 8, 64, 64), 2, "cell"),
])
@pytest.mark.usefixtures("_threads")
def test_the_kernel_is_named(case, threads, name):
    torch.set_num_threads(threads)
    expected = f"{gatedrnn.raw.instruction_set()} {name}"
    assert modules.kernel_name(case, "float32") == expected


# Memory


def test_memory_end_to_end(tmp_path, capsys):
    path = tmp_path / "rows.csv"
    arguments = ["--suite", "memory", "--shape", "32,40,16,128,1", "--cases", "GRU"]
    assert run.main([*arguments, "--threads", "1", "--csv", str(path)]) == 0
    row, = read(path)
    output = 32 * 40 * 128 * 4 / memory.MIB
    for who in ("torch", "ours", "recompute"):
        held, peak = float(row[f"{who}_held_mib"]), float(row[f"{who}_mib"])
        least = 0.9 if who == "recompute" else 2  # the output, and but for recompute gates
        assert least * output < held < peak < 40 * output
    assert float(row["recompute_held_mib"]) < float(row["ours_held_mib"])
    assert float(row["recompute_time"]) > 0
    assert float(row["of_torch"]) == pytest.approx(
        float(row["ours_mib"]) / float(row["torch_mib"]), rel=1e-4)
    assert f"GRU {'32,40,16,128,1'}" in capsys.readouterr().out


def test_shapes_of_the_memory_suite():
    assert {case.shape for case in cases.memory()} == {
        case.shape for case in cases.layers() if case.B >= 8}


def test_a_process_that_fails_is_told():
    case = cases.Layer("GRU", 2, 2, 2, 2, 1)
    with pytest.raises(RuntimeError, match="float31"):
        memory.in_process(case, "ours", "float31", 1)


def test_a_case_without_memory_fails(tmp_path, monkeypatch, capsys):
    def failing(*args):
        raise RuntimeError("no such file: clear_refs")

    monkeypatch.setattr(memory, "in_process", failing)
    path = tmp_path / "rows.csv"
    arguments = ["--suite", "memory", "--shape", TINY, "--cases", "GRU", "--csv", str(path)]
    assert run.main(arguments) == 1
    assert read(path)[0]["status"] == "no such file: clear_refs"
    out, err = capsys.readouterr()
    assert "training: FAILED: no such file: clear_refs" in out and "CHECK" not in out + err
    assert "1 failed" in err


# The commit of a row


def test_written_results_do_not_make_a_commit_dirty(tmp_path, monkeypatch):
    def git(*words):
        subprocess.run(["git", "-C", str(tmp_path), "-c", "user.name=n", "-c", "user.email=e",
                        *words], check=True, capture_output=True)

    monkeypatch.setattr(environment, "ROOT", tmp_path)
    code, result = tmp_path / "code", tmp_path / "benchmarks" / "results" / "rows.csv"
    result.parent.mkdir(parents=True)
    for path in (code, result):
        path.write_text("before")
    git("init")
    git("add", ".")
    git("commit", "-m", "all")
    name = environment.commit()
    assert name
    result.write_text("after")
    (tmp_path / "untracked").write_text("")
    assert environment.commit() == name
    code.write_text("after")
    assert environment.commit() == f"{name}-dirty"


# The page


def layer(cell, pass_, ratio, **more):
    return ModuleRow("layers", f"{cell} 8,9,5,6,2", cell, "8,9,5,6,2", pass_, "float32", "avx512",
                     torch_ms=ratio, ours_ms=1.0, ours_p20_ms=0.9, ours_p80_ms=1.1, ratio=ratio,
                     gflops=3.0, share=0.5, rounds=7, threads=2, kernel="avx512 rows", **more)


PEERS = {"onnxruntime_ms": 1.5, "onnxruntime_ratio": 1.53, "openvino_ms": 1.1,
         "openvino_ratio": 1.17}


def written(path, rows, names):
    with path.open("w", newline="") as file:
        out = CsvFile(file, ABOUT, names)
        for row in rows:
            out.add(row)
    return str(path)


def test_the_page_tells_every_suite(tmp_path, capsys):
    failed = layer("LSTM", "training", 1.0)
    failed.status = "output 0 is off"
    layers = [layer("GRU", "inference", 2.5, **PEERS), layer("GRU", "training", 3.5),
              layer("LSTM", "inference", 1.25, peers="openvino: no"), failed]
    sweeps = [swept("GRU", "inference", 4.0), swept("GRU", "training", 0.9, 0.95, 0.96)]
    step = MemoryRow("memory", "GRU 8,9,5,6,2", "GRU", "8,9,5,6,2", "training", "float32", "avx512",
                     torch_mib=200.0, ours_mib=50.0, of_torch=0.25, torch_held_mib=100.0,
                     ours_held_mib=80.0, threads=2, recompute_mib=30.0, recompute_of_torch=0.15,
                     recompute_time=1.125)
    paths = [written(tmp_path / "layers.csv", layers, MODULE_NAMES),
             written(tmp_path / "sweep.csv", sweeps, MODULE_NAMES),
             written(tmp_path / "memory.csv", [step], MEMORY_NAMES)]
    assert cpu_summary.main([*paths, "--output", str(tmp_path)]) == 0
    page, picture = tmp_path / "cpu.md", tmp_path / "cpu.png"
    assert capsys.readouterr().out.split() == [str(page), str(picture)]
    text = page.read_text()
    for line in ("| 8,9,5,6,2 | 2.50 | 3.50 | 1.25 |", "| GRU 8,9,5,6,2 | 2.50 | 1.53 | 1.17 |",
                 "| LSTM 8,9,5,6,2 | 1.25 | - | - |", "- LSTM 8,9,5,6,2: openvino: no",
                 "| GRU training, 2 threads | 1 | 0.90 | 1 | 1 | 0.96 |",
                 "| GRU 1,2,3,4,1 | training | 2 | avx512 rows | 0.90 | 0.95 0.96 | slower |",
                 "| GRU 8,9,5,6,2 | 200 | 50 | 25 % | 100 | 80 | 80 % | 30 | 15 % | 1.12 |",
                 "- LSTM 8,9,5,6,2, training, 2 threads: output 0 is off", "- commit: abc"):
        assert f"{line}\n" in text
    assert "1.5 | 1.1 | 1 | 0.9 - 1.1 | 3 | 50 % | avx512 rows |" in text
    pixels = image.imread(picture)
    assert pixels.shape[0] > 100 and pixels.shape[1] > 300 and pixels.std() > 0


def test_the_last_of_rows_that_measure_the_same(tmp_path):
    path = written(tmp_path / "a.csv", [layer("GRU", "inference", r) for r in (2.0, 3.0)],
                   MODULE_NAMES)
    assert cpu_summary.main([path, "-o", str(tmp_path)]) == 0
    text = (tmp_path / "cpu.md").read_text()
    assert "| 8,9,5,6,2 | 3.00 |" in text and "2.00" not in text
    assert "## sweep" not in text and "## memory" not in text and "OpenVINO" not in text


@pytest.mark.parametrize(("text", "words"), [
    ("a,b\n1,2\n", "is no CSV of the CPU"),
    (",".join(MODULE_NAMES) + "\n", "there is no row"),
    ("suite,case,pass,status,threads,dtype,device\nkernels,,,ok,,,\n", "of suite kernels"),
    (None, "No such file"),
])
def test_no_page_of_other_files(text, words, tmp_path, capsys):
    path = tmp_path / "rows.csv"
    if text is not None:
        path.write_text(text)
    with pytest.raises(SystemExit) as stop:
        cpu_summary.main([str(path), "-o", str(tmp_path)])
    assert stop.value.code == 2 and words in capsys.readouterr().err
    assert not (tmp_path / "cpu.md").exists()
