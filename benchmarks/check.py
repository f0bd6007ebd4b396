"""What must hold before anything is timed.

    max|ours - ref| <= 2 * max|peer - ref| + 4 eps * max(1, max|ref|)        for every tensor

`ref` is the peer in float64 and `peer` the peer in the dtype that is timed, whose eps this is.

Where float64 itself is timed there is nothing wider at hand. Then `ref` is the peer in float64,
with an error of its own, and that error is taken from the peer in float32, scaled by the ratio of
both eps: the bound becomes 3 * scaled error + 4 eps * max(1, max|ref|), of which one part is the
reference's.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

EPS = {"float64": 2.0**-52, "float32": 2.0**-23, "bfloat16": 2.0**-7}
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


def judge(
    ours: Mapping[str, np.ndarray],
    peer: Mapping[str, np.ndarray],
    ref: Mapping[str, np.ndarray],
    dtype: str,
) -> Verdict:
    """Holds `ours`, computed in `dtype`, to the rule; `peer` was computed in peer_dtype(dtype)."""
    if ours.keys() != ref.keys():
        return Verdict(f"tensors are {sorted(ours)}, expected {sorted(ref)}", np.nan, np.nan)
    eps = EPS[dtype]
    weight = eps / EPS[peer_dtype(dtype)]
    failures, errors, peer_errors = [], [], []
    for name, value in ours.items():
        if value.shape != ref[name].shape:
            failures.append(f"{name} has shape {value.shape}, expected {ref[name].shape}")
            continue
        scale = max(1.0, float(np.abs(ref[name]).max(initial=0)))
        error = float(np.abs(value - ref[name]).max(initial=0))
        peer_error = weight * float(np.abs(peer[name] - ref[name]).max(initial=0))
        bound = (3 if dtype == WIDE else 2) * peer_error + 4 * eps * scale
        if not error <= bound:  # so that NaN fails
            failures.append(f"{name} is off by {error:.3g}, bound {bound:.3g}")
        errors.append(error / scale)
        peer_errors.append(peer_error / scale)
    return Verdict("; ".join(failures), max(errors, default=np.nan),
                   max(peer_errors, default=np.nan))
