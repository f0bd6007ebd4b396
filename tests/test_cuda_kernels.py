"""The CUDA kernels, emulated, on NumPy arrays: every product and tile, in adversarial schedules.

Two oracles in float64 (longdouble for float64's kernels): one computes a layer from its inputs; the
other follows the kernel, that is, multiplies the rounded operands that the kernel left in memory,
and so leaves next to nothing for errors to hide in. The sums' order is fixed, so results have the
same bits in every schedule.
"""

import os
import shutil
import subprocess
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import product
from pathlib import Path

import kernel_reference
import numpy as np
import pybind11
import pytest
from cuda_kernels import (
    BFLOAT16,
    FLOAT16,
    FLOAT32,
    FLOAT64,
    MODES,
    SCHEDULES,
    TF32,
    Layer,
    Memory,
    backward,
    candidate,
    exact,
    forward,
    load_kernels,
    loaded,
    run_backward,
    run_forward,
    stored,
)
from kernel_reference import Case, sigmoid
from tolerance import error

ROOT = Path(__file__).resolve().parent.parent
kernels = load_kernels()
TILES = ("narrow", "wide")
CELLS = ("gru", "lstm")
EPS = {"float32": 2.0**-23, "float64": 2.0**-52, "float16": 2.0**-10, "bfloat16": 2.0**-7}
# Of a layer's results against float64, in units of the largest of them, or 1. The operands of the
# products have ten bits of mantissa, or bfloat16's seven; so have 16-bit results.
REDUCED = {"tf32": 2e-3, "scaled": 2e-3, "float16": 3e-3, "bfloat16": 2.4e-2}
# So many units have more stages of k than any pipeline has, and no whole number of them.
DEEP = {"float32": 164, "float64": 84, "float16": 296, "bfloat16": 296}

EVERYTHING = frozenset(("b_ih", "b_hh", "dy", "dhn", "dcn", "dc"))


def layers():
    """Widths and strides that are whole 16-byte parts, whole pairs, and neither; partial tiles."""
    for mode, tile, cell in product(MODES, TILES, CELLS):
        def case(T, B, H, P=None, mode=mode, tile=tile, cell=cell, reverse=False, packed=False,
                 scale=1.0, **options):
            return Layer(Case(cell, "float64", T, B, 3, H, P, reverse, packed, scale), mode, tile,
                         **options)

        yield case(1, 1, 1)
        yield case(3, 3, 33, reverse=True)
        yield case(3, 17, 40, packed=True, directions=2, gap=16)
        yield case(2, 65, 64, shift=1)
        yield case(4, 17, 32, packed=True, reverse=True, shift=2)
        yield case(2, 70, 100, packed=True, directions=2, gap=2)
        yield case(2, 3, 64, directions=2, absent=EVERYTHING)
        yield case(3, 3, 31, packed=True, absent=EVERYTHING - {"dhn"}, gap=1)
        yield case(2, 1, DEEP[mode.kind])
        yield case(2, 5, 24, scale=8)
        if cell == "lstm":
            yield case(1, 1, 2, 1)
            yield case(3, 17, 40, 24, packed=True, directions=2)
            yield case(2, 66, 33, 70, reverse=True, packed=True, gap=1)
            yield case(2, 3, 64, 32, absent=EVERYTHING, shift=1)
            yield case(3, 2, 2 * DEEP[mode.kind] // 3, DEEP[mode.kind] // 2)


LAYERS = list(layers())
SMALL = [
    Layer(Case(cell, "float64", 3, 5, 3, H, P), mode, tile)
    for mode, tile, (cell, P), H in product(
        MODES, TILES, (("gru", None), ("lstm", None), ("lstm", 9)), (13, 16))
]


@pytest.fixture(autouse=True)
def quiet():
    """Overflow in exp, and what NaN and infinity do, are wanted."""
    kernels.set_schedule("fifo", 1)
    with np.errstate(all="ignore"):
        yield


def widened(mode, arrays):
    kind = np.longdouble if mode is FLOAT64 else np.float64
    return {name: value.astype(kind) for name, value in arrays.items()}


def kind_of(mode, name):
    """The type in which the kernel stores an array."""
    if name == "c":
        return mode.wide
    return mode.grad if name in ("dgates", "dh", "previous", "grad hidden") else mode.kind


def assert_near(ours, oracle, limit, kinds):
    """Within `limit` times the largest value, or 1, and half of the last bit that is stored."""
    for name, value in ours.items():
        ref = oracle[name].reshape(value.shape)
        largest = max(1.0, float(np.abs(ref[np.isfinite(ref)]).max(initial=0)))
        rounding = np.nan_to_num(np.abs(ref)) * EPS[kinds[name]] / 2
        off = error(value.astype(ref.dtype), ref) - rounding
        at = np.unravel_index(int(off.argmax()), off.shape)
        assert off[at] <= limit * largest, (
            f"{name} at {at} of {off.shape}: ours {value[at]}, oracle {ref[at]}, "
            f"beyond rounding by {float(off[at]):.3g}, limit {limit * largest:.3g}")


def run(layer, arrays=None, kernels=kernels):
    arrays = arrays or layer.arrays()
    saved = run_forward(kernels, layer, arrays)
    return saved, run_backward(kernels, layer, saved, arrays)


def hold(layer, every, saved, grads, from_inputs=True):
    """Both oracles, for each direction."""
    mode = layer.mode
    kinds = {name: kind_of(mode, name) for name in (*saved[0], *grads[0])}
    grad_kinds = kinds | {"hidden": mode.grad}
    for case, a, s, g in zip(layer.cases(), every, saved, grads, strict=True):
        a, ours, ours_grads = (widened(mode, part) for part in (a, s, g))
        # A sum of so many products, and the few operations after it.
        limit = EPS[mode.wide] * (4 + np.sqrt(case.gates * case.H))
        assert_near(s, forward(case, a, mode.forward_rounding, ours), limit, kinds)
        assert_near(g, backward(case, a, ours, mode.backward_rounding, ours_grads), limit,
                    grad_kinds)
        if from_inputs:
            limit = case.scale * REDUCED.get(mode.name, 3 * limit)
            oracle = forward(case, a)
            assert_near(s, oracle, limit, kinds)
            assert_near(g, backward(case, a, oracle), limit, grad_kinds)


def differing(one, two):
    """Names of the arrays of the second that differ in any bit."""
    return [name for a, b in zip(one, two, strict=True) for name in b
            if a[name].tobytes() != b[name].tobytes()]


def check_layer(layer):
    """Values; the same bits in every schedule, without what only backward needs, and without what
    only some of its callers want."""
    saved, grads = run(layer)
    hold(layer, layer.arrays(), saved, grads)
    for schedule in SCHEDULES[1:]:
        kernels.set_schedule(*schedule)
        again, grads_again = run(layer)
        assert not differing(saved, again) and not differing(grads, grads_again), schedule
    assert not differing(saved, run_forward(kernels, layer, train=False))
    fewer = run_backward(kernels, layer, saved, extras=False)
    assert "previous" not in fewer[0] and not differing(grads, fewer)


@pytest.mark.parametrize("layer", LAYERS, ids=str)
def test_layer(layer):
    check_layer(layer)


@pytest.mark.parametrize("layer", [
    layer for layer in LAYERS
    if layer.tile == "narrow" and (layer.case.B, layer.case.H) in ((3, 31), (17, 40))
], ids=str)
def test_launches(layer):
    """One a step and direction pair, two with a projection; backward one step more."""
    T, of_step = layer.case.T, 2 if layer.case.P else 1
    start = kernels.launches()
    saved = run_forward(kernels, layer)
    between = kernels.launches()
    run_backward(kernels, layer, saved)
    assert between - start == T * of_step
    assert kernels.launches() - between == (T + 1) * of_step


@pytest.mark.parametrize("place", ["h0", "w_hh", "projected", "dy"])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("layer", [layer for layer in SMALL if layer.case.H == 13], ids=str)
def test_nan_and_infinity(layer, bad, place):
    check_nan_and_infinity(layer, bad, place)


def check_nan_and_infinity(layer, bad, place):
    """They go where the equations take them, and into no other sequence."""
    clean, clean_grads = run(layer)
    every = layer.arrays()
    rows = every[0][place]
    if place in ("projected", "dy"):
        rows = rows[layer.case.B:]  # the second step
    rows[2, 7] = bad
    saved, grads = run(layer, every)
    hold(layer, every, saved, grads, from_inputs=False)
    found, was = (grads, clean_grads) if place == "dy" else (saved, clean)
    assert differing(found, was)
    assert np.isinf(bad) or np.isnan(found[0]["dh0" if place == "dy" else "hn"]).any()
    if place != "w_hh":
        others = np.arange(layer.case.B) != 2
        for ours, was in ((saved, clean), (grads, clean_grads)):
            for name, value in ours[0].items():
                kept, before = (v.reshape(-1, layer.case.B, v.shape[-1])[:, others]
                                for v in (value, was[0][name]))
                assert kept.tobytes() == before.tobytes(), name


@pytest.mark.parametrize("layer", SMALL, ids=str)
def test_directions_do_not_mix(layer):
    """Two directions in one launch give what each gives alone."""
    both = replace(layer, directions=2)
    saved, grads = run(both)
    for d, case in enumerate(both.cases()):
        alone = replace(layer, case=case)
        s, g = run(alone, [both.arrays()[d]])
        assert not differing([saved[d]], s) and not differing([grads[d]], g)


def each_cell(test):
    for mark in (
        pytest.mark.parametrize("mode", [FLOAT32, FLOAT64, FLOAT16, BFLOAT16], ids=str),
        pytest.mark.parametrize("cell", CELLS),
        pytest.mark.parametrize("size", [(1, 1), (3, 33), (1, 257), (17, 64)], ids=str),
    ):
        test = mark(test)
    return test


def drawn(mode, B, **widths):
    """[B, width] each, in the precision of the kernel's type."""
    rng = np.random.default_rng([B, *widths.values()])
    arrays = {n: loaded(stored(rng.standard_normal((B, w)), mode.kind)) for n, w in widths.items()}
    return widened(mode, arrays)


def run_cell(mode, call, cell, size, inputs, outputs):
    B, H = size
    memory = Memory()
    arrays = {n: memory.input(stored(v.astype(mode.wide), mode.kind)) for n, v in inputs.items()}
    out = {name: memory.output((B, width), mode.kind) for name, width in outputs.items()}
    getattr(kernels, f"{call}_{mode.kind}")(cell, B, H, arrays | out)
    memory.check()
    return {name: loaded(value) for name, value in out.items()}


@pytest.mark.parametrize("save", [False, True], ids=["inference", "training"])
@each_cell
def test_cell_forward(mode, cell, size, save):
    (B, H), G = size, 3 if cell == "gru" else 4
    a = drawn(mode, B, gates_x=G * H, gates_h=G * H, h=H, c=H)
    x, h = (np.split(a[name], G, axis=1) for name in ("gates_x", "gates_h"))
    if cell == "gru":
        del a["c"]
        r, z = sigmoid(x[0] + h[0]), sigmoid(x[1] + h[1])
        n = np.tanh(x[2] + r * h[2])
        oracle = {"h_next": (1 - z) * n + z * a["h"], "saved": np.hstack([r, z, n, h[2]])}
    else:
        i, f, g, o = (xs + hs for xs, hs in zip(x, h, strict=True))
        i, f, g, o = sigmoid(i), sigmoid(f), np.tanh(g), sigmoid(o)
        c = f * a["c"] + i * g
        oracle = {"h_next": o * np.tanh(c), "c_next": c,
                  "saved": np.hstack([i, f, g, o, np.tanh(c)])}
    if not save:
        del oracle["saved"]
    ours = run_cell(mode, "cell_forward", cell, size, a,
                    {name: value.shape[1] for name, value in oracle.items()})
    assert_near(ours, oracle, 8 * EPS[mode.wide], dict.fromkeys(oracle, mode.kind))


@pytest.mark.parametrize("absent", [(), ("dh",), ("dc",)], ids=str)
@each_cell
def test_cell_backward(mode, cell, size, absent):
    (B, H), G = size, 3 if cell == "gru" else 4
    a = drawn(mode, B, saved=(G + 1) * H, h=H, c=H, dh=H, dc=H)
    for name in absent:
        a[name] = np.zeros_like(a[name])
    s, dh = np.split(a["saved"], G + 1, axis=1), a["dh"]
    if cell == "gru":
        del a["c"], a["dc"]
        r, z, n, q = s
        da_n = dh * (1 - z) * (1 - n * n)
        da_z = dh * (a["h"] - n) * z * (1 - z)
        da_r = da_n * q * r * (1 - r)
        oracle = {"dgates_x": np.hstack([da_r, da_z, da_n]),
                  "dgates_h": np.hstack([da_r, da_z, da_n * r]), "dh_prev": dh * z}
    else:
        i, f, g, o, tanh_c = s
        dc = a["dc"] + dh * o * (1 - tanh_c**2)
        oracle = {"dgates_x": np.hstack([dc * g * i * (1 - i), dc * a["c"] * f * (1 - f),
                                         dc * i * (1 - g * g), dh * tanh_c * o * (1 - o)]),
                  "dc_prev": dc * f}
    given = {name: value for name, value in a.items() if name not in absent}
    ours = run_cell(mode, "cell_backward", cell, size, given,
                    {name: value.shape[1] for name, value in oracle.items()})
    assert_near(ours, oracle, 8 * EPS[mode.wide], dict.fromkeys(oracle, mode.kind))


@pytest.fixture(scope="module")
def turing(tmp_path_factory):
    """The kernels as compiled for sm_75, which has neither TF32 nor bfloat16 nor cp.async."""
    compiler = os.environ.get("CXX") or shutil.which("g++")
    if not compiler:
        pytest.skip("no C++ compiler")
    folder = tmp_path_factory.mktemp("turing")
    includes = [pybind11.get_include(), sysconfig.get_path("include")]
    flags = ["-std=c++20", "-O1", "-fPIC", "-fvisibility=hidden", "-Wno-unknown-pragmas",
             "-DGATEDRNN_EMULATE", "-DGATEDRNN_ARCHITECTURE=750", "-Itests/cuda_emulator",
             *(word for path in includes for word in ("-isystem", path)), "-x", "c++", "-c"]
    names = ["csrc/plan.cpp", "csrc/measured.cpp", "csrc/bindings/numpy_cuda.cpp",
             "tests/cuda_emulator/cuda_emulator.cpp"]
    sources = [*(ROOT / "csrc/cuda").glob("*.cu"), *(ROOT / name for name in names)]

    def call(*command):
        done = subprocess.run([compiler, *map(str, command)], cwd=ROOT, capture_output=True,
                              text=True, check=False)
        assert done.returncode == 0, done.stderr

    objects = [folder / f"{source.name}.o" for source in sources]
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda pair: call(*flags, pair[0], "-o", pair[1]),
                      zip(sources, objects, strict=True)))
    suffix = sysconfig.get_config_var("EXT_SUFFIX")
    call("-shared", *objects, "-o", folder / f"gatedrnn_cuda_kernels{suffix}")
    return load_kernels(folder)


@pytest.mark.parametrize("layer", [
    replace(layer, mode=replace(layer.mode, forward_rounding=exact, backward_rounding=exact))
    for layer in LAYERS
    if layer.mode in (TF32, FLOAT16, BFLOAT16)
    and (layer.case.B, layer.case.H) in ((17, 40), (3, 31), (65, 64), (1, 296), (66, 33))
], ids=str)
def test_turing(layer, turing):
    """What other architectures round to TF32, Turing multiplies as it is."""
    saved, grads = run(layer, kernels=turing)
    hold(layer, layer.arrays(), saved, grads)


# ------------------------------------------------------------------------------------------------
# What the tests stand on


@pytest.mark.parametrize("case", [
    Case("gru", "float64", 4, 5, 3, 7), Case("gru", "float64", 4, 5, 3, 7, packed=True),
    Case("lstm", "float64", 4, 5, 3, 7, packed=True, reverse=True),
    Case("lstm", "float64", 4, 5, 3, 7, 2, packed=True),
], ids=str)
def test_oracle_is_the_reference(case):
    """kernel_reference.py's, whose backward is held against its own forward; with what the binding
    makes of the gates' gradients."""
    a = case.arrays()
    a["projected"] = a["x"] @ a["w_ih"].T
    a["dc"] = np.zeros((len(a["dy"]), case.H))
    saved, theirs = forward(case, a), kernel_reference.forward(case, a)
    theirs |= kernel_reference.backward(case, a, theirs)
    ours = saved | backward(case, a, saved)
    d_input = ours["dgates"][:, :case.gates * case.H]
    d_state = d_input
    if case.cell == "gru":  # r, z and q, without n
        d_state = np.delete(ours["dgates"], np.s_[2 * case.H:3 * case.H], axis=1)
    ours |= {"dx": d_input @ a["w_ih"], "dw_ih": d_input.T @ a["x"], "db_ih": d_input.sum(0),
             "dw_hh": d_state.T @ ours["previous"], "db_hh": d_state.sum(0)}
    if case.P:
        ours["dw_hr"] = ours["dh"].T @ ours["hidden"]
    theirs.pop("n", None)  # what the CPU keeps besides in 16 bits
    for name, value in theirs.items():
        np.testing.assert_allclose(ours[name], value, rtol=1e-12, atol=1e-13, err_msg=name)
    follows = forward(case, a, ours=saved)
    for name, value in follows.items():
        np.testing.assert_array_equal(value, saved[name])


def test_candidate():
    one = np.ones(1)
    assert candidate(one, one, one) == 0
    assert candidate(0 * one, one, 0.25 * one) == 0.25
    assert candidate(0.5 * one, one, 3 * one) == 1


@pytest.mark.parametrize("gap", [0, 3])
def test_a_stray_write_is_seen(gap):
    """In front of an output, behind it, between its rows; and anywhere in an input."""
    for place in ("before", "between", "behind", "input"):
        memory = Memory(gap, shift=1)
        array = memory.output((2, 3, 4), "float32", rows=True)
        other = memory.input(np.ones((2, 2), np.float32))
        array[...] = 1
        memory.check()
        buffer = memory.known[0][0]
        begin = array.ctypes.data - buffer.ctypes.data
        assert begin % 4 == 0 and array.ctypes.data % 256 == 4
        row = 4 * (4 + gap)
        assert array.strides == (3 * row + 4 * gap, row, 4)
        end = begin + array.strides[0] + 2 * row + 16
        at = {"before": begin - 1, "between": begin + 16, "behind": end}
        if place == "input":
            other[1, 1] = 2
        elif place == "between" and not gap:
            continue
        else:
            buffer[at[place]] = 0
        with pytest.raises(AssertionError, match="written at byte"):
            memory.check()


@pytest.mark.parametrize("wrong", [{"cell": "rnn"}, {"product": "int8"}, {"tile": "square"}],
                         ids=str)
def test_unknown_names_are_refused(wrong):
    arguments = {"cell": "gru", "directions": [], "product": "fma", "tile": "wide"} | wrong
    if "cell" in wrong:
        arguments["directions"] = [{"T": 1, "B": 1, "H": 1, "P": 1, "reverse": False}]
    with pytest.raises(ValueError, match="must be one of"):
        kernels.layer_forward_float32(**arguments)


def test_an_array_of_another_type_is_refused():
    sizes = {"T": 1, "B": 1, "H": 1, "P": 1, "reverse": False}
    with pytest.raises(ValueError, match="projected has the wrong dtype"):
        kernels.layer_forward_float32("gru", [sizes | {"projected": np.zeros((1, 1, 3))}], "fma",
                                      "wide")
    with pytest.raises(ValueError, match="h0 must be contiguous, of 1 elements"):
        kernels.layer_forward_float32("gru", [sizes | {"h0": np.zeros(2, np.float32)}], "fma",
                                      "wide")
