"""GRU and LSTM against torch.nn and the oracle: output, states and every gradient at once."""

from itertools import product

import pytest
import torch
from equivalence import (
    LAYERS,
    LAYOUTS,
    THREADS,
    Case,
    Trial,
    check,
    forward,
    lay_out,
    run,
    torch_threads,
)

from gatedrnn import reference

DTYPES = (torch.float32, torch.float64)
BATCHES, STEPS, FEATURES, HIDDEN = (1, 2, 3, 8, 17, 64), (1, 2, 5, 31), (1, 5, 33, 129), (
    1, 7, 33, 64, 129, 500)


def pairwise_sizes(most_work):
    """(T, B, I, H): every pair (B, H) once, and with them every pair of any two sizes.

    Where the pair's own T would cost more than `most_work` multiply-adds, a shorter one stands in.
    H = 1, which takes many draws, comes with every other B and a short T.
    """
    for (b, batch), (h, hidden) in product(enumerate(BATCHES), enumerate(HIDDEN)):
        if hidden == 1 and b % 2:
            continue
        features = FEATURES[(b + 2 * h + h // 2) % 4]
        steps = STEPS[(b + h) % (4 if hidden > 1 else 3)]
        while steps > 1 and steps * batch * hidden * (hidden + features) > most_work:
            steps = STEPS[STEPS.index(steps) - 1]
        yield steps, batch, features, hidden


# The float64 oracle runs without BLAS: smaller sizes, and only every third one.
SIZES = [(size, torch.float32) for size in pairwise_sizes(most_work=4e7)]
SIZES += [(size, torch.float64) for size in list(pairwise_sizes(most_work=4e6))[::3]]


@pytest.mark.parametrize(
    "case", [Case(cell, size, dtype) for size, dtype in SIZES for cell in LAYERS], ids=str
)
def test_sizes(case):
    check(case)


OPTIONS = [
    {"layers": 2},
    {"layers": 3, "bias": False},
    {"bidirectional": True},
    {"bidirectional": True, "layers": 2, "batch_first": True},
    {"bidirectional": True, "layers": 3, "form": "unsorted"},
    {"batch_first": True},
    {"bias": False},
    {"states": False},
    {"states": False, "layers": 2, "bidirectional": True, "form": "sorted"},
    {"form": "sorted"},
    {"form": "sorted", "bidirectional": True, "batch_first": True},
    {"form": "unsorted"},
    {"form": "unsorted", "layers": 2, "bias": False, "batch_first": True},
    {"form": "unbatched"},
    {"form": "unbatched", "layers": 2, "bidirectional": True, "batch_first": True},
]
PROJECTIONS = [
    {"proj": 1},
    {"proj": 5, "layers": 2},
    {"proj": 19, "bidirectional": True, "bias": False},
    {"proj": 5, "layers": 2, "bidirectional": True, "form": "unsorted"},
    {"proj": 5, "batch_first": True, "form": "sorted"},
    {"proj": 5, "form": "unbatched", "states": False},
]


def with_options(cell, options, dtype=torch.float32, **more):
    batch = 1 if options.get("form") == "unbatched" else 6
    return Case(cell, (9, batch, 11, 33), dtype, **options, **more)


# The sides of a flag that are one code for both dtypes are not all run in both.
OPTION_CASES = [
    with_options(cell, options, dtype)
    for dtype, every in ((torch.float32, 1), (torch.float64, 2))
    for cell in LAYERS
    for options in (OPTIONS + PROJECTIONS if cell == "lstm" else OPTIONS)[::every]
]


@pytest.mark.parametrize("case", OPTION_CASES, ids=str)
def test_options(case):
    check(case)


@pytest.mark.parametrize(
    "case",
    [
        Case(cell, (steps, batch, 10, hidden), **options)
        for cell, (steps, batch, hidden), options in product(
            LAYERS,
            [(7, 5, 24), (12, 17, 65)],
            [{"form": "unsorted"}, {"form": "sorted", "bidirectional": True}],
        )
    ],
    ids=str,
)
def test_packed_sizes(case):
    check(case)


@pytest.mark.parametrize(
    "case",
    [
        with_options(cell, options, layout=layout)
        for cell in LAYERS
        for layout in LAYOUTS
        for options in (
            {},
            {"batch_first": True, "bidirectional": True},
            {"form": "unsorted"},
            {"form": "unbatched"},
        )
        if not (layout == "expanded" and options.get("form") == "unbatched")
    ],
    ids=str,
)
def test_strides_of_inputs_states_and_cotangents(case):
    check(case)


@pytest.mark.parametrize("layout", ["sliced", "stepped", "transposed"])
@pytest.mark.parametrize("cell", LAYERS)
def test_strides_of_weights(cell, layout):
    proj = {"proj": 5} if cell == "lstm" else {}
    trial = Trial(with_options(cell, {"layers": 2, "bidirectional": True, **proj}))
    for parameter in trial.ours.parameters():
        parameter.data = lay_out(parameter, layout)
    trial.hold(trial.run(), trial.peer(), trial.oracle())


@pytest.mark.parametrize("form", ["padded", "batch_first"])
@pytest.mark.parametrize("cell", LAYERS)
def test_empty_batch(cell, form):
    options = {"batch_first": True} if form == "batch_first" else {}
    case = Case(cell, (4, 0, 3, 5), layers=2, bidirectional=True, **options)
    check(case)
    ours = Trial(case).run()
    assert all(not ours[n].any() for n in ours if n.startswith("grad weight"))


DETERMINISM = [
    Case(cell, size, dtype, layers=2, bidirectional=True, form=form)
    for cell in LAYERS
    for dtype, size, form in (
        (torch.float32, (7, 17, 33, 129), "padded"),
        (torch.float32, (9, 1, 5, 64), "padded"),
        (torch.float64, (9, 8, 5, 33), "unsorted"),
    )
]


@pytest.mark.parametrize("threads", THREADS)
@pytest.mark.parametrize("case", DETERMINISM, ids=str)
def test_bit_equal_twice_and_without_grad(case, threads):
    trial = Trial(case)
    with torch_threads(threads):
        first, second = trial.run(), trial.run()
        with torch.no_grad():
            plain = forward(trial.ours, case, trial.data, trial.data.inputs)
    for name, value in first.items():
        assert torch.equal(value, second[name]), name
    for name, value in plain.items():
        assert torch.equal(value, first[name]), f"{name} with and without grad"


@pytest.mark.parametrize("cell", LAYERS)
def test_last_output_is_the_final_state(cell):
    case = Case(cell, (5, 3, 4, 33))
    results = run(Trial(case).ours, case, Trial(case).data)
    assert torch.equal(results["output"][-1], results["h_n"][-1])


SATURATION = (-1e4, -100.0, -30.0, -8.0, 0.0, 8.0, 30.0, 100.0, 1e4)


def saturate(module, data):
    """Gates at 0, at 1, and near them, in every mixture."""
    generator = torch.Generator().manual_seed(1)
    for name, parameter in module.named_parameters():
        if name.startswith("bias_ih"):
            picks = torch.randint(len(SATURATION), parameter.shape, generator=generator)
            parameter.copy_(torch.tensor(SATURATION)[picks])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("cell", LAYERS)
def test_saturated_gates(cell, dtype):
    check(Case(cell, (6, 8, 5, 64), dtype, layers=2, bidirectional=True), edit=saturate)


def large_weights(module, data):
    for parameter in module.parameters():
        parameter.mul_(10)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("cell", LAYERS)
def test_large_weights(cell, dtype):
    # One step: over more of them such a network is chaotic, and no two roundings stay together.
    check(Case(cell, (1, 8, 5, 64), dtype), edit=large_weights)


@pytest.mark.parametrize("where", ["x", "h0", "weight_ih_l0", "weight_hh_l0", "bias_ih_l0"])
@pytest.mark.parametrize("cell", LAYERS)
def test_nan_spreads_as_in_torch(cell, where):
    """Into its own sample from its own step on, and into every gradient that depends on it."""

    def put(module, data):
        tensors = {**data.inputs, **dict(module.named_parameters())}
        target = tensors[where]
        target[(2, 1, 0)[3 - target.dim():] if where != "h0" else (0, 1, 0)] = float("nan")

    case = Case(cell, (5, 3, 4, 33), layers=2)
    check(case, edit=put)
    if where == "x":
        output = Trial(case, put).run()["output"]
        assert output[2:, 1].isnan().all()
        assert not output[:2].isnan().any() and not output[:, [0, 2]].isnan().any()


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("where", ["x", "h0", "bias_ih_l0"])
@pytest.mark.parametrize("cell", LAYERS)
def test_infinity_spreads_as_in_torch(cell, where, sign):
    def put(module, data):
        target = {**data.inputs, **dict(module.named_parameters())}[where]
        target[(1, 1, 0)[3 - target.dim():] if where != "h0" else (0, 1, 0)] = sign * float("inf")

    trial = Trial(Case(cell, (3, 3, 4, 33)), put)
    trial.hold(trial.run(wrt=()), trial.peer(), trial.oracle())


def through_reference(module, x, hx):
    """The module's call by gatedrnn.reference, one layer, padded, with states."""
    groups = [[] for _ in range(1 + module.bidirectional)]
    for name, parameter in module.named_parameters():
        groups[name.endswith("_reverse")].append(parameter)
    slots = 5 if module.mode == "LSTM" else 4
    weights = [w for group in groups for w in (group + [None] * slots)[:slots]]
    if module.mode == "LSTM":
        y, hn, cn = reference.lstm_layer(x, *hx, weights)
        return y, (hn, cn)
    return reference.gru_layer(x, hx, weights)


@pytest.mark.parametrize(
    "case",
    [
        Case(cell, (5, 4, 7, 33), dtype, bidirectional=bidirectional, proj=proj)
        for dtype in DTYPES
        for bidirectional in (False, True)
        for cell, proj in (("gru", 0), ("lstm", 0), ("lstm", 5))
    ],
    ids=str,
)
def test_reference(case):
    check(case, call=through_reference, threads=(1,))
