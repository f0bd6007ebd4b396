"""The states of all steps of every layer, and initial states that are learned."""

import copy
import pickle

import pytest
import torch
from helpers import (
    assert_like,
    error_of,
    hidden,
    is_lstm,
    layer_options,
    layers,
    leaf_copy,
    tensors,
)
from step_reference import by_steps
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import gatedrnn
from gatedrnn import variants

IN, H, T, B = 3, 4, 6, 4
x64 = torch.float64
LENGTHS = torch.tensor([4, 6, 1, 3])


def batch(m, **kwargs):
    return torch.randn((B, T, IN) if m.batch_first else (T, B, IN), **kwargs)


def gradients(result, leaves, second):
    generator = torch.Generator().manual_seed(3)
    outputs = list(tensors(result))
    cotangents = [torch.randn(t.shape, generator=generator, dtype=t.dtype) for t in outputs]
    first = torch.autograd.grad(outputs, leaves, cotangents, create_graph=second, retain_graph=True)
    if not second:
        return first
    return [*first, *torch.autograd.grad(sum(g.square().sum() for g in first), leaves)]


@layer_options
@pytest.mark.parametrize("recompute", [False, True], ids=["", "recompute"])
@pytest.mark.parametrize("lengths", [None, LENGTHS], ids=["", "lengths"])
def test_like_step_by_step(theirs, ours, options, recompute, lengths):
    """Results, first and second derivatives; recompute changes none of them."""
    m = ours(IN, H, dtype=torch.float64, recompute=recompute, **options)
    x, hx = leaf_copy(batch(m, dtype=x64)), leaf_copy(hidden(m, B, dtype=x64))
    leaves = [x, *tensors(hx), *m.parameters()]
    result = m(x, hx, lengths=lengths, output_hidden_states=True)
    expected = by_steps(m, x, hx, lengths)
    assert_like(result, tuple(expected), strides=False)
    for second in (False, True):  # by kernels, and by the reference
        for p, q in zip(
            gradients(result, leaves, second), gradients(expected, leaves, second), strict=True
        ):
            torch.testing.assert_close(p, q, rtol=1e-9, atol=1e-10)
    with torch.no_grad():
        assert_like(
            m(x, hx, lengths=lengths, output_hidden_states=True),
            leaf_copy(result, False),
            strides=False,
        )


@layers
def test_the_rest_is_as_without(theirs, ours):
    """Output, final states and dropout's masks; the last layer's states are the output itself."""
    m = ours(IN, H, num_layers=3, dropout=0.5, bidirectional=True)
    x = batch(m)
    torch.manual_seed(1)
    expected = m(x)
    torch.manual_seed(1)
    output, finals, states = m(x, output_hidden_states=True)
    assert all(
        torch.equal(p, q) for p, q in zip(tensors(expected), tensors((output, finals)), strict=True)
    )
    h = states[0] if is_lstm(m) else states
    assert h[-1] is output
    for k, last in enumerate(next(tensors(finals)).unflatten(0, (-1, 2))):
        assert torch.equal(h[k][-1, :, :H], last[0])
        assert torch.equal(h[k][0, :, H:], last[1])


@layers
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.complex64])
def test_other_dtypes(theirs, ours, dtype):
    m = ours(IN, H, dtype=dtype)
    x = batch(m, dtype=dtype)
    _, finals, states = m(x, output_hidden_states=True)
    kinds = states if is_lstm(m) else (states,)
    for every, last in zip(kinds, tensors(finals), strict=True):
        assert every[0].dtype == dtype
        torch.testing.assert_close(every[0][-1], last[0])
    one = torch.autograd.grad(kinds[-1][0].sum().abs(), m.weight_hh_l0)[0]
    assert one.count_nonzero()


@layers
@pytest.mark.parametrize("recompute", [False, True])
def test_as_on_a_device_whose_kernels_lack_it(theirs, ours, recompute, monkeypatch):
    """There gates are made again a layer at a time, and cell states' gradients by the reference."""
    monkeypatch.setattr(variants, "_has_variants", lambda x: False)
    m = ours(IN, H, num_layers=2, bidirectional=True, dtype=x64, recompute=recompute)
    x = leaf_copy(batch(m, dtype=x64))
    leaves = [x, *m.parameters()]
    result = m(x, output_hidden_states=True)
    expected = by_steps(m, x)
    assert_like(result, tuple(expected), strides=False)
    for parts in (slice(0, 2), slice(0, 3)):  # without cotangents of the cell states, and with
        one, two = (gradients(r[parts], leaves, False) for r in (result, expected))
        for p, q in zip(one, two, strict=True):
            torch.testing.assert_close(p, q, rtol=1e-9, atol=1e-10)
    with torch.no_grad():
        assert_like(m(x, output_hidden_states=True), leaf_copy(result, False), strides=False)


@layers
def test_packed_and_unbatched(theirs, ours):
    m = ours(IN, H, num_layers=2)
    x = batch(m)
    p = pack_padded_sequence(x, LENGTHS, enforce_sorted=False)
    states = m(p, output_hidden_states=True)[2]
    expected = m(x, lengths=LENGTHS, output_hidden_states=True)[2]
    flat = [s for kind in (states if is_lstm(m) else (states,)) for s in kind]
    for s, e in zip(flat, tensors(expected), strict=True):
        assert torch.equal(pad_packed_sequence(s)[0], e)
    alone = m(x[:, 1], output_hidden_states=True)[2]
    for s, e in zip(tensors(alone), tensors(expected), strict=True):
        torch.testing.assert_close(s, e[:, 1])


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # Dynamo's own
@layers
def test_compiled_and_exported(theirs, ours):
    m = ours(IN, H, num_layers=2, recompute=True)
    x = batch(m)
    expected = m(x, output_hidden_states=True)
    compiled = torch.compile(
        lambda x: m(x, output_hidden_states=True), backend="aot_eager", fullgraph=True
    )
    assert_like(compiled(x), expected, strides=False)
    program = torch.export.export(m, (x,), {"output_hidden_states": True}).module()
    assert_like(program(x, output_hidden_states=True), expected, strides=False)


# ---- learned initial states ----


@layer_options
def test_learned_initial_state(theirs, ours, options):
    m = ours(IN, H, dtype=torch.float64, learn_initial_state=True, **options)
    learned = [m.h_0, m.c_0] if is_lstm(m) else [m.h_0]
    assert all(p.count_nonzero() == 0 for p in learned)
    plain = ours(IN, H, dtype=torch.float64, **options)
    plain.load_state_dict({k: v for k, v in m.state_dict().items() if k not in ("h_0", "c_0")})
    with torch.no_grad():
        for p in learned:
            p.normal_()
    p = [s.unsqueeze(1).expand(-1, B, -1) for s in learned]
    hx = tuple(p) if is_lstm(m) else p[0]
    x = batch(m, dtype=torch.float64)
    marks = torch.rand(x.shape[:2]) < 0.3
    for arguments in ({}, {"lengths": LENGTHS}, {"resets": marks}):
        result, expected = m(x, **arguments), plain(x, hx, **arguments)
        assert_like(result, expected)
        found, wanted = (
            torch.autograd.grad(sum(t.sum() for t in tensors(r)), learned)
            for r in (result, expected)
        )
        assert_like(list(found), list(wanted))
    packed = pack_padded_sequence(x, LENGTHS, m.batch_first, enforce_sorted=False)
    assert_like(m(packed), plain(packed, hx))
    alone = x[0] if m.batch_first else x[:, 0]
    own = tuple(s[:, 0] for s in p)
    assert_like(m(alone), plain(alone, own if is_lstm(m) else own[0]))


@layers
def test_a_state_that_is_given_goes_before_a_learned_one(theirs, ours):
    """But resets begin from the learned one."""
    m = ours(IN, H, learn_initial_state=True)
    torch.nn.init.normal_(m.h_0)
    x, hx = batch(m), hidden(m, B)
    marks = torch.zeros(T, B, dtype=torch.bool)
    marks[3] = True
    output, _ = m(x, hx, resets=marks)
    assert_like(output[:3], m(x[:3], hx)[0])
    assert_like(output[3:], m(x[3:])[0])


@layers
def test_bookkeeping_of_a_learned_state(theirs, ours):
    torch.manual_seed(0)
    m = ours(IN, H, num_layers=2, learn_initial_state=True)
    torch.manual_seed(0)
    plain = ours(IN, H, num_layers=2)
    names = ["h_0", "c_0"] if is_lstm(m) else ["h_0"]
    assert list(m.state_dict()) == [*plain.state_dict(), *names]
    assert all(torch.equal(v, m.state_dict()[k]) for k, v in plain.state_dict().items())
    assert repr(m) == repr(plain)[:-1] + ", learn_initial_state=True)"
    m.h_0.data.normal_()
    for twin in (copy.deepcopy(m), pickle.loads(pickle.dumps(m))):
        assert torch.equal(twin.h_0, m.h_0)
        assert torch.equal(twin(torch.ones(2, 1, IN))[0], m(torch.ones(2, 1, IN))[0])
    m.reset_parameters()
    assert m.h_0.count_nonzero() == 0
    assert m.weight_hh_l0.count_nonzero()
    model = torch.nn.ModuleList([plain, m])
    error = error_of(lambda: gatedrnn.revert(model))
    assert "initial state" in str(error)
    assert type(m) is type(plain) is ours
