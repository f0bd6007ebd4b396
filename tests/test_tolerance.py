"""The rule itself: what it lets through and what it refuses."""

import numpy as np
import pytest
import torch
from tolerance import hold

EPS = torch.finfo(torch.float32).eps
NAN, INF = float("nan"), float("inf")


def judge(name, ours, peer, ref):
    as_float = [torch.tensor(v, dtype=torch.float32) for v in (ours, peer)]
    hold({name: as_float[0]}, {name: as_float[1]}, {name: np.array(ref, np.float64)},
         torch.float32, gates=3)


@pytest.mark.parametrize(
    ("ours", "peer", "ref"),
    [
        ([1.0 + 3 * EPS], [1.0], [1.0]),
        ([1000 * (1 + 3 * EPS), 0.0], [1000.0, 0.0], [1000.0, 0.0]),
        ([1.0 + 200 * EPS], [1.0 + 100 * EPS], [1.0]),
        ([NAN, INF, -INF], [NAN, INF, -INF], [NAN, INF, -INF]),
    ],
    ids=["within tiny", "tiny grows with the block", "twice torch's", "same non-finite"],
)
def test_accepts(ours, peer, ref):
    judge("output", ours, peer, ref)


@pytest.mark.parametrize(
    ("ours", "peer", "ref", "words"),
    [
        ([0.0, 1 + 6 * EPS], [0.0, 1.0], [0.0, 1.0], r"output at \(1,\) of \(2,\): ours 1.0"),
        ([1.0 + 210 * EPS], [1.0 + 100 * EPS], [1.0], "bound"),
        ([NAN], [1.0], [1.0], "ours nan"),
        ([1.0], [NAN], [NAN], "oracle nan"),
        ([INF], [-INF], [-INF], "ours inf"),
        ([1.0], [INF], [1.0], "torch's own result is not finite"),
        ([1.0, 1.0], [1.0], [1.0], "shapes differ"),
    ],
    ids=["beyond tiny", "beyond twice torch's", "NaN", "hidden NaN", "wrong infinity",
         "torch overflows", "shape"],
)
def test_refuses(ours, peer, ref, words):
    with pytest.raises(AssertionError, match=words):
        judge("output", ours, peer, ref)


def test_a_small_gate_block_cannot_hide_behind_a_large_one():
    ref = [[1000.0], [1.0], [1000.0]]
    ours = [[1000.0], [1.0 + 100 * EPS], [1000.0]]
    judge("output", ours, ref, ref)
    with pytest.raises(AssertionError, match=r"weight_hh_l0\[gate z\] at \(0, 0\)"):
        judge("grad weight_hh_l0", ours, ref, ref)


def test_another_dtype_is_refused():
    with pytest.raises(AssertionError, match="dtype"):
        hold({"h_n": torch.ones(1, dtype=torch.float64)}, {"h_n": torch.ones(1)},
             {"h_n": np.ones(1)}, torch.float32, gates=3)
