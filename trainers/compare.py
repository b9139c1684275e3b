"""Train several curves for the same budget each, with several seeds, and compare them.

    python -m trainers.compare --flagfile=configs/main.cfg
    python -m trainers.compare --flagfile=configs/main.cfg --grid=0.05,0.1,0.2 --out=runs/grid
    python -m trainers.compare … --grid=0.05,0.1,0.2 --best_of_grid

A curve is a flagfile of the trainer that --task names. --out then holds table.md, table.csv,
comparison.png, and each run in CURVE/SEED. Curves take turns, in the opposite order with every
other seed, so that a slow minute of the machine does not fall on one of them alone.

With --best_of_grid the grid is run with one seed more, whose results are in --out/grid; the
comparison is then between the curves at the learning rate that was best for each.
"""

from __future__ import annotations

import math
import pathlib
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import keras
from absl import app, flags

from reports import curves
from trainers import fine_tuning, image_classification, issgd, sequence_classification
from trainers import flags as trainer_flags

_TASKS = {
    "image_classification": image_classification.train,
    "fine_tuning": fine_tuning.train,
    "sequence_classification": sequence_classification.train,
    "issgd": issgd.train,
}
# Tasks with flags of their own.
_DEFINE = {"issgd": issgd.define}

_TASK = flags.DEFINE_enum("task", "image_classification", list(_TASKS), "The trainer.")
_CURVES = flags.DEFINE_list("curves", None, "Flagfiles, one for each curve.", required=True)
_SEEDS = flags.DEFINE_integer("seeds", 3, "Runs of each curve.", lower_bound=1)
_TIME_BUDGET = flags.DEFINE_float(
    "time_budget", None, "Seconds of training of each run, instead of the flagfile's."
)
_CLOCK = flags.DEFINE_string("clock", None, "The runs' clock, instead of the flagfile's.")
_GRID = flags.DEFINE_list(
    "grid", [], "Learning rates that every curve is run with, instead of its own."
)
_BEST_OF_GRID = flags.DEFINE_boolean(
    "best_of_grid",
    False,
    "Compare each curve at its own best rate of --grid, found with a seed beside the others.",
)
_OUT = flags.DEFINE_string("out", None, "Directory for the runs and results.", required=True)
_ANEW = flags.DEFINE_boolean(
    "anew", False, "Replace runs that are in --out already, instead of keeping the complete ones."
)


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
    """
    named = [(pathlib.Path(flagfile).stem, f"--flagfile={flagfile}") for flagfile in flagfiles]
    if not learning_rates:
        return [Variant(name, (flagfile,)) for name, flagfile in named]
    return [
        Variant(f"{name}, {float(rate):g}", (flagfile, f"--learning_rate={rate}"))
        for name, flagfile in named
        for rate in learning_rates
    ]


def best_of_grid(found: Mapping[Variant, curves.Run]) -> list[Variant]:
    """Of each flagfile the variant with the least training loss at its end."""

    def loss(variant: Variant) -> float:
        last = found[variant].last["train_loss"]
        return last if math.isfinite(last) else math.inf

    by_flagfile: dict[str, list[Variant]] = {}
    for variant in found:
        by_flagfile.setdefault(variant.arguments[0], []).append(variant)
    return [min(same, key=loss) for same in by_flagfile.values()]


def in_turns(compared: Sequence[Variant], seeds: int) -> list[tuple[Variant, int]]:
    """Every variant with every seed: forwards, backwards, forwards, …"""
    return [
        (variant, seed)
        for seed in range(seeds)
        for variant in (compared if seed % 2 == 0 else reversed(compared))
    ]


def settings(
    variant: Variant, *overrides: str, define: Callable = trainer_flags.define
) -> flags.FlagValues:
    """The trainer's parsed flags for one run, those that it defines."""
    values = flags.FlagValues()
    define(values)
    values([sys.argv[0], *variant.arguments, *overrides])
    return values


def run(variant: Variant, seed: int) -> curves.Run:
    """Train one curve with one seed."""
    out = pathlib.Path(_OUT.value) / variant.label / str(seed)
    if _ANEW.value and (out / "run.json").exists():
        shutil.rmtree(out)
    overrides = [f"--seed={seed}", f"--out={out}"]
    if _TIME_BUDGET.value is not None:
        overrides.append(f"--time_budget={_TIME_BUDGET.value}")
    if _CLOCK.value is not None:
        overrides.append(f"--clock={_CLOCK.value}")
    print(f"\n{variant.label}, seed {seed}", flush=True)
    keras.backend.clear_session()
    define = _DEFINE.get(_TASK.value, trainer_flags.define)
    path, _ = _TASKS[_TASK.value](settings(variant, *overrides, define=define))
    return curves.read(path, variant.label)


def main(_) -> None:
    trainer_flags.log_warnings_only()
    compared = variants(_CURVES.value, _GRID.value)
    if _BEST_OF_GRID.value:
        if not _GRID.value:
            raise app.UsageError("--best_of_grid has no --grid; give learning rates.")
        found = {variant: run(variant, seed=_SEEDS.value) for variant in compared}
        grid = {variant.label: [one] for variant, one in found.items()}
        curves.write(grid, pathlib.Path(_OUT.value, "grid"))
        print(f"\nThe grid, one seed\n\n{curves.markdown(grid)}")
        compared = best_of_grid(found)
    results: dict[str, list[curves.Run]] = {variant.label: [] for variant in compared}
    for variant, seed in in_turns(compared, _SEEDS.value):
        results[variant.label].append(run(variant, seed))
    curves.write(results, _OUT.value)
    print(f"\nAt the end of each run: median (range over {_SEEDS.value} seeds)\n")
    print(curves.markdown(results))
    if len(results) == 2:
        (baseline, its_runs), (label, runs) = results.items()
        print()
        for name in ("train_loss", "test_error"):
            print(curves.verdict(label, runs, baseline, its_runs, name))
    print(f"\nCurves against seconds of training: {pathlib.Path(_OUT.value, 'comparison.png')}")


if __name__ == "__main__":
    app.run(main)
