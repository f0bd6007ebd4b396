"""The CUDA kernels, emulated, on arrays whose rows lie so far apart that offsets pass 2^31: the
same bits as where they lie beside each other. Nothing but the rows is backed by memory."""

import mmap

import cuda_kernels
import numpy as np
import pytest
from cuda_kernels import BFLOAT16, FLOAT32, SCALED, Layer, run_backward, run_forward
from kernel_reference import Case
from test_cuda_kernels import differing, kernels

APART = 1 << 30  # elements between rows; three of them are beyond 2^31
NO_RESERVE = 0x4000  # Linux's MAP_NORESERVE, which Python 3.10's mmap does not name


class Far(cuda_kernels.Memory):
    """Every array of rows in a mapping of its own."""

    def _place(self, shape, dtype, rows, name, value):
        if not rows:
            return super()._place(shape, dtype, rows, name, value)
        strides = [dtype.itemsize]
        for size in reversed(shape[1:]):
            strides.insert(0, strides[0] * size + APART * dtype.itemsize)
        extent = dtype.itemsize + sum((n - 1) * s for n, s in zip(shape, strides, strict=True))
        mapping = mmap.mmap(-1, extent,
                            flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | NO_RESERVE)
        mapping.madvise(mmap.MADV_NOHUGEPAGE)  # a page of 4 KiB for a row, not of 2 MiB
        view = np.lib.stride_tricks.as_strided(np.frombuffer(mapping, dtype), shape, strides)
        view[...] = np.frombuffer(b"\xff" * dtype.itemsize, dtype) if value is None else value
        return view


@pytest.mark.parametrize("layer", [
    Layer(Case(cell, "float64", 3, 3, 3, H, P, reverse), mode, tile, directions=2,
          persistent=persistent)
    for cell, H, P, reverse, mode, tile, persistent in [
        ("gru", 18, None, False, FLOAT32, "narrow", None),
        ("gru", 7, None, True, BFLOAT16, "wide", None),
        ("lstm", 17, None, True, FLOAT32, "wide", None),
        ("lstm", 18, 6, False, BFLOAT16, "narrow", None),
        ("gru", 62, None, False, SCALED, "narrow", (64, 1, 8)),
        ("gru", 250, None, True, BFLOAT16, "narrow", (256, 2, 8)),
        ("lstm", 63, None, True, BFLOAT16, "narrow", (64, 1, 8)),
        ("lstm", 256, None, False, SCALED, "narrow", (256, 4, 8)),
    ]
], ids=str)
def test_offsets_beyond_31_bits(layer, monkeypatch):
    near = run_forward(kernels, layer)
    near_grads = run_backward(kernels, layer, near)
    monkeypatch.setattr(cuda_kernels, "Memory", Far)
    far = run_forward(kernels, layer)
    assert not differing(near, far)
    assert not differing(near_grads, run_backward(kernels, layer, near))
