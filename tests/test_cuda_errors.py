"""The table of the CUDA kernels' errors, of few steps: every row is there, and of its precision."""

import cuda_errors
import pytest

LIMITS = {"torch.nn": 1e-6, "strict": 1e-6, "float32 with TF32": 2e-3, "float16": 2e-3,
          "bfloat16": 2e-2}


@pytest.mark.parametrize("cell", ["gru", "lstm"])
def test_errors_are_of_their_precision(cell, monkeypatch):
    monkeypatch.setattr(cuda_errors, "T", 2)
    found = dict(cuda_errors.rows(cell))
    assert len(found) == 1 + len(cuda_errors.KERNELS)
    stacks = dict(cuda_errors.stack_rows(cell))
    assert len(stacks) == 3
    for name, errors in [*found.items(), *stacks.items()]:
        (limit,) = (LIMITS[start] for start in LIMITS if name.startswith(start))
        assert all(limit / 1e3 < error < limit for error in errors), (name, errors)
