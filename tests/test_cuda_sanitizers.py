"""Every CUDA kernel, emulated, under AddressSanitizer, UndefinedBehaviorSanitizer and
ThreadSanitizer, in processes of their own.

build_emulated builds them so where GATEDRNN_SANITIZE says; cuda_kernel_sweep.py says what runs.
"""

import os
import subprocess
import sys
from pathlib import Path

import background_builds
import pytest
from test_sanitizers import runtime

ROOT = Path(__file__).resolve().parent.parent
TESTS = Path(__file__).resolve().parent
LIBRARIES = {"1": ["libasan.so", "libubsan.so"], "thread": ["libtsan.so"]}
FOLDERS = {"1": "emulated_sanitized", "thread": "emulated_thread"}
KINDS = [
    pytest.param(kind, marks=pytest.mark.skipif(
        not all(map(runtime, libraries)), reason="this compiler has no such sanitizer's runtime"))
    for kind, libraries in LIBRARIES.items()
]


@pytest.fixture(scope="module")
def sanitized():
    """(kind, arguments) -> Python's run with the kernels of that kind, built when first asked for;
    their folder follows the first argument."""
    built = set()

    def run(kind, *arguments):
        if kind not in built:
            background_builds.wait({"1": "emulated", "thread": "thread"}[kind])
            built.add(kind)
        environment = {
            **os.environ,
            "LD_PRELOAD": " ".join(runtime(name) for name in LIBRARIES[kind]),
            "ASAN_OPTIONS": "detect_leaks=0",  # the interpreter keeps what it likes to the end
            "UBSAN_OPTIONS": "print_stacktrace=1",
            "TSAN_OPTIONS": "halt_on_error=1",
            "PYTHONMALLOC": "malloc",  # small arrays would otherwise share one large allocation
            "PYTHONPATH": str(TESTS),
            "OPENBLAS_NUM_THREADS": "1",
        }
        first, *others = map(str, arguments)
        command = [sys.executable, first, str(ROOT / "build" / FOLDERS[kind]), *others]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)

    return run


@pytest.mark.parametrize("kind", KINDS)
def test_sweep(sanitized, kind):
    sweep = sanitized(kind, TESTS / "cuda_kernel_sweep.py", "few" if kind == "thread" else "all")
    assert sweep.returncode == 0, sweep.stdout + sweep.stderr[-8000:]
    assert "runtime error" not in sweep.stderr and "WARNING" not in sweep.stderr
    layers, word, launches = sweep.stdout.split()[:3]
    assert word == "layers," and int(layers) >= 30 and int(launches) > 4 * int(layers)


FAULT = """
import sys
from pathlib import Path
import numpy as np
from cuda_kernels import load_kernels
kernels = load_kernels(Path(sys.argv[1]))
a = {name: np.ones(shape, np.float32) for name, shape in {
    "projected": (1, 3, 24), "w_hh": (24, 8), "h0": (3, 8), "y": (1, 3, 8), "hn": (3, 8)}.items()}
direction = {"T": 1, "B": 3, "H": 8, "P": 8, "reverse": False, **a}
"""
OVERRUN = FAULT + """
short = np.ones(23, np.float32)
direction["y"] = np.lib.stride_tricks.as_strided(short, (1, 3, 8), (96, 32, 4))
kernels.layer_forward_float32("gru", [direction], "fma", "narrow")
"""
RACE = FAULT + """
kernels.layer_forward_float32("gru", [direction, direction], "fma", "narrow")
"""


@pytest.mark.parametrize(("kind", "code", "words"), [
    pytest.param(*KINDS[0].values, OVERRUN, ["heap-buffer-overflow", "step_forward_kernel"],
                 marks=KINDS[0].marks, id="overrun"),
    pytest.param(*KINDS[1].values, RACE, ["data race", "step_forward_kernel"],
                 marks=KINDS[1].marks, id="race"),
])
def test_a_fault_is_seen(sanitized, tmp_path, kind, code, words):
    """The sweep would show one: here a row that the array's shape has and its memory has not, and
    two directions that write the same output."""
    program = tmp_path / "fault.py"
    program.write_text(code)
    child = sanitized(kind, program)
    assert child.returncode != 0
    for word in words:
        assert word in child.stderr, child.stderr[-4000:]
