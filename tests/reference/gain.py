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


def rounded(squares: np.ndarray, scores: np.ndarray, rate: float) -> float:
    """D(ρ) = S² E[f(1 − f) v²/Ĝ²]/ρ, f the fractional part of ρ Ĝ/S."""
    counts = rate * scores / scores.mean()
    fractions = counts % 1
    of_each = fractions * (1 - fractions) * squares / scores**2
    return scores.mean() ** 2 * of_each.mean() / rate


def rounding(gradients: np.ndarray, scores: np.ndarray, rate: float) -> float:
    """F = D/V."""
    squares = (gradients**2).sum(axis=1)
    return rounded(squares, scores, rate) / moments(gradients, scores).drawn_square


def by_strata(
    numbers: np.ndarray, scores: np.ndarray, squares: np.ndarray, smoothing: float
) -> tuple[np.ndarray, float]:
    """Neyman's shares s of strata 0, 1, …, and V = E[(π/s)² v²] of a draw by them, looped."""
    strata = sorted(set(numbers.tolist()))
    prior = np.array([np.mean(numbers == k) for k in strata])
    spread = prior * np.array([np.sqrt(np.mean(scores[numbers == k] ** 2)) for k in strata])
    shares = (spread / spread.sum() + smoothing * prior) / (1 + smoothing)
    drawn = 0.0
    for share, part, k in zip(shares, prior, strata):
        drawn += share * (part / share) ** 2 * squares[numbers == k].mean()
    return shares, drawn
