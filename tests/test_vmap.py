"""vmap by value, against a loop; and how many kernels it runs. torch's own fallback, a loop over
samples op by op, is switched off here, so that whatever would need it fails."""

from collections import Counter

import pytest
import torch
from helpers import (
    TOLERANCE,
    assert_like,
    every_class,
    hidden,
    is_lstm,
    layers,
    pair,
    tensors,
)
from torch import func, nn
from torch.nn.utils.rnn import pack_sequence
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

T, B, IN, H, SAMPLES = 3, 2, 3, 4, 3
NETWORKS = [
    {},
    {"num_layers": 2, "bidirectional": True, "bias": False},
    {"batch_first": True, "proj_size": 2, "bidirectional": True},
]


@pytest.fixture(autouse=True)
def _no_fallback():
    torch._C._functorch._set_vmap_fallback_enabled(False)
    yield
    torch._C._functorch._set_vmap_fallback_enabled(True)


class Kernels(TorchDispatchMode):
    """Counts the calls of raw ops."""

    def __init__(self):
        super().__init__()
        self.calls = Counter()

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        if op.namespace.startswith("gatedrnn"):
            self.calls[op.name().partition("::")[2]] += 1
        return op(*args, **kwargs or {})


def inputs(m, *samples):
    shape = (B, IN) if isinstance(m, nn.modules.rnn.RNNCellBase) else (T, B, IN)
    return torch.randn(*samples, *shape)


def weights(m):
    return {n: p.detach() for n, p in m.named_parameters()}


def results(m):
    """(weights, x[, hx]) -> all results."""
    return lambda w, x, *hx: tuple(tensors(func.functional_call(m, w, (x, *hx))))


def loss(m):
    return lambda w, x: sum(
        (t * torch.linspace(0.5, 1.5, t.size(-1))).square().sum() for t in results(m)(w, x)
    )


def ensemble(make):
    models = [make() for _ in range(SAMPLES)]
    return models, {n: p.detach() for n, p in func.stack_module_state(models)[0].items()}


def looped(f, *mapped):
    each = [f(*(tree_map(lambda t, k=k: t[k], m) for m in mapped)) for k in range(SAMPLES)]
    return tree_map(lambda *ts: torch.stack(ts), *each)


def assert_close(actual, expected, **tolerance):
    actual, expected = tree_leaves(actual), tree_leaves(expected)
    assert len(actual) == len(expected)
    for p, q in zip(actual, expected, strict=True):
        assert_like(p.detach(), q.detach(), strides=False, **tolerance)


def networks(cls):
    return [cls(IN, H, **n) for n in NETWORKS if "proj_size" not in n or is_lstm(cls)]


@layers
def test_shared_weights_run_one_kernel_over_the_folded_batch(theirs, ours):
    for m in networks(ours):
        x, hx = inputs(m, SAMPLES), hidden(m, T if m.batch_first else B)
        depth = m.num_layers
        with Kernels() as kernels, torch.no_grad():
            actual = func.vmap(results(m), (None, 0, None))(weights(m), x, hx)
        assert list(kernels.calls.values()) == [depth]
        assert_close(actual, looped(lambda v, m=m, h=hx: results(m)(weights(m), v, h), x))
        leaf = x.clone().requires_grad_()
        with Kernels() as kernels:
            sum(t.square().sum() for t in tree_leaves(func.vmap(m)(leaf))).backward()
        assert list(kernels.calls.values()) == [depth, depth]
        other = x.clone().requires_grad_()
        grads = [p.grad.clone() for p in m.parameters()]
        m.zero_grad()
        sum(t.square().sum() for v in other for t in tensors(m(v))).backward()
        assert_close([leaf.grad, grads], [other.grad, [p.grad for p in m.parameters()]])


@every_class
def test_any_axis_of_input_and_states(theirs, ours):
    m = ours(IN, H)
    x = inputs(m, SAMPLES)
    hx = tree_map(lambda *h: torch.stack(h), *(hidden(m, B) for _ in range(SAMPLES)))
    states = tuple(tensors(hx))
    wrap = (lambda h: tuple(h)) if is_lstm(m) else (lambda h: h[0])
    expected = looped(lambda v, *h: results(m)(weights(m), v, wrap(h)), x, *states)
    for axis in range(x.dim()):
        moved = [t.movedim(0, axis) for t in (x, *states)]
        f = func.vmap(lambda v, *h: results(m)(weights(m), v, wrap(h)), axis, out_dims=axis)
        assert_close([t.movedim(axis, 0) for t in f(*moved)], expected)
    alone = func.vmap(lambda *h: results(m)(weights(m), x[0], wrap(h)))(*states)
    assert_close(alone, looped(lambda *h: results(m)(weights(m), x[0], wrap(h)), *states))


@every_class
def test_per_sample_gradients(theirs, ours):
    m = ours(IN, H)
    x = inputs(m, SAMPLES)
    both = func.grad(loss(m), argnums=(0, 1))
    with Kernels() as kernels:
        actual = func.vmap(both, (None, 0))(weights(m), x)
    # One forward for all; a backward each, since each has gradients of the weights.
    assert sorted(kernels.calls.values()) == [1, SAMPLES]
    assert_close(actual, looped(lambda v: both(weights(m), v), x))
    with Kernels() as kernels:
        actual = func.vmap(func.grad(loss(m), argnums=1), (None, 0))(weights(m), x)
    assert sorted(kernels.calls.values()) == [1, 1]
    assert_close(actual, looped(lambda v: both(weights(m), v)[1], x))


@layers
def test_per_sample_gradients_of_stacks(theirs, ours):
    for m in networks(ours):
        x = inputs(m, SAMPLES)
        actual = func.vmap(func.grad(loss(m)), (None, 0))(weights(m), x)
        assert_close(actual, looped(lambda v, m=m: func.grad(loss(m))(weights(m), v), x))


@every_class
@pytest.mark.parametrize("mapped", ["weights", "both"])
def test_ensembles(theirs, ours, mapped):
    models, stacked = ensemble(lambda: ours(IN, H))
    m = models[0]
    x = inputs(m, SAMPLES) if mapped == "both" else inputs(m)
    dims = (0, 0) if mapped == "both" else (0, None)
    for f in (results(m), func.grad(loss(m), argnums=(0, 1))):
        expected = looped(lambda k, f=f: f(weights(models[k]), x[k] if dims[1] == 0 else x),
                          torch.arange(SAMPLES))
        with Kernels() as kernels:
            assert_close(func.vmap(f, dims)(stacked, x), expected)
        assert set(kernels.calls.values()) == {SAMPLES}


@layers
def test_ensembles_of_stacks(theirs, ours):
    for m in networks(ours):
        models, stacked = ensemble(lambda m=m: type(m)(
            IN, H, m.num_layers, bidirectional=m.bidirectional, bias=m.bias,
            batch_first=m.batch_first, **({"proj_size": m.proj_size} if m.proj_size else {})))
        x = inputs(m)
        f = func.grad(loss(m))
        each = [f(weights(one), x) for one in models]
        expected = tree_map(lambda *ts: torch.stack(ts), *each)
        assert_close(func.vmap(f, (0, None))(stacked, x), expected)


@layers
def test_training_an_ensemble_follows_its_models(theirs, ours):
    models, stacked = ensemble(lambda: ours(IN, H))
    stacked = {n: p.requires_grad_() for n, p in stacked.items()}
    x = inputs(models[0])
    y = func.vmap(lambda w: func.functional_call(models[0], w, (x,))[0])(stacked)
    y.square().sum().backward()
    for k, m in enumerate(models):
        m(x)[0].square().sum().backward()
        for n, p in m.named_parameters():
            assert_like(stacked[n].grad[k], p.grad, strides=False)


@layers
def test_packed_samples(theirs, ours):
    """Samples that are packed alike: the mapped axis lies in the rows."""
    m = ours(IN, H, bidirectional=True)
    packed = pack_sequence([torch.randn(n, IN) for n in (2, 3, 1)], enforce_sorted=False)
    rows = torch.randn(SAMPLES, *packed.data.shape)

    def f(w, data):
        output, hn = func.functional_call(m, w, (packed._replace(data=data),))
        return output.data, *tensors(hn)

    with Kernels() as kernels, torch.no_grad():
        actual = func.vmap(f, (None, 0))(weights(m), rows)
    assert list(kernels.calls.values()) == [1]
    assert_close(actual, looped(lambda r: f(weights(m), r), rows))
    g = func.grad(lambda w, r: sum(t.square().sum() for t in f(w, r)), argnums=(0, 1))
    assert_close(func.vmap(g, (None, 0))(weights(m), rows),
                 looped(lambda r: g(weights(m), r), rows))


@every_class
def test_nested_maps_run_one_kernel(theirs, ours):
    m = ours(IN, H)
    x = inputs(m, SAMPLES, 2)
    with Kernels() as kernels, torch.no_grad():
        actual = func.vmap(func.vmap(m, in_dims=-1), in_dims=1)(x.movedim(1, -1).movedim(0, 1))
    assert list(kernels.calls.values()) == [1]
    expected = looped(lambda v: tree_map(lambda *t: torch.stack(t), *map(m, v)), x)
    assert_close(tree_leaves(actual), tree_leaves(expected))


@every_class
def test_second_derivatives_per_sample(theirs, ours):
    m = ours(IN, H)
    x = inputs(m, SAMPLES)

    def penalty(w, v):
        return func.grad(loss(m), argnums=1)(w, v).square().sum()

    def curvature(w, v):
        return func.jvp(func.grad(lambda v: loss(m)(w, v)), (v,), (torch.ones_like(v),))[1]

    for f in (func.grad(penalty), curvature):
        expected = looped(lambda v, f=f: f(weights(m), v), x)
        assert_close(func.vmap(f, (None, 0))(weights(m), x), expected, rtol=2e-4, atol=2e-5)


@every_class
def test_jacobian_of_the_input_is_one_backward(theirs, ours):
    m = ours(IN, H).requires_grad_(False)
    x = inputs(m)
    with Kernels() as kernels:
        jacobian = func.jacrev(lambda v: next(tensors(m(v))))(x)
    assert sorted(kernels.calls.values()) == [1, 1]
    expected = torch.autograd.functional.jacobian(lambda v: next(tensors(m(v))), x)
    assert_like(jacobian, expected, strides=False)


@every_class
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_other_dtypes(theirs, ours, dtype):
    m = ours(IN, H, dtype=dtype)
    x = inputs(m, SAMPLES).to(dtype)
    for f, dims in ((results(m), (None, 0)), (func.grad(loss(m)), (None, 0))):
        expected = looped(lambda v, f=f: f(weights(m), v), x)
        assert_close(func.vmap(f, dims)(weights(m), x), expected, **TOLERANCE[dtype])


@layers
@pytest.mark.parametrize("randomness", ["same", "different"])
def test_dropout_between_layers(theirs, ours, randomness):
    """Masks are drawn per sample or shared, as vmap is told."""
    m = ours(IN, H, num_layers=2, dropout=0.5)
    x = inputs(m).expand(SAMPLES, T, B, IN)
    y, _ = func.vmap(m, randomness=randomness)(x)
    assert torch.equal(y[0], y[1]) == (randomness == "same")
    assert not torch.equal(y[0], m.eval()(x[0])[0])


@every_class
def test_batched_gradients_of_autograd(theirs, ours):
    """torch.autograd's own way to vmap, over the backward alone."""
    m = ours(IN, H)
    x = inputs(m).requires_grad_()
    y = next(tensors(m(x)))
    cotangents = torch.randn(SAMPLES, *y.shape)
    wanted = [x, *m.parameters()]
    each = [torch.autograd.grad(y, wanted, c, retain_graph=True) for c in cotangents]
    actual = torch.autograd.grad(y, wanted, cotangents, is_grads_batched=True)
    assert_close(actual, [torch.stack(ts) for ts in zip(*each, strict=True)])


@every_class
@pytest.mark.parametrize("given", [False, True], ids=["zero state", "given state"])
def test_vectorized_jacobian_and_hessian_of_autograd(theirs, ours, given):
    a, b = pair(theirs, ours, IN, H)
    x, hx = inputs(a), hidden(a, B) if given else None
    results = []
    for m, vectorize in ((a, False), (b, True)):
        jacobian, hessian = torch.autograd.functional.jacobian, torch.autograd.functional.hessian
        results.append([
            jacobian(lambda x, m=m: next(tensors(m(x, hx))), x, vectorize=vectorize),
            hessian(lambda x, m=m: sum(t.square().sum() for t in tensors(m(x, hx))), x,
                    vectorize=vectorize),
        ])
    assert_close(results[1], results[0])
