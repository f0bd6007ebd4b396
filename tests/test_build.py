"""The build: what is in the wheel, what the extension needs from outside, what the compiled kernels
show to the linker, and what is said where something is missing."""

import ctypes
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SETS = ("avx512bf16", "avx512", "avx2", "baseline")
# Symbols that every process has: versioned ones of the C and C++ runtimes, and the weak hooks that
# compilers leave in each shared object.
RUNTIME = re.compile(r"@(GLIBC|GLIBCXX|CXXABI|GCC)_[\d.]+$")
HOOKS = {"_ITM_deregisterTMCloneTable", "_ITM_registerTMCloneTable", "__gmon_start__"}
SHIM = ("aoti_torch_", "torch_")  # torch's C functions, stable from release to release
PYTHON = {  # in the limited API of 3.10
    "PyCapsule_GetPointer", "PyErr_Clear", "PyErr_Format", "PyErr_NoMemory", "PyEval_RestoreThread",
    "PyEval_SaveThread", "PyExc_TypeError", "PyExc_ValueError", "PyLong_AsLong", "PyModule_Create2",
    "PyObject_CallFunctionObjArgs", "PyObject_CallNoArgs", "PyObject_GetAttr",
    "PyObject_GetAttrString", "PyObject_IsTrue", "PyTuple_GetItem", "PyTuple_New",
    "PyTuple_SetItem", "PyTuple_Size", "PyUnicode_InternFromString",
    "_PyObject_CallFunction_SizeT", "_Py_Dealloc", "_Py_FalseStruct", "_Py_NoneStruct",
    "_Py_TrueStruct",
}


def run(arguments, **options):
    return subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True, check=False,
                          **options)


def symbols(path, *flags):
    """(kind, name) of an object's symbols, as nm prints them."""
    nm = run(["nm", *flags, str(path)])
    assert nm.returncode == 0 and nm.stdout, nm.stderr
    lines = [line.split()[-2:] for line in nm.stdout.splitlines()]
    return [(kind, name) for kind, name in lines]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The one wheel that pip builds. The library's folder is new, for setuptools would pack what
    older builds left there; the object files are those of the last build where it is of today."""
    folder = tmp_path_factory.mktemp("wheel")
    config = folder / "setup.cfg"
    config.write_text(f"[build]\nbuild_lib = {folder / 'lib'}\n")
    pip = run([sys.executable, "-m", "pip", "wheel", "--quiet", "--disable-pip-version-check",
               "--no-build-isolation", "--no-deps", "--wheel-dir", str(folder / "out"), "."],
              env={**os.environ, "DIST_EXTRA_CONFIG": str(config)})
    assert pip.returncode == 0, pip.stdout + pip.stderr
    wheels = list((folder / "out").iterdir())
    assert len(wheels) == 1
    return wheels[0]


@pytest.fixture(scope="module")
def extension(wheel, tmp_path_factory):
    with zipfile.ZipFile(wheel) as archive:
        return archive.extract("gatedrnn/_C.abi3.so", tmp_path_factory.mktemp("extension"))


def test_wheel_holds_the_package_and_nothing_else(wheel):
    name, version, *tags = wheel.stem.split("-")
    assert (name, tags[:2]) == ("gatedrnn", ["cp310", "abi3"])
    with zipfile.ZipFile(wheel) as archive:
        names = {entry for entry in archive.namelist() if not entry.endswith("/")}
    metadata = {entry for entry in names if entry.startswith(f"gatedrnn-{version}.dist-info/")}
    modules = {f"gatedrnn/{path.name}" for path in (ROOT / "gatedrnn").glob("*.py")}
    assert "gatedrnn/__init__.py" in modules
    assert names - metadata == modules | {"gatedrnn/py.typed", "gatedrnn/_C.abi3.so"}
    files = {entry.split("/", 1)[1] for entry in metadata}
    assert files >= {"METADATA", "RECORD", "WHEEL", "licenses/LICENSE"}


@pytest.mark.skipif(not shutil.which("nm"), reason="nm is not installed")
def test_extension_needs_only_stable_interfaces(extension):
    """No C++ symbol of torch's, no Python symbol outside the limited API, nothing else unknown."""
    needed = {name for kind, name in symbols(extension, "-D", "--undefined-only")
              if kind != "w" or not name.startswith("cublas")}  # of torch's, where it is for CUDA
    rest = {name for name in needed if not RUNTIME.search(name) and not name.startswith(SHIM)}
    # Where torch's libraries carry a copy of a newer function of the C++ library, nm shows no
    # version; the C++ library itself must have it all the same, for not every torch does.
    library = ctypes.CDLL("libstdc++.so.6")
    assert {name for name in rest - HOOKS if not hasattr(library, name)} <= PYTHON
    assert any(name.startswith("aoti_torch_") for name in needed)


@pytest.mark.skipif(not shutil.which("nm"), reason="nm is not installed")
def test_extension_shows_nothing_of_its_own(extension):
    """Of what the kernels and bindings define only the module's initialization is seen outside."""
    defined = {name for _, name in symbols(extension, "-D", "--defined-only")}
    assert "PyInit__C" in defined
    assert not [name for name in defined if "gatedrnn" in name]


@pytest.mark.skipif(not shutil.which("nm"), reason="nm is not installed")
@pytest.mark.parametrize("name", SETS)
def test_instruction_sets_share_no_function(name, wheel):
    """An object compiled for an instruction set shows its tables alone. Of a weak function the
    linker keeps one copy for all callers; were it this one, other machines would stop at it."""
    objects = [path for path in (ROOT / "build").glob(f"temp*/csrc/cpu/{name}.cpp.o")
               if "sanitized" not in str(path)]
    assert objects, "the wheel was built here just now"
    for path in objects:
        shown = [(kind, symbol) for kind, symbol in symbols(path, "--defined-only")
                 if kind.isupper() or kind in "wvu"]
        ((kind, symbol),) = shown
        assert symbol == f"_ZN8gatedrnn{len(name)}{name}6tablesE", path
        assert kind in "DRB", f"{path}: data, not functions"


def test_missing_torch_is_one_sentence():
    code = ("import runpy, sys; sys.modules['torch'] = None; sys.argv = ['setup.py', '--version'];"
            "runpy.run_path('setup.py', run_name='__main__')")
    setup = run([sys.executable, "-c", code])
    assert setup.returncode == 1
    assert not setup.stdout and setup.stderr.count("\n") == 1
    assert "pip install --no-build-isolation ." in setup.stderr and "torch" in setup.stderr


def test_missing_ninja_is_one_sentence(tmp_path):
    """In a copy, as a build writes its rules before it starts ninja."""
    shutil.copy(ROOT / "setup.py", tmp_path)
    code = ("import runpy, sys; sys.modules['ninja'] = None;"
            "sys.argv = ['setup.py', '-q', 'build_kernels'];"
            f"runpy.run_path({str(tmp_path / 'setup.py')!r}, run_name='__main__')")
    setup = subprocess.run([sys.executable, "-c", code], env={**os.environ, "PATH": ""},
                           cwd=tmp_path, capture_output=True, text=True, check=False)
    assert setup.returncode == 1
    assert setup.stderr.count("\n") == 1 and "pip install ninja" in setup.stderr


def test_unknown_instruction_set_is_refused():
    """A name that this build does not know is never obeyed by something else in silence."""
    code = "import torch, gatedrnn; gatedrnn.GRU(2, 3)(torch.zeros(1, 1, 2))"
    child = run([sys.executable, "-c", code],
                env={**os.environ, "GATEDRNN_CPU_ISA": "nonsense", "PYTHONPATH": str(ROOT)})
    assert child.returncode != 0
    last = child.stderr.strip().splitlines()[-1]
    assert "GATEDRNN_CPU_ISA" in last and all(name in last for name in SETS)
    assert str(ROOT) not in last
