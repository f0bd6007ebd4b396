"""Seeds torch before each test; makes the raw kernel module importable where it was built."""

import importlib
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import background_builds
import pytest
import torch

KERNELS = Path(__file__).resolve().parent.parent / "build" / "kernels"
if KERNELS.is_dir():
    sys.path.insert(0, str(KERNELS))


def pytest_configure() -> None:
    """Lets torch say what it says once in a process; it would fail whichever test came first."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "LSTM with projections is not supported with oneDNN")
        torch.nn.LSTM(2, 2, proj_size=1)(torch.zeros(1, 1, 2))
        warnings.filterwarnings("ignore", r"`torch\.jit\.script` is deprecated", DeprecationWarning)
        importlib.import_module("torch._decomp.decompositions_for_jvp")  # scripts its functions


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    background_builds.begin(items)


def pytest_sessionfinish() -> None:
    background_builds.stop()


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Networks this small gain nothing from a second thread and lose much where cores are busy."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(2026)
