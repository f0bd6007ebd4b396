"""What is differentiated, from what, and how often: subsets, partial cotangents, repeats."""

from itertools import chain, combinations

import pytest
import torch
from equivalence import LAYERS, Case, Trial, check

SMALL = (4, 3, 5, 17)


def subsets(names):
    names = list(names)
    return chain.from_iterable(combinations(names, k) for k in range(len(names) + 1))


@pytest.mark.parametrize(
    "case",
    [
        Case("gru", SMALL),
        Case("lstm", SMALL),
        Case("lstm", SMALL, torch.float64, proj=3, bias=False),
        Case("gru", SMALL, torch.float64, form="unsorted"),
    ],
    ids=str,
)
def test_every_set_of_required_gradients(case):
    trial = Trial(case)
    peer, oracle = trial.peer(), trial.oracle()
    for wrt in subsets([*trial.data.inputs, *dict(trial.ours.named_parameters())]):
        trial.hold(trial.run(wrt), peer, oracle, f"with gradients of {wrt}")


@pytest.mark.parametrize("cell", LAYERS)
def test_one_required_gradient_in_a_stack(cell):
    trial = Trial(Case(cell, SMALL, layers=2, bidirectional=True))
    peer, oracle = trial.peer(), trial.oracle()
    for name in [*trial.data.inputs, *dict(trial.ours.named_parameters())]:
        trial.hold(trial.run([name]), peer, oracle, f"with the gradient of {name} alone")


PARTIAL = [
    (Case(cell, SMALL, **options), outputs)
    for cell, results in (("gru", ("output", "h_n")), ("lstm", ("output", "h_n", "c_n")))
    for options in ({}, {"layers": 2, "bidirectional": True}, {"form": "unsorted", "layers": 2})
    for outputs in subsets(results)
    if 0 < len(outputs) < len(results)
]


@pytest.mark.parametrize(
    ("case", "outputs"),
    [pytest.param(case, outputs, id=f"{case}-{'+'.join(outputs)}") for case, outputs in PARTIAL],
)
def test_partial_cotangents(case, outputs):
    check(case, outputs=outputs, threads=(2,))


@pytest.mark.parametrize("cell", LAYERS)
def test_loss_on_the_first_layer_leaves_zeros_above(cell):
    ours = Trial(Case(cell, SMALL, layers=2)).ours
    _, state = ours(torch.randn(4, 3, 5))
    (state if cell == "gru" else state[0])[0].sum().backward()
    for name, parameter in ours.named_parameters():
        assert parameter.grad is not None, name
        assert bool(parameter.grad.any()) == name.endswith("_l0"), name


@pytest.mark.parametrize("cell", LAYERS)
def test_sum_as_loss(cell):
    """Its cotangent is one number expanded over the whole output."""

    def ones(module, data):
        data.cotangents["output"].fill_(1)

    trial = Trial(Case(cell, SMALL), ones)
    x = trial.data.inputs["x"].requires_grad_()
    output, _ = trial.ours(x, hidden(trial))
    names, leaves = zip(("x", x), *trial.ours.named_parameters(), strict=True)
    gradients = torch.autograd.grad(output.sum(), leaves)
    results = {f"grad {n}": g for n, g in zip(names, gradients, strict=True)}
    trial.hold(results, trial.peer(["output"]), trial.oracle(["output"]))


def hidden(trial):
    states = tuple(trial.data.inputs[f"{s}0"] for s in trial.case.state_names)
    return states if len(states) > 1 else states[0]


@pytest.mark.parametrize("case", [Case("gru", SMALL), Case("lstm", SMALL, proj=3)], ids=str)
def test_retained_graph_repeats_bit_for_bit(case):
    trial = Trial(case)
    output, _ = trial.ours(trial.data.inputs["x"], hidden(trial))
    loss = (output * trial.data.cotangents["output"]).sum()
    parameters = list(trial.ours.parameters())
    first = torch.autograd.grad(loss, parameters, retain_graph=True)
    second = torch.autograd.grad(loss, parameters)
    for a, b in zip(first, second, strict=True):
        assert torch.equal(a, b)
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        torch.autograd.grad(loss, parameters)


@pytest.mark.parametrize("cell", LAYERS)
def test_gradients_accumulate(cell):
    trial = Trial(Case(cell, SMALL))
    for _ in range(2):
        output, _ = trial.ours(trial.data.inputs["x"], hidden(trial))
        (output * trial.data.cotangents["output"]).sum().backward()
    once = trial.run(outputs=["output"])
    for name, parameter in trial.ours.named_parameters():
        assert torch.equal(parameter.grad, 2 * once[f"grad {name}"]), name


@pytest.mark.parametrize("changed", ["x", "h0", "weight_ih_l0", "weight_hh_l0"])
@pytest.mark.parametrize("cell", LAYERS)
def test_change_in_place_before_backward_is_refused(cell, changed):
    trial = Trial(Case(cell, SMALL))
    tensors = {**trial.data.inputs, **dict(trial.ours.named_parameters())}
    for tensor in trial.data.inputs.values():
        tensor.requires_grad_()
    output, _ = trial.ours(tensors["x"], hidden(trial))
    with torch.no_grad():
        tensors[changed].add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        output.sum().backward()
