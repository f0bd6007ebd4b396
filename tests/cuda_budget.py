"""Holds the compiled CUDA kernels to cuda_budget.json. It needs no GPU, only a disassembler.

    python -m tests.cuda_budget [BINARY]   gatedrnn/_C.abi3.so, or an object, against the budget
    python -m tests.cuda_budget --update   write the budget anew; its diff is to be reviewed
    python -m tests.cuda_budget --show 90a   what each kernel takes on one architecture

The budget names every kernel on every architecture. A number that got worse fails until the budget
admits to it; one that got better is only told. The counts are of instructions in the binary, not
of what runs: they catch a change that nobody meant and say nothing about speed.
"""

import argparse
import importlib.metadata
import json
import os
import re
import shutil
import subprocess
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

EXTENSION = Path(__file__).resolve().parent.parent / "gatedrnn" / "_C.abi3.so"
BUDGET = Path(__file__).with_name("cuda_budget.json")

RESOURCES = ("registers", "stack", "shared")  # shared: static, with the 1024 bytes sm_90+ reserves
# Instructions by name, which has the size in it: LDG.E.128.CONSTANT.
NO_MORE = {
    "spills": r"(LDL|STL)\b",
    "float64": r"D(ADD|FMA|MMA|MNMX|MUL|SETP)\b|.*(F64|64H)\b",
}
NO_LESS = {
    "HMMA": r"HMMA\b",
    "DMMA": r"DMMA\b",
    "LDGSTS.128": r"LDGSTS\b.*\.128\b",
    "LDG.128": r"LDG\b.*\.128\b",
    "STG.128": r"STG\b.*\.128\b",
    "LDS.128": r"LDS\b.*\.128\b",
    "STS.128": r"STS\b.*\.128\b",
    "LDSM": r"LDSM\b",
}
# A barrier that one architecture lost to an `if constexpr` is nothing that the emulator can see.
SAME = {"barriers": r"(BAR|UCGABAR_ARV)\b"}
PATTERNS = {name: re.compile(of) for name, of in (NO_MORE | SAME | NO_LESS).items()}
INSTRUCTION = re.compile(r"/\*[0-9a-f]{4,}\*/ +(?:@!?\w+ +)?([A-Z][\w.]*)")  # perhaps predicated
COLUMNS = (*RESOURCES, "instructions", *PATTERNS)

SLACK = 1.03  # of `instructions`: every touch changes a few
PERSISTENT_STACK = 64  # bytes a thread of local memory; none in other kernels
REGISTERS = 65536  # of a multiprocessor, on all architectures

Counts = dict[str, int]  # by column, zeros left out
Kernels = dict[str, dict[str, Counts]]  # by name and architecture


def tool(name: str) -> str:
    """The disassembler's programs, from PyPI or from a CUDA toolkit."""
    try:
        files = importlib.metadata.files(f"nvidia-cuda-{name}") or []
    except importlib.metadata.PackageNotFoundError:
        files = []
    found = next((str(f.locate()) for f in files if f.name == name), None) or shutil.which(name)
    if not found:
        raise FileNotFoundError(f"no {name}: pip install -r requirements-dev.txt")
    return found


def nvcc() -> str | None:
    """The compiler that setup.py takes."""
    home = os.environ.get("CUDA_HOME")
    return shutil.which("nvcc", path=f"{home}/bin" if home else None)


def release() -> str:
    """nvcc's: its successor will count differently."""
    told = subprocess.run([nvcc(), "--version"], check=True, capture_output=True, text=True).stdout
    return re.findall(r"release ([\d.]+)", told)[0]


def disassemble(binary: Path, architecture: str = r"\w+") -> Kernels:
    """The kernels in an object, a library or a Python extension."""
    # cuobjdump looks for nvdisasm on the path.
    path = os.pathsep.join([str(Path(tool("nvdisasm")).parent), os.environ["PATH"]])

    def dump(*arguments: str) -> str:
        run = subprocess.run([tool("cuobjdump"), *arguments, str(binary)], text=True, check=False,
                             capture_output=True, env={**os.environ, "PATH": path})
        if run.returncode and "does not contain device code" not in run.stdout + run.stderr:
            raise RuntimeError(run.stdout + run.stderr)
        return run.stdout

    def one(architecture: str) -> dict[str, Counts]:
        return _parse(dump("-arch", f"sm_{architecture}", "-res-usage", "-sass"))

    listed = set(re.findall(rf"\.sm_({architecture})\.cubin", dump("-lelf")))
    on = sorted(listed, key=_number)
    kernels: Kernels = defaultdict(dict)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for a, found in zip(on, pool.map(one, on), strict=True):
            for name, counts in found.items():
                kernels[name][a] = counts
    return dict(sorted(kernels.items()))


def _number(architecture: str) -> int:
    return int(re.sub(r"\D", "", architecture))


def _parse(text: str) -> dict[str, Counts]:
    kernels: dict[str, Counts] = {}
    for name, numbers in re.findall(r"^ Function (\S+):\n\s+(REG:.*)", text, re.MULTILINE):
        if name in kernels:
            raise ValueError(f"compiled into two files: {name}")
        taken = {what: int(number) for what, number in re.findall(r"(\w+):(\d+)", numbers)}
        values = (taken["REG"], taken["STACK"] + taken["LOCAL"], taken["SHARED"])
        kernels[name] = dict(zip(RESOURCES, values, strict=True))
    for listing in text.split("\t\tFunction : ")[1:]:
        instructions = Counter(INSTRUCTION.findall(listing))
        del instructions["NOP"]  # fills up cache lines
        counts = kernels[listing.partition("\n")[0]]
        counts["instructions"] = instructions.total()
        for column, pattern in PATTERNS.items():
            counts[column] = sum(n for name, n in instructions.items() if pattern.match(name))
    plain = subprocess.run(["c++filt", "-p"], input="\n".join(kernels), check=True, text=True,
                           capture_output=True).stdout
    plain = re.sub(r"gatedrnn::(cuda::)?|\(anonymous namespace\)::", "", plain)
    named = dict(zip(plain.splitlines(), kernels.values(), strict=True))
    if len(named) < len(kernels):
        raise ValueError(f"two kernels of one name among {', '.join(kernels)}")
    for name, counts in named.items():
        if re.search(r"\bdouble\b", name):
            counts["float64"] = 0  # they are to have as many as they like
    return {name: {c: n for c, n in counts.items() if n} for name, counts in named.items()}


def broken_rules(kernels: Kernels) -> list[str]:
    """What no budget admits."""
    broken = []
    for name, lines in kernels.items():
        for architecture, counts in lines.items():
            if counts.get("stack", 0) > (PERSISTENT_STACK if "persistent" in name else 0):
                broken.append((name, architecture, f"{counts['stack']} bytes of local memory"))
            if counts.get("float64"):
                broken.append((name, architecture, f"{counts['float64']} float64 instructions"))
    return _together(broken)


def changes(
    kernels: Kernels, budget: Kernels, columns: Sequence[str] = COLUMNS
) -> tuple[list[str], list[str]]:
    """What got worse than the budget or is not in it; what got better."""
    worse, better = [], []
    unbuilt = architectures(budget) - architectures(kernels)
    worse += [("all kernels", a, "not compiled") for a in sorted(unbuilt, key=_number)]
    for name in sorted({*kernels, *budget}):
        found, wanted = kernels.get(name, {}), budget.get(name, {})
        for a in sorted({*found, *wanted} - unbuilt, key=_number):
            if a not in found or a not in wanted:
                worse.append((name, a, "is new" if a in found else "is gone"))
                continue
            for column in columns:
                old, new = wanted[a].get(column, 0), found[a].get(column, 0)
                slack = SLACK if column == "instructions" else 1
                if not old / slack <= new <= old * slack:
                    fails = column in SAME or (new < old) == (column in NO_LESS)
                    (worse if fails else better).append((name, a, f"{column} {old} -> {new}"))
    return _together(worse), _together(better)


def architectures(kernels: Kernels) -> set[str]:
    return {a for lines in kernels.values() for a in lines}


def _together(messages: list[tuple[str, str, str]]) -> list[str]:
    """One line for all architectures of which the same is to be said."""
    lines = defaultdict(list)
    for name, architecture, text in messages:
        lines[name, text].append(architecture)
    return [f"{name}: {text} (sm {' '.join(on)})" for (name, text), on in lines.items()]


def read(path: Path) -> tuple[str, Kernels]:
    """nvcc's release and the kernels."""
    file = json.loads(path.read_text())
    kernels = {
        name: {a: counts for together, counts in lines.items() for a in together.split()}
        for name, lines in file["kernels"].items()
    }
    return file["nvcc"], kernels


def write(path: Path, of: str, kernels: Kernels) -> None:
    """A line for each kernel and architecture; those with the same counts share one."""
    blocks = []
    for name, lines in sorted(kernels.items()):
        together = defaultdict(list)
        for architecture in sorted(lines, key=_number):
            together[json.dumps(lines[architecture])].append(architecture)
        block = [f'  "{" ".join(on)}": {counts}' for counts, on in together.items()]
        blocks.append(f'"{name}": {{\n' + ",\n".join(block) + "\n}")
    path.write_text(f'{{"nvcc": "{of}", "kernels": {{\n' + ",\n".join(blocks) + "\n}}\n")


def check(binary: Path, path: Path = BUDGET) -> tuple[list[str], list[str]]:
    """What fails, and what is told besides."""
    kernels = disassemble(binary)
    if not kernels:
        return [f"no kernels in {binary}"], []
    of, budget = read(path)
    now = release()
    failures, notes = broken_rules(kernels), []
    held = architectures(budget)
    if asked := os.environ.get("GATEDRNN_CUDA_ARCHS"):
        held &= {*asked.split(";")}
        notes.append(f"compared on no more than GATEDRNN_CUDA_ARCHS: {asked}")
    if now != of:
        held &= architectures(kernels)  # an older one knows fewer
        notes.append(f"counts not compared: the budget is nvcc {of}'s, this is {now}")
    columns = COLUMNS if now == of else ()
    worse, better = changes(_only(kernels, held), _only(budget, held), columns)
    return failures + worse, notes + [f"better: {line}" for line in better]


def _only(kernels: Kernels, held: set[str]) -> Kernels:
    return {name: {a: lines[a] for a in held & {*lines}} for name, lines in kernels.items()}


def update(binary: Path, path: Path = BUDGET) -> list[str]:
    """Admits to everything but a broken rule, which it returns."""
    kernels = disassemble(binary)
    unbuilt = architectures(read(path)[1]) - architectures(kernels) if path.exists() else set()
    if unbuilt:
        raise SystemExit(f"not compiled for sm {' '.join(sorted(unbuilt, key=_number))}")
    write(path, release(), kernels)
    return broken_rules(kernels)


def show(binary: Path, architecture: str) -> Iterator[str]:
    for name, lines in disassemble(binary, architecture).items():
        counts = lines[architecture]
        warps = REGISTERS // (32 * -(-counts["registers"] // 8) * 8)
        told = [f"{column} {count}" for column, count in counts.items()]
        yield f"{name}\n    {', '.join(told)}; registers for {warps} warps"


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("binary", nargs="?", type=Path, default=EXTENSION)
    parser.add_argument("--update", action="store_true")
    parser.add_argument("--show", metavar="ARCHITECTURE")
    arguments = parser.parse_args()
    failures: list[str] = []
    notes: list[str] = []
    if arguments.show:
        notes = list(show(arguments.binary, arguments.show))
    elif arguments.update:
        failures = update(arguments.binary)
    else:
        failures, notes = check(arguments.binary)
    print("\n".join(failures + notes))
    return bool(failures)


if __name__ == "__main__":
    raise SystemExit(main())
