"""Makes of the suite plan's rows the table that the plan goes by, csrc/measured_table.h.

    python -m benchmarks.plan_table benchmarks/results/*-plan.csv      then build anew

A pass of a case stands there if two kernels or more ran it; csrc/measured.h says what it decides.
"""

import argparse
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from .environment import ROOT
from .report import PLAN_NAMES, read_csv

TABLE = ROOT / "csrc" / "measured_table.h"
COMMAND = "python -m benchmarks.plan_table"
GATES = {"GRU": 3, "LSTM": 4}
# What tells cases apart, and devices of a kind.
PLACE = ("architecture", "multiprocessors", "cell", "dtype", "pass", "L", "H", "B", "T")
TEXT = """\
// Written by {command}; {origin}.
#pragma once

#include <array>

#include "measured.h"

namespace gatedrnn {{

// clang-format off
constexpr std::array<Measurement, {count}> kMeasured = {{{{
{rows}}}}};
// clang-format on

}}  // namespace gatedrnn
"""


def text(rows: Iterable[dict[str, str]]) -> str:
    """The table of the last rows of their kind, which tell in its head where they are from."""
    last: dict[tuple[str, ...], dict[str, dict[str, str]]] = {}
    for row in rows:
        if row["status"] == "ok":
            last.setdefault(tuple(row[n] for n in PLACE), {})[row["kernel"]] = row
    lines, origins = [], {}
    for kernels in last.values():
        for row in kernels.values() if len(kernels) > 1 else ():
            lines.append(line(row))
            origins[f"{row['device']}, commit {row['commit']}, {row['date'][:10]}"] = True
    origin = "of " + "; ".join(origins) if origins else "nothing has been measured yet"
    return TEXT.format(command=COMMAND, origin=origin, count=len(lines), rows="".join(lines))


def line(row: dict[str, str]) -> str:
    """As Measurement has it."""
    tf32 = row["dtype"] == "tf32"
    kind = "float32" if tf32 else row["dtype"]
    words = [row["architecture"], row["multiprocessors"], str(GATES[row["cell"]]), f"Type::{kind}",
             str(tf32).lower(), str(row["pass"] == "backward").lower(),
             *(row[name] for name in "LHBT"), f"KernelChoice::{row['kernel']}",
             f"{1e3 * float(row['ours_ms']):.4g}"]
    return f"    {{{', '.join(words)}}},\n"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog=COMMAND, description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("csv", type=Path, nargs="+",
                        help="written by python -m benchmarks.run --device cuda --suite plan")
    parser.add_argument("--out", type=Path, default=TABLE, metavar="FILE",
                        help=f"(default: {TABLE.relative_to(ROOT)})")
    args = parser.parse_args(argv)
    try:
        found = [row for path in args.csv for row in read_csv(path, PLAN_NAMES)]
        args.out.write_text(text(found), encoding="utf-8")
    except (OSError, ValueError) as error:
        parser.error(str(error))
    print(args.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
