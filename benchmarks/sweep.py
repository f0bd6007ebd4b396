"""The sweep: torch.nn beside ours over a grid of shapes, to find where ours is slower.

Each shape gets little time. One that seems slower is measured twice more, for longer, and counts as
slower only if it was so three times.
"""

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence

import torch

from .cases import Layer
from .check import WIDE
from .limits import Limits, flops, forward_products
from .modules import PASSES, build, checked, near, results, timed
from .report import ModuleRow
from .timing import Budget

THREADS = (1, 2)
FULL, QUICK = Budget(rounds=3, seconds=0.2), Budget(rounds=3, seconds=0.03)
AGAIN, ONCE_LONG = Budget(rounds=5, seconds=0.6), Budget(rounds=3, seconds=0.6)
LONG = 1000.0  # milliseconds: a longer call is repeated the fewest times that give a median
LOW = 0.97  # a lower ratio is measured again
# Operations of a forward pass beyond which float64 would take most of the sweep's time: such a
# case is held to torch in float32 instead.
MOST_CHECKED = 2 * 10**10
KEY = ("case", "pass", "threads", "dtype", "isa", "device", "torch", "commit")

Way = tuple[int, str]  # threads, pass
Record = Mapping[str, str]  # a row as in the CSV


def rows(case: Layer, todo: Sequence[Way], dtype: str, isa: str, limits: Mapping[int, Limits],
         budget: Budget) -> Iterator[ModuleRow]:
    """Checks a case once, with the most threads, and times it in each way of `todo`."""
    torch.set_num_threads(max(threads for threads, _ in todo))
    make = build(case, dtype)
    large = dtype == "float32" and flops(forward_products(case)) > MOST_CHECKED
    verdicts = {} if large else checked(make, dtype)[0]
    runs = {name: make[name]() for name in ("torch", "ours")}
    found = {name: results(run) for name, run in runs.items()} if large else {}
    failures = {p: near(found["ours"][p], found["torch"][p]) for p in PASSES if large}
    del found
    for threads, pass_ in todo:
        row = ModuleRow("sweep", str(case), case.cell, case.shape, pass_, dtype, isa,
                        threads=threads, checked="torch" if large else WIDE)
        if large:
            row.status = failures[pass_] or "ok"
        else:
            row.judge(verdicts[pass_])
        if not row.failed:
            torch.set_num_threads(threads)
            timed(row, case, runs, budget, limits.get(threads))
            if row.ratio < LOW:
                longer = ONCE_LONG if row.ours_ms > LONG else AGAIN
                for name in ("ratio_second", "ratio_third"):
                    again = dataclasses.replace(row)
                    timed(again, case, runs, longer, limits.get(threads))
                    setattr(row, name, again.ratio)
        yield row


def ways(case: Layer, dtype: str, isa: str, threads: Sequence[int],
         about: Mapping[str, str | int]) -> dict[tuple[str, ...], Way]:
    """How a case runs, by the keys of the rows."""
    shared = {name: str(about[name]) for name in ("device", "torch", "commit")}
    shared |= {"case": str(case), "dtype": dtype, "isa": isa}
    return {key(shared | {"threads": str(n), "pass": p}): (n, p) for n in threads for p in PASSES}


def key(record: Record) -> tuple[str, ...]:
    """What makes two rows the same measurement."""
    return tuple(record[name] for name in KEY)


def ratios(record: Record) -> list[float]:
    """The first ratio and, where it was low, the second and third."""
    names = ("ratio", "ratio_second", "ratio_third")
    return [float(record[name]) for name in names if record[name]]


def is_slower(record: Record) -> bool:
    found = ratios(record)
    return len(found) == 3 and max(found) < LOW


def geometric_mean(values: Sequence[float]) -> float:
    return math.exp(sum(map(math.log, values)) / len(values))


@dataclasses.dataclass(frozen=True)
class Total:
    """Of some rows: how many, how many below 1, how many slower three times."""

    count: int
    below: int
    slower: int
    mean: float  # geometric, of the first ratios
    least: float  # of the rows' best ratios, so that one disturbed measurement does not count


def total(records: Sequence[Record]) -> Total:
    first = [ratios(record)[0] for record in records]
    return Total(len(records), sum(r < 1 for r in first), sum(map(is_slower, records)),
                 geometric_mean(first), min(max(ratios(record)) for record in records))


def totals(records: Sequence[Record]) -> dict[tuple[str, str], Total]:
    """By cell and pass."""
    kinds = dict.fromkeys((record["cell"], record["pass"]) for record in records)
    return {kind: total([r for r in records if (r["cell"], r["pass"]) == kind]) for kind in kinds}


def below(records: Sequence[Record]) -> list[Record]:
    """Those whose first ratio is below 1, the lowest first."""
    return sorted((r for r in records if ratios(r)[0] < 1), key=lambda r: ratios(r)[0])


def told(records: Sequence[Record]) -> Iterator[str]:
    """What the sweep found, in lines."""
    timed_ones = [record for record in records if record["ratio"]]
    if not timed_ones:
        return
    yield ""
    for record in below(timed_ones):
        found = " ".join(f"{ratio:.3f}" for ratio in ratios(record))
        mark = "  slower" if is_slower(record) else ""
        yield (f"below 1: {found:17}  {record['case']}  {record['pass']}, {record['threads']} "
               f"threads, {record['kernel']}{mark}")
    for (cell, pass_), of_kind in totals(timed_ones).items():
        yield f"{cell} {pass_}: {_in_words(of_kind)}"
    yield f"together: {_in_words(total(timed_ones))}"


def _in_words(found: Total) -> str:
    return (f"{found.count} cases, {found.below} below 1, {found.slower} below {LOW} three times, "
            f"geometric mean {found.mean:.2f}")
