"""The compiled ops as typed, differentiable functions: one layer, or one step of a cell.

Every raw op has a schema, a fake kernel and no autograd of its own; here stand the two autograd
Functions that use them. The forward one keeps what the backward kernels read. The backward one has
a derivative too, taken from :mod:`gatedrnn.reference`, and is entered only where a graph of the
backward is wanted, so that an ordinary training step pays for one.

The reference takes over where kernels cannot follow: complex numbers, devices without kernels,
forward-mode derivatives and vmap.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.autograd.forward_ad as forward_ad
from torch import Tensor
from torch._functorch.pyfunctorch import retrieve_all_functorch_interpreters

from . import reference

try:
    from . import _C  # type: ignore[attr-defined]  # noqa: F401  (registers torch.ops.gatedrnn)
except ImportError as error:
    raise ImportError(
        "gatedrnn's compiled part cannot be loaded: type `pip install --no-build-isolation .` in "
        f"its checkout, with the torch that is to run it ({error})"
    ) from error


from . import fake

__all__ = ["gru_cell", "gru_layer", "instruction_set", "lstm_cell", "lstm_layer"]

_LOW_PRECISION = (torch.bfloat16, torch.float16)
_NATIVE = (torch.float32, torch.float64)
_raw = torch.ops.gatedrnn

Tensors = tuple[Tensor, ...]
Gradients = list[Tensor | None]


def instruction_set() -> str:
    """The instruction set whose kernels run: avx512, avx2 or baseline.

    Raises RuntimeError if GATEDRNN_CPU_ISA names one that this machine lacks.
    """
    return _raw.instruction_set()


def _call(op: Callable[..., Any], *arguments: Any) -> Any:
    if torch.is_autocast_enabled("cpu"):
        # The ops' own matrix products must keep the dtype that they were given.
        with torch.autocast("cpu", enabled=False):
            return _call(op, *arguments)
    try:
        return op(*arguments)
    except RuntimeError as error:
        if "API call failed" in str(error):
            # The stable ABI has lost the text of an inner error, which is a failed allocation: the
            # fake kernel makes the same results out of the same tensors, and so meets it again.
            fake.KERNELS[op](*arguments)
        raise


class _Call(NamedTuple):
    """What a call is besides its tensors."""

    name: str
    bias: bool
    batch_sizes: Tensor | None


class _Kernel(NamedTuple):
    """How one op is called. `tensors` are the op's differentiable inputs: x, states, weights."""

    states: int  # inputs 1 ... states are states
    outputs: int  # of the forward's results, these come out; the others are kept
    forward: Callable[[_Call, Tensors, bool], Tensors]
    # (call, cotangents, tensors, results of forward, need_input, need_weights)
    backward: Callable[[_Call, Gradients, Tensors, Tensors, bool, bool], Gradients]
    reference: Callable[[_Call, Tensors], Tensors]


def _gru_forward(call: _Call, tensors: Tensors, train: bool) -> Tensors:
    x, h0, *weights = tensors
    return _call(_raw.gru_forward.default, x, h0, weights, call.bias, call.batch_sizes, train)


def _gru_backward(
    call: _Call, d: Gradients, tensors: Tensors, results: Tensors, x_too: bool, weights_too: bool
) -> Gradients:
    x, h0, *weights = tensors
    y, _, gates = results
    dx, dh0, dweights = _call(
        _raw.gru_backward.default,
        *d,
        x,
        h0,
        weights,
        call.bias,
        call.batch_sizes,
        y,
        gates,
        x_too,
        weights_too,
    )
    return [dx, dh0, *dweights]


def _lstm_forward(call: _Call, tensors: Tensors, train: bool) -> Tensors:
    x, h0, c0, *weights = tensors
    return _call(_raw.lstm_forward.default, x, h0, c0, weights, call.bias, call.batch_sizes, train)


def _lstm_backward(
    call: _Call, d: Gradients, tensors: Tensors, results: Tensors, x_too: bool, weights_too: bool
) -> Gradients:
    x, h0, c0, *weights = tensors
    y, _, _, gates, c = results
    dx, dh0, dc0, dweights = _call(
        _raw.lstm_backward.default,
        *d,
        x,
        h0,
        c0,
        weights,
        call.bias,
        call.batch_sizes,
        y,
        gates,
        c,
        x_too,
        weights_too,
    )
    return [dx, dh0, dc0, *dweights]


def _gru_cell_forward(call: _Call, tensors: Tensors, train: bool) -> Tensors:
    return _call(_raw.gru_cell_forward.default, *tensors, *_no_bias(call), train)


def _gru_cell_backward(
    call: _Call, d: Gradients, tensors: Tensors, results: Tensors, x_too: bool, weights_too: bool
) -> Gradients:
    x, h, w_ih, w_hh = tensors[:4]
    dx, dh, dweights = _call(
        _raw.gru_cell_backward.default,
        d[0],
        x,
        h,
        w_ih,
        w_hh,
        call.bias,
        results[1],
        x_too,
        weights_too,
    )
    return [dx, dh, *dweights]


def _lstm_cell_forward(call: _Call, tensors: Tensors, train: bool) -> Tensors:
    return _call(_raw.lstm_cell_forward.default, *tensors, *_no_bias(call), train)


def _lstm_cell_backward(
    call: _Call, d: Gradients, tensors: Tensors, results: Tensors, x_too: bool, weights_too: bool
) -> Gradients:
    x, h, c, w_ih, w_hh = tensors[:5]
    dx, dh, dc, dweights = _call(
        _raw.lstm_cell_backward.default,
        *d,
        x,
        h,
        c,
        w_ih,
        w_hh,
        call.bias,
        results[2],
        x_too,
        weights_too,
    )
    return [dx, dh, dc, *dweights]


def _no_bias(call: _Call) -> list[None]:
    return [] if call.bias else [None, None]


def _layer_reference(call: _Call, tensors: Tensors, states: int) -> Tensors:
    """Weights of a layer come without gaps here; the reference names a missing one by None."""
    given = tensors[1 + states :]
    directions = tensors[1].size(0)
    each = len(given) // directions
    weights: list[Tensor | None] = []
    for d in range(directions):
        w_ih, w_hh, *rest = given[d * each : (d + 1) * each]
        weights += [w_ih, w_hh, *(rest[:2] if call.bias else (None, None))]
        if states == 2:
            weights.append(rest[-1] if each % 2 else None)
    if states == 1:
        x, h0 = tensors[:2]
        return reference.gru_layer(x, h0, weights, call.batch_sizes)
    x, h0, c0 = tensors[:3]
    return reference.lstm_layer(x, h0, c0, weights, call.batch_sizes)


def _gru_cell_reference(call: _Call, tensors: Tensors) -> Tensors:
    return (reference.gru_cell(*tensors, *_no_bias(call)),)


def _lstm_cell_reference(call: _Call, tensors: Tensors) -> Tensors:
    return reference.lstm_cell(*tensors, *_no_bias(call))


_KERNELS = {
    "gru": _Kernel(1, 2, _gru_forward, _gru_backward, lambda c, t: _layer_reference(c, t, 1)),
    "lstm": _Kernel(2, 3, _lstm_forward, _lstm_backward, lambda c, t: _layer_reference(c, t, 2)),
    "gru_cell": _Kernel(1, 1, _gru_cell_forward, _gru_cell_backward, _gru_cell_reference),
    "lstm_cell": _Kernel(2, 2, _lstm_cell_forward, _lstm_cell_backward, _lstm_cell_reference),
}


def _reference_backward(call: _Call, tensors: Tensors, cotangents: Gradients) -> Gradients:
    """The gradients of all tensors by the reference, themselves differentiable."""
    kernel = _KERNELS[call.name]
    outputs, vjp = torch.func.vjp(lambda *t: kernel.reference(call, t), *tensors)[:2]
    pairs = zip(outputs, cotangents, strict=True)
    return list(vjp(tuple(torch.zeros_like(o) if d is None else d for o, d in pairs)))


class _Backward(torch.autograd.Function):
    """(cotangents, tensors) -> gradients of the tensors, by kernel; its derivative by reference."""

    @staticmethod
    def forward(call: _Call, results: Tensors, count: int, *inputs: Any) -> Any:
        cotangents, tensors = list(inputs[:count]), inputs[count:]
        return tuple(_KERNELS[call.name].backward(call, cotangents, tensors, results, True, True))

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.call, _, ctx.count, *rest = inputs
        ctx.save_for_backward(*rest)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        call, count, saved = ctx.call, ctx.count, ctx.saved_tensors
        given = [k for k, d in enumerate(saved[:count]) if d is not None]

        def function(*inputs: Tensor) -> tuple[Tensor | None, ...]:
            cotangents: Gradients = [None] * count
            for k, d in zip(given, inputs, strict=False):
                cotangents[k] = d
            return tuple(_reference_backward(call, inputs[len(given) :], cotangents))

        inputs = (*(saved[k] for k in given), *saved[count:])
        found = iter(torch.func.vjp(function, *inputs)[1](gradients))
        first = [next(found) if d is not None else None for d in saved[:count]]
        return None, None, None, *first, *found


class _Forward(torch.autograd.Function):
    """tensors -> (outputs, what backward needs), by kernel."""

    @staticmethod
    def forward(call: _Call, *tensors: Tensor) -> Any:
        return _KERNELS[call.name].forward(call, tensors, True)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.call, *tensors = inputs
        kernel = _KERNELS[ctx.call.name]
        ctx.mark_non_differentiable(*output[kernel.outputs :])
        ctx.set_materialize_grads(False)
        ctx.count = len(tensors)
        # Of the outputs only y is read again, by layers: final states may be changed in place.
        kept = [o for k, o in enumerate(output) if _is_kept(kernel, ctx.call, k)]
        ctx.save_for_backward(*tensors, *kept)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> Any:
        call, saved = ctx.call, ctx.saved_tensors
        kernel = _KERNELS[call.name]
        tensors, kept = saved[: ctx.count], iter(saved[ctx.count :])
        results: Any = tuple(
            next(kept) if _is_kept(kernel, call, k) else None for k in range(len(gradients))
        )
        cotangents = list(gradients[: kernel.outputs])
        need = ctx.needs_input_grad[1:]
        if _in_vmap():
            found = _reference_backward(call, tensors, cotangents)
        elif torch.is_grad_enabled():
            found = _Backward.apply(call, results, len(cotangents), *cotangents, *tensors)
        else:
            weights = any(need[1 + kernel.states :])
            found = kernel.backward(call, cotangents, tensors, results, need[0], weights)
        found = [*found, *[None] * (len(need) - len(found))]
        return None, *(g if wanted else None for g, wanted in zip(found, need, strict=True))


def _is_kept(kernel: _Kernel, call: _Call, output: int) -> bool:
    return output >= kernel.outputs or (output == 0 and not call.name.endswith("cell"))


def _in_vmap() -> bool:
    if not torch._C._are_functorch_transforms_active():
        return False
    vmap = torch._C._functorch.TransformType.Vmap
    return any(level.key() == vmap for level in retrieve_all_functorch_interpreters())


def _run(call: _Call, tensors: Tensors) -> Tensors:
    kernel, x = _KERNELS[call.name], tensors[0]
    if x.dtype not in _NATIVE or not x.is_cpu or _is_watched():
        if x.device.type == "cuda":
            raise RuntimeError(
                f"gatedrnn: the input is on {x.device}, but this version of gatedrnn has kernels "
                "for the CPU only; gatedrnn.revert(model) puts torch.nn's modules back"
            )
        if x.dtype in _LOW_PRECISION:
            # Carried in float32 from the first step to the last, rounded once.
            outputs = _run(call, tuple(t.float() for t in tensors))
            return tuple(o.to(x.dtype) for o in outputs)
        if _needs_reference(x):
            return kernel.reference(call, tensors)
        if torch._C._are_functorch_transforms_active():
            return _Forward.apply(call, *tensors)[: kernel.outputs]
        if torch._C._get_tracing_state() is not None:
            # torch.jit.trace keeps ops, not autograd Functions.
            return kernel.forward(call, tensors, False)[: kernel.outputs]
    if torch.is_grad_enabled() and any(t.requires_grad for t in tensors):
        return _Forward.apply(call, *tensors)[: kernel.outputs]
    return kernel.forward(call, tensors, False)[: kernel.outputs]


def _is_watched() -> bool:
    """Whether anything looks on beside autograd: a transform, a dual level, a tracer."""
    return (
        torch._C._are_functorch_transforms_active()
        or forward_ad._current_level >= 0
        or torch._C._get_tracing_state() is not None
        or torch.compiler.is_compiling()
    )


def _needs_reference(x: Tensor) -> bool:
    if x.dtype not in _NATIVE or x.device.type not in ("cpu", "meta"):
        return True
    if torch.compiler.is_compiling():
        # A compiled torch.func transform over a Function returns zeros without a word (torch 2.13).
        return torch._C._are_functorch_transforms_active()
    return forward_ad._current_level >= 0 or _in_vmap()


def _complete(weights: Sequence[Tensor | None], each: int, rows: int) -> tuple[bool, Tensors]:
    """Whether there are biases, and the weights that are there; a lone bias gets a zero partner."""
    if each == 4 and all(w is not None for w in weights):
        return True, tuple(weights)  # type: ignore[arg-type]
    bias = any(w is not None for k, w in enumerate(weights) if k % each in (2, 3))
    present = []
    for k, w in enumerate(weights):
        if w is None and bias and k % each in (2, 3):
            w_ih = weights[k - k % each]
            assert w_ih is not None
            w = w_ih.new_zeros(rows)
        if w is not None:
            present.append(w)
    return bias, tuple(present)


def gru_layer(
    x: Tensor, h0: Tensor, weights: Sequence[Tensor | None], batch_sizes: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """One GRU layer of D directions over a sequence.

    Args:
        x: (T, B, I), any strides; or packed (N, I).
        h0: (D, B, H).
        weights: for each direction w_ih (3H, I), w_hh (3H, H), b_ih (3H) or None, b_hh or None.
        batch_sizes: of a packed x: (T,) int64 on the CPU, non-increasing, with sum N.

    Returns:
        y (T, B, D*H), contiguous, or packed (N, D*H); and hn (D, B, H).

    Raises RuntimeError if shapes or dtypes do not fit together, or for a device without kernels.
    """
    bias, present = _complete(weights, 4, 3 * h0.size(-1))
    y, hn = _run(_Call("gru", bias, batch_sizes), (x, h0, *present))
    return y, hn


def lstm_layer(
    x: Tensor,
    h0: Tensor,
    c0: Tensor,
    weights: Sequence[Tensor | None],
    batch_sizes: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """One LSTM layer of D directions over a sequence, as :func:`gru_layer`.

    Args:
        h0, c0: (D, B, P) and (D, B, H).
        weights: for each direction w_ih (4H, I), w_hh (4H, P), b_ih (4H) or None, b_hh or None,
            w_hr (P, H) or None (then P = H).

    Returns:
        y (T, B, D*P) or packed (N, D*P), hn (D, B, P), cn (D, B, H).
    """
    bias, present = _complete(weights, 5, 4 * c0.size(-1))
    y, hn, cn = _run(_Call("lstm", bias, batch_sizes), (x, h0, c0, *present))
    return y, hn, cn


def gru_cell(
    x: Tensor,
    h: Tensor,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None = None,
    b_hh: Tensor | None = None,
) -> Tensor:
    """One GRU step: x (B, I), h (B, H) -> h' (B, H); weights as in :func:`gru_layer`."""
    bias, present = _complete((w_ih, w_hh, b_ih, b_hh), 4, 3 * h.size(-1))
    return _run(_Call("gru_cell", bias, None), (x, h, *present))[0]


def lstm_cell(
    x: Tensor,
    h: Tensor,
    c: Tensor,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None = None,
    b_hh: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """One LSTM step: x (B, I), h, c (B, H) -> h', c' (B, H); weights as in :func:`lstm_layer`."""
    bias, present = _complete((w_ih, w_hh, b_ih, b_hh), 4, 4 * h.size(-1))
    h, c = _run(_Call("lstm_cell", bias, None), (x, h, c, *present))
    return h, c
