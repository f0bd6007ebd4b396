"""The suite of ragged batches: ours with lengths beside torch.nn with packing and unpacking.

Both take the same padded batch, and both end with a padded one. Operations are counted for the
steps that there are. On a GPU both take the same packed batch.
"""

from collections.abc import Iterator
from functools import partial

from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

import gatedrnn

from .cases import Ragged
from .check import WIDE
from .limits import flops
from .modules import PASSES, Run, build, checked, flat, kernel_name
from .report import ModuleRow
from .timing import Budget, Contestant, in_turn, paired_ratio, spread


class RaggedRun(Run):
    """A module on a padded batch whose sequences have lengths."""

    def __init__(self, module: nn.Module, inputs: list[Tensor], cotangents: list[Tensor],
                 dtype: str, lengths: list[int]) -> None:
        super().__init__(module, inputs, cotangents, dtype)
        self.lengths = lengths

    def call(self) -> tuple[Tensor, ...]:
        (x,) = self.inputs
        if isinstance(self.module, (gatedrnn.GRU, gatedrnn.LSTM)):
            return flat(self.module(x, lengths=self.lengths))
        packed = pack_padded_sequence(x, self.lengths, batch_first=True, enforce_sorted=False)
        output, finals = self.module(packed)
        return flat((pad_packed_sequence(output, batch_first=True)[0], finals))


class PackedRun(Run):
    """A module on packed sequences, packed beforehand: of all tensors the rows that there are."""

    def __init__(self, module: nn.Module, inputs: list[Tensor], cotangents: list[Tensor],
                 dtype: str, lengths: list[int]) -> None:
        x, dy = (pack_padded_sequence(t, lengths, batch_first=True, enforce_sorted=False)
                 for t in (inputs[0], cotangents[0]))
        super().__init__(module, [x.data], [dy.data, *cotangents[1:]], dtype)
        self._order = x[1:]

    @property
    def argument(self) -> PackedSequence:
        return PackedSequence(self.inputs[0], *self._order)

    def call(self) -> tuple[Tensor, ...]:
        output, finals = self.module(self.argument)
        return flat((output.data, finals))


def rows(case: Ragged, dtype: str, isa: str, budget: Budget) -> Iterator[ModuleRow]:
    """Checks and times both passes of a case."""
    make = build(case, dtype, kind=partial(RaggedRun, lengths=case.lengths))
    verdicts, _ = checked(make, dtype)
    runs = {name: make[name]() for name in ("torch", "ours")}
    for pass_, products in PASSES.items():
        row = ModuleRow("ragged", str(case), case.cell, case.shape, pass_, dtype, isa, checked=WIDE)
        row.judge(verdicts[pass_])
        if not row.failed:
            training = pass_ == "training"
            times = in_turn({
                name: Contestant(run.training, run.reset) if training else Contestant(run.inference)
                for name, run in runs.items()
            }, budget)
            row.kernel = kernel_name(case, dtype)
            operations = round(case.share * flops(products(case)))
            row.set_ours(spread(times["ours"]), len(times["ours"]), operations, None)
            row.set_torch(spread(times["torch"]), paired_ratio(times["torch"], times["ours"]))
        yield row
