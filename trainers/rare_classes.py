"""Rare classes: strata and scores against what people do about them, by log loss.

    python -m trainers.rare_classes --out=runs/late --method=strata --steps=1000
    python -m trainers.compare --flagfile=configs/main.cfg

--dataset is flights_late or flights_cancelled, real flights out of a package that the trainers
install, or images (digits, mnist, fashion_mnist, cifar10) in whose training data --rare_class is
thinned until it has --share. --out then holds what every trainer leaves; test_loss in
metrics.jsonl is the log loss of the predicted probabilities, beside test_average_precision and
test_calibration_error, and all of them for validation, too. reliability.png shows what was
predicted beside what happened.

Methods: uniform; class_weights; down_sampled (common examples are left out, odds put right); focal
(calibrated by the validation set); logit_adjusted; and of this library strata (shares are learned),
fixed_strata, log_odds (the same batches without weights, logits moved), scored, scored_strata,
switched_strata (scored while that pays), streamed_strata (the same of a stream).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf
from absl import flags

from reports import reliability
from tf_importance.arguments import meant
from trainers import calibration, dry_run, nets, program, rare_sampling, recipe, runner, shown, void
from trainers import flags as trainer_flags
from trainers.datasets import made_up, rare
from trainers.rare_sampling import METHODS

# What other trainers choose by, and --method decides here.
_DECIDED = (
    *("sampling", "augment", "weights", "switch", "tau_threshold", "draws_per_presample"),
    *("resampling", "alpha", "beta", "selection_pressure", "recompute_every", "kept"),
    *("variance_reduction", "epochs_per_batch_gradient", "large_batch", "growth_rate"),
)
_DEFAULTS = {
    "dataset": "flights_late",
    "net": "flights_mlp",
    "batch_size": 64,
    "optimizer": "Adam",
    "learning_rate": 0.003,
    "schedule": "linear",
    "step_schedule": "budget",
}
_PASS = 4096


class Evaluation(NamedTuple):
    """Of predicted probabilities, as `trainers.calibration` has them.

    Attributes:
        error: share of wrong classes. The others: as the functions of these names.
    """

    loss: float
    error: float
    average_precision: float
    calibration_error: float


def define(values: flags.FlagValues) -> None:
    """The trainers' flags and those of rare classes.

    Args:
        values: where.
    """
    trainer_flags.define(values)
    for name, value in _DEFAULTS.items():
        values.set_default(name, value)
    values["dataset"].help = f"Data set: {', '.join(rare.NAMES)}."
    text, number = flags.DEFINE_string, flags.DEFINE_float
    for define_flag, name, default, explained in (
        (text, "method", "strata", f"What is done: {', '.join(METHODS)}."),
        (flags.DEFINE_integer, "rare_class", 8, "Of images, the class told from all others."),
        (number, "share", 0.01, "Of images, the rare class's share of the training data."),
        (
            number,
            "long_tail",
            0.0,
            "Of images, all classes instead, the last so many times rarer than the first.",
        ),
        (
            text,
            "split",
            "days",
            f"Of flights: {' or '.join(rare.SPLITS)}; by rows the test's days are trained on, too.",
        ),
        (number, "rare_share", 0.25, "Of a batch, for down_sampled, fixed_strata, log_odds."),
        (number, "gamma", 2.0, "Of focal."),
    ):
        trainer_flags.define_own(values, define_flag, name, default, explained)


def load(settings: flags.FlagValues) -> rare.Rare:
    """The data set that the flags name, made up under --short; the seed of all that follows.

    Args:
        settings: parsed flags of `define`.
    """
    if settings.short:
        data = made_up.rare_classes(settings.dataset, settings.long_tail > 0)
    else:
        data = rare.load(
            settings.dataset,
            settings.data_dir,
            rare_class=settings.rare_class,
            share=settings.share,
            long_tail=settings.long_tail,
            split=settings.split,
        )
    keras.utils.set_random_seed(settings.seed)
    return data


def train(settings: flags.FlagValues) -> recipe.Trained:
    """Data, net, fit.

    Args:
        settings: parsed flags of `define`.
    Returns:
        The run's directory and the fitted model.
    Raises:
        ValueError: a flag is unknown, out of range, or decided by --method.
    """
    method = checked(settings)
    data = load(settings)
    net = nets.build(settings.net, data.train.x.shape[1:], data.num_classes)
    prepared = method.prepare(settings, net, data)
    if settings.dry_run:
        dry_run.report(settings, prepared)
        return recipe.nowhere(settings), prepared.model
    predict = Predictor(net, method, data)
    subset = rare.every(data.train, settings.train_examples)
    evaluators = {
        "train": functools.partial(evaluation, predict, subset),
        "validation": functools.partial(evaluation, predict, data.validation),
        "test": functools.partial(evaluation, predict, data.test),
    }
    path = runner.fit(settings, prepared, evaluators)
    shown.write(settings, path, prepared.model, (subset.x, subset.y))
    logits, test = predict(data.test.x), data.test
    rarest = int(np.argmin(data.prior))
    found = calibration.reliability(logits, test.y, test.weights, rarest)
    reliability.write({settings.method: found}, path)
    return path, prepared.model


def checked(settings: flags.FlagValues) -> rare_sampling.Method:
    """The method that the flags name.

    Raises:
        ValueError: it is unknown, or a flag is out of range or of other trainers.
    """
    if settings.method not in METHODS:
        raise ValueError(
            f"--method must be one of {', '.join(METHODS)}; got {settings.method!r}."
            f"{meant(settings.method, METHODS)}"
        )
    for name in _DECIDED:
        flag = settings[name]
        if flag.value != flag.default and not settings.short:
            raise ValueError(
                f"--{name} is of other trainers; here --method decides. Got --{name}={flag.value}."
            )
    if not 0 < settings.rare_share < 1:
        raise ValueError(f"--rare_share must be between 0 and 1; got {settings.rare_share:g}.")
    if settings.gamma < 0:
        raise ValueError(f"--gamma must not be negative; got {settings.gamma:g}.")
    _refuse_void(settings)
    return METHODS[settings.method]


# What a flag is of: methods, or images.
_OF_METHODS = {
    "rare_share": ("down_sampled", "fixed_strata", "log_odds"),
    "gamma": ("focal",),
    "presample_size": ("scored", "scored_strata", "switched_strata", "streamed_strata"),
}
_OF_IMAGES = ("rare_class", "share", "long_tail")


def _refuse_void(settings: flags.FlagValues) -> None:
    """Raises: ValueError: a flag does nothing with this method, or with these data."""
    for name, methods in _OF_METHODS.items():
        if void.given(settings, name) and settings.method not in methods:
            raise ValueError(
                f"--{name} does nothing with --method={settings.method}; leave it out, or give "
                f"--method={' or '.join(methods)}."
            )
    flights = settings.dataset in rare.FLIGHTS
    for name in _OF_IMAGES if flights else ("split",):
        if void.given(settings, name):
            raise ValueError(
                f"--{name} does nothing with --dataset={settings.dataset}; leave it out."
            )
    if void.given(settings, "rare_class") and settings.long_tail:
        raise ValueError("--rare_class does nothing with --long_tail; leave one of them out.")


class Predictor:
    """The logits of predicted probabilities: the net's, and what the method makes of them.

    Args:
        net: ends in logits. method: that trains it. data: with what it is calibrated by.
    """

    def __init__(self, net: keras.Model, method: rare_sampling.Method, data: rare.Rare) -> None:
        self._method, self._data = method, data
        self._pass = tf.function(lambda x: net(x, training=False), reduce_retracing=True)

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """[n, K] of [n, …]."""
        return self._method.predicted(self._data, self._of_net)(self._of_net(x))

    def _of_net(self, x: np.ndarray) -> np.ndarray:
        starts = range(0, len(x), _PASS)
        parts = [self._pass(tf.constant(x[start : start + _PASS])) for start in starts]
        return tf.concat(parts, axis=0).numpy()


def evaluation(predict: Callable[[np.ndarray], np.ndarray], part: rare.Part) -> Evaluation:
    """How good the predictions of a part of the data are."""
    logits = predict(part.x)
    told = logits, part.y, part.weights
    return Evaluation(
        loss=calibration.log_loss(*told),
        error=float(np.average(logits.argmax(axis=1) != part.y, weights=part.weights)),
        average_precision=calibration.average_precision(*told),
        calibration_error=calibration.calibration_error(*told),
    )


if __name__ == "__main__":
    define(flags.FLAGS)
    flags.adopt_module_key_flags(trainer_flags)
    program.run(recipe.command(train))
