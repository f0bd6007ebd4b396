"""torch.onnx.export(dynamo=True) writes every layer and every step as ONNX's own GRU or LSTM.

ONNX orders gates z, r, n and i, o, f, g and gives directions an axis of their own:
W (D, G*H, I), R (D, G*H, H), B (D, 2*G*H), Y (T, D, B, H). The exporter finds the translation in
torch's table of decompositions; whatever else reads that table is told to keep the op.
"""

import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._decomp import register_decomposition
from torch.fx.experimental.proxy_tensor import get_proxy_mode

from .raw import KERNELS, Call, Tensors

__all__ = ["register"]

_OPERATORS = {"gru": "GRU", "lstm": "LSTM", "gru_cell": "GRU", "lstm_cell": "LSTM"}
_ORDER = {"GRU": (1, 0, 2), "LSTM": (0, 3, 1, 2)}


def register(name: str, op: torch._ops.OpOverload, fake: Callable[..., Tensors]) -> None:
    """Have the exporter translate a traced op, whose results have the shapes of `fake`'s."""

    def decompose(tensors: list[Tensor], bias: bool, batch_sizes: Tensor | None) -> Tensors:
        if get_proxy_mode() is None:  # nothing is written down: only shapes are asked for
            _keep_in_inductor(op)
            return fake(tensors, bias, batch_sizes)
        if not torch.onnx.is_in_onnx_export():
            return NotImplemented
        return _translate(Call(name, bias, batch_sizes), tensors)

    register_decomposition(op)(decompose)


def _keep_in_inductor(op: torch._ops.OpOverload) -> None:
    """Have Inductor, where it is in use, call the op: with `CI` set in the environment it refuses
    every op of the table that it has no word about.
    """
    lowering = sys.modules.get("torch._inductor.lowering")
    if lowering is not None and op not in lowering.lowerings:
        lowering.make_fallback(op, lowering.constrain_to_fake_tensors, warn=False)


def _translate(call: Call, tensors: Sequence[Tensor]) -> Tensors:
    """The results of a traced op by ONNX's operator; empty ones where only a backward reads them.

    Raises RuntimeError for what the operator lacks: packed sequences, projections, and the cell
    states of all steps.
    """
    if call.kernel not in _OPERATORS:
        raise RuntimeError(
            "torch.onnx.export: ONNX's LSTM does not give the cell states of all steps "
            "(output_hidden_states)"
        )
    if call.batch_sizes is not None:
        raise RuntimeError(
            "torch.onnx.export: ONNX has no packed sequences: call gatedrnn on padded input"
        )
    operator, kernel = _OPERATORS[call.kernel], KERNELS[call.kernel]
    x, states = tensors[0], tensors[1 : 1 + kernel.states]
    is_step = call.kernel.endswith("_cell")
    if is_step:
        x, states = x.unsqueeze(0), [s.unsqueeze(0) for s in states]
    (T, B, _), (D, _, H) = x.shape, states[-1].shape
    if states[0].size(2) != H:
        raise RuntimeError("torch.onnx.export: ONNX's LSTM has no projection (proj_size)")
    weights = [_reorder(operator, w) for w in tensors[1 + kernel.states :]]
    each = len(weights) // D
    w_ih, w_hh, *biases = (torch.stack(weights[k::each]) for k in range(each))
    direction = "bidirectional" if D == 2 else "forward"
    attributes: dict[str, Any] = {"hidden_size": H, "direction": direction}
    if operator == "GRU":
        attributes["linear_before_reset"] = 1
    results = torch.onnx.ops.symbolic_multi_out(
        operator,
        [x, w_ih, w_hh, torch.cat(biases, 1) if biases else None, None, *states],
        attributes,
        dtypes=[x.dtype] * (1 + kernel.states),
        shapes=[(T, D, B, H)] + [(D, B, H)] * kernel.states,
    )
    y, *finals = (r.to(x.device) for r in results)  # torch takes them to be on the CPU
    outputs = [y.transpose(1, 2).flatten(2), *finals]
    if is_step:
        outputs = [s.squeeze(0) for s in finals]
    unused = [k for k in kernel.kept if k >= kernel.outputs]
    return *outputs, *(x.new_empty(0) for _ in unused)


def _reorder(operator: str, weight: Tensor) -> Tensor:
    """A weight or bias with its gates in ONNX's order."""
    order = _ORDER[operator]
    H = weight.size(0) // len(order)
    return torch.cat([weight[k * H : (k + 1) * H] for k in order])
