"""One layer in NumPy: what the raw kernels are held against. The equations are gates.h's.

Sizes: T steps, B sequences, I input features, H hidden units, G gates (GRU 3: r, z, n; LSTM 4:
i, f, g, o). Everything is computed in the dtype of the arguments.
"""

import numpy as np

Arrays = dict[str, np.ndarray]


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def layer(cell: str, x: np.ndarray, h0: np.ndarray, c0: np.ndarray | None,
          weights: list[np.ndarray]) -> tuple[Arrays, list[tuple[np.ndarray, ...]]]:
    """Forward: x (T, B, I), h0 and c0 (B, H), weights w_ih (G*H, I), w_hh (G*H, H), b_ih, b_hh.

    Returns y (T, B, H) and the final states (B, H) by name; and what backward reads of each step.
    """
    w_ih, w_hh, b_ih, b_hh = weights
    gates_x = x @ w_ih.T + b_ih
    h, c, outputs, kept = h0, c0, [], []
    for gx in gates_x:
        gh = h @ w_hh.T + b_hh
        if cell == "gru":
            (xr, xz, xn), (hr, hz, q) = np.split(gx, 3, -1), np.split(gh, 3, -1)
            r, z = sigmoid(xr + hr), sigmoid(xz + hz)
            n = np.tanh(xn + r * q)
            kept.append((r, z, n, q, h))
            h = (1 - z) * n + z * h
        else:
            i, f, g, o = np.split(gx + gh, 4, -1)
            i, f, g, o = sigmoid(i), sigmoid(f), np.tanh(g), sigmoid(o)
            before, c = c, f * c + i * g
            kept.append((i, f, g, o, before, np.tanh(c)))
            h = o * kept[-1][-1]
        outputs.append(h)
    found = {"y": np.stack(outputs), "hn": h}
    return (found if c is None else found | {"cn": c}), kept


def layer_backward(cell: str, kept: list[tuple[np.ndarray, ...]], w_ih: np.ndarray,
                   w_hh: np.ndarray, dy: np.ndarray, dhn: np.ndarray,
                   dcn: np.ndarray | None) -> Arrays:
    """The gradients that each sequence has for itself: dx (T, B, I), dh0 and dc0 (B, H)."""
    dh, dc, dx = dhn, dcn, []
    for step, arriving in zip(reversed(kept), dy[::-1], strict=True):
        dh = dh + arriving
        if cell == "gru":
            r, z, n, q, before = step
            da_n = dh * (1 - z) * (1 - n * n)
            da_z = dh * (before - n) * z * (1 - z)
            da_r = da_n * q * r * (1 - r)
            d = np.concatenate([da_r, da_z, da_n], -1)
            dh = dh * z + np.concatenate([da_r, da_z, da_n * r], -1) @ w_hh
        else:
            i, f, g, o, before, tanh_c = step
            dc = dc + dh * o * (1 - tanh_c * tanh_c)
            d = np.concatenate([dc * g * i * (1 - i), dc * before * f * (1 - f),
                                dc * i * (1 - g * g), dh * tanh_c * o * (1 - o)], -1)
            dc, dh = dc * f, d @ w_hh
        dx.append(d @ w_ih)
    found = {"dx": np.stack(dx[::-1]), "dh0": dh}
    return found if dc is None else found | {"dc0": dc}
