"""The one tolerance rule of the suite.

    max|ours - ref| <= 2 * max|torch - ref| + tiny,   tiny = 4 eps * max(1, max|ref|)

`torch` is torch.nn in the dtype under test, `ref` an oracle of higher precision, eps that of the
dtype under test. The rule holds for each gate block of a weight's or bias's gradient by itself, so
that a small block cannot hide behind a large one. A NaN or an infinity is right only where the
oracle has the same.
"""

from collections.abc import Iterator, Mapping

import numpy as np
import torch
from array_tolerance import bound, error, violation
from torch import Tensor

GATES = {3: "rzn", 4: "ifgo"}
GATED = ("grad weight_ih", "grad weight_hh", "grad bias")


def widened(value: Tensor | np.ndarray) -> np.ndarray:
    """As NumPy in double precision, complex or not; an oracle's longdouble stays what it is."""
    if isinstance(value, np.ndarray):
        return value
    return value.detach().to(torch.complex128 if value.is_complex() else torch.float64).numpy()


def blocks(name: str, count: int, rows: int) -> Iterator[tuple[str, slice]]:
    """The parts of a tensor that the rule judges one by one: gate blocks, or the whole."""
    if not name.startswith(GATED):
        yield name, slice(None)
        return
    size = rows // count
    for k, gate in enumerate(GATES[count]):
        yield f"{name}[gate {gate}]", slice(k * size, (k + 1) * size)


def hold(ours: Mapping[str, Tensor], peer: Mapping[str, Tensor],
         ref: Mapping[str, Tensor | np.ndarray], dtype: torch.dtype, gates: int,
         label: str = "") -> None:
    """Asserts the rule for every tensor in `ours`; lists every block that breaks it."""
    found = []
    for name, value in ours.items():
        if value.dtype != peer[name].dtype:
            found.append(f"{name}: dtype {value.dtype}, torch's is {peer[name].dtype}")
        wide = [widened(part) for part in (value, peer[name], ref[name])]
        for block, rows in blocks(name, gates, len(wide[0])):
            found.append(violation(block, *(part[rows] for part in wide), torch.finfo(dtype).eps))
    found = [line for line in found if line]
    assert not found, "\n".join([f"{len(found)} tensors off {label}", *found])


def hold_together(one: Mapping[str, Tensor], two: Mapping[str, Tensor],
                  peer: Mapping[str, Tensor], ref: Mapping[str, Tensor | np.ndarray],
                  dtype: torch.dtype, gates: int) -> None:
    """Asserts that two results of ours lie no further apart than either may from the oracle."""
    for name in one:
        wide = [widened(part[name]) for part in (one, two, peer, ref)]
        for block, rows in blocks(name, gates, len(wide[0])):
            a, b, by_torch, oracle = (part[rows] for part in wide)
            limit = bound(by_torch, oracle, torch.finfo(dtype).eps)
            apart = float(error(a, b).max(initial=0))
            assert apart <= limit, f"{block}: {apart:.3g} apart, bound {limit:.3g}"
