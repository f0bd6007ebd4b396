"""What the four commands do."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from . import plots, report
from .baselines import REPETITIONS, baselines
from .checkpoint import BEST, Checkpoint, load_checkpoint
from .csv_input import Source, read_series
from .data import Region, load_regions
from .distributed import World, world
from .errors import DataError
from .evaluate import Measured, Scores, measured, score
from .experiment import Experiment, Trained, fit, prepare
from .model import BACKENDS, CELLS
from .predict import predict, write_forecast
from .protocols import CLEAN, FEW_WINDOWS, PROTOCOLS, SIZES, Protocol, Sizes
from .report import Run
from .synthetic import REGIONS, synthetic_regions
from .train import forecast as forecast_part


def compare(arguments: argparse.Namespace) -> None:
    cells = list(CELLS) if arguments.model == "both" else [arguments.model]
    backends = list(BACKENDS) if arguments.backend == "both" else [arguments.backend]
    experiment, source = set_up(arguments)
    with world(experiment.windows.hours.device) as processes:
        if processes.writes:
            print(report.describe(source, experiment), flush=True)
        trained: list[Trained] = []
        for seed in arguments.seeds:
            for cell in cells:
                for backend in backends:
                    if not (trained and trained[-1].interrupted):
                        kept = arguments.out and arguments.out / f"{cell}-{backend}-{seed}"
                        trained.append(fit(experiment, cell, backend, seed, processes, kept))
        conclude(arguments, processes, experiment, source, trained)


def train(arguments: argparse.Namespace) -> None:
    experiment, source = set_up(arguments)
    with world(experiment.windows.hours.device) as processes:
        if processes.writes:
            print(report.describe(source, experiment), flush=True)
        trained = fit(
            experiment,
            arguments.model,
            arguments.backend,
            arguments.seed,
            processes,
            arguments.out,
            arguments.resume,
        )
        conclude(arguments, processes, experiment, source, [trained])
        if processes.writes:
            best = trained.history.best
            print(f"\nThe weights of epoch {best} are in {arguments.out / BEST}")
            if trained.interrupted:
                print("Stopped early: the same command with --resume goes on")


def evaluate(arguments: argparse.Namespace) -> None:
    device = choose_device(arguments)
    checkpoint = load_checkpoint(arguments.checkpoint)
    protocol, sizes = checkpoint.protocol, sizes_of(checkpoint)
    if arguments.on == "article":
        protocol = replace(protocol, raw_rows=True, crosses_gaps=True)
        sizes = replace(sizes, horizon=1)
    regions, source = read_regions(arguments, protocol)
    experiment = prepare(regions, protocol, sizes, device, checkpoint.scales)
    network = checkpoint.network(arguments.backend).to(device)
    truth = test_part(experiment)
    forecasts = forecast_part(network, experiment.windows, experiment.windows.test)
    forecasts = forecasts[:, : sizes.horizon]
    label = checkpoint.cell.upper()
    scores = {label: score(truth, forecasts)} | score_baselines(experiment, truth)
    print(f"{label} of {arguments.checkpoint}, trained by the {protocol.name} protocol")
    print(f"Test part: {arguments.on}; {len(truth.origins):,} forecasts; {source}\n")
    print(report.scores_table(scores))
    print(f"\nNext hour's sMAPE by region\n{report.by_region(scores)}")
    if arguments.out is not None:
        draw(arguments.out, label, truth, forecasts, scores)


def forecast(arguments: argparse.Namespace) -> None:
    device = choose_device(arguments)
    region, source = read_one(arguments)
    print(f"Data: {source}\n  {report.region_line(region)}", flush=True)
    if arguments.checkpoint is not None:
        checkpoint = load_checkpoint(arguments.checkpoint)
        protocol, shape = checkpoint.protocol, checkpoint.shape
        network = checkpoint.network(arguments.backend).to(device)
        scale = checkpoint.scales.get(region.name)
    else:
        protocol = CLEAN
        sizes = replace(SIZES["clean"], windows=FEW_WINDOWS)
        experiment = prepare([region], protocol, sizes, device)
        trained = fit(experiment, "gru", arguments.backend, 0, World())
        network, shape = trained.network, experiment.windows.shape
        scale = experiment.windows.scales[region.name]
        truth = test_part(experiment)
        scores = score(truth, forecast_part(network, experiment.windows, experiment.windows.test))
        print(f"\nOn the last tenth of it:\n{report.scores_table({trained.label: scores})}")
    table = predict(network, region, protocol, shape, scale)
    csv, png = (arguments.out.with_name(arguments.out.name + end) for end in (".csv", ".png"))
    write_forecast(table, csv)
    plots.future(png, region, table)
    print(f"\n{table.round(1).to_string()}\n\nWritten: {csv}, {png}")


def set_up(arguments: argparse.Namespace) -> tuple[Experiment, str]:
    device = choose_device(arguments)
    protocol = PROTOCOLS[arguments.protocol]
    protocol = replace(protocol, **dict.fromkeys(arguments.without, False))
    regions, source = read_regions(arguments, protocol)
    return prepare(regions, protocol, arguments.sizes, device), source


def choose_device(arguments: argparse.Namespace) -> torch.device:
    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
    if arguments.device == "cuda" and not torch.cuda.is_available():
        raise DataError("--device cuda: torch finds no GPU here")
    cuda = arguments.device != "cpu" and torch.cuda.is_available()
    return (
        torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0))) if cuda else torch.device("cpu")
    )


def read_regions(arguments: argparse.Namespace, protocol: Protocol) -> tuple[list[Region], str]:
    names = None
    if arguments.regions is not None:
        names = [name.strip() for name in arguments.regions.split(",")]
    if arguments.csv is not None:
        if arguments.data is not None or names is not None:
            raise DataError("--csv is one series: it goes with neither --data nor --regions")
        return [read_series(csv_source(arguments))], f"{arguments.csv}"
    if arguments.data is not None:
        return load_regions(arguments.data, names, protocol.raw_rows), f"demand, {arguments.data}"
    return synthetic_regions(names), "SYNTHETIC demand, not measured anywhere"


def read_one(arguments: argparse.Namespace) -> tuple[Region, str]:
    """The series that `forecast` goes on with."""
    if arguments.csv is not None:
        return read_series(csv_source(arguments)), f"{arguments.csv}"
    if arguments.data is not None:
        if arguments.region is None:
            raise DataError("--data holds several regions: say which with --region")
        (region,) = load_regions(arguments.data, [arguments.region])
        return region, f"demand, {arguments.data}"
    name = arguments.region or next(iter(REGIONS))
    (region,) = synthetic_regions([name])
    return region, "SYNTHETIC demand, not measured anywhere"


def csv_source(arguments: argparse.Namespace) -> Source:
    return Source(arguments.csv, arguments.time, arguments.value, arguments.timezone)


def sizes_of(checkpoint: Checkpoint) -> Sizes:
    model, shape, config = checkpoint.model, checkpoint.shape, checkpoint.config
    return Sizes(
        shape.lookback,
        shape.told,
        shape.horizon,
        model.hidden_size,
        model.layers,
        model.dropout,
        config.epochs,
        config.batch_size,
        config.lr,
        config.windows,
    )


def test_part(experiment: Experiment) -> Measured:
    windows = experiment.windows
    return measured(windows, windows.test.origins(windows.shape))


def score_baselines(experiment: Experiment, truth: Measured) -> dict[str, Scores]:
    windows = experiment.windows
    told = baselines(windows, windows.test.origins(windows.shape), experiment.linear)
    return {name: score(truth, scaled) for name, scaled in told.items()}


def conclude(
    arguments: argparse.Namespace,
    processes: World,
    experiment: Experiment,
    source: str,
    trained: Sequence[Trained],
) -> None:
    """The table, and results and pictures where a folder is named; by one process only."""
    if not processes.writes:
        return
    windows, truth = experiment.windows, test_part(experiment)
    told = [forecast_part(model.network, windows, windows.test) for model in trained]
    runs = [Run(model, score(truth, scaled)) for model, scaled in zip(trained, told, strict=True)]
    references = score_baselines(experiment, truth)
    print(f"\n{source}; {len(truth.origins):,} forecasts")
    print(report.comparison(runs, references, windows.shape.horizon))
    if len({model.backend for model in trained}) > 1:
        print(report.backend_differences(runs))
    if experiment.protocol.name == "article":
        print(report.beside_article(runs))
    if arguments.out is None:
        return
    report.write_results(
        arguments.out / "results.json", arguments.given, source, experiment, runs, references
    )
    first: dict[str, Trained] = {}
    for model in trained:
        first.setdefault(model.name, model)
    plots.losses(
        arguments.out / "losses.png",
        {name: model.history.epoch_losses for name, model in first.items()},
        {name: model.history.validation for name, model in first.items()},
    )
    scores = {run.trained.name: run.scores for run in runs if run.trained in first.values()}
    draw(arguments.out, runs[0].trained.label, truth, told[0], scores | references)
    print(f"\nResults and pictures are in {arguments.out}")


def draw(
    folder: Path, label: str, truth: Measured, forecasts: Tensor, scores: dict[str, Scores]
) -> None:
    plots.panels(folder / "panels.png", truth, forecasts, label)
    learned = {name: scored for name, scored in scores.items() if name not in REPETITIONS}
    plots.errors(folder / "errors.png", learned)
