"""Rows of figures: on the screen, as CSV, and read from it again."""

import csv
import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from .check import Verdict
from .limits import Bound
from .timing import Spread

SKIPPED = "skipped: "


@dataclass
class Row:
    """One case and pass. What does not apply, or was not reached, stays None and empty in CSV."""

    suite: str
    case: str
    cell: str
    shape: str
    pass_: str
    dtype: str
    isa: str
    partition: str | None = None
    status: str = "ok"  # or why nothing was timed: what the check found, or "skipped: ..."
    torch_ms: float | None = None
    torch_p20_ms: float | None = None
    torch_p80_ms: float | None = None
    ours_ms: float | None = None
    ours_p20_ms: float | None = None
    ours_p80_ms: float | None = None
    ratio: float | None = None  # torch / ours, median of the rounds' ratios
    ratio_p20: float | None = None
    ratio_p80: float | None = None
    ns_per_step: float | None = None  # kernels: of a step; gate functions: of an element
    gflops: float | None = None
    limit_gflops: float | None = None
    limited_by: str | None = None
    share: float | None = None  # of the limit
    ours_error: float | None = None
    peer_error: float | None = None
    rounds: int | None = None
    threads: int | None = None
    device: str | None = None
    torch: str | None = None
    gatedrnn: str | None = None
    commit: str | None = None
    date: str | None = None

    @property
    def failed(self) -> bool:
        return self.status != "ok" and not self.skipped

    @property
    def skipped(self) -> bool:
        return self.status.startswith(SKIPPED)

    def judge(self, verdict: Verdict) -> None:
        self.status = verdict.failure or "ok"
        self.ours_error, self.peer_error = verdict.ours_error, verdict.peer_error

    def set_ours(self, time: Spread, rounds: int, operations: int, bound: Bound | None) -> None:
        """`time` in seconds; `operations` in useful floating-point operations a call."""
        self.ours_ms, self.ours_p20_ms, self.ours_p80_ms = _ms(time)
        self.rounds = rounds
        self.gflops = operations / time.median / 1e9
        if bound:
            self.limit_gflops = operations / bound.seconds / 1e9
            self.limited_by = bound.by
            self.share = bound.seconds / time.median

    def set_torch(self, time: Spread, ratio: Spread) -> None:
        self.torch_ms, self.torch_p20_ms, self.torch_p80_ms = _ms(time)
        self.ratio, self.ratio_p20, self.ratio_p80 = ratio.median, ratio.low, ratio.high


def _ms(time: Spread) -> tuple[float, float, float]:
    return 1e3 * time.median, 1e3 * time.low, 1e3 * time.high


@dataclass
class GpuRow(Row):
    """One case and pass on a GPU, beside cuDNN and what other peers could be imported."""

    gb_per_s: float | None = None  # of the bytes that must be moved, limits.moved
    ours_mib: float | None = None  # peak of allocated memory above inputs and parameters
    torch_mib: float | None = None
    haste_ms: float | None = None
    flashrnn_ms: float | None = None
    torchrl_ms: float | None = None
    peers: str | None = None  # why one of the last three is missing
    l2: str | None = None
    sm_mhz: int | None = None
    memory_mhz: int | None = None
    driver: str | None = None
    cuda: str | None = None
    cudnn: str | None = None


def columns(kind: type[Row], without: Sequence[str] = ()) -> list[str]:
    names = ["pass" if f.name == "pass_" else f.name for f in dataclasses.fields(kind)]
    return [name for name in names if name not in without]


NAMES = columns(Row)
GPU_NAMES = columns(GpuRow, ("isa", "partition", "ns_per_step", "threads"))


class CsvFile:
    """Writes each row at once, so that an interrupted run keeps what it has."""

    def __init__(self, file: TextIO, about: Mapping[str, str | int],
                 names: Sequence[str] = NAMES) -> None:
        self._file, self._about = file, about
        self._writer = csv.DictWriter(file, names, lineterminator="\n", extrasaction="ignore")
        if file.tell() == 0:
            self._writer.writeheader()

    def add(self, row: Row) -> None:
        values = dict(zip(columns(type(row)), dataclasses.astuple(row), strict=True))
        values |= self._about
        self._writer.writerow(
            {name: f"{v:.6g}" if isinstance(v, float) else v for name, v in values.items()}
        )
        self._file.flush()


def read_csv(path: Path, names: Sequence[str]) -> list[dict[str, str]]:
    """The rows of an earlier run, none if there was none. A line that it did not end is removed.

    Raises ValueError if the file has other columns.
    """
    if not path.exists():
        return []
    text = path.read_bytes()
    whole = text[: text.rfind(b"\n") + 1]
    if whole != text:
        path.write_bytes(whole)
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        if reader.fieldnames is not None and list(reader.fieldnames) != list(names):
            raise ValueError(f"{path} has other columns than this version writes: move it away")
        return list(reader)


def number(value: float | None) -> str:
    """Four significant digits, whatever the size."""
    if value is None:
        return "-"
    digits = f"{value:.4g}"
    return f"{value:.0f}" if "e" in digits and abs(value) > 1 else digits


def percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.0f} %"


def _module_cells(row: Row) -> list[str]:
    between = f"{number(row.ours_p20_ms)} - {number(row.ours_p80_ms)}"
    ratio = "-" if row.ratio is None else f"{row.ratio:.2f}"
    return [row.case, row.pass_, number(row.torch_ms), number(row.ours_ms), between, ratio,
            number(row.gflops), percent(row.share)]


def _kernel_cells(row: Row) -> list[str]:
    between = f"{number(row.ours_p20_ms)} - {number(row.ours_p80_ms)}"
    return [row.case, row.isa, row.partition or "-", row.pass_, number(row.ours_ms), between,
            number(row.ns_per_step), number(row.gflops), percent(row.share)]


def _gpu_cells(row: GpuRow) -> list[str]:
    case, pass_, *rest = _module_cells(row)
    memory = f"{number(row.torch_mib)} - {number(row.ours_mib)}"
    return [case, row.dtype, pass_, *rest, number(row.gb_per_s), memory]


MODULE_COLUMNS = [("case", -24), ("pass", -9), ("torch ms", 9), ("ours ms", 9),
                  ("20 - 80 %", 17), ("ratio", 6), ("GFLOP/s", 8), ("limit", 6)]
GPU_COLUMNS = [MODULE_COLUMNS[0], ("dtype", -8), *MODULE_COLUMNS[1:], ("GB/s", 6),
               ("MiB torch - ours", 17)]
KERNEL_COLUMNS = [("case", -24), ("isa", -8), ("parts", -5), ("pass", -9), ("ms", 9),
                  ("20 - 80 %", 17), ("ns/step", 9), ("GFLOP/s", 8), ("limit", 6)]


class Table:
    """Prints rows as they come."""

    def __init__(self, suite: str) -> None:
        self._columns, self._cells = {
            "kernels": (KERNEL_COLUMNS, _kernel_cells), "gpu": (GPU_COLUMNS, _gpu_cells),
        }.get(suite, (MODULE_COLUMNS, _module_cells))
        self._print([title for title, _ in self._columns])

    def _print(self, cells: list[str]) -> None:
        padded = [
            cell.ljust(-width) if width < 0 else cell.rjust(width)
            for cell, (_, width) in zip(cells, self._columns, strict=True)
        ]
        print("  ".join(padded).rstrip(), flush=True)

    def add(self, row: Row) -> None:
        name = [row.case, row.isa or row.dtype, row.partition, row.pass_]
        where = " ".join(filter(None, name))
        if row.skipped:
            print(f"{where}: {row.status}", flush=True)
        elif row.failed:
            print(f"{where}: CHECK FAILED, not timed: {row.status}", flush=True)
        else:
            self._print(self._cells(row))
