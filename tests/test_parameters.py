"""Parameters: order, shapes, initial values and random stream, and every way of changing one.

What ``torch.nn.utils`` does to weights (norms, parametrizations, pruning) is in
test_reparametrized.py.
"""

import copy
import gc
import weakref

import pytest
import torch
from helpers import (
    assert_grads_like,
    assert_like,
    backward,
    cells,
    error_of,
    every_class,
    hidden,
    is_lstm,
    layer_options,
    layers,
    pair,
)
from torch import nn


def built_from_one_seed(theirs, ours, *args, **kwargs):
    """Both modules, each with the random stream that follows its construction."""
    modules, streams = [], []
    for cls in (theirs, ours):
        torch.manual_seed(5)
        modules.append(cls(*args, **kwargs))
        streams.append(torch.get_rng_state())
    return modules, streams


def assert_equal_parameters(a, b):
    assert [n for n, _ in a.named_parameters()] == [n for n, _ in b.named_parameters()]
    for (name, p), q in zip(a.named_parameters(), b.parameters(), strict=True):
        assert p.dtype == q.dtype, name
        assert torch.equal(p, q), name
        assert type(q) is nn.Parameter
        assert q.is_leaf and q.requires_grad


@layer_options
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.complex64])
def test_same_seed_same_weights_and_same_stream_after(theirs, ours, options, dtype):
    (a, b), streams = built_from_one_seed(theirs, ours, 3, 5, dtype=dtype, **options)
    assert_equal_parameters(a, b)
    assert torch.equal(*streams)
    for module in (a, b):
        torch.manual_seed(6)
        module.reset_parameters()
    assert_equal_parameters(a, b)


@cells
@pytest.mark.parametrize("bias", [True, False])
def test_cell_same_seed_same_weights_and_same_stream_after(theirs, ours, bias):
    (a, b), streams = built_from_one_seed(theirs, ours, 3, 5, bias)
    assert_equal_parameters(a, b)
    assert torch.equal(*streams)


@every_class
def test_reset_parameters_of_a_subclass_covers_its_own_parameters(theirs, ours):
    def with_extra(base):
        class Extra(base):
            def __init__(self, *args):
                super().__init__(*args)
                self.extra = nn.Parameter(torch.zeros(2, 2))

        return Extra

    for cls in (with_extra(theirs), with_extra(ours)):
        module = cls(3, 5)
        module.reset_parameters()
        assert module.extra.abs().max() > 0
        assert module.extra.abs().max() <= 5**-0.5


@layer_options
def test_flat_weights_are_the_parameters_in_order(theirs, ours, options):
    a, b = theirs(3, 5, **options), ours(3, 5, **options)
    assert b._flat_weights_names == a._flat_weights_names
    assert b._flat_weights_names == [n for n, _ in b.named_parameters()]
    assert all(w is p for w, p in zip(b._flat_weights, b.parameters(), strict=True))
    assert isinstance(b._flat_weights, list)


# ---- every way of changing a weight must be seen by the next forward ----


def by_data(m, new):
    m.weight_hh_l0.data = new


def by_data_in_place(m, new):
    m.weight_hh_l0.data.copy_(new)


def by_data_mul(m, new):
    m.weight_hh_l0.data.mul_(-3)


def by_no_grad_in_place(m, new):
    with torch.no_grad():
        m.weight_hh_l0.copy_(new)


def by_element(m, new):
    with torch.no_grad():
        m.bias_hh_l0[1] = 2.5


def by_optimizer(m, new):
    optimizer = torch.optim.SGD(m.parameters(), lr=0.5)
    for p in m.parameters():
        p.grad = torch.linspace(-1, 1, p.numel()).view_as(p)
    optimizer.step()
    optimizer.zero_grad()


def by_setattr(m, new):
    m.weight_hh_l0 = nn.Parameter(new)


def by_delete_and_setattr(m, new):
    del m.weight_hh_l0
    m.weight_hh_l0 = nn.Parameter(new)


def by_plain_tensor(m, new):
    del m.weight_hh_l0
    m.weight_hh_l0 = new


def by_parameters_dict(m, new):
    m._parameters["weight_hh_l0"] = nn.Parameter(new)


def by_register_parameter(m, new):
    m.register_parameter("weight_hh_l0", nn.Parameter(new))


def by_load_state_dict(m, new):
    m.load_state_dict({**m.state_dict(), "weight_hh_l0": new})


def by_load_state_dict_assign(m, new):
    m.load_state_dict({**m.state_dict(), "weight_hh_l0": new}, assign=True)


def by_to_empty(m, new):
    m.to_empty(device="cpu")
    for p in m.parameters():
        p.data.fill_(0.25)
    m.weight_hh_l0.data.copy_(new)


def by_double_and_back(m, new):
    m.double()
    m.weight_hh_l0.data.copy_(new)
    m.float()


def by_share_memory(m, new):
    m.share_memory()
    m.weight_hh_l0.data.copy_(new)


def by_storage(m, new):
    m.weight_hh_l0.untyped_storage().copy_(new.contiguous().untyped_storage())


def by_numpy(m, new):
    m.weight_hh_l0.detach().numpy()[:] = new.numpy()


CHANGES = [
    by_data, by_data_in_place, by_data_mul, by_no_grad_in_place, by_element, by_optimizer,
    by_setattr, by_delete_and_setattr, by_plain_tensor, by_parameters_dict, by_register_parameter,
    by_load_state_dict, by_load_state_dict_assign, by_to_empty, by_double_and_back,
    by_share_memory, by_storage, by_numpy,
]  # fmt: skip


@pytest.mark.parametrize("change", CHANGES, ids=lambda c: c.__name__)
@pytest.mark.parametrize(
    ("training", "grad"), [(True, True), (False, False)], ids=["train-grad", "eval-no_grad"]
)
@layers
def test_a_changed_weight_is_seen(theirs, ours, change, training, grad):
    modules = pair(theirs, ours, 3, 5, num_layers=2)
    x, new = torch.randn(4, 2, 3), torch.randn_like(modules[0].weight_hh_l0)
    untouched = modules[1](x)[0].detach()
    for m in modules:
        m.train(training)
    with torch.set_grad_enabled(grad):
        for _ in range(2):  # before a first forward of the mode, and after one
            for m in modules:
                change(m, new.clone())
            results = [m(x) for m in modules]
            assert_like(results[1], results[0])
            assert not torch.allclose(results[1][0], untouched)
            new = new * -0.5
    if grad:
        for m, result in zip(modules, results, strict=True):
            m.zero_grad()
            backward(result)
        assert_grads_like(modules[1], modules[0])


@pytest.mark.parametrize("mode", ["swap", "overwrite"])
@layers
def test_conversion_modes_of_torch_future(theirs, ours, mode):
    setter = getattr(torch.__future__, f"set_{mode}_module_params_on_conversion")
    a, b = pair(theirs, ours, 3, 5)
    x = torch.randn(4, 2, 3, dtype=torch.float64)
    setter(True)
    try:
        a.double()
        b.double()
        with torch.no_grad():
            a.weight_hh_l0 *= -2
            b.weight_hh_l0 *= -2
        assert_like(b(x), a(x))
    finally:
        setter(False)


@layers
def test_refused_plain_tensor_leaves_the_module_as_it_was(theirs, ours):
    """torch.nn raises and then silently computes with the tensor that it refused."""
    a, b = pair(theirs, ours, 3, 5)
    x = torch.randn(4, 2, 3)
    expected = b(x)

    def assign(module):
        module.weight_hh_l0 = torch.zeros_like(module.weight_hh_l0)

    error = error_of(lambda: assign(b))
    assert str(error) == str(error_of(lambda: assign(a)))
    assert type(error) is TypeError
    assert b._flat_weights[1] is b.weight_hh_l0
    assert_like(b(x), expected)


@layers
def test_weight_set_to_none(theirs, ours):
    module = ours(3, 5)
    kept = module.weight_ih_l0
    module.weight_ih_l0 = None
    assert isinstance(error_of(lambda: module(torch.randn(4, 2, 3))), (AttributeError, TypeError))
    module.weight_ih_l0 = kept
    assert module(torch.randn(4, 2, 3))[0].shape == (4, 2, 5)


@layers
def test_partial_weights_survive_to_and_may_be_given_back(theirs, ours):
    a, b = pair(theirs, ours, 3, 5)
    x = torch.randn(4, 2, 3)
    names = b._flat_weights_names[:2]
    kept = {n: getattr(b, n) for n in names}
    for n in names:
        delattr(b, n)
    b.to(torch.float64)
    b.to(torch.float32)
    for n, p in kept.items():
        setattr(b, n, p)
    assert_like(b(x), a(x))
    assert all(
        w is getattr(b, n) for w, n in zip(b._flat_weights, b._flat_weights_names, strict=True)
    )


@layers
def test_flatten_parameters_returns_none_and_may_be_replaced(theirs, ours):
    module = ours(3, 5)
    assert module.flatten_parameters() is None
    calls = []
    module.flatten_parameters = lambda: calls.append(1)
    module.double()
    assert calls
    assert module(torch.randn(4, 2, 3, dtype=torch.float64))[0].dtype == torch.float64


@layers
def test_tied_weights(theirs, ours):
    modules = pair(theirs, ours, 5, 5, num_layers=2)
    for m in modules:
        m.weight_hh_l1 = m.weight_hh_l0
    x = torch.randn(4, 2, 5)
    for a, b in (modules, [copy.deepcopy(m) for m in modules]):
        assert len(list(b.parameters())) == 7
        assert len(b.state_dict()) == 8
        assert b.weight_hh_l1 is b.weight_hh_l0
        results = a(x), b(x)
        assert_like(results[1], results[0])
        for result in results:
            backward(result)
        assert_grads_like(b, a)


def transposed(w):
    return w.t().contiguous().t() if w.dim() == 2 else w


def strided(w):
    wide = torch.empty([2 * n for n in w.shape])
    part = wide[tuple(slice(None, None, 2) for _ in w.shape)]
    return part.copy_(w)


def unaligned(w):
    return torch.empty(w.numel() + 1)[1:].view_as(w).copy_(w)


def expanded(w):
    return w[:1].expand(w.shape)


@pytest.mark.parametrize("layout", [transposed, strided, unaligned, expanded])
@layers
def test_weights_of_any_layout(theirs, ours, layout):
    modules = pair(theirs, ours, 3, 5, num_layers=2, bidirectional=True)
    for m in modules:
        for name, p in list(m.named_parameters()):
            value = layout(p.detach())
            setattr(m, name, nn.Parameter(value))
            assert getattr(m, name).stride() == value.stride()
    x = torch.randn(4, 2, 3)
    results = [m(x) for m in modules]
    assert_like(results[1], results[0])
    for result in results:
        backward(result)
    assert_grads_like(modules[1], modules[0])


@layers
def test_weights_that_are_views_of_one_buffer(theirs, ours):
    a, b = pair(theirs, ours, 3, 5)
    buffer = torch.cat([p.detach().flatten() for p in b.parameters()])
    start = 0
    for name, p in list(b.named_parameters()):
        setattr(b, name, nn.Parameter(buffer[start : start + p.numel()].view_as(p)))
        start += p.numel()
    x = torch.randn(4, 2, 3)
    assert_like(b(x), a(x))
    buffer.mul_(2)
    for p in a.parameters():
        p.data.mul_(2)
    assert_like(b(x), a(x))


@cells
@pytest.mark.parametrize("layout", [transposed, strided, unaligned, expanded])
def test_cell_weights_of_any_layout(theirs, ours, layout):
    modules = pair(theirs, ours, 3, 5)
    for m in modules:
        for name, p in list(m.named_parameters()):
            setattr(m, name, nn.Parameter(layout(p.detach())))
    x = torch.randn(2, 3)
    results = [m(x) for m in modules]
    assert_like(results[1], results[0])
    for result in results:
        backward(result)
    assert_grads_like(modules[1], modules[0])


@layers
def test_attributes_are_read_at_call_time(theirs, ours):
    modules = pair(theirs, ours, 3, 5, num_layers=2)
    x = torch.randn(4, 2, 3)
    for name, value in [("batch_first", True), ("dropout", 0.5), ("batch_first", False)]:
        results = []
        for m in modules:
            setattr(m, name, value)
            torch.manual_seed(3)
            results.append(m(x))
        assert_like(results[1], results[0])


@every_class
def test_parameters_are_freed_with_the_module_without_gc(theirs, ours):
    gc.collect()
    gc.disable()
    try:
        module = ours(3, 5)
        x = torch.randn(2, 3) if "Cell" in ours.__name__ else torch.randn(4, 2, 3)
        backward(module(x, hidden(module, 2)))
        with torch.no_grad():
            module(x)
        references = [weakref.ref(p) for p in module.parameters()]
        del module
        assert [r() for r in references] == [None] * len(references)
    finally:
        gc.enable()


@layers
def test_data_parallel_replica_has_its_own_list_of_weights(theirs, ours):
    module = ours(3, 5)
    replica = module._replicate_for_data_parallel()
    assert replica._flat_weights is not module._flat_weights
    assert replica._flat_weights_names is not module._flat_weights_names
    assert all(a is b for a, b in zip(replica._flat_weights, module._flat_weights, strict=True))


@layers
def test_a_weight_shared_with_another_module(theirs, ours):
    losses = []
    for cls in (theirs, ours):
        torch.manual_seed(1)
        module, head = cls(3, 5), nn.Linear(5, 15 if not is_lstm(cls) else 20, bias=False)
        head.weight = module.weight_hh_l0
        optimizer = torch.optim.SGD([*module.parameters()], lr=0.1)
        x = torch.randn(4, 2, 3)
        for _ in range(3):
            optimizer.zero_grad()
            loss = head(module(x)[0]).square().mean()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    assert losses[:3] == pytest.approx(losses[3:], rel=1e-5)


@layers
def test_averaged_model(theirs, ours):
    modules = pair(theirs, ours, 3, 5)
    x = torch.randn(4, 2, 3)
    averages = [torch.optim.swa_utils.AveragedModel(m) for m in modules]
    for m, average in zip(modules, averages, strict=True):
        average.update_parameters(m)
        by_optimizer(m, None)
        average.update_parameters(m)
    assert_like(averages[1](x), averages[0](x))
