"""Smoothing of scores by a constant (Alain et al. 2015, section B.3), given or found."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from tf_importance.arguments import Written, number

# From usable scores [k] ≥ 0 to the constant.
Smoothing = Callable[[np.ndarray], float]

_AT_MOST = 2**16
_HALVINGS = 60


def entropy(scores: np.ndarray, constant: float = 0.0) -> float:
    """H(p) of p_i ∝ ω̃_i + c, in nats; log k where all are 0.

    Args:
        scores: [k] ω̃_i. constant: c.
    """
    smoothed = scores.astype(np.float64) + constant
    total = smoothed.sum()
    if total <= 0:
        return math.log(len(scores))
    positive = smoothed[smoothed > 0] / total
    return float(-(positive * np.log(positive)).sum())


class Constant(Written):
    """The same c for all scores, in their units.

    Args:
        constant: c ≥ 0; the paper's are 10 and 1.
    Raises:
        ValueError: it is negative or not finite.
    """

    def __init__(self, constant: float) -> None:
        self._constant = number(
            "smoothing", constant, "finite and not negative", lambda c: 0 <= c < math.inf
        )

    def __call__(self, scores: np.ndarray) -> float:
        return self._constant


class TargetEntropy(Written):
    """The least c that lifts the proposal's entropy to a target.

    "With a smoothing constant sufficiently large, we can bring this entropy down to any target
    level" (section B.3; up is meant): H grows with c, from that of the scores to log k, so that
    halving an interval finds it. Of more than 65,536 scores every m-th is looked at.

    Args:
        fraction: of log k, the entropy of the uniform proposal; in (0, 1).
    Raises:
        ValueError: it is not.
    """

    def __init__(self, fraction: float) -> None:
        self._fraction = number(
            "fraction of the largest entropy", fraction, "in (0, 1)", lambda part: 0 < part < 1
        )

    def __call__(self, scores: np.ndarray) -> float:
        some = scores[:: -(-len(scores) // _AT_MOST)] if len(scores) else scores
        if len(some) < 2 or some.max() <= 0:
            return 0.0
        target, largest = self._fraction * math.log(len(some)), float(some.max())
        relative = some / largest
        if entropy(relative) >= target:
            return 0.0
        low, high = -60.0, 60.0  # Logarithms of c, in units of the largest score.
        for _ in range(_HALVINGS):
            middle = (low + high) / 2
            low, high = (
                (low, middle) if entropy(relative, math.exp(middle)) >= target else (middle, high)
            )
        return largest * math.exp(high)


def as_smoothing(given: float | Smoothing) -> Smoothing:
    """A number as a constant; a function as it is."""
    return given if callable(given) else Constant(given)
