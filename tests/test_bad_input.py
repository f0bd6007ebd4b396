"""What a user can get wrong in a call, and what the layers answer.

Where torch.nn refuses in words of its own, ours refuses in the same words: those tests compare
with torch.nn in the same process. Where torch.nn fails somewhere inside, accepts nonsense or
crashes, the table here says what the error must name.
"""

import math
import re

import numpy as np
import pytest
import torch
from helpers import (
    assert_like,
    assert_same_error,
    error_of,
    is_lstm,
    layers,
    pair,
)
from torch import nn

import gatedrnn

IN, H = 3, 4


def zeros(*shape, **kwargs):
    return torch.zeros(shape, **kwargs)


def states(module, value):
    """One tensor as hx: alone for a GRU, as both states for an LSTM."""
    return (value, value) if is_lstm(module) else value


# name -> (constructor options, arguments of the call)
SAME_AS_TORCH = {
    "0-D": ({}, lambda m: (zeros(),)),
    "1-D": ({}, lambda m: (zeros(IN),)),
    "4-D": ({}, lambda m: (zeros(1, 2, 2, IN),)),
    "features": ({}, lambda m: (zeros(2, 2, 7),)),
    "features, unbatched": ({}, lambda m: (zeros(2, 7),)),
    "no features": ({}, lambda m: (zeros(2, 2, 0),)),
    "features of an empty batch": ({}, lambda m: (zeros(2, 0, 7),)),
    "T = 0": ({}, lambda m: (zeros(0, 2, IN),)),
    "T = 0, batch_first": ({"batch_first": True}, lambda m: (zeros(2, 0, IN),)),
    "T = 0, unbatched": ({}, lambda m: (zeros(0, IN),)),
    "T = 0, N = 0": ({}, lambda m: (zeros(0, 0, IN),)),
    "T = 0, with hx": ({}, lambda m: (zeros(0, 2, IN), states(m, zeros(1, 2, H)))),
    "3-D input, 2-D hx": ({}, lambda m: (zeros(2, 2, IN), states(m, zeros(1, H)))),
    "3-D input, 1-D hx": ({}, lambda m: (zeros(2, 2, IN), states(m, zeros(H)))),
    "3-D input, 4-D hx": ({}, lambda m: (zeros(2, 2, IN), states(m, zeros(1, 1, 2, H)))),
    "2-D input, 3-D hx": ({}, lambda m: (zeros(2, IN), states(m, zeros(1, 1, H)))),
    "2-D input, 1-D hx": ({}, lambda m: (zeros(2, IN), states(m, zeros(H)))),
    "hx batch": ({}, lambda m: (zeros(5, 2, IN), states(m, zeros(1, 5, H)))),
    "hx is not broadcast": ({}, lambda m: (zeros(5, 2, IN), states(m, zeros(1, 1, H)))),
    "hx layers": ({"num_layers": 2}, lambda m: (zeros(5, 2, IN), states(m, zeros(1, 2, H)))),
    "hx directions": (
        {"bidirectional": True},
        lambda m: (zeros(5, 2, IN), states(m, zeros(1, 2, H))),
    ),
    "hx size": ({}, lambda m: (zeros(5, 2, IN), states(m, zeros(1, 2, 9)))),
    "hx size, unbatched": ({}, lambda m: (zeros(5, IN), states(m, zeros(1, 9)))),
    "hx batch-first": (
        {"batch_first": True},
        lambda m: (zeros(5, 2, IN), states(m, zeros(5, 1, H))),
    ),
    "float64 input": ({}, lambda m: (zeros(2, 2, IN, dtype=torch.float64),)),
    "float16 input": ({}, lambda m: (zeros(2, 2, IN, dtype=torch.float16),)),
    "bfloat16 input": ({}, lambda m: (zeros(2, 2, IN, dtype=torch.bfloat16),)),
    "int64 input": ({}, lambda m: (zeros(2, 2, IN, dtype=torch.int64),)),
    "bool input": ({}, lambda m: (zeros(2, 2, IN, dtype=torch.bool),)),
    "complex input": ({}, lambda m: (zeros(2, 2, IN, dtype=torch.complex64),)),
    "float32 input, float64 module": ({"dtype": torch.float64}, lambda m: (zeros(2, 2, IN),)),
    "float32 input, bfloat16 module": ({"dtype": torch.bfloat16}, lambda m: (zeros(2, IN),)),
    "meta input": ({}, lambda m: (zeros(2, 2, IN, device="meta"),)),
    "meta hx": ({}, lambda m: (zeros(2, 2, IN), states(m, zeros(1, 2, H, device="meta")))),
    "meta module": ({"device": "meta"}, lambda m: (zeros(2, 2, IN),)),
    "list input": ({}, lambda m: ([[1.0, 2.0, 3.0]],)),
    "None input": ({}, lambda m: (None,)),
    "tuple that looks packed": ({}, lambda m: ((zeros(5, IN), torch.tensor([3, 2]), None, None),)),
    "dtype before features": ({}, lambda m: (zeros(2, 2, 7, dtype=torch.float64),)),
    "features before hx": ({}, lambda m: (zeros(2, 2, 7), states(m, zeros(1, 9, 9)))),
    "rank before dtype": ({}, lambda m: (zeros(IN, dtype=torch.float64),)),
}


@pytest.mark.parametrize("case", SAME_AS_TORCH)
@layers
def test_refused_in_the_words_of_torch(theirs, ours, case):
    options, arguments = SAME_AS_TORCH[case]
    a, b = theirs(IN, H, **options), ours(IN, H, **options)
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            assert_same_error(lambda: b(*arguments(b)), lambda: a(*arguments(a)))


ONE_STATE_WRONG = {
    "h batch": (zeros(1, 5, H), zeros(1, 2, H)),
    "c batch": (zeros(1, 2, H), zeros(1, 5, H)),
    "c size": (zeros(1, 2, H), zeros(1, 2, 9)),
    "h rank": (zeros(2, H), zeros(1, 2, H)),
    "c rank": (zeros(1, 2, H), zeros(2, H)),
    "None for c": (zeros(1, 2, H), None),
}


@pytest.mark.parametrize("case", ONE_STATE_WRONG)
@pytest.mark.parametrize("form", [tuple, list])
def test_one_wrong_state_of_an_lstm(case, form):
    a, b = nn.LSTM(IN, H), gatedrnn.LSTM(IN, H)
    hx = form(ONE_STATE_WRONG[case])
    assert_same_error(lambda: b(zeros(3, 2, IN), hx), lambda: a(zeros(3, 2, IN), hx))


def test_states_of_a_projected_lstm_have_two_widths():
    a, b = nn.LSTM(IN, H, proj_size=2), gatedrnn.LSTM(IN, H, proj_size=2)
    for hx in [(zeros(1, 2, H), zeros(1, 2, H)), (zeros(1, 2, 2), zeros(1, 2, 2))]:
        assert_same_error(
            lambda hx=hx: b(zeros(3, 2, IN), hx), lambda hx=hx: a(zeros(3, 2, IN), hx)
        )


@pytest.mark.parametrize("hx", [(zeros(1, 2, H),) * 2, [zeros(1, 2, H)], "x", 3], ids=type)
@pytest.mark.parametrize("x", [zeros(3, 2, IN), zeros(3, IN)], ids=["3-D", "2-D"])
def test_gru_takes_a_tensor_as_hx(x, hx):
    a, b = nn.GRU(IN, H), gatedrnn.GRU(IN, H)
    assert_same_error(lambda: b(x, hx), lambda: a(x, hx))


@layers
def test_too_many_arguments(theirs, ours):
    m = ours(IN, H)
    assert type(error_of(lambda: m(zeros(2, 2, IN), None, None))) is TypeError
    assert type(error_of(lambda: m())) is TypeError
    assert type(error_of(lambda: m(zeros(2, 2, IN), hidden=None))) is TypeError


@layers
@pytest.mark.parametrize("dropout", [1.5, -0.5, math.nan])
def test_dropout_out_of_range_set_after_construction(theirs, ours, dropout):
    a, b = pair(theirs, ours, IN, H, num_layers=2)
    a.dropout = b.dropout = dropout
    x = torch.randn(5, 2, IN)
    assert_same_error(lambda: b(x), lambda: a(x))
    a.eval(), b.eval()
    assert_like(b(x), a(x))
    one = ours(IN, H)
    one.dropout = dropout
    assert one(x)[0].shape == (5, 2, H)


# ---- torch.nn fails inside, crashes or computes nonsense: ours says what is wrong ----


def with_weight(name, make):
    """A change of one weight: its new value is made from the old."""

    def change(m):
        setattr(m, name, nn.Parameter(make(getattr(m, name).detach())))

    return change


def nothing(m):
    pass


X = zeros(3, 2, IN)
NAMED = {
    "float64 hx": (
        nothing,
        lambda m: (X, states(m, zeros(1, 2, H).double())),
        "float64.*float32|float32.*float64",
    ),
    "bfloat16 hx": (
        nothing,
        lambda m: (X, states(m, zeros(1, 2, H).bfloat16())),
        "bfloat16.*float32|float32.*bfloat16",
    ),
    "int hx": (
        nothing,
        lambda m: (X, states(m, zeros(1, 2, H).long())),
        "int64.*float32|float32.*int64",
    ),
    "float64 weight": (
        with_weight("weight_hh_l0", lambda w: w.double()),
        lambda m: (X,),
        "weight_hh_l0.*float64|float64.*weight_hh_l0",
    ),
    "float64 bias": (
        with_weight("bias_ih_l0", lambda w: w.double()),
        lambda m: (X,),
        "bias_ih_l0.*float64|float64.*bias_ih_l0",
    ),
    "weight of a wrong shape": (
        with_weight("weight_hh_l0", lambda w: w[:3, :3]),
        lambda m: (X,),
        r"weight_hh_l0.*3, 3",
    ),
    "weight with a row missing": (
        with_weight("weight_hh_l0", lambda w: w[:-1]),
        lambda m: (X,),
        "weight_hh_l0",
    ),
    "input weight of a wrong shape": (
        with_weight("weight_ih_l0", lambda w: w[:, :2]),
        lambda m: (X,),
        "weight_ih_l0",
    ),
    "bias of a wrong shape": (
        with_weight("bias_hh_l0", lambda w: w[:3]),
        lambda m: (X,),
        r"bias_hh_l0.*3",
    ),
    "meta weight": (
        with_weight("weight_hh_l0", lambda w: w.to("meta")),
        lambda m: (X,),
        "meta.*cpu|cpu.*meta",
    ),
    "sparse input": (nothing, lambda m: (X.to_sparse(),), "(?i)sparse"),
    "sparse hx": (nothing, lambda m: (X, states(m, zeros(1, 2, H).to_sparse())), "(?i)sparse"),
}


@pytest.mark.parametrize("case", NAMED)
@layers
def test_refused_in_clear_words(theirs, ours, case):
    change, arguments, pattern = NAMED[case]
    m = ours(IN, H)
    change(m)
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            error = error_of(lambda: m(*arguments(m)))
        assert isinstance(error, (RuntimeError, ValueError, TypeError)), repr(error)
        assert re.search(pattern, str(error)), error


@layers
def test_numpy_input(theirs, ours):
    m = ours(IN, H)
    error = error_of(lambda: m(np.zeros((3, 2, IN), np.float32)))
    assert isinstance(error, (AttributeError, TypeError))


def test_stacked_states_and_a_tensor_for_both_are_refused_by_lstm():
    """One (2, L, N, H) tensor passes the checks of torch.nn and dies in its op."""
    m = gatedrnn.LSTM(IN, H)
    for hx in (zeros(2, 1, 2, H), zeros(1, 2, H)):
        error = error_of(lambda hx=hx: m(X, hx))
        assert isinstance(error, (TypeError, RuntimeError, IndexError))
    m = gatedrnn.LSTM(IN, H, num_layers=2)
    error = error_of(lambda: m(X, torch.zeros(2, 2, 2, H)))
    assert type(error) is TypeError
    assert "tuple" in str(error)


@pytest.mark.parametrize("count", [0, 1, 3])
@pytest.mark.parametrize("form", [tuple, list])
def test_states_of_an_lstm_must_be_two(count, form):
    error = error_of(lambda: gatedrnn.LSTM(IN, H)(X, form([zeros(1, 2, H)] * count)))
    assert type(error) is TypeError
    assert f"got {count} items" in str(error)


@layers
def test_nested_tensors_are_refused_with_the_way_out(theirs, ours):
    ragged = torch.nested.nested_tensor([zeros(2, IN), zeros(1, IN)], layout=torch.jagged)
    error = error_of(lambda: ours(IN, H)(ragged))
    assert type(error) is ValueError
    assert "pack_sequence" in str(error)


@layers
def test_the_declared_size_counts_and_not_that_of_a_wrong_weight(theirs, ours):
    a, b = theirs(IN, H), ours(IN, H)
    for m in (a, b):
        m.weight_ih_l0 = nn.Parameter(m.weight_ih_l0.detach()[:, :2])
    assert_same_error(lambda: b(zeros(3, 2, 2)), lambda: a(zeros(3, 2, 2)))


@layers
def test_the_call_after_a_refused_one_is_right(theirs, ours):
    a, b = pair(theirs, ours, IN, H, num_layers=2, bidirectional=True)
    x = torch.randn(3, 2, IN)
    expected = a(x)
    for bad in (zeros(3, 2, 7), zeros(0, 2, IN), zeros(IN), zeros(3, 2, IN).double(), None):
        error_of(lambda bad=bad: b(bad))
        assert_like(b(x), expected)
