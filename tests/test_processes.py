"""Memory, sizes, threads and processes: what goes on around a call."""

import mmap
import multiprocessing
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from helpers import (
    assert_grads_like,
    assert_like,
    backward,
    error_of,
    hidden,
    is_lstm,
    layers,
    pair,
    run_python,
    tensors,
)

import gatedrnn


def huge(shape, last):
    """Zeros of which only `last`, at the end of the storage, is backed by memory of its own."""
    elements = 1
    for n in shape:
        elements *= n
    no_reserve = 0x4000  # Linux's MAP_NORESERVE, which Python 3.10's mmap does not name
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | no_reserve
    storage = mmap.mmap(-1, 4 * elements, flags=flags)
    whole = torch.frombuffer(storage, dtype=torch.float32)
    whole[-last.numel() :] = last.flatten()
    return whole


@layers
@pytest.mark.parametrize("far", ["time", "batch", "features"])
def test_input_whose_offsets_pass_31_bits(theirs, ours, far):
    """A 32-bit index would wrap and read elsewhere, or crash."""
    a, b = pair(theirs, ours, 2, 4)
    whole = huge((3 << 30,), torch.zeros(1))
    strides = {"time": (1 << 30, 2, 1), "batch": (2, 1 << 30, 1), "features": (3, 1, 5 << 29)}[far]
    x = whole.as_strided((3, 3, 2) if far == "batch" else (3, 2, 2), strides)
    values = torch.randn(x.shape)
    x.copy_(values)
    results = a(values), b(x)
    assert_like(results[1], results[0])
    for result in results:
        backward(result)
    assert_grads_like(b, a)


@layers
def test_weights_and_states_whose_offsets_pass_31_bits(theirs, ours):
    a, b = pair(theirs, ours, 2, 4)
    x, hx = torch.randn(3, 2, 2), hidden(a, 2)
    rows = b.weight_hh_l0.size(0)
    whole = huge((rows << 28,), torch.zeros(1))
    weight = whole.as_strided((rows, 4), (1 << 28, 1))
    weight.copy_(b.weight_hh_l0.detach())
    b.weight_hh_l0 = torch.nn.Parameter(weight)
    far = [huge((3 << 30,), torch.zeros(1)).as_strided((1, 2, 4), (1, 5 << 29, 1)) for _ in "hc"]
    for target, value in zip(far, tensors(hx), strict=False):
        target.copy_(value)
    results = a(x, hx), b(x, tuple(far) if is_lstm(b) else far[0])
    assert_like(results[1], results[0])
    for result in results:
        backward(result)
    assert_grads_like(b, a)


def test_more_than_two_to_the_31_inputs():
    """(2, 2^18, 4096) elements, expanded from one row: little memory, if nothing is copied out."""
    m = gatedrnn.GRU(1 << 12, 1)
    x = torch.randn(2, 1, 1 << 12) * 0.1
    output, _ = m(x.expand(2, 1 << 18, 1 << 12))
    expected, _ = m(x)
    assert output.shape == (2, 1 << 18, 1)
    torch.testing.assert_close(output, expected.expand_as(output), rtol=1e-5, atol=2e-6)
    weights = list(m.parameters())
    found = torch.autograd.grad(output.mean(), weights)
    for g, e in zip(found, torch.autograd.grad(expected.mean(), weights), strict=True):
        torch.testing.assert_close(g, e, rtol=1e-4, atol=1e-5)


@layers
@pytest.mark.parametrize("recompute", [False, True], ids=["", "recompute"])
def test_a_million_steps(theirs, ours, recompute):
    """Held against the same in pieces, each of which the numeric tests would catch."""
    T = 1_000_000
    m = ours(2, 3, recompute=recompute, dtype=torch.float64)
    x = torch.randn(T, 1, 2, dtype=torch.float64, requires_grad=True)
    outputs, state = [], None
    for chunk in x.split(T // 7):
        y, state = m(chunk, state)
        outputs.append(y)
    leaves = [x, *m.parameters()]
    found = []
    for result in (m(x), (torch.cat(outputs), state)):
        output, *last = tensors(result)
        loss = output[:: T // 100].sum() + output.mean() + sum(s.sum() for s in last)
        found.append([output.detach(), *torch.autograd.grad(loss, leaves)])
    for p, q in zip(*found, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-9, atol=1e-12)




@layers
@pytest.mark.parametrize("grad", [True, False], ids=["grad", "no_grad"])
def test_out_of_memory_is_torchs_own_error_and_the_next_call_works(theirs, ours, grad):
    a, b = pair(theirs, ours, 3, 4, num_layers=2)
    x = torch.randn(5, 2, 3)
    expected = a(x)

    def too_much(m):
        h = torch.zeros(2, 1, 4).expand(2, 1 << 46, 4)
        with torch.set_grad_enabled(grad):
            m(torch.zeros(1, 1, 3).expand(1, 1 << 46, 3), (h, h) if is_lstm(m) else h)

    errors = [error_of(lambda m=m: too_much(m)) for m in (a, b)]
    assert type(errors[1]) is type(errors[0])
    for error in errors:
        assert "can't allocate memory" in str(error)
    assert_like(b(x), expected)


def test_out_of_memory_leaks_nothing():
    """Calls that fail half-way, under a limit on the address space."""
    run_python(
        """
import resource
import torch
import gatedrnn

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()

def mapped():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[0]) * resource.getpagesize()

torch.set_num_threads(1)
for module in (gatedrnn.GRU(16, 256), gatedrnn.LSTM(16, 256)):
    small, large = torch.randn(4, 2, 16), torch.randn(100, 1024, 16)
    expected = module(small)[0].detach()
    before = resident()
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    resource.setrlimit(resource.RLIMIT_AS, (mapped() + (160 << 20), hard))
    failures = 0
    for _ in range(6):
        try:
            module(large)
        except RuntimeError as error:
            assert "allocate" in str(error), error
            failures += 1
    resource.setrlimit(resource.RLIMIT_AS, (hard, hard))
    assert failures == 6, failures
    assert resident() - before < 120 << 20, (resident() - before) >> 20
    assert torch.equal(module(small)[0], expected)
"""
    )


@layers
def test_python_threads_share_a_module(theirs, ours):
    m = ours(16, 33, num_layers=2, bidirectional=True)
    samples = [torch.randn(20, 3, 16) for _ in range(8)]

    def step(x):
        y, _ = m(x)
        return y.detach(), torch.autograd.grad(y.square().sum(), list(m.parameters()))

    expected = [step(x) for x in samples]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(3):
            results = list(pool.map(step, samples))
            for (y, grads), (y_alone, grads_alone) in zip(results, expected, strict=True):
                assert torch.equal(y, y_alone)
                assert all(torch.equal(g, h) for g, h in zip(grads, grads_alone, strict=True))


@layers
def test_backward_in_another_thread(theirs, ours):
    a, b = pair(theirs, ours, 3, 5)
    x = torch.randn(4, 2, 3)
    with ThreadPoolExecutor(1) as pool:
        for m in (a, b):
            pool.submit(backward, m(x)).result()
    assert_grads_like(b, a)


def test_a_forked_child_computes_as_its_parent():
    """The child with one thread, as in a DataLoader's worker: OpenMP's do not survive a fork."""
    run_python(
        """
import os, signal
import torch
import gatedrnn

torch.set_num_threads(2)
modules = [gatedrnn.GRU(32, 128), gatedrnn.LSTM(32, 128)]
x = torch.randn(20, 32, 32)

def steps():
    results = []
    for m in modules:
        m.zero_grad()
        y, _ = m(x)
        y[-1].sum().backward()
        results += [y.detach(), *(p.grad.clone() for p in m.parameters())]
    return results

expected = steps()
child = os.fork()
if child == 0:
    signal.alarm(60)  # a hang ends the child, not the patience of the test
    torch.set_num_threads(1)
    same = all(torch.allclose(a, b, rtol=1e-5, atol=1e-5) for a, b in zip(steps(), expected))
    os._exit(0 if same else 3)
assert os.waitpid(child, 0)[1] == 0
assert all(torch.equal(a, b) for a, b in zip(steps(), expected))
"""
    )


def _child(modules, x, results):
    for m in modules:
        y, _ = m(x)
        y.sum().backward()
        results.put([y.detach().tolist(), m.weight_hh_l0.grad.tolist()])


def test_a_spawned_child_takes_modules_as_arguments():
    modules = [gatedrnn.GRU(3, 4).share_memory(), gatedrnn.LSTM(3, 4).share_memory()]
    x = torch.randn(2, 2, 3)
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    process = context.Process(target=_child, args=(modules, x, results))
    process.start()
    for m in modules:
        y, grad = results.get(timeout=120)
        expected, _ = m(x)
        expected.sum().backward()
        torch.testing.assert_close(torch.tensor(y), expected.detach(), rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(torch.tensor(grad), m.weight_hh_l0.grad, rtol=1e-5, atol=1e-6)
    process.join()
    assert process.exitcode == 0


class Encoded(torch.utils.data.Dataset):
    """Samples that a module has encoded, in the worker."""

    def __init__(self, module):
        self.module, self.x = module, torch.randn(6, 4, 3)

    def __len__(self):
        return len(self.x)

    def __getitem__(self, k):
        with torch.no_grad():
            return self.module(self.x[k])[0]


@layers
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_workers_of_a_data_loader(theirs, ours):
    data = Encoded(ours(3, 4))
    loader = torch.utils.data.DataLoader(data, batch_size=2, num_workers=2)
    expected = torch.stack([data[k] for k in range(len(data))])
    assert_like(torch.cat(list(loader)), expected)
