"""torch.func over ours: functional_call, grad, vjp, jvp, Jacobians, vmap; always by value.

Where torch.nn itself cannot (vmap, forward mode of a float32 LSTM), the expected value comes from
a loop or from reverse mode.
"""

import torch
from helpers import TOLERANCE, assert_like, every_class, hidden, is_lstm, layers, pair, tensors
from torch import func, nn
from torch.nn.utils.rnn import pack_sequence

T, B, IN, H = 3, 2, 3, 4


def inputs(m, *batch, **kwargs):
    shape = (B, IN) if isinstance(m, nn.modules.rnn.RNNCellBase) else (T, B, IN)
    return torch.randn(*batch, *shape, **kwargs)


def weights(m):
    return {n: p.detach() for n, p in m.named_parameters()}


def call(m):
    """(weights, x) -> all results, as torch.func wants it."""
    return lambda w, x: tuple(tensors(func.functional_call(m, w, (x,))))


def loss(m):
    f = call(m)
    return lambda w, x: sum(t.square().sum() for t in f(w, x))


def assert_close(actual, expected):
    leaves, other = (
        torch.utils._pytree.tree_leaves(actual),
        torch.utils._pytree.tree_leaves(expected),
    )
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


@every_class
def test_vmap_over_inputs(theirs, ours):
    m = ours(IN, H)
    x = inputs(m, 5)
    expected = [torch.stack(ts) for ts in zip(*(tensors(m(v)) for v in x), strict=True)]
    assert_close(list(tensors(func.vmap(m)(x))), expected)
    moved = func.vmap(m, in_dims=1, out_dims=1)(x.movedim(0, 1))
    assert_close([t.movedim(1, 0) for t in tensors(moved)], expected)


@every_class
def test_vmap_over_states_alone(theirs, ours):
    m = ours(IN, H)
    x, states = inputs(m), [hidden(m, B) for _ in range(3)]
    stacked = torch.utils._pytree.tree_map(lambda *h: torch.stack(h), *states)
    expected = [torch.stack(ts) for ts in zip(*(tensors(m(x, h)) for h in states), strict=True)]
    assert_close(list(tensors(func.vmap(m, in_dims=(None, 0))(x, stacked))), expected)


@every_class
def test_vmap_over_weights_is_an_ensemble(theirs, ours):
    models = [ours(IN, H) for _ in range(3)]
    parameters, _ = func.stack_module_state(models)
    x = inputs(models[0])
    result = func.vmap(call(models[0]), in_dims=(0, None))(parameters, x)
    expected = [torch.stack(ts) for ts in zip(*(tensors(m(x)) for m in models), strict=True)]
    assert_close(list(result), expected)


@every_class
def test_gradients_per_sample(theirs, ours):
    m = ours(IN, H)
    x = inputs(m, 4)
    result = func.vmap(func.grad(loss(m)), in_dims=(None, 0))(weights(m), x)
    singles = [func.grad(loss(m))(weights(m), v) for v in x]
    assert_close(result, {n: torch.stack([s[n] for s in singles]) for n in singles[0]})


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
