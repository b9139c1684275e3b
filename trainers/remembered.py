"""Samplers with memory by name, and what a model fitted by them needs."""

from __future__ import annotations

import pathlib
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import tensorflow as tf
from absl import flags

import tf_importance as tfi
from tf_importance import random_access
from trainers import augmentation, datasets

_SHOWN = 40
# Largest number of visits that RAIS learns from (Johnson & Guestrin 2018, section 6).
_TRAINING_SET_SIZE = 20_000


class Arrays(NamedTuple):
    """Training examples in memory.

    Attributes:
        images: [n, height, width, channels] float32. labels: [n] int32.
    """

    images: np.ndarray
    labels: np.ndarray


def _rais(settings, size: int, model) -> tfi.samplers.Sampler:
    # A data set smaller than |D| would wait for several passes.
    return tfi.samplers.RAIS(size, min(_TRAINING_SET_SIZE, max(size, 2 * settings.batch_size)))


def _proportional(settings, size: int, model) -> tfi.samplers.Sampler:
    return tfi.samplers.Proportional(size, alpha=settings.alpha, beta=settings.beta)


def _rank_based(settings, size: int, model) -> tfi.samplers.Sampler:
    return tfi.samplers.RankBased(
        size,
        settings.selection_pressure,
        recompute_every=settings.recompute_every or None,
        beta=settings.beta,
    )


def _inclusion(settings, size: int, model) -> tfi.samplers.Sampler:
    return tfi.samplers.Inclusion(size, settings.kept)


def _info_batch(settings, size: int, model) -> tfi.samplers.Sampler:
    return tfi.samplers.InfoBatch(size, 1 - settings.kept)


def _oracle(settings, size: int, model) -> tfi.samplers.Sampler:
    return tfi.samplers.Oracle(size, model)


BY_NAME: dict[str, Callable[..., tfi.samplers.Sampler]] = {
    "rais": _rais,
    "proportional": _proportional,
    "rank_based": _rank_based,
    "inclusion": _inclusion,
    "info_batch": _info_batch,
    "oracle": _oracle,
}


def sampler(settings: flags.FlagValues, data: datasets.Data, model) -> tfi.samplers.Sampler:
    """The sampler that --sampling names, for the training examples of a data set."""
    return BY_NAME[settings.sampling](settings, data.num_train, model)


def batches(
    settings: flags.FlagValues,
    data: datasets.Data,
    model: tfi.ISModel,
    presample_size: int | str | None,
    switch: tfi.switches.Gain | None,
) -> tf.data.Dataset:
    """Endless batches that a compiled model's sampler draws, augmented as the flags say.

    Args:
        settings: the trainer's flags. data: to draw from. model: compiled with its sampler.
        presample_size: B, None for no fresh scores. switch: None to use memory always.
    """
    seed = settings.seed if settings.repeatable else None
    drawn = tfi.history_sample(
        in_memory(data),
        model.sampler,
        settings.batch_size,
        presample_size=presample_size,
        switch=switch,
        model=model,
        seed=seed,
    ).repeat()
    augment = augmentation.by_name(settings.augment)
    if augment is None:
        return drawn

    def augmented(images, labels, how):
        # By the number of the batch, so that a resumed run has the same changes.
        number = tf.cast(how["row"][0], tf.int32)
        seeds = tf.random.stateless_uniform(
            [tf.shape(images)[0], 2], [settings.seed, number], None, None, tf.int32
        )
        changed = tf.map_fn(lambda pair: augment(*pair), (images, seeds), tf.float32)
        return tf.ensure_shape(changed, images.shape), labels, how

    options = tf.data.Options()
    options.experimental_external_state_policy = tf.data.experimental.ExternalStatePolicy.IGNORE
    return drawn.map(augmented).with_options(options)


def in_memory(data: datasets.Data) -> Arrays:
    """All training examples as arrays."""
    return Arrays(*random_access.read(data.train, "data"))


def write_priorities(path: pathlib.Path, model: tfi.ISModel, data: datasets.Data) -> None:
    """Write the examples that were trained on most and least often, where the sampler counts them.

    The file holds images, labels, visits, and `confused`, the likeliest class but the label by
    the trained net, `least` of the examples first.

    Args:
        path: of the npz file. model: fitted. data: what it was fitted to.
    """
    visits = getattr(getattr(model, "sampler", None), "visits", None)
    if visits is None:
        return
    order = np.argsort(visits.numpy(), kind="stable")
    chosen = np.concatenate([order[:_SHOWN], order[-_SHOWN:]])
    images, labels = (part[chosen] for part in in_memory(data))
    logits = np.array(model.net(images, training=False), np.float32)
    logits[np.arange(len(labels)), labels] = -np.inf
    np.savez_compressed(
        path,
        images=images,
        labels=labels,
        visits=visits.numpy()[chosen],
        confused=logits.argmax(axis=1),
    )
