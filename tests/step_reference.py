"""Sequences step by step, one at a time, in plain torch: what lengths, resets and states mean.

Nothing here knows of batches: every sequence is walked alone, each direction from its own end, and
begins anew from its initial state where it is reset.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

State = tuple[Tensor, ...]


class Walked(NamedTuple):
    """All of them padded with zeros, laid out as the module lays them out."""

    output: Tensor
    finals: Any  # as the module returns them
    states: Any  # per layer, of all steps: h, or (h, c)


def gru_step(x: Tensor, state: State, w_ih: Tensor, w_hh: Tensor, *bias: Tensor) -> State:
    (h,) = state
    b_ih, b_hh = bias or (None, None)
    x_r, x_z, x_n = F.linear(x, w_ih, b_ih).chunk(3)
    h_r, h_z, h_n = F.linear(h, w_hh, b_hh).chunk(3)
    z = torch.sigmoid(x_z + h_z)
    n = torch.tanh(x_n + torch.sigmoid(x_r + h_r) * h_n)
    return ((1 - z) * n + z * h,)


def lstm_step(x: Tensor, state: State, w_ih: Tensor, w_hh: Tensor, *rest: Tensor) -> State:
    h, c = state
    b_ih, b_hh = rest[:2] if len(rest) >= 2 else (None, None)
    i, f, g, o = (F.linear(x, w_ih, b_ih) + F.linear(h, w_hh, b_hh)).chunk(4)
    c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
    h = torch.sigmoid(o) * torch.tanh(c)
    return F.linear(h, rest[-1]) if len(rest) % 2 else h, c


def walk(step: Callable[..., State], xs: list[Tensor], cuts: list[bool], initial: State,
         again: State, weights: list[Tensor], reverse: bool) -> tuple[list[State], State]:
    """One direction over one sequence: the states of all steps, and the last one walked."""
    order = list(range(len(xs)))
    found: dict[int, State] = {}
    state = initial
    for t in reversed(order) if reverse else order:
        # Walked backwards, the step before a cut comes after it.
        if (t + 1 < len(xs) and cuts[t + 1]) if reverse else cuts[t]:
            state = again
        state = found[t] = step(xs[t], state, *weights)
    return [found[t] for t in order], state


def by_steps(m: nn.RNNBase, x: Tensor, hx: Any = None, lengths: Tensor | None = None,
             resets: Tensor | None = None, reset_hx: Any = None) -> Walked:
    """What a module gives for a padded batch, without dropout."""
    rows = x if m.batch_first else x.transpose(0, 1)
    batch, steps = rows.shape[:2]
    lengths = torch.full((batch,), steps) if lengths is None else lengths
    resets = torch.zeros(x.shape[:2], dtype=torch.bool) if resets is None else resets
    cuts = (resets if m.batch_first else resets.t()).tolist()
    lstm, directions = m.mode == "LSTM", 2 if m.bidirectional else 1
    widths = [m.proj_size or m.hidden_size] + [m.hidden_size] * lstm
    if hx is None:
        hx = [x.new_zeros(m.num_layers * directions, batch, w) for w in widths]
    reset_hx = hx if reset_hx is None else reset_hx
    initial, again = ([h] if isinstance(h, Tensor) else list(h) for h in (hx, reset_hx))
    names = m._flat_weights_names
    each = len(names) // (m.num_layers * directions)
    weights = [getattr(m, n) for n in names]
    per_layer: list[list[list[State]]] = [[] for _ in range(m.num_layers)]
    finals: list[list[State]] = [[] for _ in range(m.num_layers * directions)]
    for b in range(batch):
        xs = list(rows[b, : lengths[b]].unbind())
        for layer in range(m.num_layers):
            sides = []
            for d in range(directions):
                k = layer * directions + d
                walked, last = walk(
                    lstm_step if lstm else gru_step, xs, cuts[b], tuple(s[k, b] for s in initial),
                    tuple(s[k, b] for s in again), weights[k * each : (k + 1) * each], d == 1,
                )  # fmt: skip
                sides.append(walked)
                finals[k].append(last)
            both = [tuple(torch.cat(p) for p in zip(*s, strict=True))
                    for s in zip(*sides, strict=True)]
            per_layer[layer].append(both)
            xs = [s[0] for s in both]

    def padded(layer: int, part: int) -> Tensor:
        whole = [F.pad(torch.stack([s[part] for s in row]), (0, 0, 0, steps - len(row)))
                 for row in per_layer[layer]]
        return torch.stack(whole, 0 if m.batch_first else 1)

    kinds = [tuple(padded(k, part) for k in range(m.num_layers)) for part in range(len(widths))]
    last_states = [torch.stack([torch.stack([s[p] for s in row]) for row in finals])
                   for p in range(len(widths))]
    if lstm:
        return Walked(kinds[0][-1], tuple(last_states), tuple(kinds))
    return Walked(kinds[0][-1], last_states[0], kinds[0])
