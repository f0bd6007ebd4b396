"""What a training step needs of memory: torch.nn's layers and ours, each in a process of its own.

Of the second step, when everything that is made once is there: what the process has more than
before it, at most (peak) and between forward and backward (held). Input, parameters and cotangents
are there before; outputs, what is kept for backward, workspaces and gradients are not.
Blocks that ours keeps idle, marked as free, count as not there before and between.
"""

import ctypes
import gc
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import torch

from .cases import Layer
from .environment import ROOT
from .modules import build, kernel_name
from .report import MemoryRow
from .timing import Budget, Contestant, in_turn, paired_ratio

MIB = 1 << 20
# glibc keeps what is smaller for reuse, and raises this bound as it goes. Held fast, a block goes
# back to the system as soon as it is freed, and resident memory is memory in use.
ENVIRONMENT = {"MALLOC_MMAP_THRESHOLD_": str(128 << 10)}


def resident(name: str) -> int:
    """Bytes of this process in memory, VmRSS at present or VmHWM at most."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(re.search(rf"^{name}:\s*(\d+) kB$", status, re.MULTILINE)[1])


def marked_free() -> int:
    """Bytes in memory that the system may take when it needs them."""
    rollup = Path("/proc/self/smaps_rollup").read_text()
    return 1024 * int(re.search(r"^LazyFree:\s*(\d+) kB$", rollup, re.MULTILINE)[1])


def step(case: Layer, who: str, dtype: str) -> dict[str, int]:
    """Bytes that the second training step of torch, ours or ours with recompute needs here."""
    run = build(case, dtype)["torch" if who == "torch" else "ours"]()
    run.module.recompute = who == "recompute"
    run.training()
    run.reset()
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # VmHWM starts again from VmRSS
    before = resident("VmRSS") - marked_free()
    outputs = run.call()
    held = resident("VmRSS") - marked_free() - before
    torch.autograd.backward(outputs, run.cotangents)
    return {"peak": resident("VmHWM") - before, "held": held}


def in_process(case: Layer, who: str, dtype: str, threads: int) -> dict[str, int]:
    """The same in a fresh process. Raises RuntimeError with what it said last if it fails."""
    task = json.dumps([case.cell, case.B, case.T, case.I, case.H, case.L, who, dtype, threads])
    done = subprocess.run([sys.executable, "-m", "benchmarks.memory", task], cwd=ROOT,
                          env=os.environ | ENVIRONMENT, capture_output=True, text=True)
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:]
        raise RuntimeError(last[0] if last else f"it ended with {done.returncode}")
    return json.loads(done.stdout)


def recompute_ratio(case: Layer, dtype: str, budget: Budget) -> float:
    """The time of a training step with recompute over that without."""
    runs = {name: build(case, dtype)["ours"]() for name in ("kept", "again")}
    runs["again"].module.recompute = True
    times = in_turn({name: Contestant(r.training, r.reset) for name, r in runs.items()}, budget)
    return paired_ratio(times["again"], times["kept"]).median


def rows(case: Layer, dtype: str, isa: str, threads: int, budget: Budget) -> Iterator[MemoryRow]:
    row = MemoryRow("memory", str(case), case.cell, case.shape, "training", dtype, isa,
                    kernel=kernel_name(case, dtype))
    try:
        theirs, ours, again = (
            in_process(case, who, dtype, threads) for who in ("torch", "ours", "recompute")
        )
    except RuntimeError as error:
        row.status = str(error)
    else:
        row.torch_mib, row.ours_mib = theirs["peak"] / MIB, ours["peak"] / MIB
        row.torch_held_mib, row.ours_held_mib = theirs["held"] / MIB, ours["held"] / MIB
        row.of_torch = row.ours_mib / row.torch_mib
        row.recompute_mib, row.recompute_held_mib = again["peak"] / MIB, again["held"] / MIB
        row.recompute_of_torch = row.recompute_mib / row.torch_mib
        row.recompute_time = recompute_ratio(case, dtype, budget)
    yield row


def main() -> None:
    *sizes, who, dtype, threads = json.loads(sys.argv[1])
    torch.set_num_threads(threads)
    print(json.dumps(step(Layer(*sizes), who, dtype)))


if __name__ == "__main__":
    main()
