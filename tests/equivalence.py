"""One case through three implementations: ours, torch.nn in the same dtype, and an oracle.

The oracle is torch.nn in float64 (complex128 for complex), or, when float64 itself is under test,
the extended precision of extended.py. Data and results are held in one canonical form, whatever
form the module is fed: x (T, B, I), output (T, B, D*P) padded, states (L*D, B, P or H); for a cell
x (B, I), states (B, H).
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import extended
import numpy as np
import torch
from tolerance import hold
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import gatedrnn

TORCH = {"gru": nn.GRU, "lstm": nn.LSTM, "gru_cell": nn.GRUCell, "lstm_cell": nn.LSTMCell}
OURS = {
    "gru": gatedrnn.GRU,
    "lstm": gatedrnn.LSTM,
    "gru_cell": gatedrnn.GRUCell,
    "lstm_cell": gatedrnn.LSTMCell,
}
LAYERS = ("gru", "lstm")
CELLS = ("gru_cell", "lstm_cell")
WIDER = {torch.complex64: torch.complex128}
THREADS = (1, 2)
LAYOUTS = ("sliced", "stepped", "transposed", "expanded")


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def lay_out(value: Tensor, layout: str) -> Tensor:
    """A leaf that holds `value` in strides of the given kind; what lies between is NaN."""
    if layout == "plain":
        return value.detach().clone()
    if layout == "expanded":
        return value.detach()[..., :1, :].clone().expand_as(value)
    if layout == "sliced":
        base = value.new_full([n + 3 for n in value.shape], float("nan"))
        view = base[tuple(slice(1, n + 1) for n in value.shape)]
    elif layout == "stepped":
        view = value.new_full((*value.shape[:-1], 2 * value.shape[-1]), float("nan"))[..., ::2]
    else:
        order = tuple(reversed(range(value.dim())))
        view = value.new_empty(value.permute(order).shape).permute(order)
    return view.copy_(value.detach())


@dataclass(frozen=True)
class Case:
    """What is run. `str` of it is the test's id."""

    cell: str
    size: tuple[int, ...]  # (T, B, I, H) of a layer, (B, I, H) of a cell
    dtype: torch.dtype = torch.float32
    layers: int = 1
    bidirectional: bool = False
    proj: int = 0
    bias: bool = True
    batch_first: bool = False
    form: str = "padded"  # or packed: "sorted", "unsorted"; or "unbatched" (then B = 1)
    layout: str = "plain"  # of input, states and cotangents
    states: bool = True  # False: the module makes its own zeros
    seed: int = 0

    def __str__(self) -> str:
        names = "TBIH" if len(self.size) == 4 else "BIH"
        parts = [self.cell, *(f"{n}{v}" for n, v in zip(names, self.size, strict=True))]
        parts += [f"L{self.layers}"] * (self.layers > 1) + ["bi"] * self.bidirectional
        parts += [f"P{self.proj}"] * (self.proj > 0) + ["nobias"] * (not self.bias)
        parts += ["batchfirst"] * self.batch_first + [self.form] * (self.form != "padded")
        parts += [self.layout] * (self.layout != "plain") + ["nostates"] * (not self.states)
        return "-".join([*parts, str(self.dtype).removeprefix("torch.")])

    @property
    def is_cell(self) -> bool:
        return self.cell in CELLS

    @property
    def gates(self) -> int:
        return 3 if self.cell.startswith("gru") else 4

    @property
    def state_names(self) -> str:
        return "h" if self.gates == 3 else "hc"

    def build(self, kinds: dict[str, type]) -> nn.Module:
        *_, features, hidden = self.size
        options: dict[str, Any] = {"bias": self.bias, "dtype": self.dtype}
        if not self.is_cell:
            options |= {"num_layers": self.layers, "batch_first": self.batch_first}
            options |= {"bidirectional": self.bidirectional}
        if self.proj:
            options["proj_size"] = self.proj
        return kinds[self.cell](features, hidden, **options)


@dataclass
class Data:
    """Inputs and cotangents of a case, canonical; lengths (B,) of its sequences."""

    inputs: dict[str, Tensor]  # x, h0[, c0]
    cotangents: dict[str, Tensor]  # output, h_n[, c_n]
    lengths: Tensor = field(default_factory=lambda: torch.ones(0, dtype=torch.int64))

    def to(self, dtype: torch.dtype) -> "Data":
        inputs = {n: v.to(dtype) for n, v in self.inputs.items()}
        return Data(inputs, {n: v.to(dtype) for n, v in self.cotangents.items()}, self.lengths)


def draw(case: Case) -> Data:
    """Random data, exact in the case's dtype, constant over the batch if it is to be expanded."""
    generator = torch.Generator().manual_seed(case.seed)
    wide = torch.complex128 if case.dtype.is_complex else torch.float64

    def normal(*shape: int) -> Tensor:
        value = torch.randn(shape, dtype=wide, generator=generator).to(case.dtype)
        return value[..., :1, :].expand_as(value).clone() if case.layout == "expanded" else value

    *steps, batch, features, hidden = case.size
    directions = 1 + case.bidirectional
    lead = () if case.is_cell else (case.layers * directions,)
    out = case.proj or hidden
    states = {"h": normal(*lead, batch, out) / 2, "c": normal(*lead, batch, hidden)}
    inputs = {"x": normal(*steps, batch, features)}
    cotangents = {f"{s}_n": normal(*states[s].shape) for s in case.state_names}
    if not case.is_cell:
        cotangents["output"] = normal(*steps, batch, directions * out)
    if case.states:
        inputs |= {f"{s}0": states[s] for s in case.state_names}
    longest = steps[0] if steps else 1
    lengths = torch.full((batch,), longest)
    if case.form in ("sorted", "unsorted"):
        lengths[1:] = torch.randint(1, longest + 1, (batch - 1,), generator=generator)
        order = torch.randperm(batch, generator=generator)
        lengths = lengths.sort(descending=True)[0] if case.form == "sorted" else lengths[order]
    return Data(inputs, cotangents, lengths)


Forward = Callable[[nn.Module, Any, Any], Any]


def forward(module: nn.Module, case: Case, data: Data, inputs: dict[str, Tensor],
            call: Forward | None = None) -> dict[str, Tensor]:
    """The module's results in canonical form, from canonical inputs fed in the case's form."""
    x = inputs["x"]
    states = tuple(inputs[f"{s}0"] for s in case.state_names) if case.states else ()
    if case.form == "unbatched":
        axis = 0 if case.is_cell else 1
        x, states = x.squeeze(axis), tuple(s.squeeze(axis) for s in states)
    elif case.batch_first:
        x = x.transpose(0, 1)
    if packed := case.form in ("sorted", "unsorted"):
        in_order = case.form == "sorted"
        x = pack_padded_sequence(x, data.lengths, case.batch_first, enforce_sorted=in_order)
    hx = None if not states else states[0] if case.gates == 3 else states
    results = module(x, hx) if call is None else call(module, x, hx)

    if case.is_cell:
        finals = results if case.gates == 4 else (results,)
        named = dict(zip(("h_n", "c_n"), finals, strict=False))
    else:
        output, finals = results
        if packed:
            output = pad_packed_sequence(output, total_length=case.size[0])[0]
        elif case.batch_first and case.form != "unbatched":
            output = output.transpose(0, 1)
        finals = finals if case.gates == 4 else (finals,)
        named = {"output": output, **dict(zip(("h_n", "c_n"), finals, strict=False))}
    if case.form == "unbatched":
        named = {n: v.unsqueeze(axis) for n, v in named.items()}
    return named


def run(module: nn.Module, case: Case, data: Data, wrt: Iterable[str] | None = None,
        outputs: Iterable[str] | None = None, call: Forward | None = None,
        unused_is_zero: bool = False) -> dict[str, Tensor]:
    """Results and gradients of one forward and one backward.

    wrt: what requires a gradient: names of inputs and parameters (None: all of them).
    outputs: which results receive a cotangent (None: all, together).
    unused_is_zero: let autograd put zeros for what no cotangent reaches; an error otherwise.
    """
    inputs = {n: lay_out(v, case.layout) for n, v in data.inputs.items()}
    leaves = {**inputs, **dict(module.named_parameters())}
    wrt = list(leaves if wrt is None else wrt)
    for name, leaf in leaves.items():
        leaf.requires_grad_(name in wrt)
    results = forward(module, case, data, inputs, call)
    detached = {n: v.detach().clone() for n, v in results.items()}
    if not wrt:
        assert not any(v.requires_grad for v in results.values())
        return detached
    chosen = list(results if outputs is None else outputs)
    gradients = torch.autograd.grad(
        [results[n] for n in chosen],
        [leaves[n] for n in wrt],
        [lay_out(data.cotangents[n], case.layout) for n in chosen],
        materialize_grads=unused_is_zero,
    )
    return {**detached, **{f"grad {n}": g for n, g in zip(wrt, gradients, strict=True)}}


def run_extended(module: nn.Module, case: Case, data: Data,
                 outputs: Iterable[str] | None = None) -> dict[str, np.ndarray]:
    """The same by extended.py."""
    wide = {n: v.detach().numpy().astype(extended.WIDE) for n, v in data.inputs.items()}
    cotangents = {n: v.numpy().astype(extended.WIDE) for n, v in data.cotangents.items()}
    if outputs is not None:
        cotangents = {n: v * (n in list(outputs)) for n, v in cotangents.items()}
    if case.is_cell:
        wide, cotangents = ({n: v[None] for n, v in part.items()} for part in (wide, cotangents))
        cotangents["output"] = np.zeros_like(cotangents["h_n"])
    state = [wide.get(f"{s}0", np.zeros_like(cotangents[f"{s}_n"])) for s in case.state_names]
    params = {
        n: p.detach().numpy().astype(extended.WIDE) for n, p in module.named_parameters()
    }
    with np.errstate(all="ignore"):
        results = extended.stack(
            case.cell.removesuffix("_cell"), params, wide["x"], data.lengths.numpy(), state,
            cotangents["output"], [cotangents[f"{s}_n"] for s in case.state_names],
        )
    if case.is_cell:
        own = {f"grad {n}" for n in params}
        results = {n: v if n in own else v[0] for n, v in results.items()}
    return results


class Trial:
    """A case made ready: data, torch's module and ours with the same weights, and the oracle."""

    def __init__(self, case: Case, edit: Callable[[nn.Module, Data], None] | None = None,
                 call: Forward | None = None) -> None:
        """edit: changes weights and data in place first. call: stands in for our module's call."""
        self.case, self.call, self.data = case, call, draw(case)
        with torch.random.fork_rng():
            torch.manual_seed(case.seed)
            self.theirs = case.build(TORCH)
        if edit is not None:
            with torch.no_grad():
                edit(self.theirs, self.data)
        self.ours = case.build(OURS)
        self.ours.load_state_dict(self.theirs.state_dict())

    def peer(self, outputs: Iterable[str] | None = None) -> dict[str, Tensor]:
        case = replace(self.case, layout="plain")
        with torch_threads(1):
            return run(self.theirs, case, self.data, None, outputs, unused_is_zero=True)

    def oracle(self, outputs: Iterable[str] | None = None) -> dict[str, Any]:
        if self.case.dtype == torch.float64:
            return run_extended(self.theirs, self.case, self.data, outputs)
        with torch_threads(1):
            return run(*self.wide(), None, outputs, unused_is_zero=True)

    def wide(self) -> tuple[nn.Module, Case, Data]:
        """torch's module, the case and the data in float64 (complex128), plainly laid out."""
        wide = WIDER.get(self.case.dtype, torch.float64)
        case = replace(self.case, layout="plain", dtype=wide)
        module = case.build(TORCH)
        module.load_state_dict(self.theirs.state_dict())
        return module, case, self.data.to(wide)

    def run(self, wrt: Iterable[str] | None = None,
            outputs: Iterable[str] | None = None) -> dict[str, Tensor]:
        return run(self.ours, self.case, self.data, wrt, outputs, self.call)

    def hold(self, ours: dict[str, Tensor], peer: dict[str, Tensor], oracle: dict[str, Any],
             label: str = "") -> None:
        hold(ours, peer, oracle, self.case.dtype, self.case.gates, label)


def check(case: Case, edit: Callable[[nn.Module, Data], None] | None = None,
          wrt: Iterable[str] | None = None, outputs: Iterable[str] | None = None,
          call: Forward | None = None, threads: Iterable[int] = THREADS) -> None:
    """Holds ours to the tolerance rule: output, states, every gradient, at each thread count.

    The rule compares two maxima, which chance decides where a gate block has few elements: one of
    torch's may happen to be exact. Narrow cases are therefore drawn several times, and the rule is
    held over all draws together.
    """
    draws = max(1, 64 // max(1, case.size[-1]))
    trials = [Trial(replace(case, seed=case.seed + 1000 * k), edit, call) for k in range(draws)]
    peer = together([trial.peer(outputs) for trial in trials])
    oracle = together([trial.oracle(outputs) for trial in trials])
    for count in threads:
        with torch_threads(count):
            ours = together([trial.run(wrt, outputs) for trial in trials])
        hold(ours, peer, oracle, case.dtype, case.gates, f"at {count} threads")


def together(results: list[dict[str, Any]]) -> dict[str, Any]:
    """Results of several draws, along one more dimension at the end of each tensor."""
    if len(results) == 1:
        return results[0]
    stack = {True: torch.stack, False: np.stack}
    return {
        n: stack[isinstance(v, Tensor)]([r[n] for r in results], -1) for n, v in results[0].items()
    }
