"""The CPU path cross-compiled for 64-bit Arm: that it compiles and links, and what its inner loops
are made of. `make arm` runs the kernels' tests there, emulated (arm.py)."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import background_builds
import pytest

ROOT = Path(__file__).resolve().parent.parent
PREFIX = "aarch64-linux-gnu-"
NEEDED = re.compile(r"(aoti_torch_|torch_)\w+|\w+@(GLIBC|GLIBCXX|CXXABI|GCC)_[\d.]+")
LARGEST_TILE = 24  # accumulators of a full tile: 8 sequences of 3 gates, or 6 of 4
pytestmark = pytest.mark.skipif(not shutil.which(f"{PREFIX}g++"),
                                reason="no cross-compiler for Arm: Debian's g++-aarch64-linux-gnu")


def output(*command):
    done = subprocess.run([*map(str, command)], cwd=ROOT, capture_output=True, text=True,
                          check=False, env={**os.environ, "GATEDRNN_WERROR": "1"})
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module", autouse=True)
def _built():
    background_builds.wait("arm")


@pytest.fixture(scope="module")
def functions():
    """The instructions of each function of the kernels: (address, mnemonic, operands)."""
    text = output(f"{PREFIX}objdump", "--disassemble", "--demangle", "--no-show-raw-insn",
                  ROOT / "build" / "temp_arm64" / "csrc" / "cpu" / "baseline.cpp.o")
    found, body = {}, []
    for line in text.splitlines():
        if head := re.fullmatch(r"\w+ <(.+)>:", line):
            body = found[head[1]] = []
        elif row := re.fullmatch(r"\s*(\w+):\t(\S+)\s*(.*)", line):
            body.append((int(row[1], 16), row[2], row[3]))
    return found


def inner_loops(body):
    """What stands between a branch back and its target, with no other such branch in between."""
    last = -1
    for address, mnemonic, operands in body:
        target = re.match(r"(\w+) <", operands) if mnemonic.startswith("b.") else None
        if not target or int(target[1], 16) > address:
            continue
        first = int(target[1], 16)
        if first > last:
            yield [row for row in body if first <= row[0] < address]
        last = address


def test_bindings_need_only_torchs_stable_interface():
    listed = output(f"{PREFIX}nm", "-D", "--undefined-only", "--format=just-symbols",
                    ROOT / "build" / "arm64" / "gatedrnn_torch.so").split()
    assert any(name.startswith("torch_") for name in listed)
    hooks = {"_ITM_deregisterTMCloneTable", "_ITM_registerTMCloneTable", "__gmon_start__"}
    assert [name for name in listed if not NEEDED.fullmatch(name) and name not in hooks] == []


def test_tiles_stay_in_registers(functions):
    """In a product's loop, which multiplies vectors by a lane, every product is fused with its
    addition, and no accumulator is kept on the stack."""
    largest = []
    for name, body in functions.items():
        for loop in inner_loops(body):
            fused = sum(row[1] == "fmla" and row[2].endswith("]") for row in loop)
            if fused < LARGEST_TILE // 2:
                continue
            others = [row for row in loop if row[1] in ("fmul", "fadd") or "[sp" in row[2]]
            assert not others, (name, others)
            if fused == LARGEST_TILE:
                largest.append(name)
    assert len(largest) >= 4, f"two shapes in float32 and in float64, but: {largest}"


def test_transposition_exchanges_registers(functions):
    """Not lane by lane: a shuffle whose lanes the compiler learns too late is taken to pieces."""
    bodies = [body for name, body in functions.items() if "pack_rows<float, float>" in name]
    assert bodies
    for body in bodies:
        mnemonics = {mnemonic for _, mnemonic, _ in body}
        assert {"zip1", "zip2", "trn1", "trn2"} <= mnemonics
        assert not {"ins", "tbl"} & mnemonics
