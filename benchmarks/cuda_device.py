"""The GPU on which the benchmark runs: clock, memory, precision switches, measured limits."""

import contextlib
import functools
import gc
from collections.abc import Callable, Iterator
from typing import Any

import torch

from . import environment
from .floor import Machine
from .limits import Bound
from .modules import torch_dtype
from .timing import Contestant

REPEATS = 5  # runs of which the best counts
MIB = 2**20


class Gpu:
    """The current CUDA device. `l2` is warm, or cold: then L2 is overwritten before each call."""

    device = "cuda"

    def __init__(self, l2: str) -> None:
        self.l2 = l2
        properties = torch.cuda.get_device_properties()
        self.name, self._memory = properties.name, properties.total_memory
        size = 2 * (getattr(properties, "L2_cache_size", 0) or 64 * MIB)
        self._evict = torch.empty(size, dtype=torch.int8, device=self.device)
        self.product_rate = functools.cache(self._product_rate)
        self.copy_rate = functools.cache(self._copy_rate)

    def sample(self, contestant: Contestant, calls: int) -> float:
        """Seconds a call between two events of the device. What resets is outside of them."""
        pairs = []
        for _ in range(calls):
            if self.l2 == "cold":
                self._evict.zero_()
            begin, end = self._event(), self._event()
            begin.record()
            contestant.call()
            end.record()
            if contestant.reset:
                contestant.reset()
            pairs.append((begin, end))
        torch.cuda.synchronize()
        return sum(begin.elapsed_time(end) for begin, end in pairs) / 1e3 / calls

    def _event(self) -> Any:
        return torch.cuda.Event(enable_timing=True)

    def peak_mib(self, contestant: Contestant) -> float:
        """What a call allocates at most at one time."""
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        contestant.call()
        torch.cuda.synchronize()
        peak = torch.cuda.max_memory_allocated() - before
        if contestant.reset:
            contestant.reset()
        return peak / MIB

    def clear(self) -> None:
        """Gives unused memory back, so that one case does not leave its fragments to the next."""
        gc.collect()
        torch.cuda.empty_cache()

    def describe(self) -> dict[str, str | int]:
        return environment.describe_gpu(self.l2)

    def _product_rate(self, dtype: str) -> float:
        """Floating-point operations a second of a large matrix product on random numbers."""
        size = 8192 if dtype in ("tf32", "float16", "bfloat16") else 4096
        own = torch_dtype(dtype)
        a, b = (torch.randn(size, size, device=self.device).to(own) for _ in range(2))
        with precision(dtype):
            return 2 * size**3 / self._best(lambda: a @ b)

    def _copy_rate(self) -> float:
        """Bytes a second, read and written, of a copy far larger than L2."""
        size = min(1024 * MIB, self._memory // 16)
        source = torch.ones(size, dtype=torch.int8, device=self.device)
        target = torch.empty_like(source)
        return 2 * size / self._best(lambda: target.copy_(source))

    def _best(self, call: Callable[[], object]) -> float:
        return min(self.sample(Contestant(call), 1) for _ in range(REPEATS))

    def machine(self) -> Machine:
        """What the floor depends on."""
        found = torch.cuda.get_device_properties()
        return Machine(10 * found.major + found.minor, found.multi_processor_count,
                       1e3 * found.clock_rate, self.product_rate, self.copy_rate())

    def bound(self, operations: int, size: int, dtype: str) -> Bound:
        """The least time for so many operations in products and so many bytes, as measured."""
        computing, moving = operations / self.product_rate(dtype), size / self.copy_rate()
        return Bound(max(computing, moving), "products" if computing >= moving else "memory")


@contextlib.contextmanager
def precision(dtype: str) -> Iterator[None]:
    """Lets products of float32 be rounded to TF32 if `dtype` says tf32, in RNNs and in matmul."""
    switches = [torch.backends.cudnn.rnn, torch.backends.cuda.matmul]
    before = [switch.fp32_precision for switch in switches]
    try:
        for switch in switches:
            switch.fp32_precision = "tf32" if dtype == "tf32" else "ieee"
        yield
    finally:
        for switch, value in zip(switches, before, strict=True):
            switch.fp32_precision = value
