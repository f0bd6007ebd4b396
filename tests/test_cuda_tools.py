"""PyTorch's tools on a GPU: graphed callables, the compiler, vmap, and what cuDNN refuses."""

import pytest
import torch
from cuda_cases import DEVICE, FLOAT32, IN, H, needs_gpu, precision
from helpers import assert_like, every_class, layers, tensors
from torch import func, nn
from torch.utils._pytree import tree_leaves

pytestmark = [*needs_gpu, pytest.mark.filterwarnings("ignore::DeprecationWarning")]


@pytest.fixture(autouse=True)
def _float32():
    with precision(FLOAT32):
        yield


def inputs(m, *samples):
    shape = (3, IN) if isinstance(m, nn.modules.rnn.RNNCellBase) else (5, 3, IN)
    return torch.randn(*samples, *shape, device=DEVICE)


def step(f, m, x):
    m.zero_grad()
    leaf = x.clone().requires_grad_()
    results = list(tensors(f(leaf)))
    sum(t.square().sum() for t in results).backward()
    return [*(t.detach() for t in results), leaf.grad, *(p.grad.clone() for p in m.parameters())]


def assert_close(actual, expected):
    for p, q in zip(tree_leaves(actual), tree_leaves(expected), strict=True):
        assert_like(p.detach(), q.detach(), strides=False)


@layers
def test_make_graphed_callables(theirs, ours):
    m = ours(IN, H, 2, device=DEVICE)
    x = inputs(m)
    expected = step(m, m, x)
    graphed = torch.cuda.make_graphed_callables(m, (torch.randn_like(x).requires_grad_(),))
    assert_close(step(graphed, m, x), expected)


@every_class
@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
def test_compiled_training(theirs, ours, mode):
    m = ours(IN, H, device=DEVICE)
    compiled = torch.compile(m, fullgraph=True, mode=mode)
    for _ in range(3):  # the third replays a graph, where there are any
        x = inputs(m)
        assert_close(step(compiled, m, x), step(m, m, x))


@every_class
def test_backward_in_eval_mode(theirs, ours):
    m = ours(IN, H, device=DEVICE)
    x = inputs(m)
    expected = step(m, m, x)
    m.eval()
    assert_close(step(m, m, x), expected)


@every_class
def test_per_sample_gradients(theirs, ours):
    m = ours(IN, H, device=DEVICE)
    w = {n: p.detach() for n, p in m.named_parameters()}
    f = func.grad(lambda w, x: sum(
        t.square().sum() for t in tensors(func.functional_call(m, w, (x,)))))
    x = inputs(m, 3)
    each = [f(w, v) for v in x]
    assert_close(func.vmap(f, (None, 0))(w, x), {n: torch.stack([e[n] for e in each]) for n in w})


@every_class
def test_second_derivatives_and_forward_mode(theirs, ours):
    m = ours(IN, H, device=DEVICE, dtype=torch.float64).requires_grad_(False)
    x = inputs(m).double().requires_grad_()

    def value(x):
        return tuple(tensors(m(x)))

    assert torch.autograd.gradgradcheck(value, (x,), fast_mode=True)
    tangent = torch.randn_like(x)
    actual = func.jvp(value, (x.detach(),), (tangent,))[1]
    expected = func.jvp(
        lambda x: tuple(tensors(m.cpu()(x))), (x.detach().cpu(),), (tangent.cpu(),)
    )[1]
    assert_close([t.cpu() for t in actual], expected)
