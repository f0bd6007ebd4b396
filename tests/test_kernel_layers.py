"""The raw kernels on NumPy arrays: every instruction set, partition and number of threads.

The rule is the suite's (tolerance.py); the peer is the same NumPy reference computed in the
kernels' own dtype, the oracle that in the next wider one. Partitions and thread counts only decide
who computes a tile: each element is the same sum in the same order, so results are equal in bits.
"""

from functools import lru_cache

import numpy as np
import pytest
from array_tolerance import violation
from kernel_reference import Case, backward, forward, shaped, weights
from raw_kernels import each_set, kernels

WIDER = {"float32": "float64", "float64": "longdouble"}
PARTITIONS = ("rows", "units", "groups", "plan")
THREADS = (1, 2, 3, 5)  # 3 and 5: more than a small machine has cores
CELLS = ("gru", "lstm")
LAYER = {"float32": kernels.Layer32, "float64": kernels.Layer64}
STEP = {"float32": kernels.Step32, "float64": kernels.Step64}
FORWARD = {"gru": ("y", "hn", "gates"), "lstm": ("y", "hn", "cn", "gates", "c")}
BACKWARD = {"gru": ("dx", "dh0", "dw_ih", "dw_hh", "db_ih", "db_hh")}
BACKWARD["lstm"] = (*BACKWARD["gru"], "dc0")
INFERENCE = {"gru": ("y", "hn"), "lstm": ("y", "hn", "cn")}


def sweep() -> list[Case]:
    """Every H with every B and T; features, direction, packing and projection in turn."""
    cases = []
    for cell_index, cell in enumerate(CELLS):
        for dtype_index, dtype in enumerate(LAYER):
            for k in range(30):
                j = k + 7 * cell_index + 11 * dtype_index
                H, B = (1, 7, 16, 17, 33, 129)[k // 5], (1, 3, 8, 9, 17)[k % 5]
                T, features = (1, 2, 7)[j % 3], (1, 5, 33, 70)[j % 4]
                width = (None, max(1, H // 3), H)[k % 3] if cell == "lstm" else None
                cases.append(Case(cell, dtype, T, B, features, H, width, reverse=bool(j // 2 % 2),
                                  packed=bool(j // 3 % 2)))
    return cases


CASES = [
    *sweep(),
    *(Case(cell, dtype, 2, 130, 5, 17) for cell in CELLS for dtype in LAYER),  # several blocks
    *(Case(cell, "float32", 2, 9, 270, 290, reverse=True) for cell in CELLS),  # long sums are cut
    *(Case(cell, dtype, 2, 17, 5, 33, scale=8) for cell in CELLS for dtype in LAYER),  # saturated
    *(Case(cell, "float32", 7, 17, 5, 33, reverse=reverse, packed=True)
      for cell in CELLS for reverse in (False, True)),
    Case("lstm", "float32", 7, 17, 5, 129, 65, reverse=True, packed=True),
]


@lru_cache(maxsize=1)
def expected(case):
    """What the reference gives in the kernels' dtype and in a wider one."""
    results = []
    for dtype in (case.dtype, WIDER[case.dtype]):
        arrays = {name: array.astype(dtype) for name, array in case.arrays().items()}
        with np.errstate(over="ignore"):  # exp of a saturated gate
            saved = forward(case, arrays)
            results.append(saved | backward(case, arrays, saved))
    return results


def framed(array):
    """The same array with NaN on both sides of it, so that whoever reads beyond it is found out."""
    buffer = np.full(array.size + 128, np.nan, array.dtype)
    inside = buffer[64:64 + array.size].reshape(array.shape)
    inside[...] = array
    return inside


@lru_cache(maxsize=1)
def inputs(case):
    return {name: framed(array) for name, array in case.arrays().items()}


def layer_of(case, isa, partition, threads, train=True, arrays=None, **options):
    a = arrays or inputs(case)
    return LAYER[case.dtype](
        case.cell, shaped(case, a["x"]), a["h0"], a.get("c0"), weights(a), reverse=case.reverse,
        batch_sizes=case.batch_sizes if case.packed else None, isa=isa, threads=threads,
        partition=partition, train=train, **options,
    ), a


def run(case, isa, partition, threads, train=True, arrays=None, **options):
    """All outputs of a kernel run whose output buffers held NaN before."""
    layer, a = layer_of(case, isa, partition, threads, train, arrays, **options)
    names = FORWARD[case.cell] if train else INFERENCE[case.cell]
    gradients = BACKWARD[case.cell] + (("dw_hr",) if case.P else ()) if train else ()
    for name in (*names, *gradients):
        getattr(layer, name)[...] = np.nan
    layer.forward()
    if train:
        layer.backward(shaped(case, a["dy"]), a["dhn"], a.get("dcn"))
    return {name: getattr(layer, name) for name in (*names, *gradients)}


def hold(case, ours):
    """The rule for each output, gate by gate."""
    peer, oracle = expected(case)
    found = []
    for name, value in ours.items():
        count = case.gates if name == "gates" else 1
        three = [part.reshape(oracle[name].shape) for part in (value, peer[name], oracle[name])]
        for gate, parts in enumerate(zip(*(np.split(p, count, axis=-1) for p in three),
                                         strict=True)):
            wide = [part.astype(WIDER[case.dtype]) for part in parts]
            found.append(violation(f"{name}[{gate}]", *wide, np.finfo(case.dtype).eps))
    assert not any(found), "\n".join(filter(None, found))


def same_bits(one, two):
    """Names of the arrays that differ in any bit."""
    return [name for name in two if one[name].tobytes() != two[name].tobytes()]


@pytest.mark.parametrize("case", CASES, ids=str)
@each_set
def test_layer(case, isa):
    """Values against the reference; the same bits however the work is shared, and again; no output
    left unwritten; inference gives training's bits."""
    first = run(case, isa, "rows", 1, ahead=0)
    hold(case, first)
    for partition in PARTITIONS:
        for threads in THREADS:
            other = run(case, isa, partition, threads, ahead=0)
            assert not same_bits(first, other), f"{partition}, {threads} threads"
        chunked = run(case, isa, partition, 2, ahead=0, chunk=2)
        hold(case, chunked)
        ahead = [run(case, isa, partition, 2, ahead=steps) for steps in (1, 2, 100)]
        hold(case, ahead[0])
        assert not any(same_bits(ahead[0], other) for other in ahead[1:]), f"{partition}, ahead"
        for steps in (1, 3, 100):  # whose gates backward rebuilds: some chunks of two, or all
            rebuilt = run(case, isa, partition, 2, ahead=0, chunk=2, recompute=steps)
            differing = {*same_bits(chunked, rebuilt)} - {"gates"}
            assert not differing, f"{partition}, recompute {steps}"
        inference = run(case, isa, partition, 2, train=False, ahead=0)
        assert not same_bits(first, inference), f"{partition}, inference"


@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
@pytest.mark.parametrize("cell", CELLS)
@each_set
def test_threads_that_meet_every_step_do_not_race(cell, packed, isa):
    case = Case(cell, "float32", 7, 9, 5, 65, 33 if cell == "lstm" else None, packed=packed)
    layer, a = layer_of(case, isa, "units", 5)
    names = FORWARD[cell] + BACKWARD[cell]
    first = run(case, isa, "units", 1)
    for _ in range(20):
        layer.forward()
        layer.backward(shaped(case, a["dy"]), a["dhn"], a.get("dcn"))
        assert not same_bits(first, {name: getattr(layer, name) for name in names})


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("cell", CELLS)
@each_set
def test_nan_stays_in_its_sequence(cell, bad, isa):
    """A NaN or infinity in one sequence: the others keep their bits, and it shows in its own."""
    case = Case(cell, "float32", 3, 9, 5, 17)
    good = run(case, isa, "rows", 1)
    arrays = case.arrays()
    shaped(case, arrays["x"])[1, 4] = bad
    for partition in PARTITIONS:
        ours = run(case, isa, partition, 2, arrays=arrays)
        others = [b for b in range(case.B) if b != 4]
        for name, value in ours.items():
            if name.startswith(("dw_", "db_")):
                assert np.isnan(value).any(), name
                continue
            rows = value[..., others, :]
            assert rows.tobytes() == good[name][..., others, :].tobytes(), name
        # The projections W x mix +Inf of both signs in each unit's sum: NaN either way.
        assert np.isnan(ours["y"][1:, 4]).all() and np.isfinite(ours["y"][0, 4]).all()


@pytest.mark.parametrize("size", [(1, 1, 1), (1, 5, 7), (3, 33, 16), (2, 16, 33), (17, 40, 129)],
                         ids=str)
@pytest.mark.parametrize("dtype", STEP)
@pytest.mark.parametrize("cell", CELLS)
@each_set
def test_step(cell, dtype, size, isa):
    """A cell's step from raw weights: the values, and the same bits at any number of threads."""
    case = Case(cell, dtype, 1, *size)
    results = []
    for threads in THREADS:
        a = inputs(case)
        step = STEP[dtype](cell, a["x"], a["h0"], a.get("c0"), weights(a), isa=isa, threads=threads)
        for name in ("h_next", "saved", *(("c_next",) if cell == "lstm" else ())):
            getattr(step, name)[...] = np.nan
        step.forward()
        saved = np.split(step.saved, 4 if cell == "gru" else 5, axis=1)
        if cell == "gru":
            r, z, n, q = saved
            results.append({"hn": step.h_next, "gates": np.hstack([r, z, q]), "n": n})
        else:
            results.append({"hn": step.h_next, "cn": step.c_next, "gates": np.hstack(saved[:4]),
                            "tanh_c": saved[4]})
    for other in results[1:]:
        assert not same_bits(results[0], other)
    for result in expected(case):
        if cell == "gru":
            r, z, q = np.split(result["gates"], 3, axis=1)
            arrays = {name: array.astype(r.dtype) for name, array in case.arrays().items()}
            H = case.H
            input_side = arrays["x"] @ arrays["w_ih"][2 * H:].T + arrays["b_ih"][2 * H:]
            result["n"] = np.tanh(input_side + r * q)
        else:
            result["tanh_c"] = np.tanh(result["c"])
    hold(case, results[0])


@pytest.mark.parametrize("wrong", [{"cell": "rnn"}, {"isa": "mmx"}, {"partition": "columns"}],
                         ids=str)
def test_unknown_names_are_refused(wrong):
    a = Case("gru", "float32", 1, 1, 1, 1).arrays()
    arguments = {"cell": "gru", "x": a["x"].reshape(1, 1, 1), "h0": a["h0"], "c0": None,
                 "weights": weights(a)} | wrong
    with pytest.raises(ValueError, match="|".join([*wrong, "instruction set"])):
        kernels.Layer32(**arguments)


@pytest.mark.parametrize("case", [
    Case("gru", "float64", 4, 5, 2, 3), Case("gru", "float64", 4, 5, 2, 3, packed=True),
    Case("lstm", "float64", 4, 5, 2, 3, packed=True, reverse=True),
    Case("lstm", "float64", 4, 5, 2, 3, 2, packed=True),
], ids=str)
def test_reference_backward_is_the_derivative_of_its_forward(case):
    """By complex steps: Im f(x + i h) / h is f' to rounding, for there is no subtraction in it."""
    a = case.arrays()
    saved = forward(case, a)
    claimed = {name[1:]: gradient for name, gradient in backward(case, a, saved).items()}

    def objective(arrays):
        out = forward(case, arrays)
        pairs = [("y", "dy"), ("hn", "dhn"), *([("cn", "dcn")] if case.cell == "lstm" else [])]
        return sum((out[value] * arrays[weight]).sum() for value, weight in pairs)

    for name, claim in claimed.items():
        for index in np.ndindex(claim.shape):
            moved = {key: array.astype(complex) for key, array in a.items()}
            moved[name][index] += 1e-30j
            assert objective(moved).imag / 1e-30 == pytest.approx(claim[index], rel=1e-11,
                                                                  abs=1e-11), (name, index)
