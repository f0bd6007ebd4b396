"""Other implementations, where they can be imported, as modules that are called like torch.nn's.

Each builder takes a torch.nn layer with batch_first=True and gives a module with the same weights;
it raises Unfit for what its library cannot do. None is required, and none is a reference: what it
computes is checked like ours before it is timed.
"""

import importlib
import importlib.util
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Unfit(Exception):
    """Why a library cannot run a case."""


class Stack(nn.Module):
    """Layers of which each takes (B, T, I) and gives (B, T, H) and its final states (B, H)."""

    def __init__(self, layers: list[nn.Module]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, x: Tensor, hx: None = None) -> Any:
        finals = []
        for layer in self.layers:
            x, *last = layer(x)
            finals.append(last)
        states = tuple(torch.stack(parts) for parts in zip(*finals, strict=True))
        return x, states if len(states) == 2 else states[0]


class HasteLayer(nn.Module):
    def __init__(self, library: Any, kind: str, weights: list[Tensor]) -> None:
        super().__init__()
        hidden, inputs = weights[1].shape[1], weights[0].shape[1]
        self.layer = getattr(library, kind)(inputs, hidden, batch_first=True)
        with torch.no_grad():
            self.layer.from_native_weights(*weights)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        y, state = self.layer(x)
        states = state if isinstance(state, tuple) else (state,)
        return y, *(s[0] for s in states)


def haste(theirs: nn.RNNBase, dtype: str) -> nn.Module:
    """github.com/lmnt-com/haste: it lets the tensor cores round float32."""
    if dtype not in ("tf32", "float64") and not (dtype == "float16" and theirs.mode == "GRU"):
        raise Unfit(f"no {theirs.mode} in {dtype}")
    library = importlib.import_module("haste_pytorch")
    return Stack([HasteLayer(library, theirs.mode, weights) for weights in theirs.all_weights])


class FlashLayer(nn.Module):
    """The input's product by torch.nn.functional, the recurrence by FlashRNN, with one head."""

    def __init__(self, call: Callable[..., Any], kind: str, dtype: str,
                 weights: list[Tensor]) -> None:
        super().__init__()
        w_ih, w_hh, b_ih, b_hh = (w.detach().clone() for w in weights)
        self.gates, self.hidden = len(w_hh) // w_hh.shape[1], w_hh.shape[1]
        recurrent = w_hh.view(self.gates, 1, self.hidden, self.hidden)
        bias = (b_ih + b_hh).view(self.gates, 1, self.hidden)
        # The fused kernels are for the LSTM alone. A GRU's gates are n's recurrent part, r, z,
        # and in the bias n's input part at the end.
        self.options = {"function": "lstm", "backend": "cuda_fused", "dtype": dtype}
        if kind == "GRU":
            self.options |= {"function": "gru", "backend": "cuda"}
            recurrent = recurrent[[2, 0, 1]]
            first, last = (b.view(3, 1, self.hidden)[2:] for b in (b_hh, b_ih))
            bias = torch.cat([first, bias[:2], last])
        self.call = call
        self.w_ih, self.recurrent, self.bias = map(nn.Parameter, (w_ih, recurrent, bias))

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        projected = F.linear(x, self.w_ih).view(*x.shape[:2], self.gates, 1, self.hidden)
        states, last = self.call(projected, self.recurrent, self.bias, **self.options)
        return states[0, :, :, 0], *(state[:, 0, 0] for state in last)


def flashrnn(theirs: nn.RNNBase, dtype: str) -> nn.Module:
    """github.com/NX-AI/flashrnn: it compiles its kernels at the first call of each shape."""
    if dtype not in ("tf32", "float16", "bfloat16"):
        raise Unfit(f"no kernels in {dtype}")
    call = importlib.import_module("flashrnn.flashrnn").flashrnn
    own = "float32" if dtype == "tf32" else dtype
    return Stack([FlashLayer(call, theirs.mode, own, weights) for weights in theirs.all_weights])


class TritonLayer(nn.Module):
    """TorchRL's, without resets within a sequence, for which it was made."""

    def __init__(self, call: Callable[..., Any], weights: list[Tensor]) -> None:
        super().__init__()
        self.call = call
        self.weights = nn.ParameterList([w.detach().clone() for w in weights])

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        batch, steps, _ = x.shape
        hidden = self.weights[1].shape[1]
        lstm = len(self.weights[1]) == 4 * hidden
        states = [x.new_zeros(batch, steps, hidden) for _ in range(2 if lstm else 1)]
        resets = torch.zeros(batch, steps, dtype=torch.bool, device=x.device)
        results = self.call(x, *states, *self.weights, resets)
        return (results[0], *results[2:]) if lstm else results


def torchrl(theirs: nn.RNNBase, dtype: str) -> nn.Module:
    """github.com/pytorch/rl: float32 in memory, TF32 in products."""
    if dtype != "tf32":
        raise Unfit(f"no kernels in {dtype}")
    library = importlib.import_module("torchrl.modules.tensordict_module._rnn_triton")
    call = getattr(library, f"{theirs.mode.lower()}_triton")
    return Stack([TritonLayer(call, weights) for weights in theirs.all_weights])


PEERS: dict[str, Callable[[nn.RNNBase, str], nn.Module]] = {
    "haste": haste, "flashrnn": flashrnn, "torchrl": torchrl,
}
PACKAGES = {"haste": "haste_pytorch", "flashrnn": "flashrnn", "torchrl": "torchrl"}


def importable() -> list[str]:
    return [name for name in PEERS if importlib.util.find_spec(PACKAGES[name])]
