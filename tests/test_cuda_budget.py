"""The compiled CUDA kernels against cuda_budget.json; and that the check sees what it is for."""

import os
import re
import subprocess
import sys
from pathlib import Path

import cuda_budget
import pytest

pytestmark = pytest.mark.skipif(not cuda_budget.nvcc(), reason="no nvcc: built without kernels")


@pytest.fixture(autouse=True)
def _all_architectures(request, monkeypatch):
    """What the environment says of the build is for the built extension's test alone."""
    if request.function is not test_the_built_kernels_keep_to_the_budget:
        monkeypatch.delenv("GATEDRNN_CUDA_ARCHS", raising=False)


# kernel<0> is what the budget admits to; each other one has a single thing worse.
PLANTED = r"""
template <int Fault>
__global__ void __launch_bounds__(Fault == 1 ? 1024 : 128) kernel(const float4* x, float4* y,
                                                                  int from, int to) {
  __shared__ float4 tile[128 + (Fault == 4)];
  float4 v = x[threadIdx.x];
  if (Fault == 6) v.x = reinterpret_cast<const float*>(x)[from], v.y = v.z = v.w = v.x;
  tile[threadIdx.x] = v;
  if (Fault != 5) __syncthreads();
  v = tile[(threadIdx.x + 1) % 128];
  if (Fault == 1 || Fault == 2) {
    float held[90];
#pragma unroll
    for (int i = 0; i < 90; ++i) held[i] = y[i].x;
    __syncwarp();
#pragma unroll
    for (int i = 0; i < 90; ++i) v.x += held[89 - i] * x[i].y;
  }
  if (Fault == 3) v.x *= 1.1;
  if (Fault == 8) {
    float indexed[16];
    for (int i = 0; i < from; ++i) indexed[i % 16] = y[i].x;
    v.x += indexed[to];
  }
  if (Fault != 7)
    asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 "
                 "{%0, %1, %2, %3}, {%4, %5, %4, %5}, {%4, %5}, {%0, %1, %2, %3};"
                 : "+f"(v.x), "+f"(v.y), "+f"(v.z), "+f"(v.w) : "r"(from), "r"(to));
  y[threadIdx.x] = v;
}
template <class Real>
__global__ void third(Real* x) {
  x[threadIdx.x] /= Real(3);
}
template __global__ void third<double>(double*);
"""
FAULTS = {
    "none": (0, None),
    "spill": (1, r"spills 0 -> \d+"),
    "registers": (2, r"registers \d+ -> 1\d\d"),
    "float64": (3, r"float64 0 -> \d+"),
    "shared memory": (4, "shared 2048 -> 2064"),
    "lost barrier": (5, "barriers 1 -> 0"),
    "lost wide load": (6, "LDG.128 1 -> 0"),
    "lost tensor core": (7, "HMMA 1 -> 0"),
    "local memory": (8, "stack 0 -> 64"),
}


@pytest.mark.skipif(os.environ.get("GATEDRNN_CUDA") == "0", reason="GATEDRNN_CUDA=0: no kernels")
def test_the_built_kernels_keep_to_the_budget():
    """With nvcc at hand the extension has kernels; an extension without any fails too."""
    failures, notes = cuda_budget.check(cuda_budget.EXTENSION)
    assert not failures, "\n".join([*failures, "python -m tests.cuda_budget --update admits to it"])
    print(*notes, sep="\n")
    if any("compared" in note for note in notes):
        pytest.skip("; ".join(notes))


def test_a_build_without_kernels_fails():
    failures, _ = cuda_budget.check(Path(sys.executable))
    assert failures == [f"no kernels in {sys.executable}"]
    with pytest.raises(RuntimeError, match="open"):
        cuda_budget.check(Path("gone.so"))


@pytest.fixture(scope="module")
def binary(tmp_path_factory):
    source = tmp_path_factory.mktemp("planted") / "planted.cu"
    source.write_text(PLANTED + "".join(
        f"template __global__ void kernel<{fault}>(const float4*, float4*, int, int);\n"
        for fault, _ in FAULTS.values()
    ))
    target = source.with_suffix(".o")
    subprocess.run([cuda_budget.nvcc(), "-arch=sm_80", "-c", str(source), "-o", str(target)],
                   check=True)
    return target


@pytest.fixture(scope="module")
def kernels(binary):
    return cuda_budget.disassemble(binary)


@pytest.mark.parametrize(("fault", "told"), FAULTS.values(), ids=FAULTS)
def test_a_planted_fault_is_found(kernels, fault, told):
    changes = cuda_budget.changes({"kernel": kernels[f"kernel<{fault}>"]},
                                  {"kernel": kernels["kernel<0>"]})
    if told is None:
        assert changes == ([], [])
    else:
        pattern = re.compile(rf"kernel: {told} \(sm 80\)")
        assert any(pattern.fullmatch(line) for line in changes[0]), changes


def test_no_budget_admits_local_memory_or_float64(kernels):
    fails = {name for name in kernels for line in cuda_budget.broken_rules({name: kernels[name]})}
    assert fails == {"kernel<1>", "kernel<3>", "kernel<8>"}
    assert not cuda_budget.broken_rules({"persistent": kernels["kernel<8>"]})
    too_much = {"80": kernels["kernel<8>"]["80"] | {"stack": 72}}
    assert cuda_budget.broken_rules({"persistent": too_much})


def test_float64_belongs_into_kernels_of_doubles(kernels):
    assert "float64" not in kernels["third<double>"]["80"]


def kernel(**counts):
    return {"registers": 40, "instructions": 100, "HMMA": 8} | counts


BUDGET = {
    "a": {"80": kernel(), "86": kernel(), "90a": kernel(registers=48)},
    "b": {"90a": kernel()},
}


def but(name, architecture, **counts):
    return BUDGET | {name: BUDGET[name] | {architecture: kernel(**counts)}}


@pytest.mark.parametrize(
    ("now", "worse", "better"),
    [
        (BUDGET, [], []),
        (BUDGET | {"c": {"80": kernel()}}, ["c: is new (sm 80)"], []),
        ({"b": BUDGET["b"], "a": {"80": kernel(), "90a": BUDGET["a"]["90a"]}},
         ["all kernels: not compiled (sm 86)"], []),
        ({"a": BUDGET["a"]}, ["b: is gone (sm 90a)"], []),
        (but("b", "90a", instructions=103), [], []),
        (but("b", "90a", instructions=104), ["b: instructions 100 -> 104 (sm 90a)"], []),
        (but("b", "90a", instructions=90), [], ["b: instructions 100 -> 90 (sm 90a)"]),
        (but("b", "90a", registers=32, HMMA=9), [],
         ["b: registers 40 -> 32 (sm 90a)", "b: HMMA 8 -> 9 (sm 90a)"]),
        ({**BUDGET, "a": dict.fromkeys(["80", "86", "90a"], kernel(registers=48))},
         ["a: registers 40 -> 48 (sm 80 86)"], []),
    ],
)
def test_what_counts_as_worse(now, worse, better):
    assert cuda_budget.changes(now, BUDGET) == (worse, better)


def test_the_file_is_read_as_it_was_written(tmp_path):
    path = tmp_path / "budget.json"
    cuda_budget.write(path, "13.0", BUDGET)
    assert cuda_budget.read(path) == ("13.0", BUDGET)
    assert '  "80 86": {"registers": 40, ' in path.read_text()


def test_an_update_admits_and_another_compiler_counts_anew(binary, tmp_path, monkeypatch):
    path = tmp_path / "budget.json"
    broken = cuda_budget.update(binary, path)
    assert broken and cuda_budget.check(binary, path) == (broken, [])
    file = path.read_text()
    path.write_text(file.replace('"registers": ', '"registers": 1'))
    failures, notes = cuda_budget.check(binary, path)
    assert failures == broken and notes[0].startswith("better: kernel<0>: registers 1")
    file = file.replace('  "80": {', '  "80 90a": {')  # an older compiler knows fewer
    path.write_text(file.replace("kernel<0>", "kernel"))
    monkeypatch.setattr(cuda_budget, "release", lambda: "99.9")
    failures, notes = cuda_budget.check(binary, path)
    assert set(failures) - set(broken) == {"kernel<0>: is new (sm 80)", "kernel: is gone (sm 80)"}
    assert "99.9" in notes[0]


def test_an_update_from_fewer_architectures_is_refused(binary, tmp_path):
    path = tmp_path / "budget.json"
    cuda_budget.write(path, "13.0", BUDGET)
    with pytest.raises(SystemExit, match="not compiled for sm 86 90a"):
        cuda_budget.update(binary, path)


def test_a_build_for_chosen_architectures_is_compared_on_these(binary, tmp_path, monkeypatch):
    path = tmp_path / "budget.json"
    broken = cuda_budget.update(binary, path)
    of, budget = cuda_budget.read(path)
    gone = {name: lines | {"90a": kernel()} for name, lines in budget.items()}
    cuda_budget.write(path, of, gone)
    assert "all kernels: not compiled (sm 90a)" in cuda_budget.check(binary, path)[0]
    monkeypatch.setenv("GATEDRNN_CUDA_ARCHS", "80;61")
    failures, notes = cuda_budget.check(binary, path)
    assert failures == broken and "80;61" in notes[0]
    cuda_budget.write(path, of, gone | {"more": {"80": kernel()}})
    assert "more: is gone (sm 80)" in cuda_budget.check(binary, path)[0]
