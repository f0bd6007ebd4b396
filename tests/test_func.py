"""torch.func over ours: functional_call, grad, vjp, jvp, Jacobians; always by value. vmap has a
file of its own.

Where torch.nn itself cannot (forward mode of a float32 LSTM), the expected value comes from reverse
mode.
"""

import pytest
import torch
from helpers import TOLERANCE, assert_like, every_class, is_lstm, layers, pair, tensors
from torch import func, nn
from torch.nn.utils.rnn import pack_sequence
from torch.utils._pytree import tree_leaves

T, B, IN, H = 3, 2, 3, 4


def inputs(m, **kwargs):
    shape = (B, IN) if isinstance(m, nn.modules.rnn.RNNCellBase) else (T, B, IN)
    return torch.randn(shape, **kwargs)


def weights(m):
    return {n: p.detach() for n, p in m.named_parameters()}


def call(m):
    """(weights, x) -> all results, as torch.func wants it."""
    return lambda w, x: tuple(tensors(func.functional_call(m, w, (x,))))


def loss(m):
    f = call(m)
    return lambda w, x: sum(t.square().sum() for t in f(w, x))


def assert_close(actual, expected):
    leaves, other = tree_leaves(actual), tree_leaves(expected)
    assert len(leaves) == len(other)
    for p, q in zip(leaves, other, strict=True):
        assert_like(p.detach(), q.detach(), strides=False)


@every_class
def test_functional_call(theirs, ours):
    a, b = pair(theirs, ours, IN, H)
    x = inputs(a)
    own = a(x)
    other = {n: torch.randn_like(p) for n, p in weights(a).items()}
    some = dict(list(other.items())[1:3])
    for w, strict in [(other, True), (other, False), (some, False), ({}, False)]:
        results = [func.functional_call(m, w, (x,), strict=strict) for m in (a, b)]
        assert_like(results[1], results[0])
    assert_like(b(x), own)  # the module has its own weights back
    with torch.no_grad():
        assert_like(func.functional_call(b, other, (x,)), func.functional_call(a, other, (x,)))


@layers
def test_functional_call_differentiates_with_respect_to_what_was_given(theirs, ours):
    grads = []
    given = None
    for m in pair(theirs, ours, IN, H):
        given = given or {n: torch.randn_like(p) for n, p in weights(m).items()}
        w = {n: p.clone().requires_grad_() for n, p in given.items()}
        y, _ = func.functional_call(m, w, (torch.ones(T, B, IN),))
        grads.append(torch.autograd.grad(y.square().sum(), list(w.values())))
        assert all(p.grad is None for p in m.parameters())
    assert_close(grads[1], grads[0])


@every_class
def test_grad_vjp_and_jacrev(theirs, ours):
    a, b = pair(theirs, ours, IN, H)
    x = inputs(a)
    results = []
    for m in (a, b):
        both = func.grad(loss(m), argnums=(0, 1))(weights(m), x)
        value, pull = func.vjp(call(m), weights(m), x)
        pulled = pull(tuple(torch.full_like(t, 0.5) for t in value))
        jacobian = func.jacrev(call(m), argnums=(0, 1))(weights(m), x)
        results.append((both, value, pulled, jacobian))
    assert_close(results[1], results[0])


@every_class
def test_forward_mode(theirs, ours):
    a, b = pair(theirs, ours, IN, H, dtype=torch.float64)
    x = inputs(a, dtype=torch.float64)
    tangents = {n: torch.randn_like(p) for n, p in weights(a).items()}, torch.randn_like(x)
    results = []
    for m in (a, b):
        results.append(
            (
                func.jvp(call(m), (weights(m), x), tangents),
                func.jacfwd(call(m), argnums=1)(weights(m), x),
                func.hessian(loss(m), argnums=1)(weights(m), x),
            )
        )
    assert_close(results[1], results[0])


@every_class
def test_forward_mode_in_float32_agrees_with_reverse_mode(theirs, ours):
    m = ours(IN, H)
    x = inputs(m)
    forward = func.jacfwd(call(m), argnums=(0, 1))(weights(m), x)
    reverse = func.jacrev(call(m), argnums=(0, 1))(weights(m), x)
    assert_close(forward, reverse)
    with torch.no_grad():
        value, _ = func.jvp(lambda x: call(m)(weights(m), x), (x,), (torch.ones_like(x),))
    assert_close(value, call(m)(weights(m), x))


@layers
def test_stacked_bidirectional_with_dropout_under_grad(theirs, ours):
    results = []
    options = {"num_layers": 2, "bidirectional": True, "dropout": 0.5, "batch_first": True}
    a, b = pair(theirs, ours, IN, H, **options)
    x = torch.randn(B, T, IN)
    for m in (a, b):
        torch.manual_seed(5)
        results.append(func.grad(loss(m), argnums=(0, 1))(weights(m), x))
    assert_close(results[1], results[0])


@layers
def test_jacobian_through_packing(theirs, ours):
    """torch.nn fails here: Cannot access data pointer."""
    m = ours(IN, H)
    samples = [torch.randn(n, IN) for n in (2, 3)]

    def f(data):
        p = pack_sequence(samples, enforce_sorted=False)
        output, _ = m(p._replace(data=data))
        return output.data

    data = pack_sequence(samples, enforce_sorted=False).data
    m.requires_grad_(False)
    jacobian = func.jacrev(f)(data)
    expected = torch.autograd.functional.jacobian(f, data)
    assert_like(jacobian, expected, strides=False, **TOLERANCE[torch.float32])
    assert is_lstm(m) or jacobian.shape == (5, H, 5, IN)


@every_class
@pytest.mark.filterwarnings("ignore:Attempted to insert a get_attr Node:UserWarning")  # torch's own
def test_stateless_and_linearize(theirs, ours):
    a, b = pair(theirs, ours, IN, H, dtype=torch.float64)
    x = inputs(a, dtype=torch.float64)
    tangent = torch.randn_like(x)
    other = {n: torch.randn_like(p) for n, p in weights(a).items()}
    results = []
    for m in (a, b):
        with pytest.warns(FutureWarning):
            called = nn.utils.stateless.functional_call(m, other, (x,))
        value, derivative = func.linearize(lambda x, m=m: call(m)(weights(m), x), x)
        results.append((tuple(tensors(called)), value, derivative(tangent)))
    assert_close(results[1], results[0])


@every_class
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.complex64])
def test_forward_mode_in_other_dtypes(theirs, ours, dtype):
    """Along a direction; of 16 bits against float32, of complex numbers against real ones."""
    m = ours(IN, H)
    x, tangent = inputs(m), inputs(m)
    value, slope = func.jvp(lambda x: call(m)(weights(m), x), (x,), (tangent,))
    low = ours(IN, H, dtype=dtype)
    with torch.no_grad():
        for p, q in zip(low.parameters(), m.parameters(), strict=True):
            p.copy_(q)
    actual = func.jvp(lambda x: call(low)(weights(low), x), (x.to(dtype),), (tangent.to(dtype),))
    for mine, expected in zip(tree_leaves(actual), tree_leaves((value, slope)), strict=True):
        assert mine.dtype == dtype
        assert_like(mine.detach(), expected.detach().to(dtype), strides=False, **TOLERANCE[dtype])
