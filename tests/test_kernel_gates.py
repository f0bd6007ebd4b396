"""sigmoid and tanh of every instruction set, alone, against higher precision.

Errors are counted in ULP: units in the last place of the exact result, or of the smallest normal
number where the result is smaller than that. Nothing can be written beyond the end of an array
unseen: test_sanitizers.py runs the same lengths on arrays that end where the allocation ends.
"""

import numpy as np
import pytest
from raw_kernels import each_set, kernels

WIDER = {"float32": np.float64, "float64": np.longdouble}
FUNCTIONS = ("sigmoid", "tanh")
# The function, where, and its largest error in ULP. Below these bounds sigmoid gives no normal
# number; above them each is 1.
TABLE = [
    ("sigmoid", "float32", -87.3, 20.0, 2.5),
    ("sigmoid", "float64", -708.3, 40.0, 2.5),
    ("tanh", "float32", -10.0, 10.0, 3.0),
    ("tanh", "float64", -20.0, 20.0, 3.0),
]
# Where sigmoid's result is 0 to rounding, and where it becomes a normal number.
VANISHING = {"float32": (-104.0, -87.3), "float64": (-746.0, -708.3)}
# From here on the exact results round to 1: e^-x and 2 e^-2x are below half an ULP of it.
SATURATED = {("sigmoid", "float32"): 18.0, ("sigmoid", "float64"): 38.0,
             ("tanh", "float32"): 9.2, ("tanh", "float64"): 19.2}


def exact(name, x):
    """In the next wider type, whose error is a small part of an ULP of x's own."""
    wide = x.astype(WIDER[x.dtype.name])
    with np.errstate(over="ignore"):
        return 1 / (1 + np.exp(-wide)) if name == "sigmoid" else np.tanh(wide)


def computed(name, x, isa):
    return getattr(kernels, name)(x, isa=isa)


def ulps(y, ref):
    info = np.finfo(y.dtype)
    unit = np.spacing(np.maximum(np.abs(ref), info.smallest_normal).astype(y.dtype))
    return np.abs(y.astype(ref.dtype) - ref) / unit.astype(ref.dtype)


def every_magnitude(dtype):
    """Finite numbers of both signs, evenly spread over all bit patterns, in ascending order."""
    unsigned = np.uint32 if dtype == "float32" else np.uint64
    largest = int(np.finfo(dtype).max.view(unsigned))
    positive = np.arange(0, largest + 1, largest // 400_000, dtype=unsigned).view(dtype)
    return np.concatenate([-positive[::-1], positive])


def assert_close(name, x, isa, limit):
    y, ref = computed(name, x, isa), exact(name, x)
    assert not np.isnan(y).any(), f"{name}({x[np.isnan(y)][0]!r}) is NaN"
    error = ulps(y, ref)
    worst = int(error.argmax())
    assert error[worst] <= limit, (
        f"{name}({x[worst]!r}): {y[worst]!r}, exactly {ref[worst]!r}: {error[worst]:.2f} ULP")


@pytest.mark.parametrize(("name", "dtype", "low", "high", "limit"), TABLE)
@each_set
def test_error(name, dtype, low, high, limit, isa):
    assert_close(name, np.linspace(low, high, 300_007).astype(dtype), isa, limit)


@pytest.mark.parametrize("dtype", WIDER)
@each_set
def test_error_near_zero(dtype, isa):
    """tanh keeps its relative error down to the smallest number; sigmoid is 1/2 there."""
    small = np.geomspace(float(np.finfo(dtype).smallest_normal), 1, 100_003).astype(dtype)
    for x in (small, -small):
        assert_close("tanh", x, isa, 3.0)
        assert_close("sigmoid", x, isa, 2.5)


@pytest.mark.parametrize("dtype", WIDER)
@each_set
def test_vanishing_sigmoid(dtype, isa):
    """Below the normal numbers a result may be flushed to 0: the smallest of them is its error's
    bound."""
    low, high = VANISHING[dtype]
    x = np.linspace(low, high, 300_007).astype(dtype)
    y = computed("sigmoid", x, isa)
    assert not np.isnan(y).any(), f"NaN from {x[np.isnan(y)].min()} to {x[np.isnan(y)].max()}"
    assert (y >= 0).all()
    error = np.abs(y.astype(WIDER[dtype]) - exact("sigmoid", x))
    assert error.max() <= np.finfo(dtype).smallest_normal


@pytest.mark.parametrize("dtype", WIDER)
@each_set
def test_every_magnitude(dtype, isa):
    """Over all finite numbers: never NaN, never out of range, tanh odd, and each never falls by
    more than its rounding."""
    x = every_magnitude(dtype)
    assert len(x) > 800_000 and np.isfinite(x).all()
    info = np.finfo(dtype)
    for name in FUNCTIONS:
        y = computed(name, x, isa)
        low = 0 if name == "sigmoid" else -1
        assert ((y >= low) & (y <= 1)).all(), f"{name}({x[~((y >= low) & (y <= 1))][0]!r})"
        fall = -np.diff(y) / np.maximum(np.abs(y[1:]), info.smallest_normal)
        assert fall.max() <= 4 * info.eps, f"{name}({x[1:][fall.argmax()]!r})"
    t = computed("tanh", x, isa)
    assert (t == -t[::-1]).all()


@pytest.mark.parametrize("dtype", WIDER)
@pytest.mark.parametrize("name", FUNCTIONS)
@each_set
def test_saturation(name, dtype, isa):
    """Exactly 1 from where the exact value rounds to it, up to infinity; -1 for tanh, 0 for sigmoid
    at the other end."""
    x = every_magnitude(dtype)
    x = np.append(x[x >= SATURATED[name, dtype]], np.asarray(np.inf, dtype))
    assert (computed(name, x, isa) == 1).all()
    below = computed(name, -x[x > -VANISHING[dtype][0]], isa)
    assert (below == (0 if name == "sigmoid" else -1)).all()


@pytest.mark.parametrize("dtype", WIDER)
@each_set
def test_special_values(dtype, isa):
    tiny = np.finfo(dtype).smallest_subnormal
    x = np.array([np.nan, -np.nan, np.inf, -np.inf, 0.0, -0.0, tiny, -tiny, 1e3 * tiny], dtype)
    y = computed("sigmoid", x, isa)
    assert np.isnan(y[:2]).all()
    assert y[2:].tolist() == [1, 0, 0.5, 0.5, 0.5, 0.5, 0.5]
    t = computed("tanh", x, isa)
    assert np.isnan(t[:2]).all()
    assert t[2:].tolist() == [1, -1, 0, 0, *x[6:].tolist()]
    assert np.signbit(t[4:8]).tolist() == [False, True, False, True]


@pytest.mark.parametrize("dtype", WIDER)
@pytest.mark.parametrize("name", FUNCTIONS)
@each_set
def test_tails(name, dtype, isa):
    """Arrays of every length: the bits of a number do not depend on its place, nor on what lies
    beyond the end, nor is the input written to."""
    x = np.linspace(-3, 3, 40).astype(dtype)
    alone = np.concatenate([computed(name, x[k:k + 1].copy(), isa) for k in range(40)])
    for length in range(1, 41):
        for fill in (np.nan, 0.0):
            buffer = np.full(80, fill, dtype)
            buffer[7:7 + length] = x[:length]
            before = buffer.tobytes()
            y = computed(name, buffer[7:7 + length], isa)
            assert y.tobytes() == alone[:length].tobytes(), length
            assert buffer.tobytes() == before
    assert computed(name, x[:0].copy(), isa).size == 0
