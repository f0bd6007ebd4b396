"""The suite of the plan: the kernels that can run a layer on a GPU, one beside the other.

Each pass of a case is timed with every kernel that GATEDRNN_CUDA_KERNEL can ask for and that is
there: forward with the gates kept, and backward. plan_table.py makes of the rows what the plan
goes by.
"""

import contextlib
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

import gatedrnn

from .cases import Layer
from .cuda import why
from .cuda_device import Gpu, precision
from .limits import flops, forward_products
from .modules import Run, build, checked
from .report import PLAN_NAMES, SKIPPED, CsvFile, PlanRow, Table, read_csv
from .timing import Budget, Contestant, in_turn, spread

DTYPES = ("tf32", "float32", "float16", "bfloat16")
KERNELS = ("step", "persistent", "grid", "wavefront")
PASSES = {"forward": "inference", "backward": "training"}  # and what a check calls them
VARIABLE = "GATEDRNN_CUDA_KERNEL"


@contextlib.contextmanager
def asking_for(kernel: str) -> Iterator[None]:
    before = os.environ.get(VARIABLE)
    os.environ[VARIABLE] = kernel
    try:
        yield
    finally:
        if before is None:
            del os.environ[VARIABLE]
        else:
            os.environ[VARIABLE] = before


def different(run: Run, pass_: str) -> list[str]:
    """The kernels that run a pass in ways of their own: who lacks one takes another's."""
    found = {}
    for kernel in KERNELS:
        with asking_for(kernel):
            told = gatedrnn.explain(run.module, run.argument)
        found.setdefault(re.search(rf"^ *{pass_}: (.*)", told, re.MULTILINE)[1], kernel)
    return list(found.values())


def contestant(run: Run, pass_: str, kernel: str) -> Contestant:
    """A pass by a kernel. Backward goes through one graph again and again."""
    if pass_ == "forward":
        def call() -> object:
            with asking_for(kernel):
                return run.call()
    else:
        with asking_for(kernel):
            outputs = run.call()

        def call() -> object:
            with asking_for(kernel):
                return torch.autograd.backward(outputs, run.cotangents, retain_graph=True)

    return Contestant(call, run.reset)


def rows(case: Layer, dtype: str, gpu: Gpu, budget: Budget) -> Iterator[PlanRow]:
    """Checks every kernel, then times those that differ in turn."""
    make = build(case, dtype, gpu.device)
    run = make["ours"]()
    verdicts = {}
    for kernel in dict.fromkeys(k for p in PASSES for k in different(run, p)):
        with asking_for(kernel):
            verdicts[kernel], _ = checked(make, dtype)
    for pass_, check in PASSES.items():
        if case.L > 1 and pass_ == "backward":  # layer by layer, whoever went forward
            continue
        found = {}
        for kernel in different(run, pass_):
            row = PlanRow("plan", str(case), case.cell, case.shape, pass_, dtype, isa="",
                          kernel=kernel, L=case.L, H=case.H, B=case.B, T=case.T)
            row.judge(verdicts[kernel][check])
            found[kernel] = row
        times = in_turn({kernel: contestant(run, pass_, kernel)
                         for kernel, row in found.items() if not row.failed}, budget, gpu.sample)
        operations = (1 if pass_ == "forward" else 2) * flops(forward_products(case))
        for kernel, samples in times.items():
            found[kernel].set_ours(spread(samples), len(samples), operations, None)
        yield from found.values()


def measure(case: Layer, dtype: str, gpu: Gpu, budget: Budget) -> list[PlanRow]:
    found: list[PlanRow] = []
    try:
        with precision(dtype):
            found += rows(case, dtype, gpu, budget)
    except Exception as error:
        row = PlanRow("plan", str(case), case.cell, case.shape, "", dtype, isa="")
        row.status = why(error)
        found = [row]
    gpu.clear()
    return found


def run(work: list[Layer], dtypes: Sequence[str], gpu: Gpu, budget: Budget, path: Path) -> int:
    """Times what `path` does not hold yet, prints and appends it. Returns the exit code; raises
    ValueError or OSError if `path` cannot be used."""
    path.parent.mkdir(parents=True, exist_ok=True)
    machine = gpu.machine()
    about = gpu.describe() | {"architecture": machine.architecture,
                              "multiprocessors": machine.multiprocessors}
    key = ("device", "commit", "l2", "case", "dtype")
    done = {tuple(row[name] for name in key) for row in read_csv(path, PLAN_NAMES)
            if row["status"] == "ok" or row["status"].startswith(SKIPPED)}
    here = tuple(str(about[name]) for name in key[:3])
    print(f"device    {about['device']}, {machine.multiprocessors} SM\nrows      {path}\n")
    table, failures = Table("plan"), 0
    with path.open("a", newline="", encoding="utf-8") as file:
        csv = CsvFile(file, about, PLAN_NAMES)
        for case, dtype in ((c, d) for c in work for d in dtypes):
            if (*here, str(case), dtype) in done:
                continue
            for row in measure(case, dtype, gpu, budget):
                table.add(row)
                csv.add(row)
                failures += row.failed
    return 1 if failures else 0
