"""Builds gatedrnn._C, one abi3 module on the LibTorch stable ABI; the rest is in pyproject.toml.

    pip install --no-build-isolation .   the package (-e . for an editable one)
    python setup.py build_kernels        build/kernels/gatedrnn_kernels: the raw kernels on NumPy
                                         arrays, for the kernel tests and microbenchmarks

Environment: CXX; GATEDRNN_WERROR=1 makes warnings errors; GATEDRNN_SANITIZE=1 is for
AddressSanitizer and UBSan in build_kernels.
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
CXX = os.environ.get("CXX") or shutil.which("g++") or "c++"
COMMON = ["-std=c++20", "-O3", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra"]
if os.environ.get("GATEDRNN_WERROR") == "1":  # ours, not for users: a new compiler has new warnings
    COMMON.append("-Werror")
# One body for every instruction set: only its flags and vector width differ. GCC's note that the
# passing of wide vectors depends on the flags concerns calls across files, of which there are none.
ISA_FLAGS = ["-Wno-psabi", "-Icsrc"]
TORCH_BINDINGS = ("library", "layer_forward", "layer_backward", "cell")
X86_FLAGS = {
    "csrc/cpu/avx512.cpp": ["-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mfma"],
    "csrc/cpu/avx2.cpp": ["-mavx2", "-mfma"],
}
KERNELS: dict[str, list[str]] = {
    "csrc/plan.cpp": [],
    "csrc/cpu/layer.cpp": [],
    "csrc/cpu/dispatch.cpp": [],
    "csrc/cpu/baseline.cpp": ISA_FLAGS,
}
if platform.machine() in ("x86_64", "AMD64"):
    KERNELS |= {source: flags + ISA_FLAGS for source, flags in X86_FLAGS.items()}


def ninja() -> str:
    try:
        from ninja import BIN_DIR
    except ModuleNotFoundError:
        found = shutil.which("ninja")
        if not found:
            sys.exit("gatedrnn is built with ninja: type `pip install ninja` and try again")
        return found
    return str(Path(BIN_DIR) / "ninja")


def build(objects: dict[str, list[str]], link: list[str], folder: Path, target: Path) -> None:
    """Compile every source with its own flags, several at once, and link them into `target`."""
    folder.mkdir(parents=True, exist_ok=True)
    target.parent.mkdir(parents=True, exist_ok=True)
    rules = [
        f"builddir = {_escape(folder)}",
        "rule compile",
        f"  command = {CXX} $flags -MMD -MF $out.d -c $in -o $out",
        "  depfile = $out.d",
        "  deps = gcc",
        "rule link",
        f"  command = {CXX} -shared $in $flags -o $out",
    ]
    names = []
    for source, flags in objects.items():
        name = (folder / Path(source).name).with_suffix(".o")
        names.append(_escape(name))
        rules += [f"build {names[-1]}: compile {_escape(ROOT / source)}"]
        rules += [f"  flags = {' '.join(COMMON if source.endswith('.cpp') else ['-fPIC'])} "
                  + " ".join(flags)]
    rules += [f"build {_escape(target)}: link {' '.join(names)}", f"  flags = {' '.join(link)}"]
    file = folder / "build.ninja"
    file.write_text("\n".join(rules) + "\n")
    subprocess.run([ninja(), "--quiet", "-f", str(file)], cwd=ROOT, check=True)


def _escape(path: Path) -> str:
    return str(path).replace("$", "$$").replace(":", "$:").replace(" ", "$ ")


class BuildExtension(build_ext):
    def build_extension(self, ext: Extension) -> None:
        # Torch's headers are not ours to warn about, hence -isystem.
        glue = [
            f"-isystem {TORCH / 'include'}",
            f"-DTORCH_TARGET_VERSION={STABLE_ABI}",
            "-DTORCH_STABLE_ONLY",
        ]
        python = [f"-I{sysconfig.get_path('include')}", f"-DPy_LIMITED_API={LIMITED_API}"]
        objects = KERNELS | {
            **{f"csrc/bindings/{name}.cpp": glue for name in TORCH_BINDINGS},
            "csrc/module.c": python,
        }
        link = [f"-L{TORCH / 'lib'}", "-ltorch_cpu", "-lc10"]
        target = Path(self.get_ext_fullpath(ext.name)).resolve()
        build(objects, link, Path(self.build_temp).resolve(), target)


class BuildKernels(Command):
    description = "build the raw kernels as a NumPy module, for tests and microbenchmarks"
    user_options: list[tuple[str, str | None, str]] = []  # noqa: RUF012 (setuptools asks for a list)

    def initialize_options(self) -> None: ...
    def finalize_options(self) -> None: ...

    def run(self) -> None:
        import pybind11

        suffix = sysconfig.get_config_var("EXT_SUFFIX")
        include = [
            f"-isystem {pybind11.get_include()}",
            f"-isystem {sysconfig.get_path('include')}",
            "-fopenmp",
        ]
        objects = KERNELS | {"csrc/bindings/numpy.cpp": include}
        link, folder = ["-fopenmp"], "kernels"
        if os.environ.get("GATEDRNN_SANITIZE") == "1":
            sanitize = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-g", "-O1"]
            objects = {source: flags + sanitize for source, flags in objects.items()}
            link, folder = link + sanitize, "kernels_sanitized"
        target = ROOT / "build" / folder / f"gatedrnn_kernels{suffix}"
        build(objects, link, ROOT / "build" / f"temp_{folder}", target)


setup(
    ext_modules=[Extension("gatedrnn._C", ["csrc/module.c"], py_limited_api=True)],
    cmdclass={"build_ext": BuildExtension, "build_kernels": BuildKernels},
    options={"bdist_wheel": {"py_limited_api": "cp310"}},
)
