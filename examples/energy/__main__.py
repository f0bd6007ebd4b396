"""The command line: read or make a series, train, print the comparison."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from .data import DataError, Region, load_regions
from .model import BACKENDS, CELLS, ModelConfig
from .synthetic import synthetic_regions
from .train import Result, TrainConfig, smape, train_and_test, windows_per_epoch
from .windows import Windows, make_windows

DESCRIPTION = """\
Forecast the next hour's electricity demand from the hours before it, with a GRU and an LSTM of
the same size, and compare both with "the same hour last week".

Without --data it runs on a SYNTHETIC series of four invented regions. With --data it reads PJM's
hourly files as Kaggle ships them (robikscube/hourly-energy-consumption): <REGION>_hourly.csv with
the columns Datetime,<REGION>_MW."""

EXAMPLES = """\
examples:
  python -m examples.energy                               the synthetic series, both models
  python -m examples.energy --backend torch               the same with torch.nn's layers
  python -m examples.energy --data pjm --regions AEP,DAYTON --max-windows 20000
  python -m examples.energy --data pjm --hidden-size 256 --batch-size 1024 --dropout 0.2 --epochs 5
                                                          the article's size (hours on a CPU)"""

SYNTHETIC_WINDOWS = 16_000


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


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m examples.energy",
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    count = number(int, lambda n: n >= 1, "a whole number from 1")
    data = parser.add_argument_group("data")
    data.add_argument("--data", type=Path, metavar="DIR", help="folder of <REGION>_hourly.csv")
    data.add_argument("--regions", metavar="A,B", help="only these regions (default: all)")
    data.add_argument(
        "--lookback", type=count, default=90, metavar="HOURS", help="hours read (default: 90)"
    )
    data.add_argument(
        "--max-windows",
        type=count,
        metavar="N",
        help="draw N training windows afresh for each epoch (default: all of them with --data, "
        f"{SYNTHETIC_WINDOWS} without)",
    )
    model = parser.add_argument_group("model")
    model.add_argument("--model", choices=[*CELLS, "both"], default="both", help="(default: both)")
    model.add_argument(
        "--backend",
        choices=list(BACKENDS),
        default="gatedrnn",
        help="whose GRU and LSTM (default: gatedrnn)",
    )
    model.add_argument(
        "--hidden-size", type=count, default=48, metavar="H", help="units a layer (default: 48)"
    )
    model.add_argument("--layers", type=count, default=2, metavar="L", help="(default: 2)")
    model.add_argument(
        "--dropout",
        type=number(float, lambda p: 0 <= p < 1, "a probability from 0 to below 1"),
        default=0.0,
        metavar="P",
        help="between the layers (default: 0)",
    )
    training = parser.add_argument_group("training")
    training.add_argument("--epochs", type=count, default=4, metavar="N", help="(default: 4)")
    training.add_argument("--batch-size", type=count, default=32, metavar="B", help="(default: 32)")
    training.add_argument(
        "--lr",
        type=number(float, lambda lr: 0 < lr < float("inf"), "a positive number"),
        default=0.002,
        help="Adam's step size (default: 0.002)",
    )
    training.add_argument(
        "--seed",
        type=number(int, lambda n: 0 <= n < 2**63, "a whole number from 0"),
        default=0,
        help="of weights, batches and dropout (default: 0)",
    )
    training.add_argument(
        "--threads", type=count, metavar="N", help="CPU threads (default: torch's choice)"
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    parser = build_parser()
    arguments = parser.parse_args(argv)
    try:
        run(arguments)
    except DataError as error:
        print(f"{parser.prog}: error: {error}", file=sys.stderr)
        return 2
    return 0


def run(arguments: argparse.Namespace) -> None:
    names = None
    if arguments.regions is not None:
        names = [name.strip() for name in arguments.regions.split(",")]
    if arguments.data is None:
        source = "SYNTHETIC demand, not measured anywhere"
        regions = synthetic_regions(names)
        max_windows = arguments.max_windows or SYNTHETIC_WINDOWS
    else:
        source = f"demand from {arguments.data}"
        regions = load_regions(arguments.data, names)
        max_windows = arguments.max_windows
    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
    data = make_windows(regions, arguments.lookback)
    model = ModelConfig(
        arguments.hidden_size, arguments.layers, arguments.dropout, arguments.backend
    )
    config = TrainConfig(
        arguments.epochs, arguments.batch_size, arguments.lr, arguments.seed, max_windows
    )
    print(describe(source, regions, data, model, config), flush=True)
    cells = list(CELLS) if arguments.model == "both" else [arguments.model]
    results = [train_and_test(cell, data, model, config) for cell in cells]
    print(f"\nNext hour's load: {source}; {len(data.test):,} test windows; {arguments.backend}")
    print(table(results, smape(data.last_week, data.actual)))


def describe(
    source: str, regions: Sequence[Region], data: Windows, model: ModelConfig, config: TrainConfig
) -> str:
    """What is about to happen, region by region."""
    lines = [f"Data: {source}"]
    for region in regions:
        load = region.load
        lines.append(
            f"  {region.name:<9} {len(load):>8,} hours, {load.index[0]:%Y-%m-%d} to "
            f"{load.index[-1]:%Y-%m-%d}, mean {load.mean():,.0f} MW ({region.note})"
        )
    lines += [
        f"Windows of {data.lookback} hours: {len(data.train):,} to train on "
        f"({windows_per_epoch(data, config):,} drawn an epoch), {len(data.test):,} to test on "
        "(the last tenth of each region)",
        f"Models: {model.layers} layers of {model.hidden_size}, dropout {model.dropout:g}, "
        f"from {BACKENDS[model.backend]}; {config.epochs} epochs of Adam at {config.lr:g}, "
        f"batches of {config.batch_size}, seed {config.seed}, "
        f"threads {torch.get_num_threads()}",
    ]
    return "\n".join(lines)


def table(results: Sequence[Result], last_week: float) -> str:
    """One line a forecaster; train loss is the last epoch's mean squared error, scaled."""
    heads = ("forecast by", "parameters", "train loss", "test sMAPE", "s/epoch", "windows/s")
    rows = [
        (
            result.label,
            f"{result.parameters:,}",
            f"{result.epoch_losses[-1]:.6f}",
            f"{result.smape:.2f} %",
            f"{result.seconds / len(result.losses):.1f}",
            f"{result.windows / result.seconds:,.0f}",
        )
        for result in results
    ]
    rows.append(("same hour last week", "-", "-", f"{last_week:.2f} %", "-", "-"))
    return "\n".join(
        f"  {name:<20}" + "".join(f"{cell:>12}" for cell in cells)
        for name, *cells in [heads, *rows]
    )


if __name__ == "__main__":
    sys.exit(main())
