"""Steps of a stack of layers as they come: gatedrnn.Stream beside torch.nn's module, called with a
sequence of one step and the state of the last one."""

import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

import gatedrnn

from .cases import Frame
from .check import WIDE, judge, peer_dtype
from .limits import Limits, flops, forward_products
from .modules import SEED, Results, flat, torch_dtype
from .report import ModuleRow
from .timing import Budget, Contestant, in_turn, paired_ratio, spread

CHECKED = 4  # steps


def results(outputs: list[Tensor], state: Any) -> Results:
    found = [torch.stack(outputs), *flat(state)]
    return {f"output {k}": t.double() for k, t in enumerate(found)}


def steps_of(module: nn.Module, frames: Tensor, dtype: str) -> Results:
    own = copy.deepcopy(module).to(torch_dtype(dtype))
    outputs, state = [], None
    for frame in frames.to(torch_dtype(dtype)):
        y, state = own(frame.unsqueeze(0), state)
        outputs.append(y.squeeze(0))
    return results(outputs, state)


@torch.no_grad()
def rows(case: Frame, dtype: str, isa: str, limits: Limits | None,
         budget: Budget) -> Iterator[ModuleRow]:
    """Checks some steps and times one."""
    torch.manual_seed(SEED)
    own = torch_dtype(dtype)
    theirs = getattr(nn, case.cell)(case.I, case.H, case.L).to(own)
    ours = getattr(gatedrnn, case.cell)(case.I, case.H, case.L).to(own)
    ours.load_state_dict(theirs.state_dict())
    frames = torch.randn(CHECKED, case.B, case.I).to(own)
    stream = gatedrnn.Stream(ours, case.B)
    found = results([stream.step(frame) for frame in frames], stream.hx)
    row = ModuleRow("cells", str(case), case.cell, case.shape, "inference", dtype, isa,
                    checked=WIDE)
    row.judge(judge(found, steps_of(theirs, frames, peer_dtype(dtype)),
                    steps_of(theirs, frames, WIDE), dtype))
    if not row.failed:
        x = frames[:1]
        state = theirs(x)[1]
        times = in_turn({"torch": Contestant(lambda: theirs(x, state)),
                         "ours": Contestant(lambda: stream.step(x[0]))}, budget)
        products = forward_products(case)
        row.kernel = f"{isa} stream"
        row.set_ours(spread(times["ours"]), len(times["ours"]), flops(products),
                     limits.bound(products) if limits else None)
        row.set_torch(spread(times["torch"]), paired_ratio(times["torch"], times["ours"]))
    yield row
