"""Memory for large tensors goes from one step of training to the next, and nobody misses it."""

import resource

import pytest
import torch
from helpers import run_python

import gatedrnn

pytestmark = pytest.mark.skipif(tuple(map(int, torch.__version__.split(".")[:2])) < (2, 11),
                                reason="torch 2.10 gives no tensors on memory of ours")
LAYERS = pytest.mark.parametrize("layer", [gatedrnn.GRU, gatedrnn.LSTM])
SIZE = 64, 512, 8  # what one of 256 units keeps: 96 or 128 MiB of gates, 32 MiB of y or of c


def train(module, x):
    y, _ = module(x)
    return torch.autograd.grad(y.sum(), [x, *module.parameters()])


def fresh(call):
    """Bytes of memory that a call gets page by page."""
    call()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(3):
        call()
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
    return faults / 3 * resource.getpagesize()


@LAYERS
def test_a_step_gets_the_pages_of_the_last_one(layer):
    module, x = layer(8, 256), torch.randn(SIZE, requires_grad=True)
    # The output, its gradient, and small ones.
    assert fresh(lambda: train(module, x)) < 80 << 20


@torch.no_grad()
def test_a_workspace_gets_the_pages_of_the_last_one():
    module, x = gatedrnn.LSTM(1024, 1024), torch.randn(2, 4, 1024)  # packed weights: 64 MiB
    assert fresh(lambda: module(x)) < 8 << 20


@LAYERS
def test_what_is_in_use_is_not_given_away(layer):
    """Two graphs at a time, and gradients kept over later steps."""
    module, (a, b) = layer(64, 256), torch.randn(2, 32, 1024, 64, requires_grad=True)  # dx: 8 MiB
    wide = layer(256, 256)
    deep = torch.randn(64, 512, 256, requires_grad=True)  # dx: 32 MiB
    expected = [g.clone() for g in train(module, a)]
    kept = train(wide, deep)
    copies = [g.clone() for g in kept]
    first, _ = module(a)
    second, _ = module(b)
    train(wide, deep)
    for retain in (True, False):
        found = torch.autograd.grad(first.sum(), [a, *module.parameters()], retain_graph=retain)
        assert all(map(torch.equal, found, expected))
        train(module, b)
    second.sum().backward()
    assert all(map(torch.equal, kept, copies))


PROLOGUE = """
import resource, torch, gatedrnn
def mapped():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[0]) * resource.getpagesize() >> 20
torch.set_num_threads(1)
module = gatedrnn.GRU(8, 256)
def train(T, B):
    module(torch.zeros(T, B, 8))[0].sum().backward()
train(2, 2)
start = mapped()
"""  # MiB


def test_idle_and_used_together_are_never_more_than_was_used(monkeypatch):
    """The first step takes 160 MiB, in blocks of 120 and 40; others fit them or do not."""
    # Else libc keeps what it was given back for smaller tensors, by chance up to 20 MiB.
    monkeypatch.setenv("MALLOC_MMAP_THRESHOLD_", "1048576")
    run_python(PROLOGUE + """
for T, B in [(80, 512), (64, 512), (40, 999), (33, 1000), (80, 500), (34, 1000)]:
    train(T, B)
    assert 100 < mapped() - start < 180, (T, B, mapped() - start)
""")


def test_large_inference_lets_go_of_what_is_idle():
    run_python(PROLOGUE + """
train(64, 512)
assert mapped() - start > 100
with torch.no_grad():
    module(torch.zeros(4, 512, 8))
    assert mapped() - start > 100
    module(torch.zeros(64, 512, 8))
assert mapped() - start < 48, mapped() - start
""")


def test_idle_memory_is_the_systems_to_take():
    """Its pages are marked as free: LazyFree counts them."""
    run_python(PROLOGUE + """
def lazy():
    with open("/proc/self/smaps_rollup") as file:
        return sum(int(line.split()[1]) for line in file if line.startswith("LazyFree")) >> 10
assert lazy() < 8
train(64, 512)
assert lazy() > 100, lazy()
train(64, 512)
y, _ = module(torch.zeros(64, 512, 8))
assert lazy() < 40, lazy()  # written again
""")
