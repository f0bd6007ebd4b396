"""recompute: gates that backward makes again, from the output."""

import pytest
import torch
from helpers import (
    assert_grads_like,
    assert_like,
    backward,
    hidden,
    layer_options,
    layers,
    leaf_copy,
    pair,
    tensors,
)
from torch.nn.utils.rnn import pack_sequence

import gatedrnn


def gradients(m, x, hx):
    x, hx = leaf_copy(x), leaf_copy(hx)
    m.zero_grad()
    backward(m(x, hx))
    return [t.grad for t in [*tensors((x, hx)), *m.parameters()]]


@layer_options
@pytest.mark.parametrize("shape", [(1, 1, 3), (40, 1, 3), (7, 5, 3), (3, 300, 17), (300, 3, 70)])
def test_gradients_are_those_of_gates_that_were_kept(theirs, ours, options, shape):
    """Chunks of one step and of many, blocks of rows and rests of blocks."""
    a, b = pair(ours, ours, shape[-1], 20, **options)
    b.recompute = True
    x = torch.randn(shape).transpose(0, 1) if a.batch_first else torch.randn(shape)
    hx = hidden(a, shape[1])
    assert_like(b(x, hx), a(x, hx))
    for p, q in zip(gradients(b, x, hx), gradients(a, x, hx), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-5 * float(q.abs().max()) + 1e-6)


@layers
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_packed_and_other_dtypes(theirs, ours, dtype):
    a, b = pair(theirs, ours, 3, 20, num_layers=2, bidirectional=True, dtype=dtype)
    b.recompute = True
    p = pack_sequence([torch.randn(n, 3, dtype=dtype) for n in (4, 9, 1)], enforce_sorted=False)
    for m in (a, b):
        backward(m(p))
    assert_grads_like(b, a)


@layers
def test_a_frozen_module_and_a_frozen_input(theirs, ours):
    m = ours(3, 4, recompute=True)
    x = torch.randn(5, 2, 3, requires_grad=True)
    m(x)[0].sum().backward()
    expected = x.grad.clone()
    weight = m.weight_hh_l0.grad.clone()
    m.requires_grad_(False)
    x.grad = None
    m(x)[0].sum().backward()
    assert torch.equal(x.grad, expected)
    m.requires_grad_(True)
    m.zero_grad()
    m(x.detach())[0].sum().backward()
    assert torch.equal(m.weight_hh_l0.grad, weight)


@layers
def test_backward_twice_and_a_changed_weight(theirs, ours):
    m = ours(3, 4, recompute=True)
    y = m(torch.randn(5, 2, 3))[0].sum()
    first = torch.autograd.grad(y, list(m.parameters()), retain_graph=True)
    second = torch.autograd.grad(y, list(m.parameters()), retain_graph=True)
    assert all(torch.equal(p, q) for p, q in zip(first, second, strict=True))
    with torch.no_grad():
        m.bias_hh_l0.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.backward()


def test_it_is_an_attribute_that_torchs_modules_may_carry():
    m = gatedrnn.GRU(3, 4, recompute=True)
    assert repr(m) == "GRU(3, 4, recompute=True)"
    assert gatedrnn.convert(gatedrnn.revert(m)).recompute
    assert not gatedrnn.GRU(3, 4).recompute


@layers
@pytest.mark.parametrize("lengths", [None, [5, 2, 7]], ids=["", "lengths"])
def test_what_is_kept_for_backward(theirs, ours, lengths):
    """Of each layer the output, an LSTM's cell states, and the gates of a quarter of the rows."""
    T, B, H = 7, 3, 20
    x = torch.randn(T, B, 1)
    kept = {}
    for recompute in (False, True):
        m = ours(1, H, num_layers=2, recompute=recompute)
        storages = {}

        def note(t, storages=storages):
            storages[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
            return t

        with torch.autograd.graph.saved_tensors_hooks(note, lambda t: t):
            result = m(x, lengths=lengths)
        for p in m.parameters():
            storages.pop(p.data_ptr(), None)
        rows = sum(lengths) if lengths else T * B
        # Beside them lie the states before the first step, the input and the rows' numbers.
        kept[recompute] = sum(storages.values()) / (4 * rows * H)
        del result
    gates, states = (4, 2) if m.mode == "LSTM" else (3, 1)
    share = rows // 4 / rows
    least = 2 * (states + share * gates)
    assert least <= kept[True] < least + 1.2
    assert kept[False] - kept[True] == pytest.approx(2 * gates * (1 - share))
