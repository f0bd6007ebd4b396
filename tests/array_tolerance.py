"""The rule of tolerance.py for one block, on NumPy arrays; free of torch, so that it also judges
kernels where there is none (arm.py)."""

import numpy as np


def error(value: np.ndarray, ref: np.ndarray) -> np.ndarray:
    """|value - ref|: 0 where both are the same NaN or infinity, inf where only one of them is."""
    same = (value == ref) | (np.isnan(value) & np.isnan(ref))
    with np.errstate(invalid="ignore"):
        distance = np.abs(value - ref)
    return np.where(same, 0, np.where(np.isfinite(distance), distance, np.inf))


def bound(peer: np.ndarray, ref: np.ndarray, eps: float) -> float:
    """The right side of the rule for one block."""
    largest = float(np.abs(ref[np.isfinite(ref)]).max(initial=0))
    tiny = 4 * eps * max(1.0, largest)
    return 2 * float(error(peer, ref).max(initial=0)) + tiny


def violation(name: str, ours: np.ndarray, peer: np.ndarray, ref: np.ndarray,
              eps: float) -> str | None:
    """Why `ours` breaks the rule against `ref`, where torch's own result is `peer`; or None."""
    if not ours.shape == peer.shape == ref.shape:
        return f"{name}: shapes differ: ours {ours.shape}, torch {peer.shape}, oracle {ref.shape}"
    if ref.size == 0:
        return None
    error_ours, error_peer, limit = error(ours, ref), error(peer, ref), bound(peer, ref, eps)
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
