"""The ops as tracers record them: torch.export, torch.jit.trace and make_fx keep ops, not autograd
Functions, and a raw op alone would lose its gradients in the recorded program without a word. These
ops compute the same and carry a derivative of their own; eager calls do without their overhead.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import get_proxy_mode

from . import flops, onnx
from .raw import KERNELS, Call, Tensors

__all__ = ["define", "is_recording", "run"]

_RESULTS = {"gru": 3, "lstm": 5, "lstm_states": 5, "gru_cell": 2, "lstm_cell": 3}
_library = torch.library.Library("gatedrnn", "FRAGMENT")


def is_recording() -> bool:
    """Whether a tracer keeps what runs now as a program to run again."""
    if torch.compiler.is_compiling():
        return torch.compiler.is_exporting()
    return torch._C._get_tracing_state() is not None or get_proxy_mode() is not None


def run(call: Call, tensors: Tensors) -> Tensors:
    """The outputs of a call, recorded as one op that can be differentiated, twice too."""
    op = getattr(torch.ops.gatedrnn, f"{call.kernel}_traced").default
    return op(list(tensors), call.bias, call.batch_sizes)[: KERNELS[call.kernel].outputs]


def define(name: str, gradients: Callable[..., list[Any]]) -> None:
    """Register the op of a kernel. `gradients` are those of ops, with a derivative of their own."""
    kernel, op = KERNELS[name], f"gatedrnn::{name}_traced"
    results = ", ".join(["Tensor"] * _RESULTS[name])
    arguments = "Tensor[] tensors, bool bias, Tensor? batch_sizes"
    _library.define(f"{name}_traced({arguments}) -> ({results})")

    def forward(tensors: list[Tensor], bias: bool, batch_sizes: Tensor | None) -> Tensors:
        return kernel.forward(Call(name, bias, batch_sizes), tuple(tensors), True)

    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        tensors, bias, batch_sizes = inputs
        ctx.call = Call(name, bias, batch_sizes)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*tensors, *(output[k] for k in kernel.kept))

    def backward(ctx: Any, *results: Tensor | None) -> Any:
        return gradients(ctx.call, ctx.needs_input_grad[0], ctx.saved_tensors, results), None, None

    for key in ("CPU", "CUDA"):
        _library.impl(f"{name}_traced", forward, key)
    torch.library.register_fake(op, forward, lib=_library)
    torch.library.register_autograd(op, backward, setup_context=setup_context, lib=_library)
    onnx.register(name, getattr(torch.ops.gatedrnn, f"{name}_traced").default, forward)
    flops.register(name)
