"""The suites on a GPU: gatedrnn's modules beside torch.nn's, which are cuDNN's, and other peers.

A case is checked in a dtype, then both passes are timed. What fails in between, memory that does
not suffice among it, becomes the row's status, and the next case runs.
"""

import os
import re
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import gatedrnn

from . import peers, summary
from .cases import Case, Layer, Special
from .check import judge
from .cuda_device import Gpu, precision
from .floor import floor
from .limits import ELEMENT, flops, forward_products, moved, training_products
from .modules import Run, build
from .ragged import PackedRun
from .report import GPU_NAMES, SKIPPED, CsvFile, GpuRow, Table, read_csv
from .timing import Budget, Contestant, in_turn, paired_ratio, spread

DTYPES = ("tf32", "float32", "float16", "bfloat16")
FEW_DTYPES = {"grid": ("tf32", "bfloat16"), "special": ("tf32", "bfloat16"),
              "baseline": ("tf32", "float32")}  # of the suites that would take long
PASSES = {"inference": forward_products, "training": training_products}
FOLDER = Path(__file__).resolve().parent / "results"
KEY = ("suite", "case", "dtype", "pass", "l2", "device", "commit")


def measure(case: Case, suite: str, dtype: str, passes: Sequence[str], gpu: Gpu,
            budget: Budget) -> list[GpuRow]:
    """Checks and times the passes of a case."""
    rows = [GpuRow(suite, str(case), case.cell, case.shape, p, dtype, isa="") for p in passes]
    try:
        with precision(dtype):
            _fill(rows, case, dtype, gpu, budget)
    except Exception as error:
        reason = why(error)
        for row in rows:
            if row.status == "ok" and row.ours_ms is None:
                row.status = reason
    try:
        gpu.clear()
    except RuntimeError as error:  # a kernel's fault that came to light late; no case runs after it
        for row in rows:
            row.status = why(error)
    return rows


def why(error: Exception) -> str:
    text = " ".join(str(error).split())
    if "out of memory" in text.lower() or "ALLOC_FAILED" in text:
        return SKIPPED + "it does not fit in the GPU's memory"
    return f"{type(error).__name__}: {text[:300]}"


def _fill(rows: list[GpuRow], case: Case, dtype: str, gpu: Gpu, budget: Budget) -> None:
    packed = isinstance(case, Special) and case.feature == "packed"
    kind = partial(PackedRun, lengths=case.lengths) if packed else Run
    make = build(case, dtype, gpu.device, kind)
    found = {}
    for name in ("ref", "peer", "ours"):  # one after the other: large cases need the memory
        run = make[name]()
        found[name] = {row.pass_: getattr(run, f"{row.pass_}_results")() for row in rows}
    for row in rows:
        row.judge(judge(*(found[name][row.pass_] for name in ("ours", "peer", "ref")), dtype))
    runs = {name: make[name]() for name in ("torch", "ours")}
    others, notes = _others(case, dtype, runs["torch"], found)
    del found, run
    runs |= others
    for row in rows:
        row.kernel = _kernel(runs["ours"], row.pass_)
        row.peers = "; ".join(notes) or None
        if not row.failed:
            _time(row, case, runs, gpu, budget)


def _kernel(run: Run, pass_: str) -> str | None:
    """Whose time a row is, of a layer on a GPU."""
    told = gatedrnn.explain(run.module, run.argument)
    passes = ("forward",) if pass_ == "inference" else ("forward", "backward")
    found = {p: _kind(line)
             for p in passes for line in re.findall(rf"^ *{p}: (.*)", told, re.MULTILINE)}
    return " ".join(dict.fromkeys(found.values())) or None


def _kind(told: str) -> str:
    return ("wavefront" if "wavefront" in told else "step" if "persistent" not in told else
            "grid" if "blocks of the grid" in told else "persistent")


def _others(case: Case, dtype: str, theirs: Run,
            found: dict[str, dict[str, dict]]) -> tuple[dict[str, Run], list[str]]:
    """The peers beside cuDNN that run this case right, and why the others that are here do not."""
    runs, notes = {}, []
    for name in peers.importable() if type(case) is Layer else []:
        try:
            module = peers.PEERS[name](theirs.module, dtype).to(theirs.inputs[0].device)
            run = Run(module, [t.detach() for t in theirs.inputs], theirs.cotangents, dtype)
            for pass_, expected in found["ref"].items():
                results = getattr(run, f"{pass_}_results")()
                names = [n for n in results if n in expected]  # weights are arranged otherwise
                verdict = judge(*({n: part[n] for n in names} for part in
                                  (results, found["peer"][pass_], expected)), dtype)
                if verdict.failure:
                    raise peers.Unfit(verdict.failure)
            runs[name] = run
        except Exception as error:
            reason = str(error) if isinstance(error, peers.Unfit) else why(error)
            notes.append(f"{name}: {reason}")
    return runs, notes


def _time(row: GpuRow, case: Case, runs: dict[str, Run], gpu: Gpu, budget: Budget) -> None:
    training = row.pass_ == "training"
    contestants = {
        name: Contestant(run.training, run.reset) if training else Contestant(run.inference)
        for name, run in runs.items()
    }
    row.torch_mib, row.ours_mib = (gpu.peak_mib(contestants[n]) for n in ("torch", "ours"))
    row.of_torch = row.ours_mib / row.torch_mib if row.torch_mib else None
    times = in_turn(contestants, budget, gpu.sample)
    operations = round(case.share * flops(PASSES[row.pass_](case)))
    size = moved(case, training, ELEMENT[row.dtype])
    ours = spread(times["ours"])
    row.set_ours(ours, len(times["ours"]), operations, gpu.bound(operations, size, row.dtype))
    row.gb_per_s = size / ours.median / 1e9
    if isinstance(case, Layer):
        row.set_floor(floor(case, training, row.dtype, gpu.machine()))
    row.set_torch(spread(times["torch"]), paired_ratio(times["torch"], times["ours"]))
    for name in runs.keys() & peers.PEERS.keys():
        setattr(row, f"{name}_ms", 1e3 * spread(times[name]).median)


def default_csv(name: str) -> Path:
    """Where the rows of a GPU of this name go: benchmarks/results or the folder RESULTS."""
    folder = Path(os.environ.get("RESULTS") or FOLDER)
    return folder / f"{re.sub('[^a-z0-9]+', '-', name.lower()).strip('-')}.csv"


def rows_of(work: list[Case], suite: str, dtypes: Sequence[str], gpu: Gpu, budget: Budget,
            is_done: Callable[[Case, str, str], bool]) -> Iterator[GpuRow]:
    for case in work:
        for dtype in dtypes:
            passes = [p for p in PASSES if not is_done(case, dtype, p)]
            if passes:
                yield from measure(case, suite, dtype, passes, gpu, budget)


def run(work: list[Case], suite: str, dtypes: Sequence[str], gpu: Gpu, budget: Budget,
        path: Path) -> int:
    """Runs what `path` does not hold yet, prints it, appends it, and summarises the whole file
    beside it. Returns the exit code. Raises ValueError or OSError if `path` cannot be used."""
    path.parent.mkdir(parents=True, exist_ok=True)
    before = read_csv(path, GPU_NAMES)
    limits = [f"{gpu.product_rate(d) / 1e12:.0f} ({d})" for d in dtypes]
    copy, machine = gpu.copy_rate(), gpu.machine()
    about = gpu.describe()
    done = {tuple(row[name] for name in KEY) for row in before
            if row["status"] == "ok" or row["status"].startswith(SKIPPED)}

    def is_done(case: Case, dtype: str, pass_: str) -> bool:
        here = (str(about[name]) for name in ("l2", "device", "commit"))
        return (suite, str(case), dtype, pass_, *here) in done

    print(f"device    {about['device']}, driver {about.get('driver', '?')}, SM at "
          f"{about.get('sm_mhz', '?')} MHz, memory at {about.get('memory_mhz', '?')} MHz, L2 "
          f"{about['l2']}")
    print(f"versions  gatedrnn {about['gatedrnn']} {about['commit']}, torch {about['torch']}, CUDA "
          f"{about['cuda']}, cuDNN {about['cudnn']}, {about['date']}")
    print(f"limits    products {', '.join(limits)} TFLOP/s; copying {copy / 1e9:.0f} GB/s; "
          f"{machine.multiprocessors} SM, at most {machine.hertz / 1e6:.0f} MHz")
    print(f"rows      {path}")
    known = sum(is_done(c, d, p) for c in work for d in dtypes for p in PASSES)
    if known:
        print(f"          {known} of this commit are there already and are not measured again")
    print(flush=True)
    table, failures = Table("gpu"), 0
    try:
        with path.open("a", newline="", encoding="utf-8") as file:
            csv = CsvFile(file, about, GPU_NAMES)
            for row in rows_of(work, suite, dtypes, gpu, budget, is_done):
                table.add(row)
                csv.add(row)
                failures += row.failed
    finally:  # an interrupted run has its page too
        if read_csv(path, GPU_NAMES):
            summary.write(path, [
                f"measured at the start: {', '.join(limits)} TFLOP/s in matrix products, "
                f"{copy / 1e9:.0f} GB/s in a copy",
                f"SM clock at the end: {gpu.describe().get('sm_mhz', '?')} MHz",
            ])
    if failures:
        print(f"{failures} failed")
    return 1 if failures else 0

