"""The products of a cell, and the input's, raw: every instruction set, odd sizes, several threads.

The rule is the suite's (tolerance.py); the peer sums the same products in the kernels' dtype, row
after row, the oracle in the next wider one.
"""

import numpy as np
import pytest
from array_tolerance import violation
from raw_kernels import each_set, kernels

WIDER = {"float32": "float64", "float64": "longdouble"}
each_dtype = pytest.mark.parametrize("dtype", WIDER)
each_size = pytest.mark.parametrize("size", [
    (1, 1, 1), (7, 5, 3), (100, 33, 17), (97, 70, 65), (300, 6, 129), (513, 130, 5), (40, 12, 300),
], ids=str)


def noise(dtype, *shapes):
    rng = np.random.default_rng([*map(sum, shapes)])
    return [rng.standard_normal(shape).astype(dtype) for shape in shapes]


def hold(ours, peer, ref, dtype):
    wide = [np.asarray(array, np.longdouble) for array in (ours, peer, ref)]
    found = violation("product", *wide, np.finfo(dtype).eps)
    assert not found, found


@each_set
@each_dtype
@each_size
def test_multiply(isa, dtype, size):
    rows, K, N = size
    a, w = noise(dtype, (rows, K), (N, K))
    results = [kernels.multiply(a, w, isa, threads) for threads in (1, 3)]
    assert np.array_equal(*results)
    ref = a.astype(WIDER[dtype]) @ w.T.astype(WIDER[dtype])
    hold(results[0], np.add.accumulate(a[:, :, None] * w.T, axis=1)[:, -1], ref, dtype)


@each_set
@each_dtype
@pytest.mark.parametrize("few", [True, False], ids=["few", "many"])
@pytest.mark.parametrize("size", [
    (1, 4, 1), (1, 7, 3), (2, 64, 17), (3, 387, 33), (8, 130, 520), (70, 300, 65), (0, 4, 3),
    (2, 0, 3), (5, 3, 0),
], ids=str)
def test_product_backward(isa, dtype, few, size):
    B, N, K = size
    d, w, a, direct = noise(dtype, (B, N), (N, K), (B, K), (B, K))
    results = [kernels.product_backward(d, w, a, direct, few, isa, threads) for threads in (1, 2)]
    wide = [array.astype(WIDER[dtype]) for array in (d, w, a, direct)]
    for k, name in enumerate(("dw", "db", "da")):
        assert np.array_equal(results[0][k], results[1][k]), name

    def gradients(d, w, a, direct):
        da = direct.copy()
        for n in range(N):
            da += np.outer(d[:, n], w[n])
        return d.T @ a, d.sum(0), da

    for ours, peer, ref in zip(results[0], gradients(d, w, a, direct), gradients(*wide),
                               strict=True):
        hold(ours, peer, ref, dtype)
