"""The CUDA ops with emulated kernels, on CPU tensors.

    with emulated.cuda():
        gatedrnn.GRU(3, 4)(x)  # what CUDA tensors go through, but for the GPU
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

import gatedrnn.ops
from gatedrnn import fake, raw

LIBRARY = Path(__file__).resolve().parent.parent / "build" / "emulated" / "gatedrnn_emulated.so"
MULTIPROCESSORS = 132  # of an H100; the emulator's, unless it is told otherwise

torch.ops.load_library(LIBRARY)
ops = torch.ops.gatedrnn_emulated
for _name, _kernel in fake.KERNELS.items():
    torch.library.register_fake(f"gatedrnn_emulated::{_name}")(_kernel)


@contextmanager
def cuda(multiprocessors: int = MULTIPROCESSORS) -> Iterator[None]:
    """CPU tensors are treated as CUDA tensors are, by a GPU of so many multiprocessors."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(raw, "_ops", ops)
        patch.setattr(raw, "_emulated", True)
        # What passes by the dispatcher would not meet the emulated ops.
        patch.setattr(gatedrnn.ops, "step_forward", lambda *_: None)
        patch.setattr(gatedrnn.ops, "step_backward", lambda *_: None)
        patch.setattr(fake, "_on_gpu", lambda x: True)
        ops.set_multiprocessors(multiprocessors)
        try:
            yield
        finally:
            ops.set_multiprocessors(MULTIPROCESSORS)
