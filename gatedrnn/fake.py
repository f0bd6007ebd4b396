"""Fake kernels: the shapes that the raw ops return, for meta tensors, tracing and export."""

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import Tensor

_Kernel = TypeVar("_Kernel", bound=Callable[..., object])


# By name: also for eager tensors, where they allocate what the op would.
KERNELS: dict[str, Callable[..., object]] = {}


def _fake(op: str) -> Callable[[_Kernel], _Kernel]:
    def register(kernel: _Kernel) -> _Kernel:
        KERNELS[op] = kernel
        return torch.library.register_fake(f"gatedrnn::{op}")(kernel)

    return register


def _layer(x: Tensor, h0: Tensor, w_ih: Tensor, gates: int) -> tuple[int, int, list[int]]:
    """D, H and the leading sizes of whatever has a row for every row of x."""
    return h0.size(0), w_ih.size(0) // gates, list(x.shape[:-1])


@_fake("gru_forward")
def _gru_forward(
    x: Tensor,
    h0: Tensor,
    weights: Sequence[Tensor],
    bias: bool,
    batch_sizes: Tensor | None,
    train: bool,
    tf32: bool,
    lengths: Tensor | None = None,
) -> tuple[Tensor, ...]:
    d, hidden, rows = _layer(x, h0, weights[0], 3)
    kept = 4 if x.dtype.itemsize == 2 and not _on_gpu(x) else 3  # the CPU's keep n too
    gates = x.new_empty([*rows, d * kept * hidden] if train else [0])
    return x.new_empty([*rows, d * hidden]), x.new_empty(h0.shape), gates


@_fake("gru_backward")
def _gru_backward(
    dy: Tensor | None,
    dhn: Tensor | None,
    x: Tensor,
    h0: Tensor,
    weights: Sequence[Tensor],
    bias: bool,
    batch_sizes: Tensor | None,
    y: Tensor,
    gates: Tensor,
    need_input: bool,
    need_weights: bool,
    tf32: bool,
    lengths: Tensor | None = None,
) -> tuple[Tensor, Tensor, list[Tensor]]:
    return _gradient(x, need_input), x.new_empty(h0.shape), _gradients(weights, need_weights)


@_fake("lstm_forward")
def _lstm_forward(
    x: Tensor,
    h0: Tensor,
    c0: Tensor,
    weights: Sequence[Tensor],
    bias: bool,
    batch_sizes: Tensor | None,
    train: bool,
    tf32: bool,
    lengths: Tensor | None = None,
) -> tuple[Tensor, ...]:
    d, hidden, rows = _layer(x, h0, weights[0], 4)
    gates = x.new_empty([*rows, d * 4 * hidden] if train else [0])
    c = x.new_empty([*rows, d * hidden] if train else [0], dtype=_cell_dtype(x.dtype))
    y = x.new_empty([*rows, d * h0.size(2)])
    return y, x.new_empty(h0.shape), x.new_empty(c0.shape), gates, c


@_fake("lstm_backward")
def _lstm_backward(
    dy: Tensor | None,
    dhn: Tensor | None,
    dcn: Tensor | None,
    x: Tensor,
    h0: Tensor,
    c0: Tensor,
    weights: Sequence[Tensor],
    bias: bool,
    batch_sizes: Tensor | None,
    y: Tensor,
    gates: Tensor,
    c: Tensor,
    need_input: bool,
    need_weights: bool,
    tf32: bool,
    lengths: Tensor | None = None,
    dc: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
    states = x.new_empty(h0.shape), x.new_empty(c0.shape)
    return _gradient(x, need_input), *states, _gradients(weights, need_weights)


@_fake("takes_stack")
def _takes_stack(x: Tensor, h0: Tensor, gates: int, tf32: bool) -> bool:
    """Layer by layer the shapes are the same."""
    return False


@_fake("gru_stack_forward")
def _gru_stack_forward(
    x: Tensor, h0: Tensor, weights: Sequence[Tensor], bias: bool, train: bool, tf32: bool
) -> tuple[list[Tensor], ...]:
    return _stacked(_gru_forward, x, [h0], weights, bias, train)


@_fake("lstm_stack_forward")
def _lstm_stack_forward(
    x: Tensor,
    h0: Tensor,
    c0: Tensor,
    weights: Sequence[Tensor],
    bias: bool,
    train: bool,
    tf32: bool,
) -> tuple[list[Tensor], ...]:
    return _stacked(_lstm_forward, x, [h0, c0], weights, bias, train)


def _stacked(
    layer: Callable[..., tuple[Tensor, ...]],
    x: Tensor,
    states: list[Tensor],
    weights: Sequence[Tensor],
    bias: bool,
    train: bool,
) -> tuple[list[Tensor], ...]:
    """Each result of all layers."""
    count = states[0].size(0)
    each = len(weights) // count
    found: list[tuple[Tensor, ...]] = []
    for k in range(count):
        own = weights[k * each : (k + 1) * each]
        given = found[-1][0] if found else x
        initial = (s[k : k + 1] for s in states)
        found.append(layer(given, *initial, own, bias, None, train, False))
    return tuple(map(list, zip(*found, strict=True)))


def _some_gates(gates: Tensor, x: Tensor) -> Tensor:
    """Those that recompute keeps, by the shape of all: of a quarter of the rows, flat."""
    return gates.new_empty([x.shape[:-1].numel() // 4 * gates.size(-1)])


@_fake("gru_recompute_forward")
def _gru_recompute_forward(
    x: Tensor, h0: Tensor, weights: Sequence[Tensor], bias: bool, batch_sizes: Tensor | None
) -> tuple[Tensor, ...]:
    y, hn, gates = _gru_forward(x, h0, weights, bias, batch_sizes, True, False)
    return y, hn, _some_gates(gates, x)


@_fake("lstm_states_forward")
def _lstm_states_forward(
    x: Tensor,
    h0: Tensor,
    c0: Tensor,
    weights: Sequence[Tensor],
    bias: bool,
    batch_sizes: Tensor | None,
    train: bool,
) -> tuple[Tensor, ...]:
    y, hn, cn, gates, c = _lstm_forward(x, h0, c0, weights, bias, batch_sizes, True, False)
    return y, hn, cn, _some_gates(gates, x) if train else x.new_empty([0]), c


@_fake("lstm_states_backward")
def _lstm_states_backward(
    dy: Tensor | None,
    dhn: Tensor | None,
    dcn: Tensor | None,
    dc: Tensor | None,
    x: Tensor,
    h0: Tensor,
    c0: Tensor,
    weights: Sequence[Tensor],
    bias: bool,
    batch_sizes: Tensor | None,
    y: Tensor,
    gates: Tensor,
    c: Tensor,
    need_input: bool,
    need_weights: bool,
) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
    layer = x, h0, c0, weights, bias, batch_sizes
    return _lstm_backward(dy, dhn, dcn, *layer, y, gates, c, need_input, need_weights, False)


@_fake("gru_cell_forward")
def _gru_cell_forward(
    x: Tensor,
    h: Tensor,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None,
    b_hh: Tensor | None,
    train: bool,
) -> tuple[Tensor, Tensor]:
    saved = [h.size(0), 4 * h.size(1)] if train else [0]
    return x.new_empty(h.shape), x.new_empty(saved)


@_fake("gru_cell_backward")
def _gru_cell_backward(
    dh: Tensor | None,
    x: Tensor,
    h: Tensor,
    w_ih: Tensor,
    w_hh: Tensor,
    bias: bool,
    saved: Tensor,
    need_input: bool,
    need_weights: bool,
) -> tuple[Tensor, Tensor, list[Tensor]]:
    dweights = _gradients(_cell_weights(w_ih, w_hh, bias), need_weights)
    return _gradient(x, need_input), x.new_empty(h.shape), dweights


@_fake("lstm_cell_forward")
def _lstm_cell_forward(
    x: Tensor,
    h: Tensor,
    c: Tensor,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None,
    b_hh: Tensor | None,
    train: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    saved = [h.size(0), 5 * h.size(1)] if train else [0]
    return x.new_empty(h.shape), x.new_empty(c.shape), x.new_empty(saved)


@_fake("lstm_cell_backward")
def _lstm_cell_backward(
    dh: Tensor | None,
    dc: Tensor | None,
    x: Tensor,
    h: Tensor,
    c: Tensor,
    w_ih: Tensor,
    w_hh: Tensor,
    bias: bool,
    saved: Tensor,
    need_input: bool,
    need_weights: bool,
) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
    dweights = _gradients(_cell_weights(w_ih, w_hh, bias), need_weights)
    return _gradient(x, need_input), x.new_empty(h.shape), x.new_empty(c.shape), dweights


def _on_gpu(x: Tensor) -> bool:
    return x.is_cuda


def _cell_dtype(dtype: torch.dtype) -> torch.dtype:
    """Of an LSTM's cell states of all steps: those of 16 bits are kept as they are carried."""
    return torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype


def _gradient(x: Tensor, needed: bool) -> Tensor:
    return x.new_empty(x.shape if needed else [0])


def _gradients(weights: Sequence[Tensor], needed: bool) -> list[Tensor]:
    return [w.new_empty(w.shape) for w in weights] if needed else []


def _cell_weights(w_ih: Tensor, w_hh: Tensor, bias: bool) -> list[Tensor]:
    row = w_ih[:, 0] if w_ih.size(1) else w_hh[:, 0]
    return [w_ih, w_hh, row, row] if bias else [w_ih, w_hh]
