"""What torch.utils.flop_counter.FlopCounterMode counts for the ops.

As for torch's own: two for each multiply-add of a matrix product, and nothing for the rest.
"""

from collections.abc import Sequence
from math import prod
from typing import Any

import torch
from torch.utils.flop_counter import register_flop_formula

from .raw import KERNELS

__all__ = ["register"]

_Shape = Sequence[int]


def _products(x: _Shape, weights: Sequence[_Shape]) -> int:
    """Every row of x, or of what is made of it, meets every matrix among the weights once."""
    return 2 * prod(x[:-1]) * sum(prod(w) for w in weights if len(w) == 2)


def register(name: str) -> None:
    """Have the ops of a kernel counted: forward, backward, and the traced one."""
    kernel, is_layer = KERNELS[name], not name.endswith("_cell")
    first = 1 + kernel.states

    def weights(arguments: Sequence[Any]) -> Sequence[_Shape]:
        return arguments[first] if is_layer else arguments[first : first + 2]

    def forward(*arguments: Any, **_: Any) -> int:
        return _products(arguments[0], weights(arguments))

    def backward(*arguments: Any, **_: Any) -> int:
        _bias, need_x, need_weights = [a for a in arguments if isinstance(a, bool)][:3]
        x, h, *_rest = given = arguments[kernel.outputs :]
        matrices = weights(given)
        each = len(matrices) // h[0] if is_layer else 2
        found = _products(x, matrices) * (2 if need_weights else 1)
        return found if need_x else found - _products(x, matrices[::each])

    def traced(tensors: Sequence[_Shape], *_: Any, **__: Any) -> int:
        return _products(tensors[0], tensors[first:])

    ops = torch.ops.gatedrnn
    for kind, count in ("forward", forward), ("backward", backward), ("traced", traced):
        register_flop_formula(getattr(ops, f"{name}_{kind}"))(count)
