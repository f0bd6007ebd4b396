"""Dropout between layers: the masks, and the random stream, of torch.nn from the same seed."""

import math

import pytest
import torch
import torch.nn.functional as F
from helpers import (
    assert_grads_like,
    assert_like,
    backward,
    hidden,
    layers,
    leaf_copy,
    pair,
    tensors,
)
from torch.nn.utils.rnn import pack_sequence

import gatedrnn

IN, H = 3, 8

FORMS = {
    "time-major": ({}, lambda: torch.randn(5, 4, IN)),
    "batch_first": ({"batch_first": True}, lambda: torch.randn(4, 5, IN)),
    "unbatched": ({}, lambda: torch.randn(5, IN)),
    "bidirectional": ({"bidirectional": True}, lambda: torch.randn(5, 4, IN)),
    "without bias": ({"bias": False}, lambda: torch.randn(5, 4, IN)),
    "sorted": ({}, lambda: pack_sequence([torch.randn(n, IN) for n in (4, 3, 3, 1)])),
    "equal lengths": ({}, lambda: pack_sequence([torch.randn(3, IN) for _ in range(4)])),
    "unsorted": (
        {"bidirectional": True},
        lambda: pack_sequence([torch.randn(n, IN) for n in (2, 5, 1)], enforce_sorted=False),
    ),
    "large": ({"bidirectional": True}, lambda: torch.randn(40, 9, IN)),
}


def assert_same_run(a, b, x, hx=None):
    """Forward and backward from one seed: results, gradients and the stream afterwards."""
    results, streams, leaves = [], [], []
    for m in (a, b):
        leaves.append((leaf_copy(x), leaf_copy(hx)))
        torch.manual_seed(99)
        results.append(m(*leaves[-1]))
        backward(results[-1])
        streams.append(torch.get_rng_state())
    assert_like(results[1], results[0])
    assert_grads_like(b, a)
    for p, q in zip(*map(tensors, leaves), strict=True):
        assert_like(q.grad, p.grad, strides=False)
    assert torch.equal(*streams)
    return results[1]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
@layers
def test_same_masks_as_torch(theirs, ours, form, p):
    options, make = FORMS[form]
    a, b = pair(theirs, ours, IN, H, num_layers=3, dropout=p, **options)
    assert_same_run(a, b, make())


@layers
def test_same_masks_with_given_states(theirs, ours):
    a, b = pair(theirs, ours, IN, H, num_layers=2, dropout=0.5)
    assert_same_run(a, b, torch.randn(5, 4, IN), hidden(a, 4))


def test_same_masks_with_projections():
    options = {"num_layers": 3, "dropout": 0.5, "proj_size": 5, "bidirectional": True}
    a, b = pair(torch.nn.LSTM, gatedrnn.LSTM, IN, H, **options)
    assert_same_run(a, b, torch.randn(5, 4, IN))
    assert_same_run(a, b, pack_sequence([torch.randn(n, IN) for n in (4, 2, 1)]))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
@layers
def test_same_masks_in_other_dtypes(theirs, ours, dtype):
    a, b = pair(theirs, ours, IN, H, num_layers=2, dropout=0.5, dtype=dtype)
    assert_same_run(a, b, torch.randn(5, 4, IN, dtype=dtype))


@layers
@pytest.mark.parametrize("form", ["time-major", "batch_first", "sorted"])
def test_p_of_one_gives_zeros_and_finite_gradients(theirs, ours, form):
    options, make = FORMS[form]
    a, b = pair(theirs, ours, IN, H, num_layers=2, dropout=1.0, **options)
    assert_same_run(a, b, make())
    assert b.weight_ih_l1.grad.count_nonzero() == 0
    assert all(p.grad.isfinite().all() for p in b.parameters())


@layers
@pytest.mark.parametrize(
    ("options", "training"),
    [
        ({"num_layers": 3, "dropout": 0.0}, True),
        ({"num_layers": 3, "dropout": 1.0}, True),
        ({"num_layers": 3, "dropout": 0.5}, False),
        ({"num_layers": 1}, True),
    ],
    ids=["p=0", "p=1", "eval", "one layer"],
)
def test_nothing_is_drawn(theirs, ours, options, training):
    m = ours(IN, H, **options).train(training)
    before = torch.get_rng_state()
    m(torch.randn(5, 4, IN, generator=torch.Generator().manual_seed(0)))
    assert torch.equal(torch.get_rng_state(), before)


@layers
def test_one_layer_with_dropout_drops_nothing(theirs, ours):
    with pytest.warns(UserWarning, match="num_layers greater than 1"):
        m = ours(IN, H, dropout=0.5)
    plain = ours(IN, H)
    plain.load_state_dict(m.state_dict())
    x = torch.randn(5, 4, IN)
    assert_like(m(x), plain(x))


@layers
def test_flag_and_probability_count_at_call_time(theirs, ours):
    a, b = pair(theirs, ours, IN, H, num_layers=2, dropout=0.5)
    x = torch.randn(5, 4, IN)
    for change in (
        lambda m: m.eval(),
        lambda m: m.train(),
        lambda m: setattr(m, "dropout", 0.25),
        lambda m: setattr(m, "training", False),
        lambda m: setattr(m, "training", True),
        lambda m: setattr(m, "dropout", 0),
    ):
        for m in (a, b):
            m.zero_grad()
            change(m)
        assert_same_run(a, b, x)


@layers
@pytest.mark.parametrize("batch_first", [False, True])
def test_equals_single_layers_joined_by_functional_dropout(theirs, ours, batch_first):
    """One F.dropout per inner layer, on the time-major tensor, states taken before it."""
    m = ours(IN, H, num_layers=3, dropout=0.5, batch_first=batch_first)
    singles = []
    for k in range(3):
        singles.append(ours(H if k else IN, H))
        weights = m.state_dict().items()
        singles[k].load_state_dict({n[:-1] + "0": p for n, p in weights if n.endswith(str(k))})
    x = torch.randn(4, 5, IN) if batch_first else torch.randn(5, 4, IN)
    torch.manual_seed(8)
    output, hn = m(x)
    torch.manual_seed(8)
    y, finals = (x.transpose(0, 1) if batch_first else x), []
    for k, layer in enumerate(singles):
        y, last = layer(F.dropout(y, 0.5) if k else y)
        finals.append(list(tensors(last)))
    y = y.transpose(0, 1) if batch_first else y
    torch.testing.assert_close(output, y, rtol=1e-6, atol=1e-7)
    for whole, parts in zip(tensors(hn), zip(*finals, strict=True), strict=True):
        torch.testing.assert_close(whole, torch.cat(parts), rtol=1e-6, atol=1e-7)


@layers
def test_masks_differ_from_call_to_call_and_from_step_to_step(theirs, ours):
    m = ours(IN, H, num_layers=2, dropout=0.5)
    x = torch.randn(5, 4, IN)
    assert not torch.equal(m(x)[0], m(x)[0])
    m.weight_hh_l1.data.zero_()  # without memory, equal steps give equal outputs
    m.weight_hh_l0.data.zero_()
    output = m(x[:1].expand(5, 4, IN))[0]
    share = (output[1:] == output[:-1]).float().mean()
    assert share < 0.5
    assert math.isfinite(share)


@layers
def test_masks_survive_checkpointing(theirs, ours):
    gradients = []
    for m in pair(theirs, ours, IN, H, num_layers=2, dropout=0.5):
        x = torch.ones(5, 4, IN, requires_grad=True)
        torch.manual_seed(3)
        y, _ = torch.utils.checkpoint.checkpoint(m, x, use_reentrant=False)
        backward(y)
        gradients.append(x.grad)
    torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-6)
