"""A cell's step past the dispatcher: when it is given, when the ops answer, that none can tell."""

import pytest
import torch
from helpers import cells, is_lstm
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import gatedrnn
from gatedrnn import ops, raw

pytestmark = pytest.mark.skipif(not hasattr(torch.Tensor, "__dlpack_c_exchange_api__"),
                                reason="this torch does not offer its tensors to extensions")
IN, H, B = 5, 20, 3


class Seen:
    """How often a step was asked for past the dispatcher, and how often it was given."""

    def __init__(self, monkeypatch):
        self.forward, self.backward = [], []
        for name, log in (("step_forward", self.forward), ("step_backward", self.backward)):
            monkeypatch.setattr(ops, name, self._logged(getattr(raw, name), log))

    @staticmethod
    def _logged(function, log):
        def call(*arguments):
            result = function(*arguments)
            log.append(result is not None)
            return result

        return call


@pytest.fixture
def seen(monkeypatch):
    return Seen(monkeypatch)


def made(ours, dtype=torch.float32, **options):
    torch.manual_seed(1)
    cell = ours(IN, H, dtype=dtype, **options)
    states = [torch.randn(B, H, dtype=dtype) for _ in range(2 if is_lstm(cell) else 1)]
    return cell, torch.randn(B, IN, dtype=dtype), states


def called(cell, x, states):
    y = cell(x, tuple(states) if len(states) == 2 else states[0])
    return list(y) if isinstance(y, tuple) else [y]


def gradients(cell, x, states, cotangents):
    leaves = [t.detach().requires_grad_() for t in (x, *states)]
    outputs = called(cell, leaves[0], leaves[1:])
    return outputs + list(torch.autograd.grad(outputs, [*leaves, *cell.parameters()], cotangents))


@cells
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
def test_same_bits_as_the_ops(theirs, ours, dtype, bias, seen, monkeypatch):
    cell, x, states = made(ours, dtype, bias=bias)
    cotangents = [torch.randn_like(s) for s in states]
    direct = gradients(cell, x, states, cotangents)
    with torch.no_grad():
        direct += called(cell, x, states)
    assert seen.forward == [True, True]
    assert seen.backward == [True]
    for name in ("step_forward", "step_backward"):
        monkeypatch.setattr(ops, name, lambda *_: None)
    by_ops = gradients(cell, x, states, cotangents)
    with torch.no_grad():
        by_ops += called(cell, x, states)
    for a, b in zip(direct, by_ops, strict=True):
        assert torch.equal(a, b)
        assert a.stride() == b.stride()


@cells
@pytest.mark.parametrize("batch", [1, 9, 40])
@pytest.mark.parametrize("state", [0, 1])
def test_gradients_of_states_that_nobody_wants(theirs, ours, batch, state, monkeypatch, seen):
    """Those of states are computed together or not at all; the others are the same bits."""
    cell = ours(IN, H)
    x, *states = (torch.randn(batch, n) for n in (IN, H, H)[:2 + is_lstm(cell)])
    wanted = [x.requires_grad_(), *cell.parameters()]
    expected = torch.autograd.grad(called(cell, x, [s.clone().requires_grad_() for s in states])[0]
                                   .sum(), wanted)
    found = []
    function = ops.step_backward
    monkeypatch.setattr(ops, "step_backward", lambda *a: found.append(function(*a)) or found[-1])
    if state < len(states):
        states[state].requires_grad_(state == 1)
    for a, b in zip(torch.autograd.grad(called(cell, x, states)[0].sum(), wanted), expected,
                    strict=True):
        assert torch.equal(a, b)
    some = any(s.requires_grad for s in states)
    assert [s is not None for s in found[0][1:1 + len(states)]] == [some] * len(states)


@cells
def test_strided_and_negated(theirs, ours, seen):
    """Strides are followed; a tensor that stands for its negative is left to the dispatcher."""
    cell, x, states = made(ours)
    expected = called(cell, x, states)
    wide = torch.randn(B, 4, IN)
    wide[:, 1] = x
    for other in (wide[:, 1], x.t().contiguous().t()):
        for a, b in zip(called(cell, other, states), expected, strict=True):
            assert torch.equal(a, b)
    assert seen.forward == [True] * 3
    negated = torch._neg_view(-x)
    assert negated.is_neg()
    for a, b in zip(called(cell, negated, states), expected, strict=True):
        assert torch.equal(a, b)
    assert seen.forward[3:] == [False]
    sums = gradients(cell, x, states, [torch.ones(()).expand(B, H) for _ in states])
    ones = gradients(cell, x, states, [torch.ones(B, H) for _ in states])
    assert all(torch.equal(a, b) for a, b in zip(sums, ones, strict=True))
    assert seen.backward == [True, True]


@cells
def test_zeros_without_memory(theirs, ours, seen):
    cell, _, states = made(ours)
    absent = torch._efficientzerotensor(B, IN)
    for a, b in zip(called(cell, absent, states), called(cell, torch.zeros(B, IN), states),
                    strict=True):
        assert torch.equal(a, b)
    assert seen.forward == [False, True]


@cells
def test_whoever_looks_on_sees_the_op(theirs, ours, seen):
    cell, x, states = made(ours)
    name = "lstm_cell_forward" if is_lstm(cell) else "gru_cell_forward"
    met = []

    class Dispatched(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            met.append(str(function))
            return function(*args, **(kwargs or {}))

    class Called(TorchFunctionMode):
        def __torch_function__(self, function, types, args=(), kwargs=None):
            met.append(str(function))
            return function(*args, **(kwargs or {}))

    with torch.no_grad():
        for mode in (Dispatched, Called):
            met.clear()
            with mode():
                called(cell, x, states)
            assert any(name in function for function in met)
        with torch.profiler.profile() as profile:
            called(cell, x, states)
        assert any(name in event.key for event in profile.key_averages())
    assert not any(seen.forward)


@cells
def test_subclasses_are_left_to_torch(theirs, ours, seen):
    class Sub(torch.Tensor):
        pass

    cell, x, states = made(ours)
    outputs = called(cell, x.as_subclass(Sub), states)
    assert all(type(t) is Sub for t in outputs)
    assert seen.forward == [False]


@cells
def test_frozen_weights(theirs, ours, seen):
    """Gradients that nobody wants are not computed, and the others are the same."""
    cell, x, states = made(ours)
    cotangents = [torch.randn_like(s) for s in states]
    every = gradients(cell, x, states, cotangents)
    cell.requires_grad_(False)
    h = [s.clone().requires_grad_() for s in states]
    found = torch.autograd.grad(called(cell, x, h), h, cotangents)
    begin = len(states) + 1
    for a, b in zip(found, every[begin:begin + len(states)], strict=True):
        assert torch.equal(a, b)
    assert seen.backward == [True, True]


@cells
def test_second_derivatives(theirs, ours, seen):
    cell, x, states = made(ours, torch.float64)
    peer = theirs(IN, H, dtype=torch.float64)
    peer.load_state_dict(cell.state_dict())

    def penalty(module):
        leaf = x.clone().requires_grad_()
        outputs = called(module, leaf, states)
        (dx,) = torch.autograd.grad(sum(t.sum() for t in outputs), leaf, create_graph=True)
        return torch.autograd.grad(dx.square().sum(), [leaf, *module.parameters()],
                                   allow_unused=True)

    for a, b in zip(penalty(cell), penalty(peer), strict=True):
        if b is None:
            assert a is None or not a.any()
        else:
            torch.testing.assert_close(a, b)
    assert seen.forward == [True]


def test_wrong_calls_of_the_extension():
    for function in (raw.step_forward, raw.step_backward):
        with pytest.raises(TypeError, match="arguments"):
            function(1)
    assert raw.step_forward(*[None] * 7, False) is None
    assert raw.step_forward(*[1] * 7, False) is None


def test_torch_without_the_interface(monkeypatch):
    """Older torch has none: then nothing is served, and the ops do all."""
    monkeypatch.setattr(ops, "step_forward", lambda *_: None)
    cell = gatedrnn.GRUCell(IN, H)
    peer = nn.GRUCell(IN, H)
    peer.load_state_dict(cell.state_dict())
    x = torch.randn(B, IN)
    torch.testing.assert_close(cell(x), peer(x))
