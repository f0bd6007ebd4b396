"""What torch.nn.utils and others do to weights: norms, parametrizations, pruning, WeightDropout."""

import copy
import warnings

import pytest
import torch
import torch.nn.functional as F
from helpers import assert_grads_like, assert_like, backward, every_class, layers, pair
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune


def inputs(module):
    return torch.randn(2, 3) if isinstance(module, nn.RNNCellBase) else torch.randn(4, 2, 3)


def hh(module):
    return "weight_hh" if isinstance(module, nn.RNNCellBase) else "weight_hh_l0"


def assert_trains_alike(a, b, x):
    """Two optimizer steps beside each other: results, gradients and the changed weights."""
    optimizers = [torch.optim.SGD(m.parameters(), lr=0.1) for m in (a, b)]
    for _ in range(2):
        results = []
        for m, optimizer in zip((a, b), optimizers, strict=True):
            optimizer.zero_grad()
            results.append(m(x))
            backward(results[-1])
        assert_like(results[1], results[0])
        assert_grads_like(b, a)
        for optimizer in optimizers:
            optimizer.step()
    with torch.no_grad():
        assert_like(b(x), a(x))
    for m in (a, b):
        m.eval()
    assert_like(b(x), a(x))


def old_weight_norm(m, name):
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*weight_norm.* is deprecated", FutureWarning)
        return nn.utils.weight_norm(m, name)


HOOKS = {
    "weight_norm": (old_weight_norm, nn.utils.remove_weight_norm),
    "spectral_norm": (nn.utils.spectral_norm, nn.utils.remove_spectral_norm),
}


@pytest.mark.parametrize("kind", HOOKS)
@every_class
def test_norm_by_hook(theirs, ours, kind):
    apply, remove = HOOKS[kind]
    a, b = pair(theirs, ours, 3, 5)
    name = hh(a)
    for m in (a, b):
        torch.manual_seed(0)
        apply(m, name)
    x = inputs(a)
    assert_trains_alike(a, b, x)
    if hasattr(b, "_flat_weights"):
        assert sum(not isinstance(w, nn.Parameter) for w in b._flat_weights) == 1
    for m in (a, b):
        m.double()
    b.load_state_dict(a.state_dict())  # training in float32 has left them some rounding apart
    assert_like(b(x.double()), a(x.double()))
    for m in (a, b):
        remove(m, name)
    assert [n for n, _ in a.named_parameters()] == [n for n, _ in b.named_parameters()]
    assert_like(b(x.double()), a(x.double()))
    assert_trains_alike(a, b, x.double())


class Doubled(nn.Module):
    def forward(self, weight):
        return 2 * weight


def spectral_norm(m, name):
    """torch.nn evaluates a parametrization four times in a forward, ours once.

    In training each evaluation is a power iteration. One large singular value and small others
    make it converge at once, so that their number does not show.
    """
    with torch.no_grad():
        getattr(m, name).add_(3.0)
    parametrizations.spectral_norm(m, name)


PARAMETRIZATIONS = {
    "weight_norm": parametrizations.weight_norm,
    "spectral_norm": spectral_norm,
    "orthogonal": parametrizations.orthogonal,
    "own": lambda m, name: parametrize.register_parametrization(m, name, Doubled()),
}


@pytest.mark.parametrize("kind", PARAMETRIZATIONS)
@every_class
def test_parametrization(theirs, ours, kind):
    a, b = pair(theirs, ours, 3, 5)
    for m in (a, b):
        torch.manual_seed(0)
        PARAMETRIZATIONS[kind](m, hh(m))
    assert type(b).__name__ == type(a).__name__ == f"Parametrized{theirs.__name__}"
    assert isinstance(b, ours)
    x = inputs(a)
    assert_trains_alike(a, b, x)
    for m in (a, b):
        parametrize.remove_parametrizations(m, hh(m))
    assert type(b) is ours
    assert_like(b(x), a(x))


@every_class
@pytest.mark.parametrize("grad", [True, False], ids=["grad", "no_grad"])
def test_parametrization_is_evaluated_once_a_forward(theirs, ours, grad):
    calls = []

    class Counted(nn.Module):
        def forward(self, weight):
            calls.append(1)
            return weight + 1

    module = ours(3, 5)
    parametrize.register_parametrization(module, hh(module), Counted())
    x = inputs(module)
    with torch.set_grad_enabled(grad):
        module(x)
        del calls[:]
        module(x)
    assert len(calls) == 1


@layers
def test_parametrizations_of_all_weights_and_cache(theirs, ours):
    a, b = pair(theirs, ours, 3, 5, num_layers=2, bidirectional=True)
    for m in (a, b):
        for name, _ in list(m.named_parameters()):
            parametrize.register_parametrization(m, name, Doubled())
    x = inputs(a)
    assert_trains_alike(a, b, x)
    with parametrize.cached():
        assert_like(b(x), a(x))


@layers
def test_parametrized_module_may_be_copied_after_a_forward(theirs, ours):
    """torch.nn refuses: its list of weights then holds a tensor with a history."""
    module = ours(3, 5)
    parametrizations.weight_norm(module, "weight_hh_l0")
    x = inputs(module)
    expected = module(x)
    duplicate = copy.deepcopy(module)
    assert_like(duplicate(x), expected)
    with torch.no_grad():
        duplicate.parametrizations.weight_hh_l0.original0.mul_(3)
    assert_like(module(x), expected)
    assert not torch.allclose(duplicate(x)[0], expected[0])


@layers
def test_pruning(theirs, ours):
    a, b = pair(theirs, ours, 3, 5)
    x = inputs(a)
    for m in (a, b):
        prune.l1_unstructured(m, "weight_hh_l0", amount=0.4)
        prune.ln_structured(m, "weight_ih_l0", amount=2, n=2, dim=0)
    assert (b.weight_hh_l0 == 0).sum() == round(0.4 * b.weight_hh_l0.numel())
    assert_trains_alike(a, b, x)
    for m in (a, b):
        prune.remove(m, "weight_hh_l0")
    names = [n for n, _ in b.named_parameters()]
    assert names == [n for n, _ in a.named_parameters()]
    assert names[-1] == "weight_hh_l0"
    assert_trains_alike(a, b, x)


@layers
def test_weights_are_found_by_name_whatever_their_order_of_registration(theirs, ours):
    """W_ih and W_hh of one shape: taken by position, they would be exchanged without an error."""
    a, b = pair(theirs, ours, 5, 5)
    for m in (a, b):
        weight = m.weight_ih_l0.detach().clone()
        del m.weight_ih_l0
        m.weight_ih_l0 = nn.Parameter(weight)
    assert next(iter(b._parameters)) == "weight_hh_l0"
    assert_like(b(torch.ones(4, 2, 5)), a(torch.ones(4, 2, 5)))
    b.float(), b.flatten_parameters()
    assert_like(b(torch.ones(4, 2, 5)), a(torch.ones(4, 2, 5)))


class WeightDropout(nn.Module):
    """Drops entries of a recurrent weight before each forward, by the means that fastai uses."""

    def __init__(self, module, p):
        super().__init__()
        self.module, self.p = module, p
        self.raw = nn.Parameter(module.weight_hh_l0.detach().clone())
        delattr(module, "weight_hh_l0")
        module.weight_hh_l0 = self.raw.clone()
        module.flatten_parameters = lambda: None

    def forward(self, *args):
        self.module.weight_hh_l0 = F.dropout(self.raw, self.p, self.training)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "RNN module weights")
            return self.module(*args)


@layers
def test_weight_dropout(theirs, ours):
    a, b = (WeightDropout(m, 0.5) for m in pair(theirs, ours, 3, 5))
    x = torch.randn(4, 2, 3)
    for _ in range(2):
        results = []
        for m in (a, b):
            torch.manual_seed(11)
            m.zero_grad()
            results.append(m(x))
            backward(results[-1])
        assert_like(results[1], results[0])
        assert_grads_like(b, a)
    assert b.raw.grad.abs().sum() > 0
    a.eval(), b.eval()
    assert_like(b(x), a(x))
