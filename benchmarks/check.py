"""What must hold before anything is timed.

    max|ours - ref| <= 2 * max|peer - ref| + 4 eps * max(1, max|ref|)        for every tensor

`ref` is the peer in float64 and `peer` the peer in the dtype that is timed, whose eps this is. On a
GPU float32 comes in two kinds: tf32, where operands of products may be rounded to TF32 (ten bits of
mantissa, hence its eps), and float32, where they may not.

Where float64 itself is timed there is nothing wider at hand. Then `ref` is the peer in float64,
with an error of its own, and that error is taken from the peer in float32, scaled by the ratio of
both eps: the bound becomes 3 * scaled error + 4 eps * max(1, max|ref|), of which one part is the
reference's.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

EPS = {"float64": 2.0**-52, "float32": 2.0**-23, "tf32": 2.0**-10, "float16": 2.0**-10,
       "bfloat16": 2.0**-7}
WIDE = "float64"


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
    if ours.keys() != ref.keys():
        return Verdict(f"tensors are {sorted(ours)}, expected {sorted(ref)}", math.nan, math.nan)
    eps = EPS[dtype]
    weight = eps / EPS[peer_dtype(dtype)]
    failures, errors, peer_errors = [], [], []
    for name, value in ours.items():
        if value.shape != ref[name].shape:
            failures.append(
                f"{name} has shape {tuple(value.shape)}, expected {tuple(ref[name].shape)}"
            )
            continue
        scale = max(1.0, largest(ref[name]))
        error = largest(value - ref[name])
        peer_error = weight * largest(peer[name] - ref[name])
        bound = (3 if dtype == WIDE else 2) * peer_error + 4 * eps * scale
        if not error <= bound:  # so that NaN fails
            failures.append(f"{name} is off by {error:.3g}, bound {bound:.3g}")
        errors.append(error / scale)
        peer_errors.append(peer_error / scale)
    return Verdict("; ".join(failures), max(errors, default=math.nan),
                   max(peer_errors, default=math.nan))
