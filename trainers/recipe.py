"""What all tasks share: from data and net to a fitted model and its report.

A task is a recipe, a module with `train(settings)`, which loads its data, builds its net and
hands both over to `fit`. `trainers.compare` runs tasks by name.
"""

from __future__ import annotations

import pathlib
from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf
from absl import flags

import tf_importance as tfi
from reports import curves
from trainers import (
    augmentation,
    datasets,
    dry_run,
    program,
    remembered,
    run_directory,
    runner,
    short,
    shown,
    variance_reduction,
    void,
)
from trainers import flags as trainer_flags
from trainers.budget import Budget
from trainers.datasets import made_up
from trainers.evaluation import Evaluator
from trainers.sampling import Sampled, sampled

Trained = tuple[pathlib.Path, keras.Model]
# From flags, net, data and its endless examples.
Prepare = Callable[[flags.FlagValues, keras.Model, datasets.Data, Any], Sampled]


def load(settings: flags.FlagValues) -> datasets.Data:
    """The data set that --dataset names, made up under --short; the seed of all that follows.

    Args:
        settings: parsed flags of `trainers.flags`.
    """
    if settings.short:
        data = made_up.load(settings.dataset)
    else:
        data = datasets.load(settings.dataset, settings.data_dir)
    # After loading, which takes random numbers where it prepares the data first.
    keras.utils.set_random_seed(settings.seed)
    return data


def fit(
    settings: flags.FlagValues,
    data: datasets.Data,
    net: keras.Model,
    also: Callable[[keras.Model], runner.Also] | None = None,
    prepare: Prepare | None = None,
) -> Trained:
    """Fit a net to data as the flags say.

    Args:
        settings: parsed flags of `trainers.flags`.
        data: a data set.
        net: ends in logits.
        also: makes of the compiled model what is called at every evaluation.
        prepare: compiles the model and batches the examples; by default as --sampling says.
    Returns:
        The run's directory and the fitted model. Under --dry_run nothing is fitted.
    Raises:
        ValueError: a flag does nothing, or the disk has no room for the run.
    """
    void.refuse(settings)
    examples = datasets.shuffled(data, settings.seed)
    examples = examples.apply(augmentation.augmented(settings.augment, settings.seed))
    prepared = (prepare or _prepared)(settings, net, data, examples)
    if settings.dry_run:
        dry_run.report(settings, prepared)
        return nowhere(settings), prepared.model
    told = run_directory.space(nowhere(settings), net)
    if settings is flags.FLAGS:  # A comparison has many runs.
        print(told, flush=True)
    evaluators = {
        "train": Evaluator(net, datasets.fixed_subset(data, settings.train_examples)),
        "test": Evaluator(net, data.test),
    }
    watch = also(prepared.model) if also is not None else None
    path = runner.fit(settings, prepared, evaluators, watch)
    seen = datasets.fixed_subset(data, settings.train_examples)
    shown.write(settings, path, prepared.model, seen)
    remembered.write_priorities(path / "priorities.npz", prepared.model, data)
    return path, prepared.model


def nowhere(settings: flags.FlagValues) -> pathlib.Path:
    """The directory of a run that leaves nothing."""
    return pathlib.Path(settings.out or ".")


def _prepared(settings, net: keras.Model, data: datasets.Data, examples) -> Sampled:
    if settings.variance_reduction == variance_reduction.NONE:
        return sampled(settings, net, data, examples)
    return variance_reduction.reduced(settings, net, data, examples)


def command(train: Callable[[flags.FlagValues], Trained]) -> Callable[[object], None]:
    """The `main` of a task: train by the command line's flags and leave the results.

    Args:
        train: the recipe.
    """

    def main(_) -> None:
        trainer_flags.log_warnings_only()
        _settle(flags.FLAGS)
        path, model = train(flags.FLAGS)
        if flags.FLAGS.dry_run:
            return
        # What Keras prints about the exported signature goes to the log.
        keras.utils.disable_interactive_logging()
        _export(model.net, path / "saved_model")
        model.net.save(path / "net.keras")
        # Runs that differ by their seed lie in a directory of their own.
        run = curves.read(path, path.parent.name if path.name.isdigit() else path.name)
        curves.draw({run.label: [run]}, path / "curves.png")
        print(f"\n{curves.markdown({run.label: [run]})}")
        print(f"\nA page about the run, for a browser: {tfi.report(path)}")
        print(f"Curves against seconds of training: {path / 'curves.png'}")

    return main


def _export(net: keras.Model, path: pathlib.Path) -> None:
    """A SavedModel as `net.export` writes it, half as large: Keras 3 writes each variable twice."""
    archive = keras.export.ExportArchive()
    spec = [tf.TensorSpec([None, *one.shape[1:]], one.dtype, one.name) for one in net.inputs]
    archive.add_endpoint("serve", lambda x: net(x, training=False), input_signature=spec)
    archive.write_out(str(path))


def _settle(settings: flags.FlagValues) -> None:
    """Decide where the results go and how small a run is, and say so."""
    if settings.out is None:
        settings.out = program.default_out()
    if settings.short:
        short.shrink(settings)
        settings.out = short.directory(settings.out)
    if settings.dry_run:
        return
    if settings.short:
        run_directory.remove(settings.out)
    budget = Budget(settings.time_budget, settings.steps)
    print(f"Training for {budget}; results go to {settings.out}.", flush=True)
