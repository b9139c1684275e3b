"""How training examples are chosen: uniformly or by importance."""

from __future__ import annotations

import functools
from typing import NamedTuple

import keras
import tensorflow as tf
from absl import flags

import tf_importance as tfi
from tf_importance.arguments import meant
from trainers import datasets, optimizers, remembered, step_schedules

UNIFORM = "uniform"
NAMES = (UNIFORM, *sorted(tfi.scorers.BY_NAME), *remembered.BY_NAME)


class Sampled(NamedTuple):
    """A compiled model and what to fit it to.

    Attributes:
        model: an ISModel around the net, for either sampling: on uniform batches it is plain
            Keras, and what a step costs beside its own computation is then the same for both.
        batches: what `model.fit` takes, without an end.
        steps_per_epoch: n/b, steps that train on as many examples as there are.
        told_rate: where the learning rate of --schedule goes; None for the optimizer's own.
    """

    model: tfi.ISModel
    batches: tf.data.Dataset
    steps_per_epoch: float
    told_rate: tf.Variable | None = None


def sampled(settings: flags.FlagValues, net: keras.Model, data: datasets.Data, examples) -> Sampled:
    """Compile a classifier and batch its examples as the flags say.

    Args:
        settings: the trainer's flags.
        net: ends in logits.
        data: what samplers with memory draw from.
        examples: endless, shuffled, unbatched dataset of (input, label), for the others.
    Returns:
        Model and batches.
    Raises:
        ValueError: a flag is unknown or out of range.
    """
    if settings.sampling not in NAMES:
        raise ValueError(
            f"--sampling must be one of {', '.join(NAMES)}; got {settings.sampling!r}."
            f"{meant(settings.sampling, NAMES)}"
        )
    if settings.repeatable and (settings.steps is None or settings.time_budget is not None):
        raise ValueError(
            "--repeatable needs --steps and no --time_budget: how many steps fit into a time "
            f"never repeats; got --steps={settings.steps}, --time_budget={settings.time_budget}."
        )
    scorer = tfi.scorers.BY_NAME.get(settings.sampling, tfi.scorers.upper_bound)
    model = tfi.ISModel(net, scorer=scorer)
    steps_per_epoch = data.num_train / settings.batch_size
    rate, told = step_schedules.of(settings, steps_per_epoch)
    compile_model = functools.partial(
        model.compile,
        optimizer=optimizers.of(settings, rate),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
        jit_compile=settings.jit,
    )
    compile_model()
    if settings.sampling == UNIFORM:
        # One batch ahead, like importance_sample: a larger buffer would fill up for free
        # during evaluations, when the clock stands still.
        batches = examples.batch(settings.batch_size, drop_remainder=True).prefetch(1)
        return Sampled(model, batches, steps_per_epoch, told)
    presample_size = _presample_size(settings.presample_size)
    switch = tfi.switches.Gain() if settings.switch == "gain" else None
    if settings.sampling in remembered.BY_NAME:
        # The oracle scores by the compiled loss.
        compile_model(sampler=remembered.sampler(settings, data, model))
        batches = remembered.batches(settings, data, model, presample_size, switch)
        return Sampled(model, batches, steps_per_epoch, told)
    importance_sample = tfi.importance_sample(
        model,
        batch_size=settings.batch_size,
        presample_size=presample_size,
        draws_per_presample=settings.draws_per_presample,
        switch=switch,
        tau_threshold=threshold(settings.tau_threshold) if switch is None else None,
        resampling=settings.resampling,
        seed=settings.seed if settings.repeatable else None,
        jit_compile=settings.jit,
    )
    return Sampled(model, examples.apply(importance_sample), steps_per_epoch, told)


def _presample_size(text: str | None) -> int | str | None:
    """A number where the text is one, else "auto"."""
    if text is None or text == "auto":
        return text
    try:
        return int(text)
    except ValueError as error:
        raise ValueError(f"--presample_size must be a number or auto; got {text!r}.") from error


def threshold(text: str) -> float | str:
    """A number where the text is one, else the text as a name."""
    try:
        return float(text)
    except ValueError:
        return text
