"""Where and with what a figure was measured."""

import os
import platform
import subprocess
from datetime import datetime, timezone
from pathlib import Path

import torch

import gatedrnn

ROOT = Path(__file__).resolve().parent.parent


def device_name() -> str:
    """The processor's name as the system gives it."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def commit() -> str:
    """The checkout's commit, with -dirty if files differ from it, results of benchmarks apart.

    Where the files came without their repository GATEDRNN_COMMIT may name it; else it is empty.
    """
    def git(*words: str) -> str:
        return subprocess.run(["git", "-C", str(ROOT), *words], capture_output=True, text=True,
                              check=True).stdout.strip()

    try:
        name = git("rev-parse", "--short", "HEAD")
        # A row that is written to a tracked file must not change what the next row says.
        changed = git("status", "--porcelain", "--untracked-files=no", "--", ".",
                      ":!benchmarks/results")
    except (OSError, subprocess.CalledProcessError):
        return os.environ.get("GATEDRNN_COMMIT", "")
    return f"{name}-dirty" if changed else name


def describe(threads: int) -> dict[str, str | int]:
    """What every row carries, by the names of its columns."""
    return {"device": device_name(), "threads": threads, **versions()}


def describe_gpu(l2: str) -> dict[str, str | int]:
    """The same of a GPU; its clocks are those of this moment, so ask when it has worked."""
    properties = torch.cuda.get_device_properties()
    return {
        "device": properties.name,
        "l2": l2,
        **gpu_state(str(getattr(properties, "uuid", ""))),
        "cuda": torch.version.cuda or "",
        "cudnn": str(torch.backends.cudnn.version() or ""),
        **versions(),
    }


def gpu_state(uuid: str) -> dict[str, str | int]:
    """Driver and clocks of the GPU of this uuid by nvidia-smi; empty where there is none."""
    names = {"driver": "driver_version", "sm_mhz": "clocks.sm", "memory_mhz": "clocks.mem"}
    query = f"--query-gpu=uuid,{','.join(names.values())}"
    try:
        done = subprocess.run(["nvidia-smi", query, "--format=csv,noheader,nounits"],
                              capture_output=True, text=True, check=True, timeout=20)
    except (OSError, subprocess.SubprocessError):
        return {}
    gpus = [[word.strip() for word in line.split(",")] for line in done.stdout.splitlines()]
    gpus = [gpu for gpu in gpus if len(gpu) == 1 + len(names)]
    own = [gpu for gpu in gpus if uuid and gpu[0].endswith(uuid)] or gpus
    return dict(zip(names, own[0][1:], strict=True)) if own else {}


def versions() -> dict[str, str | int]:
    return {
        "torch": torch.__version__,
        "gatedrnn": gatedrnn.__version__,
        "commit": commit(),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }
