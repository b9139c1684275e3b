"""The moments of the gain of a whole population, in NumPy and float64."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class Moments(NamedTuple):
    mean_square: float
    square: float
    score: float
    square_per_score: float

    @property
    def drawn_square(self) -> float:
        return self.score * self.square_per_score


def moments(gradients: np.ndarray, scores: np.ndarray) -> Moments:
    """A, U, S, Q of gradients [n, d] and scores [n]."""
    squares = (gradients**2).sum(axis=1)
    mean = gradients.mean(axis=0)
    return Moments((mean**2).sum(), squares.mean(), scores.mean(), (squares / scores).mean())


def rounding(scores: np.ndarray, rate: float) -> float:
    """F(ρ) = E[f(1 − f)]/ρ, f the fractional part of ρ Ĝ/S."""
    counts = rate * scores / scores.mean()
    fractions = counts % 1
    return (fractions * (1 - fractions)).mean() / rate
