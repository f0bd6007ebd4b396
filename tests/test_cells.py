"""GRUCell and LSTMCell against torch.nn and the oracle."""

from itertools import chain, combinations

import pytest
import torch
from equivalence import (
    CELLS,
    LAYOUTS,
    OURS,
    THREADS,
    Case,
    Trial,
    check,
    forward,
    lay_out,
    torch_threads,
)

DTYPES = (torch.float32, torch.float64)
SIZES = [  # (B, I, H)
    (1, 1, 1), (1, 5, 7), (1, 33, 500), (1, 129, 64), (2, 5, 33), (2, 129, 1), (2, 33, 129),
    (3, 1, 64), (3, 33, 7), (3, 5, 500), (8, 129, 33), (8, 1, 129), (8, 5, 64), (17, 33, 33),
    (17, 129, 129), (17, 1, 7), (64, 1, 33), (64, 5, 129), (64, 33, 64), (64, 129, 7),
    (64, 129, 500),
]
# The float64 oracle runs without BLAS: not the largest.
SIZE_CASES = [
    Case(cell, size, dtype)
    for dtype in DTYPES
    for cell in CELLS
    for size in SIZES
    if dtype == torch.float32 or size[0] * size[2] * (size[1] + size[2]) < 5e5
]


@pytest.mark.parametrize("case", SIZE_CASES, ids=str)
def test_sizes(case):
    check(case)


OPTIONS = [
    {"bias": False},
    {"states": False},
    {"states": False, "bias": False},
    *({"layout": layout} for layout in LAYOUTS),
]


@pytest.mark.parametrize(
    "case",
    [Case(cell, (5, 11, 33), dtype, **o) for dtype in DTYPES for cell in CELLS for o in OPTIONS]
    + [Case(cell, (1, 11, 33), form="unbatched", **o)
       for cell in CELLS for o in ({}, {"states": False}, {"layout": "stepped"})],
    ids=str,
)
def test_options(case):
    check(case)


@pytest.mark.parametrize("layout", ["sliced", "stepped", "transposed"])
@pytest.mark.parametrize("cell", CELLS)
def test_strides_of_weights(cell, layout):
    trial = Trial(Case(cell, (5, 11, 33)))
    for parameter in trial.ours.parameters():
        parameter.data = lay_out(parameter, layout)
    trial.hold(trial.run(), trial.peer(), trial.oracle())


@pytest.mark.parametrize("size", [(0, 3, 5), (3, 0, 5), (3, 5, 0)], ids=str)
@pytest.mark.parametrize("cell", CELLS)
def test_empty(cell, size):
    check(Case(cell, size))


@pytest.mark.parametrize("cell", CELLS)
def test_every_set_of_required_gradients(cell):
    trial = Trial(Case(cell, (3, 5, 17)))
    peer, oracle = trial.peer(), trial.oracle()
    names = [*trial.data.inputs, *dict(trial.ours.named_parameters())]
    for wrt in chain.from_iterable(combinations(names, k) for k in range(len(names) + 1)):
        trial.hold(trial.run(wrt), peer, oracle, f"with gradients of {wrt}")


@pytest.mark.parametrize("output", ["h_n", "c_n"])
def test_partial_cotangents(output):
    check(Case("lstm_cell", (3, 5, 33)), outputs=[output])


@pytest.mark.parametrize("threads", THREADS)
@pytest.mark.parametrize("size", [(1, 33, 129), (17, 5, 64)], ids=str)
@pytest.mark.parametrize("cell", CELLS)
def test_bit_equal_twice_and_without_grad(cell, size, threads):
    trial = Trial(Case(cell, size))
    with torch_threads(threads):
        first, second = trial.run(), trial.run()
        with torch.no_grad():
            plain = forward(trial.ours, trial.case, trial.data, trial.data.inputs)
    for name, value in first.items():
        assert torch.equal(value, second[name]), name
    for name, value in plain.items():
        assert torch.equal(value, first[name]), f"{name} with and without grad"


@pytest.mark.parametrize("cell", CELLS)
def test_steps_of_a_cell_make_a_layer(cell):
    """Ten steps by hand, with gradients through all of them, against torch.nn's layer."""
    layer = Trial(Case(cell.removesuffix("_cell"), (10, 4, 5, 33)))
    ours = Case(cell, (4, 5, 33)).build(OURS)
    for name in [n for n, _ in ours.named_parameters()]:  # shared: gradients are the layer's
        setattr(ours, name, getattr(layer.ours, f"{name}_l0"))

    def steps(_, x, hx):
        state = tuple(s[0] for s in hx) if cell == "lstm_cell" else hx[0]
        outputs = []
        for x_t in x:
            state = ours(x_t, state)
            outputs.append(state[0] if cell == "lstm_cell" else state)
        finals = tuple(s[None] for s in state) if cell == "lstm_cell" else state[None]
        return torch.stack(outputs), finals

    layer.call = steps
    layer.hold(layer.run(), layer.peer(), layer.oracle())


@pytest.mark.parametrize("where", ["x", "h0", "weight_ih", "weight_hh", "bias_ih"])
@pytest.mark.parametrize("cell", CELLS)
def test_nan_spreads_as_in_torch(cell, where):
    def put(module, data):
        target = {**data.inputs, **dict(module.named_parameters())}[where]
        target.reshape(-1)[0] = float("nan")

    check(Case(cell, (3, 4, 33)), edit=put)


@pytest.mark.parametrize("bias", [-1e4, -100.0, -30.0, -8.0, 8.0, 30.0, 100.0, 1e4])
@pytest.mark.parametrize("cell", CELLS)
def test_saturated_gates(cell, bias):
    """One gate after another at its end, the others at work."""

    def put(module, data):
        for k, gate in enumerate(module.bias_ih.chunk(3 if cell == "gru_cell" else 4)):
            gate[k::5] += bias

    check(Case(cell, (5, 4, 40)), edit=put)
