"""forward: shapes, strides, defaults, forms of hx, aliasing, empty batches, dtypes, NaN."""

import math

import pytest
import torch
from helpers import (
    assert_grads_like,
    assert_like,
    backward,
    hidden,
    is_lstm,
    layer_options,
    layers,
    leaf_copy,
    pair,
    tensors,
)
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

T, B, IN, H = 5, 3, 3, 4


def inputs(module, batch=B, steps=T, **kwargs):
    """Random input in the form that the module's batch_first asks for; batch=None: unbatched."""
    if batch is None:
        return torch.randn(steps, IN, **kwargs)
    if module.batch_first:
        return torch.randn(batch, steps, IN, **kwargs)
    return torch.randn(steps, batch, IN, **kwargs)


@layer_options
@pytest.mark.parametrize("batch", [None, 1, B], ids=["unbatched", "B=1", "B=3"])
@pytest.mark.parametrize("steps", [1, T], ids=["T=1", "T=5"])
@pytest.mark.parametrize("with_hx", [False, True], ids=["", "hx"])
@pytest.mark.parametrize("grad", [False, True], ids=["no_grad", "grad"])
def test_results_gradients_and_layout(theirs, ours, options, batch, steps, with_hx, grad):
    a, b = pair(theirs, ours, IN, H, **options)
    x = inputs(a, batch, steps)
    hx = hidden(a, batch) if with_hx else None
    results = []
    with torch.set_grad_enabled(grad):
        arguments = [(leaf_copy(x), leaf_copy(hx)) for _ in range(2)]
        for m, args in zip((a, b), arguments, strict=True):
            results.append(m(*args))
    assert_like(results[1], results[0])
    if grad:
        for result in results:
            backward(result)
        assert_grads_like(b, a)
        for p, q in zip(*map(tensors, arguments), strict=True):
            assert_like(q.grad, p.grad, strides=False)


@layers
def test_call_forms(theirs, ours):
    m = ours(IN, H)
    x, hx = inputs(m), hidden(m, B)
    expected = m(x, hx)
    assert_like(m(x, hx=hx), expected)
    assert_like(m(input=x, hx=hx), expected)
    assert_like(m.forward(x, hx), expected)
    assert_like(m(x), m(x, None))
    if is_lstm(m):
        assert_like(m(x, list(hx)), expected)
    zeros = tuple(torch.zeros_like(h) for h in hx) if is_lstm(m) else torch.zeros_like(hx)
    assert all(torch.equal(p, q) for p, q in zip(*map(tensors, (m(x), m(x, zeros))), strict=True))


@layers
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16, torch.complex64])
def test_default_states_take_the_dtype_of_the_input(theirs, ours, dtype):
    m = ours(IN, H, dtype=dtype)
    assert {t.dtype for t in tensors(m(inputs(m, dtype=dtype)))} == {dtype}


@layer_options
def test_nothing_shares_memory_and_nothing_is_written(theirs, ours, options):
    m = ours(IN, H, **options)
    for steps in (1, T):
        x, hx = inputs(m, steps=steps), hidden(m, B)
        given = [x, *tensors(hx), *m.parameters()]
        values, versions = [t.clone() for t in given], [t._version for t in given]
        for grad in (False, True):
            with torch.set_grad_enabled(grad):
                result = list(tensors(m(x, hx)))
            storages = [t.untyped_storage().data_ptr() for t in [*given, *result]]
            assert len(set(storages)) == len(storages)
        assert [t._version for t in given] == versions
        assert all(torch.equal(t, v) for t, v in zip(given, values, strict=True))


@layers
@pytest.mark.parametrize("grad", [False, True], ids=["no_grad", "grad"])
@pytest.mark.parametrize("steps", [1, T])
def test_last_output_is_the_final_state_bit_for_bit(theirs, ours, grad, steps):
    m = ours(IN, H, num_layers=2)
    with torch.set_grad_enabled(grad):
        output, hn = m(inputs(m, steps=steps))
    assert torch.equal(output[-1], (hn[0] if is_lstm(m) else hn)[-1])


@layer_options
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_grad_and_no_grad_runs_are_bit_equal(theirs, ours, options, dtype):
    m = ours(IN, H, dtype=dtype, **options)
    x = inputs(m, dtype=dtype)
    with torch.no_grad():
        expected = m(x)
    for a, b in zip(*map(tensors, (m(x), expected)), strict=True):
        assert torch.equal(a, b)


@layers
@pytest.mark.parametrize("on", [None, "input", "hx", "weight_ih_l0", "bias_hh_l1"])
@pytest.mark.parametrize("grad", [False, True], ids=["no_grad", "grad"])
def test_requires_grad_of_results(theirs, ours, on, grad):
    a, b = pair(theirs, ours, IN, H, num_layers=2)
    x, hx = inputs(a).requires_grad_(on == "input"), hidden(a, B, requires_grad=on == "hx")
    for m in (a, b):
        for name, p in m.named_parameters():
            p.requires_grad_(name == on)
    with torch.set_grad_enabled(grad):
        results = a(x, hx), b(x, hx)
    assert_like(results[1], results[0])
    wanted = grad and on is not None
    assert {t.requires_grad for t in tensors(results[1])} == {wanted}
    assert all(t.is_leaf == (not wanted) for t in tensors(results[1]))


def transposed(t):
    return t.transpose(0, -1).contiguous().transpose(0, -1)


def strided(t):
    wide = torch.full([2 * n for n in t.shape], math.nan)
    return wide[tuple(slice(1, None, 2) for _ in t.shape)].copy_(t)


def unaligned(t):
    return torch.empty(t.numel() + 1)[1:].view_as(t).copy_(t)


def expanded(t):
    return t[:1, :1].expand(t.shape)


def expanded_features(t):
    return t[..., :1].expand(t.shape)


LAYOUTS = [transposed, strided, unaligned, expanded, expanded_features]


@layers
@pytest.mark.parametrize("layout", LAYOUTS)
def test_input_and_states_of_any_layout(theirs, ours, layout):
    a, b = pair(theirs, ours, IN, H, num_layers=2, bidirectional=True)
    x, hx = inputs(a), hidden(a, B)
    arguments = []
    for m in (a, b):
        leaves = leaf_copy(x), leaf_copy(hx)
        h = tuple(map(layout, leaves[1])) if is_lstm(m) else layout(leaves[1])
        backward(m(layout(leaves[0]), h))
        arguments.append(leaves)
        with torch.no_grad():
            arguments.append(m(layout(x), h))
    assert_grads_like(b, a)
    assert_like(arguments[3], arguments[1])
    for p, q in zip(tensors(arguments[0]), tensors(arguments[2]), strict=True):
        assert_like(q.grad, p.grad, strides=False)


@layer_options
@pytest.mark.parametrize("grad", [False, True], ids=["no_grad", "grad"])
def test_empty_batch(theirs, ours, options, grad):
    a, b = pair(theirs, ours, IN, H, **options)
    results, leaves = [], []
    for m in (a, b):
        x, hx = inputs(m, 0, requires_grad=True), hidden(m, 0, requires_grad=True)
        with torch.set_grad_enabled(grad):
            results.append(m(x, hx))
        leaves.append((x, hx))
    assert_like(results[1], results[0])
    if grad:
        for result in results:
            torch.autograd.backward([t.sum() for t in tensors(result)])
        assert_grads_like(b, a)
        assert all(p.grad.count_nonzero() == 0 for p in b.parameters())
        for p, q in zip(*map(tensors, leaves), strict=True):
            assert_like(q.grad, p.grad, strides=False)


@layers
@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf, 1e30])
def test_poison_stays_in_its_sample_and_time_and_goes_where_torch_lets_it_go(theirs, ours, poison):
    a, b = pair(theirs, ours, IN, H)
    clean = inputs(a)
    x = clean.clone()
    x[2, 1, 0] = poison
    for grad in (False, True):
        with torch.set_grad_enabled(grad):
            results, untouched = (a(x), b(x)), b(clean)
        assert_like(results[1], results[0])
        output = results[1][0].detach()
        assert torch.equal(output[:2], untouched[0][:2])
        assert torch.equal(output[:, [0, 2]], untouched[0][:, [0, 2]])
        if math.isnan(poison):
            assert output[2:, 1].isnan().all()


@layers
@pytest.mark.parametrize("poison", [math.nan, math.inf])
def test_poisoned_weight_and_state(theirs, ours, poison):
    a, b = pair(theirs, ours, IN, H)
    x, hx = inputs(a), hidden(a, B)
    next(tensors(hx))[0, 1, 2] = poison
    assert_like(b(x, hx), a(x, hx))
    for m in (a, b):
        m.bias_ih_l0.data[1] = poison
        m.weight_hh_l0.data[2, 3] = poison
    results = a(x), b(x)
    assert_like(results[1], results[0])
    for result in results:
        backward(result)
    assert_grads_like(b, a)


@layers
def test_saturated_gates(theirs, ours):
    a, b = pair(theirs, ours, IN, H)
    x = inputs(a) * torch.tensor([1e3, 1e10, 3e38])
    results = a(x), b(x)
    assert_like(results[1], results[0])
    assert all(t.isfinite().all() for t in tensors(results[1]))
    for result in results:
        backward(result)
    assert_grads_like(b, a)


@layer_options
@pytest.mark.parametrize(
    "dtype", [torch.bfloat16, torch.float16, torch.float64, torch.complex64, torch.complex128]
)
def test_dtypes_forward_and_backward(theirs, ours, options, dtype):
    a, b = pair(theirs, ours, IN, H, dtype=dtype, **options)
    x, hx = inputs(a, dtype=dtype), hidden(a, B, dtype=dtype)
    results = a(x, hx), b(x, hx)
    assert_like(results[1], results[0])
    for result in results:
        backward(result)
    assert_grads_like(b, a)


@layer_options
def test_meta_in_meta_out(theirs, ours, options):
    for m in (theirs(IN, H, device="meta", **options), ours(IN, H, device="meta", **options)):
        output, _ = result = m(inputs(m, device="meta"))
        assert all(t.is_meta for t in tensors(result))
        width = (m.proj_size or H) * (2 if m.bidirectional else 1)
        assert output.shape == ((B, T, width) if m.batch_first else (T, B, width))


@layers
def test_meta_shapes_whose_products_pass_32_bits(theirs, ours):
    m = ours(1 << 10, 1 << 6, device="meta")
    output, _ = m(torch.empty(1 << 12, 1 << 16, 1 << 10, device="meta"))
    assert output.shape == (1 << 12, 1 << 16, 1 << 6)
    assert output.numel() == 1 << 34


@layer_options
def test_fake_tensors(theirs, ours, options):
    real = ours(IN, H, **options)
    expected = real(inputs(real))
    with FakeTensorMode():
        m = ours(IN, H, **options)
        result = m(inputs(m))
        for fake, t in zip(*map(tensors, (result, expected)), strict=True):
            assert (fake.shape, fake.dtype, fake.stride()) == (t.shape, t.dtype, t.stride())
        backward_of = torch.autograd.grad(result[0].sum(), list(m.parameters()))
        assert [g.shape for g in backward_of] == [p.shape for p in m.parameters()]


@layers
def test_inference_mode(theirs, ours):
    a, b = pair(theirs, ours, IN, H, num_layers=2)
    x = inputs(a)
    with torch.inference_mode():
        results = a(x), b(x)
    assert_like(results[1], results[0])
    assert all(t.is_inference() for t in tensors(results[1]))
    with torch.inference_mode():
        made_inside = ours(IN, H)
        assert_like(made_inside(x), made_inside(x.clone()))


@layers
def test_deterministic_algorithms_and_repeated_calls(theirs, ours):
    m = ours(IN, 33, num_layers=2, bidirectional=True)
    x = inputs(m)
    runs = []
    torch.use_deterministic_algorithms(True)
    try:
        for _ in range(3):
            m.zero_grad()
            result = m(x)
            backward(result)
            runs.append([*tensors(result), *(p.grad for p in m.parameters())])
    finally:
        torch.use_deterministic_algorithms(False)
    for run in runs[1:]:
        assert all(torch.equal(p, q) for p, q in zip(run, runs[0], strict=True))


class Marked(torch.Tensor):
    """A subclass without behaviour of its own, as many libraries have them."""


@layers
def test_tensor_subclass_in_results_alike(theirs, ours):
    a, b = pair(theirs, ours, IN, H)
    x = inputs(a).as_subclass(Marked)
    results = a(x), b(x)
    assert [type(t) for t in tensors(results[1])] == [type(t) for t in tensors(results[0])]
    assert_like(results[1][0].as_subclass(torch.Tensor), results[0][0].as_subclass(torch.Tensor))


@layers
def test_results_are_plain_tuples_of_plain_tensors(theirs, ours):
    m = ours(IN, H)
    result = m(inputs(m))
    assert type(result) is tuple
    assert type(result[1]) is (tuple if is_lstm(m) else torch.Tensor)
    assert {type(t) for t in tensors(result)} == {torch.Tensor}


@layers
def test_forward_hooks_see_the_arguments_and_the_nested_result(theirs, ours):
    seen = []
    for m in pair(theirs, ours, IN, H):
        m.register_forward_pre_hook(lambda m, args: seen.append(args))
        m.register_forward_hook(lambda m, args, result: seen.append((args, result)))
        x, hx = torch.ones(T, B, IN), [torch.ones(1, B, H)] * 2
        m(x)
        m(x, tuple(hx) if is_lstm(m) else hx[0])
    half = len(seen) // 2
    assert half == 4
    for mine, expected in zip(seen[half:], seen[:half], strict=True):
        assert_like(mine, expected)


@layers
@pytest.mark.parametrize("batch_first", [False, True])
def test_state_carried_from_call_to_call_equals_one_long_call(theirs, ours, batch_first):
    m = ours(IN, H, num_layers=2, batch_first=batch_first)
    x = inputs(m, steps=6)
    whole, last = m(x)
    time = 1 if batch_first else 0
    outputs, hx = [], None
    for piece in x.split([1, 3, 2], dim=time):
        output, hx = m(piece, hx)
        outputs.append(output)
    torch.testing.assert_close(torch.cat(outputs, dim=time), whole, rtol=1e-5, atol=1e-6)
    for p, q in zip(*map(tensors, (hx, last)), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6)


@layers
def test_module_on_sequential_and_wrapped(theirs, ours):
    class Model(nn.Module):
        def __init__(self, cls):
            super().__init__()
            self.rnn, self.head = cls(IN, H, batch_first=True), nn.Linear(H, 1)

        def forward(self, x):
            return self.head(self.rnn(x)[0][:, -1])

    models = Model(theirs), Model(ours)
    models[1].load_state_dict(models[0].state_dict())
    x = torch.randn(B, T, IN)
    for m in models:
        m(x).square().sum().backward()
    assert_grads_like(models[1], models[0])
