"""python -m gatedrnn: a report of versions and hardware, fit for a bug report."""

import platform
import sys

import torch

from . import __version__, raw


def _processor() -> str:
    try:
        with open("/proc/cpuinfo") as file:
            for line in file:
                if line.startswith("model name"):
                    return line.split(":", 1)[1].strip()
    except OSError:
        pass  # not Linux
    return platform.processor() or platform.machine()


def report() -> str:
    """The report's text: one fact a line."""
    built = raw.cuda_architectures()
    facts = {
        "gatedrnn": __version__,
        "torch": torch.__version__,
        "Python": sys.version.split()[0],
        "system": platform.platform(),
        "processor": f"{_processor()} ({platform.machine()})",
        "instruction set in use": f"{raw.instruction_set()} (GATEDRNN_CPU_ISA forces another)",
        "threads": f"{torch.get_num_threads()} (torch.set_num_threads)",
        "CUDA kernels": f"for architectures {built}" if built else "not built (they need nvcc)",
        "CUDA of torch": torch.version.cuda or "none",
        "module": raw.extension_file(),
    }
    width = max(map(len, facts))
    return "\n".join(f"{name:{width}}  {fact}" for name, fact in facts.items())


if __name__ == "__main__":
    print(report())
