"""How training examples are chosen: uniformly or by importance."""

from __future__ import annotations

from typing import NamedTuple

import keras
import tensorflow as tf
from absl import flags

import tf_importance as tfi
from trainers import optimizers

UNIFORM = "uniform"
NAMES = (UNIFORM, *sorted(tfi.scorers.BY_NAME))


class Sampled(NamedTuple):
    """A compiled model and what to fit it to.

    Attributes:
        model: an ISModel around the net, for either sampling: on uniform batches it is plain
            Keras, and what a step costs beside its own computation is then the same for both.
        batches: what `model.fit` takes, without an end.
    """

    model: tfi.ISModel
    batches: tf.data.Dataset


def sampled(settings: flags.FlagValues, net: keras.Model, examples: tf.data.Dataset) -> Sampled:
    """Compile a classifier and batch its examples as the flags say.

    Args:
        settings: the trainer's flags.
        net: ends in logits.
        examples: endless, shuffled, unbatched dataset of (input, label).
    Returns:
        Model and batches.
    Raises:
        ValueError: a flag is unknown or out of range.
    """
    if settings.sampling not in NAMES:
        raise ValueError(
            f"--sampling must be one of {', '.join(NAMES)}; got {settings.sampling!r}."
        )
    if settings.repeatable and (settings.steps is None or settings.time_budget is not None):
        raise ValueError(
            "--repeatable needs --steps and no --time_budget: how many steps fit into a time "
            f"never repeats; got --steps={settings.steps}, --time_budget={settings.time_budget}."
        )
    scorer = tfi.scorers.BY_NAME.get(settings.sampling, tfi.scorers.upper_bound)
    model = tfi.ISModel(net, scorer=scorer)
    model.compile(
        optimizer=optimizers.of(settings),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
        jit_compile=settings.jit,
    )
    if settings.sampling == UNIFORM:
        # One batch ahead, like importance_sample: a larger buffer would fill up for free
        # during evaluations, when the clock stands still.
        batches = examples.batch(settings.batch_size, drop_remainder=True).prefetch(1)
        return Sampled(model, batches)
    importance_sample = tfi.importance_sample(
        model,
        batch_size=settings.batch_size,
        presample_size=settings.presample_size,
        tau_threshold=threshold(settings.tau_threshold),
        resampling=settings.resampling,
        seed=settings.seed if settings.repeatable else None,
        jit_compile=settings.jit,
    )
    return Sampled(model, examples.apply(importance_sample))


def threshold(text: str) -> float | str:
    """A number where the text is one, else the text as a name."""
    try:
        return float(text)
    except ValueError:
        return text
