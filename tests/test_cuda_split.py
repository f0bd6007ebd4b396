"""The persistent kernels whose operands are two of float16 each, emulated: strict float32. What
test_cuda_persistent.py asks of the others, and errors like those of true float32."""

from dataclasses import replace

import numpy as np
import pytest
from cuda_kernels import (
    FLOAT32,
    SPLIT,
    Layer,
    backward,
    forward,
    load_kernels,
    run_backward,
    run_forward,
)
from kernel_reference import Case
from test_cuda_kernels import EVERYTHING, check_layer, check_nan_and_infinity, differing, run
from test_cuda_persistent import relative

kernels = load_kernels()
# Units, blocks of a cluster, and sequences that are walked together.
SHAPES = {"gru": [(64, 1, 8), (128, 2, 8), (256, 4, 8)],
          "lstm": [(64, 1, 8), (128, 2, 8), (256, 8, 16)]}


def layer_of(cell, shape, T, B, H, tiles=1, reverse=False, packed=False, **options):
    units, cluster, tile = shape
    return Layer(Case(cell, "float64", T, B, 3, H, None, reverse, packed), SPLIT, "narrow",
                 persistent=(units, cluster, tiles * tile), **options)


def layers():
    """Whole and partial tiles, of units and of sequences; one cluster and several, of one tile and
    several."""
    for cell, shapes in SHAPES.items():
        for shape in shapes:
            units, _, tile = shape
            yield layer_of(cell, shape, 1, 1, units)
            yield layer_of(cell, shape, 4, tile + 3, units - 7, tiles=2, reverse=True)
            yield layer_of(cell, shape, 3, tile + 1, units - 30, directions=2, gap=2)
            yield layer_of(cell, shape, 5, 3, units // 2 + 1, shift=1, absent=EVERYTHING)
            yield layer_of(cell, shape, 4, tile + 3, units - 9, packed=True)
        yield layer_of(cell, shapes[0], 2, 5, 1)


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


@pytest.mark.parametrize("layer", [layer for layer in LAYERS if layer.case.packed], ids=str)
def test_padded_is_as_packed(layer):
    saved, grads = run(layer)
    again, grads_again = run(replace(layer, padded=True))
    assert not differing(saved, again) and not differing(grads, grads_again)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("place", ["w_hh", "projected", "dy"])
@pytest.mark.parametrize("layer", [replace(layer, absent=frozenset(), shift=0)
                                   for layer in LAYERS if layer.shift], ids=str)
def test_nan_and_infinity(layer, bad, place):
    check_nan_and_infinity(layer, bad, place)


@pytest.mark.parametrize("cell", SHAPES)
def test_states_beyond_float16(cell):
    """Large ones keep their digits, and those beyond the range are walked in float32."""
    layer = layer_of(cell, (64, 1, 8), 4, 5, 41)
    (a,) = layer.arrays()
    a["h0"][0, 3], a["h0"][1], a["h0"][2] = 4e4, 1e30, 3e4
    a["h0"][3, 5], a["h0"][3, 9] = np.inf, np.nan
    (saved,) = run_forward(kernels, layer, [a])
    oracle = forward(layer.case, a, ours=saved)
    for name, value in saved.items():
        ref = oracle[name].reshape(value.shape)
        largest = np.nan_to_num(np.abs(ref), posinf=0).max(1, keepdims=True)
        np.testing.assert_allclose(value / largest, ref / largest, 0, 2e-6, name)


def test_weights_of_any_size():
    layer = layer_of("gru", (64, 1, 8), 1, 9, 40, tiles=2, absent=EVERYTHING)
    (a,) = layer.arrays()
    a["w_hh"][80:] *= np.float64(2) ** np.repeat([-120, -60, -20, 0, 14, 60, 110, 120], 5)[:, None]
    (saved,) = run_forward(kernels, layer, [a])
    assert relative(saved["gates"][:, 80:], a["h0"] @ a["w_hh"][80:].T, 0) < 1e-6


@pytest.mark.parametrize("cell", SHAPES)
def test_gradients_of_any_size(cell):
    """Each sequence has a scale of its own, in every step."""
    layer = layer_of(cell, SHAPES[cell][2], 5, 9, 200, absent={"dhn", "dcn"})
    (a,) = layer.arrays()
    size = np.float64(2) ** np.array([-60, -30, -10, 0, 5, 20, 60, 90, 0])
    size = np.tile(size, (5, 1))
    size[2:4, 8] = 1e-9, 1e9  # a spike
    a["dy"] *= size.reshape(45, 1)
    saved = run_forward(kernels, layer, [a])
    (grads,) = run_backward(kernels, layer, saved, [a])
    oracle = backward(layer.case, a, saved[0], ours=grads)
    assert relative(grads["dh0"], oracle["dh0"], 1) < 3e-6
    for ours, ref in zip(grads["dgates"].reshape(5, 9, -1), oracle["dgates"].reshape(5, 9, -1),
                         strict=True):
        assert relative(ours, ref, 1) < 3e-6


@pytest.mark.parametrize("cell", SHAPES)
def test_nearly_as_exact_as_multiply_adds(cell):
    layer = layer_of(cell, SHAPES[cell][2], 20, 4, 256)
    (oracle,) = (forward(layer.case, a) for a in layer.arrays())
    errors = [np.abs(run_forward(kernels, which)[0]["y"] - oracle["y"].reshape(80, -1)).max()
              for which in (layer, replace(layer, mode=FLOAT32, persistent=None))]
    assert errors[0] < 2 * errors[1]
