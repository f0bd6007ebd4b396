"""The raw kernel module, loaded so that OpenMP's waiting threads sleep: where other programs hold
the cores, threads that spin at the end of a parallel region keep those that compute from running.
"""

from importlib import import_module

import pytest

with pytest.MonkeyPatch.context() as patch:
    patch.setenv("OMP_WAIT_POLICY", "passive")  # libgomp reads it once, when it is loaded
    kernels = import_module("gatedrnn_kernels")

each_set = pytest.mark.parametrize("isa", [
    pytest.param(name, marks=pytest.mark.skipif(name not in kernels.instruction_sets(),
                                                reason=f"this machine has no {name}"))
    for name in ("avx512", "avx2", "baseline")
])
