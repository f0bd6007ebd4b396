"""Rows of figures: on the screen, as CSV, and read from it again."""

import csv
import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from .check import Verdict
from .floor import Floor
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
class ModuleRow(Row):
    """One case and pass of gatedrnn's modules on the CPU, beside torch.nn's and other peers'."""

    kernel: str | None = None  # what ran, by modules.kernel_name
    checked: str | None = None  # against what: float64, or torch's float32 where that is too slow
    ratio_second: float | None = None  # sweep: measured again, as the ratio was low
    ratio_third: float | None = None
    onnxruntime_ms: float | None = None
    onnxruntime_ratio: float | None = None  # its time / ours, median of the rounds' ratios
    openvino_ms: float | None = None
    openvino_ratio: float | None = None
    peers: str | None = None  # why one of them is missing
    onnxruntime: str | None = None  # versions
    openvino: str | None = None


@dataclass
class MemoryRow(Row):
    """What a training step of a case needs above its inputs and parameters."""

    kernel: str | None = None
    torch_mib: float | None = None  # peak
    ours_mib: float | None = None
    of_torch: float | None = None  # ours_mib / torch_mib
    torch_held_mib: float | None = None  # between forward and backward
    ours_held_mib: float | None = None
    recompute_mib: float | None = None  # ours with recompute
    recompute_held_mib: float | None = None
    recompute_of_torch: float | None = None
    recompute_time: float | None = None  # of a training step, over that without


@dataclass
class GpuRow(Row):
    """One case and pass on a GPU, beside cuDNN and what other peers could be imported."""

    kernel: str | None = None  # of our layers: plan.KERNELS, or forward's and backward's
    floor_ms: float | None = None  # floor.py
    floor_by: str | None = None
    floor_share: float | None = None  # floor / ours
    gb_per_s: float | None = None  # of the bytes that must be moved, limits.moved
    ours_mib: float | None = None  # peak of allocated memory above inputs and parameters
    torch_mib: float | None = None
    of_torch: float | None = None  # ours_mib / torch_mib
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

    def set_floor(self, floor: Floor) -> None:
        """After set_ours."""
        self.floor_ms, self.floor_by = 1e3 * floor.seconds, floor.by
        self.floor_share = self.floor_ms / self.ours_ms


@dataclass
class PlanRow(Row):
    """A pass of a layer by one of the kernels that can run it on a GPU."""

    kernel: str | None = None  # as GATEDRNN_CUDA_KERNEL names it
    L: int | None = None
    H: int | None = None
    B: int | None = None
    T: int | None = None
    l2: str | None = None
    architecture: int | None = None  # 90 for compute capability 9.0
    multiprocessors: int | None = None
    sm_mhz: int | None = None
    driver: str | None = None
    cuda: str | None = None


def columns(kind: type[Row], without: Sequence[str] = ()) -> list[str]:
    names = ["pass" if f.name == "pass_" else f.name for f in dataclasses.fields(kind)]
    return [name for name in names if name not in without]


KERNEL_NAMES = columns(Row)
MODULE_NAMES = columns(ModuleRow, ("partition", "ns_per_step"))
GPU_NAMES = columns(GpuRow, ("isa", "partition", "ns_per_step", "threads"))
PLAN_NAMES = columns(PlanRow, ("isa", "partition", "ns_per_step", "threads", "torch_ms",
                               "torch_p20_ms", "torch_p80_ms", "ratio", "ratio_p20", "ratio_p80",
                               "limit_gflops", "limited_by", "share"))
_NO_TIME = ("suite", "case", "cell", "shape", "pass", "dtype", "isa", "status", "threads", "device",
            "torch", "gatedrnn", "commit", "date")
MEMORY_NAMES = [name for name in columns(MemoryRow)
                if name in _NO_TIME or name not in KERNEL_NAMES]


def record(row: Row, about: Mapping[str, str | int]) -> dict[str, str]:
    """A row as CSV tells it, by the names of the columns."""
    values = dict(zip(columns(type(row)), dataclasses.astuple(row), strict=True)) | about
    return {name: "" if v is None else f"{v:.6g}" if isinstance(v, float) else str(v)
            for name, v in values.items()}


class CsvFile:
    """Writes each row at once, so that an interrupted run keeps what it has."""

    def __init__(self, file: TextIO, about: Mapping[str, str | int],
                 names: Sequence[str]) -> None:
        self._file, self._about = file, about
        self._writer = csv.DictWriter(file, names, lineterminator="\n", extrasaction="ignore")
        if file.tell() == 0:
            self._writer.writeheader()

    def add(self, row: Row) -> None:
        self._writer.writerow(record(row, self._about))
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


def times(ratio: float | None) -> str:
    return "-" if ratio is None else f"{ratio:.2f}"


def _module_cells(row: Row) -> list[str]:
    between = f"{number(row.ours_p20_ms)} - {number(row.ours_p80_ms)}"
    return [row.case, row.pass_, number(row.torch_ms), number(row.ours_ms), between,
            times(row.ratio), number(row.gflops), percent(row.share)]


def _cpu_cells(row: ModuleRow) -> list[str]:
    return [*_module_cells(row), row.kernel or "-"]


def _peer_cells(row: ModuleRow) -> list[str]:
    *cells, gflops, share, kernel = _cpu_cells(row)
    return [*cells, times(row.onnxruntime_ratio), times(row.openvino_ratio), gflops, share, kernel]


def _sweep_cells(row: ModuleRow) -> list[str]:
    case, *cells, gflops, share, kernel = _cpu_cells(row)
    again = [times(r) for r in (row.ratio_second, row.ratio_third) if r is not None]
    return [case, str(row.threads), *cells, " ".join(again), gflops, share, kernel]


def _memory_cells(row: MemoryRow) -> list[str]:
    held = None if not row.torch_held_mib else row.ours_held_mib / row.torch_held_mib
    return [row.case, number(row.torch_mib), number(row.ours_mib), percent(row.of_torch),
            number(row.torch_held_mib), number(row.ours_held_mib), percent(held),
            number(row.recompute_mib), percent(row.recompute_of_torch),
            number(row.recompute_held_mib), times(row.recompute_time), row.kernel or "-"]


def _kernel_cells(row: Row) -> list[str]:
    between = f"{number(row.ours_p20_ms)} - {number(row.ours_p80_ms)}"
    return [row.case, row.isa, row.partition or "-", row.pass_, number(row.ours_ms), between,
            number(row.ns_per_step), number(row.gflops), percent(row.share)]


def _gpu_cells(row: GpuRow) -> list[str]:
    case, pass_, *rest = _module_cells(row)
    floor = f"{percent(row.floor_share)} {row.floor_by}" if row.floor_by else "-"
    memory = f"{number(row.torch_mib)} - {number(row.ours_mib)}, {percent(row.of_torch)}"
    return [case, row.dtype, pass_, *rest, floor, number(row.gb_per_s), memory, row.kernel or "-"]


def _plan_cells(row: PlanRow) -> list[str]:
    between = f"{number(row.ours_p20_ms)} - {number(row.ours_p80_ms)}"
    return [row.case, row.dtype, row.pass_, row.kernel, number(row.ours_ms), between,
            number(row.gflops)]


MODULE_COLUMNS = [("case", -24), ("pass", -9), ("torch ms", 9), ("ours ms", 9),
                  ("20 - 80 %", 17), ("ratio", 6), ("GFLOP/s", 8), ("limit", 6)]
_KERNEL = ("kernel", -16)
GPU_COLUMNS = [MODULE_COLUMNS[0], ("dtype", -8), *MODULE_COLUMNS[1:], ("floor", 17), ("GB/s", 6),
               ("MiB torch - ours", 23), _KERNEL]
CPU_COLUMNS = [*MODULE_COLUMNS, _KERNEL]
PEER_COLUMNS = [*MODULE_COLUMNS[:6], ("ORT x", 6), ("OV x", 6), *CPU_COLUMNS[6:]]
SWEEP_COLUMNS = [MODULE_COLUMNS[0], ("threads", 7), *MODULE_COLUMNS[1:6], ("again", 9),
                 *CPU_COLUMNS[6:]]
MEMORY_COLUMNS = [MODULE_COLUMNS[0], ("torch MiB", 9), ("ours MiB", 9), ("share", 6),
                  ("torch held", 10), ("ours held", 9), ("share", 6), ("recompute", 9),
                  ("share", 6), ("held", 9), ("time", 5), _KERNEL]
PLAN_COLUMNS = [MODULE_COLUMNS[0], ("dtype", -8), ("pass", -9), _KERNEL, ("ms", 9),
                ("20 - 80 %", 17), ("GFLOP/s", 8)]
KERNEL_COLUMNS = [("case", -24), ("isa", -8), ("parts", -5), ("pass", -9), ("ms", 9),
                  ("20 - 80 %", 17), ("ns/step", 9), ("GFLOP/s", 8), ("limit", 6)]


class Table:
    """Prints rows as they come: of `kind` gpu, kernels, memory, modules, peers, plan or sweep."""

    def __init__(self, kind: str) -> None:
        self._failed = "FAILED" if kind == "memory" else "CHECK FAILED, not timed"
        self._columns, self._cells = {
            "gpu": (GPU_COLUMNS, _gpu_cells),
            "kernels": (KERNEL_COLUMNS, _kernel_cells),
            "memory": (MEMORY_COLUMNS, _memory_cells),
            "modules": (CPU_COLUMNS, _cpu_cells),
            "peers": (PEER_COLUMNS, _peer_cells),
            "plan": (PLAN_COLUMNS, _plan_cells),
            "sweep": (SWEEP_COLUMNS, _sweep_cells),
        }[kind]
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
            print(f"{where}: {self._failed}: {row.status}", flush=True)
        else:
            self._print(self._cells(row))
