"""Programs that tracers record: their values, and the gradients that they must not lose."""

import warnings

import pytest
import torch
from helpers import layers
from torch import nn
from torch.fx.experimental.proxy_tensor import make_fx

import gatedrnn


class Model(nn.Module):
    def __init__(self, cls):
        super().__init__()
        self.first = nn.Linear(3, 3)
        self.rnn = cls(3, 4, 2, batch_first=True, bidirectional=True)

    def forward(self, x):
        return self.rnn(self.first(x))[0]


def export(model, x):
    return torch.export.export(model, (x,)).module()


def export_strictly(model, x):
    return torch.export.export(model, (x,), strict=True).module()


def trace(model, x):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of torch.jit itself
        # pytest's filters have replaced the one that gatedrnn sets for its size checks.
        warnings.simplefilter("ignore", torch.jit.TracerWarning)
        return torch.jit.trace(model, x)


def trace_without_grad(model, x):
    with torch.no_grad():
        return trace(model, x)


RECORDERS = [export, export_strictly, trace, trace_without_grad]


def gradients(program, x):
    leaf = x.clone().requires_grad_()
    y = program(leaf)
    (y * torch.linspace(-1, 1, y.numel()).view_as(y)).sum().backward()
    found = {name.replace(".", "_"): p.grad for name, p in program.named_parameters()}
    return y.detach(), leaf.grad, found


@layers
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("record", RECORDERS, ids=lambda r: r.__name__)
def test_recorded_program_gives_eager_values_and_gradients(theirs, ours, record):
    model, x = Model(ours), torch.randn(2, 5, 3)
    expected = gradients(model, x)
    model.zero_grad()
    program = record(model, x)
    y, dx, found = gradients(program, x)
    assert torch.equal(y, expected[0]) and torch.equal(dx, expected[1])
    assert sorted(found) == sorted(expected[2])
    for name, gradient in expected[2].items():
        assert torch.equal(found[name], gradient), name


def decomposed(model, x):
    return torch.export.export(model, (x,)).run_decompositions().module()


@layers
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("record", [export, decomposed, trace], ids=lambda r: r.__name__)
def test_second_derivatives_of_a_recorded_program(theirs, ours, record):
    """Without a derivative of its own, the op's backward would pass for a constant."""
    model, x = Model(ours), torch.randn(2, 5, 3, requires_grad=True)
    results = []
    for program in (record(model, x.detach()), model):
        (g,) = torch.autograd.grad(program(x).square().sum(), x, create_graph=True)
        results.append(torch.autograd.grad(g.square().sum(), [x, *program.parameters()]))
    for actual, expected in zip(*results, strict=True):
        assert torch.equal(actual, expected)
        assert expected.count_nonzero()


@layers
def test_a_trace_takes_other_lengths_and_batches(theirs, ours):
    model = Model(ours)
    program = trace(model, torch.randn(2, 5, 3))
    x = torch.randn(4, 9, 3)
    assert torch.equal(program(x), model(x))


@pytest.mark.parametrize(("cell", "state"), [
    (gatedrnn.GRUCell, lambda h: h), (gatedrnn.LSTMCell, lambda h: (h, h + 1)),
])
def test_make_fx_records_cells(cell, state):
    m, x, h = cell(3, 4), torch.randn(2, 3), torch.randn(2, 4)

    def step(x, h):
        out = m(x, state(h))
        return out if isinstance(out, torch.Tensor) else out[0] * out[1]

    program = make_fx(step)(x, h)
    leaves = [[t.clone().requires_grad_() for t in (x, h)] for _ in "ab"]
    results = [f(*leaf) for f, leaf in zip((step, program), leaves, strict=True)]
    assert torch.equal(*results)
    grads = [torch.autograd.grad(y.sum(), leaf) for y, leaf in zip(results, leaves, strict=True)]
    assert all(map(torch.equal, *grads))
