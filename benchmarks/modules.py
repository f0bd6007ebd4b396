"""The suites of modules: gatedrnn's layers and cells beside torch.nn's.

Both are built with the same weights and given the same inputs and cotangents. A pass is checked,
then timed, in exactly the form in which it was checked.
"""

import copy
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn

import gatedrnn

from .cases import Layer, Step
from .check import WIDE, judge, peer_dtype
from .limits import Limits, flops, forward_products, training_products
from .report import Row
from .timing import Budget, Contestant, in_turn, paired_ratio, spread

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

    def _call(self) -> tuple[Tensor, ...]:
        x, *states = self.inputs
        hx = tuple(states) if len(states) == 2 else states[0] if states else None
        return _flat(self.module(x, hx))

    def inference(self) -> tuple[Tensor, ...]:
        with torch.no_grad():
            return self._call()

    def training(self) -> tuple[Tensor, ...]:
        outputs = self._call()
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


def _flat(outputs: Tensor | tuple) -> tuple[Tensor, ...]:
    """y, (h, c) or whatever else a module returns, as one tuple."""
    if isinstance(outputs, Tensor):
        return (outputs,)
    return tuple(t for part in outputs for t in _flat(part))


def _wide(tensor: Tensor | None) -> Tensor:
    """In float64; where there is no gradient at all, a NaN that no check lets through."""
    return torch.tensor(torch.nan) if tensor is None else tensor.detach().double()


def _named(tensors: Sequence[Tensor | None], name: str) -> Results:
    return {f"{name} {k}": _wide(t) for k, t in enumerate(tensors)}


def build(case: Layer | Step, dtype: str, device: str = "cpu") -> dict[str, Callable[[], Run]]:
    """How to make the four runs: torch, ours, and of torch one that gives the reference and one
    that gives torch's error."""
    generator = torch.Generator(device).manual_seed(SEED)
    own = torch_dtype(dtype)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, device=device).to(own)

    states = 2 if case.cell.startswith("LSTM") else 1
    if isinstance(case, Layer):
        arguments, options = (case.I, case.H, case.L), {"batch_first": True}
        inputs = [random(case.B, case.T, case.I)]
        final = [(case.L, case.B, case.H)] * states
        cotangents = [random(*shape) for shape in [(case.B, case.T, case.H), *final]]
    else:
        arguments, options = (case.I, case.H), {}
        inputs = [random(case.B, n) for n in [case.I] + [case.H] * states]
        cotangents = [random(case.B, case.H) for _ in range(states)]
    torch.manual_seed(SEED)
    theirs = getattr(nn, case.cell)(*arguments, **options).to(device, own)
    ours = getattr(gatedrnn, case.cell)(*arguments, **options).to(device, own)
    ours.load_state_dict(theirs.state_dict())

    def run(module: nn.Module, of: str) -> Callable[[], Run]:
        return lambda: Run(copy.deepcopy(module), inputs, cotangents, of)

    return {"torch": run(theirs, dtype), "ours": run(ours, dtype), "ref": run(theirs, WIDE),
            "peer": run(theirs, peer_dtype(dtype))}


PASSES = {"inference": forward_products, "training": training_products}


def rows(case: Layer | Step, suite: str, dtype: str, isa: str, limits: Limits | None,
         budget: Budget) -> Iterator[Row]:
    """Checks and times both passes of a case. `limits` is None where they cannot be measured."""
    make = build(case, dtype)
    found = {}
    for name in ("ref", "peer", "ours"):  # one after the other: large cases need the memory
        run = make[name]()
        found[name] = {"inference": run.inference_results(), "training": run.training_results()}
    verdicts = {p: judge(*(found[n][p] for n in ("ours", "peer", "ref")), dtype) for p in PASSES}
    del found, run
    runs = {name: make[name]() for name in ("torch", "ours")}
    for pass_, products_of in PASSES.items():
        row = Row(suite, str(case), case.cell, case.shape, pass_, dtype, isa)
        row.judge(verdicts[pass_])
        if not row.failed:
            contestants = {
                name: Contestant(run.inference) if pass_ == "inference"
                else Contestant(run.training, run.reset)
                for name, run in runs.items()
            }
            times = in_turn(contestants, budget)
            products = products_of(case)
            row.set_ours(spread(times["ours"]), len(times["ours"]), flops(products),
                         limits.bound(products) if limits else None)
            row.set_torch(spread(times["torch"]), paired_ratio(times["torch"], times["ours"]))
        yield row
