"""The command line: choose cases, check, time, print. README.md gives the method.

The exit code is 0 if every case passed its check, 1 if one did not, 2 if there was nothing to run.
On a GPU a case that does not fit in its memory is skipped. There, and in a sweep, rows that the CSV
holds already are not measured again.
"""

import argparse
import contextlib
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from . import cases, cpu, cpu_peers, cuda, kernels, plan, sweep
from .check import EPS
from .cuda_device import Gpu
from .limits import kernel_module
from .report import read_csv
from .timing import Budget

FULL, QUICK = Budget(rounds=7, seconds=3.0), Budget(rounds=5, seconds=0.3)
CPU_DTYPES = ("float32", "float64", "bfloat16")
GPU_FULL, GPU_QUICK = Budget(rounds=11, seconds=0.4), Budget(rounds=7, seconds=0.15)

EPILOG = """\
examples:
  python -m benchmarks.run --quick                           every layer, a few rounds
  python -m benchmarks.run --suite cells --csv cells.csv
  python -m benchmarks.run --cases 'GRU 1,' 'LSTM 1,'        only batch 1
  python -m benchmarks.run --shape 32,168,12,96,2            a shape of your own
  python -m benchmarks.run --suite kernels --cases 'GRU 64,.* avx512'
  python -m benchmarks.run --suite sweep --csv sweep.csv     540 shapes; goes on if interrupted
  python -m benchmarks.run --suite memory                    of a training step
  python -m benchmarks.plot cells.csv
  python -m benchmarks.run --device cuda                     ten layers beside cuDNN, four dtypes
  python -m benchmarks.run --device cuda --suite grid --dtype tf32 bfloat16"""


def positive(kind: type) -> Any:
    def parse(text: str) -> Any:
        with contextlib.suppress(ValueError):
            if 0 < (value := kind(text)) < float("inf"):
                return value
        raise argparse.ArgumentTypeError(f"expected a positive number, not {text!r}")

    return parse


def pattern(text: str) -> re.Pattern[str]:
    try:
        return re.compile(text, re.IGNORECASE)
    except re.error as error:
        raise argparse.ArgumentTypeError(f"{text!r} is no regular expression: {error}") from None


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.run", epilog=EPILOG,
        description="Checks gatedrnn against torch.nn, then times both in turn.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--device", choices=list(cases.ON), default="cpu", help="where to run (default: cpu)")
    add("--suite", choices=cases.SUITES, default="layers",
        help="layers and cells: modules beside torch.nn's; on the CPU ragged: with lengths beside "
             "packing, kernels: the raw kernels on NumPy arrays, sweep: layers over a grid of "
             "shapes, memory: that of a training step; on a GPU grid: layers of every size, "
             "special: bidirectional, packed and projected ones, baseline: the layers, and those "
             "of few units beside cuDNN's, plan: our kernels beside each other (default: layers)")
    add("--cases", nargs="+", type=pattern, metavar="REGEX", default=[],
        help="only cases whose name, as --list gives it, one of these finds")
    add("--shape", nargs="+", metavar="B,T,I,H,L", default=[],
        help="these shapes instead of the usual ones; B,I,H for the cells")
    add("--dtype", nargs="+", choices=list(EPS), metavar="DTYPE",
        help=f"cpu: one of {', '.join(CPU_DTYPES)} (default: {CPU_DTYPES[0]}); cuda: any of "
             f"{', '.join(EPS)} (default: {' '.join(cuda.DTYPES)}, of some suites two of these), "
             "where tf32 is float32 whose products may be rounded to TF32")
    add("--l2", choices=["cold", "warm"], default="cold",
        help="cuda: whether L2 is overwritten before each call (default: cold)")
    add("--threads", type=positive(int), metavar="N",
        help=f"default: as many as torch uses; sweep: {' and '.join(map(str, sweep.THREADS))}")
    add("--no-peers", dest="peers", action="store_false",
        help="layers (cpu): without ONNX Runtime and OpenVINO, which otherwise take part in "
             "inference where they can be imported")
    add("--quick", action="store_true", help="the same cases, fewer rounds")
    add("--seconds", type=positive(float), metavar="S",
        help=f"time for each case and pass, at least (default: {FULL.seconds:g}, with --quick "
             f"{QUICK.seconds:g}; never fewer than {FULL.rounds}, or {QUICK.rounds}, rounds; "
             f"sweep: {sweep.FULL.seconds:g}, {sweep.QUICK.seconds:g}, {sweep.FULL.rounds}; cuda: "
             f"{GPU_FULL.seconds:g}, {GPU_QUICK.seconds:g}, {GPU_FULL.rounds}, {GPU_QUICK.rounds})")
    add("--csv", metavar="FILE",
        help="write a row for each case and pass (sweep, cuda: append; cuda's default: the GPU's "
             "file in benchmarks/results or in the folder that RESULTS names)")
    add("--list", action="store_true", help="name the cases and stop")
    return parser


def select(args: argparse.Namespace, isas: Sequence[str]) -> cpu.Work:
    """The cases and variants that --cases and --shape leave. Raises ValueError for a bad shape."""
    shapes = [cases.parse_shape(text, args.suite) for text in args.shape] or None
    found = []
    for case in cases.of_suite(args.suite, shapes, args.device):
        several = kernels.variants(case, isas) if args.suite == "kernels" else [None]
        names = {v: name_of(case, v) for v in several}
        chosen = [v for v in several
                  if not args.cases or any(p.search(names[v]) for p in args.cases)]
        if chosen:
            found.append((case, chosen))
    return found


def name_of(case: cases.Case, variant: kernels.Variant | None) -> str:
    return f"{case} {variant}" if variant else str(case)


def budget_of(args: argparse.Namespace, usual: Budget) -> Budget:
    return Budget(usual.rounds, args.seconds) if args.seconds else usual


def main(argv: Sequence[str] | None = None) -> int:
    parser = build_parser()
    args = parser.parse_args(argv)
    if args.suite not in cases.ON[args.device]:
        parser.error(f"on {args.device} the suites are {', '.join(cases.ON[args.device])}")
    return (on_cuda if args.device == "cuda" else on_cpu)(parser, args)


def on_cuda(parser: argparse.ArgumentParser, args: argparse.Namespace) -> int:
    try:
        work = [case for case, _ in select(args, [])]
    except ValueError as error:
        parser.error(str(error))
    if not work:
        parser.error("no case has such a name; --list gives them")
    if args.list:
        print(*work, sep="\n")
        return 0
    if not torch.cuda.is_available():
        parser.error("--device cuda needs a CUDA GPU that torch can use: there is none")
    gpu = Gpu(args.l2)
    name = f"{gpu.name}-plan" if args.suite == "plan" else gpu.name
    path = Path(args.csv) if args.csv else cuda.default_csv(name)
    budget = budget_of(args, GPU_QUICK if args.quick else GPU_FULL)
    try:
        if args.suite == "plan":
            return plan.run(work, args.dtype or plan.DTYPES, gpu, budget, path)
        dtypes = args.dtype or cuda.FEW_DTYPES.get(args.suite, cuda.DTYPES)
        return cuda.run(work, args.suite, dtypes, gpu, budget, path)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    except KeyboardInterrupt:
        return 130


def on_cpu(parser: argparse.ArgumentParser, args: argparse.Namespace) -> int:
    if len(args.dtype or CPU_DTYPES[:1]) > 1 or not {*(args.dtype or ())} <= {*CPU_DTYPES}:
        parser.error(f"on the CPU --dtype is one of {', '.join(CPU_DTYPES)}")
    args.dtype = args.dtype[0] if args.dtype else CPU_DTYPES[0]
    if args.suite == "kernels" and args.dtype == "bfloat16":
        parser.error("the suite kernels is of float32 or float64, which bfloat16 is computed in")
    module = None
    try:
        module = kernel_module()
    except ModuleNotFoundError as error:
        if args.suite == "kernels":
            parser.error(str(error))
        print(f"no limits: {error}", file=sys.stderr)
    try:
        work = select(args, module.instruction_sets() if module else [])
    except ValueError as error:
        parser.error(str(error))
    if not work:
        parser.error("no case has such a name; --list gives them")
    if args.list:
        for case, chosen in work:
            for variant in chosen:
                print(name_of(case, variant))
        return 0
    before = torch.get_num_threads()
    threads, usual = [args.threads or before], QUICK if args.quick else FULL
    if args.suite == "sweep":
        threads = [args.threads] if args.threads else sweep.THREADS
        usual = sweep.QUICK if args.quick else sweep.FULL
    with_peers = args.peers and args.suite == "layers" and args.dtype == "float32"
    peers = cpu_peers.importable() if with_peers else []
    job = cpu.Job(args.suite, work, args.dtype, threads, budget_of(args, usual), peers, module)
    goes_on = args.suite == "sweep"
    with contextlib.ExitStack() as stack:
        file, rows = None, []
        if args.csv:
            path = Path(args.csv)
            try:
                rows = read_csv(path, cpu.names_of(args.suite)) if goes_on else []
                file = stack.enter_context(path.open("a" if goes_on else "w", newline="",
                                                     encoding="utf-8"))
            except (OSError, ValueError) as error:
                parser.error(str(error))
        stack.callback(torch.set_num_threads, before)
        torch.set_num_threads(threads[0])
        try:
            return cpu.run(job, file, rows)
        except KeyboardInterrupt:
            return 130


if __name__ == "__main__":
    sys.exit(main())
