"""Learning-rate schedules: functions of a run's progress.

Progress is the fraction of the budget that is spent, in [0, 1]. For a budget in seconds the
learning rate therefore falls by wall clock, as in Katharopoulos & Fleuret 2018, section 4.2,
and a slower method gets the same schedule in fewer steps; for one in steps it falls by steps.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from tf_importance.arguments import meant

Schedule = Callable[[float], float]


def constant(progress: float) -> float:
    """1 throughout."""
    return 1.0


def linear(progress: float) -> float:
    """From 1 straight to 0."""
    return 1.0 - min(progress, 1.0)


def cosine(progress: float) -> float:
    """From 1 to 0 along half a period of the cosine."""
    return (1.0 + math.cos(math.pi * min(progress, 1.0))) / 2


def piecewise(factors: dict[float, float]) -> Schedule:
    """1 at first; from each progress on its factor.

    Args:
        factors: factor by the progress it starts at.
    """
    starts = sorted(factors)

    def schedule(progress: float) -> float:
        reached = [start for start in starts if start <= progress]
        return factors[reached[-1]] if reached else 1.0

    return schedule


BY_NAME: dict[str, Schedule] = {"constant": constant, "linear": linear, "cosine": cosine}


def parse(text: str) -> Schedule:
    """A schedule by name, or a piecewise one as "progress:factor,…".

    Args:
        text: a key of BY_NAME, or e.g. "0.4:0.2,0.8:0.04".
    Returns:
        A function from progress to the factor of the learning rate.
    Raises:
        ValueError: the text is neither.
    """
    if text in BY_NAME:
        return BY_NAME[text]
    message = (
        f"schedule must be one of {', '.join(BY_NAME)}, or pieces 'progress:factor,…' with "
        f"progress in [0, 1] and factor ≥ 0 such as '0.4:0.2,0.8:0.04'; got {text!r}."
        f"{meant(text, BY_NAME)}"
    )
    factors = {}
    for piece in text.split(","):
        start, colon, factor = piece.partition(":")
        try:
            factors[float(start)] = float(factor)
        except ValueError as error:
            raise ValueError(message) from error
        if not 0 <= float(start) <= 1 or not 0 <= float(factor) < math.inf:
            raise ValueError(message)
    return piecewise(factors)
