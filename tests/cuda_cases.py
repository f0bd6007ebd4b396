"""What the tests on a GPU share: the cases of equivalence.py on CUDA tensors in every precision.

Torch's own result is cuDNN's in the same precision; the oracle stays on the CPU, in float64 or in
the extended precision of extended.py.
"""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from equivalence import Case, Data, Forward, Trial, run, together
from helpers import LAYER_PAIRS, leaf_copy, tensors
from tolerance import hold
from torch import Tensor, nn

DEVICE = "cuda"
DRAWS_BELOW = 32  # hidden sizes under it are drawn several times, as equivalence.check explains
WORK = 3000  # but no more often than makes so many rows in all
IN, H = 5, 33

needs_gpu = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU"),
    # torch warns of its own handles and workspaces where a machine is new; that is not ours.
    pytest.mark.filterwarnings("default::UserWarning"),
]
layer_pairs = pytest.mark.parametrize(("theirs", "ours"), LAYER_PAIRS,
                                      ids=[p[0].__name__ for p in LAYER_PAIRS])


@dataclass(frozen=True)
class Mode:
    """A dtype, and for float32 whether products may be rounded to TF32."""

    name: str
    dtype: torch.dtype
    tf32: bool = False

    def __str__(self) -> str:
        return self.name

    @property
    def judged_as(self) -> torch.dtype:
        """The dtype whose eps the tolerance rule takes: TF32 has float16's mantissa."""
        return torch.float16 if self.tf32 else self.dtype


TF32 = Mode("tf32", torch.float32, tf32=True)
FLOAT32 = Mode("float32", torch.float32)
FLOAT64 = Mode("float64", torch.float64)
FLOAT16 = Mode("float16", torch.float16)
BFLOAT16 = Mode("bfloat16", torch.bfloat16)
MODES = (TF32, FLOAT32, FLOAT64, FLOAT16, BFLOAT16)


@contextmanager
def precision(mode: Mode) -> Iterator[None]:
    rnn, matmul = torch.backends.cudnn.rnn, torch.backends.cuda.matmul  # the cells' are matmuls
    before = rnn.fp32_precision, matmul.fp32_precision
    rnn.fp32_precision = matmul.fp32_precision = "tf32" if mode.tf32 else "ieee"
    try:
        yield
    finally:
        rnn.fp32_precision, matmul.fp32_precision = before


def on_device(data: Data) -> Data:
    """The lengths stay, as pack_padded_sequence wants them."""
    inputs, cotangents = (
        {n: v.to(DEVICE) for n, v in part.items()} for part in (data.inputs, data.cotangents)
    )
    return Data(inputs, cotangents, data.lengths)


def off_device(results: dict[str, Tensor]) -> dict[str, Tensor]:
    return {n: v.cpu() for n, v in results.items()}


class CudaTrial(Trial):
    """A trial whose modules run on the GPU, and whose oracle does not."""

    def __init__(self, case: Case, mode: Mode, edit: Any = None,
                 call: Forward | None = None) -> None:
        super().__init__(replace(case, dtype=mode.dtype), edit, call)
        self.mode = mode
        self.ours = self.ours.to(DEVICE)

    def peer(self, outputs: Any = None) -> dict[str, Tensor]:
        module = copy.deepcopy(self.theirs).to(DEVICE)
        case = replace(self.case, layout="plain")
        with precision(self.mode):
            results = run(module, case, on_device(self.data), None, outputs, self.call,
                          unused_is_zero=True)
        return off_device(results)

    def run(self, wrt: Any = None, outputs: Any = None) -> dict[str, Tensor]:
        with precision(self.mode):
            results = run(self.ours, self.case, on_device(self.data), wrt, outputs, self.call)
        return off_device(results)


def check(case: Case, mode: Mode, edit: Callable[[nn.Module, Data], None] | None = None,
          call: Forward | None = None) -> None:
    """Holds ours to the tolerance rule: output, states and every gradient."""
    rows = case.size[0] * (1 if case.is_cell else case.size[1])
    hidden = case.size[-1]
    draws = 1 if hidden >= DRAWS_BELOW else max(1, min(64 // hidden, WORK // max(1, rows)))
    trials = [
        CudaTrial(replace(case, seed=case.seed + 1000 * k), mode, edit, call) for k in range(draws)
    ]
    peer = together([trial.peer() for trial in trials])
    oracle = together([trial.oracle() for trial in trials])
    ours = together([trial.run() for trial in trials])
    hold(ours, peer, oracle, mode.judged_as, case.gates, f"in {mode}")


def shifted(value: Tensor) -> Tensor:
    """The same numbers, contiguous, one element behind where an allocation begins."""
    base = value.new_full((value.numel() + 1,), float("nan"))
    return base[1:].view(value.shape).copy_(value.detach())


def module_and_input(ours: Any, steps: int = 7, batch: int = 17,
                     **options: Any) -> tuple[nn.Module, Tensor]:
    module = ours(IN, H, device=DEVICE, **options)
    return module, torch.randn(steps, batch, IN, device=DEVICE)


def gradients_of(module: nn.Module, x: Tensor) -> list[Tensor]:
    """Results and gradients of one pass, in one list."""
    x = leaf_copy(x)
    result = list(tensors(module(x)))
    return [*result, *torch.autograd.grad([t.square().sum() for t in result],
                                          [x, *module.parameters()])]
