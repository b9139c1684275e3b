"""What a comparison runs, in which order and for how long."""

from __future__ import annotations

import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from trainers.budget import Budget


class Variant(NamedTuple):
    """A curve of the comparison.

    Attributes:
        label: name of the curve and of its directory.
        arguments: command-line arguments of the trainer.
    """

    label: str
    arguments: tuple[str, ...]


def variants(flagfiles: Sequence[str], learning_rates: Sequence[str] = ()) -> list[Variant]:
    """The curves: each flagfile as it is, or with every learning rate of the grid.

    Args:
        flagfiles: their file names, without the ending, are the labels.
        learning_rates: the grid.
    Raises:
        ValueError: a rate is no positive number.
    """
    for rate in learning_rates:
        if not _is_positive(rate):
            raise ValueError(f"--grid must have positive learning rates; got {rate!r}.")
    named = [(pathlib.Path(flagfile).stem, f"--flagfile={flagfile}") for flagfile in flagfiles]
    if not learning_rates:
        return [Variant(name, (flagfile,)) for name, flagfile in named]
    return [
        Variant(f"{name}, {float(rate):g}", (flagfile, f"--learning_rate={rate}"))
        for name, flagfile in named
        for rate in learning_rates
    ]


def _is_positive(text: str) -> bool:
    try:
        return 0 < float(text) < math.inf
    except ValueError:
        return False


def in_turns(compared: Sequence[Variant], seeds: int) -> list[tuple[Variant, int]]:
    """Every variant with every seed: forwards, backwards, forwards, …"""
    return [
        (variant, seed)
        for seed in range(seeds)
        for variant in (compared if seed % 2 == 0 else reversed(compared))
    ]


def described(budgets: Mapping[Variant, Budget], seeds: int, best_of_grid: bool) -> str:
    """The curves, their budgets and how long all runs train.

    Args:
        budgets: of one run of each curve.
        seeds: runs of each curve.
        best_of_grid: there is one run of each first, and then only the best of each flagfile run.
    """
    width = max(len(variant.label) for variant in budgets)
    lines = [f"{len(budgets)} curves, {_runs(seeds)} of each:"]
    if best_of_grid:
        lines = [f"{len(budgets)} curves, one run of each; then {_runs(seeds)} of the best:"]
    for variant, budget in budgets.items():
        lines.append(f"  {variant.label:{width}}  {budget}  {' '.join(variant.arguments)}")
    counts = _counts(budgets, seeds, best_of_grid)
    return "\n".join([*lines, f"{_runs(sum(counts.values()))}, {_total(budgets, counts)}."])


def _runs(number: int) -> str:
    return "1 run" if number == 1 else f"{number} runs"


def _counts(
    budgets: Mapping[Variant, Budget], seeds: int, best_of_grid: bool
) -> dict[Variant, int]:
    """How often each is run; of those of one flagfile any may be the best."""
    if not best_of_grid:
        return dict.fromkeys(budgets, seeds)
    first = {variant.arguments[0]: variant for variant in reversed(budgets)}.values()
    return {variant: 1 + seeds * (variant in first) for variant in budgets}


def _total(budgets: Mapping[Variant, Budget], counts: Mapping[Variant, int]) -> str:
    """Seconds of training in all, where time ends the runs, and steps of those without."""
    timed = [v for v in budgets if budgets[v].seconds is not None]
    seconds = sum(counts[v] * budgets[v].seconds for v in timed)
    steps = sum(counts[v] * budgets[v].steps for v in budgets if v not in timed)
    parts = [f"{_duration(seconds)} of training"] if timed else []
    parts += [f"{steps:,} steps"] if steps else []
    return f"{' and '.join(parts)} in all, and seconds for the start and the evaluations of each"


def _duration(seconds: float) -> str:
    """8 → 8 s, 90 → 1.5 minutes, 5400 → 1.5 hours."""
    for size, name in ((3600, "hours"), (60, "minutes")):
        if seconds > size:
            return f"{seconds / size:.1f} {name}"
    return f"{seconds:g} s"
