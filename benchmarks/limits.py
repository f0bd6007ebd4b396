"""What the machine can do, measured, and the time below which no implementation gets on it.

A pass is a list of matrix products. Each takes at least as long as its multiply-adds at the
machine's peak, and at least as long as reading its weights once: from the cache in which a thread's
share of them fits, at the bandwidth measured for a working set of that size. The recurrent product
is done T times, as each step waits for the one before; the products of the input, and those of the
weights' gradients, can be done for all steps at once.
"""

import functools
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from .cases import GATES, Layer, Step

FOLDER = Path(__file__).resolve().parent.parent / "build" / "kernels"
MISSING = (
    "the raw kernel module gatedrnn_kernels is missing: build it with "
    "`python setup.py -q build_kernels`"
)
ELEMENT = {"float64": 8, "float32": 4, "tf32": 4, "float16": 2, "bfloat16": 2}
REPEATS = 100  # short runs of which the best counts
SMALLEST = 4096  # bytes: a shorter read measures the loop's ends


def kernel_module() -> ModuleType:
    """The raw kernels on NumPy arrays. Raises ModuleNotFoundError that says how to build them."""
    if FOLDER.is_dir() and str(FOLDER) not in sys.path:
        sys.path.insert(0, str(FOLDER))
    try:
        import gatedrnn_kernels
    except ModuleNotFoundError:
        raise ModuleNotFoundError(MISSING) from None
    return gatedrnn_kernels


@dataclass(frozen=True)
class Product:
    """A matrix product that is done `times` times, one after the other."""

    multiply_adds: int
    weights: int  # elements
    times: int = 1


def input_product(case: Layer | Step, inputs: int) -> Product:
    weights = case.D * GATES[case.cell] * case.H * inputs
    return Product(case.T * case.B * weights, weights)


def recurrent_product(case: Layer | Step) -> Product:
    """With the projection, where there is one."""
    weights = case.D * (GATES[case.cell] * case.H * case.P + projection(case))
    return Product(case.B * weights, weights, case.T)


def projection(case: Layer | Step) -> int:
    """The weights of a direction's projection."""
    return case.P * case.H if case.P != case.H else 0


def forward_products(case: Layer | Step) -> list[Product]:
    return [
        p for n in case.inputs for p in (input_product(case, n), recurrent_product(case))
    ]


def training_products(case: Layer | Step) -> list[Product]:
    """Forward, the gradients of input and state, and those of the weights."""
    forward = forward_products(case)
    outer = [Product(p.multiply_adds * p.times, 0) for p in forward]
    return [*forward, *forward, *outer]


def moved(case: Layer | Step, training: bool, element: int) -> int:
    """The fewest bytes that a pass can move: each layer reads its input and weights and writes its
    output. Backward reads them once more with the output's gradient, and writes the gradients of
    the input and the weights. What is kept between the passes does not count."""
    total = 0
    for inputs in case.inputs:
        x, y = case.rows * inputs, case.rows * case.D * case.P
        weights = case.D * (GATES[case.cell] * case.H * (inputs + case.P) + projection(case))
        total += 3 * (x + y + weights) if training else x + y + weights
    return element * total


def flops(products: list[Product]) -> int:
    """Useful floating-point operations: a multiply-add is two."""
    return 2 * sum(p.multiply_adds * p.times for p in products)


@dataclass(frozen=True)
class Bound:
    seconds: float
    by: str  # what most of these seconds are spent on: multiply-adds or reading


class Limits:
    """The limits of one instruction set with some threads, measured when first asked for."""

    def __init__(self, module: ModuleType, isa: str, threads: int, dtype: str) -> None:
        self.isa, self.threads, self.dtype = isa, threads, dtype
        self._module = module
        self.peak = functools.cache(self._peak)
        self.bandwidth = functools.cache(self._bandwidth)

    def _peak(self, threads: int) -> float:
        """Floating-point operations a second; for bfloat16 those of float32."""
        bits = "64" if self.dtype == "float64" else "32"
        return getattr(self._module, f"peak_flops{bits}")(self.isa, threads, REPEATS)

    def _bandwidth(self, size: int) -> float:
        """Bytes a second that all threads read together, each from `size` bytes of its own."""
        return self._module.read_bandwidth(size, self.isa, self.threads, REPEATS)

    def bound(self, products: list[Product]) -> Bound:
        computing = reading = total = 0.0
        for p in products:
            operations = 2 * p.multiply_adds / self.peak(self.threads)
            read = 0.0
            if p.weights:
                size = p.weights * ELEMENT[self.dtype]
                read = size / self.bandwidth(max(SMALLEST, size // self.threads))
            total += p.times * max(operations, read)
            if operations >= read:
                computing += p.times * operations
            else:
                reading += p.times * read
        return Bound(total, "multiply-adds" if computing >= reading else "reading")

    def describe(self) -> str:
        """The limits in words, with a warning where the threads do not help each other."""
        sizes = [("16 KB", 16 << 10), ("512 KB", 512 << 10), ("4 MB", 4 << 20), ("64 MB", 64 << 20)]
        reads = ", ".join(f"{self.bandwidth(size) / 1e9:.0f} ({name})" for name, size in sizes)
        name = "float64" if self.dtype == "float64" else "float32"
        one, all_ = self.peak(1), self.peak(self.threads)
        lines = [
            f"limits    {self.isa}, {self.threads} threads: {all_ / 1e9:.0f} GFLOP/s {name} "
            f"multiply-adds; reading {reads} GB/s (working set of a thread)"
        ]
        if all_ < 0.75 * self.threads * one:
            lines.append(
                f"WARNING   {self.threads} threads reach only {all_ / one:.2f} times the peak of "
                "one: other programs run, or there are fewer cores; no figure below is worth much"
            )
        return "\n".join(lines)
