"""lengths on a GPU, which nobody there reads on the host: persistent kernels, emulated, walk each
row to its own end. The same rows packed, whose kernels other tests hold to oracles, say what comes.
"""

import emulated
import pytest
import torch
from cuda_cases import TF32, precision
from helpers import assert_like, hidden, tensors
from step_reference import by_steps
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import gatedrnn
from gatedrnn import ops, ragged, raw

T, B, IN, H = 6, 5, 3, 9
LENGTHS = torch.tensor([4, 6, 1, 3, 6])
OPTIONS = [{}, {"bidirectional": True, "num_layers": 2, "batch_first": True}]
every_cell = pytest.mark.parametrize("cell", [torch.nn.GRU, torch.nn.LSTM])
every_option = pytest.mark.parametrize("options", OPTIONS, ids=["plain", "stacked"])


@pytest.fixture(autouse=True)
def cuda(monkeypatch):
    """Lengths as those on a GPU; the persistent kernels, however short the sequences."""
    monkeypatch.setenv("GATEDRNN_CUDA_KERNEL", "persistent")
    monkeypatch.setattr(ragged, "_is_readable", lambda values: False)
    with precision(TF32), emulated.cuda():
        yield


@pytest.fixture
def calls(monkeypatch):
    """Whether each layer that ran was given lengths."""
    seen, run = [], raw.Call.__new__

    def watched(cls, *args, **kwargs):
        call = run(cls, *args, **kwargs)
        seen.append(call.lengths is not None)
        return call

    monkeypatch.setattr(raw.Call, "__new__", watched)
    return seen


def module(cell, dtype=torch.float32, **options):
    torch.manual_seed(1)
    return getattr(gatedrnn, cell.__name__)(IN, H, dtype=dtype, **options)


def given(m, dtype=torch.float32):
    torch.manual_seed(2)
    x = torch.randn((B, T, IN) if m.batch_first else (T, B, IN), dtype=dtype)
    return x.requires_grad_(), hidden(m, B, dtype=dtype, requires_grad=True)


def packed(m, x, hx, lengths=LENGTHS, **kwargs):
    """The same by way of a PackedSequence."""
    sequence = pack_padded_sequence(x, lengths, m.batch_first, enforce_sorted=False)
    y, hn, *states = m(sequence, hx, **kwargs)

    def padded(value):
        return pad_packed_sequence(value, m.batch_first, total_length=T)[0]

    return padded(y), hn, *(tuple(tuple(map(padded, s)) for s in kinds) for kinds in states)


def gradients(result, leaves, create_graph=False):
    generator = torch.Generator().manual_seed(3)
    outputs = list(tensors(result))
    cotangents = [torch.randn(t.shape, generator=generator).to(t.dtype) for t in outputs]
    return torch.autograd.grad(outputs, leaves, cotangents, create_graph=create_graph)


@every_cell
@every_option
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("recompute", [False, True], ids=["", "recompute"])
def test_like_packed(cell, options, dtype, recompute, calls):
    m = module(cell, dtype, recompute=recompute, **options)
    x, hx = given(m, dtype)
    leaves = [x, *tensors(hx), *m.parameters()]
    result = m(x, hx, lengths=LENGTHS)
    assert all(calls) and len(calls) == m.num_layers
    expected = packed(m, x, hx)
    for ours, theirs in zip(tensors(result), tensors(expected), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
    tolerance = {"rtol": 1e-2, "atol": 2e-2} if dtype.itemsize == 2 else {"rtol": 1e-4,
                                                                         "atol": 1e-5}
    for ours, theirs in zip(gradients(result, leaves), gradients(expected, leaves), strict=True):
        torch.testing.assert_close(ours, theirs, **tolerance)


@every_option
@pytest.mark.parametrize("recompute", [False, True], ids=["", "recompute"])
@pytest.mark.parametrize("ends", ["padded", "packed", "whole"])
def test_cell_states_have_gradients_of_their_own(options, recompute, ends, monkeypatch):
    """By kernels alone."""
    monkeypatch.setattr(ops, "_reference", lambda *_: pytest.fail("no kernel ran"))
    m = module(torch.nn.LSTM, recompute=recompute, **options)
    x, hx = given(m)
    leaves, lengths = [x, *tensors(hx), *m.parameters()], None if ends == "whole" else LENGTHS
    expected = by_steps(m, x, hx, lengths)
    if ends == "packed":
        result = packed(m, x, hx, output_hidden_states=True)
    else:
        result = m(x, hx, lengths=lengths, output_hidden_states=True)
    assert_like(result, tuple(expected), strides=False, rtol=2e-3, atol=2e-3)
    for ours, ref in zip(gradients(result, leaves), gradients(expected, leaves), strict=True):
        torch.testing.assert_close(ours, ref, rtol=1e-2, atol=1e-2)


@every_cell
def test_padding_is_never_read(cell):
    """Neither the input's nor that of any gradient."""
    m = module(cell)
    x, hx = given(m)
    outside = torch.arange(T).unsqueeze(1) >= LENGTHS
    spoilt = x.detach().clone()
    spoilt[outside] = torch.nan
    spoilt.requires_grad_()
    found = []
    for start, bad in (x, 0.0), (spoilt, torch.nan):
        leaves = [start, *tensors(hx), *m.parameters()]
        y, hn = m(start, hx, lengths=LENGTHS)
        assert not y[outside].any()
        dy = torch.ones_like(y)
        dy[outside] = bad
        found.append([y, *torch.autograd.grad([y, *tensors(hn)], leaves, [
            dy, *map(torch.ones_like, tensors(hn))])])
    for clean, ours in zip(*found, strict=True):
        torch.testing.assert_close(ours, clean, rtol=0, atol=0)


@every_cell
def test_second_and_batched_derivatives(cell):
    """By the reference, and by kernels of a larger batch."""
    m = module(cell, bidirectional=True)
    x, hx = given(m)
    leaves = [x, *tensors(hx), *m.parameters()]
    results = [m(x, hx, lengths=LENGTHS), packed(m, x, hx)]
    found = []
    for result in results:
        first = gradients(result, leaves, create_graph=True)
        second = torch.autograd.grad(sum(g.square().sum() for g in first), leaves)
        y = result[0]
        cotangents = torch.randn((3, *y.shape), generator=torch.Generator().manual_seed(4))
        batched = torch.autograd.grad(m(x, hx, lengths=LENGTHS)[0] if result is results[0]
                                      else packed(m, x, hx)[0], leaves, cotangents,
                                      is_grads_batched=True)
        found.append([*first, *second, *batched])
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(("dtype", "kwargs"), [
    (torch.float64, {}), (torch.float32, {"proj_size": 4}),
], ids=["float64", "projected"])
def test_where_no_kernel_takes_them_rows_are_masked(dtype, kwargs, calls):
    m = module(torch.nn.LSTM, dtype, **kwargs)
    x, hx = given(m, dtype)
    result = m(x, hx, lengths=LENGTHS)
    assert calls and not any(calls)
    assert_like(result, packed(m, x, hx)[:2], strides=False, rtol=1e-3, atol=1e-3)


@every_cell
def test_transforms_mask(cell, calls):
    m = module(cell)
    x, hx = given(m)
    result = m(x, hx, lengths=LENGTHS)
    mapped = torch.func.vmap(lambda x: m(x, hx, lengths=LENGTHS)[0])(torch.stack((x, 2 * x)))
    assert any(calls) and not all(calls)
    torch.testing.assert_close(mapped[0], result[0], rtol=2e-3, atol=2e-3)
