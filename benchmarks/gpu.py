"""All that needs a GPU, in under nine minutes and without a network: what `make gpu` runs.

    python -m benchmarks.gpu             these steps, results in benchmarks/results or in RESULTS
    python -m benchmarks.gpu tests       only some of the steps
    python -m benchmarks.gpu install experiments baseline chaos
                                         what a new kind of GPU is asked before kernels are tuned
    python -m benchmarks.gpu install grid plan
                                         steps that take longer, and are run when they are named

It takes what was built elsewhere: the newest wheel in dist/ (`make wheel`), and what `make
conformance experiments chaos` leaves in build/. A step that fails or runs out of time does not keep
the later ones from running; the exit code is then 1. What the steps print is kept in gpu.log beside
the results.
"""

import argparse
import importlib.util
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TextIO

ROOT = Path(__file__).resolve().parent.parent
SITE = ROOT / "build" / "gpu"
CONFORMANCE = ROOT / "build" / "conformance"
EXPERIMENTS = ROOT / "build" / "experiments"
CHAOS = ROOT / "build" / "chaos"
TESTS = ("test_cuda.py", "test_cuda_runtime.py", "test_cuda_modules.py")
EXPERIMENT_STEPS = "20000"
WHOLE = 510.0  # seconds for all usual steps together
GRACE = 15.0  # seconds in which an interrupted step can still write what it has


class Missing(Exception):
    """What a step needs and how to get it."""


def install() -> list[str]:
    wheels = sorted((ROOT / "dist").glob("gatedrnn-*.whl"), key=lambda w: w.stat().st_mtime)
    if not wheels:
        raise Missing("there is no wheel in dist/: type `make wheel` where nvcc is")
    shutil.rmtree(SITE, ignore_errors=True)
    return [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check",
            "--no-index", "--no-deps", "--no-build-isolation", "--target", str(SITE),
            str(wheels[-1])]


def program(path: Path) -> list[str]:
    if not path.is_file():
        raise Missing(f"there is no build/{path.name}: type `make {path.name}` where nvcc is")
    path.chmod(0o755)  # a copy may have lost it
    return [str(path)]


def conformance() -> list[str]:
    return program(CONFORMANCE)


def experiments() -> list[str]:
    return [*program(EXPERIMENTS), EXPERIMENT_STEPS, str(results() / "experiments.csv")]


def chaos() -> list[str]:
    if not CHAOS.is_dir():
        raise Missing("there is no build/chaos: type `make chaos` where nvcc is")
    return [sys.executable, "-m", "benchmarks.chaos"]


def pytest(chosen: str) -> list[str]:
    if importlib.util.find_spec("pytest") is None:
        raise Missing(f"{sys.executable} has no pytest: pip install pytest")
    return [sys.executable, "-m", "pytest", "-q", "--tb=short", "--rootdir", str(ROOT), "-c",
            str(ROOT / "pyproject.toml"), "-p", "no:cacheprovider", "-k", chosen,
            *(str(ROOT / "tests" / name) for name in TESTS)]


def benchmark(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "benchmarks.run", "--device", "cuda", *arguments]


@dataclass(frozen=True)
class Step:
    command: Callable[[], list[str]]
    seconds: float
    usual: bool = True


STEPS = {
    "install": Step(install, 40),
    "conformance": Step(conformance, 30),
    "experiments": Step(experiments, 40),
    "tests": Step(lambda: pytest("not sanitizer"), 180),
    "sanitizer": Step(lambda: pytest("sanitizer"), 100),
    "benchmark": Step(benchmark, 200),
    "special": Step(lambda: benchmark("--suite", "special", "--quick"), 60),
    "baseline": Step(lambda: benchmark("--suite", "baseline", "--quick"), 500, usual=False),
    "chaos": Step(chaos, 500, usual=False),
    "plan": Step(lambda: benchmark("--suite", "plan", "--quick"), 3600, usual=False),
    "grid": Step(lambda: benchmark("--suite", "grid", "--quick"), 7200, usual=False),
}


def results() -> Path:
    return Path(os.environ.get("RESULTS") or ROOT / "benchmarks" / "results").resolve()


def environment() -> dict[str, str]:
    """The steps run in SITE, so that the installed package is found and not the checkout's."""
    path = os.pathsep.join(filter(None, [str(SITE), str(ROOT), os.environ.get("PYTHONPATH")]))
    return os.environ | {"PYTHONPATH": path, "PYTHONUNBUFFERED": "1", "RESULTS": str(results())}


def run(command: list[str], seconds: float, log: TextIO) -> str:
    """Runs a command, printed and kept in `log`; returns what became of it, "ok" or why not."""
    SITE.mkdir(parents=True, exist_ok=True)
    end, signals = time.monotonic() + seconds, [signal.SIGKILL, signal.SIGINT]
    with subprocess.Popen(command, cwd=SITE, env=environment(), stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, start_new_session=True,
                          preexec_fn=_heed_interrupts) as process:
        os.set_blocking(process.stdout.fileno(), False)
        while process.poll() is None:
            _forward(process.stdout, log)
            if time.monotonic() > end and signals:
                # First an interrupt: a benchmark then writes its summary.
                _signal(process, signals.pop())
                end = time.monotonic() + GRACE
            time.sleep(0.05)
        _forward(process.stdout, log)
    if len(signals) < 2:
        return f"stopped after {seconds:.0f} s"
    return "ok" if process.returncode == 0 else f"failed with exit code {process.returncode}"


def _heed_interrupts() -> None:
    """A shell's background jobs ignore them, and so would what they start."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def _forward(source: IO[bytes], log: TextIO) -> None:
    words = (source.read() or b"").decode(errors="replace")
    print(words, end="", flush=True)
    log.write(words)
    log.flush()


def _signal(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    try:
        os.killpg(process.pid, number)
    except ProcessLookupError:
        pass  # it ended meanwhile


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    usual = [name for name, step in STEPS.items() if step.usual]
    parser.add_argument("steps", nargs="*", metavar="STEP", default=usual,
                        help=f"of {', '.join(STEPS)} (default: {', '.join(usual)})")
    chosen = parser.parse_args(argv).steps
    if unknown := [name for name in chosen if name not in STEPS]:
        parser.error(f"there is no step {unknown[0]}; the steps are {', '.join(STEPS)}")
    results().mkdir(parents=True, exist_ok=True)
    begin, outcomes = time.monotonic(), {}
    with (results() / "gpu.log").open("w", encoding="utf-8") as log:
        for name in chosen:
            print(f"\n== {name}", flush=True)
            log.write(f"\n== {name}\n")
            start = time.monotonic()
            left = WHOLE - (start - begin) if chosen == usual else math.inf
            try:
                outcome = run(STEPS[name].command(), max(1.0, min(STEPS[name].seconds, left)), log)
            except (Missing, OSError) as error:
                outcome = f"not run: {error}"
            outcomes[name] = f"{outcome} ({time.monotonic() - start:.0f} s)"
        told = [f"{name:12} {outcome}" for name, outcome in outcomes.items()]
        report = "\n".join(["", "== make gpu", *told])
        print(report, flush=True)
        log.write(report + "\n")
    return 0 if all(outcome.startswith("ok") for outcome in outcomes.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
