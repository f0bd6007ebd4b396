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
from torch import Tensor

GATES = {3: "rzn", 4: "ifgo"}
GATED = ("grad weight_ih", "grad weight_hh", "grad bias")


def widened(value: Tensor | np.ndarray) -> np.ndarray:
    """As NumPy in double precision, complex or not; an oracle's longdouble stays what it is."""
    if isinstance(value, np.ndarray):
        return value
    return value.detach().to(torch.complex128 if value.is_complex() else torch.float64).numpy()


def error(value: np.ndarray, ref: np.ndarray) -> np.ndarray:
    """|value - ref|: 0 where both are the same NaN or infinity, inf where only one of them is."""
    same = (value == ref) | (np.isnan(value) & np.isnan(ref))
    with np.errstate(invalid="ignore"):
        distance = np.abs(value - ref)
    return np.where(same, 0, np.where(np.isfinite(distance), distance, np.inf))


def bound(peer: np.ndarray, ref: np.ndarray, dtype: torch.dtype) -> float:
    """The right side of the rule for one block."""
    largest = float(np.abs(ref[np.isfinite(ref)]).max(initial=0))
    tiny = 4 * torch.finfo(dtype).eps * max(1.0, largest)
    return 2 * float(error(peer, ref).max(initial=0)) + tiny


def violation(name: str, ours: np.ndarray, peer: np.ndarray, ref: np.ndarray,
              dtype: torch.dtype) -> str | None:
    """Why `ours` breaks the rule against `ref`, where torch's own result is `peer`; or None."""
    if not ours.shape == peer.shape == ref.shape:
        return f"{name}: shapes differ: ours {ours.shape}, torch {peer.shape}, oracle {ref.shape}"
    if ref.size == 0:
        return None
    error_ours, error_peer, limit = error(ours, ref), error(peer, ref), bound(peer, ref, dtype)
    if np.isinf(limit):
        return f"{name}: torch's own result is not finite where the oracle is; this shows nothing"
    if error_ours.max() <= limit:
        return None
    at = np.unravel_index(int(error_ours.argmax()), ref.shape)
    return (
        f"{name} at {tuple(int(k) for k in at)} of {ref.shape}: ours {ours[at]}, torch {peer[at]}, "
        f"oracle {ref[at]}; error {float(error_ours[at]):.3g}, torch's largest "
        f"{float(error_peer.max()):.3g}, bound {limit:.3g}"
    )


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
            found.append(violation(block, *(part[rows] for part in wide), dtype))
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
            limit = bound(by_torch, oracle, dtype)
            apart = float(error(a, b).max(initial=0))
            assert apart <= limit, f"{block}: {apart:.3g} apart, bound {limit:.3g}"
