"""From the training step back to the sampler: scores, the gain ratio, the learning rate."""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Iterator

import keras
import tensorflow as tf

from tf_importance.samplers.base import Drawn, Sampler, Visit
from tf_importance.scorers import base, forward, last_layer

_told: contextvars.ContextVar[Drawn | None] = contextvars.ContextVar("drawn", default=None)


@contextlib.contextmanager
def drawn(told: Drawn | None) -> Iterator[None]:
    """Within this context the step's examples are those of a batch that a sampler drew."""
    token = _told.set(told)
    try:
        yield
    finally:
        _told.reset(token)


class Feedback:
    """Hands what a step saw of its examples to the sampler they were drawn by.

    Args:
        sampler: any.
        schedule: an object with `advance(gain)`, such as `tfi.schedules.GainAdapted`, or None.
    """

    def __init__(self, sampler: Sampler, schedule=None) -> None:
        self._sampler = sampler
        self._schedule = schedule

    def __call__(self, model, inputs, labels, weights: tf.Tensor) -> tf.Tensor:
        """Between the forward and the backward pass.

        Args:
            model: the ISModel whose step it is, inside `forward.recorded`.
            inputs, labels: nests of [b, …]. weights: [b] as drawn.
        Returns:
            [b] the weights for the loss.
        """
        told, passed = _told.get(), forward.latest()
        if told is None or told.indices is None or passed is None:
            return weights
        drawn_with = tf.cast(weights, tf.float32)
        if told.presample is None:
            scores = tf.stop_gradient(_scores(model, inputs, labels, passed))
            scales = self._sampler.update(Visit(told.indices, drawn_with, scores))
        else:
            # All of the pre-sample, of which the batch is a part.
            seen = told.presample
            visit = Visit(seen["index"], seen["weight"], seen["score"])
            scales = tf.gather(self._sampler.update(visit), told.place)
        squares = last_layer.gradient_squares(
            model.net, model.objective, labels, passed, drawn_with * scales
        )
        scaled = squares.per_example * scales**2
        ratio = self._sampler.record_gain(scaled, drawn_with, squares.batch)
        if self._schedule is not None:
            self._schedule.advance(ratio)
        return weights * tf.cast(scales, weights.dtype)


def _scores(model, inputs, labels, passed: forward.Forward) -> tf.Tensor:
    if isinstance(model.scorer, base.OutputScorer):
        return model.scorer.from_forward(model.objective, labels, passed)
    # A pass of its own, which must not be taken for the step's.
    with forward.recorded():
        return tf.cast(model.scorer(model, inputs, labels), tf.float32)


class Maintenance(keras.callbacks.Callback):
    """Lets a sampler do between steps what is not part of a step.

    `ISModel.fit` adds it by itself.

    Args:
        sampler: any.
    """

    def __init__(self, sampler: Sampler) -> None:
        super().__init__()
        self._sampler = sampler
        self._updates = 0
        self._batch = -1

    def on_train_begin(self, logs=None) -> None:
        self._updates = int(self._sampler.steps.numpy())
        self._sampler.begin()
        self._sampler.maintain(self._updates, self.model)

    def on_epoch_begin(self, epoch, logs=None) -> None:
        self._batch = -1

    def on_train_batch_end(self, batch, logs=None) -> None:
        # More than one at a time under steps_per_execution.
        self._updates += batch - self._batch
        self._batch = batch
        self._sampler.maintain(self._updates, self.model)

    def on_train_end(self, logs=None) -> None:
        self._sampler.end()


def with_maintenance(callbacks, sampler: Sampler):
    """The callbacks of a `fit`, with a sampler's `Maintenance` before all others."""
    maintenance = Maintenance(sampler)
    if isinstance(callbacks, keras.callbacks.CallbackList):
        # Behind those that are there: a list of callbacks cannot be added to in front.
        callbacks.append(maintenance)
        return callbacks
    return [maintenance, *tf.nest.flatten(callbacks or [])]
