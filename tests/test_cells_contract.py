"""GRUCell and LSTMCell beside torch.nn's: forms of call, shapes, dtypes, edges."""

import math
import warnings

import pytest
import torch
from helpers import (
    assert_grads_like,
    assert_like,
    backward,
    cells,
    hidden,
    is_lstm,
    leaf_copy,
    pair,
    tensors,
)
from torch import nn

import gatedrnn

IN, H = 3, 4


def inputs(batch, **kwargs):
    return torch.randn(IN, **kwargs) if batch is None else torch.randn(batch, IN, **kwargs)


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("batch", [None, 0, 1, 5], ids=["unbatched", "B=0", "B=1", "B=5"])
@pytest.mark.parametrize("with_hx", [False, True], ids=["", "hx"])
@pytest.mark.parametrize("grad", [False, True], ids=["no_grad", "grad"])
@cells
def test_results_and_gradients(theirs, ours, bias, batch, with_hx, grad):
    a, b = pair(theirs, ours, IN, H, bias=bias)
    x, hx = inputs(batch), hidden(a, batch) if with_hx else None
    results, leaves = [], []
    for m in (a, b):
        leaves.append((leaf_copy(x), leaf_copy(hx)))
        with torch.set_grad_enabled(grad):
            results.append(m(*leaves[-1]))
        if grad:
            backward(results[-1])
    assert_like(results[1], results[0])
    assert type(results[1]) is (tuple if is_lstm(b) else torch.Tensor)
    if grad:
        assert_grads_like(b, a)
        for p, q in zip(*map(tensors, leaves), strict=True):
            assert_like(q.grad, p.grad, strides=False)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16, torch.complex64])
@cells
def test_dtypes(theirs, ours, dtype):
    a, b = pair(theirs, ours, IN, H, dtype=dtype)
    x, hx = inputs(5, dtype=dtype), hidden(a, 5, dtype=dtype)
    results = a(x, hx), b(x, hx)
    assert_like(results[1], results[0])
    for result in results:
        backward(result)
    assert_grads_like(b, a)
    assert_like(b(x), a(x))


@cells
@pytest.mark.parametrize("sizes", [(3, 0), (0, 4), (0, 0)], ids=str)
@pytest.mark.parametrize("batch", [None, 2])
def test_empty_sizes(theirs, ours, sizes, batch):
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Initializing zero-element tensors is a no-op")
        a, b = pair(theirs, ours, *sizes)
    x = torch.randn(sizes[0]) if batch is None else torch.randn(batch, sizes[0])
    hx = hidden(a, batch)
    assert_like(b(x), a(x))
    results = a(x, hx), b(x, hx)
    assert_like(results[1], results[0])
    for result in results:
        backward(result)
    assert_grads_like(b, a)


@cells
def test_call_forms(theirs, ours):
    m = ours(IN, H)
    x, hx = inputs(2), hidden(m, 2)
    expected = m(x, hx)
    assert_like(m(input=x, hx=hx), expected)
    assert_like(m(x, hx=hx), expected)
    if is_lstm(m):
        assert_like(m(x, list(hx)), expected)
    zeros = torch.zeros(2, H)
    assert_like(m(x, None), m(x, (zeros, zeros) if is_lstm(m) else zeros))


def strided(t):
    wide = torch.full([2 * n for n in t.shape], math.nan)
    return wide[tuple(slice(1, None, 2) for _ in t.shape)].copy_(t)


LAYOUTS = {
    "transposed": lambda t: t.t().contiguous().t(),
    "strided": strided,
    "expanded rows": lambda t: t[:1].expand(t.shape),
    "expanded columns": lambda t: t[:, :1].expand(t.shape),
    "unaligned": lambda t: torch.empty(t.numel() + 1)[1:].view_as(t).copy_(t),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@cells
def test_layouts(theirs, ours, layout):
    a, b = pair(theirs, ours, IN, H)
    change = LAYOUTS[layout]
    x, hx = inputs(5), hidden(a, 5)
    results, leaves = [], []
    for m in (a, b):
        q, h = leaf_copy(x), leaf_copy(hx)
        leaves.append((q, h))
        results.append(m(change(q), tuple(map(change, h)) if is_lstm(m) else change(h)))
        backward(results[-1])
    assert_like(results[1], results[0], strides=False)
    assert_grads_like(b, a)
    for p, q in zip(*map(tensors, leaves), strict=True):
        assert_like(q.grad, p.grad, strides=False)


@cells
def test_nothing_is_written_and_nothing_shared(theirs, ours):
    m = ours(IN, H)
    for batch in (None, 1, 3):
        x, hx = inputs(batch), hidden(m, batch)
        given = [x, *tensors(hx), *m.parameters()]
        before = [t.clone() for t in given]
        result = list(tensors(m(x, hx)))
        storages = [t.untyped_storage().data_ptr() for t in [*given, *result]]
        assert len(set(storages)) == len(storages)
        assert all(torch.equal(t, u) for t, u in zip(given, before, strict=True))


@cells
@pytest.mark.parametrize("which", [0, 1])
def test_loss_on_one_state_alone(theirs, ours, which):
    a, b = pair(theirs, ours, IN, H)
    x, hx = inputs(2), hidden(a, 2)
    leaves = []
    for m in (a, b):
        leaves.append((leaf_copy(x), leaf_copy(hx)))
        result = list(tensors(m(*leaves[-1])))
        result[which % len(result)].square().sum().backward()
    assert_grads_like(b, a)
    for p, q in zip(*map(tensors, leaves), strict=True):
        assert_like(q.grad, p.grad)


@cells
@pytest.mark.parametrize("one_bias", ["bias_ih", "bias_hh"])
def test_one_bias_missing(theirs, ours, one_bias):
    """Neither module nor torch's op asks that the biases come as a pair."""
    a, b = pair(theirs, ours, IN, H)
    for m in (a, b):
        setattr(m, one_bias, None)
    x = inputs(2)
    results = a(x), b(x)
    assert_like(results[1], results[0])
    for result in results:
        backward(result)
    assert_grads_like(b, a)


@cells
@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf, 1e30])
def test_poison_goes_where_torch_lets_it_go(theirs, ours, poison):
    a, b = pair(theirs, ours, IN, H)
    x, hx = inputs(3), hidden(a, 3)
    x[1, 2] = poison
    next(tensors(hx))[2, 1] = poison
    assert_like(b(x, hx), a(x, hx))


@cells
def test_grad_and_no_grad_are_bit_equal(theirs, ours):
    m = ours(33, 17)
    x, hx = torch.randn(5, 33), hidden(m, 5)
    with torch.no_grad():
        expected = m(x, hx)
    for p, q in zip(*map(tensors, (m(x, hx), expected)), strict=True):
        assert torch.equal(p, q)


@pytest.mark.parametrize(
    ("cell_class", "layer_class"),
    [(gatedrnn.GRUCell, gatedrnn.GRU), (gatedrnn.LSTMCell, gatedrnn.LSTM)],
    ids=["GRU", "LSTM"],
)
def test_a_cell_in_a_loop_is_the_layer(cell_class, layer_class):
    cell, layer = cell_class(IN, H), layer_class(IN, H)
    layer.load_state_dict({f"{n}_l0": p for n, p in cell.state_dict().items()})
    x, hx, outputs = torch.randn(6, 2, IN), None, []
    for step in x:
        hx = cell(step, hx)
        outputs.append(next(tensors(hx)))
    torch.testing.assert_close(torch.stack(outputs), layer(x)[0], rtol=1e-5, atol=1e-6)


@cells
def test_training_by_truncated_backpropagation(theirs, ours):
    """States carried over and detached: a few steps give torch's losses."""
    losses = []
    for m in pair(theirs, ours, IN, H):
        torch.manual_seed(4)
        head, hx = nn.Linear(H, 1), None
        optimizer = torch.optim.Adam([*m.parameters(), *head.parameters()], lr=0.05)
        for _ in range(5):
            loss = torch.zeros(())
            for _ in range(4):
                x = torch.randn(6, IN)
                hx = m(x, hx)
                loss = loss + (head(next(tensors(hx))) - x[:, :1]).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            hx = tuple(h.detach() for h in hx) if is_lstm(m) else hx.detach()
            losses.append(loss.item())
    assert losses[:5] == pytest.approx(losses[5:], rel=1e-5)


@cells
def test_meta(theirs, ours):
    m = ours(IN, H, device="meta")
    result = list(tensors(m(inputs(2, device="meta"))))
    assert all(t.is_meta and t.shape == (2, H) for t in result)
