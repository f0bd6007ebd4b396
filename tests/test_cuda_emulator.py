"""The CUDA emulator that runs the kernels in CI, tested itself: what it computes against CuTe's and
the PTX ISA's own formulas (cuda_emulator/conformance.cu), and that it shows the faults which it
exists for (cuda_emulator/faults.cu). Every case runs in a process of its own.
"""

import os
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

SOURCES = Path(__file__).resolve().parent / "cuda_emulator"
CXX = os.environ.get("CXX") or shutil.which("g++")
NVCC = shutil.which("nvcc")
CHECKS = 26  # that conformance.cu makes where nothing is lacking
SCHEDULES = [("fifo", 1), ("lifo", 1), ("random", 1), ("random", 2), ("prio", 1), ("prio", 2)]

SANITIZERS = {
    None: [],
    "address": ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"],
    "thread": ["-fsanitize=thread"],
}

each_schedule = pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: f"{s[0]}-{s[1]}")


def compile_and_link(folder, name, sanitizer, *flags):
    """`name`.cu with the emulator, whose own file must not be instrumented for threads."""
    flags = [CXX, "-std=c++20", "-O1", "-g1", "-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas",
             "-DGATEDRNN_EMULATE", f"-I{SOURCES}", *flags, "-x", "c++", "-c"]
    sanitize = SANITIZERS[sanitizer]
    runtime = ["-DGATEDRNN_EMULATOR_TSAN"] if sanitizer == "thread" else sanitize
    program, emulator = folder / f"{name}.o", folder / "cuda_emulator.o"
    units = [[*flags, *sanitize, SOURCES / f"{name}.cu", "-o", program]]
    if not emulator.exists():
        units.append([*flags, *runtime, SOURCES / "cuda_emulator.cpp", "-o", emulator])
    with ThreadPoolExecutor(2) as pool:
        for done in pool.map(run, units):
            assert done.returncode == 0, done.stderr
    done = run([CXX, *sanitize, program, emulator, "-o", folder / name])
    assert done.returncode == 0, done.stderr
    return folder / name


def run(command, schedule=("fifo", 1)):
    environment = {
        **os.environ,
        "GATEDRNN_EMULATOR_ORDER": schedule[0],
        "GATEDRNN_EMULATOR_SEED": str(schedule[1]),
        "UBSAN_OPTIONS": "print_stacktrace=1",
    }
    return subprocess.run([str(word) for word in command], env=environment, capture_output=True,
                          text=True, check=False)


@pytest.fixture(scope="module")
def programs(tmp_path_factory):
    """(name, sanitizer) -> the program, built when it is first asked for."""
    folders, built = {}, {}

    def program(name, sanitizer=None):
        if sanitizer not in folders:
            folders[sanitizer] = tmp_path_factory.mktemp(f"emulator_{sanitizer}")
        if (name, sanitizer) not in built:
            built[name, sanitizer] = compile_and_link(folders[sanitizer], name, sanitizer)
        return built[name, sanitizer]

    return program


def assert_conforms(done, checks):
    assert "FAIL" not in done.stdout and done.returncode == 0, done.stdout + done.stderr[-4000:]
    assert done.stdout.count("ok  ") == checks
    assert not done.stderr


@each_schedule
def test_conformance(programs, schedule):
    assert_conforms(run([programs("conformance")], schedule), CHECKS)


@pytest.mark.parametrize("sanitizer", ["address", "thread"])
@pytest.mark.parametrize("order", ["fifo", "prio"])
def test_no_false_alarm(programs, sanitizer, order):
    assert_conforms(run([programs("conformance", sanitizer)], (order, 3)), CHECKS)


def test_an_older_architecture(tmp_path):
    """Turing: no TF32, no bfloat16, no clusters, and half products of half the depth."""
    program = compile_and_link(tmp_path, "conformance", None, "-DGATEDRNN_ARCHITECTURE=750")
    assert_conforms(run([program]), CHECKS - 3 - 5)


@pytest.fixture(scope="module")
def compiled_by_nvcc(tmp_path_factory):
    program = tmp_path_factory.mktemp("nvcc") / "conformance"
    targets = ["arch=compute_75,code=sm_75", "arch=compute_80,code=sm_80",
               "arch=compute_90,code=[sm_90,compute_90]"]
    done = run([NVCC, "-std=c++20", "-Werror", "all-warnings", *(f"-gencode={t}" for t in targets),
                "-t2", SOURCES / "conformance.cu", "-o", program])
    assert done.returncode == 0, done.stderr
    return program


@pytest.mark.skipif(not NVCC, reason="no nvcc on the PATH")
def test_conformance_on_a_gpu(compiled_by_nvcc):
    done = run([compiled_by_nvcc])
    if done.returncode == 255:
        pytest.skip(f"the program was built, but not run: {done.stdout.strip()}")
    assert "FAIL" not in done.stdout and done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("ok  ") >= CHECKS - 3 - 5


# Without these barriers and waits the result is wrong in every schedule, and the threads race.
RACES = [
    "no_barrier", "no_warp_barrier", "overtaken", "wait_without_barrier", "copy_over_readers",
    "between_blocks", "before_the_peer", "after_the_peer", "block_barrier_in_a_cluster",
    "store_without_wait", "store_over_readers",
]


# Relaxed stores are atomic, so that no threads race; they may arrive in the wrong order, or not.
ORDERS = ["one_mark_of_two", "overwritten"]


@pytest.mark.parametrize("name", ORDERS)
def test_order_of_relaxed_stores_spoils_the_result(programs, name):
    assert 1 in [run([programs("faults"), name], schedule).returncode for schedule in SCHEDULES]
    for schedule in SCHEDULES:
        assert run([programs("faults"), name, "right"], schedule).returncode == 0


@pytest.mark.parametrize("name", [*RACES, "no_wait"])
@each_schedule
def test_race_spoils_the_result(programs, name, schedule):
    assert run([programs("faults"), name], schedule).returncode == 1
    assert run([programs("faults"), name, "right"], schedule).returncode == 0


@pytest.mark.parametrize("name", RACES)
def test_race_is_reported(programs, name):
    done = run([programs("faults", "thread"), name])
    assert done.returncode != 0 and "ThreadSanitizer: data race" in done.stderr
    done = run([programs("faults", "thread"), name, "right"])
    assert done.returncode == 0 and not done.stderr


ERRORS = {
    "different_barriers": ("dead-lock: 128 threads wait", "__syncthreads", "the cluster's barrier",
                           "where 32 of 64 have arrived"),
    "too_few_bytes": ("dead-lock: 32 threads wait", "an mbarrier's wait"),
    "different_instructions": ("different instructions: ", "__ballot_sync", "__shfl_xor_sync"),
    "not_in_the_mask": ("__shfl_xor_sync: the calling lane is not in the mask",),
    "source_not_in_the_mask": ("__shfl_xor_sync: the source lane takes no part",),
    "half_a_warp": ("mma m16n8k8 tf32: not all 32 lanes take part",),
    "misaligned_matrix": ("ldmatrix: the row's address is misaligned",),
    "misaligned_copy": ("cp.async: misaligned address",),
    "misaligned_store": ("st.async: misaligned address",),
    "misaligned_pair": ("a relaxed access: misaligned address",),
    "copies_at_exit": ("a thread ends before its cp.async copies",),
    "no_such_block": ("the cluster has no block 1",),
    "not_shared": ("not an address of this block's shared memory",),
    "barrier_not_initialized": ("mbarrier: not initialized",),
    "too_many_arrivals": ("mbarrier: more arrivals than it was initialized for",),
    "not_cooperative": ("grid_sync: the launch is not cooperative",),
    "waits_in_vain": ("live-lock",),
    "trap": ("__trap, in block (0, 0, 0), thread (5, 0, 0)",),
}


@pytest.mark.parametrize("name", ERRORS)
@pytest.mark.parametrize("order", ["fifo", "lifo", "prio"])
def test_error(programs, name, order):
    done = run([programs("faults"), name], (order, 1))
    assert done.returncode == 2
    for text in ERRORS[name]:
        assert text in done.stdout
    assert run([programs("faults"), name, "right"], (order, 1)).returncode == 0


@pytest.mark.parametrize("name", [
    "beyond_dynamic", "beyond_static", "beyond_global", "copy_from_beyond", "matrix_from_beyond",
    "read_after_exit", "misaligned_vector",
])
def test_overrun(programs, name):
    done = run([programs("faults", "address"), name])
    report = "misaligned address" if name == "misaligned_vector" else "ERROR: AddressSanitizer"
    assert done.returncode != 0 and report in done.stderr and name in done.stderr
    done = run([programs("faults", "address"), name, "right"])
    assert done.returncode == 0 and not done.stderr


def test_refused_launches(programs):
    assert run([programs("faults"), "refusals"]).returncode == 0


def test_every_fault_is_expected(programs):
    names = run([programs("faults")]).stdout.split()
    overruns = next(mark for mark in test_overrun.pytestmark if mark.name == "parametrize").args[1]
    assert sorted(names) == sorted([*RACES, *ORDERS, "no_wait", *ERRORS, *overruns])


def test_orders(programs):
    def threads(*schedule):
        done = run([programs("faults"), "order"], schedule)
        assert done.returncode == 0
        return [int(word) for word in done.stdout.split()]

    assert threads("fifo", 1) == list(range(128))
    assert threads("lifo", 1) == list(range(127, -1, -1))
    for order in ("random", "prio"):
        drawn = [threads(order, seed) for seed in range(4)]
        assert all(sorted(one) == list(range(128)) for one in drawn)
        assert len({tuple(one) for one in drawn}) == 4
        assert threads(order, 2) == drawn[2]


def test_unknown_order(programs):
    done = run([programs("faults"), "order"], ("sideways", 1))
    assert done.returncode != 0
    assert "order must be fifo, lifo, random or prio, got sideways" in done.stderr
