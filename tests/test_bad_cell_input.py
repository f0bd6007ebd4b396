"""What a user can get wrong in a call of a cell: torch.nn's words, or clearer ones."""

import re

import pytest
import torch
from helpers import assert_same_error, cells, error_of, is_lstm
from torch import nn
from torch.nn.utils.rnn import PackedSequence

import gatedrnn

IN, H = 3, 4


def zeros(*shape, **kwargs):
    return torch.zeros(shape, **kwargs)


def states(module, value):
    """One tensor as hx: alone for a GRU, as both states for an LSTM."""
    return (value, value) if is_lstm(module) else value


CELL_SAME_AS_TORCH = {
    "0-D": lambda m: (zeros(),),
    "3-D": lambda m: (zeros(2, 2, IN),),
    "features": lambda m: (zeros(2, 7),),
    "features, unbatched": lambda m: (zeros(7),),
    "hx 3-D": lambda m: (zeros(2, IN), states(m, zeros(1, 2, H))),
    "hx 0-D": lambda m: (zeros(2, IN), states(m, zeros())),
    "hx size": lambda m: (zeros(2, IN), states(m, zeros(2, 9))),
    "hx size, unbatched": lambda m: (zeros(IN), states(m, zeros(9))),
    "hx batch": lambda m: (zeros(2, IN), states(m, zeros(5, H))),
    "hx is not broadcast": lambda m: (zeros(2, IN), states(m, zeros(1, H))),
    "features before hx": lambda m: (zeros(2, 7), states(m, zeros(5, 9))),
    "list input": lambda m: ([1.0, 2.0, 3.0],),
    "None input": lambda m: (None,),
}


@pytest.mark.parametrize("case", CELL_SAME_AS_TORCH)
@cells
def test_cell_refuses_in_the_words_of_torch(theirs, ours, case):
    a, b = theirs(IN, H), ours(IN, H)
    arguments = CELL_SAME_AS_TORCH[case]
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            assert_same_error(lambda: b(*arguments(b)), lambda: a(*arguments(a)))


LSTM_CELL_STATES = {
    "c size": (zeros(2, H), zeros(2, 9)),
    "c batch": (zeros(2, H), zeros(5, H)),
    "c rank": (zeros(2, H), zeros(1, 2, H)),
    "h rank": (zeros(1, 2, H), zeros(2, H)),
}


@pytest.mark.parametrize("case", LSTM_CELL_STATES)
@pytest.mark.parametrize("form", [tuple, list])
def test_one_wrong_state_of_an_lstm_cell(case, form):
    a, b = nn.LSTMCell(IN, H), gatedrnn.LSTMCell(IN, H)
    hx = form(LSTM_CELL_STATES[case])
    assert_same_error(lambda: b(zeros(2, IN), hx), lambda: a(zeros(2, IN), hx))


CELL_NAMED = {
    "float64 input": (
        lambda m: (zeros(2, IN).double(),),
        "(?i)(float64|double).*float|float.*(float64|double)",
    ),
    "float64 hx": (
        lambda m: (zeros(2, IN), states(m, zeros(2, H).double())),
        "(?i)(float64|double).*float|float.*(float64|double)",
    ),
    "int input": (lambda m: (zeros(2, IN).long(),), "(?i)(int64|long).*float|float.*(int64|long)"),
    "meta input": (lambda m: (zeros(2, IN, device="meta"),), "meta.*cpu|cpu.*meta"),
    "meta hx": (
        lambda m: (zeros(2, IN), states(m, zeros(2, H, device="meta"))),
        "meta.*cpu|cpu.*meta",
    ),
}


@pytest.mark.parametrize("case", CELL_NAMED)
@cells
def test_cell_refuses_in_clear_words(theirs, ours, case):
    arguments, pattern = CELL_NAMED[case]
    a, b = theirs(IN, H), ours(IN, H)
    error = error_of(lambda: b(*arguments(b)))
    assert isinstance(error, (type(error_of(lambda: a(*arguments(a)))), ValueError))
    assert re.search(pattern, str(error)), error


def test_lstm_cell_states_must_be_two():
    m = gatedrnn.LSTMCell(IN, H)
    a = nn.LSTMCell(IN, H)
    for hx in (zeros(2, H), zeros(2, 2, H)):
        assert type(error_of(lambda hx=hx: m(zeros(2, IN), hx))) is TypeError
    for hx in ((zeros(2, H),), (zeros(2, H),) * 3):
        expected = error_of(lambda hx=hx: a(zeros(2, IN), hx))
        error = error_of(lambda hx=hx: m(zeros(2, IN), hx))
        assert isinstance(error, (type(expected), TypeError, ValueError))


def test_gru_cell_takes_a_tensor_as_hx():
    a, b = nn.GRUCell(IN, H), gatedrnn.GRUCell(IN, H)
    hx = (zeros(2, H), zeros(2, H))
    assert_same_error(lambda: b(zeros(2, IN), hx), lambda: a(zeros(2, IN), hx))


@cells
def test_cell_weights_of_a_wrong_shape(theirs, ours):
    """Anything that reads by the declared sizes would read beyond these."""
    for name, cut in [
        ("weight_ih", (2, 2)),
        ("weight_hh", (3, 3)),
        ("bias_ih", (3,)),
        ("bias_hh", (3,)),
    ]:
        m = ours(IN, H)
        setattr(m, name, nn.Parameter(zeros(*cut)))
        error = error_of(lambda m=m: m(zeros(2, IN), states(m, zeros(2, H))))
        assert isinstance(error, (RuntimeError, ValueError))


def test_packed_sequence_given_to_a_cell_is_refused():
    packed = PackedSequence(zeros(3, IN), torch.tensor([2, 1]))
    for theirs, ours in ((nn.GRUCell, gatedrnn.GRUCell), (nn.LSTMCell, gatedrnn.LSTMCell)):
        a, b = theirs(IN, H), ours(IN, H)
        assert_same_error(lambda b=b: b(packed), lambda a=a: a(packed))
