"""Tells the rows of a GPU's CSV as a page of Markdown beside it.

    python -m benchmarks.summary benchmarks/results/GPU.csv      writes GPU.md
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from .report import GPU_NAMES, number, percent, read_csv

Rows = list[dict[str, str]]
ABOUT = {
    "device": "GPU", "driver": "driver", "sm_mhz": "SM clock, MHz", "memory_mhz":
    "memory clock, MHz", "l2": "L2", "torch": "torch", "cuda": "CUDA", "cudnn": "cuDNN",
    "gatedrnn": "gatedrnn", "commit": "commit",
}
OTHERS = ("haste_ms", "flashrnn_ms", "torchrl_ms")


def latest(rows: Rows) -> Rows:
    """Of rows that measure the same the last one, at the place of the first."""
    found = {(r["suite"], r["case"], r["dtype"], r["pass"], r["l2"], r["device"]): r for r in rows}
    return list(found.values())


def page(rows: Rows, notes: Sequence[str] = ()) -> str:
    """The page's text: where and with what, the ratios at a glance, then every figure."""
    rows = latest(rows)
    lines = [f"# Times on {' and '.join(values(rows, 'device'))}", ""]
    lines += [f"- {title}: {', '.join(values(rows, name))}" for name, title in ABOUT.items()]
    days = sorted(row["date"][:10] for row in rows)
    lines.append(f"- date: {' to '.join(dict.fromkeys([days[0], days[-1]]))}")
    lines += [f"- {note}" for note in notes]
    for suite in values(rows, "suite"):
        own = [row for row in rows if row["suite"] == suite]
        lines += ["", f"## {suite}: how many times faster than torch.nn", "", *_ratios(own)]
        lines += ["", f"## {suite}: times", "", *_times(own)]
    left = [row for row in rows if row["status"] != "ok"]
    if left:
        lines += ["", "## Not timed", ""]
        lines += [f"- {r['case']}, {r['dtype']}, {r['pass']}: {r['status']}" for r in left]
    peers = {(row["case"], row["dtype"], row["peers"]) for row in rows if row["peers"]}
    if peers:
        lines += ["", "## Peers that did not run", ""]
        lines += [f"- {case}, {dtype}: {why}" for case, dtype, why in sorted(peers)]
    return "\n".join(lines) + "\n"


def values(rows: Rows, name: str) -> list[str]:
    return list(dict.fromkeys(row[name] for row in rows if row[name])) or ["unknown"]


def table(titles: Sequence[str], body: Iterator[list[str]]) -> Iterator[str]:
    yield f"| {' | '.join(titles)} |"
    yield "| --- " + "| ---: " * (len(titles) - 1) + "|"
    for cells in body:
        yield f"| {' | '.join(cells)} |"


def _ratios(rows: Rows) -> Iterator[str]:
    """A line for each case, a column for each dtype and pass."""
    kinds = list(dict.fromkeys((row["dtype"], row["pass"]) for row in rows))
    ratios = {(r["case"], r["dtype"], r["pass"]): r["ratio"] for r in rows}

    def cells(case: str) -> list[str]:
        found = [ratios.get((case, *kind)) for kind in kinds]
        return [case, *(f"{float(ratio):.2f}" if ratio else "-" for ratio in found)]

    cases = dict.fromkeys(row["case"] for row in rows)
    return table(["case", *map(" ".join, kinds)], map(cells, cases))


def _times(rows: Rows) -> Iterator[str]:
    others = [name for name in OTHERS if any(row[name] for row in rows)]
    titles = ["case", "dtype", "pass", "torch ms", *(n.replace("_", " ") for n in others),
              "ours ms", "20 - 80 %", "kernel", "TFLOP/s", "GB/s", "of the limit", "of the floor",
              "MiB torch", "MiB ours", "of torch's", "error torch", "error ours"]

    def cells(row: dict[str, str]) -> list[str]:
        def value(name: str) -> float | None:
            return float(row[name]) if row[name] else None

        tflops = value("gflops")
        return [
            row["case"], row["dtype"], row["pass"], number(value("torch_ms")),
            *(number(value(name)) for name in others), number(value("ours_ms")),
            f"{number(value('ours_p20_ms'))} - {number(value('ours_p80_ms'))}",
            row["kernel"] or "-", number(None if tflops is None else tflops / 1e3),
            number(value("gb_per_s")),
            f"{percent(value('share'))} ({row['limited_by']})",
            f"{percent(value('floor_share'))} ({row['floor_by']})" if row["floor_by"] else "-",
            number(value("torch_mib")), number(value("ours_mib")), percent(value("of_torch")),
            *(f"{value(n):.1e}" for n in ("peer_error", "ours_error")),
        ]

    return table(titles, (cells(row) for row in rows if row["status"] == "ok"))


def write(path: Path, notes: Sequence[str] = ()) -> Path:
    """Writes the page of the CSV `path` beside it. Raises ValueError if there are no rows."""
    rows = read_csv(path, GPU_NAMES)
    if not rows:
        raise ValueError(f"{path} holds no row")
    page_path = path.with_suffix(".md")
    page_path.write_text(page(rows, notes), encoding="utf-8")
    return page_path


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.summary", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("csv", type=Path, help="written by python -m benchmarks.run --device cuda")
    try:
        print(write(parser.parse_args(argv).csv))
    except (OSError, ValueError) as error:
        parser.error(str(error))
    return 0


if __name__ == "__main__":
    sys.exit(main())
