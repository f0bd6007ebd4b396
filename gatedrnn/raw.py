"""The raw ops behind one face, so that one pair of autograd Functions serves all of them.

An op's differentiable inputs are one tuple: x, the states, the weights without gaps (direction by
direction, biases only if there are any). What it is besides stands in a :class:`Call`.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.autograd.forward_ad as forward_ad
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

__all__ = [
    "HAS_CUDA",
    "KERNELS",
    "Call",
    "Gradients",
    "Kernel",
    "Tensors",
    "cuda_architectures",
    "extension_file",
    "has_kernels",
    "instruction_set",
    "layer_reference",
    "on_gpu",
    "stack_forward",
    "step_backward",
    "step_forward",
    "takes_lengths",
    "tf32_allowed",
]

# Tests exchange both, so that the CUDA ops with emulated kernels run on CPU tensors.
_ops = torch.ops.gatedrnn
_emulated = False

Tensors = tuple[Tensor, ...]
Gradients = list[Tensor | None]


class Call(NamedTuple):
    """What a call is besides its tensors."""

    kernel: str
    bias: bool
    batch_sizes: Tensor | None  # of a packed layer
    lengths: Tensor | None = None  # (B,) of a padded one's sequences, on a GPU


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
    """The instruction set whose kernels run: avx512bf16, avx512, avx2 or baseline.

    Raises RuntimeError if GATEDRNN_CPU_ISA names one that this machine lacks.
    """
    return torch.ops.gatedrnn.instruction_set()


def cuda_architectures() -> str:
    """The architectures that CUDA kernels were built for, as in "80;90a"; empty without any."""
    return torch.ops.gatedrnn.cuda_architectures()


def extension_file() -> str:
    """Where the compiled part lies."""
    return str(_C.__file__)


def on_gpu(x: Tensor) -> bool:
    """Whether x is where CUDA kernels run, and there are any."""
    return (x.is_cuda and HAS_CUDA) or _emulated


def has_kernels(kernel: str, x: Tensor) -> bool:
    """Whether there are kernels of that name for tensors of x's device and dtype as they are."""
    if x.is_cuda or _emulated:
        return x.dtype in _DTYPES and on_gpu(x)
    dtypes = _CPU_CELL_DTYPES if kernel.endswith("_cell") else _DTYPES
    return x.dtype in dtypes and (x.is_cpu or x.is_meta)


def takes_lengths(x: Tensor, states: Sequence[Tensor]) -> bool:
    """Whether x's kernels stop where lengths on the GPU say, without anybody waiting for those."""
    if not on_gpu(x) or x.dtype not in _DTYPES or not x.numel():
        return False
    if states[0].size(-1) != states[-1].size(-1):  # projected
        return False
    return _ops.takes_lengths.default(x, states[0], 2 + len(states), _tf32(x))


def stack_forward(
    x: Tensor, states: Tensors, weights: Sequence[Tensor], bias: bool, train: bool
) -> list[Tensors] | None:
    """What each layer's forward gives, of a stack on a GPU; None if its layers do not run together.

    They have one direction and no projection; states are (L, B, H), and the layers' weights follow
    one another.
    """
    tf32 = _tf32(x)
    if not _ops.takes_stack.default(x, states[0], 2 + len(states), tf32):
        return None
    op = _ops.gru_stack_forward if len(states) == 1 else _ops.lstm_stack_forward
    results = _run(op.default, x, *states, weights, bias, train, tf32)
    return list(zip(*results, strict=True))


def _tf32(x: Tensor) -> bool:
    """Whether products of x may be of TF32: the switch that torch's own recurrent layers obey."""
    return x.dtype is torch.float32 and (x.is_cuda or _emulated) and tf32_allowed()


def tf32_allowed() -> bool:
    """Whether torch's switches let recurrent layers round float32 to TF32."""
    return torch.backends.cudnn.rnn.fp32_precision == "tf32"  # type: ignore[attr-defined]


def _run(op: Callable[..., Any], *arguments: Any) -> Any:
    if torch._C._is_any_autocast_enabled():
        # The ops' own matrix products must keep the dtype that they were given.
        with torch.autocast("cpu", enabled=False), torch.autocast("cuda", enabled=False):
            return _call(op, arguments)
    return _call(op, arguments)


def _call(op: Callable[..., Any], arguments: Any) -> Any:
    try:
        return op(*arguments)
    except RuntimeError as error:
        if "API call failed" in str(error):
            _allocate_again(op, arguments)
        raise


def _allocate_again(op: Any, arguments: Any) -> None:
    """Raise what an op has met whose error the stable ABI has lost the text of.

    That is a failed allocation: the fake kernel makes the same results out of the same tensors, and
    so meets it again, unless it was of what a CUDA op works with.
    """
    fake.KERNELS[op.name().partition("::")[2]](*arguments)
    device = next(a.device for a in arguments if isinstance(a, Tensor))
    if device.type == "cuda":
        torch.cuda.synchronize(device)  # or it is an earlier kernel's failure, which shows here
        raise torch.OutOfMemoryError(f"CUDA out of memory: gatedrnn could not allocate on {device}")


def _gru_forward(call: Call, tensors: Tensors, train: bool) -> Tensors:
    x, h0, *weights = tensors
    layer = x, h0, weights, call.bias, call.batch_sizes
    return _run(_ops.gru_forward.default, *layer, train, _tf32(x), call.lengths)


def _gru_backward(
    call: Call, d: Gradients, tensors: Tensors, kept: Tensors, need_x: bool, need_weights: bool
) -> Gradients:
    x, h0, *weights = tensors
    layer = x, h0, weights, call.bias, call.batch_sizes
    op = _ops.gru_backward.default
    flags = need_x, need_weights, _tf32(x)
    dx, dh0, dweights = _run(op, *d, *layer, *kept, *flags, call.lengths)
    return [dx, dh0, *dweights]


def _lstm_forward(call: Call, tensors: Tensors, train: bool) -> Tensors:
    x, h0, c0, *weights = tensors
    layer = x, h0, c0, weights, call.bias, call.batch_sizes
    return _run(_ops.lstm_forward.default, *layer, train, _tf32(x), call.lengths)


def _lstm_backward(
    call: Call, d: Gradients, tensors: Tensors, kept: Tensors, need_x: bool, need_weights: bool
) -> Gradients:
    x, h0, c0, *weights = tensors
    layer = x, h0, c0, weights, call.bias, call.batch_sizes
    op, flags = _ops.lstm_backward.default, (need_x, need_weights, _tf32(x))
    # The gradient of the cell states of all steps comes last, if there is one.
    found = _run(op, *d[:3], *layer, *kept, *flags, call.lengths, *d[3:])
    dx, dh0, dc0, dweights = found
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


def layer_reference(call: Call, tensors: Tensors) -> Tensors:
    """The outputs of a layer of any kernel by the reference."""
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
        return reference.gru_layer(x, h0, weights, call.batch_sizes, call.lengths)
    x, h0, c0 = tensors[:3]
    results = reference.lstm_states(x, h0, c0, weights, call.batch_sizes, call.lengths)
    return results[: KERNELS[call.kernel].outputs]


def _gru_cell_reference(call: Call, tensors: Tensors) -> Tensors:
    return (reference.gru_cell(*tensors, *_no_bias(call)),)


def _lstm_cell_reference(call: Call, tensors: Tensors) -> Tensors:
    return reference.lstm_cell(*tensors, *_no_bias(call))


KERNELS = {
    # forward gives y, hn, gates
    "gru": Kernel(1, 2, (0, 2), _gru_forward, _gru_backward, layer_reference),
    # forward gives y, hn, cn, gates, c
    "lstm": Kernel(2, 3, (0, 3, 4), _lstm_forward, _lstm_backward, layer_reference),
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

# A step of a cell on the CPU past the dispatcher, or None where the op must answer: see
# csrc/bindings/python.cpp. The profiler is among those who look on, as it is to see the ops.
step_forward: Callable[..., Tensors | None] = _C.cell_forward
step_backward: Callable[..., Tensors | None] = _C.cell_backward
_watchers = (
    torch._C._is_any_autocast_enabled,
    torch._C._len_torch_dispatch_stack,
    torch._C._len_torch_function_stack,
    torch._C._are_functorch_transforms_active,
    torch._C._get_tracing_state,
    torch._C._autograd._profiler_enabled,
)
_exchange = getattr(Tensor, "__dlpack_c_exchange_api__", None)
if _exchange is not None:  # not every torch that we run with has it
    _C.serve(Tensor, torch.nn.Parameter, _exchange, torch.empty_like, forward_ad, _watchers)

_CPU_CELL_DTYPES = (torch.float32, torch.float64)
_DTYPES = (*_CPU_CELL_DTYPES, torch.float16, torch.bfloat16)
HAS_CUDA = bool(cuda_architectures())
instruction_set()  # so that a wrong GATEDRNN_CPU_ISA is told now
