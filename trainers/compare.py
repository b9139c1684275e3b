"""Train several curves for the same budget each, with several seeds, and compare them.

    python -m trainers.compare --flagfile=configs/main.cfg
    python -m trainers.compare --flagfile=configs/digits.cfg --grid=0.05,0.1,0.2 --out=runs/grid
    python -m trainers.compare … --grid=0.05,0.1,0.2 --best_of_grid

A curve is a flagfile of the trainer that --task names. --out then holds table.md, table.csv,
comparison.png, report.html, and each run in CURVE/SEED. Curves take turns, in the opposite order
with every other seed, so that a slow minute of the machine does not fall on one of them alone.

With --best_of_grid the grid is run with one seed more, whose results are in --out/grid; the
comparison is then between the curves at the learning rate that was best for each.

With --dry_run every curve makes two steps and leaves nothing; --short is the whole comparison with
one seed, two steps and made-up examples.
"""

from __future__ import annotations

import itertools
import math
import pathlib
import sys
from collections.abc import Callable, Mapping, Sequence

import keras
from absl import flags

import tf_importance as tfi
from reports import curves
from trainers import (
    fine_tuning,
    image_classification,
    issgd,
    plan,
    program,
    rare_classes,
    run_directory,
    sequence_classification,
    short,
)
from trainers import flags as trainer_flags
from trainers.budget import Budget
from trainers.plan import Variant

_TASKS = {
    "image_classification": image_classification.train,
    "fine_tuning": fine_tuning.train,
    "sequence_classification": sequence_classification.train,
    "issgd": issgd.train,
    "rare_classes": rare_classes.train,
}
# Tasks with flags of their own.
_DEFINE = {"issgd": issgd.define, "rare_classes": rare_classes.define}

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
_OUT = flags.DEFINE_string(
    "out", None, "Directory for the runs and results. Default: runs/ and the flagfile's name."
)
_ANEW = flags.DEFINE_boolean(
    "anew", False, "Replace runs that are in --out already, instead of keeping the complete ones."
)
flags.register_validator(
    "time_budget",
    lambda seconds: seconds is None or 0 < seconds < math.inf,
    "--time_budget must be positive and finite.",
)
trainer_flags.define_of_programs(flags.FLAGS)


def best_of_grid(found: Mapping[Variant, curves.Run]) -> list[Variant]:
    """Of each flagfile the variant of the least loss at its end, of validation or of training."""

    def loss(variant: Variant) -> float:
        row = found[variant].last
        last = row.get("validation_loss", row["train_loss"])
        return last if math.isfinite(last) else math.inf

    by_flagfile: dict[str, list[Variant]] = {}
    for variant in found:
        by_flagfile.setdefault(variant.arguments[0], []).append(variant)
    return [min(same, key=loss) for same in by_flagfile.values()]


def settings(
    variant: Variant, *overrides: str, define: Callable = trainer_flags.define
) -> flags.FlagValues:
    """The trainer's parsed flags for one run, those that it defines."""
    values = flags.FlagValues()
    define(values)
    try:
        values([sys.argv[0], *variant.arguments, *overrides])
    except (flags.Error, OSError) as error:
        raise ValueError(
            f"curve {variant.label!r} is none of --task={_TASK.value}: {str(error).rstrip('.')}. "
            "Give flagfiles of that trainer as --curves."
        ) from error
    if values.short:
        short.shrink(values)
    return values


def _arguments(seed: int, out: pathlib.Path) -> list[str]:
    """What a run is told beside its variant's flags."""
    given = [f"--seed={seed}", f"--out={out}"]
    for flag in (_TIME_BUDGET, _CLOCK):
        if flag.value is not None:
            given.append(f"--{flag.name}={flag.value}")
    shared = flags.FLAGS
    return [*given, f"--short={shared.short}", f"--dry_run={shared.dry_run}"]


def _of_run(variant: Variant, seed: int) -> flags.FlagValues:
    """The flags of one run."""
    define = _DEFINE.get(_TASK.value, trainer_flags.define)
    return settings(variant, *_arguments(seed, _directory(variant, seed)), define=define)


def _directory(variant: Variant, seed: int) -> pathlib.Path:
    return pathlib.Path(_OUT.value, variant.label, str(seed))


def run(variant: Variant, seed: int) -> curves.Run:
    """Train one curve with one seed."""
    print(f"\n{variant.label}, seed {seed}", flush=True)
    keras.backend.clear_session()
    path, _ = _TASKS[_TASK.value](_of_run(variant, seed))
    return curves.read(path, variant.label)


def _settle() -> list[Variant]:
    """The curves, once it is decided how small and where all runs are."""
    if _BEST_OF_GRID.value and not _GRID.value:
        raise ValueError("--best_of_grid has no --grid; give learning rates.")
    values = flags.FLAGS
    if values.out is None:
        values.out = program.default_out()
    if values.short:
        values.out, values.anew = short.directory(values.out), True
        values.seeds, values.grid, values.best_of_grid = 1, values.grid[:1], False
    return plan.variants(_CURVES.value, _GRID.value)


def _announce(compared: Sequence[Variant]) -> None:
    budgets = {}
    for variant in compared:
        chosen = _of_run(variant, 0)
        budgets[variant] = Budget(chosen.time_budget, chosen.steps)
    print(plan.described(budgets, _SEEDS.value, _BEST_OF_GRID.value))
    if flags.FLAGS.dry_run:
        print("This is a dry run: two steps of each curve, which leave nothing.", flush=True)
        return
    there = "are replaced" if _ANEW.value else "and complete are kept, others go on"
    print(f"Results go to {_OUT.value}; runs that are there {there}.", flush=True)


def _dry_run(compared: Sequence[Variant]) -> None:
    """Two steps of each curve, which leave nothing."""
    for variant in compared:
        print(f"\n{variant.label}", flush=True)
        keras.backend.clear_session()
        _TASKS[_TASK.value](_of_run(variant, 0))


def main(_) -> None:
    trainer_flags.log_warnings_only()
    compared = _settle()
    _announce(compared)
    if flags.FLAGS.dry_run:
        _dry_run(compared)
        return
    if _ANEW.value:
        # All at once: after an interruption those of an earlier comparison must not be kept.
        for variant, seed in itertools.product(compared, range(_SEEDS.value + 1)):
            run_directory.remove(_directory(variant, seed))
    if _BEST_OF_GRID.value:
        found = {variant: run(variant, seed=_SEEDS.value) for variant in compared}
        grid = {variant.label: [one] for variant, one in found.items()}
        curves.write(grid, pathlib.Path(_OUT.value, "grid"))
        print(f"\nThe grid, one seed\n\n{curves.markdown(grid)}")
        compared = best_of_grid(found)
    results: dict[str, list[curves.Run]] = {variant.label: [] for variant in compared}
    for variant, seed in plan.in_turns(compared, _SEEDS.value):
        results[variant.label].append(run(variant, seed))
    _report(results)


def _report(results: dict[str, list[curves.Run]]) -> None:
    """Leave table and plot, and print the table and what it shows."""
    curves.write(results, _OUT.value)
    print(f"\nAt the end of each run: median (range over {_SEEDS.value} seeds)\n")
    print(curves.markdown(results))
    (baseline, its_runs), *others = results.items()
    print()
    for label, runs in others:
        for name in curves.compared(runs):
            print(curves.verdict(label, runs, baseline, its_runs, name))
    folders = {label: [run.path for run in runs] for label, runs in results.items()}
    out = pathlib.Path(_OUT.value)
    page = tfi.report(folders, out / "report.html", title=out.name)
    print(f"\nA page about it, for a browser: {page}")
    print(f"Curves against seconds of training: {out / 'comparison.png'}")


if __name__ == "__main__":
    flags.adopt_module_key_flags(trainer_flags)
    # The interrupted runs go on, and the complete ones stay.
    program.run(main, resumed_by=["--noanew"])
