"""Derivatives against finite differences in float64, first and second; second ones in float32.

Where a case has few enough numbers, every entry of the Jacobian is checked; in a stack gradcheck's
fast mode compares random projections of it.
"""

import pytest
import torch
from equivalence import CELLS, LAYERS, OURS, Case, Trial, draw, forward, torch_threads
from torch.autograd import gradcheck, gradgradcheck
from torch.func import functional_call

from gatedrnn import functional

SMALL = [
    Case("gru", (3, 2, 2, 3), torch.float64),
    Case("lstm", (3, 2, 2, 3), torch.float64),
    Case("gru", (1, 1, 1, 1), torch.float64, bias=False),
    Case("lstm", (2, 2, 2, 3), torch.float64, proj=2),
    Case("gru", (3, 3, 2, 2), torch.float64, form="unsorted"),
    Case("lstm", (3, 3, 1, 2), torch.float64, form="sorted"),
    Case("gru_cell", (2, 3, 2), torch.float64),
    Case("lstm_cell", (2, 3, 2), torch.float64),
]
STACKS = [
    Case("gru", (2, 2, 2, 2), torch.float64, layers=2, bidirectional=True),
    Case("lstm", (2, 2, 2, 2), torch.float64, layers=2, bidirectional=True, bias=False),
    Case("lstm", (2, 2, 2, 2), torch.float64, layers=2, bidirectional=True, proj=1),
    Case("gru", (2, 3, 2, 2), torch.float64, layers=2, bidirectional=True, form="unsorted"),
    Case("lstm", (2, 3, 2, 3), torch.float64, bidirectional=True, proj=1, form="unsorted"),
    Case("gru", (2, 1, 2, 2), torch.float64, layers=3, form="unbatched"),
    Case("lstm", (2, 2, 2, 3), torch.float64, batch_first=True, layout="transposed"),
]


@pytest.fixture(autouse=True)
def one_thread():
    """Thousands of calls too small to share out."""
    with torch_threads(1):
        yield


def by_module(case, parameters):
    """A call of the module with other parameters in the place of its own."""
    return lambda module, x, hx: functional_call(module, parameters, (x, hx))


def by_function(case, parameters):
    """A call of gatedrnn.functional with explicit weights."""
    function = getattr(functional, case.cell)
    weights = list(parameters.values())
    if case.is_cell:
        return lambda module, x, hx: function(x, hx, *weights)
    options = {"bidirectional": case.bidirectional, "batch_first": case.batch_first}
    return lambda module, x, hx: function(x, weights, hx, **options)


def flat(case, way):
    """The case as a function of a flat tuple of tensors, and those tensors."""
    module, data = case.build(OURS).double(), draw(case)
    parameters = dict(module.named_parameters())
    names = [*data.inputs, *parameters]

    def function(*tensors):
        given = dict(zip(names, tensors, strict=True))
        call = way(case, {n: given[n] for n in parameters})
        return tuple(forward(module, case, data, given, call).values())

    values = [*data.inputs.values(), *parameters.values()]
    return function, [v.detach().clone().requires_grad_() for v in values]


# Each case goes by the module once and by the function once.


@pytest.mark.parametrize("case", SMALL, ids=str)
def test_first_derivatives(case):
    assert gradcheck(*flat(case, by_function))


@pytest.mark.parametrize("case", STACKS, ids=str)
def test_first_derivatives_of_stacks(case):
    assert gradcheck(*flat(case, by_module), fast_mode=True)


@pytest.mark.parametrize("case", SMALL, ids=str)
def test_second_derivatives(case):
    assert gradgradcheck(*flat(case, by_module), fast_mode=case.size[0] > 2)


@pytest.mark.parametrize("case", STACKS, ids=str)
def test_second_derivatives_of_stacks(case):
    assert gradgradcheck(*flat(case, by_function), fast_mode=True)


def gradient_penalty(first, generator):
    return sum((g * g).sum() for g in first)


def along_a_direction(first, generator):
    """Its gradient is the Hessian's product with a random vector."""
    return sum(
        (g * torch.randn(g.shape, generator=generator, dtype=torch.float64).to(g.dtype)).sum()
        for g in first
    )


def second_order(module, case, data, scalar):
    """Gradients of a scalar made of the gradients of sum(result * cotangent)."""
    inputs = {n: v.clone().requires_grad_() for n, v in data.inputs.items()}
    leaves = {**inputs, **dict(module.named_parameters())}
    results = forward(module, case, data, inputs)
    loss = sum((results[n] * data.cotangents[n]).sum() for n in results)
    first = torch.autograd.grad(loss, list(leaves.values()), create_graph=True)
    second = torch.autograd.grad(
        scalar(first, torch.Generator().manual_seed(3)), list(leaves.values())
    )
    return {f"grad {n}": g for n, g in zip(leaves, second, strict=True)}


@pytest.mark.parametrize("scalar", [gradient_penalty, along_a_direction])
@pytest.mark.parametrize(
    "case",
    [
        *(Case(cell, (7, 5, 5, 33)) for cell in LAYERS),
        *(Case(cell, (5, 4, 3, 17), layers=2, bidirectional=True) for cell in LAYERS),
        *(Case(cell, (5, 4, 3, 17), form="unsorted") for cell in LAYERS),
        Case("lstm", (5, 4, 3, 17), proj=7),
        *(Case(cell, (8, 5, 33)) for cell in CELLS),
    ],
    ids=str,
)
def test_second_derivatives_in_float32(case, scalar):
    trial = Trial(case)
    oracle, wide_case, data = trial.wide()
    trial.hold(
        second_order(trial.ours, case, trial.data, scalar),
        second_order(trial.theirs, case, trial.data, scalar),
        second_order(oracle, wide_case, data, scalar),
    )
