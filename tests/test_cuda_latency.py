"""The latency kernels, emulated: strict float32, a cluster for each sequence; what
test_cuda_persistent.py asks of the others."""

from dataclasses import replace

import numpy as np
import pytest
from cuda_kernels import (
    FLOAT32,
    Layer,
    forward,
    load_kernels,
    run_backward,
    run_forward,
)
from kernel_reference import Case
from test_cuda_kernels import EVERYTHING, check_layer, check_nan_and_infinity

kernels = load_kernels()
# Units, blocks of a cluster, sequences of a cluster.
SHAPES = {"gru": [(64, 1, 1), (128, 4, 1), (256, 8, 1), (512, 16, 1)],
          "lstm": [(64, 1, 1), (128, 4, 1), (256, 8, 1)]}


def layer_of(cell, shape, T, B, H, reverse=False, **options):
    case = Case(cell, "float64", T, B, 3, H, None, reverse)
    return Layer(case, FLOAT32, "narrow", persistent=shape, **options)


def layers():
    """Every shape whole and with units missing; one sequence and several; one step and some."""
    for cell, shapes in SHAPES.items():
        for shape in shapes:
            units = shape[0]
            yield layer_of(cell, shape, 1, 1, units)
            yield layer_of(cell, shape, 4, 2, units - 7, reverse=True, gap=2)
            if units <= 256:
                yield layer_of(cell, shape, 5, 3, units // 2 + 1, shift=1, absent=EVERYTHING)
                yield layer_of(cell, shape, 6, 1, units - 30, directions=2,
                               absent=EVERYTHING - {"dhn", "b_hh"})
        yield layer_of(cell, shapes[0], 3, 4, 1)


LAYERS = list(layers())


@pytest.fixture(autouse=True)
def quiet():
    """Overflow in exp, and what NaN and infinity do, are wanted."""
    kernels.set_schedule("fifo", 1)
    with np.errstate(all="ignore"):
        yield


@pytest.mark.parametrize("layer", LAYERS, ids=str)
def test_layer(layer):
    check_layer(layer)


@pytest.mark.parametrize("cell", SHAPES)
def test_one_launch_for_a_pass(cell):
    layer = layer_of(cell, (64, 1, 1), 3, 2, 20, directions=2)
    start = kernels.launches()
    saved = run_forward(kernels, layer)
    assert kernels.launches() - start == 1
    run_backward(kernels, layer, saved)
    assert kernels.launches() - start == 2


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("place", ["h0", "w_hh", "projected", "dy"])
@pytest.mark.parametrize("layer", [replace(layer, absent=frozenset(), shift=0)
                                   for layer in LAYERS if layer.shift], ids=str)
def test_nan_and_infinity(layer, bad, place):
    check_nan_and_infinity(layer, bad, place)


@pytest.mark.parametrize("cell", SHAPES)
def test_as_exact_as_the_step_kernels(cell):
    """Nothing is rounded beyond float32, neither products nor activations nor what is sent."""
    layer = layer_of(cell, (256, 8, 1), 20, 2, 256)
    (oracle,) = (forward(layer.case, a) for a in layer.arrays())
    errors = [np.abs(run_forward(kernels, which)[0]["y"] - oracle["y"].reshape(40, -1)).max()
              for which in (layer, replace(layer, persistent=None))]
    assert errors[0] < 1.5 * errors[1]


@pytest.mark.parametrize("persistent", [(100, 1, 1), (64, 2, 1), (64, 1, 8)], ids=str)
def test_a_kernel_that_is_not_there(persistent):
    with pytest.raises(RuntimeError, match="invalid argument"):
        run_forward(kernels, layer_of("gru", persistent, 2, 2, 8))
