"""GRU and LSTM in extended precision on NumPy: the oracle that float64 is judged by.

torch.nn in float64 has no error against itself, so the tolerance rule would leave float64 nothing
but `tiny`. Here the whole stack runs forwards and backwards in np.longdouble (64 bits of mantissa
on x86, 113 on most ARM; where it is plain double, this is still another order of summation, and
the rule still means something). Nothing is shared with the library or with torch: the derivatives
are worked out by hand.

Names: per step x (b, I), h (b, P), c (b, H), where b counts the sequences still running; P is
proj_size or H. Weights as torch keeps them, rows in gate order r, z, n and i, f, g, o.
"""

import numpy as np

WIDE = np.longdouble


def sigmoid(a):
    return 1 / (1 + np.exp(-a))


def gru_step(x, state, w):
    """h' = (1 - z) n + z h, with n = tanh(W_in x + b_in + r (W_hn h + b_hn))."""
    (h,) = state
    ir, iz, i_n = np.split(x @ w["weight_ih"].T + w["bias_ih"], 3, axis=1)
    hr, hz, hn = np.split(h @ w["weight_hh"].T + w["bias_hh"], 3, axis=1)
    r, z = sigmoid(ir + hr), sigmoid(iz + hz)
    n = np.tanh(i_n + r * hn)
    return [n + z * (h - n)], (x, h, r, z, n, hn)


def gru_step_backward(d_state, saved, w):
    (dh,) = d_state
    x, h, r, z, n, hn = saved
    da_z = dh * (h - n) * z * (1 - z)
    da_n = dh * (1 - z) * (1 - n * n)
    da_r = da_n * hn * r * (1 - r)
    d_input = np.concatenate([da_r, da_z, da_n], axis=1)
    d_hidden = np.concatenate([da_r, da_z, da_n * r], axis=1)
    grads = affine_gradients(x, h, d_input, d_hidden)
    return d_input @ w["weight_ih"], [dh * z + d_hidden @ w["weight_hh"]], grads


def lstm_step(x, state, w):
    """c' = f c + i g, h' = W_hr (o tanh(c')), where W_hr is left out without a projection."""
    h, c = state
    gates = x @ w["weight_ih"].T + w["bias_ih"] + h @ w["weight_hh"].T + w["bias_hh"]
    i, f, g, o = np.split(gates, 4, axis=1)
    i, f, g, o = sigmoid(i), sigmoid(f), np.tanh(g), sigmoid(o)
    c_new = f * c + i * g
    q = o * np.tanh(c_new)
    h_new = q @ w["weight_hr"].T if "weight_hr" in w else q
    return [h_new, c_new], (x, h, c, i, f, g, o, c_new, q)


def lstm_step_backward(d_state, saved, w):
    dh, dc = d_state
    x, h, c, i, f, g, o, c_new, q = saved
    dq = dh @ w["weight_hr"] if "weight_hr" in w else dh
    tc = np.tanh(c_new)
    dc = dc + dq * o * (1 - tc * tc)
    da = np.concatenate(
        [dc * g * i * (1 - i), dc * c * f * (1 - f), dc * i * (1 - g * g), dq * tc * o * (1 - o)],
        axis=1,
    )
    grads = affine_gradients(x, h, da, da)
    if "weight_hr" in w:
        grads["weight_hr"] = dh.T @ q
    return da @ w["weight_ih"], [da @ w["weight_hh"], dc * f], grads


def affine_gradients(x, h, d_input, d_hidden):
    return {
        "weight_ih": d_input.T @ x,
        "weight_hh": d_hidden.T @ h,
        "bias_ih": d_input.sum(axis=0),
        "bias_hh": d_hidden.sum(axis=0),
    }


STEPS = {"gru": (gru_step, gru_step_backward), "lstm": (lstm_step, lstm_step_backward)}


class Direction:
    """One layer in one direction of time; keeps what the backward pass needs."""

    def __init__(self, cell, w, backwards):
        self.step, self.step_backward = STEPS[cell]
        rows = len(w["weight_ih"])
        self.w = {"bias_ih": np.zeros(rows, WIDE), "bias_hh": np.zeros(rows, WIDE), **w}
        self.backwards = backwards

    def forward(self, x, lengths, state):
        times = range(len(x))
        state = [s.copy() for s in state]
        y = np.zeros((*x.shape[:2], state[0].shape[1]), WIDE)
        self.tape = []
        for t in reversed(times) if self.backwards else times:
            live = np.flatnonzero(lengths > t)
            new, saved = self.step(x[t, live], [s[live] for s in state], self.w)
            for s, value in zip(state, new, strict=True):
                s[live] = value
            y[t, live] = new[0]
            self.tape.append((t, live, saved))
        return y, state

    def backward(self, x, dy, d_state):
        dx = np.zeros_like(x)
        d_state = [d.copy() for d in d_state]
        grads = {name: np.zeros_like(value) for name, value in self.w.items()}
        for t, live, saved in reversed(self.tape):
            d_live = [d[live] for d in d_state]
            d_live[0] = d_live[0] + dy[t, live]
            dx[t, live], d_previous, d_w = self.step_backward(d_live, saved, self.w)
            for d, value in zip(d_state, d_previous, strict=True):
                d[live] = value
            for name, value in d_w.items():
                grads[name] += value
        return dx, d_state, grads


def stack(cell, params, x, lengths, state, dy, d_state):
    """Outputs and gradients of a stack of layers, all in np.longdouble.

    params: named as in the state dict of a module (or of a cell: then T = 1).
    x (T, B, I); lengths (B,); state: [h0 (L*D, B, P)] or [h0, c0 (L*D, B, H)];
    dy (T, B, D*P) and d_state (shaped as state): the cotangents.
    Returns {"output", "h_n"[, "c_n"], "grad x", "grad h0"[, "grad c0"], "grad <parameter>"...}.
    """
    suffixes = [n.removeprefix("weight_ih") for n in params if n.startswith("weight_ih")]
    count = 2 if any(s.endswith("_reverse") for s in suffixes) else 1
    runs = []
    for k, suffix in enumerate(suffixes):
        w = {n.removesuffix(suffix): v for n, v in params.items() if n.endswith(suffix)}
        runs.append(Direction(cell, w, backwards=k % count == 1))

    inputs, finals = [x], []
    for first in range(0, len(runs), count):
        outputs = []
        for k in range(first, first + count):
            y, final = runs[k].forward(inputs[-1], lengths, [s[k] for s in state])
            outputs.append(y)
            finals.append(final)
        inputs.append(np.concatenate(outputs, axis=2))
    results = {"output": inputs.pop()}
    for j in range(len(state)):
        results[f"{'hc'[j]}_n"] = np.stack([final[j] for final in finals])

    d_initial = [np.zeros_like(s) for s in state]
    for first in reversed(range(0, len(runs), count)):
        x_layer = inputs.pop()
        dx = np.zeros_like(x_layer)
        for k, dy_k in enumerate(np.split(dy, count, axis=2), start=first):
            d_final = [d[k] for d in d_state]
            dx_k, d_state_k, grads = runs[k].backward(x_layer, dy_k, d_final)
            dx += dx_k
            for d, value in zip(d_initial, d_state_k, strict=True):
                d[k] = value
            for name, value in grads.items():
                if name + suffixes[k] in params:
                    results[f"grad {name}{suffixes[k]}"] = value
        dy = dx
    results["grad x"] = dy
    for j, d in enumerate(d_initial):
        results[f"grad {'hc'[j]}0"] = d
    return results
