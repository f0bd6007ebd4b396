"""How a call would be run, in words."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from . import raw
from .cells import GRUCell, LSTMCell
from .modules import GRU, LSTM

__all__ = ["explain"]

_PRODUCTS = {
    "fma": "float32 multiply-adds",
    "tf32": "tensor cores, operands rounded to TF32",
    "half": "tensor cores, float16 operands and float32 sums",
    "bfloat16": "tensor cores, bfloat16 operands and float32 sums",
    "split": "tensor cores, each operand two of float16, and float32 sums",
}
_REASONS = {
    "predicted": "predicted, not measured, to be fastest",
    "measured": "measured to be fastest",
    "asked": "asked for by the environment",
}
_TILES = {"narrow": "tiles of 16 sequences", "wide": "tiles of 64 sequences"}


def explain(
    module: nn.Module,
    input: Tensor | PackedSequence,
    *,
    architecture: int | None = None,
    multiprocessors: int | None = None,
) -> str:
    """Say which kernels a forward of `module` on `input` would use, layer by layer.

    Nothing is computed. Under autocast, `input` and parameters count as cast already.

    Args:
        module: a GRU, LSTM, GRUCell or LSTMCell of gatedrnn.
        input: what it would be called with; only shape, dtype and device matter.
        architecture, multiprocessors: of a GPU to ask about, as if `input` were on it: 90 and 132
            for an H200. By default the device of `input` answers for itself.

    Returns:
        A few lines of text for people; their wording may change.

    Raises:
        TypeError: `module` is not one of gatedrnn's.
        ValueError: only one of `architecture` and `multiprocessors` is given.
    """
    if not isinstance(module, (GRU, LSTM, GRUCell, LSTMCell)):
        raise TypeError(f"explain takes a recurrent module of gatedrnn, not {type(module)}")
    if (architecture is None) != (multiprocessors is None):
        raise ValueError("architecture and multiprocessors are given together or not at all")
    x = input.data if isinstance(input, PackedSequence) else input
    gpu: tuple[int, int, int] | None = None
    if architecture is not None and multiprocessors is not None:
        gpu = architecture, multiprocessors, -1
    elif x.is_cuda and raw.HAS_CUDA:
        found = torch.cuda.get_device_properties(x.device)
        index = x.device.index or 0
        gpu = 10 * found.major + found.minor, found.multi_processor_count, index
    dtype = x.dtype
    if torch.amp.is_autocast_available(x.device.type) and torch.is_autocast_enabled(x.device.type):
        dtype = torch.get_autocast_dtype(x.device.type)
    where = f"a GPU of architecture {gpu[0]}, {gpu[1]} multiprocessors" if gpu else str(x.device)
    head = f"{type(module).__name__} on {where}, {str(dtype).removeprefix('torch.')}"
    if dtype.is_complex or x.device.type not in ("cpu", "cuda", "meta"):
        return f"{head}: the reference, in torch's own operations"
    if x.is_cuda and not gpu:
        return f"{head}: refused, since this gatedrnn was built without CUDA"
    if isinstance(module, (GRUCell, LSTMCell)):
        return f"{head}: {_cell(module, x, dtype, gpu)}"
    stack = _stack(module, input, dtype, gpu) if gpu else []
    layers = range(module.num_layers)
    lines = [_layer(module, k, input, dtype, gpu, bool(stack)) for k in layers]
    return "\n".join([f"{head}:", *stack, *lines])


def _cell(
    module: GRUCell | LSTMCell, x: Tensor, dtype: torch.dtype, gpu: tuple[int, int, int] | None
) -> str:
    if gpu:
        return "two products by torch, in its precision for matrix products, then one kernel"
    B = x.size(0) if x.dim() == 2 else 1
    gates = 3 if isinstance(module, GRUCell) else 4
    return _cell_plan(B, module.input_size, module.hidden_size, gates, dtype)


def _cell_plan(B: int, features: int, H: int, gates: int, dtype: torch.dtype) -> str:
    element = 8 if dtype is torch.float64 else 4
    plan = _values(torch.ops.gatedrnn.cpu_cell_plan(B, features, H, gates, element))
    parts = [f"one kernel ({raw.instruction_set()})"]
    if dtype in (torch.float16, torch.bfloat16):
        parts.append("computed in float32")
    if plan["packed"] == "1":
        parts.append("weights transposed a vector of units at a time")
    else:
        parts.append("weights read as they lie")
    parts.append(_shared(plan["threads"], "1" if plan["by_rows"] == "1" else plan["threads"]))
    passes = "one pass over the weights" if plan["few"] == "1" else "tiled products"
    return f"{', '.join(parts)}; backward: {passes}"


def _shared(threads: str, parts: str) -> str:
    if threads == "1":
        return "one thread"
    if parts == "1":
        return f"{threads} threads, each with sequences of its own"
    return f"{threads} threads, {parts} share the units of a sequence"


def _steps_and_batch(module: GRU | LSTM, input: Tensor | PackedSequence) -> tuple[int, int]:
    if isinstance(input, PackedSequence):
        return len(input.batch_sizes), int(input.batch_sizes[0])
    if input.dim() == 2:
        return input.size(0), 1
    return (input.size(1), input.size(0)) if module.batch_first else (input.size(0), input.size(1))


def _stack(
    module: GRU | LSTM,
    input: Tensor | PackedSequence,
    dtype: torch.dtype,
    gpu: tuple[int, int, int],
) -> list[str]:
    """What all layers do forward together, if they do."""
    dropout = module.training and module.dropout
    if isinstance(input, PackedSequence) or module.bidirectional or module.proj_size:
        return []
    if dropout or module.recompute:
        return []
    T, B = _steps_and_batch(module, input)
    sizes = T, B, module.input_size, module.hidden_size
    gates = 3 if isinstance(module, GRU) else 4
    tf32 = dtype is torch.float32 and raw.tf32_allowed()
    plan = _values(
        torch.ops.gatedrnn.cuda_stack_plan(*sizes, gates, module.num_layers, dtype, tf32, *gpu)
    )
    if plan["units"] == "0":
        return []
    product = _PRODUCTS["bfloat16" if dtype is torch.bfloat16 else "half"]
    return [
        "  all layers: CUDA wavefront kernel, one launch forward, each layer a step behind the one "
        "below",
        f"    forward: {product}; wavefront, {_held(plan, '')}",
        f"    forward {_REASONS[plan['reason']]}",
    ]


def _layer(
    module: GRU | LSTM,
    layer: int,
    input: Tensor | PackedSequence,
    dtype: torch.dtype,
    gpu: tuple[int, int, int] | None,
    stacked: bool,
) -> str:
    T, B = _steps_and_batch(module, input)
    directions = 2 if module.bidirectional else 1
    P = module.proj_size or module.hidden_size
    features = module.input_size if layer == 0 else directions * P
    gates = 3 if isinstance(module, GRU) else 4
    shape = T, B, features, module.hidden_size, P, gates, directions
    head = f"  layer {layer}: T={T}, B={B}, I={features}, H={module.hidden_size}: "
    if not gpu and T == directions == 1 and P == module.hidden_size:
        return f"{head}a cell's step, {_cell_plan(B, features, module.hidden_size, gates, dtype)}"
    if not gpu:
        return head + _cpu(shape, dtype)
    packed = isinstance(input, PackedSequence)
    passes = ("backward",) if stacked else ("forward", "backward")
    return head + _gpu(shape, dtype, gpu, packed, bool(module.proj_size), passes)


def _held(plan: dict[str, str], pass_: str) -> str:
    """Where weights lie, and with how many sequences."""
    units, cluster, sequences = (plan[f"{pass_}{n}"] for n in ("units", "cluster", "sequences"))
    blocks = f"clusters of {cluster}"
    if cluster == "0":
        blocks = f"groups of {int(units) // 16} blocks of the grid"
    each = "one sequence" if sequences == "1" else f"{sequences} sequences"
    return f"{units} units held by {blocks}, each with {each}"


def _values(plan: str) -> dict[str, Any]:
    return dict(pair.split("=") for pair in plan.split())


def _cpu(shape: tuple[int, ...], dtype: torch.dtype) -> str:
    plan = _values(torch.ops.gatedrnn.cpu_plan(*shape, dtype))
    parts = [f"CPU kernels ({raw.instruction_set()})"]
    if dtype.itemsize == 2:
        parts.append(f"{str(dtype).removeprefix('torch.')} storage, float32 arithmetic")
    if plan["pairs"] == "1":
        parts.append("products of pairs of bfloat16, summed in float32")
    elif dtype is torch.bfloat16 and plan["narrow_panels"] == "1":
        parts.append("weights read in bfloat16")
    parts.append(_shared(plan["threads"], plan["parts"]))
    if plan["block"] != "1":
        parts.append(f"{plan['block']} sequences walk together")
    if plan["ahead"] != "0":
        parts.append(f"the input's products made for {plan['ahead']} steps at a time")
    return ", ".join(parts)


def _gpu(
    shape: tuple[int, ...],
    dtype: torch.dtype,
    gpu: tuple[int, int, int],
    packed: bool,
    projected: bool,
    passes: tuple[str, ...],
) -> str:
    tf32 = dtype is torch.float32 and raw.tf32_allowed()
    plan = _values(torch.ops.gatedrnn.cuda_plan(*shape, dtype, tf32, packed, *gpu))
    launches = "two launches" if projected else "one launch"
    kernels: dict[str, str] = {}
    lines: list[str] = []
    for which in passes:
        product = _PRODUCTS[plan[which]]
        if dtype is torch.float64:
            product = "float64 multiply-adds"
        if plan[f"{which}_units"] == "0":
            kernels["step"] = f"CUDA step kernels, {launches} a step for all directions"
            lines.append(f"{which}: {product}; {_TILES[plan[which + '_tile']]}")
        else:
            kernels["persistent"] = (
                "CUDA persistent kernels, one launch for all steps and directions"
            )
            lines.append(f"{which}: {product}; persistent, {_held(plan, which + '_')}")
    if plan["projects"] == "1" and "forward" in passes:
        lines[0] += ", the input multiplied with them, in float32"
    precision = "TF32" if tf32 else str(dtype).removeprefix("torch.")
    if dtype is torch.float16:
        precision = "float16 forward, TF32 backward"
    lines.append(f"products over the whole sequence: cuBLAS, {precision}")
    reasons = {which: _REASONS[plan[f"{which}_reason"]] for which in passes}
    if len(set(reasons.values())) < len(reasons):
        lines.append(f"both {reasons['forward']}")
    else:
        lines.append(", ".join(f"{which} {reason}" for which, reason in reasons.items()))
    return "\n    ".join(["; ".join(kernels.values()), *lines])
