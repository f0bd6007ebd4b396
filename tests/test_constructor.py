"""Construction: signatures, class hierarchy, attributes, checks of arguments, repr."""

import inspect
import math
import warnings

import numpy as np
import pytest
import torch
from helpers import (
    assert_like,
    assert_same_error,
    backward,
    cells,
    error_of,
    every_class,
    layer_options,
    layers,
)
from torch import nn

import gatedrnn

HYPER_PARAMETERS = [
    "mode", "input_size", "hidden_size", "num_layers", "bias", "batch_first", "dropout",
    "bidirectional", "proj_size",
]  # fmt: skip


@pytest.mark.parametrize(
    ("cls", "documented"),
    [
        (
            gatedrnn.GRU,
            "input_size hidden_size num_layers=1 bias=True batch_first=False dropout=0.0 "
            "bidirectional=False device=None dtype=None",
        ),
        (
            gatedrnn.LSTM,
            "input_size hidden_size num_layers=1 bias=True batch_first=False dropout=0.0 "
            "bidirectional=False proj_size=0 device=None dtype=None",
        ),
        (gatedrnn.GRUCell, "input_size hidden_size bias=True device=None dtype=None"),
        (gatedrnn.LSTMCell, "input_size hidden_size bias=True device=None dtype=None"),
    ],
)
def test_signature_is_the_documented_one(cls, documented):
    positional = [
        p.name if p.default is p.empty else f"{p.name}={p.default}"
        for p in inspect.signature(cls).parameters.values()
        if p.kind is p.POSITIONAL_OR_KEYWORD
    ]
    assert positional == documented.split()


@layers
def test_forward_signature(theirs, ours):
    parameters = inspect.signature(ours.forward).parameters.values()
    positional = [p.name for p in parameters if p.kind is not p.KEYWORD_ONLY]
    assert positional == ["self", "input", "hx"]
    assert all(not p.default for p in parameters if p.kind is p.KEYWORD_ONLY)
    assert inspect.signature(ours.forward).parameters["hx"].default is None


@every_class
def test_skip_init_accepts_the_class(theirs, ours):
    module = nn.utils.skip_init(ours, 3, 5)
    assert [p.shape for p in module.parameters()] == [p.shape for p in theirs(3, 5).parameters()]


def test_eighth_positional_argument_of_gru_is_the_device():
    module = gatedrnn.GRU(3, 4, 1, True, False, 0.0, False, "meta", torch.float64)
    assert module.weight_ih_l0.is_meta
    assert module.weight_ih_l0.dtype == torch.float64
    assert module.proj_size == 0


@layers
def test_hierarchy_and_names(theirs, ours):
    module = ours(3, 4)
    assert issubclass(ours, nn.RNNBase)
    assert type(ours) is type  # a metaclass could clash with ABCMeta
    assert not isinstance(module, (nn.LSTM, nn.GRU, nn.RNN))
    assert ours.__name__ == theirs.__name__
    assert module._get_name() == theirs(3, 4)._get_name()
    assert ours.__constants__ == theirs.__constants__
    assert ours.__jit_unused_properties__ == theirs.__jit_unused_properties__


@cells
def test_cell_hierarchy_and_names(theirs, ours):
    assert issubclass(ours, nn.modules.rnn.RNNCellBase)
    assert type(ours) is type
    assert ours.__name__ == theirs.__name__
    assert ours.__constants__ == theirs.__constants__
    a, b = theirs(3, 4), ours(3, 4)
    assert {k: v for k, v in vars(a).items() if not k.startswith("_")} == {
        k: v for k, v in vars(b).items() if not k.startswith("_")
    }


@layer_options
def test_attributes(theirs, ours, options):
    a, b = theirs(3, 4, **options), ours(3, 4, **options)
    assert vars(a).keys() <= vars(b).keys()
    for name in [*HYPER_PARAMETERS, "_flat_weights_names", "_all_weights", "training"]:
        assert vars(b)[name] == vars(a)[name], name
        assert type(vars(b)[name]) is type(vars(a)[name]), name
    assert list(b.children()) == []
    assert list(b.buffers()) == []


@layers
def test_public_and_half_public_methods(theirs, ours):
    module = ours(3, 4)
    expected = {n for n in dir(theirs(3, 4)) if not n.startswith("__")}
    assert expected <= set(dir(module))
    assert error_of(lambda: setattr(module, "all_weights", 1)).__class__ is AttributeError


@layer_options
def test_all_weights_lists_the_parameters_themselves(theirs, ours, options):
    a, b = theirs(3, 4, **options), ours(3, 4, **options)
    assert [[w.shape for w in group] for group in b.all_weights] == [
        [w.shape for w in group] for group in a.all_weights
    ]
    assert {id(w) for group in b.all_weights for w in group} == {id(p) for p in b.parameters()}


@layer_options
def test_repr(theirs, ours, options):
    assert repr(ours(3, 4, **options)) == repr(theirs(3, 4, **options))


@layers
def test_repr_of_dropout_and_raw_bidirectional(theirs, ours):
    options = {"num_layers": 2, "dropout": 0.25, "bidirectional": 1}
    assert repr(ours(3, 4, **options)) == repr(theirs(3, 4, **options))
    assert ours(3, 4, **options).weight_ih_l1.shape == theirs(3, 4, **options).weight_ih_l1.shape


@cells
def test_cell_repr(theirs, ours):
    assert repr(ours(3, 4)) == repr(theirs(3, 4))
    assert repr(ours(3, 4, bias=False)) == repr(theirs(3, 4, bias=False))


BAD_ARGUMENTS = [
    {"dropout": "abc"},
    {"dropout": None},
    {"dropout": "0.5"},
    {"dropout": True},
    {"dropout": math.nan},
    {"dropout": -0.1},
    {"dropout": 1.1},
    {"dropout": torch.tensor(0.5)},
    {"bias": 1},
    {"bias": np.bool_(True)},
    {"bias": None},
    {"batch_first": 0},
    {"batch_first": "yes"},
    {"input_size": 3.0},
    {"input_size": np.int64(3)},
    {"input_size": 0},
    {"input_size": -2},
    {"hidden_size": 4.0},
    {"hidden_size": np.int64(4)},
    {"hidden_size": 0},
    {"hidden_size": -1},
    {"num_layers": 0},
    {"num_layers": -1},
    {"dtype": torch.int64},
    {"dtype": "float32"},
    {"device": "no such device"},
]


@pytest.mark.parametrize("bad", BAD_ARGUMENTS, ids=str)
@layers
def test_bad_argument_is_refused_as_torch_refuses_it(theirs, ours, bad):
    arguments = {"input_size": 3, "hidden_size": 4, **bad}
    assert_same_error(lambda: ours(**arguments), lambda: theirs(**arguments))


@pytest.mark.parametrize("size", [-1, 4, 5])
def test_bad_proj_size(size):
    assert_same_error(
        lambda: gatedrnn.LSTM(3, 4, proj_size=size), lambda: nn.LSTM(3, 4, proj_size=size)
    )


@pytest.mark.parametrize("size", [0, 2])
def test_proj_size_is_no_argument_of_gru(size):
    assert_same_error(
        lambda: gatedrnn.GRU(3, 4, proj_size=size), lambda: nn.GRU(3, 4, proj_size=size)
    )


@every_class
def test_unknown_keyword(theirs, ours):
    error = error_of(lambda: ours(3, 4, foo=1))
    assert type(error) is type(error_of(lambda: theirs(3, 4, foo=1))) is TypeError
    assert "got an unexpected keyword argument 'foo'" in str(error)


@every_class
def test_missing_size(theirs, ours):
    error = error_of(lambda: ours(3))
    assert type(error) is type(error_of(lambda: theirs(3))) is TypeError
    assert "'hidden_size'" in str(error)


@layers
@pytest.mark.parametrize("value", ["2", 1.5])
def test_num_layers_of_a_wrong_type(theirs, ours, value):
    assert type(error_of(lambda: ours(3, 4, num_layers=value))) is TypeError


@layers
def test_dropout_on_one_layer_warns(theirs, ours):
    texts = []
    for cls in (theirs, ours):
        with pytest.warns(UserWarning, match="dropout option adds dropout after all but") as seen:
            cls(3, 4, dropout=0.5)
        texts.append([str(w.message) for w in seen])
    assert texts[0] == texts[1]


@layers
def test_dropout_on_two_layers_does_not_warn(theirs, ours):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert ours(3, 4, num_layers=2, dropout=1).dropout == 1.0
    assert type(ours(3, 4, num_layers=2, dropout=1).dropout) is float


@layers
def test_bool_sizes_are_accepted(theirs, ours):
    assert ours(True, 4).weight_ih_l0.shape == theirs(True, 4).weight_ih_l0.shape


@every_class
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16, torch.complex64])
def test_dtype(theirs, ours, dtype):
    assert {p.dtype for p in ours(3, 4, dtype=dtype).parameters()} == {dtype}


@every_class
def test_float8_is_refused_as_by_torch(theirs, ours):
    dtype = torch.float8_e4m3fn
    assert_same_error(lambda: ours(3, 4, dtype=dtype), lambda: theirs(3, 4, dtype=dtype))


@every_class
def test_default_dtype_and_device_contexts(theirs, ours):
    previous = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        assert {p.dtype for p in ours(3, 4).parameters()} == {torch.float64}
    finally:
        torch.set_default_dtype(previous)
    with torch.device("meta"):
        assert all(p.is_meta for p in ours(3, 4).parameters())


@every_class
def test_construction_on_meta_draws_no_random_numbers(theirs, ours):
    before = torch.get_rng_state()
    module = ours(3, 4, device="meta")
    assert torch.equal(torch.get_rng_state(), before)
    assert all(p.is_meta for p in module.parameters())


@cells
@pytest.mark.parametrize(
    "arguments",
    [(10, 0), (0, 4), (np.int64(3), np.int64(4)), (3, 4, "relu"), (3, 4, 0), (3, 4, None)],
    ids=str,
)
def test_cells_check_nothing(theirs, ours, arguments):
    with warnings.catch_warnings():
        # An empty weight cannot be filled: torch says so for both.
        warnings.filterwarnings("ignore", "Initializing zero-element tensors is a no-op")
        a, b = theirs(*arguments), ours(*arguments)
    assert [(n, p.shape) for n, p in a.named_parameters()] == [
        (n, p.shape) for n, p in b.named_parameters()
    ]
    assert b._parameters.keys() == a._parameters.keys()
    assert b.bias == a.bias


@cells
@pytest.mark.parametrize("arguments", [("3", 4), (3, -1), (3, 4.5)], ids=str)
def test_bad_cell_sizes(theirs, ours, arguments):
    assert_same_error(lambda: ours(*arguments), lambda: theirs(*arguments))


@layers
def test_torch_nn_may_be_patched_with_ours(theirs, ours, monkeypatch):
    """No look-up of torch.nn.GRU at run time: it would find ourselves and recurse."""
    x = torch.randn(5, 2, 3)
    original = theirs(3, 4, num_layers=2)
    expected = original(x)
    monkeypatch.setattr(nn, theirs.__name__, ours)
    monkeypatch.setattr(nn.modules.rnn, theirs.__name__, ours)
    module = getattr(nn, theirs.__name__)(3, 4, num_layers=2)
    assert type(module) is ours
    module.load_state_dict(original.state_dict())
    result = module(x)
    assert_like(result, expected)
    backward(result)
    assert module.weight_ih_l0.grad is not None
    complex_module = ours(3, 4, dtype=torch.complex64)
    assert complex_module(x.to(torch.complex64))[0].dtype == torch.complex64
