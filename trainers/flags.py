"""The flags that every trainer shares.

They are defined on a `FlagValues` of the caller's choice: on absl's own by a trainer that
runs as a command, on one for each run by `trainers.compare`. The parsed `FlagValues` is what
the other modules of this package take as `settings`.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import tensorflow as tf
from absl import flags, logging

from trainers import augmentation, datasets, nets, sampling, variance_reduction

# What `--help` shows together, in this order; what a program adds comes before them.
GROUPS = {
    "Data and net": ("dataset", "data_dir", "augment", "net", "weights", "train_examples"),
    "How examples are drawn": (
        *("sampling", "batch_size", "presample_size", "draws_per_presample", "resampling"),
        *("switch", "tau_threshold"),
    ),
    "Of some ways of drawing": (
        *("alpha", "beta", "selection_pressure", "recompute_every", "kept"),
    ),
    "In place of drawing": (
        *("variance_reduction", "epochs_per_batch_gradient", "large_batch", "growth_rate"),
    ),
    "Optimizer and learning rate": (
        *("optimizer", "learning_rate", "momentum", "weight_decay", "clip_norm", "schedule"),
        *("step_schedule", "follow_gain", "gain_ceiling"),
    ),
    "How long, and what is measured": (
        *("time_budget", "clock", "steps", "evaluations", "seed", "repeatable", "jit"),
    ),
    "What is left": ("out", "shown_examples"),
    "How it runs": ("dry_run", "short", "verbose", "list_configs"),
}

_OUT = "out"
_DRY_RUN, _SHORT, _VERBOSE = "dry_run", "short", "verbose"
_LIST_CONFIGS = "list_configs"


def define(values: flags.FlagValues) -> None:
    """Define the flags.

    Args:
        values: where.
    """

    text = functools.partial(flags.DEFINE_string, flag_values=values)
    number = functools.partial(flags.DEFINE_float, flag_values=values)
    integer = functools.partial(flags.DEFINE_integer, flag_values=values)
    count = functools.partial(integer, lower_bound=1)
    switch = functools.partial(flags.DEFINE_boolean, default=False, flag_values=values)
    text("dataset", "digits", f"Data set: {', '.join(datasets.SOURCES)}.")
    text("data_dir", None, "Where TFDS keeps data; default $TFDS_DATA_DIR.")
    text("augment", "none", f"Random changes of images: {', '.join(augmentation.BY_NAME)}.")
    text("net", "mlp", f"Net: {', '.join(nets.NETS)}.")
    text(
        "weights",
        "none",
        "What fine-tuning starts from: none, a .keras file whose last layer is replaced, or for "
        "resnet50 imagenet or a file of keras.applications.",
    )
    text(
        "sampling",
        "upper_bound",
        f"How examples are chosen: {', '.join(sampling.NAMES)}. uniform only measures tau.",
    )
    count("batch_size", 32, "b, examples in a step.")
    text(
        "presample_size",
        None,
        "B, examples that are scored; default 4 batches. auto, with --switch=gain: 12, 6, 4, 3 or "
        "2 batches, whichever is fastest. With memory: examples that it draws, to be scored; "
        "default none.",
    )
    count("draws_per_presample", 1, "R, batches drawn from one scoring.")
    flags.DEFINE_enum(
        "switch",
        "tau",
        ["tau", "gain"],
        "What draws are switched on by: tau over --tau_threshold, or the measured gain over its "
        "measured cost (give --follow_gain too); with --sampling=rais memory is used always, or "
        "by gain.",
        flag_values=values,
    )
    text(
        "tau_threshold",
        "guaranteed",
        "Sample by importance while tau is larger: a number, guaranteed, break_even, "
        "presample_break_even, always or never.",
    )
    text("resampling", "multinomial", "How a batch is drawn: multinomial or systematic.")
    text(
        "variance_reduction",
        variance_reduction.NONE,
        f"Instead of sampling by importance: {', '.join(variance_reduction.NAMES)}.",
    )
    number("epochs_per_batch_gradient", 1.0, "m in epochs, of svrg, katyusha and scsg.")
    count("large_batch", 1024, "B_0 of scsg, examples in the first batch gradient.")
    number("growth_rate", 1.0, "Factor by which scsg's large batch grows each time.")
    text("optimizer", "SGD", "A Keras optimizer, or tfa:<Name> of TensorFlow Addons.")
    number("learning_rate", 0.1, "Learning rate at the start.")
    number("momentum", 0.0, "Momentum, for optimizers that have one.")
    number("weight_decay", 0.0, "The optimizer's own weight decay, if it has one.")
    number("clip_norm", 0.0, "Clip the norm of the whole gradient to this; 0 does not.")
    text(
        "schedule",
        "constant",
        "Learning rate over the budget: constant, linear, cosine, or pieces such as "
        "0.4:0.2,0.8:0.04 (times 0.2 from 40% on). Follows the wall clock under --time_budget, "
        "else the steps; with both, whichever is further.",
    )
    text(
        "step_schedule",
        "none",
        "Learning rate by steps, in place of --schedule: constant, inverse_sqrt:OFFSET "
        "or per_epoch:FACTOR; budget is --schedule, for --follow_gain.",
    )
    switch("follow_gain", help="Let the learning rate and its --step_schedule follow the gain.")
    number(
        "gain_ceiling",
        math.inf,
        "How many times the largest scheduled learning rate the gain may make of it; inf, as in "
        "RAIS's paper, knows no bound.",
    )
    number("alpha", 0.6, "Exponent of the scores, for --sampling=proportional.")
    number("beta", 1.0, "Exponent of weights, for proportional and rank_based; 1: unbiased.")
    number("selection_pressure", 100.0, "First over last in draws, for --sampling=rank_based.")
    integer(
        "recompute_every",
        0,
        "Steps between two scorings of all examples, for --sampling=rank_based; 0 for never.",
    )
    number(
        "kept",
        0.5,
        "Share of the examples that a pass keeps, for --sampling=inclusion; of those whose score "
        "is below the mean, for info_batch.",
    )
    integer(
        "shown_examples",
        12,
        "Examples drawn most, and least, that the run's report shows; 0 for none.",
        lower_bound=0,
    )
    number("time_budget", None, "Seconds of training; evaluations are not counted.")
    text(
        "clock",
        "wall",
        "What seconds are of: wall, or process, the processor time of the run's own threads, for "
        "machines that others use as well.",
    )
    count("steps", None, "Number of steps.")
    count("evaluations", 20, "Evaluations over the budget.")
    count("train_examples", 2000, "Training examples, fixed, that train_loss is taken on.")
    integer("seed", 0, "Seed of weights, order and augmentation.")
    switch(
        "repeatable",
        help="Repeat a run of --steps exactly: scoring then waits for the step instead of "
        "overlapping with it.",
    )
    switch("jit", help="Compile the step and the scorer by XLA.")
    text(
        _OUT,
        None,
        "Directory for everything that a run leaves; one that was killed goes on. Default: runs/ "
        "and the name of the flagfile, or of the trainer.",
    )
    for name in ("learning_rate", "time_budget", "epochs_per_batch_gradient", "growth_rate"):
        flags.register_validator(
            name,
            lambda value: value is None or 0 < value < math.inf,
            f"--{name} must be positive and finite.",
            flag_values=values,
        )
    ranges: dict[str, tuple[Callable[[float], bool], str]] = {
        "momentum": (lambda value: 0 <= value < 1, "in [0, 1)"),
        "weight_decay": (lambda value: 0 <= value < math.inf, "finite and not negative"),
        "clip_norm": (lambda value: 0 <= value < math.inf, "finite and not negative"),
        "alpha": (lambda value: 0 <= value < math.inf, "finite and not negative"),
        "beta": (lambda value: 0 <= value <= 1, "in [0, 1]"),
        "selection_pressure": (lambda value: 1 <= value < math.inf, "at least 1 and finite"),
        "kept": (lambda value: 0 < value <= 1, "in (0, 1]"),
        "gain_ceiling": (lambda value: value >= 1, "at least 1"),
    }
    for name, (fits, wanted) in ranges.items():
        flags.register_validator(name, fits, f"--{name} must be {wanted}.", flag_values=values)
    define_of_programs(values)


def define_of_programs(values: flags.FlagValues) -> None:
    """Define the flags of every program here, which change how it runs and not what a run is.

    Args:
        values: where.
    """
    switch = functools.partial(flags.DEFINE_boolean, default=False, flag_values=values)
    switch(_DRY_RUN, help="Print the flags and how long a step takes, and quit.")
    switch(
        _SHORT,
        help="Two steps on made-up examples of the data set's kind, nothing is downloaded: shows "
        "in seconds that a command works; results mean nothing. They go to --out with -short at "
        "its end, in place of what was there.",
    )
    switch(
        _VERBOSE,
        help="Show what TensorFlow says while it starts, all logs, and where an error was found.",
    )
    switch(_LIST_CONFIGS, help="Show the flagfiles that there are for this program, and quit.")


def define_positive(values: flags.FlagValues, name: str, default: int, text: str) -> None:
    """Define a flag of one trainer, a positive integer; it makes a run what it is like the others.

    Args:
        values: where. name, default, text: as of any flag.
    """
    flags.DEFINE_integer(name, default, text, lower_bound=1, flag_values=values)


def define_own(
    values: flags.FlagValues, define_flag: Callable[..., Any], name: str, default: Any, text: str
) -> None:
    """Define a flag of one trainer that makes a run what it is like the shared ones.

    Args:
        values: where. define_flag: such as `flags.DEFINE_float`. name, default, text: its own.
    """
    define_flag(name, default, text, flag_values=values)
    if isinstance(default, float):
        flags.register_validator(
            name, math.isfinite, f"--{name} must be finite.", flag_values=values
        )


def of_run(values: flags.FlagValues) -> dict[str, Any]:
    """What makes a run the run it is: every flag defined here but --out and those of programs.

    Args:
        values: parsed flags.
    """
    shared = values.get_flags_for_module(__name__)
    of_place = (_OUT, _DRY_RUN, _SHORT, _VERBOSE, _LIST_CONFIGS)
    return {flag.name: flag.value for flag in shared if flag.name not in of_place}


def log_warnings_only() -> None:
    """Log from warnings on, as plain text, unless --verbose or --verbosity say otherwise.

    absl's default level shows a line of TensorFlow's for every checkpoint, and what TensorFlow's
    Python warns of, retracing and AutoGraph, is for those who write the programs.
    """
    if not flags.FLAGS.verbose and not flags.FLAGS["verbosity"].present:
        logging.set_verbosity(logging.WARNING)
        logging.get_absl_handler().setFormatter(None)
        tf.get_logger().setLevel("ERROR")
