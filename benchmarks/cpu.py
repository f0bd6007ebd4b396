"""The suites on the CPU: the rows of each, on the screen and in a CSV."""

import sys
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import TextIO

import torch

from gatedrnn import raw

from . import cases, cpu_peers, environment, kernels, memory, modules, ragged, streams, sweep
from .limits import Limits
from .report import (
    KERNEL_NAMES,
    MEMORY_NAMES,
    MODULE_NAMES,
    CsvFile,
    ModuleRow,
    Row,
    Table,
    record,
)
from .timing import Budget

# Cases, each in the variants in which it runs; None for a module.
Work = list[tuple[cases.Case, list[kernels.Variant | None]]]


@dataclass(frozen=True)
class Job:
    """What is measured, and how."""

    suite: str
    work: Work
    dtype: str
    threads: Sequence[int]  # of a sweep several, else one
    budget: Budget
    peers: Sequence[str]  # names of cpu_peers that take part in inference
    module: ModuleType | None  # the raw kernels; without them there are no limits

    @property
    def isas(self) -> list[str]:
        named = dict.fromkeys(v.isa for _, chosen in self.work for v in chosen if v)
        return list(named) or [raw.instruction_set()]

    def about(self) -> dict[str, str | int]:
        """What all rows have in common."""
        found = environment.describe(self.threads[0]) | cpu_peers.versions(self.peers)
        if self.suite == "sweep":
            del found["threads"]
        return found

    def limits(self) -> dict[tuple[str, int], Limits]:
        """By instruction set and threads."""
        if self.module is None or self.suite in ("memory", "ragged"):
            return {}
        return {(isa, n): Limits(self.module, isa, n, self.dtype)
                for n in self.threads for isa in self.isas}


def _rows(job: Job, limits: dict[tuple[str, int], Limits], done: Collection[tuple[str, ...]],
          about: dict[str, str | int]) -> Iterator[Row]:
    isa, threads = raw.instruction_set(), job.threads[0]
    for case, chosen in job.work:
        if job.suite == "kernels":
            of_isa = {name: limits[name, threads] for name in job.isas}
            yield from kernels.rows(case, chosen, job.module, job.dtype, of_isa, threads,
                                    job.budget)
        elif job.suite == "memory":
            yield from memory.rows(case, job.dtype, isa, threads, job.budget)
        elif job.suite == "ragged":
            yield from ragged.rows(case, job.dtype, isa, job.budget)
        elif isinstance(case, cases.Frame):
            yield from streams.rows(case, job.dtype, isa, limits.get((isa, threads)), job.budget)
        elif job.suite == "sweep":
            every = sweep.ways(case, job.dtype, isa, job.threads, about)
            if todo := [way for key, way in every.items() if key not in done]:
                of_threads = {n: limit for (_, n), limit in limits.items()}
                yield from sweep.rows(case, todo, job.dtype, isa, of_threads, job.budget)
        else:
            yield from modules.rows(case, job.suite, job.dtype, isa, limits.get((isa, threads)),
                                    job.budget, job.peers)


def _kind(job: Job) -> str:
    """Which table."""
    if job.suite in ("layers", "ragged", "cells"):
        return "peers" if job.peers else "modules"
    return job.suite


def _print_head(job: Job, about: dict[str, str | int], limits: Sequence[Limits]) -> None:
    threads = " and ".join(map(str, job.threads))
    print(f"device    {about['device']}, {threads} threads, {', '.join(job.isas)}, {job.dtype}")
    others = "".join(f", {name} {about[name]}" for name in job.peers)
    print(f"versions  gatedrnn {about['gatedrnn']} {about['commit']}, torch {about['torch']} "
          f"({torch.backends.cpu.get_cpu_capability()}){others}, {about['date']}")
    for limit in limits:
        print(limit.describe())


def names_of(suite: str) -> list[str]:
    """The columns of its CSV."""
    return {"kernels": KERNEL_NAMES, "memory": MEMORY_NAMES}.get(suite, MODULE_NAMES)


def run(job: Job, file: TextIO | None, before: Sequence[dict[str, str]] = ()) -> int:
    """Runs the job, prints it, and writes it to `file` as CSV. Returns the exit code.

    `before` are the rows that a sweep has written to the file already.
    """
    about, limits = job.about(), job.limits()
    _print_head(job, about, list(limits.values()))
    csv = CsvFile(file, about, names_of(job.suite)) if file else None
    done = {sweep.key(row): row for row in before if row["status"] == "ok"}
    wanted = [key for case, _ in job.work if done
              for key in sweep.ways(case, job.dtype, raw.instruction_set(), job.threads, about)]
    known = [done[key] for key in wanted if key in done]
    if known:
        print(f"rows      {len(known)} are in the CSV already and are not measured again")
    print(flush=True)
    table, failures = Table(_kind(job)), 0
    for row in _rows(job, limits, done, about):
        table.add(row)
        if isinstance(row, ModuleRow) and row.peers:
            print(f"{row.case}: left out: {row.peers}", flush=True)
        if csv:
            csv.add(row)
        known.append(record(row, about))
        failures += row.failed
    if job.suite == "sweep":
        print(*sweep.told(known), sep="\n")
    if failures:
        print(f"{failures} failed{'' if job.suite == 'memory' else ' the check'}", file=sys.stderr)
    return 1 if failures else 0
