"""The grid-persistent CUDA kernels, emulated: what test_cuda_persistent.py asks of clusters, of
blocks that exchange through L2."""

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from cuda_kernels import (
    BFLOAT16,
    PERSISTENT_MODES,
    SCALED,
    SCALED16,
    Layer,
    backward,
    forward,
    load_kernels,
    run_backward,
    run_forward,
)
from kernel_reference import Case
from test_cuda_kernels import EVERYTHING, check_layer, check_nan_and_infinity, differing, hold, run
from test_cuda_persistent import relative

kernels = load_kernels()
CELLS = ("gru", "lstm")


def grid_layer(cell, mode, T, B, H, units, tiles=1, reverse=False, **options):
    return Layer(Case(cell, "float64", T, B, 3, H, None, reverse), mode, "narrow",
                 persistent=(units, 0, 8 * tiles), **options)


def layers():
    """Whole and partial tiles, of units and of sequences; one group and several, of one tile and
    several."""
    for cell, mode in product(CELLS, PERSISTENT_MODES):
        yield grid_layer(cell, mode, 1, 1, 128, 128)
        yield grid_layer(cell, mode, 5, 11, 249, 256, tiles=2, reverse=True)
        yield grid_layer(cell, mode, 3, 17, 98, 128, directions=2, gap=2)
        yield grid_layer(cell, mode, 4, 3, 65, 128, shift=1, absent=EVERYTHING)
    yield grid_layer("gru", SCALED, 7, 24, 128, 128, tiles=3, absent=EVERYTHING - {"dhn", "b_hh"})
    yield grid_layer("lstm", SCALED16, 2, 5, 1, 128)


# Where warps keep tiles in shared memory too, and read them all from L2 one after the other.
LARGE = [grid_layer("gru", SCALED, 2, 2, 1401, 1408),
         grid_layer("lstm", BFLOAT16, 2, 9, 1152, 1152)]
LAYERS = list(layers())


@pytest.fixture(autouse=True)
def quiet():
    """Overflow in exp, and what NaN and infinity do, are wanted."""
    kernels.set_schedule("fifo", 1)
    with np.errstate(all="ignore"):
        yield
    kernels.set_multiprocessors(132)


@pytest.mark.parametrize("layer", LAYERS, ids=str)
def test_layer(layer):
    check_layer(layer)


@pytest.mark.parametrize("layer", LARGE, ids=str)
def test_large_layer(layer):
    hold(layer, layer.arrays(), *run(layer))


@pytest.mark.parametrize("mode", PERSISTENT_MODES, ids=str)
def test_directions_go_together_or_one_after_the_other(mode):
    """As the device holds them; more groups than it holds are refused."""
    layer = grid_layer("gru", mode, 3, 17, 98, 128, directions=2)
    found = []
    for count, walks in [(48, 1), (4, 2)]:  # each holds seven blocks of forward, eight of backward
        kernels.set_multiprocessors(count)
        start = kernels.launches()
        saved = run_forward(kernels, layer)
        between = kernels.launches()
        grads = run_backward(kernels, layer, saved)
        assert between - start == 2 + walks + (mode is SCALED)
        assert kernels.launches() - between == 2 + walks
        found.append((saved, grads))
    assert not differing(found[0][0], found[1][0]) and not differing(found[0][1], found[1][1])
    kernels.set_multiprocessors(2)
    with pytest.raises(RuntimeError, match="too many blocks in cooperative launch"):
        run_forward(kernels, layer)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize(("layer", "place"), [
    pytest.param(replace(layer, absent=frozenset(), shift=0), place, id=f"{layer}-{place}")
    for layer in LAYERS if layer.shift for place in ("h0", "w_hh", "projected", "dy")
    if layer.mode is not SCALED or place != "h0"  # a sequence that begins so is another kernel's
])
def test_nan_and_infinity(layer, bad, place):
    check_nan_and_infinity(layer, bad, place)


@pytest.mark.parametrize("cell", CELLS)
def test_states_beyond_float16(cell):
    """Such sequences are walked in float32, and the others as if they were not there."""
    layer = grid_layer(cell, SCALED, 4, 5, 41, 128, directions=2)
    clean, every = run_forward(kernels, layer), layer.arrays()
    for a in every:
        a["h0"][0, 3], a["h0"][1] = 4e4, 1e30
        a["h0"][3, 5] = np.nan
    for case, a, s, was in zip(layer.cases(), every, run_forward(kernels, layer, every), clean,
                               strict=True):
        oracle = forward(case, a, ours=s)
        for name, value in s.items():
            value, ref, before = (x.reshape(-1, case.B, x.shape[-1])
                                  for x in (value, oracle[name], was[name]))
            assert np.array_equal(value[:, [2, 4]], before[:, [2, 4]]), name
            np.testing.assert_allclose(value[:, [0, 1, 3]], ref[:, [0, 1, 3]], 2e-5, 2e-5, name)


@pytest.mark.parametrize("cell", CELLS)
def test_gradients_of_any_size(cell):
    """Each sequence has a scale of its own, in every step."""
    layer = grid_layer(cell, SCALED, 5, 9, 200, 256, absent={"dhn", "dcn"})
    (a,) = layer.arrays()
    size = np.float64(2) ** np.array([-60, -30, -10, 0, 5, 20, 60, 90, 0])
    size = np.tile(size, (5, 1))
    size[2:4, 8] = 1e-9, 1e9  # a spike
    a["dy"] *= size.reshape(45, 1)
    saved = run_forward(kernels, layer, [a])
    (grads,) = run_backward(kernels, layer, saved, [a])
    oracle = backward(layer.case, a, saved[0])
    assert relative(grads["dh0"], oracle["dh0"], 1) < 2e-3
    for ours, ref in zip(grads["dgates"].reshape(5, 9, -1), oracle["dgates"].reshape(5, 9, -1),
                         strict=True):
        assert relative(ours, ref, 1) < 2e-3


@pytest.mark.parametrize("persistent", [(100, 0, 8), (128, 0, 4), (128, 0, 72), (2176, 0, 8)],
                         ids=str)
def test_a_kernel_that_is_not_there(persistent):
    layer = replace(grid_layer("gru", SCALED16, 2, 2, 8, 128), persistent=persistent)
    with pytest.raises(RuntimeError, match="invalid argument"):
        run_forward(kernels, layer)
