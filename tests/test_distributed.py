"""Two processes on gloo: DistributedDataParallel and FSDP2 train as one process does alone."""

import os

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from helpers import tensors
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

import gatedrnn

B, IN, H, STEPS = 4, 3, 8, 3


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.gru = gatedrnn.GRU(IN, H, 2, batch_first=True)
        self.lstm = gatedrnn.LSTM(H, H, batch_first=True, bidirectional=True)
        self.cell, self.last = gatedrnn.LSTMCell(2 * H, H), gatedrnn.GRUCell(H, H)

    def forward(self, x):
        y = self.lstm(self.gru(x)[0])[0]
        return self.last(next(tensors(self.cell(y[:, -1]))))


def data():
    return torch.randn(STEPS, B, 5, IN, generator=torch.Generator().manual_seed(1))


def train(model, batches):
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for x in batches:
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()


def wrapped(kind, model):
    if kind == "ddp":
        return DistributedDataParallel(model)
    mesh = init_device_mesh("cpu", (2,))
    for layer in model.children():
        fully_shard(layer, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def work(rank, path):
    """One of the two processes: every second sequence of each batch."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{path}/meeting", rank=rank, world_size=2)
    for kind in ("ddp", "fsdp"):
        torch.manual_seed(0)
        model = Model()
        train(wrapped(kind, model), data()[:, rank::2])
        state = model.state_dict()
        if kind == "fsdp":
            state = {n: p.full_tensor() for n, p in state.items()}
        if rank == 0:
            torch.save(state, f"{path}/{kind}.pt")
    dist.destroy_process_group()
    os._exit(0)  # an exit in order aborts now and then: threads of gloo outlive their group


def test_two_processes_train_as_one(tmp_path):
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(os.environ, "OMP_NUM_THREADS", "1")
        mp.spawn(work, (str(tmp_path),), nprocs=2)
    torch.manual_seed(0)
    alone = Model()
    train(alone, data())
    for kind in ("ddp", "fsdp"):
        state = torch.load(tmp_path / f"{kind}.pt")
        assert state.keys() == alone.state_dict().keys()
        for name, p in alone.state_dict().items():
            torch.testing.assert_close(
                state[name], p, rtol=1e-4, atol=1e-5, msg=lambda m, n=name, k=kind: f"{k} {n}: {m}"
            )
