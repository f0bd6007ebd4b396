"""Every kernel under AddressSanitizer and UndefinedBehaviorSanitizer, in a process of its own.

build_kernels builds them so where GATEDRNN_SANITIZE=1; kernel_sweep.py says what runs.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import background_builds
import pytest

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "build" / "kernels_sanitized"
SWEEP = Path(__file__).resolve().parent / "kernel_sweep.py"


def runtime(name):
    """The sanitizer's library that the compiler links to, or None where there is none."""
    compiler = os.environ.get("CXX") or shutil.which("g++")
    if not compiler:
        return None
    answer = subprocess.run([compiler, f"-print-file-name={name}"], capture_output=True, text=True,
                            check=False).stdout.strip()
    return answer if os.path.isabs(answer) and os.path.exists(answer) else None


RUNTIMES = [runtime("libasan.so"), runtime("libubsan.so")]
pytestmark = pytest.mark.skipif(not all(RUNTIMES), reason="this compiler has no sanitizer runtimes")


def sanitized(*arguments):
    environment = {
        **os.environ,
        "LD_PRELOAD": " ".join(RUNTIMES),
        "ASAN_OPTIONS": "detect_leaks=0",  # the interpreter keeps what it likes to the end
        "UBSAN_OPTIONS": "print_stacktrace=1",
        "PYTHONMALLOC": "malloc",  # small arrays would otherwise share one large allocation
        "OMP_WAIT_POLICY": "passive",
    }
    return subprocess.run([sys.executable, *map(str, arguments)], env=environment,
                          capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def kernels():
    background_builds.wait("kernels")
    return FOLDER


def test_sweep(kernels):
    sweep = sanitized(SWEEP, kernels)
    assert sweep.returncode == 0, sweep.stderr[-8000:]
    assert "runtime error" not in sweep.stderr
    assert sweep.stdout.split()[1] == "layers" and int(sweep.stdout.split()[0]) >= 100


def test_an_overrun_is_seen(kernels):
    """The sweep would show one: here a row that the array's shape has and its memory has not."""
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "import numpy as np, gatedrnn_kernels as kernels\n"
        "short = np.ones(33, np.float32)\n"
        "long = np.lib.stride_tricks.as_strided(short, (34,), (4,))\n"
        "kernels.tanh(long)\n"
    )
    child = sanitized("-c", code, kernels)
    assert child.returncode != 0
    assert "heap-buffer-overflow" in child.stderr and "tanh_array" in child.stderr
