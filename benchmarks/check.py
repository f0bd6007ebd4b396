"""What must hold before anything is timed.

    max|ours - ref| <= 2 * max|peer - ref| + 4 eps * max(1, max|ref|)        for every tensor

`ref` is the peer in float64 and `peer` the peer in the dtype that is timed, whose eps this is. On a
GPU float32 comes in two kinds: tf32, where operands of products may be rounded to TF32 (ten bits of
mantissa, hence its eps), and float32, where they may not.

Where float64 itself is timed there is nothing wider at hand. Then `ref` is the peer in float64,
with an error of its own, and that error is taken from the peer in float32, scaled by the ratio of
both eps: the bound becomes 3 * scaled error + 4 eps * max(1, max|ref|), of which one part is the
reference's.

For other libraries, which round as they like, and for sizes at which float64 takes too long, `near`
is enough: it finds mistakes, not a lost bit.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

EPS = {"float64": 2.0**-52, "float32": 2.0**-23, "tf32": 2.0**-10, "float16": 2.0**-10,
       "bfloat16": 2.0**-7}
WIDE = "float64"
TOLERANCE = 1e-4  # of max(1, the tensor's largest element), in float32: see near


def peer_dtype(dtype: str) -> str:
    """The dtype in which the peer's rounding error is measured."""
    return "float32" if dtype == WIDE else dtype


@dataclass(frozen=True)
class Verdict:
    """`failure` names each tensor that is off, or is empty. Errors are the largest over the
    tensors, each as a share of max(1, the tensor's largest element)."""

    failure: str
    ours_error: float
    peer_error: float


def largest(array: Any) -> float:
    """Of the elements' magnitudes; NaN if there is one; 0 of an empty array."""
    return 0.0 if 0 in array.shape else float(abs(array).max())


def judge(ours: Mapping[str, Any], peer: Mapping[str, Any], ref: Mapping[str, Any],
          dtype: str) -> Verdict:
    """Holds `ours`, computed in `dtype`, to the rule; `peer` was computed in peer_dtype(dtype).

    All are arrays of float64, by NumPy or torch.
    """
    if failure := _names(ours, ref):
        return Verdict(failure, math.nan, math.nan)
    eps = EPS[dtype]
    weight = eps / EPS[peer_dtype(dtype)]
    failures, errors, peer_errors = [], [], []
    for name, value in ours.items():
        if failure := _shape(name, value, ref[name]):
            failures.append(failure)
            continue
        scale = max(1.0, largest(ref[name]))
        error = largest(value - ref[name])
        peer_error = weight * largest(peer[name] - ref[name])
        failures += _size(name, error, (3 if dtype == WIDE else 2) * peer_error + 4 * eps * scale)
        errors.append(error / scale)
        peer_errors.append(peer_error / scale)
    return Verdict("; ".join(failures), max(errors, default=math.nan),
                   max(peer_errors, default=math.nan))


def near(found: Mapping[str, Any], expected: Mapping[str, Any]) -> str:
    """Which tensors, computed in float32, are not within TOLERANCE of what is expected."""
    if failure := _names(found, expected):
        return failure
    failures = []
    for name, value in found.items():
        if failure := _shape(name, value, expected[name]):
            failures.append(failure)
        else:
            bound = TOLERANCE * max(1.0, largest(expected[name]))
            failures += _size(name, largest(value - expected[name]), bound)
    return "; ".join(failures)


def _names(found: Mapping[str, Any], expected: Mapping[str, Any]) -> str:
    same = found.keys() == expected.keys()
    return "" if same else f"tensors are {sorted(found)}, expected {sorted(expected)}"


def _shape(name: str, value: Any, expected: Any) -> str:
    found, wanted = tuple(value.shape), tuple(expected.shape)
    return "" if found == wanted else f"{name} has shape {found}, expected {wanted}"


def _size(name: str, error: float, bound: float) -> list[str]:
    # The negation lets NaN fail.
    return [f"{name} is off by {error:.3g}, bound {bound:.3g}"] if not error <= bound else []
