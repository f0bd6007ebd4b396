"""A cell's step, raw: every instruction set, both ways to read the weights, several threads.

The rule is the suite's (tolerance.py); the peer takes the step in the kernels' dtype, the oracle in
the next wider one.
"""

from itertools import product

import numpy as np
import pytest
from array_tolerance import violation
from raw_kernels import each_set, kernels

from benchmarks import oracle

WIDER = {"float32": "float64", "float64": "longdouble"}
STEP = {"float32": "Step32", "float64": "Step64"}
# B, I, H. Tails of every kind; two, three and more sequences at a time; enough for two threads.
SIZES = [(1, 3, 5), (2, 17, 16), (1, 40, 33), (3, 100, 100), (7, 130, 65), (16, 256, 200),
         (70, 20, 100), (130, 7, 8)]


def step(cell, dtype, x, h, c, weights, isa, threads):
    found = getattr(kernels, STEP[dtype])(cell, x, h, c, weights, isa=isa, threads=threads)
    found.forward()
    return {"hn": found.h_next} | ({"cn": found.c_next} if cell == "lstm" else {}), found.saved


@each_set
@pytest.mark.parametrize("dtype", WIDER)
@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("cell", ["gru", "lstm"])
def test_forward(isa, dtype, size, cell):
    B, features, H = size
    G = 3 if cell == "gru" else 4
    rng = np.random.default_rng(size)
    shapes = (B, features), (B, H), (B, H), (G * H, features), (G * H, H), (G * H,), (G * H,)
    arrays = [rng.standard_normal(shape).astype(dtype) for shape in shapes]
    x, h, c, *weights = arrays
    for w in weights:
        w /= np.sqrt(np.asarray(features + H, dtype))  # as far from saturation as a module's are
    c = c if cell == "lstm" else None

    def expected(dtype):
        x, h, c, *weights = (array.astype(dtype) for array in arrays)
        found, ((*gates, last),) = oracle.layer(
            cell, x[None], h, c if cell == "lstm" else None, weights)
        saved = [*gates[:4], last] if cell == "lstm" else gates
        return found, np.concatenate(saved, 1)

    ours, saved = step(cell, dtype, x, h, c, weights, isa, 1)
    again, saved_again = step(cell, dtype, x, h, c, weights, isa, 2)
    (peer, peer_saved), (ref, ref_saved) = expected(dtype), expected(WIDER[dtype])
    assert np.array_equal(saved, saved_again)
    results = {name: (ours[name], peer[name], ref[name]) for name in ours}
    for name, three in (results | {"saved": (saved, peer_saved, ref_saved)}).items():
        wide = [np.asarray(array, np.longdouble) for array in three]
        found = violation(name, *wide, np.finfo(dtype).eps)
        assert not found, found
    assert all(np.array_equal(ours[name], again[name]) for name in ours)


def test_plan():
    """Weights that few sequences pass are read as they lie; threads come only with the work."""
    ways = set()
    for B, H, threads in product((1, 2, 8, 33, 300), (1, 8, 100, 512), (1, 2, 7, 64)):
        plan = kernels.cell_plan(B, H, H, 4, threads=threads)
        ways.add((plan["packed"], plan["by_rows"], plan["few"]))
        assert 1 <= plan["threads"] <= threads
        assert plan["packed"] or not plan["by_rows"]
        assert plan["threads"] <= (B if plan["by_rows"] else -(-H // 16))
        assert plan["threads"] == 1 or B * H * H * 8 >= 100000
    assert len(ways) == 4
    assert kernels.cell_plan(1, 64, 64, 4, threads=2)["threads"] == 1
    for H, fewest in [(64, 3), (256, 4), (512, 5), (1024, 8)]:
        packed = [kernels.cell_plan(B, 1, H, 4)["packed"] for B in (fewest - 1, fewest)]
        assert packed == [False, True]
    assert kernels.cell_plan(64, 100, 100, 3, threads=2)["by_rows"]
