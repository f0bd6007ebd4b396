"""The rule at 1 and 2 threads with each instruction set forced, each in a process of its own.

The instruction set is read once, at import: those processes run test_threads below anew.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from equivalence import CELLS, LAYERS, THREADS, Case, Trial, torch_threads
from tolerance import hold_together

import gatedrnn

CASES = [
    *(Case(cell, (9, 17, 33, 129)) for cell in LAYERS),
    *(Case(cell, (5, 64, 5, 64)) for cell in LAYERS),
    *(Case(cell, (3, 1, 129, 500)) for cell in LAYERS),
    *(Case(cell, (5, 8, 5, 33), torch.float64) for cell in LAYERS),
    *(Case(cell, (7, 6, 5, 33), layers=2, bidirectional=True, form="unsorted") for cell in LAYERS),
    Case("lstm", (7, 6, 5, 33), proj=7),
    *(Case(cell, (9, 17, 33, 129), torch.bfloat16) for cell in LAYERS),
    *(Case(cell, (17, 33, 129)) for cell in CELLS),
    *(Case(cell, (3, 5, 7), torch.float64) for cell in CELLS),
]
# Each set, and the levels in torch's own report of the machine that imply it.
SETS = {
    "avx512": ("AVX512",),
    "avx2": ("AVX512", "AVX2"),
    "baseline": (torch.backends.cpu.get_cpu_capability(),),
}


@pytest.mark.parametrize("case", CASES, ids=str)
def test_threads(case):
    """The rule against the oracle at each count, and between the counts."""
    trial = Trial(case)
    peer, oracle = trial.peer(), trial.oracle()
    results = []
    for count in THREADS:
        with torch_threads(count):
            results.append(trial.run())
        trial.hold(results[-1], peer, oracle, f"at {count} threads")
    hold_together(*results, peer, oracle, case.dtype, case.gates)


def child(name, *arguments):
    root = Path(gatedrnn.__file__).resolve().parent.parent
    paths = [str(root), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "GATEDRNN_CPU_ISA": name, "PYTHONPATH": os.pathsep.join(paths)}
    return subprocess.run(
        [sys.executable, *arguments], env=environment, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize("name", SETS)
def test_instruction_set(name):
    level = torch.backends.cpu.get_cpu_capability()
    if level not in SETS[name]:
        pytest.skip(f"this CPU has no {name}: torch reports {level}")
    report = child(name, "-m", "gatedrnn", "report")
    assert report.returncode == 0 and name in report.stdout, report.stdout + report.stderr
    suite = f"{Path(__file__).resolve()}::{test_threads.__name__}"
    run = child(name, "-m", "pytest", "-q", "-p", "no:cacheprovider", suite)
    assert run.returncode == 0, run.stdout + run.stderr
    assert f"{len(CASES)} passed" in run.stdout
