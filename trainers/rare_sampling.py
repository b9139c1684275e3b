"""What people do about rare classes, and what this library does: one function for each.

Each compiles a model around a net and batches its examples. Whatever it trains on,
`Method.predicted` makes of the net's logits those whose softmax are probabilities under the data's
own prior π, so that all can be compared by their log loss.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf
from absl import flags

import tf_importance as tfi
from trainers import calibration, optimizers, step_schedules
from trainers.datasets import rare
from trainers.sampling import Sampled

Batches = tf.data.Dataset
Predicted = Callable[[np.ndarray], np.ndarray]


class Method(NamedTuple):
    """A way to train on rare classes.

    Attributes:
        prepare: from flags, net and data to a compiled model and its batches.
        by_prior: makes of π what is added to the net's logits to predict; None for nothing.
        fitted: the net's logits are no log odds, and are calibrated by the validation set.
    """

    prepare: Callable[[flags.FlagValues, keras.Model, rare.Rare], Sampled]
    by_prior: Callable[[np.ndarray], np.ndarray] | None = None
    fitted: bool = False

    def predicted(self, data: rare.Rare, logits_of: Predicted) -> Predicted:
        """What makes of the net's logits those that predict.

        Args:
            data: with the prior, and the validation set. logits_of: the net.
        """
        if self.fitted:
            validation = data.validation
            logits = logits_of(validation.x)
            return calibration.fitted(logits, validation.y, validation.weights)
        if self.by_prior is not None:
            shift = self.by_prior(data.prior)
            return lambda logits: logits + shift
        return lambda logits: logits


# Losses ----------------------------------------------------------------------------------------


@keras.saving.register_keras_serializable(package="tf_importance.trainers")
class Shifted(keras.losses.Loss):
    """Cross-entropy of z + shift: what is learned as z is learned of another prior.

    Examples of class k that are drawn, or weighted, a_k times as much as they are there have log
    odds that are moved by log a. With shift = log a the net learns the odds of the data as they are
    (Fithian & Hastie 2014; King & Zeng 2001: "prior correction").

    Args:
        shift: [K].
    """

    def __init__(self, shift, name="shifted", **options) -> None:
        super().__init__(name=name, **options)
        self.shift = [float(value) for value in np.asarray(shift)]

    def call(self, y_true, y_pred):
        return keras.losses.sparse_categorical_crossentropy(
            y_true, y_pred + tf.constant(self.shift, y_pred.dtype), from_logits=True
        )

    def get_config(self):
        return {**super().get_config(), "shift": self.shift}


@keras.saving.register_keras_serializable(package="tf_importance.trainers")
class Focal(keras.losses.Loss):
    """−(1 − p_y)^γ log p_y  (Lin et al. 2017, eq. 4).

    Args:
        gamma: γ; 0 is cross-entropy.
    """

    def __init__(self, gamma: float, name="focal", **options) -> None:
        super().__init__(name=name, **options)
        self.gamma = gamma

    def call(self, y_true, y_pred):
        labels = tf.cast(tf.reshape(y_true, [-1]), tf.int32)
        losses = tf.nn.sparse_softmax_cross_entropy_with_logits(labels, y_pred)
        return (1 - tf.exp(-losses)) ** self.gamma * losses

    def get_config(self):
        return {**super().get_config(), "gamma": self.gamma}


# Batches ---------------------------------------------------------------------------------------


def _uniform(settings, data: rare.Rare) -> Batches:
    size = len(data.train.y)
    numbers = tf.data.Dataset.range(size).shuffle(size, settings.seed).repeat()
    return _gathered(data, numbers.batch(settings.batch_size, drop_remainder=True))


def _with_shares(settings, data: rare.Rare, wanted: np.ndarray) -> Batches:
    """Class k has the share wanted[k] of examples, each class pass after pass.

    As many in every batch, where that is a whole number of each class.
    """
    numbers = []
    for k in range(data.num_classes):
        found = np.flatnonzero(data.train.y == k)
        passes = tf.data.Dataset.from_tensor_slices(found).shuffle(len(found), settings.seed)
        numbers.append(passes.repeat())
    counts = wanted * settings.batch_size
    if np.allclose(counts, np.rint(counts)):
        parts = zip(numbers, np.rint(counts).astype(int))
        batches = [one.batch(int(count)) for one, count in parts if count]
        mixed = tf.data.Dataset.zip(tuple(batches)).map(lambda *of: tf.concat(of, axis=0))
    else:
        mixed = tf.data.Dataset.sample_from_datasets(numbers, list(wanted), settings.seed)
        mixed = mixed.batch(settings.batch_size, drop_remainder=True)
    return _gathered(data, mixed)


def _gathered(data: rare.Rare, batches: Batches) -> Batches:
    x, y = tf.constant(data.train.x), tf.constant(data.train.y)
    return batches.map(lambda i: (tf.gather(x, i), tf.gather(y, i))).prefetch(1)


def _rare_shares(settings, prior: np.ndarray) -> np.ndarray:
    """--rare_share for all classes but the commonest, divided as they divide the data; the rest."""
    rest = prior.copy()
    rest[np.argmax(prior)] = 0.0
    wanted = settings.rare_share * rest / rest.sum()
    wanted[np.argmax(prior)] = 1 - settings.rare_share
    return wanted


# Ways of others --------------------------------------------------------------------------------


def _compiled(settings, net: keras.Model, data: rare.Rare, loss, bias=None, **own) -> tuple:
    """An ISModel whose net begins with the prior's logits, and what sets its learning rate."""
    logits = net.layers[-1]
    logits.bias.assign(np.log(data.prior) if bias is None else bias)
    steps_per_epoch = len(data.train.y) / settings.batch_size
    rate, told = step_schedules.of(settings, steps_per_epoch)
    model = tfi.ISModel(net)
    model.compile(
        optimizers.of(settings, rate), loss, metrics=["accuracy"], jit_compile=settings.jit, **own
    )
    return model, steps_per_epoch, told


def _trained(settings, net, data: rare.Rare, loss, batches: Batches, bias=None) -> Sampled:
    model, steps_per_epoch, told = _compiled(settings, net, data, loss, bias)
    return Sampled(model, batches, steps_per_epoch, told)


def _cross_entropy() -> keras.losses.Loss:
    return keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def _plain(settings, net, data) -> Sampled:
    return _trained(settings, net, data, _cross_entropy(), _uniform(settings, data))


def _class_weights(settings, net, data) -> Sampled:
    """Weights 1/(K π_k), as class_weight="balanced" of scikit-learn."""
    of_class = 1 / (data.num_classes * data.prior)
    weights = tf.constant(of_class, tf.float32)
    batches = _uniform(settings, data).map(lambda x, y: (x, y, tf.gather(weights, y)))
    return _trained(settings, net, data, Shifted(np.log(of_class)), batches)


def _focal(settings, net, data) -> Sampled:
    return _trained(settings, net, data, Focal(settings.gamma), _uniform(settings, data))


def _logit_adjusted(settings, net, data) -> Sampled:
    """Cross-entropy of z + log π, z for balanced classes  (Menon et al. 2021, eq. 10)."""
    loss, bias = Shifted(np.log(data.prior)), np.zeros(data.num_classes)
    return _trained(settings, net, data, loss, _uniform(settings, data), bias)


def _down_sampled(settings, net, data) -> Sampled:
    """Common examples are left out until rare ones have --rare_share; odds are put right."""
    wanted = _rare_shares(settings, data.prior)
    if data.num_classes == 2:
        # The same in every batch, which is of less variance.
        wanted = np.clip(np.rint(wanted * settings.batch_size), 1, settings.batch_size - 1)
        wanted /= settings.batch_size
    loss = Shifted(np.log(wanted / data.prior))
    return _trained(settings, net, data, loss, _with_shares(settings, data, wanted))


# Ways of this library --------------------------------------------------------------------------


def _strata(settings, net, data) -> Sampled:
    return _sampled(settings, net, data, tfi.samplers.Stratified())


def _fixed_strata(settings, net, data, correction: str) -> Sampled:
    shares = dict(enumerate(_rare_shares(settings, data.prior)))
    sampler = tfi.samplers.Stratified(shares=shares, correction=correction)
    return _sampled(settings, net, data, sampler)


def _scored(settings, net, data, over=None) -> Sampled:
    return _sampled(settings, net, data, _fresh(settings, over() if over else None))


def _switched(settings, net, data) -> Sampled:
    strata = tfi.samplers.Stratified()
    members = [tfi.samplers.Uniform(), strata, _fresh(settings, strata)]
    switch = tfi.samplers.Switched(members, by=tfi.switches.Gain())
    return _sampled(settings, net, data, switch)


def _streamed(settings, net, data) -> Sampled:
    """The same of a stream, in which rare examples have to be found; scored where that pays."""
    model, *rest = _compiled(settings, net, data, _cross_entropy())
    examples = tf.data.Dataset.from_tensor_slices((data.train.x, data.train.y))
    examples = examples.shuffle(len(data.train.y), settings.seed).repeat()
    importance_sample = tfi.importance_sample(
        model,
        settings.batch_size,
        _presample_size(settings),
        strata=lambda x, y: y,
        switch=tfi.switches.Gain(),
        seed=settings.seed if settings.repeatable else None,
    )
    return Sampled(model, examples.apply(importance_sample), *rest)


def _fresh(settings, over) -> tfi.samplers.Sampler:
    return tfi.samplers.Fresh(_presample_size(settings), over=over)


def _presample_size(settings) -> int:
    size = settings.presample_size
    return 4 * settings.batch_size if size is None else int(size)


def _sampled(settings, net, data: rare.Rare, sampler) -> Sampled:
    model, *rest = _compiled(settings, net, data, _cross_entropy(), sampler=sampler)
    seed = settings.seed if settings.repeatable else None
    source = (data.train.x, data.train.y)
    batches = tfi.history_sample(source, sampler, settings.batch_size, model=model, seed=seed)
    return Sampled(model, batches.repeat(), *rest)


METHODS = {
    "uniform": Method(_plain),
    "class_weights": Method(_class_weights),
    "down_sampled": Method(_down_sampled),
    "focal": Method(_focal, fitted=True),
    "logit_adjusted": Method(_logit_adjusted, by_prior=np.log),
    "strata": Method(_strata),
    "fixed_strata": Method(functools.partial(_fixed_strata, correction="weights")),
    "log_odds": Method(functools.partial(_fixed_strata, correction="log_odds")),
    "scored": Method(_scored),
    "scored_strata": Method(functools.partial(_scored, over=tfi.samplers.Stratified)),
    "switched_strata": Method(_switched),
    "streamed_strata": Method(_streamed),
}
