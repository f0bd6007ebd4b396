"""Autograd beside torch.nn: partial cotangents, frozen parts, retained graphs, in-place changes,
hooks, checkpointing, graphs of the backward. torch.func stands in test_func.py."""

import itertools

import pytest
import torch
import torch.utils.checkpoint
from helpers import (
    assert_grads_like,
    assert_like,
    assert_same_error,
    backward,
    error_of,
    every_class,
    hidden,
    is_lstm,
    layer_options,
    layers,
    leaf_copy,
    pair,
    tensors,
)
from torch import nn
from torch.nn.utils.rnn import pack_sequence

import gatedrnn

T, B, IN, H = 4, 2, 3, 5


def inputs(m, **kwargs):
    shape = (B, IN) if isinstance(m, nn.modules.rnn.RNNCellBase) else (T, B, IN)
    return torch.randn(shape, **kwargs)


def run(m, x, hx):
    """Results of a forward over fresh leaves, and those leaves by name."""
    leaves = {"x": leaf_copy(x)}
    h = leaf_copy(hx)
    leaves |= {f"h{k}": t for k, t in enumerate(tensors(h))}
    return list(tensors(m(leaves["x"], h))), leaves | dict(m.named_parameters())


def assert_same_leaf_grads(ours, theirs):
    assert ours.keys() == theirs.keys()
    for name, leaf in theirs.items():
        if leaf.grad is None:
            assert ours[name].grad is None, name
        else:
            assert_like(ours[name].grad, leaf.grad, strides=False)


@layer_options
def test_loss_on_every_subset_of_the_results(theirs, ours, options):
    a, b = pair(theirs, ours, IN, H, **options)
    x, hx = inputs(a), hidden(a, T if a.batch_first else B)
    for subset in range(1, 8 if is_lstm(a) else 4):
        leaves = []
        for m in (a, b):
            m.zero_grad()
            results, named = run(m, x, hx)
            chosen = [t for k, t in enumerate(results) if subset >> k & 1]
            torch.autograd.backward(chosen, [torch.full_like(t, 0.5) for t in chosen])
            leaves.append(named)
        assert_same_leaf_grads(*leaves[::-1])


@layers
def test_loss_on_the_first_layers_state_leaves_zeros_not_none(theirs, ours):
    a, b = pair(theirs, ours, IN, H, num_layers=2, bidirectional=True)
    x = inputs(a)
    for m in (a, b):
        next(tensors(m(x)[1]))[0].square().sum().backward()
    assert_grads_like(b, a)
    assert b.weight_hh_l1.grad is not None
    assert b.weight_hh_l1.grad.count_nonzero() == 0


@every_class
def test_loss_on_single_elements(theirs, ours):
    a, b = pair(theirs, ours, IN, H)
    x, hx = inputs(a), hidden(a, B)
    leaves = []
    for m in (a, b):
        results, named = run(m, x, hx)
        results[0][1, 0].sum().backward()
        leaves.append(named)
    assert_same_leaf_grads(*leaves[::-1])


@every_class
def test_everything_but_one_frozen_and_one_frozen(theirs, ours):
    a, b = pair(theirs, ours, IN, H)
    x, hx = inputs(a), hidden(a, B)
    names = list(run(a, x, hx)[1])
    for name, only in itertools.product(names, (True, False)):
        leaves = []
        for m in (a, b):
            m.zero_grad()
            h = leaf_copy(hx)
            named = {"x": leaf_copy(x)} | {f"h{k}": t for k, t in enumerate(tensors(h))}
            named |= dict(m.named_parameters())
            for n, leaf in named.items():
                leaf.requires_grad_((n == name) == only)
            backward(m(named["x"], h))
            leaves.append(named)
        assert_same_leaf_grads(*leaves[::-1])
        assert {n for n, t in leaves[1].items() if t.grad is not None} == {
            n for n in names if (n == name) == only
        }


@every_class
def test_grad_of_chosen_inputs_touches_nothing_else(theirs, ours):
    a, b = pair(theirs, ours, IN, H)
    x, hx = inputs(a), hidden(a, B)
    grads = []
    for m in (a, b):
        results, leaves = run(m, x, hx)
        wanted = [leaves["x"], list(m.parameters())[1]]
        grads.append(torch.autograd.grad([t.sum() for t in results], wanted))
        assert all(leaf.grad is None for leaf in leaves.values())
    assert_like(grads[1], grads[0], strides=False)


@every_class
def test_retained_graph_repeats_bit_for_bit_and_a_freed_one_refuses(theirs, ours):
    a, b = pair(theirs, ours, IN, H)
    x, hx = inputs(a), hidden(a, B)
    losses = []
    for m in (a, b):
        results, leaves = run(m, x, hx)
        losses.append(sum(t.square().sum() for t in results))
    wanted = list(leaves.values())
    runs = [torch.autograd.grad(losses[1], wanted, retain_graph=True) for _ in range(3)]
    for repeated in runs[1:]:
        assert all(torch.equal(p, q) for p, q in zip(repeated, runs[0], strict=True))
    for loss in losses:
        loss.backward()
    assert_same_error(losses[1].backward, losses[0].backward)


@every_class
def test_gradients_add_up_over_calls(theirs, ours):
    a, b = pair(theirs, ours, IN, H)
    x, hx = inputs(a), hidden(a, B)
    leaves = []
    for m in (a, b):
        first, named = run(m, x, hx)
        second, _ = run(m, 2 * x, hx)
        backward([first, second])
        third, _ = run(m, -x, hx)
        backward(third, seed=8)
        leaves.append(named)
    assert_same_leaf_grads(*leaves[::-1])


@every_class
def test_gradients_share_no_memory(theirs, ours):
    """Both biases of an LSTM have one gradient: clipped in place, it must not shrink twice."""
    m = ours(IN, H)
    x, hx = inputs(m), hidden(m, B)
    results, leaves = run(m, x, hx)
    backward(results)
    grads = [t.grad for t in leaves.values()]
    storages = [g.untyped_storage().data_ptr() for g in grads]
    assert len(set(storages)) == len(storages)
    before = [g.clone() for g in grads]
    for g in grads:
        g.mul_(2)
    assert all(torch.equal(g, 2 * old) for g, old in zip(grads, before, strict=True))


# ---- changes between forward and backward ----

REFUSED = ["x", "weight_ih", "weight_hh"]


@pytest.mark.parametrize("what", REFUSED)
@every_class
def test_in_place_change_before_backward_is_refused(theirs, ours, what):
    """Anything else would be a silently wrong gradient."""
    errors = []
    for m in pair(theirs, ours, IN, H):
        x = inputs(m).requires_grad_()
        inner = x * 1  # a leaf that requires a gradient could not be changed at all
        result = m(inner, leaf_copy(hidden(m, B)))
        named = dict(m.named_parameters())
        with torch.no_grad():
            target = inner if what == "x" else named.get(what, named.get(f"{what}_l0"))
            target.mul_(2)
        errors.append(error_of(lambda r=result: backward(r)))
    assert [type(e) for e in errors] == [RuntimeError] * 2
    for error in errors:
        assert "has been modified by an inplace operation" in str(error)


@every_class
def test_optimizer_step_between_forward_and_backward_is_refused(theirs, ours):
    for m in pair(theirs, ours, IN, H):
        optimizer = torch.optim.SGD(m.parameters(), lr=0.1)
        x = inputs(m).requires_grad_()
        first, second = m(x), m(x)
        backward(first)
        optimizer.step()
        assert "modified by an inplace operation" in str(error_of(lambda r=second: backward(r)))


@layers
def test_final_states_may_be_changed_in_place(theirs, ours):
    a, b = pair(theirs, ours, IN, H)
    x = inputs(a)
    for m in (a, b):
        output, hn = m(x)
        for t in tensors(hn):
            t.mul_(2)
        backward((output, hn))
    assert_grads_like(b, a)


OUTPUTS = [{}, {"batch_first": True}, {"num_layers": 2, "bidirectional": True}, {"bias": False}]


@pytest.mark.parametrize(("cell", "options"), [
    *(("GRU", options) for options in OUTPUTS), ("LSTM", {"bidirectional": True}),
], ids=str)
@pytest.mark.parametrize("form", ["batched", "unbatched", "packed"])
def test_output_may_be_changed_in_place(cell, options, form):
    a, b = pair(getattr(nn, cell), getattr(gatedrnn, cell), IN, H, **options)
    x = inputs(a)
    if form == "unbatched":
        x = x[0]
    if form == "packed":
        x = pack_sequence(list(x), enforce_sorted=False)
    leaves = leaf_copy(x), leaf_copy(x)
    for m, leaf in zip((a, b), leaves, strict=True):
        output, hn = m(leaf)
        next(tensors(output)).mul_(2)
        backward((output, hn))
    assert_grads_like(b, a)
    gradients = [next(tensors(leaf)).grad for leaf in leaves]
    assert_like(gradients[1], gradients[0], strides=False)


@pytest.mark.parametrize("options", [{}, {"batch_first": True}, {"num_layers": 2}], ids=str)
def test_output_of_an_lstm_changed_in_place_is_refused(options):
    for m in pair(nn.LSTM, gatedrnn.LSTM, IN, H, **options):
        output, hn = m(inputs(m))
        output.mul_(2)
        error = error_of(lambda results=(output, hn): backward(results))
        assert type(error) is RuntimeError
        assert "has been modified by an inplace operation" in str(error)


@layers
def test_input_changed_in_place_by_a_detached_alias_after_backward(theirs, ours):
    """After backward nothing is held: the buffers of a loop may be reused."""
    a, b = pair(theirs, ours, IN, H)
    buffer = torch.empty(T, B, IN)
    for step in range(3):
        with torch.no_grad():
            buffer.fill_(0.1 * step)
        for m in (a, b):
            backward(m(buffer))
    assert_grads_like(b, a)


# ---- hooks and contexts ----


@every_class
def test_tensor_and_parameter_hooks(theirs, ours):
    logs = []
    for m in pair(theirs, ours, IN, H):
        log = []
        for name, p in m.named_parameters():
            p.register_hook(lambda g, n=name, log=log: log.append((n, g.clone())) or 2 * g)
            p.register_post_accumulate_grad_hook(
                lambda p, n=name, log=log: log.append((n + " done", p.grad.clone()))
            )
        x = torch.linspace(-1, 1, inputs(m).numel()).view_as(inputs(m)).requires_grad_()
        results = list(tensors(m(x)))
        results[0].register_hook(lambda g, log=log: log.append(("output", g.clone())))
        torch.autograd.backward([t.sum() for t in results])
        logs.append(dict(log))
    assert logs[0].keys() == logs[1].keys()
    for name, g in logs[0].items():
        assert_like(logs[1][name], g, strides=False)


@every_class
def test_module_backward_hooks(theirs, ours):
    logs = []
    for m in pair(theirs, ours, IN, H):
        log = []
        m.register_full_backward_pre_hook(lambda m, g, log=log: log.append(g))
        m.register_full_backward_hook(lambda m, gi, go, log=log: log.append((gi, go)))
        x = torch.linspace(-1, 1, inputs(m).numel()).view_as(inputs(m)).requires_grad_()
        next(tensors(m(x))).sum().backward()
        logs.append([list(_flat(entry)) for entry in log])
    assert len(logs[0]) == len(logs[1]) == 2
    for mine, expected in zip(logs[1], logs[0], strict=True):
        assert [t is None for t in mine] == [t is None for t in expected]
        for p, q in zip(mine, expected, strict=True):
            if q is not None:
                assert_like(p, q, strides=False)


def _flat(value):
    if value is None or isinstance(value, torch.Tensor):
        yield value
    else:
        for item in value:
            yield from _flat(item)


@pytest.mark.parametrize("reentrant", [True, False])
@every_class
def test_checkpoint(theirs, ours, reentrant):
    m = ours(IN, H)
    x, hx = inputs(m), hidden(m, B)

    def call(x, *h):
        # Flat: the reentrant kind does not look for tensors inside nested results.
        return tuple(tensors(m(x, h if is_lstm(m) else h[0])))

    leaves = []
    for function in (
        call,
        lambda *a: torch.utils.checkpoint.checkpoint(call, *a, use_reentrant=reentrant),
    ):
        m.zero_grad()
        named = {"x": leaf_copy(x)} | {f"h{k}": t for k, t in enumerate(tensors(leaf_copy(hx)))}
        backward(function(*named.values()))
        leaves.append({n: t.grad for n, t in (named | dict(m.named_parameters())).items()})
    for name, g in leaves[0].items():
        assert torch.equal(leaves[1][name], g), name


@every_class
def test_saved_tensor_hooks_see_what_is_saved_and_may_replace_it(theirs, ours):
    a, b = pair(theirs, ours, IN, H)
    x = inputs(a)
    packed, unpacked = [], []

    def pack(t):
        packed.append(t)
        return t.detach().numpy().copy()

    def unpack(array):
        unpacked.append(array)
        return torch.from_numpy(array)

    backward(a(x))
    with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        result = b(x)
    backward(result)
    assert packed
    assert len(unpacked) >= 1
    assert_grads_like(b, a)
    b.zero_grad()
    with torch.autograd.graph.save_on_cpu():
        backward(b(x))
    assert_grads_like(b, a)


@every_class
def test_nothing_is_saved_where_nothing_needs_a_gradient(theirs, ours):
    m = ours(IN, H).requires_grad_(False)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(saved.append, lambda t: t):
        m(inputs(m))
        m.requires_grad_(True)
        with torch.no_grad():
            m(inputs(m))
    assert saved == []


@every_class
def test_anomaly_mode_names_the_forward_of_a_nan(theirs, ours, capfd):
    m = ours(IN, H)
    x = inputs(m)
    with torch.autograd.set_detect_anomaly(True):
        backward(m(x))
        result = next(tensors(m(x)))
        error = error_of(lambda: (result * float("nan")).sum().backward())
    assert "returned nan values" in str(error)
    assert "Traceback of forward call that caused the error" in capfd.readouterr().err


@every_class
def test_parameters_made_in_inference_mode_do_not_train(theirs, ours):
    errors = []
    for cls in (theirs, ours):
        with torch.inference_mode():
            m = cls(IN, H)
        x = inputs(m)
        errors.append(error_of(lambda m=m, x=x: backward(m(x.requires_grad_()))))
    assert type(errors[1]) is type(errors[0]) is RuntimeError
    assert "nference tensors cannot be saved for backward" in str(errors[0])
    assert "nference tensors cannot be saved for backward" in str(errors[1])


@every_class
def test_inference_tensors_as_input_of_a_training_step_are_refused(theirs, ours):
    with torch.inference_mode():
        x = inputs(ours(IN, H))
    errors = [error_of(lambda c=c: backward(c(IN, H)(x))) for c in (theirs, ours)]
    assert type(errors[1]) is type(errors[0]) is RuntimeError
    assert str(errors[1]) == str(errors[0])


# ---- graphs of the backward ----


def second_gradients(m, x, hx):
    results, leaves = run(m, x, hx)
    loss = sum(t.square().sum() for t in results)
    wanted = list(leaves.values())
    first = torch.autograd.grad(loss, wanted, create_graph=True)
    assert all(g.requires_grad for g in first)
    penalty = sum(g.square().sum() for g in first)
    return first, torch.autograd.grad(penalty, wanted)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@every_class
def test_gradient_penalty(theirs, ours, dtype):
    a, b = pair(theirs, ours, IN, H, dtype=dtype)
    x, hx = inputs(a, dtype=dtype), hidden(a, B, dtype=dtype)
    for mine, expected in zip(second_gradients(b, x, hx), second_gradients(a, x, hx), strict=True):
        assert_like(mine, expected, strides=False)


@layers
def test_gradient_penalty_of_a_packed_stack(theirs, ours):
    options = {"num_layers": 2, "bidirectional": True, "dtype": torch.float64}
    a, b = pair(theirs, ours, IN, H, **options)
    samples = [torch.randn(n, IN, dtype=torch.float64) for n in (2, 4, 1)]
    second = []
    for m in (a, b):
        leaves = leaf_copy(samples)
        packed = pack_sequence(leaves, enforce_sorted=False)
        loss = sum(t.square().sum() for t in tensors(m(packed)))
        first = torch.autograd.grad(loss, leaves, create_graph=True)
        wanted = [*leaves, *m.parameters()]
        second.append(torch.autograd.grad(sum(g.square().sum() for g in first), wanted))
    assert_like(second[1], second[0], strides=False)


@every_class
def test_create_graph_gives_the_same_first_gradients_and_keeps_the_graph(theirs, ours):
    m = ours(IN, H)
    x, hx = inputs(m), hidden(m, B)
    results, leaves = run(m, x, hx)
    loss, wanted = sum(t.square().sum() for t in results), list(leaves.values())
    plain = torch.autograd.grad(loss, wanted, retain_graph=True)
    graphed = torch.autograd.grad(loss, wanted, create_graph=True)
    for p, q in zip(graphed, plain, strict=True):
        assert_like(p.detach(), q, strides=False)
    again = torch.autograd.grad(loss, wanted)
    assert all(torch.equal(p, q) for p, q in zip(again, plain, strict=True))


@layers
def test_third_derivatives(theirs, ours):
    values = []
    for m in pair(theirs, ours, IN, H, dtype=torch.float64):
        x = torch.full((2, 1, IN), 0.3, dtype=torch.float64, requires_grad=True)
        value = m(x)[0].sum()
        for _ in range(3):
            (g,) = torch.autograd.grad(value, x, create_graph=True)
            value = (g * torch.arange(g.numel(), dtype=g.dtype).view_as(g)).sum()
        values.append(g.detach())
    assert_like(values[1], values[0], strides=False)
