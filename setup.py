"""Builds gatedrnn._C, one abi3 module on the LibTorch stable ABI; the rest is in pyproject.toml.

    pip install --no-build-isolation .   the package (-e . for an editable one)
    python setup.py build_kernels        build/kernels/gatedrnn_kernels: the raw kernels of the CPU
                                         on NumPy arrays, for kernel tests and microbenchmarks
    python setup.py build_emulated       build/emulated: the CUDA path, its kernels emulated on the
                                         CPU: as ops on CPU tensors, and on NumPy arrays
    python setup.py build_arm            build/arm64: the CPU path, cross-compiled for 64-bit Arm;
                                         `make arm` runs its tests

CUDA kernels are built where nvcc is found; they serve CUDA builds of torch, and the same binary
serves the others. Environment: GATEDRNN_CUDA=0 does without, =1 insists; CUDA_HOME;
GATEDRNN_CUDA_ARCHS="80;90a" names other architectures than the default ones; CXX; GATEDRNN_WERROR=1
makes warnings errors; GATEDRNN_SANITIZE=1 is for AddressSanitizer and UBSan in the modules for
NumPy, =thread for ThreadSanitizer; GATEDRNN_CHAOS=1 lets persistent CUDA kernels wait at random.
"""

import os
import platform
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Command, Extension, setup
from setuptools.command.build_ext import build_ext

try:
    import torch
except ModuleNotFoundError:
    sys.exit(
        "gatedrnn compiles against the torch you already have: install torch (2.10 or newer), "
        "setuptools (77 or newer) and ninja, then type `pip install --no-build-isolation .`"
    )

ROOT = Path(__file__).resolve().parent
TORCH = Path(torch.__file__).parent
STABLE_ABI = "0x020a000000000000"  # torch 2.10
LIMITED_API = "0x030a0000"  # Python 3.10
SUFFIX = sysconfig.get_config_var("EXT_SUFFIX")
CXX = os.environ.get("CXX") or shutil.which("g++") or "c++"
ARM_CXX = "aarch64-linux-gnu-g++"
ARM_ROOT = ROOT / "build" / "arm64" / "root"  # where tests/arm.py unpacks a Python for Arm
ARCHITECTURES = ("75", "80", "86", "89", "90a", "100", "120")
CXX_FLAGS = ["-std=c++20", "-O3", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra"]
NVCC_FLAGS = ["-std=c++20", "-O3", "--expt-relaxed-constexpr", f"-ccbin {CXX}"]
NVCC_FLAGS += ["-Xcompiler -fPIC,-fvisibility=hidden"]
if os.environ.get("GATEDRNN_WERROR") == "1":  # ours, not for users: a new compiler has new warnings
    CXX_FLAGS.append("-Werror")
    NVCC_FLAGS += ["-Werror all-warnings", "-Xptxas --warn-on-spills,--warning-as-error"]

CHAOS = os.environ.get("GATEDRNN_CHAOS") == "1"  # csrc/cuda/chaos.h
if CHAOS:
    NVCC_FLAGS.append("-DGATEDRNN_CHAOS")

# One body for every instruction set: only its flags and vector width differ. GCC's note that the
# passing of wide vectors depends on the flags concerns calls across files, of which there are none.
# The scheduling before registers are allocated, which GCC does on Arm and not on x86, would load
# all factors of a tile at once and so drive its accumulators out of the registers.
ISA_FLAGS = ["-Wno-psabi", "-fno-schedule-insns", "-Icsrc"]
AVX512_FLAGS = ["-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mfma"]
X86_FLAGS = {
    "csrc/cpu/avx512bf16.cpp": [*AVX512_FLAGS, "-mavx512bf16"],
    "csrc/cpu/avx512.cpp": AVX512_FLAGS,
    "csrc/cpu/avx2.cpp": ["-mavx2", "-mfma", "-mf16c"],
}
Objects = dict[str, list[str]]  # source: its own flags
PORTABLE: Objects = {
    "csrc/plan.cpp": [],
    "csrc/measured.cpp": [],
    "csrc/cpu/layer.cpp": [],
    "csrc/cpu/layer_backward.cpp": [],
    "csrc/cpu/step.cpp": [],
    "csrc/cpu/dispatch.cpp": [],
    "csrc/cpu/baseline.cpp": ISA_FLAGS,
}
KERNELS = PORTABLE.copy()
if platform.machine() in ("x86_64", "AMD64"):
    KERNELS |= {source: flags + ISA_FLAGS for source, flags in X86_FLAGS.items()}
# Torch's headers are not ours to warn about, hence -isystem.
TORCH_FLAGS = [
    f"-isystem {TORCH / 'include'}",
    f"-DTORCH_TARGET_VERSION={STABLE_ABI}",
    "-DTORCH_STABLE_ONLY",
]
# By GATEDRNN_SANITIZE: what the folder's name ends in, and flags.
SANITIZERS = {
    "": ("", []),
    "1": ("_sanitized",
          ["-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-g1", "-O1"]),
    "thread": ("_thread", ["-fsanitize=thread", "-g1", "-O1"]),
}
TORCH_BINDINGS = ("library", "blocks", "built", "layer_forward", "layer_backward", "cell", "stream")
TORCH_LINK = [f"-L{TORCH / 'lib'}", "-ltorch_cpu", "-lc10"]


def found(pattern: str, flags: list[str]) -> Objects:
    return {str(p.relative_to(ROOT)): flags for p in sorted(ROOT.glob(pattern))}


def nvcc() -> str | None:
    """The compiler of CUDA, if its kernels are to be built."""
    wanted, home = os.environ.get("GATEDRNN_CUDA", "auto"), os.environ.get("CUDA_HOME")
    if wanted == "0":
        return None
    found = shutil.which("nvcc", path=f"{home}/bin" if home else None)
    if not found and wanted == "1":
        sys.exit("GATEDRNN_CUDA=1, but there is no nvcc on PATH, nor under CUDA_HOME")
    return found


def architectures(cuda: str) -> list[str]:
    """What to compile for: as asked, or else all of ours that this nvcc knows."""
    asked = os.environ.get("GATEDRNN_CUDA_ARCHS")
    if asked:
        return asked.split(";")
    known = subprocess.check_output([cuda, "--list-gpu-code"], text=True).split()
    return [a for a in ARCHITECTURES if f"sm_{a.rstrip('a')}" in known]


def ninja() -> str:
    try:
        from ninja import BIN_DIR
    except ModuleNotFoundError:
        found = shutil.which("ninja")
        if not found:
            sys.exit("gatedrnn is built with ninja: type `pip install ninja` and try again")
        return found
    return str(Path(BIN_DIR) / "ninja")


def build(
    targets: dict[Path, tuple[Objects, list[str]]],
    folder: Path,
    cuda: str | None = None,
    cxx: str = CXX,
) -> None:
    """Compile every source with its own flags, several at once, and link them into the targets.

    A target comes with its objects and the linker's flags. Sources that end in .cu are compiled by
    `cuda`, or as C++ if it is None.
    """
    folder.mkdir(parents=True, exist_ok=True)
    compilers = {".cpp": " ".join([cxx, *CXX_FLAGS])}
    compilers[".cu"] = " ".join([cuda, *NVCC_FLAGS]) if cuda else compilers[".cpp"] + " -x c++"
    linker = f"{cuda} -ccbin {cxx}" if cuda else cxx  # nvcc knows where its runtime library is
    rules = [
        f"builddir = {_escape(folder)}",
        "rule compile",
        "  command = $compiler $flags -MMD -MF $out.d -c $in -o $out",
        "  depfile = $out.d",
        "  deps = gcc",
        "rule link",
        f"  command = {linker} -shared $in $flags -o $out",
    ]
    every = {source: flags for objects, _ in targets.values() for source, flags in objects.items()}
    for source, flags in every.items():
        rules += [
            f"build {_escape(folder / source)}.o: compile {_escape(ROOT / source)}",
            f"  compiler = {compilers[Path(source).suffix]}",
            f"  flags = {' '.join(flags)}",
        ]
    for target, (objects, link) in targets.items():
        target.parent.mkdir(parents=True, exist_ok=True)
        names = [f"{_escape(folder / source)}.o" for source in objects]
        rules += [f"build {_escape(target)}: link {' '.join(names)}", f"  flags = {' '.join(link)}"]
    file = folder / "build.ninja"
    file.write_text("\n".join(rules) + "\n")
    subprocess.run([ninja(), "--quiet", "-f", str(file)], cwd=ROOT, check=True)


def _escape(path: Path) -> str:
    return str(path).replace("$", "$$").replace(":", "$:").replace(" ", "$ ")


class BuildExtension(build_ext):
    def build_extension(self, ext: Extension) -> None:
        python = [f"-isystem {sysconfig.get_path('include')}", f"-DPy_LIMITED_API={LIMITED_API}"]
        objects = KERNELS | torch_bindings() | {"csrc/bindings/python.cpp": TORCH_FLAGS + python}
        link, cuda, summary = TORCH_LINK, nvcc(), "only"
        if cuda:
            numbers = architectures(cuda)
            codes = [f"-gencode arch=compute_{a},code=sm_{a}" for a in numbers]
            # PTX of the last one is for GPUs to come, which PTX of an "a" would not serve.
            last = numbers[-1].rstrip("a")
            codes.append(f"-gencode arch=compute_{last},code=compute_{last}")
            told = ";".join(numbers) + (" with delays" if CHAOS else "")
            flags = [*TORCH_FLAGS, f"-DGATEDRNN_CUDA='\"{told}\"'"]
            objects |= found("csrc/cuda/*.cu", codes)
            objects |= found("csrc/bindings/cuda/*.cpp", flags)
            objects["csrc/bindings/built.cpp"] = flags
            # Nothing is called in libtorch, but it brings in what a CUDA build of torch has.
            link = ["-Xlinker --no-as-needed,--exclude-libs,ALL", *link, "-ltorch"]
            summary = f"and CUDA for {';'.join(numbers)} ({cuda})"
        print("gatedrnn: CPU kernels", summary)
        target = Path(self.get_ext_fullpath(ext.name)).resolve()
        build({target: (objects, link)}, Path(self.build_temp).resolve(), cuda)


class BuildModule(Command):
    user_options: list[tuple[str, str | None, str]] = []  # noqa: RUF012 (setuptools asks for a list)

    def initialize_options(self) -> None: ...
    def finalize_options(self) -> None: ...


class BuildKernels(BuildModule):
    description = "build the raw kernels as a NumPy module, for tests and microbenchmarks"

    def run(self) -> None:
        name, sanitize = SANITIZERS[os.environ.get("GATEDRNN_SANITIZE", "")]
        objects = KERNELS | {"csrc/bindings/numpy.cpp": [*pybind11_flags(), "-fopenmp"]}
        objects = {source: flags + sanitize for source, flags in objects.items()}
        target = ROOT / "build" / f"kernels{name}" / f"gatedrnn_kernels{SUFFIX}"
        build({target: (objects, ["-fopenmp", *sanitize])}, ROOT / "build" / f"temp_kernels{name}")


class BuildEmulated(BuildModule):
    description = "build the CUDA path over an emulator: torch's ops on CPU tensors, and for NumPy"

    def run(self) -> None:
        name, sanitize = SANITIZERS[os.environ.get("GATEDRNN_SANITIZE", "")]
        flags = ["-O2", "-DGATEDRNN_EMULATE", "-Itests/cuda_emulator", "-Wno-unknown-pragmas"]
        kernels = {"csrc/plan.cpp": [], "csrc/measured.cpp": [], **found("csrc/cuda/*.cu", flags)}
        emulator = {"tests/cuda_emulator/cuda_emulator.cpp": flags}
        numpy = found("csrc/bindings/numpy_cuda.cpp", flags + pybind11_flags())
        objects = {source: flags + sanitize for source, flags in (kernels | numpy).items()}
        # Where threads stand in for fibers, what keeps them in step is not to be looked at.
        ours = ["-DGATEDRNN_EMULATOR_TSAN"] if name == "_thread" else sanitize
        objects |= {source: flags + ours for source, flags in emulator.items()}
        folder = ROOT / "build" / f"emulated{name}"
        targets = {}
        if numpy:
            targets[folder / f"gatedrnn_cuda_kernels{SUFFIX}"] = objects, sanitize
        if not sanitize:
            torch_flags = [*TORCH_FLAGS, *flags, "-DGATEDRNN_CUDA='\"emulated\"'"]
            bindings = found("csrc/bindings/cuda/*.cpp", torch_flags)
            doubles = ("cublas_double", "gemm_op")
            bindings |= {f"tests/cuda_emulator/{file}.cpp": torch_flags for file in doubles}
            bindings |= {"csrc/bindings/library.cpp": torch_flags}
            objects = kernels | emulator | bindings
            targets[folder / "gatedrnn_emulated.so"] = objects, TORCH_LINK
        build(targets, ROOT / "build" / f"temp_emulated{name}")


class BuildArm(BuildModule):
    description = "cross-compile the CPU path for 64-bit Arm"

    def run(self) -> None:
        folder = ROOT / "build" / "arm64"
        # Without libtorch, whose symbols stay open: it shows that all compiles and fits together.
        targets = {folder / "gatedrnn_torch.so": (PORTABLE | torch_bindings(), [])}
        for python in ARM_ROOT.glob("usr/include/python3.*"):
            # pyconfig.h of this architecture is found from the root's folder of headers, the C
            # library's stay the compiler's.
            flags = [*pybind11_flags(python), f"-idirafter {ARM_ROOT / 'usr/include'}", "-fopenmp"]
            module = PORTABLE | {"csrc/bindings/numpy.cpp": flags}
            targets[folder / "kernels" / "gatedrnn_kernels.so"] = (module, ["-fopenmp"])
        build(targets, ROOT / "build" / "temp_arm64", cxx=ARM_CXX)


def torch_bindings() -> Objects:
    return {f"csrc/bindings/{name}.cpp": TORCH_FLAGS for name in TORCH_BINDINGS}


def pybind11_flags(python: Path | None = None) -> list[str]:
    import pybind11

    headers = python or sysconfig.get_path("include")
    return [f"-isystem {pybind11.get_include()}", f"-isystem {headers}"]


setup(
    ext_modules=[Extension("gatedrnn._C", ["csrc/bindings/python.cpp"], py_limited_api=True)],
    cmdclass={
        "build_ext": BuildExtension,
        "build_kernels": BuildKernels,
        "build_emulated": BuildEmulated,
        "build_arm": BuildArm,
    },
    options={"bdist_wheel": {"py_limited_api": "cp310"}},
)
