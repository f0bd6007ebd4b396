"""Plants faults in the CUDA kernels, one at a time, and shows that the checks catch every one.

    python -m tests.cuda_mutations [--write]   all, on demand: a quarter of an hour on two cores
    python -m tests.cuda_mutations --only step_forward.h --every 7   a sample
    python -m tests.cuda_mutations --list      the faults, not tried

cuda_faults.py generates the faults. Each is built under the emulator and checked by
cuda_emulator/check_*.cpp, first as it is in several schedules, then with ASan and UBSan, then with
TSan. What no check catches must be equivalent to the original, and cuda_mutations.json must say
why; it may not speak of anything that is caught, or not there. Results are kept in
build/mutations.json, so that a run that was interrupted goes on where it was; --write puts the
table into README.md.
"""

import argparse
import datetime
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.cuda_faults import FILES, Fault, faults

ROOT = Path(__file__).resolve().parent.parent
ARGUMENTS = Path(__file__).with_suffix(".json")
README = Path(__file__).with_name("README.md")
BUILD = ROOT / "build"
CXX = os.environ.get("CXX") or shutil.which("g++") or "c++"
FLAGS = ["-std=c++20", "-DGATEDRNN_EMULATE", "-Wno-unknown-pragmas"]
LINK = "-Wl,--wrap=_ZN13cuda_emulator6launchERKNS_6LaunchE"
WORKERS = 2

# What kernels are compiled with, and the emulator, the schedules, and the seconds a run may take.
PHASES = {
    "plain": (["-O0"], [], ["fifo:1", "lifo:1", "random:1", "random:2", "prio:1", "prio:2"], 40),
    "address": (["-O1", "-g1", "-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"],
                ["-O1", "-fsanitize=address,undefined"], ["fifo:1", "prio:1"], 200),
    "thread": (["-O1", "-g1", "-fsanitize=thread"], ["-O1", "-DGATEDRNN_EMULATOR_TSAN"],
               ["fifo:1"], 200),
}
PREFIX = "#include <algorithm>\n#include <atomic>\n#include <cmath>\n#include \"cuda_emulator.h\"\n"
SHARED = ("product.h", "step_forward.h", "step_backward.h", "persistent.h", "persistent_pack.h",
          "persistent_forward.h", "persistent_backward.h", "persistent_guard.h",
          "persistent_lengths.h", "exchange.h", "grid.h", "grid_forward.h", "grid_backward.h",
          "wavefront_forward.h")  # between threads
# Small ones in the place of persistent.h's: clusters of two blocks, of four whose warps share k,
# and a lone block.
SHAPES = {
    "kPersistentShapes": "{Cell::gru, 64, 2, 1}, {Cell::gru, 128, 2, 4}, {Cell::lstm, 64, 1, 2}, "
                         "{Cell::lstm, 32, 2, 1}",
    "kSplitShapes": "{Cell::gru, 64, 2, 1, 2}, {Cell::lstm, 64, 1, 2, 2}, "
                    "{Cell::lstm, 32, 2, 1, 2}",
    "kStackedShapes": "{Cell::gru, 64, 2, 2, 1, true}, {Cell::lstm, 32, 2, 2, 1, true}, "
                      "{Cell::lstm, 64, 2, 4, 1, true}",
}
# And of two warps a block, which keep but one tile in registers, in the place of grid.h's.
GRID = {"kWarps = 8": "kWarps = 2", "32 / gates": "1", "kMostUnits = 2048": "kMostUnits = 256"}
# Checks of kernels that walk: their file, {} being the type, and the check's own flags.
WALKS = {"walk": ("persistent_{}", ["-DPERSISTENT"]),
         "grid": ("persistent_{}", ["-DPERSISTENT", "-DGRID"]),
         "split": ("persistent_split", ["-DPERSISTENT", "-DSPLIT"]),
         "latency": ("latency", ["-DPERSISTENT", "-DLATENCY"]),
         "wave": ("wavefront_{}", ["-DPERSISTENT", "-DWAVE"])}
TYPES = {"double": "float64", "float": "float32", "Half": "float16", "Bfloat16": "bfloat16"}
INSTANCES = {
    "forward": "layer_forward_cuda(const CudaPlan&, const CudaForward<{0}>*, int, void*)",
    "backward": "layer_backward_cuda(const CudaPlan&, const CudaBackward<{0}>*, int, void*)",
    "walk_forward": "persistent_forward(const PersistentPlan&, const CudaForward<{0}>*, int, "
                    "void*)",
    "walk_backward": "persistent_backward(const PersistentPlan&, const CudaBackward<{0}>*, int, "
                     "void*)",
    "grid_forward": "grid_forward(const PersistentPlan&, const CudaForward<{0}>*, int, void*)",
    "grid_backward": "grid_backward(const PersistentPlan&, const CudaBackward<{0}>*, int, void*)",
    "cell": "cell_forward_cuda(const CudaCellForward<{0}>&, void*);\n"
            "template int cell_backward_cuda(const CudaCellBackward<{0}>&, void*)",
}
CHECKS = ("results, first schedule", "results, other schedules", "emulator's errors", "crash",
          "time limit", "ASan and UBSan", "TSan", "none: equivalent")
NOT_CPP = "does not compile"

Unit = tuple[str, str]  # check and type


def units(fault: Fault, phase: str) -> list[Unit]:
    """What may show the fault, the likeliest first. Sanitizers look at memory, not at numbers: to
    them one type is as good as another, and threads share none but in some files."""
    if phase == "thread" and fault.file not in SHARED:
        return []
    of = units_of(fault)
    return of if phase == "plain" else [(check, real) for check, real in of if real == of[0][1]]


def units_of(fault: Fault) -> list[Unit]:
    by_scope = {"Fma": [("forward", "double")], "Tf32": [("forward", "float")],
                "Float16": [("forward", "Half")], "BrainFloat16": [("forward", "Bfloat16")],
                "TensorCore": [("forward", "Half"), ("forward", "float")]}
    if fault.scope in by_scope:
        return by_scope[fault.scope]
    if fault.function == "copy_elements":
        return [("forward", "Half"), ("backward", "Bfloat16")]
    if fault.file.startswith(("persistent", "grid", "latency", "wavefront", "exchange")):
        return walks_of(fault)
    if fault.file == "cell.h" or fault.function == "launch_cell":
        return [("cell", "float")]
    passes = ["forward", "backward"]
    if fault.file == "step_forward.h" or re.search("forward|projection_step", fault.function):
        passes.remove("backward")
    elif fault.file == "step_backward.h" or re.search("backward|after_proj", fault.function):
        passes.remove("forward")
    found = [(check, real) for real in ("double", "Half") for check in passes]
    if fault.file == "numbers.h":
        found += [("forward", "Bfloat16"), ("cell", "float")]
    return found


def walks_of(fault: Fault) -> list[Unit]:
    """float's operands are scaled in both passes, and its states are guarded."""
    if "guard" in fault.file:
        return [("walk_forward", "float"), ("wave_forward", "float")]
    passes = ["forward", "backward"]
    if "forward" in fault.file + fault.function:
        passes = passes[:1]
    elif "backward" in fault.file + fault.function:
        passes = passes[1:]
    if fault.file.startswith("latency"):
        return [(f"latency_{of}", "float") for of in passes]
    types = "float", "Bfloat16", "Half"
    wave = [("wave_forward", real) for real in types]
    if fault.file.startswith("wavefront"):
        return wave
    grid = [(f"grid_{of}", real) for real in types for of in passes]
    if fault.file.startswith("grid"):
        return grid
    if fault.file == "exchange.h":
        return wave[:1] + grid
    others = [(f"split_{of}", "float") for of in passes] + wave[:"forward" in passes]
    return [(f"walk_{of}", real) for real in types for of in passes] + others


def beside(check: str, real: str) -> list[str]:
    """The files that a check's kernels are linked with, apart from their own."""
    kind = check.split("_")[0]
    if kind in ("split", "wave"):
        return [f"persistent_{TYPES[real]}"]
    if kind in WALKS or real == "double":
        return []
    of_float = ["persistent_split", "latency"] if real == "float" else []
    return [f"persistent_{TYPES[real]}", *of_float]


class Checks:
    """The sources as they were at the start, and the checks' objects, which no fault touches."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.cuda, self.emulator = folder / "csrc" / "cuda", folder / "tests" / "cuda_emulator"
        shutil.copytree(ROOT / "csrc" / "cuda", self.cuda)
        shutil.copytree(ROOT / "tests" / "cuda_emulator", self.emulator)
        for header in ("params.h", "plan.h", "gates.h", "persistent.h", "grid.h", "latency.h"):
            shutil.copy(ROOT / "csrc" / header, folder / "csrc" / header)
        grid = folder / "csrc" / "grid.h"
        for constant, small in GRID.items():
            assert grid.read_text().count(constant) == 1, constant
            grid.write_text(grid.read_text().replace(constant, small))
        shapes = folder / "csrc" / "persistent.h"
        for name, small in SHAPES.items():
            text = shapes.read_text()
            begin = text.index("{", text.index(f"{name}[]")) + 1
            shapes.write_text(text[:begin] + small + text[text.index("};", begin):])

    def faults(self) -> list[Fault]:
        return [fault for file in FILES for fault in faults(self.cuda / file)]

    def version(self) -> str:
        """Of everything that a result depends on, but for the fault."""
        files = [*self.folder.rglob("csrc/**/*.*"), *self.folder.rglob("tests/**/*.*")]
        texts = [file.read_text() for file in sorted(files)]
        return digest(CXX, PREFIX, str(FLAGS), str(PHASES), *texts)

    def compile(self, source: Path, target: Path, *flags: str) -> subprocess.CompletedProcess[str]:
        language = "c++-header" if source.suffix == ".h" else "c++"
        command = [CXX, *FLAGS, f"-I{self.emulator}", *flags, "-x", language, str(source), "-o",
                   str(target)]
        if language == "c++":
            command.append("-c")
        return subprocess.run(command, capture_output=True, text=True, check=False)

    def build(self, phase: str, wanted: Sequence[Unit]) -> None:
        flags, runtime, _, _ = PHASES[phase]
        place = self.folder / phase
        place.mkdir()
        (place / "prefix.h").write_text(PREFIX)
        jobs = [(place / "prefix.h", place / "prefix.h.gch", *flags),
                (self.emulator / "cuda_emulator.cpp", place / "emulator.o", "-O2", *runtime),
                (self.cuda / "device.cu", place / "device.o", *flags)]
        jobs += [(self.emulator / f"check_{check.split('_')[-1]}.cpp",
                  place / f"{check}_{real}.o", f"-DCHECKED={real}", *flags, "-O2",
                  *WALKS.get(check.split("_")[0], ("", []))[1])
                 for check, real in wanted]
        linked = {name for unit in wanted for name in beside(*unit)}
        jobs += [(self.cuda / f"{name}.cu", place / f"{name}.o", *flags) for name in sorted(linked)]
        with ThreadPoolExecutor(WORKERS) as pool:
            for done in pool.map(lambda job: self.compile(*job), jobs):
                if done.returncode:
                    sys.exit(done.stderr)

    def catch(self, fault: Fault | None, unit: Unit, phase: str) -> tuple[str, str] | None:
        """The check that catches the fault, and what it says; None if the unit passes."""
        check, real = unit
        flags, _, schedules, limit = PHASES[phase]
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            shutil.copytree(self.folder / "csrc", folder / "csrc")
            if fault:
                (folder / "csrc" / "cuda" / fault.file).write_text(fault.text)
            walks = check.split("_")[0] in WALKS
            name = WALKS[check.split("_")[0]][0] if walks else "{}"
            source = folder / "csrc" / "cuda" / f"{name.format(TYPES[real])}.cu"
            if check in INSTANCES:
                instance = f"template int {INSTANCES[check].format(real)};"
                site = (r"template int persistent(?s:.*);" if walks
                        else r"GATEDRNN_INSTANTIATE\(.*\);")
                source.write_text(re.sub(site, instance, source.read_text()))
            prefix = self.folder / phase / "prefix.h"
            done = self.compile(source, folder / "kernels.o", *flags, "-include", str(prefix))
            if done.returncode:
                return NOT_CPP, next(x for x in done.stderr.split("\n") if "error" in x)
            objects = [self.folder / phase / f"{name}.o"
                       for name in (f"{check}_{real}", "emulator", "device")]
            objects.append(folder / "kernels.o")
            objects += [self.folder / phase / f"{name}.o" for name in beside(*unit)]
            subprocess.run([CXX, *flags, LINK, *objects, "-o", folder / "check"], check=True)
            try:
                done = subprocess.run([folder / "check", *schedules], capture_output=True,
                                      timeout=limit, text=True, errors="replace", check=False,
                                      env=os.environ | {"ASAN_OPTIONS": "detect_leaks=0"})
            except subprocess.TimeoutExpired:
                return "time limit", f"{limit} s"
        if done.returncode == 0:
            return None
        said = f"{check} {real} {done.stdout.strip()}"
        if phase != "plain" and not done.stdout:
            report = re.search(r"(runtime error:|SUMMARY:|WARNING:|ERROR:).*", done.stderr)
            said = f"{check} {real} {report.group() if report else done.stderr[-200:]}"
            return {"address": "ASan and UBSan", "thread": "TSan"}[phase], said
        if done.returncode < 0:
            return "crash", f"{check} {real} signal {-done.returncode}"
        if not re.search(r"\] is .*, not |the number of", said):
            return "emulator's errors", said
        return f"results, {'first schedule' if schedules[0] in said else 'other schedules'}", said


def tried(fault: Fault, phase: str, checks: Checks) -> tuple[str, str]:
    """The check that catches the fault in this phase, and what it says."""
    for unit in units(fault, phase):
        if caught := checks.catch(fault, unit, phase):
            return caught
    return CHECKS[-1], ""


def digest(*texts: str) -> str:
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()


def try_all(every: Sequence[Fault], checks: Checks) -> dict[str, tuple[str, str]]:
    """By key: the first check that caught a fault, and what it said."""
    BUILD.mkdir(exist_ok=True)
    cache_file, of = BUILD / "mutations.json", checks.version()
    cache = json.loads(cache_file.read_text()) if cache_file.exists() else {}
    key = {fault: digest(of, fault.text) for fault in every}
    with ThreadPoolExecutor(WORKERS) as pool:
        left = list(every)
        for phase in PHASES:
            todo = [fault for fault in left if f"{key[fault]} {phase}" not in cache]
            print(f"{phase}: {len(left)} faults, {len(todo)} to try", flush=True)
            wanted = sorted({unit for fault in todo for unit in units(fault, phase)})
            if wanted:
                checks.build(phase, wanted)
            for caught in pool.map(lambda unit, p=phase: checks.catch(None, unit, p), wanted):
                if caught:
                    sys.exit(f"the sources as they are do not pass: {caught}")
            jobs = [(fault, pool.submit(tried, fault, phase, checks)) for fault in todo]
            for k, (fault, job) in enumerate(jobs):
                cache[f"{key[fault]} {phase}"] = result = job.result()
                print(f"{k + 1}/{len(todo)} {fault.line} {fault.key}\n    {': '.join(result)}",
                      flush=True)
                cache_file.write_text(json.dumps(cache))
            left = [fault for fault in left if cache[f"{key[fault]} {phase}"][0] == CHECKS[-1]]
    passed = {fault: [cache.get(f"{key[fault]} {phase}") for phase in PHASES] for fault in every}
    return {fault.key: next((x for x in results if x and x[0] != CHECKS[-1]), (CHECKS[-1], ""))
            for fault, results in passed.items()}


def table(every: Sequence[Fault], results: dict[str, tuple[str, str]],
          arguments: dict[str, str]) -> str:
    live = [fault for fault in every if results[fault.key][0] != NOT_CPP]
    counts = Counter((fault.kind, results[fault.key][0]) for fault in live)
    kinds = sorted({fault.kind for fault in live})
    lines = [f"| | {' | '.join(kinds)} | together |", "| --- |" + " ---: |" * (len(kinds) + 1)]
    for check in CHECKS:
        row = [counts[kind, check] for kind in kinds]
        if sum(row):
            lines.append(f"| {check} | {' | '.join(map(str, [*row, sum(row)]))} |")
    row = [sum(fault.kind == kind for fault in live) for kind in kinds]
    lines += [f"| together | {' | '.join(map(str, [*row, sum(row)]))} |", ""]
    lines.append(f"{datetime.date.today()}: {len(live)} faults, and {len(every) - len(live)} more "
                 "that are not C++. Equivalent, and why:\n")
    lines += [f"- `{key}`: {why}" for key, why in sorted(arguments.items())]
    return "\n".join(lines)


INTRODUCTION = """
`python -m tests.cuda_mutations --write` plants faults in the sources of the kernels, one at a time,
builds them for the emulator and holds them against `cuda_emulator/check_*.cpp`. It runs on demand,
a quarter of an hour on two cores. `cuda_faults.py` generates the faults: at every synchronisation
point; in the exchange of clusters, its counts, buffers and peers, and in that of layers, its words,
places and turns; at bounds and of indices by one, but for loops over registers; and in every line
that names buffers, sizes, gates or tiles which can be taken for one another, the first of them.
What no check catches has to be argued in `cuda_mutations.json`; some of that costs time, but no
result. It says how strong these checks are, not how strong the tests in CI. By what caught them
first:
"""


def write(text: str) -> None:
    heading = "## Kernels without a GPU: planted faults\n"
    before, behind = README.read_text().split(heading)
    behind = behind[behind.index("\n## "):]
    README.write_text(f"{before}{heading}{INTRODUCTION}\n{text}\n{behind}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--only", default="", help="a regular expression, searched in kind and key")
    parser.add_argument("--every", type=int, default=1)
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--write", action="store_true")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        hold(asked, Checks(Path(folder)))


def hold(asked: argparse.Namespace, checks: Checks) -> None:
    every = checks.faults()
    chosen = [fault for fault in every if re.search(asked.only, f"{fault.kind} {fault.key}")]
    chosen = chosen[::asked.every]
    if asked.list:
        for fault in chosen:
            print(f"{fault.file}:{fault.line} [{fault.kind}] {fault.before} -> {fault.after}")
        return
    arguments = json.loads(ARGUMENTS.read_text()) if ARGUMENTS.exists() else {}
    results = try_all(chosen, checks)
    alive = {key for key, (check, _) in results.items() if check == CHECKS[-1]}
    wrong = [f"caught by nothing, and not argued: {key}" for key in sorted(alive - set(arguments))]
    known = set(arguments) if len(chosen) == len(every) else set(arguments) & set(results)
    wrong += [f"argued, but caught or not there: {key}" for key in sorted(known - alive)]
    text = table(chosen, results, arguments)
    print(text)
    if asked.write and len(chosen) == len(every) and not wrong:
        write(text)
    if wrong:
        sys.exit("\n".join([*wrong, f"{len(wrong)} in all"]))


if __name__ == "__main__":
    main()
