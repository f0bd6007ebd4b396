"""The floor of a layer on a GPU: against figures that were worked out by hand, and what it must
do as sizes change."""

import itertools

import pytest

from benchmarks import floor
from benchmarks.cases import Layer, Special

# What is known of an H200: a large product in 16 bits, half of it in TF32, and a copy.
RATES = {"float16": 790e12, "bfloat16": 790e12, "tf32": 395e12, "float32": 55e12, "float64": 60e12}
H200 = floor.Machine(90, 132, 1.83e9, RATES.__getitem__, 4.3e12)
A100 = floor.Machine(80, 108, 1.41e9, RATES.__getitem__, 1.4e12)
T4 = floor.Machine(75, 40, 1.59e9, RATES.__getitem__, 0.3e12)


def step(B, H, dtype="tf32", cell="GRU", T=1000):
    """Of inference without input features, microseconds for each step, and the reason."""
    found = floor.floor(Layer(cell, B, T, 0, H, 1), False, dtype, H200)
    return 1e6 * found.seconds / T, found.by


# The recurrence alone; the pre-activations of the whole sequence are written before it.
@pytest.mark.parametrize(("B", "H", "dtype", "cell", "expected", "by"), [
    (1, 64, "tf32", "GRU", 0.35, "latency"),
    (16, 512, "tf32", "GRU", 0.5, "latency"),
    (16, 1024, "bfloat16", "GRU", 0.8, "latency"),
    (1024, 256, "tf32", "GRU", 0.975, "memory"),  # 16 bytes of a unit
    (1024, 1024, "bfloat16", "GRU", 8.16, "products"),
    (256, 512, "float32", "GRU", 1.53, "products"),  # three products of 16 bits
    (1024, 1024, "bfloat16", "LSTM", 10.9, "products"),
    (1, 512, "float64", "GRU", 3.0, "latency"),  # a launch a step
])
def test_a_step(B, H, dtype, cell, expected, by):
    written = B * H * (4 if cell == "LSTM" else 3) * (8 if dtype == "float64" else 4) / 4.3e12
    found, reason = step(B, H, dtype, cell)
    assert found - 1e6 * written == pytest.approx(expected, rel=0.01) and reason == by


def test_backward_moves_36_bytes_of_a_unit():
    """And forward 12 more than in inference; then come the products of all steps."""
    T, elements, copying = 1000, 1024 * 256, 4.3e12
    layer = Layer("GRU", 1024, T, 0, 256, 1)
    inference, training = (floor.floor(layer, t, "tf32", H200).seconds for t in (False, True))
    dgates = 2 * 12 + 12 + 4  # dx and dw_ih read them, dw_hh does with the states
    expected = T * elements * (12 + 36 + dgates) / copying
    assert training - inference == pytest.approx(expected, rel=0.01)


@pytest.mark.parametrize(("cell", "H", "dtype", "expected"), [
    ("GRU", 128, "tf32", "block"), ("GRU", 256, "tf32", "cluster"),
    ("GRU", 768, "tf32", "cluster"), ("LSTM", 768, "float16", "cluster"),
    ("GRU", 1024, "bfloat16", "grid"), ("GRU", 768, "float32", "grid"),
    ("LSTM", 2048, "bfloat16", "grid"), ("GRU", 2048, "float32", "steps"),
    ("GRU", 64, "float64", "steps"),
])
def test_where_weights_can_stay(cell, H, dtype, expected):
    assert floor.kind(Layer(cell, 1, 10, 5, H, 1), dtype, H200) == expected


def test_older_gpus_have_no_clusters():
    layer = Layer("GRU", 1, 10, 5, 256, 1)
    assert [floor.kind(layer, "tf32", gpu) for gpu in (H200, A100, T4)] == [
        "cluster", "grid", "steps"]


def test_special_layers():
    plain = floor.floor(Layer("LSTM", 1024, 90, 128, 128, 1), True, "bfloat16", H200).seconds
    of = {feature: floor.floor(Special("LSTM", 1024, 90, 128, 128, 1, feature), True, "bfloat16",
                               H200).seconds for feature in ("bidirectional", "packed")}
    assert plain < of["bidirectional"] <= 2 * plain and of["packed"] < plain
    two = [Special("LSTM", 1, 90, 128, 128, 1, f) for f in ("bidirectional", "projected")]
    assert [floor.kind(case, "bfloat16", H200) for case in two] == ["block", "steps"]
    wide = Special("LSTM", 1, 90, 128, 2048, 1, "bidirectional")
    assert floor.kind(wide, "bfloat16", H200) == "steps"  # one direction fits the GPU, two do not


@pytest.mark.parametrize(("H", "L", "dtype", "times"), [
    (256, 2, "tf32", 1), (256, 4, "bfloat16", 1), (64, 3, "float16", 1),
    (256, 5, "tf32", 5), (256, 2, "float32", 2), (1024, 2, "bfloat16", 2),
])
def test_layers_at_the_same_time(H, L, dtype, times):
    """A step of all of them forward takes no longer than that of one."""
    one, stack = (floor.floor(Layer("GRU", 1, 1000, 0, H, n), False, dtype, H200) for n in (1, L))
    assert stack.seconds == pytest.approx(times * one.seconds, rel=0.1)
    trained = floor.floor(Layer("GRU", 1, 1000, 0, H, L), True, dtype, H200)
    assert trained.seconds == pytest.approx((times + L) * one.seconds, rel=0.1)


def test_more_work_has_a_higher_floor():
    for training, dtype, cell in itertools.product((False, True), RATES, ("GRU", "LSTM")):
        def seconds(B, T, H, L, training=training, dtype=dtype, cell=cell):
            return floor.floor(Layer(cell, B, T, H, H, L), training, dtype, H200).seconds

        for sizes in itertools.product((1, 64, 1024), (90, 1024), (64, 256, 1024), (1, 2)):
            for k in range(4):
                more = [2 * n if j == k else n for j, n in enumerate(sizes)]
                # Of T it is a multiple, and of L where layers follow each other.
                least = 2 if k == 1 or (k == 3 and sizes[2] == 1024) else 1
                assert seconds(*more) > 0.999 * least * seconds(*sizes)
