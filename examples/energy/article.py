"""Figures that the article prints, to stand beside ours."""

from __future__ import annotations

from typing import NamedTuple


class ArticleFigures(NamedTuple):
    first_loss: float  # mean squared error of the scaled load, first epoch
    second_loss: float
    seconds: float  # five epochs on its GPU
    smape: float  # percent, as its code prints it: a quarter of the formula's


ARTICLE_WINDOWS = 980_185
ARTICLE_FIGURES = {
    "gru": ArticleFigures(0.001845, 0.000206, 390.5, 0.281),
    "lstm": ArticleFigures(0.003436, 0.000263, 462.7, 0.270),
}
