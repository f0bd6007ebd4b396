"""Layers of 16-bit storage, raw: forward they compute what float32's kernels compute, bit for bit,
and round it once; backward what the reference makes of the numbers that were kept. Where products
are of pairs of bfloat16, states and gradients are rounded for them. And the rounding itself, for
every number there is.
"""

from functools import lru_cache

import numpy as np
import pytest
from kernel_reference import Case, backward, forward, shaped, weights
from raw_kernels import each_set, kernels

LAYER = {"float16": kernels.LayerFloat16, "bfloat16": kernels.LayerBfloat16}
WIDEN = {"float16": kernels.widen_float16, "bfloat16": kernels.widen_bfloat16}
NARROW = {"float16": kernels.narrow_float16, "bfloat16": kernels.narrow_bfloat16}
STATES = {"gru": ("y", "hn"), "lstm": ("y", "hn", "cn")}
PAIRS = "avx512bf16"  # the set that multiplies pairs of bfloat16
GRADIENTS = ("dx", "dh0", "dw_ih", "dw_hh", "db_ih", "db_hh")
each_dtype = pytest.mark.parametrize("dtype", LAYER)
has_pairs = pytest.mark.skipif(PAIRS not in kernels.pair_sets(),
                               reason=f"this machine has no {PAIRS}")
each_kernel = pytest.mark.parametrize(("dtype", "isa"), [
    *(pytest.param(dtype, *isa.values, marks=isa.marks)
      for dtype in LAYER for isa in each_set.args[1]),
    pytest.param("bfloat16", PAIRS, marks=has_pairs),
])

CASES = [
    *(Case(cell, "float32", *size, reverse=reverse, packed=packed)
      for cell in ("gru", "lstm")
      for size, reverse, packed in [
          ((1, 1, 1, 1), False, False), ((7, 17, 5, 33), True, False),
          ((7, 9, 33, 70), False, True),
          ((5, 17, 70, 16), True, True), ((2, 130, 5, 17), False, False),
          ((3, 2, 5, 290), True, False), ((20, 33, 70, 33), False, False),  # many rows in a sum
      ]),
    Case("lstm", "float32", 7, 9, 5, 33, 11, packed=True),
    Case("lstm", "float32", 3, 17, 33, 129, 70, reverse=True),
    *(Case(cell, "float32", 2, 17, 5, 33, scale=8) for cell in ("gru", "lstm")),  # saturated
]


def widened(bits, dtype):
    """As float32, exactly; by NumPy, which knows one of the two."""
    if dtype == "float16":
        return bits.view(np.float16).astype(np.float32)
    return (bits.astype(np.uint32) << 16).view(np.float32)


def rounded(array, dtype):
    """The bits nearest to an array of float32."""
    if dtype == "float16":
        with np.errstate(over="ignore"):
            return array.astype(np.float16).view(np.uint16)
    bits = array.view(np.uint32).astype(np.uint64)
    nearest = (bits + 0x7FFF + (bits >> 16 & 1)) >> 16
    return np.where(np.isnan(array), 0x7FC0, nearest).astype(np.uint16)


def framed(array):
    """The same array between ones that become NaN, so that whoever reads beyond it is found out."""
    buffer = np.full(array.size + 128, np.uint16(0x7FFF))
    inside = buffer[64:64 + array.size].reshape(array.shape)
    inside[...] = array
    return inside


@lru_cache(maxsize=1)
def inputs(case, dtype):
    return {name: framed(rounded(array, dtype)) for name, array in case.arrays().items()}


def layer_of(kind, case, a, **options):
    return kind(case.cell, shaped(case, a["x"]), a["h0"], a.get("c0"), weights(a),
                reverse=case.reverse, batch_sizes=case.batch_sizes if case.packed else None,
                **options)


def names_of(case):
    return (*GRADIENTS, *(("dc0",) if case.cell == "lstm" else ()),
            *(("dw_hr",) if case.P else ()))


def run(case, dtype, a, train=True, **options):
    """The results of a run whose output buffers held NaN before."""
    layer = layer_of(LAYER[dtype], case, a, train=train, **options)
    names = (*STATES[case.cell], *(("gates", *names_of(case)) if train else ()))
    for name in names:
        getattr(layer, name)[...] = 0x7FFF
    layer.forward()
    if train:
        layer.backward(shaped(case, a["dy"]), a["dhn"], a.get("dcn"))
    found = {name: getattr(layer, name) for name in names}
    return found | ({"c": layer.c} if case.cell == "lstm" and train else {})


def in_float32(case, dtype, **options):
    """What float32's kernels give forward, rounded."""
    a = {name: widened(bits, dtype) for name, bits in inputs(case, dtype).items()}
    layer = layer_of(kernels.Layer32, case, a, **options)
    layer.forward()
    names = (*STATES[case.cell], "gates")
    found = {name: rounded(getattr(layer, name), dtype) for name in names}
    return found | ({"c": layer.c} if case.cell == "lstm" else {})


def hold_gradients(case, dtype, a, ours):
    """Those of float64, rounded; and a GRU's n, which float32's kernels do not keep."""
    wide = {name: widened(bits, dtype).astype(np.float64) for name, bits in a.items()}
    values = {name: widened(ours[name], dtype) for name in (*names_of(case), "y", "gates")}
    kept = {name: flat(values[name]).astype(np.float64) for name in ("y", "gates")}
    if case.cell == "lstm":
        kept["c"] = flat(ours["c"]).astype(np.float64)
    expected = backward(case, wide, kept)
    if case.cell == "gru":
        values["n"] = values["gates"][..., 3 * case.H:]
        with np.errstate(over="ignore"):  # exp of a saturated gate
            expected["n"] = forward(case, wide)["n"]
    for name, exact in expected.items():
        value, float32 = values[name].reshape(exact.shape), 3e-5 * max(1, np.abs(exact).max())
        assert (np.abs(value - exact) <= spacing(value, dtype) / 2 + float32).all(), name


def flat(rows):
    return rows.reshape(-1, rows.shape[-1])


def spacing(value, dtype):
    """Of the numbers of 16 bits around float32s."""
    least = 2.0**-24 if dtype == "float16" else 0
    return np.maximum(np.spacing(np.abs(value)) * 2.0 ** (13 if dtype == "float16" else 16), least)


def different(one, two):
    """Names of the arrays that differ in any bit."""
    return [name for name in two if one[name].tobytes() != two[name].tobytes()]


@pytest.mark.parametrize("ahead", [0, 3])
@pytest.mark.parametrize("case", CASES, ids=str)
@each_dtype
@each_set
def test_layer(case, dtype, isa, ahead):
    """The same bits however panels are stored and work is shared; inference gives training's."""
    a = inputs(case, dtype)
    first = run(case, dtype, a, isa=isa, ahead=ahead)
    hold_gradients(case, dtype, a, first)
    same = {"gates": first["gates"][..., :case.gates * case.H].copy()}
    assert not different(first | same, in_float32(case, dtype, isa=isa, ahead=ahead))
    for narrow in (False, True):
        for partition in ("rows", "units", "groups"):
            for threads in (1, 3):
                options = {"isa": isa, "partition": partition, "threads": threads,
                           "ahead": ahead, "narrow_panels": narrow}
                ours = run(case, dtype, a, **options)
                assert not different(first, ours), (narrow, partition, threads)
                inference = run(case, dtype, a, train=False, **options)
                assert not different(ours, inference), (narrow, partition, threads)


@has_pairs
@pytest.mark.parametrize("ahead", [0, 3])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_layer_of_pairs(case, ahead):
    """Forward exact up to one rounding, the states that products take being the rounded ones;
    backward as exact as its rounded factors. The same bits however work is shared."""
    a = inputs(case, "bfloat16")
    wide = {name: widened(bits, "bfloat16").astype(np.float64) for name, bits in a.items()}
    first = run(case, "bfloat16", a, isa=PAIRS, ahead=ahead)
    found = {name: flat(widened(value, "bfloat16")).astype(np.float64)
             for name, value in first.items() if name != "c"}
    with np.errstate(over="ignore"):  # exp of a saturated gate
        expected = forward(case, wide, found["y"])
    if case.cell == "gru":
        expected["gates"] = np.hstack([expected["gates"], expected["n"]])
    else:
        found["c"] = flat(first["c"]).astype(np.float64)
    factor = 2.0**-9 if case.P else 0  # o * tanh(c) is rounded before its projection
    for name in (*STATES[case.cell], "gates"):
        slack = (3e-5 + factor) * max(1, np.abs(expected[name]).max())
        half = spacing(found[name].astype(np.float32), "bfloat16") / 2
        assert (np.abs(found[name] - expected[name]) <= half + slack).all(), name
    for name, exact in backward(case, wide, found).items():
        value = found[name].reshape(exact.shape)
        half = spacing(value.astype(np.float32), "bfloat16") / 2
        slack = 2.0**-7 * max(0.1, np.abs(exact).max())
        assert (np.abs(value - exact) <= half + slack).all(), name
    for partition in ("rows", "units", "groups"):
        for threads in (1, 3):
            options = {"isa": PAIRS, "partition": partition, "threads": threads, "ahead": ahead}
            ours = run(case, "bfloat16", a, **options)
            assert not different(first, ours), (partition, threads)
            inference = run(case, "bfloat16", a, train=False, **options)
            assert not different(ours, inference), (partition, threads)


@pytest.mark.parametrize("cell", STATES)
@each_kernel
def test_a_sum_over_chunks_is_rounded_once(cell, dtype, isa):
    """Whether a gradient is summed from one chunk or from many shows in float32's last places only:
    in 16 bits it is the same, or its neighbour here and there."""
    case = Case(cell, "float32", 30, 9, 5, 33)
    a = inputs(case, dtype)
    whole, parts = (run(case, dtype, a, isa=isa, chunk=chunk) for chunk in (30, 1))
    for name in names_of(case):
        one, two = (widened(found[name], dtype) for found in (whole, parts))
        # Where a sum cancels, float32's errors are wider.
        assert (np.abs(one - two) <= spacing(one, dtype) + 1e-5).all(), name
        assert (one == two).mean() > 0.9, name


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("cell", STATES)
@each_kernel
def test_nan_stays_in_its_sequence(cell, dtype, bad, isa):
    case = Case(cell, "float32", 3, 9, 5, 17)
    good = run(case, dtype, inputs(case, dtype), isa=isa)
    arrays = case.arrays()
    shaped(case, arrays["x"])[1, 4] = bad
    a = {name: rounded(array, dtype) for name, array in arrays.items()}
    for narrow in (False, True):
        ours = run(case, dtype, a, isa=isa, threads=2, narrow_panels=narrow)
        others = [b for b in range(case.B) if b != 4]
        for name, value in ours.items():
            if name.startswith(("dw_", "db_")):
                assert np.isnan(widened(value, dtype)).any(), name
            else:
                assert (value[..., others, :] == good[name][..., others, :]).all(), name
        y = widened(ours["y"], dtype)
        assert np.isnan(y[1:, 4]).all() and np.isfinite(y[0, 4]).all()


@each_dtype
@each_set
def test_every_number_is_widened_exactly(dtype, isa):
    bits = np.arange(2**16, dtype=np.uint16)
    expected, ours = widened(bits, dtype), WIDEN[dtype](bits, isa)
    nan = np.isnan(expected)
    assert (np.isnan(ours) == nan).all()
    assert (ours[~nan].view(np.uint32) == expected[~nan].view(np.uint32)).all()
    assert (NARROW[dtype](ours, isa)[~nan] == bits[~nan]).all()


@each_dtype
@each_set
def test_rounding_is_to_nearest_even(dtype, isa):
    """Every number's halfway points and what is next to them; noise over all exponents; the ends of
    the range, zeros, and NaNs whose mark lies in the bits that go."""
    bits = np.arange(2**16, dtype=np.uint16)
    exact = widened(bits, dtype)
    exact = exact[np.isfinite(exact)]
    half = ((np.sort(exact)[:-1].astype(np.float64) + np.sort(exact)[1:]) / 2).astype(np.float32)
    noise = np.random.default_rng(0).integers(0, 2**32, 2**17, dtype=np.uint32).view(np.float32)
    ends = np.array([65519.996, 65520, 65536, 3.3961776e38, np.inf, 0], np.float32)
    numbers = np.concatenate([half, np.nextafter(half, np.float32(-np.inf)),
                              np.nextafter(half, np.float32(np.inf)), noise, ends, -ends])
    ours, nan = NARROW[dtype](numbers, isa), np.isnan(numbers)
    assert (ours[~nan] == rounded(numbers[~nan], dtype)).all()
    nans = np.concatenate([numbers[nan].view(np.uint32), [0x7F800001, 0xFF800001, 0x7FFFFFFF]])
    ours = NARROW[dtype](nans.astype(np.uint32).view(np.float32), isa)
    assert np.isnan(widened(ours, dtype)).all()
