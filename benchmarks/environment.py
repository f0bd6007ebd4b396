"""Where and with what a figure was measured."""

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
    """The checkout's commit, with -dirty if files differ from it; empty where there is none."""
    try:
        done = subprocess.run(
            ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--exclude=*"],
            capture_output=True, text=True, check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return ""
    return done.stdout.strip()


def describe(threads: int) -> dict[str, str | int]:
    """What every row carries, by the names of its columns."""
    return {
        "device": device_name(),
        "threads": threads,
        "torch": torch.__version__,
        "gatedrnn": gatedrnn.__version__,
        "commit": commit(),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }
