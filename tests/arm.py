"""The CPU kernels on 64-bit Arm: cross-compiled, and their tests run by an emulated Python.

    python -m tests.arm [arguments for pytest]

Takes a machine with apt and Debian's packages g++-aarch64-linux-gnu and qemu-user-static. Python,
NumPy and pytest for Arm are fetched once and unpacked in build/arm64/root: they are not installed,
and apt's own state is left alone.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ARM = ROOT / "build" / "arm64"
TOOLS = {"aarch64-linux-gnu-g++": "g++-aarch64-linux-gnu",
         "qemu-aarch64-static": "qemu-user-static", "apt-get": "apt", "dpkg": "dpkg"}
PACKAGES = ("python3-numpy", "python3-pytest", "libpython3-dev", "libgomp1", "libstdc++6")
# What runs without torch: gates, layers, cells' steps, products and plans, on the raw kernels.
TESTS = ("test_kernel_gates.py", "test_kernel_layers.py", "test_kernel_products.py",
         "test_kernel_storage.py", "test_plan.py")


def fetch(root: Path) -> None:
    """Unpacks the packages and all that they depend on; `root` is there only when it is whole."""
    state = ARM / "apt"
    for folder in ("lists/partial", "archives/partial"):
        (state / folder).mkdir(parents=True, exist_ok=True)
    (state / "status").touch()  # nothing is installed
    settings = {"APT::Architecture": "arm64", "APT::Architectures::": "arm64",
                "APT::Sandbox::User": "", "Dir::State": state, "Dir::Cache": state,
                "Dir::State::status": state / "status"}
    apt = ["apt-get", "-qq", *(f"-o{name}={value}" for name, value in settings.items())]
    subprocess.run([*apt, "update"], check=True)
    subprocess.run([*apt, "install", "--yes", "--download-only", "--no-install-recommends",
                    *PACKAGES], check=True)
    unpacked = root.with_suffix(".partial")
    for package in sorted(state.glob("archives/*.deb")):
        subprocess.run(["dpkg", "--extract", package, unpacked], check=True)
    unpacked.rename(root)
    shutil.rmtree(state)


def emulate(root: Path, *arguments: str) -> int:
    """Runs the Python of `root`; answers its exit status."""
    libraries = Path("/usr/lib/aarch64-linux-gnu")
    # Two of NumPy's libraries lie in folders from which an installation would link them.
    paths = {"LD_LIBRARY_PATH": f"{libraries / 'blas'}:{libraries / 'lapack'}",
             "PYTHONPATH": str(ARM / "kernels")}
    command = ["qemu-aarch64-static", "-L", str(root)]
    for name, value in paths.items():
        command += ["-E", f"{name}={value}"]
    return subprocess.run([*command, str(root / "usr/bin/python3"), *arguments], cwd=ROOT,
                          check=False).returncode


def main(arguments: list[str]) -> None:
    missing = [package for tool, package in TOOLS.items() if not shutil.which(tool)]
    if missing:
        sys.exit(f"tests.arm needs Debian's packages {', '.join(missing)}")
    root = ARM / "root"
    if not root.is_dir():
        fetch(root)
    subprocess.run([sys.executable, "setup.py", "-q", "build_arm"], cwd=ROOT, check=True,
                   env={**os.environ, "GATEDRNN_WERROR": "1"})
    # conftest.py is for torch, the cache for the tests of this machine.
    sys.exit(emulate(root, "-m", "pytest", "--noconftest", "-p", "no:cacheprovider",
                     *(f"tests/{name}" for name in TESTS), "-q", "-k", "not avx", *arguments))


if __name__ == "__main__":
    main(sys.argv[1:])
