"""From the training step back to the sampler: scores, the gain ratio, the learning rate."""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Callable, Iterator
from typing import NamedTuple

import keras
import tensorflow as tf

from tf_importance import robust
from tf_importance.draws import Told
from tf_importance.samplers.base import Sampler, Visit
from tf_importance.scorers import base, forward, last_layer

_told: contextvars.ContextVar[Told | None] = contextvars.ContextVar("drawn", default=None)


@contextlib.contextmanager
def drawn(told: Told | None) -> Iterator[None]:
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
        if told.row is not None:
            return self._write_down(model, inputs, labels, passed, told, told.row, weights)
        self._sampler.steps.assign_add(1)
        seen = _Seen(told, tf.cast(weights, tf.float32))

        def own() -> tf.Tensor:
            scores = tf.stop_gradient(_scores(model, inputs, labels, passed))
            return self._sampler.update(Visit(told.indices, seen.weights, scores))

        if told.remember is not None:
            scales = self._when_due(seen, told.remember[0], own)
        elif told.presample is not None:
            scales = self._of_presample(told.presample, seen)
        else:
            scales = own()
        # Factors are constants to the gradient, and XLA fails on that of branches.
        scales = tf.stop_gradient(scales)
        if told.remember is None:
            # A switch knows the gain already.
            squares = last_layer.gradient_squares(
                model.net, model.objective, labels, passed, seen.weights * scales
            )
            scaled = squares.per_example * scales**2
            ratio = self._sampler.record_gain(scaled, seen.weights, squares.batch)
            if self._schedule is not None:
                self._schedule.advance(ratio)
        return weights * tf.cast(scales, weights.dtype)

    def _write_down(self, model, inputs, labels, passed, told: Told, row, weights) -> tf.Tensor:
        """One row in the journal; all else happens between blocks."""
        scores = tf.stop_gradient(_scores(model, inputs, labels, passed))
        drawn, factors = told.weight, None
        if told.importance is not None:
            drawn = told.importance
            factors = tf.abs(tf.math.divide_no_nan(told.weight, drawn))
            scores *= factors
        if told.limit is not None:
            scales = tf.stop_gradient(robust.limited(scores, told.limit))
            weights *= tf.cast(scales, weights.dtype)
            factors = scales if factors is None else factors * scales
        squares = last_layer.gradient_squares(
            model.net, model.objective, labels, passed, tf.cast(weights, tf.float32)
        )
        of_each = squares.per_example if factors is None else squares.per_example * factors**2
        uniform = drawn * of_each
        moments = [tf.reduce_mean(uniform), tf.reduce_mean(drawn * uniform), squares.batch]
        self._sampler.journal.write(row[0], scores, tf.stack(moments))
        return weights

    def _of_presample(self, of_all: dict[str, tf.Tensor], seen: _Seen) -> tf.Tensor:
        """Hand over all of the pre-sample, of which the batch is a part."""
        visit = Visit(of_all["index"], of_all["weight"], of_all["score"])
        return tf.gather(self._sampler.update(visit), seen.told.place)

    def _when_due(self, seen: _Seen, due, own: Callable[[], tf.Tensor]) -> tf.Tensor:
        """The same under a switch, for the batches of which it says so; it knows the gain."""

        def nothing() -> tf.Tensor:
            return tf.ones_like(seen.weights)

        kind, of_all = tf.cast(due, tf.int32), seen.told.presample
        if of_all is None:
            return tf.switch_case(kind, [nothing, own])
        kind = tf.where(tf.size(of_all["index"]) > tf.size(seen.weights), 2, kind)
        return tf.switch_case(kind, [nothing, own, lambda: self._of_presample(of_all, seen)])


class _Seen(NamedTuple):
    """A batch in the step: what the pipeline said of it, and its weights [b]."""

    told: Told
    weights: tf.Tensor


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
