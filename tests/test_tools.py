"""Tools around models: torch.fx takes ours for a leaf; those that cannot take ours say so."""

import warnings

import pytest
import torch
from helpers import assert_like, error_of, every_class, layers
from torch import nn

import gatedrnn

IN, H = 3, 4
X = torch.zeros(3, 2, IN)


@layers
def test_fx_sees_a_leaf(theirs, ours):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn = ours(3, 4, batch_first=True)

        def forward(self, x):
            y, hn = self.rnn(x)
            return y[:, -1], hn

    model = Model()
    traced = torch.fx.symbolic_trace(model)
    assert [n.target for n in traced.graph.nodes if n.op == "call_module"] == ["rnn"]
    for steps in (2, 5):
        x = torch.randn(2, steps, 3)
        assert_like(traced(x), model(x))


@pytest.fixture
def _quiet_about_deprecated_tools():
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"`torch\.jit\.\w+` is deprecated", DeprecationWarning)
        warnings.filterwarnings("ignore", r"torch\.ao\.quantization", DeprecationWarning)
        warnings.filterwarnings("ignore", r"torch\.quantize_per_tensor", UserWarning)
        yield


@pytest.mark.usefixtures("_quiet_about_deprecated_tools")
@every_class
@pytest.mark.parametrize("wrapped", [False, True], ids=["bare", "in a model"])
def test_script_is_refused_and_points_to_revert(theirs, ours, wrapped):
    module = ours(IN, H)
    model = nn.Sequential(nn.Linear(IN, IN), module) if wrapped else module
    error = error_of(lambda: torch.jit.script(model))
    assert "gatedrnn.revert" in str(error)
    x = torch.zeros(2, IN) if issubclass(ours, nn.modules.rnn.RNNCellBase) else X
    expected = model(x)
    scripted = torch.jit.script(nn.Sequential(gatedrnn.revert(model)))
    assert_like(scripted(x), expected)


@pytest.mark.usefixtures("_quiet_about_deprecated_tools")
@layers
def test_quantization_of_ours_is_refused_and_points_to_revert(theirs, ours):
    model = nn.ModuleDict({"rnn": ours(IN, H), "head": nn.Linear(H, 1)})
    error = error_of(lambda: torch.ao.quantization.quantize_dynamic(model, {ours}))
    assert type(error) is RuntimeError
    assert "gatedrnn.revert" in str(error)
    assert model["rnn"](X)[0].shape == (3, 2, H)


@pytest.mark.usefixtures("_quiet_about_deprecated_tools")
@every_class
def test_quantization_that_passes_ours_by_says_so_and_points_to_revert(theirs, ours):
    """It looks for torch.nn's exact types: ours would stay in float without a word.

    A warning and no refusal, since a model may well be meant to have only its Linear quantized.
    """
    model = nn.ModuleDict({"rnn": ours(IN, H), "head": nn.Linear(H, 1)})
    with pytest.warns(UserWarning, match=r"gatedrnn\.revert"):
        partly = torch.ao.quantization.quantize_dynamic(model)
    assert type(partly["rnn"]) is ours
    assert type(partly["head"]) is not nn.Linear
    gatedrnn.revert(model)
    quantized = torch.ao.quantization.quantize_dynamic(model)
    assert type(quantized["rnn"]).__module__.startswith("torch.ao")
