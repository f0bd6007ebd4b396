"""One process, or one of several that torchrun started: each takes its share of every batch."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel


@dataclass(frozen=True)
class World:
    """This process's place among all."""

    rank: int = 0
    size: int = 1

    @property
    def writes(self) -> bool:
        """One process alone prints and writes files."""
        return self.rank == 0

    def share(self, batch: Tensor) -> Tensor:
        """Every `size`-th element of a batch: a position stays with its process."""
        return batch[self.rank :: self.size]

    def wrap(self, network: nn.Module) -> nn.Module:
        return network if self.size == 1 else DistributedDataParallel(network)

    def total(self, values: Tensor) -> Tensor:
        """Sums over all processes."""
        if self.size > 1:
            distributed.all_reduce(values)
        return values


@contextmanager
def world(device: torch.device) -> Iterator[World]:
    """The processes that torchrun announces in the environment; else this one alone."""
    if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
        yield World()
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield World(distributed.get_rank(), distributed.get_world_size())
    finally:
        distributed.destroy_process_group()
