"""GRU and LSTM in plain torch: specification, oracle, and source of second derivatives.

GRU (Cho et al. 2014, arXiv:1406.1078, in PyTorch's variant: b_hn stands inside the reset product)

    r  = sigmoid(W_ir x + b_ir + W_hr h + b_hr)
    z  = sigmoid(W_iz x + b_iz + W_hz h + b_hz)
    n  = tanh(W_in x + b_in + r * (W_hn h + b_hn))
    h' = (1 - z) * n + z * h

LSTM (Hochreiter & Schmidhuber 1997, with the forget gate of Gers et al. 2000;
projection W_hr: Sak et al. 2014, arXiv:1402.1128)

    i, f, o = sigmoid(W_i. x + b_i. + W_h. h + b_h.)      g = tanh(W_ig x + b_ig + W_hg h + b_hg)
    c' = f * c + i * g
    h' = o * tanh(c'),  or  W_hr (o * tanh(c'))

Gate rows are in torch's order: r, z, n and i, f, g, o. Sizes: T steps, B sequences, I inputs,
H hidden units, P outputs (H without projection), D directions.

Everything here is functional (no in-place writes; control flow depends on sizes and batch_sizes
alone), so it runs under autograd, vmap, jvp and tracing, for any dtype and device. bfloat16 and
float16 are computed in float32 throughout and rounded once, at the end, as the kernels carry them.
Arguments are taken as checked.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

_LOW_PRECISION = (torch.bfloat16, torch.float16)

# One step: (input projection, states, recurrent weights) -> new states, of which the first is h.
_Step = Callable[..., tuple[Tensor, ...]]


def _gru_step(gx: Tensor, h: Tensor, w_hh: Tensor, b_hh: Tensor | None) -> tuple[Tensor]:
    """One GRU step from gx = W_ih x + b_ih (B, 3H) and h (B, H)."""
    gx_r, gx_z, gx_n = gx.chunk(3, -1)
    gh_r, gh_z, gh_n = F.linear(h, w_hh, b_hh).chunk(3, -1)
    r = torch.sigmoid(gx_r + gh_r)
    z = torch.sigmoid(gx_z + gh_z)
    n = torch.tanh(gx_n + r * gh_n)
    return ((1 - z) * n + z * h,)


def _lstm_step(
    gx: Tensor,
    h: Tensor,
    c: Tensor,
    w_hh: Tensor,
    b_hh: Tensor | None,
    w_hr: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """One LSTM step from gx = W_ih x + b_ih (B, 4H), h (B, P) and c (B, H)."""
    i, f, g, o = (gx + F.linear(h, w_hh, b_hh)).chunk(4, -1)
    c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
    h = torch.sigmoid(o) * torch.tanh(c)
    return (h if w_hr is None else F.linear(h, w_hr)), c


def _scan(
    step: _Step,
    gx: Sequence[Tensor],
    states: tuple[Tensor, ...],
    weights: Sequence[Tensor | None],
    reverse: bool,
) -> tuple[list[tuple[Tensor, ...]], tuple[Tensor, ...]]:
    """Run one direction. gx: T tensors (b_t, G*H) with b_t non-increasing; states: (B, .) each.

    Returns the states (b_t, .) after each of T steps, in time order, and the final ones (B, .).
    Rows are ordered by length, longest first, so the b_t sequences alive at step t are always the
    first b_t rows: a forward walk sets rows aside as they end, a backward walk takes rows from the
    initial state.
    """
    outputs = []
    if reverse:
        now = tuple(s[: gx[-1].size(0)] for s in states)
        for g in reversed(gx):
            alive, b = now[0].size(0), g.size(0)
            if b != alive:
                now = tuple(torch.cat((a, s[alive:b])) for a, s in zip(now, states, strict=True))
            now = step(g, *now, *weights)
            outputs.append(now)
        outputs.reverse()
        return outputs, now
    now, ended = states, []
    for g in gx:
        b = g.size(0)
        if b != now[0].size(0):
            ended.append(tuple(s[b:] for s in now))
            now = tuple(s[:b] for s in now)
        now = step(g, *now, *weights)
        outputs.append(now)
    if ended:
        now = tuple(torch.cat(parts) for parts in zip(now, *reversed(ended), strict=True))
    return outputs, now


def _scan_padded(
    step: _Step,
    steps: Sequence[Tensor],
    lengths: Tensor,
    now: tuple[Tensor, ...],
    weights: Sequence[Tensor | None],
    reverse: bool,
) -> tuple[list[tuple[Tensor, ...]], tuple[Tensor, ...]]:
    """_scan of sequences that keep their states beyond their lengths, and give out zeros there."""
    outputs = []
    for t in reversed(range(len(steps))) if reverse else range(len(steps)):
        inside = (t < lengths).unsqueeze(1)
        then = step(steps[t], *now, *weights)
        now = tuple(torch.where(inside, *pair) for pair in zip(then, now, strict=True))
        outputs.append(tuple(torch.where(inside, s, 0) for s in now))
    return outputs[::-1] if reverse else outputs, now


def _layer(
    step: _Step,
    x: Tensor,
    states: tuple[Tensor, ...],
    weights: Sequence[Tensor | None],
    batch_sizes: Tensor | None,
    lengths: Tensor | None = None,
) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Both directions of one layer; weights per direction: w_ih, w_hh, b_ih, b_hh[, w_hr].

    Returns the states of all steps and the final ones.
    """
    dtype = x.dtype
    if dtype in _LOW_PRECISION:
        x = x.float()
        states = tuple(s.float() for s in states)
        weights = [None if w is None else w.float() for w in weights]
    directions = states[0].size(0)
    per_direction = len(weights) // directions
    sequences, finals = [], []
    for d in range(directions):
        w_ih, w_hh, b_ih, *rest = weights[d * per_direction : (d + 1) * per_direction]
        assert w_ih is not None
        gx = F.linear(x, w_ih, b_ih)
        steps = gx.unbind(0) if batch_sizes is None else gx.split(batch_sizes.tolist())
        initial, own = tuple(s[d] for s in states), (w_hh, *rest)
        if lengths is None:
            walked, last = _scan(step, steps, initial, own, d == 1)
        else:
            walked, last = _scan_padded(step, steps, lengths, initial, own, d == 1)
        join = torch.stack if batch_sizes is None else torch.cat
        sequences.append([join(s) for s in zip(*walked, strict=True)])
        finals.append(last)
    every = sequences[0] if directions == 1 else map(_side_by_side, zip(*sequences, strict=True))
    ended = map(torch.stack, zip(*finals, strict=True))
    return tuple(s.to(dtype) for s in every), tuple(s.to(dtype) for s in ended)


def _side_by_side(directions: tuple[Tensor, ...]) -> Tensor:
    return torch.cat(directions, -1)


def gru_layer(
    x: Tensor,
    h0: Tensor,
    weights: Sequence[Tensor | None],
    batch_sizes: Tensor | None = None,
    lengths: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """One GRU layer over a whole sequence.

    x: (T, B, I), or packed (N, I) with batch_sizes (T,), int64 on the CPU, non-increasing, sum N;
    or padded, with lengths (B,) from 1 to T. h0: (D, B, H). weights: w_ih (3H, I), w_hh (3H, H),
    b_ih (3H) or None, b_hh (3H) or None, per direction. Returns y (T, B, D*H) or (N, D*H), and hn
    (D, B, H). Direction 1 runs backwards.
    """
    (y,), (hn,) = _layer(_gru_step, x, (h0,), weights, batch_sizes, lengths)
    return y, hn


def lstm_layer(
    x: Tensor,
    h0: Tensor,
    c0: Tensor,
    weights: Sequence[Tensor | None],
    batch_sizes: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """One LSTM layer over a whole sequence.

    x: (T, B, I), or packed (N, I) with batch_sizes (T,), int64 on the CPU, non-increasing, sum N.
    h0: (D, B, P), c0: (D, B, H). weights: w_ih (4H, I), w_hh (4H, P), b_ih (4H) or None, b_hh (4H)
    or None, w_hr (P, H) or None, per direction. Returns y (T, B, D*P) or (N, D*P), hn (D, B, P)
    and cn (D, B, H). Direction 1 runs backwards.
    """
    return lstm_states(x, h0, c0, weights, batch_sizes)[:3]


def lstm_states(
    x: Tensor,
    h0: Tensor,
    c0: Tensor,
    weights: Sequence[Tensor | None],
    batch_sizes: Tensor | None = None,
    lengths: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """lstm_layer, and the cell states of all steps, (T, B, D*H) or (N, D*H).

    lengths: as gru_layer's.
    """
    (y, c), (hn, cn) = _layer(_lstm_step, x, (h0, c0), weights, batch_sizes, lengths)
    return y, hn, cn, c


def _cell(
    step: _Step,
    x: Tensor,
    states: tuple[Tensor, ...],
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None,
    b_hh: Tensor | None,
) -> tuple[Tensor, ...]:
    stacked = tuple(s.unsqueeze(0) for s in states)
    weights = (w_ih, w_hh, b_ih, b_hh) if len(states) == 1 else (w_ih, w_hh, b_ih, b_hh, None)
    return tuple(s.squeeze(0) for s in _layer(step, x.unsqueeze(0), stacked, weights, None)[1])


def gru_cell(
    x: Tensor,
    h: Tensor,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None = None,
    b_hh: Tensor | None = None,
) -> Tensor:
    """One GRU step: x (B, I), h (B, H), weights as in gru_layer -> h' (B, H)."""
    return _cell(_gru_step, x, (h,), w_ih, w_hh, b_ih, b_hh)[0]


def lstm_cell(
    x: Tensor,
    h: Tensor,
    c: Tensor,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None = None,
    b_hh: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """One LSTM step: x (B, I), h and c (B, H), weights as in lstm_layer -> h' and c' (B, H)."""
    h, c = _cell(_lstm_step, x, (h, c), w_ih, w_hh, b_ih, b_hh)
    return h, c
