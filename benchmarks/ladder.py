"""A ladder of runs: the shortest that is as good as a baseline, each method at its best choice."""

from __future__ import annotations

import itertools
import pathlib
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from benchmarks.runs import Runs as Kept

LADDER = (250, 500, 1000, 2000, 4000, 8000)
RATES = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2)
TUNING_SEED = 1000
_OF_BASELINE = 4000


class Choice(NamedTuple):
    """What is tuned; `own` is what the method has beside a rate, or None."""

    rate: float
    own: float | None = None


class Run(NamedTuple):
    """One training and what it gave."""

    method: str
    steps: int
    seed: int
    rate: float
    own: float | None
    validation_loss: float
    test_loss: float
    average_precision: float
    calibration_error: float
    scored: float


class Runs(Kept):
    """The runs of a task, kept in a file; each is made once."""

    def __init__(self, path: pathlib.Path, make: Callable[..., Run] | None = None) -> None:
        by_choice = make and (lambda *of: make(*of[:3], Choice(*of[3:])))
        super().__init__(path, Run, by_choice, _told)

    def get(self, method: str, steps: int, seed: int, choice: Choice) -> Run:
        """The run, made now where it is not there."""
        return super().get(method, steps, seed, *choice)


def _told(run: Run) -> str:
    which = f"{run.method} {run.steps} {run.rate:g} {run.own or ''} seed {run.seed}"
    return f"{which}: {run.test_loss:.5f}, average precision {run.average_precision:.3f}"


class Plan(NamedTuple):
    """How methods climb.

    Attributes:
        own: by method, the values of what it has beside a learning rate, such as a share.
        ladder: steps. rates: in order. seeds: runs of each rung.
    """

    own: Mapping[str, Sequence[float]] = {}
    ladder: Sequence[int] = LADDER
    rates: Sequence[float] = RATES
    seeds: int = 3


def tuned(runs: Runs, method: str, steps: int, start: Choice, plan: Plan) -> Choice:
    """The best choice by validation: its own value at the rate so far, then up or down in rates."""

    def loss(choice: Choice) -> float:
        return runs.get(method, steps, TUNING_SEED, choice).validation_loss

    rates = plan.rates
    own = plan.own.get(method, (None,))
    best = min((start._replace(own=one) for one in own), key=loss)
    for step in (1, -1):
        while 0 <= (place := rates.index(best.rate) + step) < len(rates):
            other = best._replace(rate=rates[place])
            if loss(other) >= loss(best):
                break
            best = other
    return best


class Rung(NamedTuple):
    """A method's runs of one length: medians, and ranges, over the seeds."""

    steps: int
    choice: Choice
    loss: float
    losses: tuple[float, float]
    average_precision: float
    precisions: tuple[float, float]
    calibration_error: float
    scored: float


def rung(found: list[Run]) -> Rung:
    """What runs that differ by their seeds say."""

    def of(name: str) -> list[float]:
        return [getattr(run, name) for run in found]

    median = {name: statistics.median(of(name)) for name in Run._fields[6:]}
    return Rung(
        steps=found[0].steps,
        choice=Choice(found[0].rate, found[0].own),
        loss=median["test_loss"],
        losses=(min(of("test_loss")), max(of("test_loss"))),
        average_precision=median["average_precision"],
        precisions=(min(of("average_precision")), max(of("average_precision"))),
        calibration_error=median["calibration_error"],
        scored=median["scored"],
    )


def climbed(runs: Runs, method: str, target: Rung | None, plan: Plan) -> list[Rung]:
    """The rungs of a method until it is as good as the target in both, or the ladder ends."""
    choice, found = Choice(plan.rates[len(plan.rates) // 2]), []
    for steps in plan.ladder:
        choice = tuned(runs, method, steps, choice, plan)
        found.append(rung([runs.get(method, steps, seed, choice) for seed in range(plan.seeds)]))
        if target is not None and all(any(map(good, found)) for good in as_good_as(target)):
            break
    return found


def as_good_as(target: Rung) -> tuple[Callable[[Rung], bool], Callable[[Rung], bool]]:
    """Whether a rung has the target's log loss, and whether it has its average precision."""
    return (
        lambda one: one.loss <= target.loss,
        lambda one: one.average_precision >= target.average_precision,
    )


def target_of(baseline: Sequence[Rung]) -> Rung:
    """The log loss and the average precision of the baseline at its best within 4,000 steps.

    Where it gets worse before that, as of few positives, it is stopped early.
    """
    within = [one for one in baseline if one.steps <= _OF_BASELINE] or baseline
    best = min(within, key=lambda one: one.loss)
    return best._replace(average_precision=max(one.average_precision for one in within))


def cost(rungs: list[Rung], is_good: Callable[[Rung], bool], scoring: float) -> tuple[float, bool]:
    """Units to the first rung that is good, and whether there is one."""
    for one in rungs:
        if is_good(one):
            return one.steps * (1 + scoring * one.scored), True
    return float(LADDER[-1]), False


def by_method(runs: Runs) -> dict[str, list[Rung]]:
    """The rungs of each method, as far as there are runs."""
    found: dict[str, list[Rung]] = {}
    final = [run for run in runs if run.seed != TUNING_SEED]
    final.sort(key=lambda run: (run.method, run.steps, run.rate, str(run.own)))
    same = itertools.groupby(final, key=lambda run: (run.method, run.steps, run.rate, run.own))
    for (method, *_), rungs in same:
        found.setdefault(method, []).append(rung(list(rungs)))
    return found


def costs(by_method: Mapping[str, list[Rung]], scoring: float) -> dict[str, Any]:
    """By method, its cost to what uniform sampling has within 4,000 steps, and its rungs.

    A method that was broken off on its way is left out.
    """
    goals = as_good_as(target_of(by_method["uniform"]))
    result = {}
    for method, rungs in by_method.items():
        by_loss, by_precision = (cost(rungs, good, scoring) for good in goals)
        at_the_end = rungs[-1].steps == LADDER[-1] or method == "uniform"
        if not (at_the_end or (by_loss[1] and by_precision[1])):
            continue
        result[method] = {
            "cost": by_loss[0],
            "reached": by_loss[1],
            "cost_of_precision": by_precision[0],
            "precision_reached": by_precision[1],
            "rungs": [one._asdict() for one in rungs],
        }
    return result
