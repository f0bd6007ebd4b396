"""The suites of modules: gatedrnn's layers and cells beside torch.nn's.

Both are built with the same weights and given the same inputs and cotangents. A pass is checked,
then timed, in exactly the form in which it was checked.
"""

import copy
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

import gatedrnn

from . import cpu_peers
from .cases import GATES, Layer, Step
from .check import WIDE, Verdict, judge, near, peer_dtype
from .limits import Limits, flops, forward_products, training_products
from .report import ModuleRow
from .timing import Budget, Contestant, after_pause, in_turn, paired_ratio, spread

SEED = 2026
Results = dict[str, Tensor]


def torch_dtype(dtype: str) -> torch.dtype:
    """That of the tensors: tf32 is a way to multiply those of float32."""
    return torch.float32 if dtype == "tf32" else getattr(torch, dtype)


class Run:
    """A module with its inputs and cotangents, ready for either pass."""

    def __init__(self, module: nn.Module, inputs: list[Tensor], cotangents: list[Tensor],
                 dtype: str) -> None:
        to = torch_dtype(dtype)
        self.module = module.to(to)
        # The clones keep runs of the same dtype from sharing one leaf, and so its gradient.
        self.inputs = [t.to(to).clone().requires_grad_() for t in inputs]
        self.cotangents = [t.to(to) for t in cotangents]
        self._leaves = [*self.inputs, *self.module.parameters()]

    @property
    def argument(self) -> Tensor | PackedSequence:
        """What the module is called with."""
        return self.inputs[0]

    def call(self) -> tuple[Tensor, ...]:
        _, *states = self.inputs
        hx = tuple(states) if len(states) == 2 else states[0] if states else None
        return flat(self.module(self.argument, hx))

    def inference(self) -> tuple[Tensor, ...]:
        with torch.no_grad():
            return self.call()

    def training(self) -> tuple[Tensor, ...]:
        outputs = self.call()
        torch.autograd.backward(outputs, self.cotangents)
        return outputs

    def reset(self) -> None:
        for leaf in self._leaves:
            leaf.grad = None

    def inference_results(self) -> Results:
        return _named(self.inference(), "output")

    def training_results(self) -> Results:
        outputs = _named(self.training(), "output")
        gradients = _named([t.grad for t in self.inputs], "input gradient")
        for name, parameter in self.module.named_parameters():
            gradients[f"{name} gradient"] = _wide(parameter.grad)
        self.reset()
        return outputs | gradients


def flat(outputs: Tensor | tuple) -> tuple[Tensor, ...]:
    """y, (h, c) or whatever else a module returns, as one tuple."""
    if isinstance(outputs, Tensor):
        return (outputs,)
    return tuple(t for part in outputs for t in flat(part))


def _wide(tensor: Tensor | None) -> Tensor:
    """In float64; where there is no gradient at all, a NaN that no check lets through."""
    return torch.tensor(torch.nan) if tensor is None else tensor.detach().double()


def _named(tensors: Sequence[Tensor | None], name: str) -> Results:
    return {f"{name} {k}": _wide(t) for k, t in enumerate(tensors)}


def build(case: Layer | Step, dtype: str, device: str = "cpu",
          kind: Callable[..., Run] = Run) -> dict[str, Callable[[], Run]]:
    """How to make the four runs: torch, ours, and of torch one that gives the reference and one
    that gives torch's error."""
    generator = torch.Generator(device).manual_seed(SEED)
    own = torch_dtype(dtype)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, device=device).to(own)

    states = 2 if case.cell.startswith("LSTM") else 1
    if isinstance(case, Layer):
        arguments = case.I, case.H, case.L
        options = {"batch_first": True, **case.options}
        inputs = [random(case.B, case.T, case.I)]
        final = [(case.D * case.L, case.B, n) for n in (case.P, case.H)][:states]
        cotangents = [random(*shape) for shape in [(case.B, case.T, case.D * case.P), *final]]
    else:
        arguments, options = (case.I, case.H), {}
        inputs = [random(case.B, n) for n in [case.I] + [case.H] * states]
        cotangents = [random(case.B, case.H) for _ in range(states)]
    torch.manual_seed(SEED)
    theirs = getattr(nn, case.cell)(*arguments, **options).to(device, own)
    ours = getattr(gatedrnn, case.cell)(*arguments, **options).to(device, own)
    ours.load_state_dict(theirs.state_dict())

    def run(module: nn.Module, of: str) -> Callable[[], Run]:
        return lambda: kind(copy.deepcopy(module), inputs, cotangents, of)

    return {"torch": run(theirs, dtype), "ours": run(ours, dtype), "ref": run(theirs, WIDE),
            "peer": run(theirs, peer_dtype(dtype))}


PASSES = {"inference": forward_products, "training": training_products}


def kernel_name(case: Layer | Step, dtype: str) -> str:
    """What of ours runs a case with torch's present threads, each layer's once: avx512 rows where
    threads own sequences, avx512 units where they share the units of a sequence, avx512 alone
    where one thread does it."""
    isa = gatedrnn.raw.instruction_set()
    if isinstance(case, Step) or case.T == 1:
        return f"{isa} cell"
    names = []
    for inputs in case.inputs:
        text = torch.ops.gatedrnn.cpu_plan(case.T, case.B, inputs, case.H, case.H,
                                           GATES[case.cell], 1, getattr(torch, dtype))
        plan = dict(pair.split("=") for pair in text.split())
        shared = "rows" if plan["parts"] == "1" else "units"
        way = "alone" if plan["threads"] == "1" else shared
        names.append(f"{isa} {way}")
    return ", ".join(dict.fromkeys(names))


def results(run: Run) -> dict[str, Results]:
    return {"inference": run.inference_results(), "training": run.training_results()}


def timed(row: ModuleRow, case: Layer | Step, runs: dict[str, Run], budget: Budget,
          limits: Limits | None, peers: dict[str, cpu_peers.Peer] | None = None) -> None:
    """Times a pass of torch's, ours and the peers in turn, and fills the row."""
    contestants = {
        name: Contestant(run.inference) if row.pass_ == "inference"
        else Contestant(run.training, run.reset)
        for name, run in runs.items()
    }
    if peers:
        contestants |= {name: Contestant(peer) for name, peer in peers.items()}
        times = in_turn(contestants, budget, after_pause)
    else:
        times = in_turn(contestants, budget)
    row.kernel = kernel_name(case, row.dtype)
    products = PASSES[row.pass_](case)
    row.set_ours(spread(times["ours"]), len(times["ours"]), flops(products),
                 limits.bound(products) if limits else None)
    row.set_torch(spread(times["torch"]), paired_ratio(times["torch"], times["ours"]))
    for name in peers or ():
        setattr(row, f"{name}_ms", 1e3 * spread(times[name]).median)
        setattr(row, f"{name}_ratio", paired_ratio(times[name], times["ours"]).median)


def checked(make: dict[str, Callable[[], Run]], dtype: str) -> tuple[dict[str, Verdict], Results]:
    """What the rule says of each pass, and the reference's outputs."""
    found = {}
    for name in ("ref", "peer", "ours"):  # one after the other: large cases need the memory
        found[name] = results(make[name]())
    verdicts = {p: judge(*(found[n][p] for n in ("ours", "peer", "ref")), dtype) for p in PASSES}
    return verdicts, found["ref"]["inference"]


def ready_peers(theirs: Run, expected: Results,
                names: Sequence[str]) -> tuple[dict[str, cpu_peers.Peer], list[str]]:
    """The peers that compute what is expected, and why the others do not run."""
    found, notes = {}, []
    x = theirs.inputs[0].detach()
    for name in names:
        try:
            model = cpu_peers.onnx_model(theirs.module, *x.shape[:2])
            peer = cpu_peers.PEERS[name](model, x.numpy(), torch.get_num_threads())
            peer()
            outputs = [torch.from_numpy(array.copy()) for array in peer.outputs()]
            if failure := near(_named(outputs, "output"), expected):
                notes.append(f"{name}: {failure}")
            else:
                found[name] = peer
        except Exception as error:  # whatever a library raises for what it cannot do
            text = " ".join(str(error).split())
            notes.append(f"{name}: {type(error).__name__}: {text[:300]}")
    return found, notes


def rows(case: Layer | Step, suite: str, dtype: str, isa: str, limits: Limits | None,
         budget: Budget, peers: Sequence[str] = ()) -> Iterator[ModuleRow]:
    """Checks and times both passes of a case. `limits` is None where they cannot be measured;
    `peers` are those of cpu_peers that take part in inference."""
    make = build(case, dtype)
    verdicts, expected = checked(make, dtype)
    runs = {name: make[name]() for name in ("torch", "ours")}
    others, notes = ready_peers(runs["torch"], expected, peers)
    del expected
    for pass_ in PASSES:
        row = ModuleRow(suite, str(case), case.cell, case.shape, pass_, dtype, isa,
                        checked=WIDE)
        row.judge(verdicts[pass_])
        inference = pass_ == "inference"
        row.peers = "; ".join(notes) or None if inference else None
        if not row.failed:
            timed(row, case, runs, budget, limits, others if inference else None)
        yield row
