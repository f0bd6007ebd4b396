"""The layers' equations and their backward in plain NumPy, of any dtype: what the raw kernels must
give. Free of torch, so that it also runs inside a process under sanitizers.

Rows of all steps are stored one after another, packed or not: step t has rows offsets[t] to
offsets[t + 1]. Gradients are those of sum(y * dy) + sum(hn * dhn) + sum(cn * dcn).
"""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Case:
    """One direction of one layer; P is the width of an LSTM's projection, None without one."""

    cell: str
    dtype: str
    T: int
    B: int
    I: int  # noqa: E741 (the field's letter)
    H: int
    P: int | None = None
    reverse: bool = False
    packed: bool = False
    scale: float = 1.0  # of the weights: large ones saturate the gates

    def __str__(self) -> str:
        flags = [f"P={self.P}"] if self.P else []
        flags += [name for name in ("reverse", "packed") if getattr(self, name)]
        flags += [f"scale={self.scale:g}"] if self.scale != 1 else []
        sizes = f"T{self.T}-B{self.B}-I{self.I}-H{self.H}"
        return "-".join([self.cell, self.dtype, sizes, *flags])

    @property
    def gates(self) -> int:
        return 3 if self.cell == "gru" else 4

    @property
    def state(self) -> int:
        return self.P or self.H

    @property
    def batch_sizes(self) -> list[int]:
        """Sequences at each step: all of them, or ever fewer, some steps ending several at once."""
        return [max(1, self.B - self.B * t // self.T) if self.packed else self.B
                for t in range(self.T)]

    def arrays(self) -> Arrays:
        """Inputs, weights and cotangents of seeded noise; h0 within tanh's range, as states are."""
        rng = np.random.default_rng([self.T, self.B, self.I, self.H, self.state])
        G, I, H, P, B, N = (self.gates, self.I, self.H, self.state, self.B,  # noqa: E741
                            sum(self.batch_sizes))
        shapes = {"x": (N, I), "h0": (B, P), "w_ih": (G * H, I), "w_hh": (G * H, P),
                  "b_ih": (G * H,), "b_hh": (G * H,), "dy": (N, P), "dhn": (B, P)}
        if self.cell == "lstm":
            shapes |= {"c0": (B, H), "dcn": (B, H)}
        if self.P:
            shapes["w_hr"] = (P, H)
        arrays = {name: rng.standard_normal(shape) for name, shape in shapes.items()}
        for name in shapes:
            if name.startswith("w_"):
                arrays[name] *= self.scale / np.sqrt(shapes[name][1])
        arrays["h0"] = np.tanh(arrays["h0"])
        return {name: array.astype(self.dtype) for name, array in arrays.items()}

    def walk(self) -> list[slice]:
        """The rows of each step, in the order in which forward walks them."""
        offsets = np.cumsum([0, *self.batch_sizes]).tolist()
        steps = [slice(a, b) for a, b in pairwise(offsets)]
        return steps[::-1] if self.reverse else steps


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def forward(case: Case, a: Arrays, states: np.ndarray | None = None) -> Arrays:
    """y [N, P], hn [B, P], gates [N, G*H] (r, z, q or i, f, g, o); of the LSTM c [N, H] and cn, of
    the GRU n [N, H]. Products take `states` [N, P], where given, in the place of y."""
    gru, H = case.cell == "gru", case.H
    h = a["h0"].copy()
    N, kind = len(a["x"]), a["x"].dtype
    out = {"y": np.zeros((N, case.state), kind), "gates": np.zeros((N, case.gates * H), kind)}
    out["n" if gru else "c"] = np.zeros((N, H), kind)
    if not gru:
        c = a["c0"].copy()
    walk = case.walk()
    for k, rows in enumerate(walk):
        n = rows.stop - rows.start
        previous = h[:n] if states is None else before(states, a["h0"], walk, k)
        ax = a["x"][rows] @ a["w_ih"].T + a["b_ih"]
        ah = previous @ a["w_hh"].T + a["b_hh"]
        if gru:
            r = sigmoid(ax[:, :H] + ah[:, :H])
            z = sigmoid(ax[:, H:2 * H] + ah[:, H:2 * H])
            q = ah[:, 2 * H:]
            candidate = np.tanh(ax[:, 2 * H:] + r * q)
            h[:n] = (1 - z) * candidate + z * h[:n]
            out["gates"][rows] = np.hstack([r, z, q])
            out["n"][rows] = candidate
        else:
            i, f, g, o = np.split(ax + ah, 4, axis=1)
            i, f, g, o = sigmoid(i), sigmoid(f), np.tanh(g), sigmoid(o)
            c[:n] = f * c[:n] + i * g
            hidden = o * np.tanh(c[:n])
            h[:n] = hidden @ a["w_hr"].T if case.P else hidden
            out["gates"][rows] = np.hstack([i, f, g, o])
            out["c"][rows] = c[:n]
        out["y"][rows] = h[:n]
    return {**out, "hn": h, **({} if gru else {"cn": c})}


def backward(case: Case, a: Arrays, saved: Arrays) -> Arrays:
    """From what `forward` gave, the gradients of x, the initial states and the weights. A weight's
    is summed step by step, as autograd would. Where a GRU's gates are four, the last is n."""
    gru, walk = case.cell == "gru", case.walk()
    dh = a["dhn"].copy()
    out = {"d" + name: np.zeros_like(a[name]) for name in a if name[:2] in ("x", "w_", "b_")}
    if not gru:
        dc = a["dcn"].copy()
    for k in reversed(range(len(walk))):
        rows = walk[k]
        n = rows.stop - rows.start
        d = dh[:n] + a["dy"][rows]
        if gru:
            h_prev = before(saved["y"], a["h0"], walk, k)
            gates = saved["gates"][rows]
            r, z, q, *kept = np.split(gates, gates.shape[1] // case.H, axis=1)
            # As the kernels: n is not kept but recovered from h' = (1 - z) n + z h. Where z is 1,
            # its gradient is 0 whatever it is.
            h = saved["y"][rows]
            candidate = kept[0] if kept else (h - z * h_prev) / np.where(z == 1, 1, 1 - z)
            da_n = d * (1 - z) * (1 - candidate * candidate)
            da_z = d * (h_prev - candidate) * z * (1 - z)
            da_r = da_n * q * r * (1 - r)
            dq = da_n * r
            da, d_state = np.hstack([da_r, da_z, da_n]), np.hstack([da_r, da_z, dq])
            dh[:n] = d * z + d_state @ a["w_hh"]
        else:
            c_prev = before(saved["c"], a["c0"], walk, k)
            i, f, g, o = np.split(saved["gates"][rows], 4, axis=1)
            tanh_c = np.tanh(saved["c"][rows])
            if case.P:
                out["dw_hr"] += d.T @ (o * tanh_c)
                d = d @ a["w_hr"]
            whole = dc[:n] + d * o * (1 - tanh_c * tanh_c)
            da = np.hstack([whole * g * i * (1 - i), whole * c_prev * f * (1 - f),
                            whole * i * (1 - g * g), d * tanh_c * o * (1 - o)])
            d_state = da
            dc[:n] = whole * f
            dh[:n] = da @ a["w_hh"]
        out["dx"][rows] = da @ a["w_ih"]
        out["dw_ih"] += da.T @ a["x"][rows]
        out["dw_hh"] += d_state.T @ before(saved["y"], a["h0"], walk, k)
        out["db_ih"] += da.sum(0)
        out["db_hh"] += d_state.sum(0)
    return {**out, "dh0": dh, **({} if gru else {"dc0": dc})}


def before(states: np.ndarray, first: np.ndarray, walk: list[slice], k: int) -> np.ndarray:
    """The states in front of the k-th step walked: of the step before it where a sequence has one,
    else its initial state."""
    n = walk[k].stop - walk[k].start
    previous = states[walk[k - 1]][:n] if k else states[:0]
    return np.concatenate([previous, first[len(previous):n]])


def shaped(case: Case, array: np.ndarray) -> np.ndarray:
    """Rows [N, ...] as the kernels take them: (T, B, ...) unless packed."""
    return array if case.packed else array.reshape(case.T, case.B, -1)


def weights(a: Arrays) -> list[np.ndarray]:
    return [a[name] for name in ("w_ih", "w_hh", "b_ih", "b_hh", "w_hr") if name in a]
