"""The time below which a layer does not get on a GPU with this library's kernels, however well
they are made: the floor.

A step takes at least as long as its products, its activations, the bytes that it moves, and the
way from one state to the next; which of the four is longest differs with the shape. To T such
steps come the products over the whole sequence, each at least as long as its operations or its
bytes. Layers, forward and backward follow each other; or else, where there is room for the weights
of their inputs too, all layers make a step forward at the same time, these products in it.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from .cases import GATES, Layer
from .limits import ELEMENT

# Seconds from a state to the next, products apart, where the recurrent weights stay in one block,
# in a cluster of up to 16 blocks, or in all blocks of the GPU; and with a launch for each step.
LATENCY = {"block": 0.35e-6, "cluster": 0.5e-6, "grid": 0.8e-6, "steps": 3e-6}
CLUSTER = 16  # blocks
MOST_LAYERS = 4  # that one launch walks
BLOCK_BYTES = 372 << 10  # of weights: 192 KiB in registers, 180 KiB in shared memory
WEIGHT = ELEMENT | {"tf32": 2}  # bytes: rounded to 16 bits they have TF32's mantissa
SPLIT = 3  # products of 16 bits that make one of float32

# Exponentials and reciprocals of a unit's step, gates sharing a reciprocal where they can; so many
# of them a multiprocessor makes in a cycle.
ACTIVATIONS = {"GRU": 5, "LSTM": 7}
ACTIVATION_LANES = 16


@dataclass(frozen=True)
class Machine:
    architecture: int  # 90 for compute capability 9.0
    multiprocessors: int
    hertz: float
    product_rate: Callable[[str], float]  # operations a second by dtype, as measured
    copy_rate: float  # bytes a second, as measured

    def rate(self, dtype: str) -> float:
        """Of the fastest products that have the precision of `dtype`."""
        if dtype == "tf32":
            return self.product_rate("float16")
        if dtype == "float32":
            return max(self.product_rate(dtype), self.product_rate("float16") / SPLIT)
        return self.product_rate(dtype)


@dataclass(frozen=True)
class Floor:
    seconds: float
    by: str  # what most of these seconds are spent on


def floor(case: Layer, training: bool, dtype: str, machine: Machine) -> Floor:
    """Of a layer's inference, or of its training: forward and backward."""
    ways = (False, True) if can_walk_together(case, dtype, machine) else (False,)
    found = []
    for together in ways:
        spent: dict[str, float] = {}
        for times, costs in _parts(case, training, dtype, machine, together):
            by = max(costs, key=lambda name: costs[name])
            spent[by] = spent.get(by, 0.0) + times * costs[by]
        found.append(Floor(sum(spent.values()), max(spent, key=lambda name: spent[name])))
    return min(found, key=lambda way: way.seconds)


def can_walk_together(case: Layer, dtype: str, machine: Machine) -> bool:
    """Whether all layers find room for both of their matrices, in a cluster each."""
    if not 2 <= case.L <= MOST_LAYERS or case.D > 1 or getattr(case, "feature", None):
        return False
    size = 2 * GATES[case.cell] * case.H * case.H * WEIGHT[dtype]
    return (WEIGHT[dtype] == 2 and kind(case, dtype, machine) in ("block", "cluster")
            and size <= CLUSTER * BLOCK_BYTES)


def kind(case: Layer, dtype: str, machine: Machine) -> str:
    """Where the recurrent weights of a layer can stay, by the names of LATENCY."""
    if dtype == "float64" or case.P != case.H or machine.architecture < 80:
        return "steps"
    size = GATES[case.cell] * case.H * case.P * WEIGHT[dtype]
    if size <= BLOCK_BYTES:
        return "block"
    if size <= CLUSTER * BLOCK_BYTES and machine.architecture >= 90:
        return "cluster"
    return "grid" if case.D * size <= machine.multiprocessors * BLOCK_BYTES else "steps"


def _parts(case: Layer, training: bool, dtype: str, machine: Machine,
           together: bool) -> Iterator[tuple[int, dict[str, float]]]:
    """What is done one after the other: how many times, and what each time costs by its reason."""
    rows, units, gates = case.rows, case.D * case.H, GATES[case.cell]
    element, wide = ELEMENT[dtype], max(4, ELEMENT[dtype])
    gradient = 4 if dtype == "float16" else element
    rate, copying = machine.rate(dtype), machine.copy_rate
    cells = machine.multiprocessors * machine.hertz * ACTIVATION_LANES / ACTIVATIONS[case.cell]
    latency = LATENCY[kind(case, dtype, machine)]
    output = case.D * case.P * element

    def step(row: int, layers: int = 1) -> tuple[int, dict[str, float]]:
        """Of `row` bytes for each sequence; of several layers, the inputs of all but the first one
        multiplied too."""
        return case.T, {
            "products": (2 * layers - 1) * 2 * rows * gates * units * case.P / rate / case.T,
            "activations": 0 if dtype == "float64" else layers * rows * units / cells / case.T,
            "memory": rows * row / copying / case.T,
            "latency": latency,
        }

    def whole(features: int, row: int) -> tuple[int, dict[str, float]]:
        """A product with all steps' gates, whose other side has `features`."""
        operations = 2 * rows * gates * units * features
        return 1, {"products": operations / rate, "memory": rows * row / copying}

    kept = 3 * element if case.cell == "GRU" else 4 * element + wide
    previous = element if case.cell == "GRU" else 0
    dgates = (4 if case.cell == "GRU" else gates) * gradient
    projected, left = gates * units * wide, output + (kept * units if training else 0)
    for features in case.inputs[:1] if together else case.inputs:
        yield whole(features, features * element + projected)
        yield step(projected + (case.L * left if together else left), case.L if together else 1)
    for features in case.inputs if training else ():
        yield step(output + (kept + previous + dgates) * units)
        for other in (features, features, case.P):  # dx, dw_ih, dw_hh
            yield whole(other, other * element + gates * gradient * units)
