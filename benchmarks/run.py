"""The command line: choose cases, check, time, print. README.md gives the method.

The exit code is 0 if every case passed its check, 1 if one did not, 2 if there was nothing to run.
On a GPU a case that does not fit in its memory is skipped, and rows that the CSV holds already are
not measured again.
"""

import argparse
import contextlib
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, TextIO

import torch

from gatedrnn import raw

from . import cases, cuda, environment, kernels, modules
from .check import EPS
from .cuda_device import Gpu
from .limits import Limits, kernel_module
from .report import CsvFile, Row, Table
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
        help="layers and cells: modules beside torch.nn's; kernels (cpu): the raw kernels on NumPy "
             "arrays; grid (cuda): layers of every size (default: layers)")
    add("--cases", nargs="+", type=pattern, metavar="REGEX", default=[],
        help="only cases whose name, as --list gives it, one of these finds")
    add("--shape", nargs="+", metavar="B,T,I,H,L", default=[],
        help="these shapes instead of the usual ones; B,I,H for the cells")
    add("--dtype", nargs="+", choices=list(EPS), metavar="DTYPE",
        help=f"cpu: one of {', '.join(CPU_DTYPES)} (default: {CPU_DTYPES[0]}); cuda: any of "
             f"{', '.join(EPS)} (default: {' '.join(cuda.DTYPES)}), where tf32 is float32 whose "
             "products may be rounded to TF32")
    add("--l2", choices=["cold", "warm"], default="cold",
        help="cuda: whether L2 is overwritten before each call (default: cold)")
    add("--threads", type=positive(int), metavar="N", help="default: as many as torch uses")
    add("--quick", action="store_true", help="the same cases, fewer rounds")
    add("--seconds", type=positive(float), metavar="S",
        help=f"time for each case and pass, at least (default: {FULL.seconds:g}, with --quick "
             f"{QUICK.seconds:g}; never fewer than {FULL.rounds}, or {QUICK.rounds}, rounds; cuda: "
             f"{GPU_FULL.seconds:g}, {GPU_QUICK.seconds:g}, {GPU_FULL.rounds}, {GPU_QUICK.rounds})")
    add("--csv", metavar="FILE",
        help="write a row for each case and pass (cuda: append; default: the GPU's file in "
             "benchmarks/results or in the folder that RESULTS names)")
    add("--list", action="store_true", help="name the cases and stop")
    return parser


# Cases, each in the variants in which it runs; None for a module.
Work = list[tuple[cases.Case, list[kernels.Variant | None]]]


def select(args: argparse.Namespace, isas: Sequence[str]) -> Work:
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


def rows_of(args: argparse.Namespace, work: Work, module: ModuleType | None,
            limits: dict[str, Limits], isa: str, threads: int) -> Iterator[Row]:
    budget = budget_of(args, QUICK if args.quick else FULL)
    for case, chosen in work:
        if args.suite == "kernels":
            yield from kernels.rows(case, chosen, module, args.dtype, limits, threads, budget)
        else:
            yield from modules.rows(case, args.suite, args.dtype, isa, limits.get(isa), budget)


def measure(args: argparse.Namespace, work: Work, module: ModuleType | None, threads: int,
            file: TextIO | None) -> int:
    """Runs the work, prints it, and writes it to `file` as CSV. Returns the exit code."""
    isa = raw.instruction_set()
    isas = dict.fromkeys(v.isa for _, chosen in work for v in chosen if v) or [isa]
    limits = {} if module is None else {
        name: Limits(module, name, threads, args.dtype) for name in isas
    }
    about = environment.describe(threads)
    print(f"device    {about['device']}, {threads} threads, {', '.join(isas)}, {args.dtype}")
    print(f"versions  gatedrnn {about['gatedrnn']} {about['commit']}, torch {about['torch']} "
          f"({torch.backends.cpu.get_cpu_capability()}), {about['date']}")
    for of_isa in limits.values():
        print(of_isa.describe())
    print(flush=True)
    csv = CsvFile(file, about) if file else None
    table = Table(args.suite)
    failures = 0
    for row in rows_of(args, work, module, limits, isa, threads):
        table.add(row)
        if csv:
            csv.add(row)
        failures += row.failed
    if failures:
        print(f"{failures} failed the check", file=sys.stderr)
    return 1 if failures else 0


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
    path = Path(args.csv) if args.csv else cuda.default_csv(gpu.name)
    budget = budget_of(args, GPU_QUICK if args.quick else GPU_FULL)
    try:
        return cuda.run(work, args.suite, args.dtype or cuda.DTYPES, gpu, budget, path)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    except KeyboardInterrupt:
        return 130


def on_cpu(parser: argparse.ArgumentParser, args: argparse.Namespace) -> int:
    if len(args.dtype or CPU_DTYPES[:1]) > 1 or not {*(args.dtype or ())} <= {*CPU_DTYPES}:
        parser.error(f"on the CPU --dtype is one of {', '.join(CPU_DTYPES)}")
    args.dtype = args.dtype[0] if args.dtype else CPU_DTYPES[0]
    if args.suite == "kernels" and args.dtype == "bfloat16":
        parser.error("the raw kernels are float32 or float64: bfloat16 is carried in float32")
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
    threads = args.threads or before
    with contextlib.ExitStack() as stack:
        file = None
        if args.csv:
            try:
                file = stack.enter_context(open(args.csv, "w", newline="", encoding="utf-8"))
            except OSError as error:
                parser.error(str(error))
        stack.callback(torch.set_num_threads, before)
        torch.set_num_threads(threads)
        try:
            return measure(args, work, module, threads, file)
        except KeyboardInterrupt:
            return 130


if __name__ == "__main__":
    sys.exit(main())
