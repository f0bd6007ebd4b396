"""The persistent CUDA kernels, emulated: what test_cuda_kernels.py asks of the step kernels, and
what is their own: exchange inside clusters, scaled operands of float16, states beyond its range.
"""

from dataclasses import replace
from itertools import product

import cuda_kernels
import numpy as np
import pytest
from cuda_kernels import (
    PERSISTENT_MODES,
    SCALED,
    SCALED16,
    SCHEDULES,
    TF32,
    Layer,
    backward,
    forward,
    load_kernels,
    run_backward,
    run_forward,
)
from kernel_reference import Case
from test_cuda_kernels import EVERYTHING, check_layer, check_nan_and_infinity, differing, hold, run

kernels = load_kernels()
# Units, blocks of a cluster, and sequences that are walked together.
SHAPES = {"gru": [(64, 1, 8), (128, 1, 8), (256, 2, 8), (256, 8, 8), (384, 6, 8),
                (512, 8, 8)],
          "lstm": [(64, 1, 8), (128, 1, 8), (256, 4, 8), (512, 16, 16)]}


def layers():
    """Whole and partial tiles, of units and of sequences; one cluster and several, of one tile and
    several."""
    for cell, shapes in SHAPES.items():
        for (units, cluster, tile), mode in product(shapes, PERSISTENT_MODES):
            def layer(T, B, H, tiles=1, cell=cell, units=units, cluster=cluster, tile=tile,
                      mode=mode, reverse=False, packed=False, **options):
                case = Case(cell, "float64", T, B, 3, H, None, reverse, packed)
                return Layer(case, mode, "narrow", persistent=(units, cluster, tiles * tile),
                             **options)

            yield layer(1, 1, units)
            yield layer(4, tile + 3, units - 7, tiles=2, reverse=True)
            if units <= 256:
                yield layer(3, 2 * tile + 1, units - 30, directions=2, gap=2)
                yield layer(5, 3, units // 2 + 1, shift=1, absent=EVERYTHING)
                yield layer(4, 2 * tile + 3, units - 7, tiles=2, packed=True, directions=2)
                if mode is SCALED:
                    yield layer(6, tile + 3, units - 7, tiles=2, projects=True, directions=2, gap=1)
            elif mode is SCALED:
                yield layer(3, tile + 1, units - 7, packed=True, projects=True)
            if units == 64:
                yield layer(7, 3 * tile, units, tiles=3, absent=EVERYTHING - {"dhn", "b_hh"})
                yield layer(2, 5, 1)
                yield layer(5, 2 * tile, 9, packed=True, reverse=True, shift=2, absent=EVERYTHING)
                yield layer(5, tile - 1, 33, packed=True, absent=EVERYTHING - {"dhn", "dy"}, gap=1)


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


@pytest.mark.parametrize("layer", [layer for layer in LAYERS if layer.directions == 2], ids=str)
def test_launches(layer):
    """Packing and walking, whatever the steps and directions; of float32 a guard besides, and of
    packed data, in either pass, where its rows are."""
    start = kernels.launches()
    saved = run_forward(kernels, layer)
    between = kernels.launches()
    run_backward(kernels, layer, saved)
    assert between - start == 2 + (layer.mode is SCALED) + layer.case.packed
    assert kernels.launches() - between == 2 + layer.case.packed


@pytest.mark.parametrize("layer", [layer for layer in LAYERS if layer.case.packed], ids=str)
def test_padded_is_as_packed(layer):
    """The same bits, from NaN beyond the ends, where nothing is written."""
    padded = replace(layer, padded=True)
    saved, grads = run(layer)
    for schedule in (SCHEDULES[0], SCHEDULES[3]):
        kernels.set_schedule(*schedule)
        again, grads_again = run(padded)
        assert not differing(saved, again) and not differing(grads, grads_again), schedule


@pytest.mark.parametrize("T", [479, 480, 481, 962])
def test_packed_steps_beyond_those_of_a_launch(T):
    layer = Layer(Case("gru", "float64", T, 3, 3, 2, None, True, True), SCALED16, "narrow",
                  persistent=(64, 1, 8))
    saved, grads = run(layer)
    hold(layer, layer.arrays(), saved, grads)


def test_lengths_that_nobody_can_check(monkeypatch):
    """They are taken as the nearest that can be."""
    class Wild(cuda_kernels.Padded):
        def __init__(self, case):
            super().__init__(case)
            lengths = self.arrays["lengths"]
            lengths[lengths == case.T], lengths[lengths == 1] = 2**40, -7

    for cell in SHAPES:
        layer = Layer(Case(cell, "float64", 3, 9, 3, 5, None, True, True), SCALED, "narrow",
                      persistent=(64, 1, 16), padded=True)
        saved, grads = run(layer)
        with monkeypatch.context() as patch:
            patch.setattr(cuda_kernels, "Padded", Wild)
            again, grads_again = run(layer)
        assert not differing(saved, again) and not differing(grads, grads_again)


@pytest.mark.parametrize("cell", SHAPES)
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("projects", [False, True])
def test_lengths_and_states_beyond_float16(cell, padded, projects):
    """Whoever walks in float32 ends where the others do, and from the same input."""
    layer = Layer(Case(cell, "float64", 4, 9, 3, 41, None, False, True), SCALED, "narrow",
                  directions=2, persistent=(64, 1, 16), padded=padded, projects=projects)
    every = layer.arrays()
    for a in every:
        a["h0"][[0, 5, 8], 3] = 4e4
    for case, a, s in zip(layer.cases(), every, run_forward(kernels, layer, every), strict=True):
        oracle = forward(case, a, ours=s)
        for name, value in s.items():
            np.testing.assert_allclose(value, oracle[name], 2e-3, 2e-3, name)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize(("layer", "place"), [
    pytest.param(replace(layer, absent=frozenset(), shift=0), place, id=f"{layer}-{place}")
    for layer in LAYERS if layer.shift and not layer.case.packed
    for place in ("h0", "w_hh", "projected", "dy")
    if layer.mode is not SCALED or place != "h0"  # a sequence that begins so is another kernel's
])
def test_nan_and_infinity(layer, bad, place):
    check_nan_and_infinity(layer, bad, place)


@pytest.mark.parametrize("cell", SHAPES)
def test_states_beyond_float16(cell):
    """Such sequences are walked in float32, and the others as if they were not there."""
    layer = Layer(Case(cell, "float64", 4, 5, 3, 41), SCALED, "narrow", directions=2,
                  persistent=(64, 1, 8))
    clean, every = run_forward(kernels, layer), layer.arrays()
    for a in every:
        a["h0"][0, 3], a["h0"][1] = 4e4, 1e30
        a["h0"][3, 5], a["h0"][3, 9] = np.inf, np.nan
    for schedule in SCHEDULES:
        kernels.set_schedule(*schedule)
        saved = run_forward(kernels, layer, every)
        for case, a, s, was in zip(layer.cases(), every, saved, clean, strict=True):
            oracle = forward(case, a, ours=s)
            for name, value in s.items():
                value, ref, before = (x.reshape(-1, case.B, x.shape[-1])
                                      for x in (value, oracle[name], was[name]))
                assert np.array_equal(value[:, [2, 4]], before[:, [2, 4]]), name
                np.testing.assert_allclose(value[:, [0, 1, 3]], ref[:, [0, 1, 3]], 2e-5, 2e-5, name)


def relative(ours, ref, axis):
    """The largest error in units of the largest number along an axis."""
    return float((np.abs(ours - ref).max(axis) / np.abs(ref).max(axis)).max())


def test_weights_of_any_size():
    """Each row has a scale of its own: its product, q, loses no more digits than any other's."""
    layer = Layer(Case("gru", "float64", 1, 9, 3, 40), SCALED, "narrow", persistent=(64, 1, 16),
                  absent=EVERYTHING)
    (a,) = layer.arrays()
    a["w_hh"][80:] *= np.float64(2) ** np.repeat([-120, -60, -20, 0, 14, 60, 110, 120], 5)[:, None]
    (saved,) = run_forward(kernels, layer, [a])
    q = a["h0"] @ a["w_hh"][80:].T
    assert relative(saved["gates"][:, 80:], q, 0) < 1e-3


@pytest.mark.parametrize("cell", SHAPES)
def test_gradients_of_any_size(cell):
    """Each sequence has a scale of its own, in every step."""
    layer = Layer(Case(cell, "float64", 5, 9, 3, 200), SCALED, "narrow",
                  absent={"dhn", "dcn", "dc"}, persistent=SHAPES[cell][2])
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


def test_they_are_as_good_as_the_step_kernels():
    """Operands of eleven bits, whether float16's or TF32's."""
    layer = Layer(Case("gru", "float64", 20, 8, 3, 128), SCALED, "narrow", persistent=(128, 1, 8))
    (oracle,) = (forward(layer.case, a) for a in layer.arrays())
    errors = [np.abs(run_forward(kernels, which)[0]["y"] - oracle["y"].reshape(160, -1)).max()
              for which in (layer, replace(layer, mode=TF32, persistent=None))]
    assert errors[0] < 1.5 * errors[1]


@pytest.mark.parametrize("persistent", [(100, 1, 8), (64, 2, 8), (256, 1, 8)], ids=str)
def test_a_kernel_that_is_not_there(persistent):
    layer = Layer(Case("gru", "float64", 2, 2, 3, 8), SCALED16, "narrow", persistent=persistent)
    with pytest.raises(RuntimeError, match="invalid argument"):
        run_forward(kernels, layer)
