"""What some tests build for themselves, for minutes, in the background of the tests before them.

Where the whole suite runs, the files that need these builds come last, and the builds begin at
once, on cores that nobody else wants.
"""

import os
import subprocess
import sys
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# By name: the file that waits for it, what setup.py builds, and under which GATEDRNN_SANITIZE.
BUILDS = {
    "arm": ("test_arm.py", "build_arm", ""),
    "kernels": ("test_sanitizers.py", "build_kernels", "1"),
    "emulated": ("test_cuda_sanitizers.py", "build_emulated", "1"),
    "thread": ("test_cuda_sanitizers.py", "build_emulated", "thread"),
}
MANY = 1000  # tests that are worth a background

_pool = ThreadPoolExecutor(max_workers=1)
_begun: dict[str, Future] = {}
_running: list[subprocess.Popen] = []


def _build(name, idle=False):
    """The build's exit status, and what it has said."""
    _, what, sanitizer = BUILDS[name]
    build = subprocess.Popen(
        [sys.executable, "setup.py", "-q", what], cwd=ROOT, text=True, start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        env={**os.environ, "GATEDRNN_WERROR": "1", "GATEDRNN_SANITIZE": sanitizer})
    if idle and hasattr(os, "SCHED_IDLE"):
        os.sched_setscheduler(build.pid, os.SCHED_IDLE, os.sched_param(0))
    _running.append(build)
    words = build.communicate()[0]
    return build.returncode, words


def begin(items):
    """The order of the tests; begins what they will wait for, one build after the other."""
    files = {file for file, _, _ in BUILDS.values()}
    items.sort(key=lambda item: item.path.name in files)
    if len(items) < MANY:
        return
    run = {item.path.name for item in items
           if not any(mark.args[0] for mark in item.iter_markers("skipif"))}
    for name, (file, _, _) in BUILDS.items():
        if file in run:
            _begun[name] = _pool.submit(_build, name, idle=True)


def wait(name):
    """Returns when it is built: begun before, or now."""
    status, words = _begun[name].result() if name in _begun else _build(name)
    assert status == 0, words


def stop():
    """Leaves nothing running."""
    _pool.shutdown(wait=False, cancel_futures=True)
    for build in _running:
        if build.poll() is None:
            os.killpg(build.pid, 9)
