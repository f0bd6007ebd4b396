"""Draws a CSV of benchmarks.run: how many times faster than torch.nn, and how near to the limit."""

import argparse
import csv
import sys
from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes

Rows = list[dict[str, str]]


def read(path: Path) -> Rows:
    """The rows that were timed. Raises ValueError if this is no CSV of ours or nothing was."""
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        missing = {"suite", "case", "pass", "ours_ms", "ratio", "share"} - {
            *(reader.fieldnames or [])
        }
        if missing:
            raise ValueError(f"{path} is no CSV of benchmarks.run: it lacks {sorted(missing)}")
        rows = [row for row in reader if row["ours_ms"]]
    if not rows:
        raise ValueError(f"{path} holds no row that was timed")
    if "l2" in rows[0]:  # of a GPU: one file has every dtype, and a bar for each
        rows = [row | {"pass": f"{row['pass']} {row['dtype']}"} for row in rows]
    return rows


def bars(axes: Axes, rows: Rows, column: str, group: str, label: str, scale: float) -> None:
    """Horizontal bars: a place for each case, in it a bar for each value of `group`."""
    rows = [row for row in rows if row[column]]
    names = list(dict.fromkeys(row["case"] for row in rows))
    groups = list(dict.fromkeys(row[group] for row in rows))
    thickness = 0.8 / max(1, len(groups))
    for k, value in enumerate(groups):
        own = [row for row in rows if row[group] == value]
        places = [names.index(row["case"]) + (k - (len(groups) - 1) / 2) * thickness for row in own]
        drawn = axes.barh(places, [scale * float(row[column]) for row in own], thickness,
                          label=value)
        axes.bar_label(drawn, fmt="%.2f" if scale == 1 else "%.0f", padding=2, fontsize=7)
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.axvline(scale, color="black", linewidth=0.8)
    axes.margins(x=0.12)
    axes.set_xlabel(label)


def draw(rows: Rows) -> plt.Figure:
    """Modules: the ratio and the share of the limit. Kernels: the share, a panel for each pass."""
    ratios = [row for row in rows if row["ratio"]]
    if ratios:
        panels = [("ratio", "pass", "torch.nn / gatedrnn, time", 1, rows, ""),
                  ("share", "pass", "share of the machine's limit, %", 100, rows, "")]
    else:
        planned = [row for row in rows if row["share"] and row["partition"] in ("", "plan")]
        panels = [
            ("share", "isa", "share of the machine's limit, %", 100,
             [row for row in planned if row["pass"] == name], name)
            for name in dict.fromkeys(row["pass"] for row in planned)
        ]
    if not panels:
        raise ValueError("no row has a ratio or a share of the limit: nothing to draw")
    tallest = max(len({row["case"] for row in panel[4]}) for panel in panels)
    bar_count = max(len({row[panel[1]] for row in panel[4]}) for panel in panels)
    height = 1.8 + tallest * max(0.45, 0.15 * bar_count)
    figure, axes = plt.subplots(1, len(panels), figsize=(6.5 * len(panels), height),
                                squeeze=False, layout="constrained")
    for place, (column, group, label, scale, own, title) in zip(axes[0], panels, strict=True):
        bars(place, own, column, group, label, scale)
        place.set_title(title)
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), fontsize=8)
    about = rows[0]
    kind = about["suite"] if "l2" in about else f"{about['suite']}, {about['dtype']}"
    machine = f"L2 {about['l2']}" if "l2" in about else f"{about['threads']} threads"
    figure.suptitle(
        f"{kind}: {about['device']}, {machine}, "
        f"torch {about['torch']}, gatedrnn {about['gatedrnn']} {about['commit']}, "
        f"{about['date'][:10]}",
        fontsize=9,
    )
    return figure


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.plot", description=__doc__)
    parser.add_argument("csv", type=Path, help="written by python -m benchmarks.run --csv FILE")
    parser.add_argument("-o", "--output", type=Path, help="the picture (default: beside the CSV)")
    args = parser.parse_args(argv)
    output = args.output or args.csv.with_suffix(".png")
    try:
        figure = draw(read(args.csv))
        figure.savefig(output, dpi=120)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    plt.close(figure)
    print(output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
