"""The wavefront kernels, emulated, on NumPy arrays: layers that walk at the same time.

Each layer is held to the oracles of test_cuda_kernels.py, its input's products made of the
operands that the layer below has left. Nothing may depend on who runs first.
"""

from itertools import product

import numpy as np
import pytest
from cuda_kernels import (
    PERSISTENT_MODES,
    SCALED,
    SCHEDULES,
    Layer,
    exact,
    forward,
    load_kernels,
    run_stack,
    stack_arrays,
    stacked,
)
from kernel_reference import Case
from test_cuda_kernels import EPS, EVERYTHING, REDUCED, assert_near, differing, kind_of

kernels = load_kernels()
# Units, blocks of a cluster, and sequences that are walked together.
SHAPES = [(64, 1, 8), (128, 2, 8), (256, 8, 16)]
CELLS = ("gru", "lstm")
MORE_SCHEDULES = list(product(("random", "prio"), range(2, 8)))


def stacks():
    """Whole and partial tiles, of units and of sequences; one cluster a layer and several, of one
    tile and several; two layers to four."""
    for cell, (units, cluster, tile), mode in product(CELLS, SHAPES, PERSISTENT_MODES):
        def stack(count, T, B, H, tiles=1, cell=cell, units=units, cluster=cluster, tile=tile,
                  mode=mode, **options):
            case = Case(cell, "float64", T, B, 3, H)
            persistent = units, cluster, tiles * tile
            return stacked(Layer(case, mode, "narrow", persistent=persistent, **options), count)

        yield stack(2, 2, 1, units)
        yield stack(2, 5, tile + 3, units - 7, tiles=2, gap=1)
        if units < 256 or mode is SCALED:
            yield stack(3, 4, 2 * tile + 1, units - 30, gap=2)
            yield stack(2, 3, 3, units // 2 + 1, shift=1, absent=EVERYTHING)
        if units == 64:
            yield stack(4, 6, 3 * tile, units, tiles=3, absent=EVERYTHING - {"b_hh"})
            yield stack(3, 3, 5, 1)


STACKS = list(stacks())


def name_of(layers):
    return f"{len(layers)}-{layers[0]}" if isinstance(layers, list) else None


@pytest.fixture(autouse=True)
def quiet():
    kernels.set_schedule("fifo", 1)
    with np.errstate(all="ignore"):
        yield


def inputs_of(layers, every, saved, rounding):
    """Each layer's arrays with its input's products, of operands as they are rounded."""
    found = [every[0]]
    for a, below in zip(every[1:], saved, strict=False):
        found.append(a | {"projected": rounding(below["y"]) @ rounding(a["w_ih"]).T})
    return found


def hold(layers, every, saved, from_inputs=True):
    mode = layers[0].mode
    kinds = {name: kind_of(mode, name) for name in saved[0]}
    following = inputs_of(layers, every, saved, mode.forward_rounding)
    for layer, a, ours in zip(layers, following, saved, strict=True):
        case = layer.case
        limit = EPS[mode.wide] * (4 + np.sqrt(2 * case.gates * case.H))
        assert_near(ours, forward(case, a, mode.forward_rounding, ours), limit, kinds)
    if not from_inputs:
        return
    oracle: list = []
    for k, layer in enumerate(layers):
        a = inputs_of(layers, every, oracle, exact)[k]
        oracle.append(forward(layer.case, a))
        assert_near(saved[k], oracle[k], (k + 1) * REDUCED[mode.name], kinds)


@pytest.mark.parametrize("layers", STACKS, ids=name_of)
def test_stack(layers):
    """Values; the same bits in every schedule, and without what backward needs."""
    every = stack_arrays(layers)
    saved = run_stack(kernels, layers, every)
    hold(layers, every, saved)
    for schedule in SCHEDULES[1:]:
        kernels.set_schedule(*schedule)
        assert not differing(saved, run_stack(kernels, layers, every)), schedule
    assert not differing(saved, run_stack(kernels, layers, every, train=False))


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("shape", SHAPES[:2], ids=str)
def test_long_walks_in_many_orders(cell, shape):
    """A layer that runs ahead, or waits, and sequences whose steps are far apart."""
    units, cluster, tile = shape
    case = Case(cell, "float64", 24, 2 * tile + 3, 3, units - 5)
    layers = stacked(Layer(case, SCALED, "narrow", persistent=(units, cluster, tile)), 3)
    every = stack_arrays(layers)
    saved = run_stack(kernels, layers, every)
    hold(layers, every, saved)
    for schedule in MORE_SCHEDULES:
        kernels.set_schedule(*schedule)
        assert not differing(saved, run_stack(kernels, layers, every)), schedule


def small(cell, mode, layers=2, B=5):
    case = Case(cell, "float64", 4, B, 3, 41)
    return stacked(Layer(case, mode, "narrow", persistent=(64, 1, 8)), layers)


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("mode", PERSISTENT_MODES, ids=str)
def test_launches(cell, mode):
    """Packing, the walk, and for float32 a look at who begins beyond float16."""
    layers = small(cell, mode, layers=4)
    before = kernels.launches()
    run_stack(kernels, layers, stack_arrays(layers))
    assert kernels.launches() - before == 2 + (mode is SCALED)


@pytest.mark.parametrize("mode", PERSISTENT_MODES, ids=str)
@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("bad", [np.nan, -np.nan, np.inf])
@pytest.mark.parametrize(("layer", "place"), [(0, "projected"), (0, "w_hh"), (1, "w_ih")])
def test_nan_and_infinity(cell, mode, bad, layer, place):
    """They go up as the equations take them, where NaN must not pass for what is not there yet, and
    into no other sequence."""
    layers = small(cell, mode, layers=3)
    every = stack_arrays(layers)
    clean = run_stack(kernels, layers, every)
    every[layer][place][2, 7] = bad
    for schedule in SCHEDULES:
        kernels.set_schedule(*schedule)
        saved = run_stack(kernels, layers, every)
        hold(layers, every, saved, from_inputs=False)
        assert differing(saved[layer:layer + 1], clean[layer:layer + 1])
        assert not differing(saved[:layer], clean[:layer])
        if place != "projected":
            continue
        assert np.isinf(bad) or np.isnan(saved[2]["hn"][2]).all()
        for ours, was in zip(saved, clean, strict=True):
            for name, value in ours.items():
                value, before = (v.reshape(-1, 5, v.shape[-1])[:, [0, 1, 3, 4]]
                                 for v in (value, was[name]))
                assert value.tobytes() == before.tobytes(), name


@pytest.mark.parametrize("cell", CELLS)
def test_states_beyond_float16(cell):
    """Who begins so in some layer is walked in float32 from there on, and the others as if it were
    not there."""
    layers = small(cell, SCALED, layers=3)
    every = stack_arrays(layers)
    clean = run_stack(kernels, layers, every)
    every[0]["h0"][0, 3], every[1]["h0"][3] = 4e4, 1e30
    for schedule in SCHEDULES:
        kernels.set_schedule(*schedule)
        saved = run_stack(kernels, layers, every)
        following = inputs_of(layers, every, saved, exact)
        for k, (layer, a, s, was) in enumerate(zip(layers, following, saved, clean, strict=True)):
            oracle, strict = forward(layer.case, a, ours=s), [0, 3] if k else [0]
            others = [b for b in range(5) if b not in (0, 3)]
            for name, value in s.items():
                value, ref, before = (x.reshape(-1, 5, x.shape[-1])
                                      for x in (value, oracle[name], was[name]))
                assert np.array_equal(value[:, others], before[:, others]), name
                np.testing.assert_allclose(value[:, strict], ref[:, strict], 2e-5, 2e-5, name)


def test_weights_of_any_size():
    """Each row of either matrix has a scale of its own."""
    layers = small("gru", SCALED)
    every = stack_arrays(layers)
    size = np.float64(2) ** np.repeat([-60, -20, 0, 6], [10, 10, 10, 11])[:, None]
    every[1]["w_ih"][82:] *= size
    every[1]["w_hh"][82:] *= size[::-1]
    hold(layers, every, run_stack(kernels, layers, every), from_inputs=False)


@pytest.mark.parametrize("persistent", [(64, 2, 8), (512, 16, 16), (96, 1, 8)])
def test_no_such_kernel(persistent):
    layers = small("gru", SCALED)
    layers = [Layer(layer.case, SCALED, "narrow", persistent=persistent, projects=layer.projects)
              for layer in layers]
    with pytest.raises(RuntimeError, match="invalid argument"):
        run_stack(kernels, layers, stack_arrays(layers))


def plan(T=100, B=16, H=256, layers=2, gates=3, kind="float32", tf32=True, architecture=90,
         multiprocessors=132, **options):
    return kernels.plan_stack(T, B, H, H, gates, layers, kind, tf32, architecture, multiprocessors,
                              **options)[0]


@pytest.mark.parametrize("gates", [3, 4])
@pytest.mark.parametrize("kind", ["float32", "float16", "bfloat16"])
def test_few_sequences_are_walked_so(gates, kind):
    for units, cluster, tile in SHAPES:
        for layers in (2, 3, 4):
            found = plan(B=tile, H=units - 3, gates=gates, kind=kind, layers=layers)
            assert found == [units, cluster, tile]


def test_layers_one_after_the_other():
    """Where it would take longer, or cannot be."""
    nothing = [0, 0, 0]
    assert plan(B=1024) == nothing  # products, not latency
    assert plan(layers=1) == plan(layers=5) == plan(H=257) == plan(T=1) == plan(B=0) == nothing
    assert plan(kind="float64") == plan(tf32=False) == plan(architecture=75) == nothing
    assert plan(kernels="step") == plan(kernels="persistent") == plan(kernels="grid") == nothing
    assert plan(architecture=80) == nothing != plan(architecture=80, H=64)  # a lone block's alone
    assert plan(clusters=[0, 0, 0, 0]) != nothing  # nobody was asked
    assert plan(clusters=[60, 30, 1, 0]) == nothing  # the layers would wait for one another
    assert plan(clusters=[60, 30, 2, 0]) == [256, 8, 16]


def test_a_wavefront_that_is_asked_for():
    """Faster or not, but only of clusters that run at the same time."""
    assert plan(B=512, kernels="wavefront") != [0, 0, 0]
    assert plan(B=1 << 20, kernels="wavefront") == [0, 0, 0]
