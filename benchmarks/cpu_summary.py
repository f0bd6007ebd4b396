"""Tells the CSVs of a CPU as a page of Markdown and a picture.

    python -m benchmarks.cpu_summary layers.csv [cells.csv] [sweep.csv] [memory.csv]

writes cpu.md and cpu.png into benchmarks/results, or into the folder that --output names.
"""

import argparse
import csv
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes

from . import sweep
from .plot import bars
from .report import MEMORY_NAMES, MODULE_NAMES, number, percent
from .summary import Rows, table, values

FOLDER = Path(__file__).resolve().parent / "results"
SUITES = ("layers", "cells", "sweep", "memory")
PEERS = {"torch": "torch.nn", "onnxruntime": "ONNX Runtime", "openvino": "OpenVINO"}
RATIO = {"torch": "ratio", "onnxruntime": "onnxruntime_ratio", "openvino": "openvino_ratio"}
ABOUT = {"device": "processor", "isa": "instruction set", "torch": "torch", "onnxruntime":
         "ONNX Runtime", "openvino": "OpenVINO", "gatedrnn": "gatedrnn", "commit": "commit"}


def read(paths: Sequence[Path]) -> Rows:
    """All rows, what measures the same only as it came last. Raises ValueError for other files."""
    found = {}
    for path in paths:
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            missing = {"suite", "case", "pass", "status", "threads"} - {*(reader.fieldnames or [])}
            if missing:
                raise ValueError(f"{path} is no CSV of the CPU: it lacks {sorted(missing)}")
            for row in reader:
                if row["suite"] not in SUITES:
                    raise ValueError(f"{path} has rows of suite {row['suite']}, not of one of "
                                     f"{', '.join(SUITES)}")
                key = tuple(row[n] for n in ("suite", "case", "pass", "dtype", "threads", "device"))
                found[key] = dict.fromkeys([*MODULE_NAMES, *MEMORY_NAMES], "") | row
    if not found:
        raise ValueError(f"there is no row in {', '.join(map(str, paths))}")
    return list(found.values())


def of_suite(rows: Rows, suite: str) -> Rows:
    """Those that were measured."""
    return [row for row in rows if row["suite"] == suite and row["status"] == "ok"]


def _float(text: str) -> float | None:
    return float(text) if text else None


def _ratio(text: str) -> str:
    return f"{float(text):.2f}" if text else "-"


def page(rows: Rows, picture: str) -> str:
    """The page's text: where and with what, then each suite."""
    lines = [f"# Times and memory on {' and '.join(values(rows, 'device'))}", ""]
    lines += [f"- {title}: {', '.join(values(rows, name))}" for name, title in ABOUT.items()
              if any(row[name] for row in rows)]
    days = sorted(row["date"][:10] for row in rows)
    lines += [f"- date: {' to '.join(dict.fromkeys([days[0], days[-1]]))}", "",
              f"![How many times faster than others]({picture})"]
    for suite in ("layers", "cells"):
        of_this = of_suite(rows, suite)
        for dtype, threads in dict.fromkeys((r["dtype"], r["threads"]) for r in of_this):
            own = [r for r in of_this if (r["dtype"], r["threads"]) == (dtype, threads)]
            lines += ["", f"## {suite}: {dtype}, {threads} threads", "", *_modules(own, suite)]
    if swept := of_suite(rows, "sweep"):
        lines += ["", "## sweep", "", *_sweep(swept)]
    if remembered := of_suite(rows, "memory"):
        lines += ["", "## memory of a training step", "", *_memory(remembered)]
    if left := [row for row in rows if row["status"] != "ok"]:
        lines += ["", "## Not measured", ""]
        lines += [f"- {r['case']}, {r['pass']}, {r['threads']} threads: {r['status']}"
                  for r in left]
    return "\n".join(lines) + "\n"


def _command(rows: Rows, options: str = "") -> str:
    suite, least = rows[0]["suite"], min(int(row["rounds"]) for row in rows)
    return (f"By `python -m benchmarks.run --suite {suite}{options} --csv {suite}.csv`, {least} "
            "rounds or more.")


def _modules(rows: Rows, suite: str) -> Iterator[str]:
    options = f" --dtype {rows[0]['dtype']} --threads {rows[0]['threads']}"
    yield f"{_command(rows, options)} How many times faster than torch.nn:"
    yield ""
    kinds = list(dict.fromkeys((row["cell"], row["pass"]) for row in rows))
    ratios = {(row["shape"], (row["cell"], row["pass"])): row["ratio"] for row in rows}
    shapes = list(dict.fromkeys(row["shape"] for row in rows))
    yield from table(
        ["B,T,I,H,layers" if suite == "layers" else "B,I,H", *map(" ".join, kinds)],
        ([shape, *(_ratio(ratios.get((shape, kind), "")) for kind in kinds)] for shape in shapes))
    beside = [name for name in PEERS if any(row[RATIO[name]] for row in rows)]
    if len(beside) > 1:
        yield from ("", "How many times faster than each, in inference:", "")
        yield from table(
            ["case", *(PEERS[name] for name in beside)],
            ([row["case"], *(_ratio(row[RATIO[name]]) for name in beside)]
             for row in rows if row["pass"] == "inference"))
    notes = [f"- {row['case']}: {row['peers']}" for row in rows if row["peers"]]
    if notes:
        yield from ("", "Left out:", "", *notes)
    yield from ("", "Every figure:", "")
    titles = ["case", "pass", *(f"{PEERS[name]} ms" for name in beside), "ours ms", "20 - 80 %",
              "GFLOP/s", "of the limit", "kernel"]
    yield from table(titles, (
        [row["case"], row["pass"], *(number(_float(row[f"{name}_ms"])) for name in beside),
         number(_float(row["ours_ms"])),
         f"{number(_float(row['ours_p20_ms']))} - {number(_float(row['ours_p80_ms']))}",
         number(_float(row["gflops"])), percent(_float(row["share"])), row["kernel"] or "-"]
        for row in rows))


def _sweep(rows: Rows) -> Iterator[str]:
    yield (f"{_command(rows)} A ratio below {sweep.LOW} was measured twice more; the lowest is of "
           "the best of these.")
    yield ""
    lines = [(f"{cell} {pass_}, {threads} threads", found)
             for threads in values(rows, "threads")
             for (cell, pass_), found in sweep.totals(
                 [r for r in rows if r["threads"] == threads]).items()]
    yield from table(
        ["", "cases", "geometric mean", "below 1", f"below {sweep.LOW} three times", "lowest"],
        ([name, str(t.count), f"{t.mean:.2f}", str(t.below), str(t.slower), f"{t.least:.2f}"]
         for name, t in [*lines, ("together", sweep.total(rows))]))
    if below := sweep.below(rows):
        yield from ("", "Below 1:", "")
        yield from table(
            ["case", "pass", "threads", "kernel", "ratio", "again", ""],
            ([row["case"], row["pass"], row["threads"], row["kernel"], _ratio(row["ratio"]),
              " ".join(f"{ratio:.2f}" for ratio in sweep.ratios(row)[1:]),
              "slower" if sweep.is_slower(row) else ""] for row in below))


def _memory(rows: Rows) -> Iterator[str]:
    yield ("By `python -m benchmarks.run --suite memory --csv memory.csv`, in MiB: the peak of a "
           "step, and what is held between forward and backward; the same with recompute, and "
           "how many times longer a step then takes.")
    yield ""

    def cells(row: dict[str, str]) -> list[str]:
        peak, held = (row["torch_mib"], row["ours_mib"]), (row["torch_held_mib"],
                                                           row["ours_held_mib"])
        again = ["-"] * 3  # rows of earlier versions
        if row.get("recompute_mib"):
            again = [number(float(row["recompute_mib"])), percent(float(row["recompute_of_torch"])),
                     _ratio(row["recompute_time"])]
        return [row["case"], *_beside(*peak), *_beside(*held), *again]

    yield from table(["case", "peak torch.nn", "ours", "share", "held torch.nn", "ours", "share",
                      "recompute: peak", "share", "time"],
                     map(cells, rows))


def _beside(theirs: str, ours: str) -> list[str]:
    share = float(ours) / float(theirs) if float(theirs) else None
    return [number(float(theirs)), number(float(ours)), percent(share)]


def draw(rows: Rows) -> plt.Figure:
    """Layers in inference beside every peer, in training beside torch.nn, and the sweep."""
    layers, swept = of_suite(rows, "layers"), of_suite(rows, "sweep")
    layers = [r for r in layers if all(r[n] == layers[0][n] for n in ("dtype", "threads"))]
    panels = [p for p in ("inference", "training") if any(row["pass"] == p for row in layers)]
    count = len(panels) + bool(swept)
    if not count:
        raise ValueError("no row of layers or sweep was timed: nothing to draw")
    tallest = len({row["case"] for row in layers})
    figure, axes = plt.subplots(1, count, figsize=(6.5 * count, max(4.0, 1.8 + 0.45 * tallest)),
                                squeeze=False, layout="constrained")
    for place, pass_ in zip(axes[0], panels, strict=False):
        bars(place, [{"case": row["case"], "peer": PEERS[name], "ratio": row[RATIO[name]]}
                     for name in PEERS for row in layers if row["pass"] == pass_],
             "ratio", "peer", "time / that of gatedrnn", 1)
        place.set_title(f"layers, {pass_}")
        place.legend(fontsize=8)
    if swept:
        _draw_sweep(axes[0][-1], swept)
    about = rows[0]
    figure.suptitle(f"{about['device']}, {about['isa']}, torch {about['torch']}, gatedrnn "
                    f"{about['gatedrnn']} {about['commit']}, {about['date'][:10]}", fontsize=9)
    return figure


def _draw_sweep(axes: Axes, rows: Rows) -> None:
    for cell, pass_ in dict.fromkeys((row["cell"], row["pass"]) for row in rows):
        found = sorted(sweep.ratios(row)[0] for row in rows
                       if (row["cell"], row["pass"]) == (cell, pass_))
        axes.plot(np.linspace(0, 100, len(found)), found, label=f"{cell} {pass_}")
    axes.set_yscale("log")
    axes.axhline(1, color="black", linewidth=0.8)
    axes.set_xlabel("cases of the sweep, slowest first, %")
    axes.set_ylabel("torch.nn / gatedrnn, time")
    axes.set_title("sweep")
    axes.legend(fontsize=8)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cpu_summary", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("csv", type=Path, nargs="+",
                        help="written by python -m benchmarks.run --csv FILE")
    parser.add_argument("-o", "--output", type=Path, default=FOLDER, metavar="FOLDER",
                        help="where to (default: benchmarks/results)")
    args = parser.parse_args(argv)
    page_path, picture = args.output / "cpu.md", args.output / "cpu.png"
    try:
        rows = read(args.csv)
        figure = draw(rows)
        figure.savefig(picture, dpi=110)
        page_path.write_text(page(rows, picture.name), encoding="utf-8")
    except (OSError, ValueError) as error:
        parser.error(str(error))
    plt.close(figure)
    print(page_path, picture, sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
