"""Stream, and truncated back-propagation: sequences that come in pieces."""

import pytest
import torch
from helpers import (
    assert_like,
    backward,
    error_of,
    hidden,
    is_lstm,
    layer_options,
    layers,
    leaf_copy,
    tensors,
)
from torch import nn

import gatedrnn
from gatedrnn import raw

IN, H, T = 3, 20, 7
x32, x64 = torch.float32, torch.float64


@layer_options
@pytest.mark.parametrize("batch", [1, 5, 70])
@pytest.mark.parametrize("with_hx", [False, True], ids=["", "hx"])
def test_steps_are_the_sequence(theirs, ours, options, batch, with_hx):
    m = ours(IN, H, **{**options, "bidirectional": False, "batch_first": False})
    x = torch.randn(T, batch, IN)
    hx = hidden(m, batch) if with_hx else None
    with torch.no_grad():
        expected = m(x, hx)
    stream = gatedrnn.Stream(m, batch, hx)
    assert_like((torch.stack([stream.step(frame) for frame in x]), stream.hx), expected)
    stream.reset(hx)
    assert_like(stream(x[0]), expected[0][0])


@layers
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16, torch.complex64])
def test_dtypes(theirs, ours, dtype):
    """16 bits: a sequence call carries its state as float32, steps carry it as it is stored."""
    m = ours(IN, H, num_layers=2, dtype=dtype)
    x = torch.randn(T, 2, IN, dtype=dtype)
    stream = gatedrnn.Stream(m, 2)
    with torch.no_grad():
        assert_like((torch.stack([stream(frame) for frame in x]), stream.hx), m(x))


@layers
def test_steps_of_the_module_where_there_are_no_packed_ones(theirs, ours, monkeypatch):
    m = ours(IN, H, num_layers=2)
    x = torch.randn(T, 2, IN)
    with torch.no_grad():
        expected = m(x)
    monkeypatch.setattr(raw, "has_kernels", lambda *arguments: False)
    stream = gatedrnn.Stream(m, 2)
    assert stream._packed is None
    assert_like((torch.stack([stream(frame) for frame in x]), stream.hx), expected)


@layers
def test_weights_are_read_when_asked(theirs, ours):
    m = ours(IN, H)
    x = torch.randn(2, IN)
    stream = gatedrnn.Stream(m, 2)
    before = stream(x)
    with torch.no_grad():
        m.weight_ih_l0.mul_(-1)
    stream.reset()
    assert torch.equal(stream(x), before)
    state = stream.hx
    stream.reload()
    assert all(torch.equal(s, t) for s, t in zip(tensors(stream.hx), tensors(state), strict=True))
    stream.reset()
    after = stream(x)
    assert not torch.equal(after, before)
    assert_like(after, m(x[None])[0][0].detach())


@layers
def test_a_state_that_was_taken_stays(theirs, ours):
    m = ours(IN, H)
    stream = gatedrnn.Stream(m, 2, hidden(m, 2))
    taken = stream.hx
    copies = [s.clone() for s in tensors(taken)]
    stream(torch.randn(2, IN))
    assert all(torch.equal(s, t) for s, t in zip(tensors(taken), copies, strict=True))
    stream.reset(taken)
    assert all(torch.equal(s, t) for s, t in zip(tensors(stream.hx), copies, strict=True))


@layers
def test_learned_and_parametrized(theirs, ours):
    m = ours(IN, H, learn_initial_state=True)
    nn.init.normal_(m.h_0)
    nn.utils.parametrizations.weight_norm(m, "weight_hh_l0")
    x = torch.randn(T, 2, IN)
    stream = gatedrnn.Stream(m, 2)
    with torch.no_grad():
        assert_like(torch.stack([stream(frame.mT.contiguous().mT) for frame in x]), m(x)[0])


@layers
def test_bad_input(theirs, ours):
    m = ours(IN, H)
    stream = gatedrnn.Stream(m, 2)
    before = next(tensors(stream.hx))
    for shape, dtype in [((3, IN), x32), ((2, 4), x32), ((1, 2, IN), x32), ((2, IN), x64)]:
        bad = torch.zeros(shape, dtype=dtype)
        error = error_of(lambda bad=bad: stream.step(bad))
        assert type(error) is RuntimeError
        assert "expected an input (2, 3) of torch.float32 on cpu" in str(error)
    assert torch.equal(next(tensors(stream.hx)), before)
    assert "(1, 2, 20), got [1, 3, 20]" in str(error_of(lambda: stream.reset(hidden(m, 3))))
    assert type(error_of(lambda: gatedrnn.Stream(m, 0))) is ValueError
    assert type(error_of(lambda: gatedrnn.Stream(ours(IN, H, bidirectional=True), 1))) is ValueError
    assert type(error_of(lambda: gatedrnn.Stream(theirs(IN, H), 1))) is TypeError


@layers
def test_chunks_with_the_gradient_let_through_are_one_call(theirs, ours):
    """Truncated back-propagation, not truncated."""
    m = ours(IN, H, num_layers=2, dtype=torch.float64)
    x = leaf_copy(torch.randn(T, 2, IN, dtype=torch.float64))
    hx = leaf_copy(hidden(m, 2, dtype=torch.float64))
    outputs, state = [], hx
    for chunk in x.split(3):
        y, state = m(chunk, state)
        outputs.append(y)
    results = (torch.cat(outputs), state), m(x, hx)
    assert_like(*results)
    found = []
    for result in results:
        leaves = [x, *tensors(hx), *m.parameters()]
        for leaf in leaves:
            leaf.grad = None
        backward(result)
        found.append([leaf.grad for leaf in leaves])
    for p, q in zip(*found, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-10, atol=1e-12)
    assert is_lstm(m) == isinstance(state, tuple)
