"""The compiled ops as typed, differentiable functions: one layer, or one step of a cell.

Every raw op has a schema, a fake kernel and no autograd of its own; here stand the two autograd
Functions that use them. The forward one keeps what the backward kernels read. The backward one has
a derivative too, taken from :mod:`gatedrnn.reference`, and is entered only where a graph of the
backward is wanted, so that an ordinary training step pays for one.

The reference takes over where kernels cannot follow: complex numbers, devices without kernels,
forward-mode derivatives, and compiled transforms of torch.func.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.autograd.forward_ad as forward_ad
from torch import Tensor
from torch._functorch.pyfunctorch import retrieve_all_functorch_interpreters

from . import batching, raw, traced
from .raw import (
    HAS_CUDA,
    KERNELS,
    Call,
    Gradients,
    Tensors,
    has_kernels,
    step_backward,
    step_forward,
)

__all__ = ["gru_cell", "gru_layer", "lstm_cell", "lstm_layer", "stack", "step"]

_LOW_PRECISION = (torch.bfloat16, torch.float16)


def _in_float32(run: Callable[[Call, Tensors], Tensors], call: Call, tensors: Tensors) -> Tensors:
    """A call of 16 bits, carried in float32 from the first step to the last and rounded once."""
    outputs = run(call, tuple(t.float() for t in tensors))
    return tuple(o.to(tensors[0].dtype) for o in outputs)


def _reference(call: Call, tensors: Tensors) -> Tensors:
    reference = KERNELS[call.kernel].reference
    if tensors[0].dtype in _LOW_PRECISION:
        return _in_float32(reference, call, tensors)
    return reference(call, tensors)


def reference_backward(call: Call, tensors: Tensors, cotangents: Gradients) -> Gradients:
    """The gradients of all tensors by the reference, themselves differentiable."""
    outputs, vjp = torch.func.vjp(lambda *t: _reference(call, t), *tensors)[:2]
    pairs = zip(outputs, cotangents, strict=True)
    return list(vjp(tuple(torch.zeros_like(o) if d is None else d for o, d in pairs)))


class _Backward(torch.autograd.Function):
    """(cotangents, tensors) -> gradients of the tensors, by kernel; their derivative by reference.

    Gradients of x, and those of the weights, are left out unless they are needed.
    """

    @staticmethod
    def forward(call: Call, needs: tuple[bool, bool], kept: Tensors, *inputs: Any) -> Any:
        def run(call: Call, tensors: Any) -> Tensors:
            cotangents, rest = list(tensors[count:first]), tensors[first:]
            found = kernel.backward(call, cotangents, rest, tensors[:count], *needs)
            return _needed(call, needs, found)

        kernel, count = KERNELS[call.kernel], len(kept)
        first = count + kernel.outputs
        if any(map(batching.is_batched, inputs[: kernel.outputs])):
            return batching.batched_backward(run, call, (*kept, *inputs), needs)
        return run(call, (*kept, *inputs))

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        # Not what was kept: the derivative is written in terms of the tensors alone.
        ctx.call, ctx.needs, _, *rest = inputs
        ctx.save_for_backward(*rest)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        call, needs, saved = ctx.call, ctx.needs, ctx.saved_tensors
        count = KERNELS[call.kernel].outputs
        given = [k for k, d in enumerate(saved[:count]) if d is not None]

        def function(*inputs: Tensor) -> tuple[Tensor | None, ...]:
            cotangents: Gradients = [None] * count
            for k, d in zip(given, inputs, strict=False):
                cotangents[k] = d
            found = reference_backward(call, inputs[len(given) :], cotangents)
            return _needed(call, needs, found)

        inputs = (*(saved[k] for k in given), *saved[count:])
        found = iter(torch.func.vjp(function, *inputs)[1](gradients))
        first = [next(found) if d is not None else None for d in saved[:count]]
        return None, None, None, *first, *found

    @staticmethod
    def vmap(
        info: Any, dims: Any, call: Call, needs: tuple[bool, bool], kept: Tensors, *inputs: Any
    ) -> Any:
        def run(call: Call, tensors: Any) -> Tensors:
            kept, inputs = tensors[:count], tensors[count:]
            return _Backward.apply(call, needs, kept, *inputs)

        count = len(kept)
        tensors, dims = (*kept, *inputs), (*dims[2], *dims[3:])
        return batching.backward(run, call, tensors, dims, info.batch_size, needs)


def _needed(call: Call, needs: tuple[bool, bool], found: Gradients) -> tuple[Any, ...]:
    need_x, need_weights = needs
    end = len(found) if need_weights else 1 + KERNELS[call.kernel].states
    return tuple(found[0 if need_x else 1 : end])


class _Forward(torch.autograd.Function):
    """tensors -> results of the forward kernel, of which the first are the outputs."""

    @staticmethod
    def forward(call: Call, train: bool, *tensors: Tensor) -> Any:
        return KERNELS[call.kernel].forward(call, tensors, train)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.call, _, *tensors = inputs
        kernel = KERNELS[ctx.call.kernel]
        ctx.mark_non_differentiable(*output[kernel.outputs :])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*tensors, *(output[k] for k in kernel.kept))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> Any:
        need = ctx.needs_input_grad[2:]
        return None, None, *input_gradients(ctx.call, need, ctx.saved_tensors, gradients)

    @staticmethod
    def vmap(info: Any, dims: Any, call: Call, train: bool, *tensors: Tensor) -> Any:
        def run(call: Call, tensors: Any) -> Tensors:
            return _Forward.apply(call, train, *tensors)

        return batching.forward(run, call, tensors, dims[2:], info.batch_size, train)


def input_gradients(call: Call, need: Sequence[bool], saved: Tensors, gradients: Any) -> list[Any]:
    kernel = KERNELS[call.kernel]
    tensors, kept = saved[: len(need)], saved[len(need) :]
    cotangents = list(gradients[: kernel.outputs])
    needs = need[0], any(need[1 + kernel.states :])
    if torch.is_grad_enabled() or _in_vmap() or any(map(batching.is_batched, cotangents)):
        found = list(_Backward.apply(call, needs, kept, *cotangents, *tensors))
        if not need[0]:
            found.insert(0, None)
    else:
        found = kernel.backward(call, cotangents, tensors, kept, *needs)
    found += [None] * (len(need) - len(found))
    return [g if wanted else None for g, wanted in zip(found, need, strict=True)]


for _name in KERNELS:
    traced.define(_name, input_gradients)


class _EagerForward(torch.autograd.Function):
    """_Forward without setup_context, whose handling takes 20 microseconds, a cell's step; or of
    `results` that are there already."""

    @staticmethod
    def forward(ctx: Any, call: Call, results: Tensors | None, *tensors: Tensor) -> Any:
        results = results or _Forward.forward(call, True, *tensors)
        _Forward.setup_context(ctx, (call, True, *tensors), results)
        return results

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> Any:
        need = ctx.needs_input_grad[2:]
        return None, None, *input_gradients(ctx.call, need, ctx.saved_tensors, gradients)


class _Step(torch.autograd.Function):
    """What step() has computed, and its gradients; the tensors are x, the states, the weights."""

    @staticmethod
    def forward(ctx: Any, call_and_results: tuple[Call, Tensors], *tensors: Tensor) -> Any:
        ctx.call, (*outputs, kept) = call_and_results
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*tensors, kept)
        return tuple(outputs)

    @staticmethod
    def backward(ctx: Any, dh: Tensor | None, dc: Tensor | None = None) -> Any:
        # Once: a checkpoint's may not be asked for again.
        call, need, saved = ctx.call, ctx.needs_input_grad, ctx.saved_tensors
        if not torch.is_grad_enabled():
            states = KERNELS[call.kernel].states
            x, h, *c, w_ih, w_hh = saved[: states + 3]
            found = step_backward(
                x, h, c[0] if c else None, w_ih, w_hh, saved[-1], dh, dc, call.bias,
                need[1], any(need[2 : 2 + states]), any(need[2 + states :]),
            )  # fmt: skip
            if found is not None:
                return None, *found
        return None, *input_gradients(call, need[1:], saved, (dh, dc))


def step(
    kernel: str,
    x: Tensor,
    h: Tensor,
    c: Tensor | None,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None,
    b_hh: Tensor | None,
) -> Tensors | None:
    """A step of a cell past the dispatcher, which takes longer than the step of one sequence.

    Returns h', and c' of an LSTM; None where there is anything to refuse, to convert or to look
    after. The caller has seen that nobody compiles.
    """
    results = step_forward(x, h, c, w_ih, w_hh, b_ih, b_hh, torch.is_grad_enabled())
    if results is None or len(results) == (1 if c is None else 2):
        return results
    states = (h,) if c is None else (h, c)
    weights = (w_ih, w_hh) if b_ih is None or b_hh is None else (w_ih, w_hh, b_ih, b_hh)
    call = Call(kernel, b_ih is not None, None)
    return _Step.apply((call, results), x, *states, *weights)


def _in_vmap() -> bool:
    if not torch._C._are_functorch_transforms_active():
        return False
    vmap = torch._C._functorch.TransformType.Vmap
    return any(level.key() == vmap for level in retrieve_all_functorch_interpreters())


def _run(call: Call, tensors: Tensors) -> Tensors:
    kernel, x = KERNELS[call.kernel], tensors[0]
    if not has_kernels(call.kernel, x) or _is_watched():
        return _run_watched(call, tensors)
    if torch.is_grad_enabled() and any(t.requires_grad for t in tensors):
        return _EagerForward.apply(call, None, *tensors)[: kernel.outputs]
    return kernel.forward(call, tensors, False)[: kernel.outputs]


def _is_watched() -> bool:
    """Whether anything looks on beside autograd: a transform, a dual level, a tracer."""
    return (
        torch._C._are_functorch_transforms_active()
        or forward_ad._current_level >= 0
        or torch.compiler.is_compiling()
        or traced.is_recording()
    )


def _run_watched(call: Call, tensors: Tensors) -> Tensors:
    kernel, x = KERNELS[call.kernel], tensors[0]
    if x.is_cuda and not HAS_CUDA:
        raise RuntimeError(
            f"gatedrnn: the input is on {x.device}, but this gatedrnn was built without CUDA: "
            "build it again with nvcc on PATH, or with CUDA_HOME saying where it is; "
            "gatedrnn.revert(model) puts torch.nn's modules back"
        )
    if x.dtype in _LOW_PRECISION and not has_kernels(call.kernel, x):
        return _in_float32(_run, call, tensors)
    if _needs_reference(call, x):
        return _reference(call, tensors)
    if traced.is_recording():
        return traced.run(call, tensors)
    transformed = torch._C._are_functorch_transforms_active()
    # A mapped tensor does not tell whether it requires a gradient.
    train = torch.is_grad_enabled() and (transformed or any(t.requires_grad for t in tensors))
    if transformed or train:
        return _Forward.apply(call, train, *tensors)[: kernel.outputs]
    return kernel.forward(call, tensors, False)[: kernel.outputs]


def _needs_reference(call: Call, x: Tensor) -> bool:
    if not has_kernels(call.kernel, x):
        return True
    if torch.compiler.is_compiling():
        # A compiled torch.func transform over a Function returns zeros without a word (torch 2.13).
        return torch._C._are_functorch_transforms_active()
    return forward_ad._current_level >= 0


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


def _is_one_step(x: Tensor, h0: Tensor, batch_sizes: Tensor | None) -> bool:
    """Whether a layer is a cell's step, which packs no weights: they would be read but once."""
    if batch_sizes is not None or torch.compiler.is_compiling():
        return False
    return x.dim() == 3 and x.size(0) == 1 and h0.size(0) == 1


def gru_layer(
    x: Tensor,
    h0: Tensor,
    weights: Sequence[Tensor | None],
    batch_sizes: Tensor | None = None,
    kernel: str = "gru",
    lengths: Tensor | None = None,
) -> tuple[Tensor, ...]:
    """One GRU layer of D directions over a sequence.

    Args:
        x: (T, B, I), any strides; or packed (N, I).
        h0: (D, B, H).
        weights: for each direction w_ih (3H, I), w_hh (3H, H), b_ih (3H) or None, b_hh or None.
        batch_sizes: of a packed x: (T,) int64 on the CPU, non-increasing, with sum N.
        kernel: which one of KERNELS.
        lengths: of the sequences of a padded x that raw.takes_lengths: (B,) int64 on its GPU, at
            least 1, at most T. x must be zero beyond them, as all results are.

    Returns:
        y (T, B, D*H), contiguous, or packed (N, D*H); and hn (D, B, H).

    Raises RuntimeError if shapes or dtypes do not fit together, or for a device without kernels.
    """
    if kernel == "gru" and _is_one_step(x, h0, batch_sizes):
        w_ih, w_hh, b_ih, b_hh = weights
        results = step("gru_cell", x[0], h0[0], None, w_ih, w_hh, b_ih, b_hh)  # type: ignore[arg-type]
        if results is not None:
            y = results[0].unsqueeze(0)
            return y, y.clone()
    bias, present = _complete(weights, 4, 3 * h0.size(-1))
    return _run(Call(kernel, bias, batch_sizes, lengths), (x, h0, *present))


def lstm_layer(
    x: Tensor,
    h0: Tensor,
    c0: Tensor,
    weights: Sequence[Tensor | None],
    batch_sizes: Tensor | None = None,
    kernel: str = "lstm",
    lengths: Tensor | None = None,
) -> tuple[Tensor, ...]:
    """One LSTM layer of D directions over a sequence, as :func:`gru_layer`.

    Args:
        h0, c0: (D, B, P) and (D, B, H).
        weights: for each direction w_ih (4H, I), w_hh (4H, P), b_ih (4H) or None, b_hh or None,
            w_hr (P, H) or None (then P = H).

    Returns:
        y (T, B, D*P) or packed (N, D*P), hn (D, B, P), cn (D, B, H), and what else the kernel
        gives out.
    """
    if kernel == "lstm" and _is_one_step(x, h0, batch_sizes) and weights[4] is None:
        w_ih, w_hh, b_ih, b_hh, _ = weights
        results = step("lstm_cell", x[0], h0[0], c0[0], w_ih, w_hh, b_ih, b_hh)  # type: ignore[arg-type]
        if results is not None:
            y = results[0].unsqueeze(0)
            return y, y.clone(), results[1].unsqueeze(0)
    bias, present = _complete(weights, 5, 4 * c0.size(-1))
    return _run(Call(kernel, bias, batch_sizes, lengths), (x, h0, c0, *present))


def stack(
    kernel: str, x: Tensor, states: Tensors, groups: Sequence[Sequence[Tensor | None]]
) -> list[Tensors] | None:
    """All layers of one direction in one launch, where a GPU's plan wants that; else None.

    Args:
        kernel: "gru" or "lstm".
        x: (T, B, I), not packed, on a GPU.
        states: h0, and c0 of an LSTM, (L, B, H) each.
        groups: each layer's weights, as :func:`gru_layer` or :func:`lstm_layer` takes them.

    Returns:
        What those functions give, of each layer.
    """
    if not has_kernels(kernel, x) or not x.numel() or _is_watched():
        return None
    rows = (2 + len(states)) * states[0].size(-1)
    layers = [_complete(group, len(group), rows) for group in groups]
    bias, flat = layers[0][0], [w for _, weights in layers for w in weights]
    train = torch.is_grad_enabled() and any(t.requires_grad for t in (x, *states, *flat))
    found = raw.stack_forward(x, states, flat, bias, train)
    outputs = KERNELS[kernel].outputs
    if found is None or not train:
        return found and [results[:outputs] for results in found]
    call = Call(kernel, bias, None)
    given: list[Tensors] = []
    for layer, results in enumerate(found):
        initial = (s[layer : layer + 1] for s in states)
        tensors = (given[-1][0] if given else x, *initial, *layers[layer][1])
        given.append(_EagerForward.apply(call, results, *tensors)[:outputs])
    return given


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
    return _run(Call("gru_cell", bias, None), (x, h, *present))[0]


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
    h, c = _run(Call("lstm_cell", bias, None), (x, h, c, *present))
    return h, c
