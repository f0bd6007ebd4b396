"""The package as a whole: what importing it costs and changes, and its report."""

import sys
from importlib import resources

import torch
from helpers import run_python

import gatedrnn


def seconds_to_import() -> float:
    code = (
        "import time, torch; start = time.perf_counter(); import gatedrnn; "
        "print(time.perf_counter() - start)"
    )
    return float(run_python(code))


def test_import_costs_at_most_a_fifth_of_a_second_over_torch():
    """The least of up to three measurements: a busy machine makes single ones longer."""
    assert any(seconds_to_import() < 0.2 for _ in range(3))


def test_import_brings_nothing_else_and_changes_no_setting_of_torch():
    settings = (
        "(torch.get_num_threads(), torch.get_num_interop_threads(), torch.get_default_dtype(), "
        "torch.is_grad_enabled(), torch.initial_seed(), torch.get_rng_state().sum().item(), "
        "torch.backends.mkldnn.enabled, torch.are_deterministic_algorithms_enabled(), "
        "torch.get_float32_matmul_precision(), torch.cuda.is_initialized(), torch.nn.GRU, "
        "torch.nn.LSTM, str(torch.get_default_device()))"
    )
    code = (
        f"import sys, torch; torch.manual_seed(1); torch.set_default_device('meta'); "
        f"before, modules = {settings}, set(sys.modules); import gatedrnn; "
        f"assert {settings} == before, (before, {settings}); "
        "print(*sorted(set(sys.modules) - modules))"
    )
    new = run_python(code).split()
    assert "gatedrnn" in new
    foreign = {n.partition(".")[0] for n in new} - {"gatedrnn", "torch"}
    assert foreign <= set(sys.stdlib_module_names)
    heavy = ("torch._dynamo", "torch._inductor", "torch.onnx", "torch.ao", "torch.distributed")
    assert [n for n in new if n.startswith(heavy)] == []


def test_public_names():
    names = {"GRU", "LSTM", "GRUCell", "LSTMCell", "convert", "revert", "functional"}
    assert names <= set(gatedrnn.__all__)
    assert all(hasattr(gatedrnn, n) for n in gatedrnn.__all__)
    assert gatedrnn.__version__[0].isdigit()
    assert {"gru", "lstm", "gru_cell", "lstm_cell"} <= set(gatedrnn.functional.__all__)


def test_types_are_shipped():
    assert resources.files("gatedrnn").joinpath("py.typed").is_file()


def test_report_says_what_a_bug_report_needs():
    report = run_python("import runpy; runpy.run_module('gatedrnn', run_name='__main__')")
    assert gatedrnn.__version__ in report
    assert torch.__version__ in report
    assert sys.version.split()[0] in report
    lower = report.lower()
    for word in ("cuda", "threads", "instruction set"):
        assert word in lower
    assert any(isa in lower for isa in ("avx512", "avx2", "baseline"))
