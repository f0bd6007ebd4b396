"""The raw ops behind one face, so that one pair of autograd Functions serves all of them.

An op's differentiable inputs are one tuple: x, the states, the weights without gaps (direction by
direction, biases only if there are any). What it is besides stands in a :class:`Call`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import reference

try:
    from . import _C  # type: ignore[attr-defined]  # registers torch.ops.gatedrnn
except ImportError as error:
    raise ImportError(
        "gatedrnn's compiled part is not beside it: in its checkout type `make build`, or `pip "
        "install --no-build-isolation .` and leave the checkout, which hides what was installed "
        f"({error})"
    ) from error

from . import fake

__all__ = ["KERNELS", "Call", "Gradients", "Kernel", "Tensors", "instruction_set"]

_ops = torch.ops.gatedrnn

Tensors = tuple[Tensor, ...]
Gradients = list[Tensor | None]


class Call(NamedTuple):
    """What a call is besides its tensors."""

    kernel: str
    bias: bool
    batch_sizes: Tensor | None  # of a packed layer


class Kernel(NamedTuple):
    """How one op is called."""

    states: int  # tensors[1 : 1 + states] are states
    outputs: int  # of forward's results, these come out; the others are for backward alone
    kept: tuple[int, ...]  # results that backward reads
    forward: Callable[[Call, Tensors, bool], Tensors]  # (call, tensors, train)
    # (call, cotangents, tensors, kept results, whether x and whether weights need a gradient)
    backward: Callable[[Call, Gradients, Tensors, Tensors, bool, bool], Gradients]
    reference: Callable[[Call, Tensors], Tensors]


def instruction_set() -> str:
    """The instruction set whose kernels run: avx512, avx2 or baseline.

    Raises RuntimeError if GATEDRNN_CPU_ISA names one that this machine lacks.
    """
    return _ops.instruction_set()


def extension_file() -> str:
    """Where the compiled part lies."""
    return str(_C.__file__)


def _run(op: Callable[..., Any], *arguments: Any) -> Any:
    if torch.is_autocast_enabled("cpu"):
        # The ops' own matrix products must keep the dtype that they were given.
        with torch.autocast("cpu", enabled=False):
            return _run(op, *arguments)
    try:
        return op(*arguments)
    except RuntimeError as error:
        if "API call failed" in str(error):
            # The stable ABI has lost the text of an inner error, which is a failed allocation: the
            # fake kernel makes the same results out of the same tensors, and so meets it again.
            fake.KERNELS[op](*arguments)
        raise


def _gru_forward(call: Call, tensors: Tensors, train: bool) -> Tensors:
    x, h0, *weights = tensors
    return _run(_ops.gru_forward.default, x, h0, weights, call.bias, call.batch_sizes, train)


def _gru_backward(
    call: Call, d: Gradients, tensors: Tensors, kept: Tensors, need_x: bool, need_weights: bool
) -> Gradients:
    x, h0, *weights = tensors
    layer = x, h0, weights, call.bias, call.batch_sizes
    op = _ops.gru_backward.default
    dx, dh0, dweights = _run(op, *d, *layer, *kept, need_x, need_weights)
    return [dx, dh0, *dweights]


def _lstm_forward(call: Call, tensors: Tensors, train: bool) -> Tensors:
    x, h0, c0, *weights = tensors
    return _run(_ops.lstm_forward.default, x, h0, c0, weights, call.bias, call.batch_sizes, train)


def _lstm_backward(
    call: Call, d: Gradients, tensors: Tensors, kept: Tensors, need_x: bool, need_weights: bool
) -> Gradients:
    x, h0, c0, *weights = tensors
    layer = x, h0, c0, weights, call.bias, call.batch_sizes
    op = _ops.lstm_backward.default
    dx, dh0, dc0, dweights = _run(op, *d, *layer, *kept, need_x, need_weights)
    return [dx, dh0, dc0, *dweights]


def _cell_forward(op: Callable[..., Any], call: Call, tensors: Tensors, train: bool) -> Tensors:
    return _run(op, *tensors, *_no_bias(call), train)


def _gru_cell_backward(
    call: Call, d: Gradients, tensors: Tensors, kept: Tensors, need_x: bool, need_weights: bool
) -> Gradients:
    op = _ops.gru_cell_backward.default
    dx, dh, dweights = _run(op, *d, *tensors[:4], call.bias, *kept, need_x, need_weights)
    return [dx, dh, *dweights]


def _lstm_cell_backward(
    call: Call, d: Gradients, tensors: Tensors, kept: Tensors, need_x: bool, need_weights: bool
) -> Gradients:
    op = _ops.lstm_cell_backward.default
    dx, dh, dc, dweights = _run(op, *d, *tensors[:5], call.bias, *kept, need_x, need_weights)
    return [dx, dh, dc, *dweights]


def _no_bias(call: Call) -> tuple[None, ...]:
    return () if call.bias else (None, None)


def _layer_reference(call: Call, tensors: Tensors) -> Tensors:
    states = KERNELS[call.kernel].states
    given = tensors[1 + states :]
    directions = tensors[1].size(0)
    each = len(given) // directions
    weights: list[Tensor | None] = []
    for d in range(directions):
        w_ih, w_hh, *rest = given[d * each : (d + 1) * each]
        weights += [w_ih, w_hh, *(rest[:2] if call.bias else (None, None))]
        if states == 2:
            weights.append(rest[-1] if each % 2 else None)  # a projection makes the number odd
    if states == 1:
        x, h0 = tensors[:2]
        return reference.gru_layer(x, h0, weights, call.batch_sizes)
    x, h0, c0 = tensors[:3]
    return reference.lstm_layer(x, h0, c0, weights, call.batch_sizes)


def _gru_cell_reference(call: Call, tensors: Tensors) -> Tensors:
    return (reference.gru_cell(*tensors, *_no_bias(call)),)


def _lstm_cell_reference(call: Call, tensors: Tensors) -> Tensors:
    return reference.lstm_cell(*tensors, *_no_bias(call))


KERNELS = {
    # forward gives y, hn, gates
    "gru": Kernel(1, 2, (0, 2), _gru_forward, _gru_backward, _layer_reference),
    # forward gives y, hn, cn, gates, c
    "lstm": Kernel(2, 3, (0, 3, 4), _lstm_forward, _lstm_backward, _layer_reference),
    # forward gives h', saved
    "gru_cell": Kernel(
        1,
        1,
        (1,),
        lambda *arguments: _cell_forward(_ops.gru_cell_forward.default, *arguments),
        _gru_cell_backward,
        _gru_cell_reference,
    ),
    # forward gives h', c', saved
    "lstm_cell": Kernel(
        2,
        2,
        (2,),
        lambda *arguments: _cell_forward(_ops.lstm_cell_forward.default, *arguments),
        _lstm_cell_backward,
        _lstm_cell_reference,
    ),
}

instruction_set()  # so that a wrong GATEDRNN_CPU_ISA is told now
