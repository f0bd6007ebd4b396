"""Layers that keep other things than usual, as further KERNELS.

- `lstm_states` gives out the cell states of all steps, with gradients. (A GRU's states are its
  output.)
- `gru_recompute` and `lstm_recompute` keep a quarter of the gates at most, which backward wants
  first. It makes the others again from the output, on the CPU a chunk of steps at a time, by one
  product each; on a GPU a layer at a time, and all. An LSTM's cell states are kept: no product
  gives those.
- `lstm_states_recompute` does both.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from . import ops, raw, traced
from .options import Options
from .raw import KERNELS, Call, Gradients, Kernel, Tensors

__all__ = ["layer"]

_ops = torch.ops.gatedrnn


def layer(name: str, options: Options) -> Callable[..., Tensors]:
    """ops.gru_layer or ops.lstm_layer by the kernel that gives, and keeps, what is asked for."""
    run = ops.gru_layer if name == "GRU" else ops.lstm_layer
    kernel = name.lower()
    if options.output_hidden_states and name == "LSTM":
        kernel += "_states"
    if options.recompute and not traced.is_recording():  # what a recorded program keeps is its own
        kernel += "_recompute"
    return partial(run, kernel=kernel)


def _has_variants(x: Tensor) -> bool:
    return (x.is_cpu or x.is_meta) and not raw._emulated


def _gru_forward(call: Call, tensors: Tensors, train: bool) -> Tensors:
    x, h0, *weights = tensors
    if not train or not _has_variants(x):
        return KERNELS["gru"].forward(call, tensors, False)
    op = _ops.gru_recompute_forward.default
    return raw._run(op, x, h0, weights, call.bias, call.batch_sizes)


def _gru_backward(
    call: Call, d: Gradients, tensors: Tensors, kept: Tensors, need_x: bool, need_weights: bool
) -> Gradients:
    plain, (y, gates) = KERNELS["gru"], kept
    if not _has_variants(tensors[0]):
        gates = plain.forward(call, tensors, True)[2]
    return plain.backward(call, d, tensors, (y, gates), need_x, need_weights)


def _lstm_forward(
    states: bool, recompute: bool, call: Call, tensors: Tensors, train: bool
) -> Tensors:
    """y, hn, cn, the cell states of all steps, the gates: what need not be kept is empty."""
    x, h0, c0, *weights = tensors
    keep_gates = train and not recompute
    if keep_gates or not _has_variants(x):
        plain = KERNELS["lstm"].forward(call, tensors, keep_gates or states)
        y, hn, cn, gates, c = plain
        return y, hn, cn, c.to(x.dtype), gates if keep_gates else y.new_empty(0)
    op = _ops.lstm_states_forward.default
    y, hn, cn, gates, c = raw._run(op, x, h0, c0, weights, call.bias, call.batch_sizes, train)
    return y, hn, cn, c.to(x.dtype), gates


def _lstm_backward(
    call: Call, d: Gradients, tensors: Tensors, kept: Tensors, need_x: bool, need_weights: bool
) -> Gradients:
    x, h0, c0, *weights = tensors
    y, gates, c = kept
    dy, dhn, dcn, *dc = d
    every = dc[0] if dc else None
    c = c.float() if x.dtype.itemsize == 2 else c
    if not _has_variants(x):
        if gates.size(-1) == 0:
            _, _, _, gates, c = KERNELS["lstm"].forward(call, tensors, True)
        return KERNELS["lstm"].backward(call, d, tensors, (y, gates, c), need_x, need_weights)
    layer = x, h0, c0, weights, call.bias, call.batch_sizes
    op = _ops.lstm_states_backward.default
    found = raw._run(op, dy, dhn, dcn, every, *layer, y, gates, c, need_x, need_weights)
    dx, dh0, dc0, dweights = found
    return [dx, dh0, dc0, *dweights]


KERNELS["gru_recompute"] = Kernel(1, 2, (0, 2), _gru_forward, _gru_backward, raw.layer_reference)
for _name, _states, _recompute in [
    ("lstm_states", True, False),
    ("lstm_recompute", False, True),
    ("lstm_states_recompute", True, True),
]:
    _forward = partial(_lstm_forward, _states, _recompute)
    _kept = (0, 4, 3)
    KERNELS[_name] = Kernel(
        2, 4 if _states else 3, _kept, _forward, _lstm_backward, raw.layer_reference
    )
traced.define("lstm_states", ops.input_gradients)
