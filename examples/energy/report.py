"""What a run found, for people (tables) and for programs (JSON)."""

from __future__ import annotations

import json
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch

import gatedrnn

from .article import ARTICLE_FIGURES, ARTICLE_WINDOWS
from .data import Region
from .evaluate import Scores
from .experiment import Experiment, Trained
from .files import whole_file
from .metrics import article_reading

FIRST = 100  # steps that are compared between backends


@dataclass(frozen=True)
class Run:
    """A trained model and how it did on the test part."""

    trained: Trained
    scores: Scores


def describe(source: str, experiment: Experiment) -> str:
    """What is about to happen, region by region."""
    windows, sizes = experiment.windows, experiment.sizes
    lines = [f"Data: {source}"]
    lines += [f"  {region_line(region)}" for region in windows.regions]
    told = f", {sizes.told} forecasts each" if sizes.told > 1 else ""
    drawn = min(len(windows.train), sizes.windows or len(windows.train))
    lines += [
        f"Protocol {experiment.protocol.name}: windows of {windows.shape.reads} hours{told}, of "
        f"{sizes.horizon} hours ahead; {len(windows.train):,} to train on, {drawn:,} drawn an "
        f"epoch; {len(windows.validation.origins(windows.shape)):,} forecasts to choose the "
        f"epoch, {len(windows.test.origins(windows.shape)):,} to measure",
        f"Models: {sizes.layers} layers of {sizes.hidden_size}, dropout {sizes.dropout:g}; "
        f"{sizes.epochs} epochs of Adam at {sizes.lr:g}, batches of {sizes.batch_size}; "
        f"{windows.hours.device}, {torch.get_num_threads()} threads",
    ]
    return "\n".join(lines)


def region_line(region: Region) -> str:
    load = region.load
    return (
        f"{region.name:<9} {len(load):>8,} hours, {load.index[0]:%Y-%m-%d} to "
        f"{load.index[-1]:%Y-%m-%d}, mean {load.mean():,.0f} ({region.note})"
    )


def comparison(runs: Sequence[Run], baselines: dict[str, Scores], horizon: int) -> str:
    """One line a model, over its seeds, and one a baseline."""
    heads = ["forecast by", "parameters", "train loss", "next hour"]
    ahead = [f"{horizon} hours", "in band"] if horizon > 1 else []
    rows = [[*heads, *ahead, "s/epoch", "windows/s"]]
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(run.trained.name, []).append(run)
    for name, group in groups.items():
        trained = [run.trained for run in group]
        seconds = mean(mean(t.history.seconds) for t in trained)
        rows.append(
            [
                name,
                f"{trained[0].parameters:,}",
                f"{mean(t.history.epoch_losses[-1] for t in trained):.6f}",
                _spread([run.scores.next_hour for run in group]),
                *_ahead([run.scores for run in group], horizon),
                f"{seconds:.1f}",
                f"{trained[0].windows / seconds:,.0f}",
            ]
        )
    for name, scores in baselines.items():
        mine = f"{scores.next_hour:.3f} %"
        rows.append([name, "-", "-", mine, *_ahead([scores], horizon), "-", "-"])
    seeds = len({run.trained.seed for run in runs})
    legend = "sMAPE on the test part, each region with an equal say"
    legend += f"; mean and standard deviation of {seeds} seeds" if seeds > 1 else ""
    return f"{legend}\n{table(rows)}"


def table(rows: Sequence[Sequence[str]]) -> str:
    """Columns as wide as their widest cell; the first to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(["", row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])])
        for row in rows
    )


def _ahead(scores: Sequence[Scores], horizon: int) -> list[str]:
    if horizon == 1:
        return []
    bands = [s.band for s in scores if s.band is not None]
    return [_spread([s.all_hours for s in scores]), f"{100 * mean(bands):.1f} %" if bands else "-"]


def scores_table(scores: dict[str, Scores]) -> str:
    rows = [["forecast by", "next hour", "as printed by the article", "all hours", "in band"]]
    for name, scored in scores.items():
        band = "-" if scored.band is None else f"{100 * scored.band:.1f} %"
        printed = article_reading(scored.next_hour)
        next_hour, all_hours = f"{scored.next_hour:.3f} %", f"{scored.all_hours:.3f} %"
        rows.append([name, next_hour, f"{printed:.3f} %", all_hours, band])
    return table(rows)


def _spread(values: Sequence[float]) -> str:
    deviation = f" +- {stdev(values):.3f}" if len(values) > 1 else ""
    return f"{mean(values):.3f}{deviation} %"


def backend_differences(runs: Sequence[Run]) -> str:
    """How far losses of the same model, seed and batches are apart between the backends."""
    lines = []
    for one in runs:
        for two in runs:
            a, b = one.trained, two.trained
            if (a.cell, a.seed) == (b.cell, b.seed) and a.backend < b.backend:
                steps = [_apart(x, y) for x, y in zip(a.losses, b.losses, strict=False)]
                epochs = zip(a.history.epoch_losses, b.history.epoch_losses, strict=False)
                lines.append(
                    f"{a.label}, seed {a.seed}: {a.backend} and {b.backend} differ by up to "
                    f"{max(steps[:FIRST]):.1e} of the loss in the first {len(steps[:FIRST])} "
                    f"steps, by {_apart(*list(epochs)[-1]):.1e} in the last epoch's mean"
                )
    return "\n".join(lines)


def _apart(a: float, b: float) -> float:
    return abs(a - b) / abs(b)


def beside_article(runs: Sequence[Run]) -> str:
    """Ours and the article's figures, where the protocol is the article's."""
    rows = [["", "loss, epoch 1", "epoch 2", "seconds", "sMAPE", "as printed"]]
    for run in runs:
        history, printed = run.trained.history, article_reading(run.scores.next_hour)
        losses = [f"{loss:.6f}" for loss in history.epoch_losses[:2]]
        rows.append(
            [
                run.trained.name,
                *[*losses, "-"][:2],
                f"{sum(history.seconds):.1f}",
                f"{run.scores.next_hour:.2f} %",
                f"{printed:.3f} %",
            ]
        )
    for cell in dict.fromkeys(run.trained.cell for run in runs):
        figures = ARTICLE_FIGURES[cell]
        rows.append(
            [
                f"{cell.upper()}, the article",
                f"{figures.first_loss:.6f}",
                f"{figures.second_loss:.6f}",
                f"{figures.seconds:.1f}",
                f"{4 * figures.smape:.2f} %",
                f"{figures.smape:.3f} %",
            ]
        )
    return (
        f"Beside the article ({ARTICLE_WINDOWS:,} windows an epoch, five epochs on its GPU):\n"
        + table(rows)
    )


def by_region(scores: dict[str, Scores]) -> str:
    """Next hour's sMAPE of each forecaster in each region."""
    rows = [["region", *scores]]
    for region in next(iter(scores.values())).by_region:
        rows.append([region, *(f"{s.by_region[region]:.2f} %" for s in scores.values())])
    return table(rows)


def write_results(
    path: Path,
    command: Sequence[str],
    source: str,
    experiment: Experiment,
    runs: Sequence[Run],
    baselines: dict[str, Scores],
) -> None:
    windows = experiment.windows
    results: dict[str, Any] = {
        "format": 1,
        "command": "python -m examples.energy " + " ".join(command),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "gatedrnn": gatedrnn.__version__,
        },
        "device": str(windows.hours.device),
        "threads": torch.get_num_threads(),
        "data": {
            "source": source,
            "regions": {r.name: {"hours": len(r.load), "note": r.note} for r in windows.regions},
            "training_windows": len(windows.train),
            "validation_forecasts": len(windows.validation.origins(windows.shape)),
            "test_forecasts": len(windows.test.origins(windows.shape)),
        },
        "protocol": asdict(experiment.protocol),
        "sizes": asdict(experiment.sizes),
        "models": [
            {
                "cell": run.trained.cell,
                "backend": run.trained.backend,
                "seed": run.trained.seed,
                "parameters": run.trained.parameters,
                "best_epoch": run.trained.history.best,
                "interrupted": run.trained.interrupted,
                "batch_losses": run.trained.history.losses,
                "epoch_losses": run.trained.history.epoch_losses,
                "validation": run.trained.history.validation,
                "seconds": run.trained.history.seconds,
                "windows_per_epoch": run.trained.windows,
                "test": run.scores.to_json(),
            }
            for run in runs
        ],
        "baselines": {name: scores.to_json() for name, scores in baselines.items()},
    }
    with whole_file(path) as temporary:
        temporary.write_text(json.dumps(results, indent=1, allow_nan=False) + "\n")
