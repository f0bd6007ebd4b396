"""The command line: four commands and their options."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from pathlib import Path

from . import commands
from .errors import DataError
from .model import BACKENDS, CELLS
from .protocols import FEW_WINDOWS, PROTOCOLS, SIZES, Sizes

PROG = "python -m examples.energy"
DESCRIPTION = """\
Forecast hourly electricity demand with a GRU and an LSTM, and hold both against repetitions of the
past and a linear autoregression.

commands:
  compare    train models side by side and print one table (what runs without a command)
  train      train one model and keep it: checkpoints, results, pictures; --resume goes on
  evaluate   measure a kept model on a test part, region by region
  forecast   the hours after the end of a series, with a band, as CSV and picture

Data: without an option, a SYNTHETIC series of four invented regions. With --data DIR, PJM's files
as Kaggle ships them (robikscube/hourly-energy-consumption). With --csv FILE, any hourly series:
a column of times and one of values.

Two protocols, on the same code. clean: the scale is learned from the training part only, a
validation part chooses the epoch, no window crosses a gap, every window starts from zeros.
article: as the experiment that this one retells, faults included, with its figures beside ours."""

EXAMPLES = f"""\
examples:
  {PROG}                                         GRU and LSTM on the synthetic series
  {PROG} compare --data pjm --seeds 0,1,2        all of PJM, mean and spread of three seeds
  {PROG} compare --backend both --model gru      our kernels beside torch.nn's
  {PROG} compare --data pjm --protocol article --windows 10240
  {PROG} train --data pjm --out runs/gru         Ctrl-C keeps the best epoch so far
  {PROG} train --data pjm --out runs/gru --resume
  {PROG} evaluate runs/gru/best.pt --data pjm --on article
  {PROG} forecast my.csv --out tomorrow          trains on my.csv, writes tomorrow.csv and .png
  {PROG} forecast my.csv --checkpoint runs/gru/best.pt
  torchrun --nproc-per-node 2 -m examples.energy train --data pjm --out runs/gru

COMMAND --help tells a command's options."""


def number(
    kind: type[int] | type[float], accepts: Callable[[float], bool], text: str
) -> Callable[[str], float]:
    """An argparse type: a number that `accepts` takes, described by `text` where it does not."""

    def parse(argument: str) -> float:
        try:
            value = kind(argument)
        except ValueError:
            value = float("nan")  # which no range accepts
        if not accepts(value):
            raise argparse.ArgumentTypeError(f"expected {text}, not {argument!r}")
        return value

    return parse


COUNT = number(int, lambda n: n >= 1, "a whole number from 1")
SEED = number(int, lambda n: 0 <= n < 2**31, "a whole number from 0")


def seeds(argument: str) -> list[int]:
    return [int(SEED(part)) for part in argument.split(",")]


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=PROG,
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND")

    compare = subparsers.add_parser("compare", help="train models side by side")
    add_data(compare)
    add_sizes(compare)
    compare.add_argument("--model", choices=[*CELLS, "both"], default="both", help="(default both)")
    add_run(compare, [*BACKENDS, "both"])
    compare.add_argument("--seeds", type=seeds, default=[0], metavar="0,1", help="(default 0)")
    compare.add_argument(
        "--out", type=Path, metavar="DIR", help="for results.json, pictures and models"
    )
    compare.set_defaults(run=commands.compare)

    train = subparsers.add_parser("train", help="train one model and keep it")
    add_data(train)
    add_sizes(train)
    train.add_argument("--model", choices=list(CELLS), default="gru", help="(default gru)")
    add_run(train, list(BACKENDS))
    train.add_argument("--seed", type=SEED, default=0, help="(default 0)")
    train.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        default=Path("runs/energy"),
        help="for best.pt, last.pt, results.json and pictures (default runs/energy)",
    )
    train.add_argument(
        "--resume", action="store_true", help="go on after the last whole epoch in DIR"
    )
    train.set_defaults(run=commands.train)

    evaluate = subparsers.add_parser("evaluate", help="measure a kept model")
    evaluate.add_argument("checkpoint", type=Path, help="best.pt of a training")
    add_data(evaluate)
    evaluate.add_argument(
        "--on",
        choices=["own", "article"],
        default="own",
        help="own: the test part of its protocol. article: the next hour of every row in "
        "the last tenth, as in the article, gaps and repeated hours included",
    )
    add_run(evaluate, list(BACKENDS))
    evaluate.add_argument("--out", type=Path, metavar="DIR", help="for pictures")
    evaluate.set_defaults(run=commands.evaluate)

    forecast = subparsers.add_parser("forecast", help="the hours after the end of a series")
    forecast.add_argument("csv", type=Path, nargs="?", metavar="CSV", help="the series")
    add_series(forecast)
    forecast.add_argument("--data", type=Path, metavar="DIR", help="PJM's files, instead of CSV")
    forecast.add_argument("--region", metavar="A", help="which of PJM's, or of the synthetic ones")
    forecast.add_argument(
        "--checkpoint", type=Path, metavar="FILE", help="best.pt; without it, train on the series"
    )
    add_run(forecast, list(BACKENDS))
    forecast.add_argument(
        "--out",
        type=Path,
        metavar="NAME",
        default=Path("forecast"),
        help="writes NAME.csv and NAME.png (default forecast)",
    )
    forecast.set_defaults(run=commands.forecast)
    return parser


def add_data(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("data (default: the synthetic series)")
    group.add_argument("--data", type=Path, metavar="DIR", help="folder of <REGION>_hourly.csv")
    group.add_argument("--regions", metavar="A,B", help="only these regions (default all)")
    group.add_argument("--csv", type=Path, metavar="FILE", help="an hourly series of your own")
    add_series(group)


def add_series(parser: argparse._ActionsContainer) -> None:
    parser.add_argument("--time", metavar="COLUMN", help="of the CSV, where it has more than two")
    parser.add_argument("--value", metavar="COLUMN", help="likewise")
    parser.add_argument(
        "--timezone", metavar="ZONE", help="whose clock the CSV follows, such as Europe/Berlin"
    )


def add_sizes(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group(
        "experiment (in brackets what the clean and the article protocol take)"
    )
    group.add_argument("--protocol", choices=list(PROTOCOLS), default="clean")
    group.add_argument(
        "--without",
        choices=["autoregression", "cyclic"],
        action="append",
        default=[],
        help="leave out a part of the clean protocol, to see what it is good for: the linear "
        "autoregression beside the layers, or the cyclic calendar (then plain numbers)",
    )
    dropout = number(float, lambda p: 0 <= p < 1, "a probability from 0 to below 1")
    lr = number(float, lambda lr: 0 < lr < float("inf"), "a positive number")
    for name, kind, metavar, text in (
        ("lookback", COUNT, "HOURS", "read before the first forecast"),
        ("told", COUNT, "N", "forecasts that a window makes, one after each of its last N hours"),
        ("horizon", COUNT, "HOURS", "ahead that are forecast"),
        ("hidden_size", COUNT, "H", "units of a layer"),
        ("layers", COUNT, "L", "recurrent layers"),
        ("dropout", dropout, "P", "between the layers"),
        ("epochs", COUNT, "N", "to train"),
        ("windows", COUNT, "N", f"drawn afresh for each epoch; without --data {FEW_WINDOWS}"),
        ("batch_size", COUNT, "B", "windows of a step, over all processes"),
        ("lr", lr, "LR", "Adam's step size"),
    ):
        clean, article = (getattr(SIZES[protocol], name) for protocol in ("clean", "article"))
        group.add_argument(
            "--" + name.replace("_", "-"),
            type=kind,
            metavar=metavar,
            help=f"{text} ({clean}, {'all' if article is None else article})",
        )


def add_run(parser: argparse.ArgumentParser, backends: Sequence[str]) -> None:
    parser.add_argument(
        "--backend", choices=backends, default="gatedrnn", help="(default gatedrnn)"
    )
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    parser.add_argument("--threads", type=COUNT, metavar="N", help="of the CPU")


def sizes(arguments: argparse.Namespace) -> Sizes:
    """The protocol's, changed where an option says so."""
    chosen = SIZES[arguments.protocol]
    if arguments.data is None:
        chosen = replace(chosen, windows=FEW_WINDOWS)
    given = {f.name: getattr(arguments, f.name) for f in fields(Sizes)}
    return replace(chosen, **{name: value for name, value in given.items() if value is not None})


def main(argv: Sequence[str] | None = None) -> int:
    parser = build_parser()
    given = list(sys.argv[1:] if argv is None else argv)
    if not given or (given[0].startswith("-") and given[0] not in ("-h", "--help")):
        given.insert(0, "compare")
    arguments = parser.parse_args(given)
    arguments.given = given
    if hasattr(arguments, "protocol"):
        arguments.sizes = sizes(arguments)
    try:
        arguments.run(arguments)
    except DataError as error:
        print(f"{PROG}: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"{PROG}: stopped; of a training, whole epochs are kept", file=sys.stderr)
        return 130
    return 0
