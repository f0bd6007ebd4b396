"""Numbers and gradients on CUDA tensors against cuDNN's and the oracle's.

`make gpu` runs this file and test_cuda_*.py beside it; they ask for nothing but torch, NumPy and
pytest. Without a GPU every test is skipped and says why.
"""

from itertools import product

import pytest
import torch
from cuda_cases import (
    BFLOAT16,
    FLOAT16,
    FLOAT32,
    FLOAT64,
    MODES,
    TF32,
    CudaTrial,
    check,
    needs_gpu,
    on_device,
    precision,
    shifted,
)
from equivalence import CELLS, LAYERS, Case, Trial, forward
from test_layers import OPTIONS, PROJECTIONS, with_options

pytestmark = needs_gpu
every_mode = pytest.mark.parametrize("mode", MODES, ids=str)
every_cell = pytest.mark.parametrize("cell", LAYERS)


# Numbers and gradients

BATCHES, HIDDEN, STEPS, FEATURES = (1, 3, 17, 65, 130), (1, 33, 100, 256), (1, 2, 7, 20), (1, 5, 64)
SIZES = [
    (STEPS[(b + h) % 4] if H > 1 else STEPS[b % 3], B, FEATURES[(b + 2 * h) % 3], H)
    for (b, B), (h, H) in product(enumerate(BATCHES), enumerate(HIDDEN))
]


def is_quick(size, mode):
    """The oracle of float64 works without BLAS."""
    T, B, _, H = size
    return mode is not FLOAT64 or T * B * H * H < 2e6


@pytest.mark.parametrize(
    ("case", "mode"),
    [
        pytest.param(Case(cell, size), mode, id=f"{Case(cell, size)}-{mode}")
        for size in SIZES for cell in LAYERS for mode in MODES if is_quick(size, mode)
    ],
)
def test_sizes(case, mode):
    check(case, mode)


@pytest.mark.parametrize(
    "case",
    [with_options(cell, options) for cell in LAYERS
     for options in (OPTIONS + PROJECTIONS if cell == "lstm" else OPTIONS)],
    ids=str,
)
@every_mode
def test_options(case, mode):
    check(case, mode)


@pytest.mark.parametrize(
    "case",
    [
        Case(cell, (steps, batch, 10, hidden), **options)
        for cell, (steps, batch, hidden), options in product(
            LAYERS, [(7, 5, 24), (20, 65, 100)],
            [{"form": "unsorted"}, {"form": "sorted", "bidirectional": True, "layers": 2}],
        )
    ],
    ids=str,
)
@pytest.mark.parametrize("mode", [TF32, FLOAT32, BFLOAT16], ids=str)
def test_packed_sizes(case, mode):
    check(case, mode)


@pytest.mark.parametrize(
    "case",
    [
        with_options(cell, options, layout=layout)
        for cell in LAYERS
        for layout in ("sliced", "stepped", "transposed", "expanded")
        for options in ({}, {"batch_first": True, "bidirectional": True}, {"form": "unsorted"})
    ],
    ids=str,
)
@pytest.mark.parametrize("mode", [FLOAT32, FLOAT16], ids=str)
def test_strides_of_inputs_states_and_cotangents(case, mode):
    check(case, mode)


@pytest.mark.parametrize("features", [5, 8, 64])
@pytest.mark.parametrize("hidden_size", [33, 64])
@every_cell
@every_mode
def test_memory_that_is_not_aligned(cell, mode, hidden_size, features):
    """Every tensor begins one element behind a border, where no wide access may."""
    trial = CudaTrial(Case(cell, (6, 17, features, hidden_size)), mode)
    for parameter in trial.ours.parameters():
        parameter.data = shifted(parameter)
    data = on_device(trial.data)
    inputs = {n: shifted(v).requires_grad_() for n, v in data.inputs.items()}
    with precision(mode):
        results = forward(trial.ours, trial.case, data, inputs)
        gradients = torch.autograd.grad(
            list(results.values()), [*inputs.values(), *trial.ours.parameters()],
            [shifted(data.cotangents[n]) for n in results])
    names = [*results, *(f"grad {n}" for n in inputs), *(
        f"grad {n}" for n, _ in trial.ours.named_parameters())]
    plain = trial.run()
    for name, value in zip(names, [*results.values(), *gradients], strict=True):
        largest = max(1.0, float(plain[name].abs().max()))
        torch.testing.assert_close(
            value.detach().cpu(), plain[name], rtol=0,
            atol=4 * torch.finfo(mode.judged_as).eps * largest,
            msg=lambda text, n=name: f"{n}: {text}")


@pytest.mark.parametrize("size", [(1, 1, 1), (3, 5, 33), (17, 64, 100), (130, 10, 256)], ids=str)
@pytest.mark.parametrize("cell", CELLS)
@every_mode
def test_cells(cell, size, mode):
    options = ({}, {"bias": False}, {"states": False})
    for chosen in options if is_quick((1, *size), mode) else options[:1]:
        check(Case(cell, size, **chosen), mode)


@pytest.mark.parametrize(("size", "layers"), [
    ((30, 3, 5, 64), 4), ((20, 17, 8, 100), 3), ((40, 33, 7, 250), 2), ((300, 1, 16, 256), 2),
], ids=str)
@pytest.mark.parametrize("mode", [TF32, FLOAT16, BFLOAT16], ids=str)
@every_cell
def test_layers_at_the_same_time(cell, mode, size, layers, monkeypatch):
    monkeypatch.setenv("GATEDRNN_CUDA_KERNEL", "wavefront")
    case = Case(cell, size, layers=layers)
    check(case, mode)
    trial = CudaTrial(case, mode)
    first, second = trial.run(), trial.run()
    assert all(torch.equal(value, second[name]) for name, value in first.items())


@every_cell
def test_empty_batch(cell):
    case = Case(cell, (4, 0, 3, 5), layers=2, bidirectional=True)
    results = CudaTrial(case, FLOAT32).run()
    assert results["output"].shape == (4, 0, 10)
    assert all(not results[n].any() for n in results if n.startswith("grad weight"))


@every_cell
@every_mode
def test_bit_equal_twice_and_without_grad(cell, mode):
    for size, form in (((20, 65, 5, 100), "padded"), ((7, 130, 64, 256), "unsorted")):
        trial = CudaTrial(Case(cell, size, layers=2, bidirectional=True, form=form), mode)
        first, second = trial.run(), trial.run()
        data = on_device(trial.data)
        with torch.no_grad(), precision(mode):
            plain = forward(trial.ours, trial.case, data, data.inputs)
        for name, value in first.items():
            assert torch.equal(value, second[name]), name
        for name, value in plain.items():
            assert torch.equal(value.cpu(), first[name]), f"{name} with and without grad"


# Precision


@every_cell
def test_tf32_is_used_where_it_is_allowed_and_nowhere_else(cell):
    """In strict float32 the error is float32's, with TF32 a thousand times that at most."""
    case = Case(cell, (20, 65, 64, 256))
    oracle = Trial(case).oracle()
    errors = {}
    for mode in (TF32, FLOAT32):
        results = CudaTrial(case, mode).run()
        errors[mode] = max(float((results[n] - oracle[n]).abs().max()) for n in ("output", "h_n"))
    assert errors[FLOAT32] < 2e-6
    assert errors[TF32] < 2e-3
    if torch.cuda.get_device_capability() >= (8, 0):
        assert errors[TF32] > 4 * errors[FLOAT32]


@every_cell
def test_older_switch_of_tf32(cell):
    """torch.backends.cudnn.allow_tf32 is read as torch's own RNN reads it."""
    trial = CudaTrial(Case(cell, (20, 17, 64, 100)), FLOAT32)
    strict = trial.run(wrt=())
    data, cudnn = on_device(trial.data), torch.backends.cudnn
    before = cudnn.rnn.fp32_precision, cudnn.conv.fp32_precision
    try:
        cudnn.allow_tf32 = False
        with torch.no_grad():
            results = forward(trial.ours, trial.case, data, data.inputs)
    finally:
        cudnn.rnn.fp32_precision, cudnn.conv.fp32_precision = before
    for name, value in results.items():
        assert torch.equal(value.cpu(), strict[name]), name


@pytest.mark.parametrize("mode", [FLOAT16, BFLOAT16], ids=str)
@every_cell
def test_state_of_16_bit_layers_is_carried_in_float32(cell, mode):
    """Over many steps the error stays what one rounding of the result and of the weights makes."""
    case = Case(cell, (200, 3, 5, 64), dtype=mode.dtype)
    trial = CudaTrial(case, mode)
    results, oracle = trial.run(wrt=()), trial.oracle()
    error = float((results["output"].double() - oracle["output"]).abs().max())
    assert error < 4 * torch.finfo(mode.dtype).eps


@pytest.mark.parametrize("scale", [1e4, 1e30])
@every_cell
def test_large_states_stay_finite(cell, scale):
    """A reduced operand must not overflow where float32 does not."""
    def enlarge(module, data):
        data.inputs["h0"] *= scale

    results = CudaTrial(Case(cell, (3, 17, 5, 64)), TF32, enlarge).run(wrt=())
    assert all(value.isfinite().all() for value in results.values())


@pytest.mark.parametrize("where", ["x", "h0"])
@every_mode
@every_cell
def test_nan_spreads_within_its_sample_alone(cell, mode, where):
    def put(module, data):
        data.inputs[where][(2 if where == "x" else 0), 1, 0] = float("nan")

    case = Case(cell, (5, 17, 4, 33))
    clean, results = CudaTrial(case, mode).run(), CudaTrial(case, mode, put).run()
    first = 2 if where == "x" else 0
    others = [b for b in range(17) if b != 1]
    assert results["output"][first:, 1].isnan().all()
    assert torch.equal(results["output"][:, others], clean["output"][:, others])
    assert torch.equal(results["output"][:first, 1], clean["output"][:first, 1])
    assert results["h_n"][:, 1].isnan().all() and not results["h_n"][:, others].isnan().any()
    assert torch.equal(results["grad x"][:, others], clean["grad x"][:, others])
    assert results["grad weight_hh_l0"].isnan().any()


@pytest.mark.parametrize("sign", [1, -1])
@every_mode
@every_cell
def test_infinity_saturates_its_sample_alone(cell, mode, sign):
    def put(module, data):
        data.inputs["x"][1, 1, 0] = sign * float("inf")

    case = Case(cell, (3, 17, 4, 33))
    trial = CudaTrial(case, mode, put)
    results, clean, oracle = trial.run(wrt=()), CudaTrial(case, mode).run(wrt=()), trial.oracle()
    others = [b for b in range(17) if b != 1]
    assert torch.equal(results["output"][:, others], clean["output"][:, others])
    expected = torch.as_tensor(oracle["output"].astype(float) if mode is FLOAT64
                               else oracle["output"])
    assert torch.equal(results["output"].isnan(), expected.isnan())
    torch.testing.assert_close(results["output"].double(), expected.double(), rtol=0, atol=0.05,
                               equal_nan=True)
