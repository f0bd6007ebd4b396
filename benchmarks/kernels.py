"""The suite of raw kernels on NumPy arrays: no torch between the clock and the kernel.

A layer runs in each instruction set and partition of the work: rows (a thread owns sequences),
units (it owns hidden units of all sequences), or what the plan chooses. The input's product is
done inside the step here, and packing the weights is part of every call.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np

from . import oracle
from .cases import GATES, Case, Gate, Layer, Step
from .check import WIDE, judge, peer_dtype
from .limits import Limits, Product, flops, forward_products
from .report import Row
from .timing import Budget, Contestant, in_turn, spread

SEED = 2026
PARTITIONS = ("rows", "units", "plan")
CHECKED = 64  # sequences that the oracle follows, spread over the batch: they do not interact


@dataclass(frozen=True)
class Variant:
    """How a case runs; cells and gate functions have no partition."""

    isa: str
    partition: str | None = None

    def __str__(self) -> str:
        return " ".join(filter(None, [self.isa, self.partition]))


def variants(case: Case, isas: Sequence[str]) -> list[Variant]:
    partitions = PARTITIONS if isinstance(case, Layer) else (None,)
    return [Variant(isa, partition) for isa in isas for partition in partitions]


class Problem:
    """A layer's or cell's arrays in the dtype under test, and what the oracle says of them."""

    def __init__(self, case: Layer | Step, dtype: str) -> None:
        random = np.random.default_rng(SEED)
        self.case, self.dtype = case, dtype
        self.cell = "lstm" if case.cell.startswith("LSTM") else "gru"
        G, B, H = GATES[case.cell], case.B, case.H

        def uniform(*shape: int) -> np.ndarray:
            reach = H**-0.5
            return random.uniform(-reach, reach, shape).astype(np.float32).astype(dtype)

        def normal(*shape: int) -> np.ndarray:
            return random.standard_normal(shape, np.float32).astype(dtype)

        self.weights = [uniform(G * H, case.I), uniform(G * H, H), uniform(G * H), uniform(G * H)]
        self.x = normal(case.T, B, case.I)
        lstm = self.cell == "lstm"
        self.h0, self.c0 = normal(B, H), normal(B, H) if lstm else None
        self.dy, self.dhn = normal(case.T, B, H), normal(B, H)
        self.dcn = normal(B, H) if lstm else None
        self.rows = np.unique(np.linspace(0, B - 1, min(B, CHECKED)).astype(int))

    def expected(self, dtype: str) -> oracle.Arrays:
        """Forward and backward of the checked rows, computed in `dtype`, given in float64."""

        def chosen(array: np.ndarray | None) -> np.ndarray | None:
            return None if array is None else array[..., self.rows, :].astype(dtype)

        weights = [w.astype(dtype) for w in self.weights]
        found, kept = oracle.layer(self.cell, chosen(self.x), chosen(self.h0), chosen(self.c0),
                                   weights)
        found |= oracle.layer_backward(self.cell, kept, *weights[:2], chosen(self.dy),
                                       chosen(self.dhn), chosen(self.dcn))
        return {name: value.astype(np.float64) for name, value in found.items()}

    def layer(self, module: ModuleType, variant: Variant, threads: int, train: bool) -> Any:
        kind = module.Layer64 if self.dtype == WIDE else module.Layer32
        return kind(self.cell, self.x, self.h0, self.c0, self.weights, isa=variant.isa,
                    threads=threads, partition=variant.partition, train=train)

    def step(self, module: ModuleType, variant: Variant, threads: int) -> Any:
        kind = module.Step64 if self.dtype == WIDE else module.Step32
        return kind(self.cell, self.x[0], self.h0, self.c0, self.weights, isa=variant.isa,
                    threads=threads)

    def of_rows(self, layer: Any, names: Sequence[str]) -> oracle.Arrays:
        """The layer's arrays of these names, the checked rows alone."""
        return {n: getattr(layer, n)[..., self.rows, :].astype(np.float64) for n in names}


OUTPUTS = {"gru": ["y", "hn"], "lstm": ["y", "hn", "cn"]}
# What each sequence has for itself: the rows that are checked do not suffice for the weights'.
GRADIENTS = {"gru": ["dx", "dh0"], "lstm": ["dx", "dh0", "dc0"]}


def _row(case: Case, variant: Variant, pass_: str, dtype: str) -> Row:
    return Row("kernels", str(case), case.cell, case.shape, pass_, dtype, variant.isa,
               variant.partition)


def _finish(rows: dict[Variant, Row], contestants: dict[Variant, Contestant], steps: int,
            products: list[Product], limits: dict[str, Limits], budget: Budget) -> None:
    """Times, in turn, those whose check has passed."""
    running = {str(v): c for v, c in contestants.items() if not rows[v].failed}
    times = in_turn(running, budget)
    for variant, row in rows.items():
        if not row.failed:
            samples = times[str(variant)]
            row.set_ours(spread(samples), len(samples), flops(products),
                         limits[variant.isa].bound(products))
            row.ns_per_step = 1e9 * float(np.median(samples)) / steps


def _layer_rows(case: Layer, chosen: list[Variant], module: ModuleType, dtype: str,
                limits: dict[str, Limits], threads: int, budget: Budget) -> Iterator[Row]:
    problem = Problem(case, dtype)
    ref, peer = problem.expected(WIDE), problem.expected(peer_dtype(dtype))

    def judged(pass_: str, variant: Variant, layer: Any, names: list[str]) -> Row:
        row = _row(case, variant, pass_, dtype)
        row.judge(judge(problem.of_rows(layer, names), {n: peer[n] for n in names},
                        {n: ref[n] for n in names}, dtype))
        return row

    outputs, gradients = OUTPUTS[problem.cell], GRADIENTS[problem.cell]
    cotangents = (problem.dy, problem.dhn, problem.dcn)
    for isa in dict.fromkeys(v.isa for v in chosen):
        of_isa = [v for v in chosen if v.isa == isa]
        for train in (False, True):
            made = {v: problem.layer(module, v, threads, train) for v in of_isa}
            for layer in made.values():
                layer.forward()
            pass_ = "training" if train else "inference"
            rows = {v: judged(pass_, v, layer, outputs) for v, layer in made.items()}
            _finish(rows, {v: Contestant(m.forward) for v, m in made.items()}, case.T,
                    forward_products(case), limits, budget)
            yield from rows.values()
        for layer in made.values():
            layer.backward(*cotangents)
        rows = {v: judged("backward", v, layer, gradients) for v, layer in made.items()}
        calls = {v: Contestant(lambda m=m: m.backward(*cotangents)) for v, m in made.items()}
        _finish(rows, calls, case.T, 2 * forward_products(case), limits, budget)
        yield from rows.values()


def _step_rows(case: Step, chosen: list[Variant], module: ModuleType, dtype: str,
               limits: dict[str, Limits], threads: int, budget: Budget) -> Iterator[Row]:
    problem = Problem(case, dtype)
    names = {"hn": "h_next", "cn": "c_next"} if problem.cell == "lstm" else {"hn": "h_next"}
    ref, peer = problem.expected(WIDE), problem.expected(peer_dtype(dtype))
    for variant in chosen:
        step = problem.step(module, variant, threads)
        step.forward()
        ours = problem.of_rows(step, list(names.values()))
        row = _row(case, variant, "training", dtype)
        row.judge(judge({n: ours[names[n]] for n in names}, {n: peer[n] for n in names},
                        {n: ref[n] for n in names}, dtype))
        _finish({variant: row}, {variant: Contestant(step.forward)}, 1, forward_products(case),
                limits, budget)
        yield row


def _gate_rows(case: Gate, chosen: list[Variant], module: ModuleType, dtype: str,
               budget: Budget) -> Iterator[Row]:
    x = np.linspace(-8, 8, case.B).astype(np.float32).astype(dtype)
    theirs = {"sigmoid": oracle.sigmoid, "tanh": np.tanh}[case.cell]
    ref, peer = ({"value": theirs(x.astype(t)).astype(np.float64)}
                 for t in (WIDE, peer_dtype(dtype)))
    function = getattr(module, case.cell)
    for variant in chosen:
        row = _row(case, variant, "inference", dtype)
        row.judge(judge({"value": function(x, variant.isa).astype(np.float64)}, peer, ref, dtype))
        if not row.failed:
            call = Contestant(lambda isa=variant.isa: function(x, isa))
            samples = in_turn({"ours": call}, budget)["ours"]
            row.set_ours(spread(samples), len(samples), 0, None)
            row.gflops = None
            row.ns_per_step = 1e9 * float(np.median(samples)) / case.B
        yield row


def rows(case: Case, chosen: list[Variant], module: ModuleType, dtype: str,
         limits: dict[str, Limits], threads: int, budget: Budget) -> Iterator[Row]:
    """Checks and times a case in the chosen variants; `limits` by instruction set."""
    if isinstance(case, Layer):
        yield from _layer_rows(case, chosen, module, dtype, limits, threads, budget)
    elif isinstance(case, Step):
        yield from _step_rows(case, chosen, module, dtype, limits, threads, budget)
    else:
        yield from _gate_rows(case, chosen, module, dtype, budget)
