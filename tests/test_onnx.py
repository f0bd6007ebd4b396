"""torch.onnx.export(dynamo=True): ONNX's own GRU and LSTM, equal to ours in ONNX Runtime."""

from collections import Counter

import onnxruntime
import pytest
import torch
from helpers import assert_like, error_of, tensors
from torch import nn
from torch.export import Dim
from torch.nn.utils.rnn import pack_sequence

import gatedrnn

IN, H = 3, 4
# Of the exporter itself.
pytestmark = [pytest.mark.filterwarnings(f"ignore::{kind}") for kind in (
    "DeprecationWarning", "FutureWarning", "UserWarning")]


class Results(nn.Module):
    """All results of a module, flat."""

    def __init__(self, rnn):
        super().__init__()
        self.rnn = rnn

    def forward(self, x):
        return tuple(tensors(self.rnn(x)))


def to_onnx(model, inputs, dynamic=None):
    return torch.onnx.export(
        model, inputs, dynamic_shapes=dynamic, dynamo=True, verbose=False
    )


def run(program, inputs):
    session = onnxruntime.InferenceSession(program.model_proto.SerializeToString())
    names = [i.name for i in session.get_inputs()]
    given = {n: t.numpy() for n, t in zip(names, inputs, strict=True)}
    return tuple(torch.from_numpy(r) for r in session.run(None, given))


def operators(program):
    return Counter(n.op_type for n in program.model.graph)


def hold(program, model, *inputs):
    with torch.no_grad():
        expected = model(*inputs)
    assert_like(run(program, inputs), expected, strides=False, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("cls", "options"), [
    (gatedrnn.GRU, {"num_layers": 2, "bidirectional": True}),
    (gatedrnn.LSTM, {"num_layers": 2, "bidirectional": True, "bias": False, "batch_first": True}),
])
def test_layers_of_any_length_and_batch(cls, options):
    model = Results(cls(IN, H, **options)).eval()
    length, batch = Dim("length"), Dim("batch")
    names = (batch, length) if model.rnn.batch_first else (length, batch)
    program = to_onnx(model, (torch.randn(5, 2, IN),), ({0: names[0], 1: names[1]},))
    found = operators(program)
    assert found[cls.__name__] == 2
    assert not {"Loop", "Scan", "If"} & found.keys()
    for shape in ((5, 2, IN), (9, 3, IN), (1, 1, IN)):
        hold(program, model, torch.randn(shape))


def test_states_given_and_returned_by_every_class():
    class All(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleList(c(IN, H) for c in (gatedrnn.GRU, gatedrnn.LSTM))
            self.cells = nn.ModuleList(c(IN, H) for c in (gatedrnn.GRUCell, gatedrnn.LSTMCell))

        def forward(self, x, h, c):
            (gru, lstm), (gru_cell, lstm_cell) = self.layers, self.cells
            return tuple(tensors((
                gru(x, h[None]), lstm(x, (h[None], c[None])), gru_cell(x[0], h),
                lstm_cell(x[0], (h, c)),
            )))

    model, inputs = All().eval(), (torch.randn(5, 2, IN), torch.randn(2, H), torch.randn(2, H))
    program = to_onnx(model, inputs)
    assert (operators(program)["GRU"], operators(program)["LSTM"]) == (2, 2)
    hold(program, model, *inputs)


def test_an_exported_program_is_translated_too():
    model = Results(gatedrnn.GRU(IN, H)).eval()
    x = torch.randn(5, 2, IN)
    program = to_onnx(torch.export.export(model, (x,)), None)
    assert operators(program)["GRU"] == 1
    hold(program, model, x)


def test_the_exporters_own_verification_passes():
    model, x = Results(gatedrnn.LSTM(IN, H)).eval(), torch.randn(5, 2, IN)
    torch.onnx.export(model, (x,), dynamo=True, verbose=False, verify=True)


@pytest.mark.parametrize(("rnn", "inputs", "limit"), [
    (gatedrnn.LSTM(IN, H, proj_size=2), (torch.randn(5, 2, IN),), "ONNX's LSTM has no projection"),
    (gatedrnn.GRU(IN, H), (pack_sequence([torch.randn(3, IN), torch.randn(2, IN)]),),
     "ONNX has no packed sequences"),
], ids=["projection", "packed"])
def test_what_onnx_lacks_is_refused_in_words(rnn, inputs, limit):
    error = error_of(lambda: to_onnx(Results(rnn), inputs))
    assert limit in str(error)
