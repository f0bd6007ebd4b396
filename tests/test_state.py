"""State dicts in both directions, pickles old and new, torch.save, copies."""

import copy
import io
import pickle

import pytest
import torch
from helpers import (
    assert_like,
    assert_same_error,
    backward,
    error_of,
    every_class,
    layer_options,
    layers,
    pair,
)
from torch import nn

import gatedrnn


def inputs(module):
    if isinstance(module, nn.RNNCellBase):
        return torch.randn(2, 3)
    return torch.randn(2, 2, 3)


@layer_options
def test_state_dict_loads_in_both_directions(theirs, ours, options):
    a, b = theirs(3, 4, **options), ours(3, 4, **options)
    assert list(b.state_dict()) == list(a.state_dict())
    assert b.state_dict()._metadata == a.state_dict()._metadata
    x = inputs(a)
    assert b.load_state_dict(a.state_dict(), strict=True) == nn.modules.module._IncompatibleKeys(
        [], []
    )
    assert_like(b(x), a(x))
    c = theirs(3, 4, **options)
    c.load_state_dict(b.state_dict(), strict=True)
    assert_like(c(x), a(x))


@every_class
def test_state_dict_shares_the_storage_of_the_parameters(theirs, ours):
    module = ours(3, 4)
    for name, p in module.named_parameters():
        assert module.state_dict()[name].data_ptr() == p.data_ptr()
        assert module.state_dict(keep_vars=True)[name] is p


@every_class
def test_state_dict_mismatches_are_told_as_by_torch(theirs, ours):
    good = theirs(3, 4).state_dict()
    first = next(iter(good))
    bad = [
        {k: v for k, v in good.items() if k != first},
        {**good, "extra": torch.zeros(1)},
        {**good, first: torch.zeros(2, 2)},
        theirs(3, 4, bias=False).state_dict(),
    ]
    for state in bad:
        assert_same_error(
            lambda state=state: ours(3, 4).load_state_dict(state),
            lambda state=state: theirs(3, 4).load_state_dict(state),
        )
    result = ours(3, 4).load_state_dict(bad[1], strict=False)
    assert result.unexpected_keys == ["extra"]


def by_pickle(m):
    return pickle.loads(pickle.dumps(m))


def by_old_protocol(m):
    return pickle.loads(pickle.dumps(m, protocol=2))


def by_torch_save(m):
    file = io.BytesIO()
    torch.save(m, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


COPIES = [by_pickle, by_old_protocol, by_torch_save, copy.deepcopy]
copied = pytest.mark.parametrize("duplicate", COPIES, ids=lambda c: c.__name__)


@copied
@layer_options
def test_copies_compute_alike_and_are_independent(theirs, ours, options, duplicate):
    module = ours(3, 4, **options).eval()
    module.extra_attribute = {"any": 1}
    x = inputs(module)
    backward(module(x))
    twin = duplicate(module)
    assert type(twin) is ours
    assert repr(twin) == repr(module)
    assert twin.training is False
    assert twin.extra_attribute == {"any": 1}
    assert twin.extra_attribute is not module.extra_attribute
    assert all(w is p for w, p in zip(twin._flat_weights, twin.parameters(), strict=True))
    assert twin._flat_weights_names == module._flat_weights_names
    assert [n for n, _ in twin.named_parameters()] == [n for n, _ in module.named_parameters()]
    expected = module(x)
    assert_like(twin(x), expected)
    with torch.no_grad():
        twin.weight_hh_l0.mul_(-1)
    assert_like(module(x), expected)
    changed = twin(x)[0]
    assert not torch.allclose(changed, expected[0])
    twin.weight_hh_l0 = nn.Parameter(module.weight_hh_l0.detach().clone())
    assert_like(twin(x), expected)


@copied
@every_class
def test_dropout_flags_and_gradients_of_copies(theirs, ours, duplicate):
    options = {} if issubclass(ours, nn.RNNCellBase) else {"num_layers": 2, "dropout": 0.5}
    a, b = theirs(3, 4, **options), ours(3, 4, **options)
    for m in (a, b):
        backward(m(inputs(m)))
        next(m.parameters()).requires_grad_(False)
    twins = duplicate(a), duplicate(b)
    for p, q in zip(*(t.parameters() for t in twins), strict=True):
        assert p.requires_grad == q.requires_grad
        assert (p.grad is None) == (q.grad is None)
    assert getattr(twins[1], "dropout", None) == getattr(twins[0], "dropout", None)


@layers
def test_getstate_leaves_out_the_weak_references(theirs, ours):
    a, b = theirs(3, 4), ours(3, 4)
    assert "_flat_weight_refs" not in b.__getstate__()
    assert b.__getstate__().keys() >= a.__getstate__().keys()


@layers
def test_state_of_a_pickle_follows_the_weights(theirs, ours):
    """A weight written past setattr just before pickling must be the one that is pickled."""
    module = ours(3, 4)
    new = nn.Parameter(torch.zeros_like(module.weight_hh_l0))
    module._parameters["weight_hh_l0"] = new
    twin = by_pickle(module)
    assert torch.equal(twin._flat_weights[1], new)


def revived(cls, state):
    module = cls.__new__(cls)
    module.__setstate__(state)
    return module


def state_of_today(module):
    return module.__getstate__()


def state_before_projections(module):
    state = module.__getstate__()
    del state["proj_size"]
    return state


def state_with_all_weights(module):
    state = module.__getstate__()
    state["all_weights"] = state.pop("_all_weights")
    return state


def state_with_tensors(module):
    state = module.__getstate__()
    del state["_flat_weights_names"], state["_flat_weights"]
    state["_all_weights"] = module.all_weights
    return state


AGES = [state_of_today, state_before_projections, state_with_all_weights, state_with_tensors]


@pytest.mark.parametrize("state_of", AGES, ids=lambda f: f.__name__)
@pytest.mark.parametrize("bias", [True, False])
@layers
def test_states_of_torch_modules_revive_as_ours(theirs, ours, bias, state_of):
    """States as torch.nn has written them through the years."""
    module = theirs(3, 4, num_layers=2, bias=bias, bidirectional=True)
    twin = revived(ours, state_of(module))
    x = inputs(module)
    assert twin.proj_size == module.proj_size
    assert_like(twin(x), module(x))
    assert twin._flat_weights_names == module._flat_weights_names
    assert twin._all_weights == module._all_weights
    assert all(w is p for w, p in zip(twin._flat_weights, module.parameters(), strict=True))


@pytest.mark.parametrize("bias", [True, False])
def test_old_state_with_projections_revives(bias):
    """Where torch.nn fails for bias=False: attribute name must be string, not 'list'."""
    module = nn.LSTM(3, 4, proj_size=2, num_layers=2, bias=bias)
    state = module.__getstate__()
    state["_all_weights"] = module.all_weights
    twin = revived(gatedrnn.LSTM, state)
    assert twin._all_weights == module._all_weights
    assert twin._flat_weights_names == module._flat_weights_names
    x = inputs(module)
    assert_like(twin(x), module(x))


@every_class
def test_shallow_copy_shares_the_parameters(theirs, ours):
    modules = pair(theirs, ours, 3, 4)
    twins = [copy.copy(m) for m in modules]
    name = next(iter(modules[0]._parameters))
    new = nn.Parameter(torch.randn_like(getattr(modules[0], name)))
    x = inputs(modules[0])
    for module, twin in zip(modules, twins, strict=True):
        assert getattr(twin, name) is getattr(module, name)
        setattr(twin, name, new)
        assert getattr(module, name) is new
        assert_like(twin(x), module(x))
    assert_like(twins[1](x), twins[0](x))


@every_class
def test_weights_only_load_of_a_module_is_refused_and_of_a_state_dict_works(theirs, ours):
    module = ours(3, 4)
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    assert type(error_of(lambda: torch.load(file, weights_only=True))) is pickle.UnpicklingError
    file = io.BytesIO()
    torch.save(module.state_dict(), file)
    file.seek(0)
    theirs(3, 4).load_state_dict(torch.load(file, weights_only=True))


@layers
def test_pickle_of_tied_weights_keeps_the_tie(theirs, ours):
    a, b = pair(theirs, ours, 4, 4, num_layers=2)
    for m in (a, b):
        m.weight_hh_l1 = m.weight_hh_l0
    twin = by_pickle(b)
    assert twin.weight_hh_l1 is twin.weight_hh_l0
    x = torch.randn(2, 2, 4)
    assert_like(twin(x), a(x))


@layers
def test_parametrized_module_is_not_pickled(theirs, ours):
    a, b = pair(theirs, ours, 3, 4)
    for m in (a, b):
        nn.utils.parametrizations.orthogonal(m, "weight_hh_l0")
    assert_same_error(lambda: pickle.dumps(b), lambda: pickle.dumps(a))
