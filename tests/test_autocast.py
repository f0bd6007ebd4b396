"""Autocast on the CPU. torch.nn is inconsistent there: a GRU, a packed LSTM and the cells return
float32, a padded LSTM the low dtype. Ours returns the autocast dtype everywhere."""

import pytest
import torch
from helpers import (
    assert_grads_like,
    assert_like,
    backward,
    every_class,
    hidden,
    layers,
    leaf_copy,
    pair,
    tensors,
)
from torch import nn
from torch.nn.utils.rnn import pack_sequence

IN, H = 3, 8
LOW = [torch.bfloat16, torch.float16]
# Against torch.nn in float32: a few roundings of the low dtype.
NEAR = {torch.bfloat16: {"rtol": 6e-2, "atol": 3e-2}, torch.float16: {"rtol": 1e-2, "atol": 5e-3}}


def cast(hx, dtype):
    """A state of either form in another dtype; None stays."""
    if hx is None or isinstance(hx, torch.Tensor):
        return hx if hx is None else hx.to(dtype)
    return tuple(h.to(dtype) for h in hx)


def inputs(m, **kwargs):
    shape = (4, IN) if isinstance(m, nn.modules.rnn.RNNCellBase) else (5, 4, IN)
    return torch.randn(shape, **kwargs)


@pytest.mark.parametrize("dtype", LOW)
@pytest.mark.parametrize("grad", [True, False], ids=["grad", "no_grad"])
@pytest.mark.parametrize("given", [torch.float32, "low"], ids=["float32 in", "low in"])
@every_class
def test_results_in_the_autocast_dtype_gradients_in_the_parameters(
    theirs, ours, dtype, grad, given
):
    a, b = pair(theirs, ours, IN, H)
    kind = dtype if given == "low" else given
    x, hx = inputs(a).to(kind), hidden(a, 4)
    leaf = leaf_copy(x)
    for state in (None, hx, cast(hx, dtype)):
        with torch.set_grad_enabled(grad):
            expected = a(x.float(), cast(state, torch.float32))
            with torch.autocast("cpu", dtype):
                result = b(leaf, state)
        assert {t.dtype for t in tensors(result)} == {dtype}
        for p, q in zip(*map(tensors, (result, expected)), strict=True):
            assert_like(p.float(), q, strides=False, **NEAR[dtype])
        if grad:
            for m, r in ((a, expected), (b, result)):
                m.zero_grad()
                torch.autograd.backward([t.float().sum() for t in tensors(r)])
            assert {p.grad.dtype for p in b.parameters()} == {torch.float32}
            assert leaf.grad.dtype == kind
            limit = max(float(p.grad.abs().max()) for p in a.parameters())
            assert_grads_like(b, a, rtol=0.1, atol=limit * NEAR[dtype]["atol"])


@pytest.mark.parametrize("dtype", LOW)
@pytest.mark.parametrize("lengths", [[3, 3], [1, 4, 2]], ids=["equal", "unsorted"])
@layers
def test_packed(theirs, ours, dtype, lengths):
    a, b = pair(theirs, ours, IN, H, num_layers=2, bidirectional=True)
    p = pack_sequence([torch.randn(n, IN) for n in lengths], enforce_sorted=False)
    expected = a(p)
    with torch.autocast("cpu", dtype):
        result = b(p)
    assert {t.dtype for t in tensors(result)} == {dtype}
    for q, r in zip(*map(tensors, (result, expected)), strict=True):
        assert_like(q.float(), r, strides=False, **NEAR[dtype])


@every_class
def test_equals_a_module_of_the_low_dtype(theirs, ours):
    m = ours(IN, H)
    x = inputs(m)
    with torch.autocast("cpu", torch.bfloat16):
        result = m(x)
    low = ours(IN, H, dtype=torch.bfloat16)
    low.load_state_dict(m.state_dict())
    for p, q in zip(*map(tensors, (result, low(x.bfloat16()))), strict=True):
        assert torch.equal(p, q)


@every_class
@pytest.mark.parametrize("dtype", [torch.float64, torch.complex64])
def test_wide_and_complex_dtypes_are_left_alone(theirs, ours, dtype):
    m = ours(IN, H, dtype=dtype)
    x = inputs(m, dtype=dtype)
    expected = m(x)
    with torch.autocast("cpu", torch.bfloat16):
        result = m(x)
    assert_like(result, expected, rtol=0, atol=0)


@every_class
def test_float64_input_to_a_float32_module_is_refused(theirs, ours):
    m = ours(IN, H)
    with (
        torch.autocast("cpu", torch.bfloat16),
        pytest.raises((ValueError, RuntimeError), match=r"float64.*float32|float32.*float64"),
    ):
        m(inputs(m).double())


@every_class
def test_switched_off_inside_and_for_other_devices(theirs, ours):
    m = ours(IN, H)
    x = inputs(m)
    expected = m(x)
    with torch.autocast("cpu", torch.bfloat16):
        with torch.autocast("cpu", enabled=False):
            assert_like(m(x), expected, rtol=0, atol=0)
        meta = ours(IN, H, device="meta")
        assert all(t.is_meta for t in tensors(meta(inputs(m, device="meta"))))
    assert_like(m(x), expected, rtol=0, atol=0)


@layers
def test_dropout_masks_are_those_of_the_seed(theirs, ours):
    """The same elements are dropped as without autocast: the stream is torch's."""
    m = ours(IN, H, num_layers=2, dropout=0.5)
    x = inputs(m)
    results, streams = [], []
    for enabled in (False, True):
        torch.manual_seed(1)
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            results.append(m(x)[0].float())
        streams.append(torch.get_rng_state())
    assert torch.equal(*streams)
    assert_like(results[1], results[0], strides=False, **NEAR[torch.bfloat16])


@every_class
def test_training_with_autocast_follows_float32(theirs, ours):
    losses = []
    for cls, enabled in ((theirs, False), (ours, True)):
        torch.manual_seed(3)
        m, head = cls(IN, H), nn.Linear(H, 1)
        optimizer = torch.optim.Adam([*m.parameters(), *head.parameters()], lr=0.02)
        x = inputs(m)
        for _ in range(8):
            optimizer.zero_grad()
            with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
                y = head(next(tensors(m(x))))
            loss = (y.float() - x[..., :1]).square().mean()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    assert losses[8:] == pytest.approx(losses[:8], rel=0.05)
    assert losses[15] < 0.9 * losses[8]


@layers
def test_backward_outside_of_autocast_and_through_two_calls(theirs, ours):
    """The usual loop: forward inside, backward outside, weights used by more than one call."""
    m = ours(IN, H)
    x = inputs(m)
    with torch.autocast("cpu", torch.bfloat16):
        first = m(x)
        second = m(x, cast(first[1], torch.float32))
    backward([first, second])
    assert {p.grad.dtype for p in m.parameters()} == {torch.float32}
    assert all(p.grad.isfinite().all() and p.grad.count_nonzero() for p in m.parameters())


@every_class
def test_a_scaled_step_is_that_of_float32(theirs, ours):
    """float16 with GradScaler, which finds the overflow that it is there for and skips it."""
    m, reference = ours(IN, H), ours(IN, H)
    reference.load_state_dict(m.state_dict())
    x = inputs(m)
    next(tensors(reference(x))).square().mean().backward()
    expected = {n: p - 0.1 * p.grad for n, p in reference.named_parameters()}
    optimizer = torch.optim.SGD(m.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**40)
    before = {n: p.detach().clone() for n, p in m.named_parameters()}
    skipped = 0
    while scaler.get_scale() > 1:
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.float16):
            loss = next(tensors(m(x))).float().square().mean()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scale = scaler.get_scale()
        scaler.update()
        if scaler.get_scale() == scale:
            break
        skipped += 1
        assert all(torch.equal(p, before[n]) for n, p in m.named_parameters())
    assert skipped > 0
    for n, p in m.named_parameters():
        assert_like(p.detach(), expected[n].detach(), rtol=0, atol=2e-4)
