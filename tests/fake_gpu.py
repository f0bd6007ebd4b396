"""A CPU that plays a GPU, for the tests of the benchmark on one."""

import csv

import torch

from benchmarks import cuda_device, run, timing
from benchmarks.floor import Machine

TINY = "3,4,5,6,2"
ABOUT = {"device": "Fake GPU 9000", "driver": "1.2", "sm_mhz": "1980", "memory_mhz": "3201",
         "cuda": "13.0", "cudnn": "91900", "torch": "2", "gatedrnn": "0", "commit": "abc",
         "date": "2026-11-23T00:00:00"}


class FakeGpu(cuda_device.Gpu):
    device = "cpu"

    def __init__(self, l2):
        self.l2, self.name = l2, ABOUT["device"]

    def sample(self, contestant, calls):
        return timing.by_wall_clock(contestant, calls)

    def peak_mib(self, contestant):
        timing.by_wall_clock(contestant, 1)
        return 7.5

    def describe(self):
        return ABOUT | {"l2": self.l2}

    def product_rate(self, dtype):
        return 100e12

    def copy_rate(self):
        return 4e12

    def machine(self):
        return Machine(90, 132, 1.98e9, self.product_rate, self.copy_rate())


def install(monkeypatch, tmp_path):
    """benchmarks.run finds this GPU, and writes below tmp_path; returns where its rows go."""
    monkeypatch.setattr(timing, "WARM_UP", 1e-3)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    monkeypatch.setattr(run, "Gpu", FakeGpu)
    monkeypatch.setenv("RESULTS", str(tmp_path / "results"))
    return tmp_path / "results" / "fake-gpu-9000.csv"


def bench(*arguments, shape=TINY):
    own = ["--device", "cuda", "--quick", "--seconds", "0.001", "--shape", shape]
    return run.main([*own, *arguments])


def read(path):
    with path.open(newline="") as lines:
        return list(csv.DictReader(lines))
