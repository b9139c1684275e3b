"""SVRG, Katyusha and SCSG by flag (K&F 2018, supplement 3)."""

from __future__ import annotations

import keras
from absl import flags

import tf_importance as tfi
from tf_importance.arguments import meant
from trainers import datasets, optimizers
from trainers.sampling import UNIFORM, Sampled

NONE = "none"
NAMES = (NONE, "svrg", "katyusha", "scsg")


def reduced(settings: flags.FlagValues, net: keras.Model, data: datasets.Data, examples) -> Sampled:
    """Compile a variance-reduced model and batch its examples as the flags say.

    Args:
        settings: the trainer's flags.
        net: ends in logits.
        data: what snapshots are computed on.
        examples: endless, shuffled, unbatched dataset of (input, label).
    Raises:
        ValueError: a flag is unknown or out of range, or asks for importance sampling too.
    """
    if settings.variance_reduction not in NAMES:
        raise ValueError(
            f"--variance_reduction must be one of {', '.join(NAMES)}; got "
            f"{settings.variance_reduction!r}.{meant(settings.variance_reduction, NAMES)}"
        )
    if settings.sampling != UNIFORM:
        raise ValueError(
            f"--variance_reduction={settings.variance_reduction} draws uniformly; give "
            f"--sampling={UNIFORM} with it, got --sampling={settings.sampling}."
        )
    model = _model(settings, net, data, examples)
    model.compile(
        optimizer=optimizers.of(settings),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
        jit_compile=settings.jit,
    )
    batches = examples.batch(settings.batch_size, drop_remainder=True).prefetch(1)
    return Sampled(model, batches, data.num_train / settings.batch_size)


def inner_steps(epochs: float, num_train: int, batch_size: int) -> int:
    """m in steps: epochs · n/b, at least 1.

    Args:
        epochs: per batch gradient computation. num_train: n. batch_size: b.
    """
    return max(1, round(epochs * num_train / batch_size))


def _model(settings, net, data, examples) -> keras.Model:
    steps = inner_steps(settings.epochs_per_batch_gradient, data.num_train, settings.batch_size)
    # As large as the steps' batches, for the sake of batch normalization.
    whole = data.train.batch(settings.batch_size)
    if settings.variance_reduction == "svrg":
        return tfi.variance_reduced.SVRG(net, whole, inner_steps=steps)
    if settings.variance_reduction == "katyusha":
        return tfi.variance_reduced.Katyusha(net, whole, inner_steps=steps)
    return tfi.variance_reduced.SCSG(
        net,
        examples.batch(settings.batch_size),
        large_batch=settings.large_batch,
        growth_rate=settings.growth_rate,
        inner_steps=steps,
    )
