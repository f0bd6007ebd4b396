"""What is measured: shapes, nothing else.

Sizes: B sequences, T steps, I input features, H hidden units, L layers.
"""

import itertools
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass

GATES = {"GRU": 3, "LSTM": 4, "GRUCell": 3, "LSTMCell": 4}


class Plain:
    """What is the same of most cases: one direction, no projection, whole sequences."""

    D = 1  # directions

    @property
    def P(self) -> int:
        """The features that a direction gives, and that come back to it."""
        return self.H

    @property
    def rows(self) -> int:
        """Steps of all sequences together."""
        return self.B * self.T

    @property
    def share(self) -> float:
        """Of the padded steps, those that are of a sequence."""
        return self.rows / (self.B * self.T)


@dataclass(frozen=True)
class Layer(Plain):
    """A GRU or LSTM over whole sequences; `cell` names the class of torch.nn."""

    cell: str
    B: int
    T: int
    I: int  # noqa: E741
    H: int
    L: int

    @property
    def shape(self) -> str:
        return f"{self.B},{self.T},{self.I},{self.H},{self.L}"

    @property
    def inputs(self) -> list[int]:
        """The input features of each layer, first to last."""
        return [self.I] + [self.D * self.P] * (self.L - 1)

    @property
    def options(self) -> dict[str, int]:
        """What the module is told beyond its sizes."""
        return {}

    def __str__(self) -> str:
        return f"{self.cell} {self.shape}"


@dataclass(frozen=True)
class Special(Layer):
    """A Layer with something that most have not; packed sequences end after 1 to T steps."""

    feature: str  # bidirectional, packed or projected

    @property
    def D(self) -> int:
        return 2 if self.feature == "bidirectional" else 1

    @property
    def P(self) -> int:
        return self.H // 2 if self.feature == "projected" else self.H

    @property
    def rows(self) -> int:
        return sum(self.lengths)

    @property
    def lengths(self) -> list[int]:
        return drawn(self.B, self.T) if self.feature == "packed" else [self.T] * self.B

    @property
    def options(self) -> dict[str, int]:
        projected = {"proj_size": self.P} if self.P != self.H else {}
        return {"bidirectional": self.D == 2} | projected

    def __str__(self) -> str:
        return f"{super().__str__()} {self.feature}"


def drawn(B: int, T: int) -> list[int]:
    """Lengths of B sequences, the same each time; the shortest and the longest are among them."""
    found = random.Random(RAGGED_SEED).choices(range(1, T + 1), k=B)
    return [*found[2:], 1, T] if B > 1 else [T]


@dataclass(frozen=True)
class Step(Plain):
    """One step of a GRUCell or LSTMCell."""

    cell: str
    B: int
    I: int  # noqa: E741
    H: int
    T = 1
    L = 1

    @property
    def shape(self) -> str:
        return f"{self.B},{self.I},{self.H}"

    @property
    def inputs(self) -> list[int]:
        return [self.I]

    def __str__(self) -> str:
        return f"{self.cell} {self.shape}"


@dataclass(frozen=True)
class Ragged(Layer):
    """A Layer whose sequences end after 1 to T steps; both ends are there."""

    @property
    def lengths(self) -> list[int]:
        return drawn(self.B, self.T)

    @property
    def rows(self) -> int:
        return sum(self.lengths)


@dataclass(frozen=True)
class Frame(Plain):
    """One step of a stack of layers whose states are carried from the last one."""

    cell: str
    B: int
    I: int  # noqa: E741
    H: int
    L: int
    T = 1

    @property
    def shape(self) -> str:
        return f"{self.B},{self.I},{self.H},{self.L}"

    @property
    def inputs(self) -> list[int]:
        return [self.I] + [self.H] * (self.L - 1)

    def __str__(self) -> str:
        return f"{self.cell} stream {self.shape}"


@dataclass(frozen=True)
class Gate:
    """A gate function alone, over `B` numbers that stay in the first cache."""

    cell: str  # sigmoid or tanh
    B: int

    @property
    def shape(self) -> str:
        return str(self.B)

    def __str__(self) -> str:
        return f"{self.cell} {self.shape}"


Case = Layer | Step | Frame | Gate

LAYER_SHAPES = [  # B, T, I, H, L
    (1024, 90, 5, 256, 2),  # the article's forecaster: five features, look-back of 90 hours
    (64, 90, 5, 256, 2),
    (8, 90, 5, 256, 2),
    (1, 90, 5, 256, 2),
    (32, 100, 128, 128, 1),
    (64, 256, 512, 512, 1),
    (1, 256, 512, 512, 1),
    (16, 50, 1024, 1024, 1),
]
MEMORY_BATCH = 8  # from here on memory is measured: a step of fewer sequences needs little
SWEEP_BATCHES, SWEEP_STEPS = (1, 2, 8, 32, 128, 512), (1, 16, 100)
SWEEP_INPUTS, SWEEP_HIDDEN = (1, 16, 128), (8, 64, 100, 256, 512)
STEP_SHAPES = [(B, H, H) for H in (64, 128, 256) for B in (1, 8, 64)]  # B, I, H
FRAME_SHAPES = [(1, 64, 64, 1), (1, 256, 256, 2), (8, 256, 256, 2), (64, 256, 256, 2)]  # B, I, H, L
RAGGED_SHAPES = [(32, 168, 64, 64, 1), (32, 500, 64, 64, 1), (32, 1000, 64, 64, 1)]
RAGGED_SEED = 2026
GATE_ELEMENTS = 4096

GPU_LAYERS = [  # few enough for minutes, one for each way in which a shape can be slow
    ("GRU", (1024, 90, 5, 256, 2)),  # the article's forecaster
    ("LSTM", (1024, 90, 5, 256, 2)),
    ("GRU", (1, 1024, 256, 256, 1)),
    ("GRU", (16, 1024, 512, 512, 1)),
    ("GRU", (64, 256, 512, 512, 2)),
    ("LSTM", (16, 1024, 768, 768, 1)),
    ("GRU", (16, 1024, 1024, 1024, 1)),
    ("GRU", (256, 256, 256, 256, 1)),
    ("GRU", (1024, 256, 128, 128, 1)),
    ("GRU", (1024, 90, 1024, 1024, 1)),
]
GRID_BATCHES, GRID_STEPS = (1, 16, 64, 256, 1024), (90, 256, 1024)
GRID_HIDDEN = (64, 128, 256, 512, 1024, 2048)
SPECIAL_SHAPES = [(1, 1024, 256, 256, 1), (64, 256, 512, 512, 1), (1024, 90, 128, 128, 1)]
# What the plan goes by: sizes between which times are interpolated (csrc/measured.h).
PLAN_BATCHES, PLAN_STEPS, PLAN_HIDDEN = GRID_BATCHES, (32, 256), GRID_HIDDEN
STACKED_HIDDEN = 256  # units up to which layers may be walked at the same time
# cuDNN has kernels of its own for few units; this says what they make of every batch.
FEW_UNITS, FEW_UNITS_BATCHES, FEW_UNITS_STEPS = (64, 128, 192), (16, 256, 1024), 128

SUITES = ("layers", "ragged", "cells", "kernels", "sweep", "memory", "grid", "special", "baseline",
          "plan")


def layers(shapes: Sequence[Sequence[int]] | None = None) -> list[Layer]:
    return [Layer(cell, *shape) for shape in shapes or LAYER_SHAPES for cell in ("GRU", "LSTM")]


def cells(shapes: Sequence[Sequence[int]] | None = None) -> list[Step]:
    return [Step(cell, *s) for s in shapes or STEP_SHAPES for cell in ("GRUCell", "LSTMCell")]


def cells_and_streams(shapes: Sequence[Sequence[int]] | None = None) -> list[Case]:
    frames = [] if shapes else FRAME_SHAPES
    return [*cells(shapes), *(Frame(cell, *s) for s in frames for cell in ("GRU", "LSTM"))]


def ragged(shapes: Sequence[Sequence[int]] | None = None) -> list[Ragged]:
    return [Ragged(cell, *s) for s in shapes or RAGGED_SHAPES for cell in ("GRU", "LSTM")]


def kernels(shapes: Sequence[Sequence[int]] | None = None) -> list[Case]:
    """What the kernels see of the other suites: each layer by itself, the cells, the gates."""
    single = [
        Layer(case.cell, case.B, case.T, inputs, case.H, 1)
        for case in layers(shapes)
        for inputs in case.inputs
    ]
    found: list[Case] = list(dict.fromkeys(single))
    if shapes is None:
        found += cells()
        found += [Gate(function, GATE_ELEMENTS) for function in ("sigmoid", "tanh")]
    return found


def sweep(shapes: Sequence[Sequence[int]] | None = None) -> list[Layer]:
    every = itertools.product(SWEEP_BATCHES, SWEEP_STEPS, SWEEP_INPUTS, SWEEP_HIDDEN, (1,))
    return layers(shapes or list(every))


def memory(shapes: Sequence[Sequence[int]] | None = None) -> list[Layer]:
    return layers(shapes or [shape for shape in LAYER_SHAPES if shape[0] >= MEMORY_BATCH])


def gpu_layers(shapes: Sequence[Sequence[int]] | None = None) -> list[Layer]:
    return layers(shapes) if shapes else [Layer(cell, *shape) for cell, shape in GPU_LAYERS]


def grid(shapes: Sequence[Sequence[int]] | None = None) -> list[Layer]:
    every = itertools.product(GRID_HIDDEN, GRID_BATCHES, GRID_STEPS)
    return layers(shapes or [(B, T, H, H, 1) for H, B, T in every])


def special(shapes: Sequence[Sequence[int]] | None = None) -> list[Layer]:
    kinds = [(cell, feature) for feature in ("bidirectional", "packed", "projected")
             for cell in ("GRU", "LSTM") if (cell, feature) != ("GRU", "projected")]
    return [Special(cell, *s, feature) for s in shapes or SPECIAL_SHAPES for cell, feature in kinds]


def baseline(shapes: Sequence[Sequence[int]] | None = None) -> list[Layer]:
    every = itertools.product(FEW_UNITS, FEW_UNITS_BATCHES)
    few = layers([(B, FEW_UNITS_STEPS, H, H, 1) for H, B in every])
    return gpu_layers(shapes) + ([] if shapes else few)


def plan(shapes: Sequence[Sequence[int]] | None = None) -> list[Layer]:
    every = itertools.product(PLAN_HIDDEN, PLAN_BATCHES, PLAN_STEPS)
    return layers(shapes or [(B, T, H, H, L) for H, B, T in every
                             for L in ((1, 2) if H <= STACKED_HIDDEN else (1,))])


ON = {
    "cpu": {"layers": layers, "ragged": ragged, "cells": cells_and_streams, "kernels": kernels,
            "sweep": sweep, "memory": memory},
    "cuda": {"layers": gpu_layers, "cells": cells, "grid": grid, "special": special,
             "baseline": baseline, "plan": plan},
}


def of_suite(suite: str, shapes: Sequence[Sequence[int]] | None = None,
             device: str = "cpu") -> list[Case]:
    """The cases of a suite, in the order in which they run; `shapes` instead of the usual ones."""
    return list(ON[device][suite](shapes))


def parse_shape(text: str, suite: str) -> tuple[int, ...]:
    """B,T,I,H,L, or for the cells B,I,H. Raises ValueError with what was expected."""
    letters = "B,I,H" if suite == "cells" else "B,T,I,H,L"
    words = text.split(",")
    if len(words) != len(letters.split(",")) or not all(re.fullmatch("[1-9][0-9]*", w)
                                                        for w in words):
        raise ValueError(f"a shape of suite {suite} is {letters}, all positive, not {text!r}")
    return tuple(int(word) for word in words)
